"""Frames: how a stream of bytes is cut into messages.

Pure: no I/O, no clock, no randomness. Driven by the links (`link.py`), which feed it what arrived.

    frame   size_bytes u32 (of all behind this field) | type u8 | flags u8 | body

Little-endian. What types, flags and bodies mean is not known here. The limit, `frame_bytes_max`,
is on the declared `size_bytes`: it is judged from the header alone, so a peer that announces four
gigabytes is refused before a byte of them is kept.
"""

from __future__ import annotations

import struct

from folkmoot.core.errors import RemoteProtocolError

FRAME_HEADER = struct.Struct("<IBB")

Frame = tuple[int, int, bytes]
"""type, flags, body"""

_SIZE_BYTES = 4
_SIZE_MIN = FRAME_HEADER.size - _SIZE_BYTES  # type and flags

_pack_header = FRAME_HEADER.pack
_unpack_header = FRAME_HEADER.unpack_from


def encode_frame(frame_type: int, body: bytes, flags: int = 0) -> bytes:
    """Put the header before `body`. Keeping to the receiver's limit is the caller's part."""
    return _pack_header(len(body) + _SIZE_MIN, frame_type, flags) + body


class FrameReader:
    """Cuts what is fed into frames.

    - Between calls it keeps at most one incomplete frame: at most `frame_bytes_max` + 4 bytes.
      (While `blocked`, it keeps the rest of one feed.)
    - Every byte is copied at most three times, however small the pieces are that it comes in.
    - After it has raised it is done: every later feed raises the same again.

    A connection starts with a small limit, which its owner raises when the peer has said who it
    is. The peer may have sent more, under the larger limit, behind its hello; both may arrive in
    one piece. So `feed` stops before a frame that is too large, returns the frames before it, and
    is `blocked`: `feed(b"")` judges again, by the limit of then.
    """

    __slots__ = ("_kept", "_missing", "_refusal", "blocked", "frame_bytes_max")

    frame_bytes_max: int
    """Largest acceptable `size_bytes`. May be changed at any time."""
    blocked: bool
    """The next frame is over the limit as it was when feed saw it; call `feed(b"")` to go on."""

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.blocked = False
        self._kept = bytearray()
        self._missing = 0  # bytes until feeding can lead to anything
        self._refusal: str | None = None

    @property
    def kept_bytes(self) -> int:
        """How many bytes of an incomplete frame are held: 0 between two frames."""
        return len(self._kept)

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes, in order.

        Raises RemoteProtocolError, naming size and limit, for a frame that is too large or too
        small to be one. Frames before it have been returned by an earlier call.
        """
        if len(data) < self._missing:
            self._missing -= len(data)
            self._kept += data
            return []
        if self._kept:
            data = b"".join((self._kept, data))
            self._kept.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[Frame]:
        if self._refusal is not None:
            raise RemoteProtocolError(self._refusal)
        frames: list[Frame] = []
        start, end = 0, len(data)
        limit = self.frame_bytes_max
        self._missing = 0
        self.blocked = False
        while end - start >= FRAME_HEADER.size:
            size_bytes, frame_type, flags = _unpack_header(data, start)
            if not _SIZE_MIN <= size_bytes <= limit:
                if not frames:
                    self._refuse(size_bytes)
                self.blocked = True
                break
            stop = start + _SIZE_BYTES + size_bytes
            if stop > end:
                self._missing = stop - end
                break
            frames.append((frame_type, flags, data[start + FRAME_HEADER.size : stop]))
            start = stop
        else:
            self._missing = FRAME_HEADER.size - (end - start)
        if start < end:
            self._kept += data[start:] if start else data
        return frames

    def _refuse(self, size_bytes: int) -> None:
        """Raise, now and ever after: the stream is out of step and nothing behind it counts."""
        if size_bytes < _SIZE_MIN:
            why = f"a frame says it has {size_bytes} bytes; type and flags alone are {_SIZE_MIN}"
        else:
            why = f"a frame says it has {size_bytes} bytes; the limit is {self.frame_bytes_max}"
        self._refusal = why
        raise RemoteProtocolError(why)
