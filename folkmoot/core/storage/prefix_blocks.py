"""Blocks: how entries and records of the compacted prefix are packed into the files in `prefix/`.

Pure: no I/O, no clock, no randomness. Decoding foreign bytes raises ValueError and nothing else,
and takes memory in proportion to them.

    block    size_bytes u32 | crc32 u32 (of all behind it) | kind u8 | 3 zeros | count u32 | body
    ITEMS    base_index u64 | base_time u64 | offsets u32[count] | times u32[count]
             | sessions u64[count] | resources u64[count] | sizes u32[count]
             | parts_bytes u32 | parts | operations
    RECORDS  record ...: kind u8 | 7 zeros | id u64 | size_bytes u32 | bytes

- Columns come first, so what lives can be judged without looking at the operations. An operation is
  as the client sent it, msgpack [resource, name, arguments, perhaps a fence], or what trimming left
  of it. Its index is base_index + offset, its log time base_time + time.
- `parts` is msgpack [[position, bytes], ...] for entries that own several items: one byte for each
  ordinal, 1 where it lived when this was written.

All integers are little-endian. Who drives it: `prefix_file`, `items_output`, `state_file`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from itertools import compress
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.transport.codec import pack, unpack

BLOCK_BYTES = 64 << 10
"""A block is closed when it has about so many: one step of whoever writes or reads."""
ENTRY_BYTES = 28
"""What an entry takes in the columns."""
RECORD_HEAD_BYTES = 20
"""What a record takes beside its bytes."""
ITEMS_BLOCK = 1
RECORDS_BLOCK = 2
CRC_FROM = 8
_BLOCK = struct.Struct("<IIB3xI")
_ITEMS = struct.Struct("<QQ")
_SIZE = struct.Struct("<I")
_RECORD = struct.Struct("<B7xQI")
_COLUMN_MAX = (1 << 32) - 1
_IS_BIG_ENDIAN = sys.byteorder == "big"

Record = tuple[int, int, bytes]
"""(kind, id, bytes)"""


@attrs.define(eq=False)
class ItemsBlock:
    """Entries in order of index, as parallel columns."""

    indexes: array[int]
    times: list[int]
    sessions: array[int]
    resources: array[int]
    operations: list[bytes]
    parts: dict[int, bytes]
    """Position -> one byte per ordinal, for the entries that own several items."""

    def __len__(self) -> int:
        return len(self.indexes)

    @classmethod
    def empty(cls) -> ItemsBlock:
        """Make one to add to."""
        return cls(array("Q"), [], array("Q"), array("Q"), [], {})

    def extend(self, more: ItemsBlock) -> None:
        """Add another block's entries."""
        count = len(self)
        for at, mask in more.parts.items():
            self.parts[count + at] = mask
        self.indexes.extend(more.indexes)
        self.times.extend(more.times)
        self.sessions.extend(more.sessions)
        self.resources.extend(more.resources)
        self.operations.extend(more.operations)

    def select(self, chosen: Sequence[int]) -> ItemsBlock:
        """Return the entries for which `chosen` has no 0."""
        places = {at: place for place, at in enumerate(compress(range(len(self)), chosen))}
        return ItemsBlock(
            array("Q", compress(self.indexes, chosen)),
            list(compress(self.times, chosen)),
            array("Q", compress(self.sessions, chosen)),
            array("Q", compress(self.resources, chosen)),
            list(compress(self.operations, chosen)),
            {places[at]: mask for at, mask in self.parts.items() if at in places},
        )


def encode_items(block: ItemsBlock) -> bytes:
    """Encode entries, at least one, whose indexes and times span less than 2^32."""
    base_index, base_time = block.indexes[0], block.times[0]
    parts = pack([[position, mask] for position, mask in sorted(block.parts.items())])
    body = b"".join(
        (
            _ITEMS.pack(base_index, base_time),
            _column("I", [index - base_index for index in block.indexes]),
            _column("I", [time - base_time for time in block.times]),
            _column("Q", block.sessions),
            _column("Q", block.resources),
            _column("I", [len(operation) for operation in block.operations]),
            _SIZE.pack(len(parts)),
            parts,
            *block.operations,
        )
    )
    return _encode_block(ITEMS_BLOCK, len(block), body)


def fits_behind(block: ItemsBlock, index: int, time: int) -> bool:
    """Say whether an entry may still be added: the columns hold differences of 32 bits."""
    if not block.indexes:
        return True
    return index - block.indexes[0] <= _COLUMN_MAX and time - block.times[0] <= _COLUMN_MAX


def decode_items(body: bytes, count: int) -> ItemsBlock:
    """Decode the body of an ITEMS block. Raises ValueError where it does not add up."""
    try:
        return _decode_items(body, count)
    except (TypeError, OverflowError, struct.error, RemoteProtocolError) as error:
        raise ValueError(f"a block of {count} entries: {error}") from error


def _decode_items(body: bytes, count: int) -> ItemsBlock:
    base_index, base_time = _ITEMS.unpack_from(body)
    at = _ITEMS.size
    columns: list[array[int]] = []
    for code in "IIQQI":
        column = array(code)
        column.frombytes(body[at : at + count * column.itemsize])
        if len(column) != count:
            raise ValueError(f"a column of {len(column)} entries, the block has {count}")
        if _IS_BIG_ENDIAN:
            column.byteswap()
        columns.append(column)
        at += count * column.itemsize
    offsets, times, sessions, resources, sizes = columns
    parts_bytes = _SIZE.unpack_from(body, at)[0]
    at += _SIZE.size
    parts = decode_parts(unpack(body[at : at + parts_bytes]), count)
    at += parts_bytes
    operations: list[bytes] = []
    for size_bytes in sizes:
        operations.append(body[at : at + size_bytes])
        at += size_bytes
    if at != len(body):
        raise ValueError(f"operations of {at} bytes in a body of {len(body)}")
    indexes = array("Q", [base_index + offset for offset in offsets])
    return ItemsBlock(
        indexes, [base_time + time for time in times], sessions, resources, operations, parts
    )


def decode_parts(found: Any, count: int) -> dict[int, bytes]:
    """Rebuild which ordinals of which positions live. Raises ValueError or TypeError."""
    parts: dict[int, bytes] = {}
    last = -1
    for position, mask in found:
        if type(position) is not int or not last < position < count:
            raise ValueError(f"ordinals of {position!r} behind {last}, of {count} entries")
        if type(mask) is not bytes or 1 not in mask or mask.translate(None, b"\0\1"):
            raise ValueError(f"ordinals of position {position}: {mask!r:.40}")
        parts[position] = mask
        last = position
    return parts


def encode_records(records: Sequence[Record]) -> bytes:
    """Encode records as one block."""
    parts: list[bytes] = []
    for kind, key, data in records:
        parts += (_RECORD.pack(kind, key, len(data)), data)
    return _encode_block(RECORDS_BLOCK, len(records), b"".join(parts))


def decode_records(body: bytes, count: int) -> list[Record]:
    """Decode the body of a RECORDS block. Raises ValueError where it does not add up."""
    records = []
    at = 0
    for _ in range(count):
        if len(body) - at < _RECORD.size:
            raise ValueError(f"{count} records in a body of {len(body)} bytes")
        kind, key, size_bytes = _RECORD.unpack_from(body, at)
        at += _RECORD.size + size_bytes
        records.append((kind, key, body[at - size_bytes : at]))
    if at != len(body):
        raise ValueError(f"records of {at} bytes in a body of {len(body)}")
    return records


def _column(code: str, values: Sequence[int]) -> bytes:
    column = array(code, values)
    if _IS_BIG_ENDIAN:
        column.byteswap()
    return column.tobytes()


def _encode_block(kind: int, count: int, body: bytes) -> bytes:
    size_bytes = _BLOCK.size + len(body)
    tail = _BLOCK.pack(size_bytes, 0, kind, count)[CRC_FROM:] + body
    return struct.pack("<II", size_bytes, zlib.crc32(tail)) + tail


def decode_block(data: bytes, size_bytes: int) -> tuple[int, int, bytes] | str:
    """Verify a block and return (kind, count, body), or why it does not verify."""
    if len(data) < size_bytes or size_bytes < _BLOCK.size:
        return f"a block of {size_bytes} bytes, {len(data)} are there"
    said_bytes, crc, kind, count = _BLOCK.unpack_from(data)
    found = zlib.crc32(memoryview(data)[CRC_FROM:])
    if (said_bytes, crc) != (size_bytes, found):
        return (
            f"a block of {size_bytes} bytes with checksum {found:08x} says {said_bytes}, {crc:08x}"
        )
    return kind, count, data[_BLOCK.size :]
