"""What members say to one another when one of them is sent a compacted prefix (§5.1).

Pure: no I/O, no clock, no randomness. Who asks what when is `prefix_sender` and `prefix_receiver`.

    OFFER    leader: there is a prefix, with this table; it speaks for what your log is missing
    ASK      follower: send me these bytes of this file of that archive
    CHUNK    leader: here they are
    DAMAGED  follower: that file does not verify here; does it with you?

The dissertation's InstallSnapshot pushes; here the follower pulls. So it alone knows what it has,
across its own crashes and changes of the leader, nothing has to be acknowledged, and a chunk that
was lost, repeated or overtaken is harmless: it is asked for again, or was not asked for.
"""

from __future__ import annotations

from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.transport.codec import pack, unpack
from folkmoot.transport.frame import encode_frame

OFFER, ASK, CHUNK, DAMAGED = 66, 67, 68, 69
"""Frame types on a link between members."""
CHUNK_BYTES = 128 << 10
"""A follower asks for so many bytes at once."""
TABLE_BYTES_MAX = 8 << 20


@attrs.frozen
class Offer:
    """A leader of `term` can send the archive with this table."""

    term: int
    log_start: int
    """Its log goes on behind this index: a prefix that speaks for less is of no use any more."""
    table: bytes = attrs.field(repr=False)


@attrs.frozen
class Ask:
    """A follower wants some bytes; none are a sign of life from one that is restoring them.

    `received_bytes` it has in all: for the leader's status.
    """

    term: int
    archive_id: bytes
    file_number: int
    offset: int
    size_bytes: int
    received_bytes: int


@attrs.frozen
class Chunk:
    """Some bytes of a file, as asked for."""

    archive_id: bytes
    file_number: int
    offset: int
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Damaged:
    """A file has arrived, and is not what the table says."""

    term: int
    archive_id: bytes
    file_number: int


PrefixMessage = Offer | Ask | Chunk | Damaged
_TYPES: dict[type, int] = {Offer: OFFER, Ask: ASK, Chunk: CHUNK, Damaged: DAMAGED}
_FIELDS: dict[int, tuple[type, tuple[type, ...]]] = {
    OFFER: (Offer, (int, int, bytes)),
    ASK: (Ask, (int, bytes, int, int, int, int)),
    CHUNK: (Chunk, (bytes, int, int, bytes)),
    DAMAGED: (Damaged, (int, bytes, int)),
}


def encode_prefix(message: PrefixMessage) -> bytes:
    """Return the frame."""
    return encode_frame(_TYPES[type(message)], pack(attrs.astuple(message)))


def is_prefix(frame_type: int) -> bool:
    """Say whether a frame is one of these."""
    return frame_type in _FIELDS


def decode_prefix(frame_type: int, body: bytes) -> PrefixMessage:
    """Decode and check. Raises RemoteProtocolError, only that."""
    kind, types = _FIELDS[frame_type]
    fields: Any = unpack(body)
    if type(fields) is not list or [*map(type, fields)] != [*types]:
        raise RemoteProtocolError(f"{kind.__name__} of {len(body)} bytes has other fields")
    if any(type(field) is int and field < 0 for field in fields):
        raise RemoteProtocolError(f"{kind.__name__} with a negative number")
    message: PrefixMessage = kind(*fields)
    if type(message) is Ask and message.size_bytes > CHUNK_BYTES:
        raise RemoteProtocolError(f"ask for {message.size_bytes} bytes, at most {CHUNK_BYTES}")
    if type(message) is Offer and len(message.table) > TABLE_BYTES_MAX:
        raise RemoteProtocolError(f"offer with a table of {len(message.table)} bytes")
    return message
