"""A backup: a compacted prefix in one file, with a description and hashes.

What it is: the format, a writer and a reader. What it is not: it fetches nothing from a server
(`folkmoot/cli/snapshot_save.py`), knows nothing of what records mean (`core/survey.py` does), and
makes no data directory (`restored_directory`).

    0      magic 8 | version u32 | table_bytes u32 | crc32 u32 of the 16 bytes before it
    20     table: the archive's (archive.py), which says which files follow, and how long they are
    ...    the bytes of these files, one file after another, in the order of the table
    ...    description: msgpack [made_at, made_by, sessions, resources, hashes]
             resource    [id, name, type, version, entries, size_bytes]
             hashes      the SHA-256 of each file
    end    description_bytes u32 | SHA-256 of everything before it

All integers are little-endian. The length of everything follows from the head, so a file that was
cut short anywhere is found out by its size; any flipped bit is by the last hash. What is damaged
then, the inner checks tell: each record of a prefix file has one of its own.

A backup is written under another name and renamed when it is complete and durable: under its own
name there is a whole one or none.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, cast

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt, StorageError
from folkmoot.core.prefix_table import ArchiveTable, archive_id
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.prefix_file import read_records, verified_bytes
from folkmoot.core.storage.stored_prefix import StoredPrefix
from folkmoot.transport.codec import pack, unpack

READ_BYTES = 1 << 20
_MAGIC = b"FMBACKUP"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
_CRC = struct.Struct("<I")
_SIZE = struct.Struct("<I")
_HASH_BYTES = 32
_TAIL_BYTES = _SIZE.size + _HASH_BYTES
_SYNC_BYTES = 16 << 20


@attrs.frozen
class BackupResource:
    """One resource of a backup, as it was when it was saved."""

    id: int
    name: str
    type_name: str
    version: int
    entries: int
    """Entries that it is owed to; 0 where its state is small and of one piece."""
    size_bytes: int


@attrs.frozen
class Description:
    """What a backup says of itself beside its table."""

    made_at: str
    """When it was saved, by the clock of whoever saved it: for people, and nothing else."""
    made_by: str
    sessions: int
    resources: tuple[BackupResource, ...]
    hashes: tuple[bytes, ...]
    """The SHA-256 of each file."""

    @property
    def entries(self) -> int:
        """Entries of all resources."""
        return sum(one.entries for one in self.resources)

    def encode(self) -> bytes:
        """Return its bytes."""
        resources = [list(attrs.astuple(one)) for one in self.resources]
        return pack([self.made_at, self.made_by, self.sessions, resources, list(self.hashes)])

    @classmethod
    def decode(cls, data: bytes) -> Description:
        """Rebuild it. Raises ValueError."""
        try:
            made_at, made_by, sessions, resources, hashes = unpack(data)
            found = cls(
                made_at,
                made_by,
                sessions,
                tuple(BackupResource(*one) for one in resources),
                tuple(hashes),
            )
        except (TypeError, ValueError, RemoteProtocolError) as error:
            raise ValueError(f"a description of {len(data)} bytes: {error}") from error
        kinds = {tuple(map(type, attrs.astuple(one))) for one in found.resources}
        if (
            [type(made_at), type(made_by), type(sessions)] != [str, str, int]
            or not kinds <= {(int, str, str, int, int, int)}
            or not set(map(type, hashes)) <= {bytes}
        ):
            raise ValueError("a description with other fields")
        return found


class BackupWriter:
    """Writes one backup, under `partial` until it is complete.

    - Bytes come in order: file after file, each from its beginning.
    """

    def __init__(self, files: Files, partial: str, table: bytes) -> None:
        """Begin. Raises RemoteProtocolError for bytes that are no table, StorageError."""
        self.table = ArchiveTable.decode(table)
        self.written_bytes = 0
        """Of the files in the table."""
        self._files = files
        self._partial = partial
        self._offset = 0
        self._unsynced = 0
        self._whole = hashlib.sha256()
        self._hashes = [hashlib.sha256() for _ in self.table.files]
        self._lengths = [0] * len(self.table.files)
        files.create(partial)
        head = _HEAD.pack(_MAGIC, _VERSION, len(table), 0)[: -_CRC.size]
        self._put(head + _CRC.pack(zlib.crc32(head)) + table)

    def append(self, file_number: int, data: bytes) -> None:
        """Write the next bytes."""
        before = [one.entry.end for one in self.table.files[:file_number]]
        assert self._lengths[:file_number] == before, f"{file_number} of {self._lengths}, {before}"
        self._lengths[file_number] += len(data)
        end = self.table.files[file_number].entry.end
        assert self._lengths[file_number] <= end, f"{self._lengths[file_number]} of {end} bytes"
        self._hashes[file_number].update(data)
        self.written_bytes += len(data)
        self._put(data)

    def source(self) -> StoredPrefix:
        """Return what was written, to be read back. Reading it verifies every byte."""
        assert self.written_bytes == self.table.size_bytes, f"{self._lengths} of {self.table}"
        first = self._offset - self.table.size_bytes
        return _Parts(self._files, self._partial, self.table, first).source()

    def finish(
        self,
        name: str,
        made_at: str,
        made_by: str,
        sessions: int,
        resources: Sequence[BackupResource],
    ) -> None:
        """Write the description, make everything durable and give it its name."""
        hashes = tuple(one.digest() for one in self._hashes)
        description = Description(made_at, made_by, sessions, tuple(resources), hashes).encode()
        self._put(description + _SIZE.pack(len(description)))
        self._put(self._whole.digest())
        self._files.sync(self._partial)
        self._files.rename(self._partial, name)
        self._files.sync_dir()

    def _put(self, data: bytes) -> None:
        self._files.write(self._partial, self._offset, data)
        self._offset += len(data)
        self._whole.update(data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            self._files.sync(self._partial)
            self._unsynced = 0


@attrs.define
class Backup:
    """A backup that is being read.

    - The layout adds up, once it is there; only `verify` has looked at every byte.
    """

    table: ArchiveTable
    id: bytes
    """The archive's: equal ids mean equal content."""
    size_bytes: int
    """Of the whole file."""
    _files: Files = attrs.field(repr=False)
    _name: str
    _first: int
    """Where the files begin."""
    _description_at: int

    @classmethod
    def open(cls, files: Files, name: str) -> Backup:
        """Read the head, and check that the file is as long as that says.

        Raises StorageCorrupt, naming the offset, for what is no backup, or not all of one; and
        StorageError for another version.
        """
        where = files.describe(name)
        head = files.read(name, 0, _HEAD.size)
        if head[: len(_MAGIC)] != _MAGIC:
            raise _damaged(where, 0, f"it begins with {head[: len(_MAGIC)]!r}: this is no backup")
        if len(head) < _HEAD.size:
            raise _damaged(where, len(head), "it ends here")
        _, version, table_bytes, crc = _HEAD.unpack(head)
        if crc != zlib.crc32(head[: -_CRC.size]):
            raise _damaged(where, 0, "its head does not verify")
        if version != _VERSION:
            raise StorageError(
                f"{where}: a backup of format version {version}, this program knows {_VERSION}; "
                "use the release that saved it, or a newer one"
            )
        encoded = files.read(name, _HEAD.size, table_bytes)
        first = _HEAD.size + table_bytes
        if len(encoded) < table_bytes:
            raise _damaged(where, _HEAD.size + len(encoded), f"it ends in its table of {first}")
        try:
            table = ArchiveTable.decode(encoded)
        except RemoteProtocolError as error:
            raise _damaged(where, _HEAD.size, str(error)) from error
        size_bytes = files.size(name)
        description_at = first + table.size_bytes
        _check_length(files, name, size_bytes, description_at)
        return cls(table, archive_id(encoded), size_bytes, files, name, first, description_at)

    def description(self) -> Description:
        """Read what it says of itself. Raises StorageCorrupt."""
        end = self.size_bytes - _TAIL_BYTES
        data = self._files.read(self._name, self._description_at, end - self._description_at)
        try:
            found = Description.decode(data)
        except ValueError as error:
            where = self._files.describe(self._name)
            raise _damaged(where, self._description_at, str(error)) from error
        return found

    def verify(self) -> Generator[int, None, None]:
        """Check the hash over everything; yields how many bytes are read so far.

        Raises StorageCorrupt, which says where the damage is.
        """
        whole = hashlib.sha256()
        end = self.size_bytes - _HASH_BYTES
        for offset in range(0, end, READ_BYTES):
            data = self._files.read(self._name, offset, min(READ_BYTES, end - offset))
            whole.update(data)
            yield offset + len(data)
        if self._files.read(self._name, end, _HASH_BYTES) != whole.digest():
            raise self._find_damage()
        hashes = self.description().hashes
        if len(hashes) != len(self.table.files):
            where = self._files.describe(self._name)
            why = f"hashes of {len(hashes)} files, the table lists {len(self.table.files)}"
            raise _damaged(where, self._description_at, why)

    def source(self) -> StoredPrefix:
        """Return the prefix in it. Reading it verifies every record."""
        return self._parts().source()

    def read_file(self, file_number: int) -> Iterator[bytes]:
        """Yield the bytes of one of the files."""
        parts = self._parts()
        end = self.table.files[file_number].entry.end
        for offset in range(0, end, READ_BYTES):
            yield parts.read(_part(file_number), offset, min(READ_BYTES, end - offset))

    def state_records(self) -> Iterator[list[tuple[int, int, bytes]]]:
        """Yield the records of the state file, the liveness among them, block by block."""
        return self._parts().state_records()

    def _parts(self) -> _Parts:
        return _Parts(self._files, self._name, self.table, self._first)

    def _find_damage(self) -> StorageCorrupt:
        """Say where it is: the first record that does not verify, or behind all of them."""
        where, parts, offset = self._files.describe(self._name), self._parts(), self._first
        for number, one in enumerate(self.table.files):
            try:
                good = verified_bytes(parts.as_files(), _part(number), one.entry)
            except StorageError:
                good = 0
            if good < one.entry.end:
                which = f"file {number + 1} of {len(self.table.files)} in it"
                return _damaged(where, offset + good, f"{which} does not verify from here on")
            offset += one.entry.end
        why = "its description, or the hash behind it, does not verify"
        return _damaged(where, self._description_at, why)


def _check_length(files: Files, name: str, size_bytes: int, description_at: int) -> None:
    """Check that a file ends where its description does."""
    where = files.describe(name)
    least = description_at + _TAIL_BYTES
    if size_bytes < least:
        raise _damaged(where, size_bytes, f"it ends here, and has at least {least} bytes")
    tail_at = size_bytes - _TAIL_BYTES
    said: int = _SIZE.unpack(files.read(name, tail_at, _SIZE.size))[0]
    if description_at + said != tail_at:
        found = f"a description of {tail_at - description_at} bytes, {said} are claimed"
        raise _damaged(where, tail_at, f"{found}: it was cut short, or has more behind its end")


class _Parts:
    """The files in a backup, as if each lay by itself: what reading of `Files` needs, no more."""

    def __init__(self, files: Files, name: str, table: ArchiveTable, first: int) -> None:
        self._files = files
        self._name = name
        self._table = table
        self._places: dict[str, tuple[int, int]] = {}
        for number, one in enumerate(table.files):
            self._places[_part(number)] = first, one.entry.end
            first += one.entry.end

    def describe(self, name: str) -> str:
        """Name the file in the file, and where it begins there."""
        return f"{self._files.describe(self._name)}, {name} (begins at {self._places[name][0]})"

    def size(self, name: str) -> int:
        """Return how long it is."""
        return self._places[name][1]

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Read from it, not beyond its end."""
        first, end = self._places[name]
        wanted = max(end - offset, 0)
        if size_bytes is not None:
            wanted = min(wanted, size_bytes)
        return self._files.read(self._name, first + offset, wanted)

    def as_files(self) -> Files:
        """Return itself, for whoever only reads."""
        return cast("Files", self)

    def source(self) -> StoredPrefix:
        """Return the prefix that they are."""
        entries = [one.entry for one in self._table.files]
        return StoredPrefix(self.as_files(), entries, list(self._places))

    def state_records(self) -> Iterator[list[tuple[int, int, bytes]]]:
        """Yield all records of the state file."""
        return read_records(self.as_files(), _part(0), self._table.files[0].entry)


def _part(number: int) -> str:
    return f"file {number + 1}"


def _damaged(where: str, offset: int, why: Any) -> StorageCorrupt:
    return StorageCorrupt(f"{where} at offset {offset}: {why}")
