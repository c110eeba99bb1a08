"""Where each operation of a client's frame lies, so that it can be copied as it is.

What it is: one pass of msgpack's own parser over the bytes, which builds nothing but the first
field of the operations that are taken. What it is not: a check; that was done when the frame came.

Who drives it: `compaction`.
"""

from __future__ import annotations

import msgpack


class OperationSpans:
    """The operations of one frame, to be taken in rising order."""

    def __init__(self, payload: bytes, offset: int) -> None:
        """The operations are a msgpack array that begins at `offset`."""
        self._data = payload[offset:]
        self._parser = msgpack.Unpacker(max_buffer_size=len(self._data))
        self._parser.feed(self._data)
        self._parser.read_array_header()
        self._next = 0

    def take(self, position: int) -> tuple[int | None, bytes]:
        """Return the resource's id (None: the operation names it) and the operation's bytes."""
        parser = self._parser
        while self._next < position:
            parser.skip()
            self._next += 1
        self._next += 1
        start = parser.tell()
        fields = parser.read_array_header()
        reference = parser.unpack()
        parser.skip()
        parser.skip()
        if fields != 3:
            parser.skip()  # a fence
        data = self._data[start : parser.tell()]
        return (reference if type(reference) is int else None), data
