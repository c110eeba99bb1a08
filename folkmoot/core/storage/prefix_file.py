"""Prefix files: how the compacted prefix lies on the disk.

What it is: the format of the files in `prefix/`, a writer and a reader. What it is not: it does not
decide what is kept (`compaction`), nor which files count (`manifest`).

    prefix/0000000007.items      live entries, in order of index
    prefix/0000000009.state      records, and which entries of each items file live

    0        header: magic 8 | version u32 | kind u32 | file_id u64 | first_index u64 | node_id u64
             | cluster_id 16 | zeros | crc32 u32 of the 124 bytes before it
    128      record | record | ... to the end of the file

    record   the log's frame (segment.py: tag, size, previous, durable 0, check), then a block
             (prefix_blocks.py), in an items file of entries, in a state file of records

- A file is written once, from its header to its end, and never changed. MANIFEST says where it ends
  and what its chain is there, so a file that is too short, too long or another one is found out.
- Records stand in order of (kind, id). The kinds are core/prefix.py's `RecordKind`, and one of the
  storage's own behind them: LIVENESS, for each items file (its id is that file's first index), says
  what lives of it: msgpack [zlib of one byte per entry, parts as in the blocks]. It is frozen with
  the compaction index, never recomputed.

All integers are little-endian. Who drives it: `items_output`,
`state_file`, `stored_prefix`, `archive`, `incoming`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import attrs

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.prefix_table import FILE_HEADER_BYTES, FileKind, PrefixFileEntry
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.prefix_blocks import (
    CRC_FROM,
    ITEMS_BLOCK,
    RECORDS_BLOCK,
    ItemsBlock,
    Record,
    decode_block,
    decode_items,
    decode_records,
)
from folkmoot.core.storage.segment import RECORD_BYTES, corrupt, decode_record, encode_record

SUBDIR = "prefix"
HEADER_BYTES = FILE_HEADER_BYTES
LIVENESS = 5
"""Kind of the records that are the storage's own."""
_READ_BYTES = 1 << 20
_MAGIC = b"FMPREFIX"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ16s")
_CRC = struct.Struct("<I")
_KINDS = frozenset(FileKind)


def file_name(kind: FileKind, file_id: int) -> str:
    """Return a prefix file's name."""
    return f"{SUBDIR}/{file_id:010d}.{'items' if kind is FileKind.ITEMS else 'state'}"


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
    if kind not in _KINDS:
        raise corrupt(where, 0, f"a file of kind {kind}")
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
        at = window.at(offset, RECORD_BYTES + CRC_FROM)
        record = decode_record(window.data, at, header.tag)
        if isinstance(record, str):
            yield record
            return
        block_bytes, previous, _, check = record
        at = window.at(offset, RECORD_BYTES + block_bytes) + RECORD_BYTES
        block = decode_block(window.data[at : at + block_bytes], block_bytes)
        if previous != chain:
            block = f"chained to {previous:08x}, the record before is {chain:08x}"
        if isinstance(block, str):
            yield block
            return
        chain = check
        offset += RECORD_BYTES + block_bytes
        yield offset, chain, block


def read_items(files: Files, name: str, entry: PrefixFileEntry) -> Iterator[ItemsBlock]:
    """Yield the blocks of an items file, in order of index within what it speaks for."""
    last_index = entry.first_index - 1
    for kind, count, body in read_blocks(files, name, entry):
        try:
            if kind != ITEMS_BLOCK:
                raise ValueError(f"a block of kind {kind}")
            block = decode_items(body, count)
            if not (count and last_index < block.indexes[0] <= block.indexes[-1]):
                raise ValueError(f"{count} entries behind index {last_index}: {block.indexes[:1]}")
            last_index = block.indexes[-1]
            if last_index > entry.last_index:
                raise ValueError(f"an entry of index {last_index}, MANIFEST says {entry}")
        except ValueError as error:
            raise _undecodable(files, name, error) from error
        yield block


def read_records(files: Files, name: str, entry: PrefixFileEntry) -> Iterator[list[Record]]:
    """Yield the records of a state file, block by block, in order."""
    last = (0, 0)
    for kind, count, body in read_blocks(files, name, entry):
        try:
            if kind != RECORDS_BLOCK:
                raise ValueError(f"a block of kind {kind}")
            records = decode_records(body, count)
            for record in records:
                if record[:2] <= last:
                    raise ValueError(f"record {record[:2]} behind {last}")
                last = record[:2]
        except ValueError as error:
            raise _undecodable(files, name, error) from error
        yield records


def _undecodable(files: Files, name: str, why: ValueError) -> StorageCorrupt:
    return StorageCorrupt(
        f"{files.describe(name)}: a block does not decode: {why}; "
        "rebuild this member from the others, or restore a backup"
    )
