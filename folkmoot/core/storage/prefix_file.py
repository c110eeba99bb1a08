"""Prefix files: how the compacted prefix lies on the disk.

What it is: the format of the files in `prefix/`, a writer and a reader. What it is not: it does not
decide what is kept (`compaction`), nor which files count (`manifest`).

    prefix/0000000007.items      live entries, in order of index
    prefix/0000000009.state      records, and which entries of each items file live

    0        header: magic 8 | version u32 | kind u32 | file_id u64 | first_index u64 | node_id u64
             | cluster_id 16 | zeros | crc32 u32 of the 124 bytes before it
    128      record | record | ... to the end of the file

    record   the log's frame (segment.py: tag, size, previous, durable 0, check), then a block
    block    size_bytes u32 | crc32 u32 (of all behind it) | kind u8 | 3 zeros | count u32 | body
    ITEMS    base_index u64 | base_time u64 | offsets u32[count] | times u32[count]
             | sessions u64[count] | resources u64[count] | sizes u32[count]
             | parts_bytes u32 | parts | operations
    RECORDS  record ...: kind u8 | 7 zeros | id u64 | size_bytes u32 | bytes

- A file is written once, from its header to its end, and never changed. MANIFEST says where it ends
  and what its chain is there, so a file that is too short, too long or another one is found out.
- Columns come first, so what lives can be judged without looking at the operations. An operation is
  as the client sent it, msgpack [resource, name, arguments, perhaps a fence], or what trimming left
  of it. Its index is base_index + offset, its log time base_time + time.
- `parts` is msgpack [[position, bytes], ...] for entries that own several items: one byte for each
  ordinal, 1 where it lived when this was written.
- LIVENESS, a record of the state file for each items file (its id is that file's first index), says
  what lives of it: msgpack [zlib of one byte per entry, parts as above]. It is frozen with the
  compaction index, never recomputed.

All integers are little-endian. Who drives it: `compaction`, `prefix_store`, `archive`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import compress

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt, StorageError
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import FileKind, PrefixFileEntry
from folkmoot.core.storage.segment import RECORD_BYTES, corrupt, decode_record, encode_record
from folkmoot.transport.codec import pack, unpack

SUBDIR = "prefix"
HEADER_BYTES = 128
BLOCK_BYTES = 64 << 10
"""A block is closed when it has about so many: one step of whoever writes or reads."""
ENTRY_BYTES = 28
"""What an entry takes in the columns."""
_READ_BYTES = 1 << 20
_MAGIC = b"FMPREFIX"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ16s")
_CRC = struct.Struct("<I")
_BLOCK = struct.Struct("<IIB3xI")
_ITEMS = struct.Struct("<QQ")
_RECORD = struct.Struct("<B7xQI")
_CRC_FROM = 8
_COLUMN_MAX = (1 << 32) - 1
_IS_BIG_ENDIAN = sys.byteorder == "big"

ITEMS_BLOCK = 1
RECORDS_BLOCK = 2
LIVENESS = 5
"""Kind of a record that is the storage's own; those below are core/prefix.py's `RecordKind`."""

Record = tuple[int, int, bytes]
"""(kind, id, bytes)"""


def file_name(kind: FileKind, file_id: int) -> str:
    """Return a prefix file's name."""
    return f"{SUBDIR}/{file_id:010d}.{'items' if kind is FileKind.ITEMS else 'state'}"


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
            _CRC.pack(len(parts)),
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
    parts_bytes = _CRC.unpack_from(body, at)[0]
    at += _CRC.size
    parts = dict(unpack(body[at : at + parts_bytes]))
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
    tail = _BLOCK.pack(size_bytes, 0, kind, count)[_CRC_FROM:] + body
    return struct.pack("<II", size_bytes, zlib.crc32(tail)) + tail


class PrefixFileWriter:
    """Writes one file, block by block, from its header to its end.

    - Nothing of it counts before MANIFEST lists it; `close` makes it durable, the names in the
      directory are the caller's to sync.
    - Written bytes are synced in portions, so that the last sync is no long one beside the log's.
    """

    def __init__(
        self, files: Files, kind: FileKind, file_id: int, first_index: int, owner: tuple[bytes, int]
    ) -> None:
        cluster_id, node_id = owner
        body = _HEADER.pack(
            _MAGIC, _VERSION, kind, file_id, first_index, node_id, cluster_id
        ).ljust(HEADER_BYTES - _CRC.size, b"\0")  # fmt: skip
        crc = zlib.crc32(body)
        self.name = file_name(kind, file_id)
        self.size_bytes = HEADER_BYTES
        self._files = files
        self._kind = kind
        self._file_id = file_id
        self._first_index = first_index
        self._tag = self._chain = crc or 1
        self._parts = [body + _CRC.pack(crc)]
        self._written = 0
        self._unsynced = 0
        files.create(self.name)

    def append(self, block: bytes) -> None:
        """Put an encoded block behind the last one."""
        frame, self._chain = encode_record(self._tag, self._chain, 0, block)
        self._parts += (frame, block)
        self.size_bytes += len(frame) + len(block)

    def flush(self, sync_bytes: int) -> int:
        """Write what was appended, and sync once more than `sync_bytes` wait. Returns the bytes."""
        data = b"".join(self._parts)
        if data:
            self._files.write(self.name, self._written, data)
            self._parts.clear()
            self._written += len(data)
            self._unsynced += len(data)
        if self._unsynced > sync_bytes:
            self._files.sync(self.name)
            self._unsynced = 0
        return len(data)

    def close(self, last_index: int) -> PrefixFileEntry:
        """Make the file durable and return what MANIFEST is to say of it."""
        self.flush(0)
        self._files.sync(self.name)
        self._files.release(self.name)
        return self.entry(last_index)

    def entry(self, last_index: int) -> PrefixFileEntry:
        """Return what MANIFEST would say if the file ended here."""
        return PrefixFileEntry(
            self._kind, self._file_id, self._first_index, last_index, self.size_bytes, self._chain
        )


@attrs.frozen
class FileHeader:
    """What a prefix file says of itself."""

    kind: FileKind
    file_id: int
    first_index: int
    node_id: int
    """Who wrote it: another member, where it was received."""
    cluster_id: bytes
    tag: int


def read_header(files: Files, name: str) -> FileHeader:
    """Read and verify the header. Raises StorageCorrupt, or StorageError for another version."""
    data, where = files.read(name, 0, HEADER_BYTES), files.describe(name)
    if len(data) < HEADER_BYTES:
        raise corrupt(where, 0, f"{len(data)} bytes, a header has {HEADER_BYTES}")
    crc, said = zlib.crc32(data[: -_CRC.size]), _CRC.unpack(data[-_CRC.size :])[0]
    magic, version, kind, file_id, first_index, node_id, cluster_id = _HEADER.unpack_from(data)
    if magic != _MAGIC or crc != said:
        raise corrupt(where, 0, f"its header does not verify ({magic!r}, {crc:08x}, {said:08x})")
    if version != _VERSION:
        raise StorageError(
            f"{where}: format version {version}, this program knows {_VERSION}; "
            "use the release that wrote this directory, or a newer one"
        )
    return FileHeader(FileKind(kind), file_id, first_index, node_id, cluster_id, crc or 1)


class _Window:
    """A part of a file in memory, moved along as it is read."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name
        self._start = 0
        self.data = b""

    def at(self, offset: int, size_bytes: int) -> int:
        """Return where in `data` the file's `offset` is, with `size_bytes` behind it if there."""
        at = offset - self._start
        if at + size_bytes > len(self.data):
            self.data = self._files.read(self._name, offset, max(size_bytes, _READ_BYTES))
            self._start, at = offset, 0
        return at


def read_blocks(
    files: Files, name: str, entry: PrefixFileEntry
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (kind, count, body) of each block, verified; at the end the whole file is.

    Raises StorageCorrupt naming file and offset. Reads about a mebibyte at a time.
    """
    where = files.describe(name)
    size_bytes = files.size(name)
    if size_bytes != entry.end:
        raise corrupt(where, min(size_bytes, entry.end), f"{size_bytes} bytes, not {entry.end}")
    chain, offset = 0, 0
    for found in _walk(files, name, entry):
        if isinstance(found, str):
            raise corrupt(where, offset, found)
        offset, chain, block = found
        if block is not None:
            yield block
    if (chain, offset) != (entry.chain, entry.end):
        raise corrupt(where, offset, f"it ends with chain {chain:08x}, MANIFEST says {entry}")


def verified_bytes(files: Files, name: str, entry: PrefixFileEntry) -> int:
    """Return how long the part of a file is, from its beginning, that verifies.

    A whole file that does not end as `entry` says counts as nothing.
    """
    offset = chain = 0
    for found in _walk(files, name, entry):
        if isinstance(found, str):
            break
        offset, chain, _ = found
    return offset if offset < entry.end or chain == entry.chain else 0


def _walk(
    files: Files, name: str, entry: PrefixFileEntry
) -> Iterator[tuple[int, int, tuple[int, int, bytes] | None] | str]:
    """Yield (end, chain there, block) of the header (no block) and of each record behind it.

    Ends where the file is to end, or with the reason why the next record does not verify.
    """
    header = read_header(files, name)
    if (header.kind, header.first_index) != (entry.kind, entry.first_index):
        yield f"it holds {header.kind.name} from index {header.first_index}, not {entry}"
        return
    window = _Window(files, name)
    chain, offset = header.tag, HEADER_BYTES
    yield offset, chain, None
    while offset < entry.end:
        at = window.at(offset, RECORD_BYTES + _CRC_FROM)
        record = decode_record(window.data, at, header.tag)
        if isinstance(record, str):
            yield record
            return
        block_bytes, previous, _, check = record
        at = window.at(offset, RECORD_BYTES + block_bytes) + RECORD_BYTES
        block = _decode_block(window.data[at : at + block_bytes], block_bytes)
        if previous != chain:
            block = f"chained to {previous:08x}, the record before is {chain:08x}"
        if isinstance(block, str):
            yield block
            return
        chain = check
        offset += RECORD_BYTES + block_bytes
        yield offset, chain, block


def _decode_block(data: bytes, size_bytes: int) -> tuple[int, int, bytes] | str:
    """Verify a block and return (kind, count, body), or why it does not verify."""
    if len(data) < size_bytes or size_bytes < _BLOCK.size:
        return f"a block of {size_bytes} bytes, {len(data)} are there"
    said_bytes, crc, kind, count = _BLOCK.unpack_from(data)
    found = zlib.crc32(memoryview(data)[_CRC_FROM:])
    if (said_bytes, crc) != (size_bytes, found):
        return (
            f"a block of {size_bytes} bytes with checksum {found:08x} says {said_bytes}, {crc:08x}"
        )
    return kind, count, data[_BLOCK.size :]


def read_items(files: Files, name: str, entry: PrefixFileEntry) -> Iterator[ItemsBlock]:
    """Yield the blocks of an items file."""
    for kind, count, body in read_blocks(files, name, entry):
        try:
            if kind != ITEMS_BLOCK:
                raise ValueError(f"a block of kind {kind}")
            yield decode_items(body, count)
        except (ValueError, TypeError, struct.error, RemoteProtocolError) as error:
            raise StorageCorrupt(
                f"{files.describe(name)}: a block does not decode: {error}"
            ) from error


def read_records(files: Files, name: str, entry: PrefixFileEntry) -> Iterator[list[Record]]:
    """Yield the records of a state file, block by block."""
    for kind, count, body in read_blocks(files, name, entry):
        try:
            if kind != RECORDS_BLOCK:
                raise ValueError(f"a block of kind {kind}")
            yield decode_records(body, count)
        except (ValueError, struct.error) as error:
            raise StorageCorrupt(
                f"{files.describe(name)}: a block does not decode: {error}"
            ) from error
