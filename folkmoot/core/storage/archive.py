"""An archive: a compacted prefix as a table of files and their bytes, for a follower or a backup.

What it is: the one form in which a prefix leaves a server. A table says which files there are, how
long they are and what their chain is at the end; the bytes are those of the files, read in any
order. What it is not: a copy. The files stay where they are, pinned until the archive is closed.

The id of an archive is a hash of its table, which names every file by who made it, its number
there, its size and its chain. So equal ids mean equal bytes, and a file with the same line in two
tables need not be sent again.

Who drives it: the server that sends a prefix, and `folkmoot snapshot`. `read` is safe in any
thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import FileKind, Manifest, Point, PrefixFileEntry
from folkmoot.core.storage.prefix_file import HEADER_BYTES, file_name, read_blocks, read_header
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.segment import corrupt
from folkmoot.transport.codec import pack, unpack

FILES_MAX = 1 << 16
"""More files than this in one table are refused when it is decoded."""
_NUMBER_MAX = (1 << 64) - 1
_CHAIN_MAX = (1 << 32) - 1


@attrs.frozen
class ArchiveFile:
    """One file, by the name that it has everywhere."""

    origin: int
    """The node that made it."""
    entry: PrefixFileEntry
    """Its `file_id` is the origin's."""

    @property
    def identity(self) -> tuple[int, int, int]:
        """What no two files share: who made it, its number there, and its chain.

        The numbers of a node may come again in a cluster that was restored from a backup.
        """
        return self.origin, self.entry.file_id, self.entry.chain

    def encode(self) -> list[int]:
        """Return plain data."""
        return [self.origin, *map(int, attrs.astuple(self.entry))]

    @classmethod
    def decode(cls, fields: Sequence[int]) -> ArchiveFile:
        """Rebuild from `encode`'s data. Raises ValueError or TypeError."""
        origin, kind, file_id, first_index, last_index, end, chain = _numbers(fields)
        if end <= HEADER_BYTES or chain > _CHAIN_MAX:
            raise ValueError(f"{fields} does not describe a file")
        entry = PrefixFileEntry(FileKind(kind), file_id, first_index, last_index, end, chain)
        return cls(origin, entry)


@attrs.frozen
class ArchiveTable:
    """What an archive holds.

    - The state file is first, then the items files in order of index: as in MANIFEST.
    """

    cluster_id: bytes
    epoch: int
    point: Point
    files: tuple[ArchiveFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(one.entry.end for one in self.files)

    def encode(self) -> bytes:
        """Return its bytes, from which `archive_id` is made."""
        point = list(attrs.astuple(self.point))
        return pack([self.cluster_id, self.epoch, point, [one.encode() for one in self.files]])

    @classmethod
    def decode(cls, data: bytes) -> ArchiveTable:
        """Rebuild it. Raises RemoteProtocolError for bytes that are no table."""
        fields: Any = unpack(data)
        try:
            cluster_id, epoch, point, files = fields
            if type(cluster_id) is not bytes or len(cluster_id) != 16 or len(files) > FILES_MAX:
                raise ValueError(f"cluster id {cluster_id!r:.40}, {len(files)} files")
            epoch, index, term, log_time = _numbers([epoch, *point])
            table = cls(
                cluster_id,
                epoch,
                Point(index, term, log_time),
                tuple(ArchiveFile.decode(one) for one in files),
            )
            wrong = table.check()
        except (TypeError, ValueError) as error:
            raise RemoteProtocolError(f"a prefix's table of {len(data)} bytes: {error}") from error
        if wrong:
            raise RemoteProtocolError(f"a prefix's table: {wrong}")
        return table

    def check(self) -> str:
        """Return why no MANIFEST could list these files; empty if one could."""
        if not self.files:
            return f"no files for index {self.point.index}"
        if len({one.identity for one in self.files}) != len(self.files):
            return "a file is listed twice"
        entries = tuple(
            attrs.evolve(one.entry, file_id=at) for at, one in enumerate(self.files, start=1)
        )
        return Manifest(b"", 0, b"", (), self.point, Point(), entries).check_files()


def _numbers(fields: Sequence[Any]) -> list[int]:
    """Return fields that are numbers as MANIFEST holds them. Raises ValueError or TypeError."""
    numbers = [field for field in fields if type(field) is int and 0 <= field <= _NUMBER_MAX]
    if len(numbers) != len(fields):
        raise ValueError(f"{fields!r:.80} are not all numbers")
    return numbers


def archive_id(table: bytes) -> bytes:
    """Return the id of the archive with this encoded table: 16 bytes."""
    return hashlib.sha256(table).digest()[:16]


class Archive:
    """A prefix that is being read by somebody.

    - Its files stay as they are until `close`, whatever is compacted meanwhile.
    """

    def __init__(self, files: Files, store: PrefixStore, manifest: Manifest) -> None:
        """Take the listed prefix, of which there must be one. Nobody may replace it meanwhile."""
        assert manifest.files, "an archive of a prefix that does not exist"
        self._files = files
        self._store = store
        self._entries = manifest.files
        self._names = [file_name(entry.kind, entry.file_id) for entry in self._entries]
        store.pin(self._entries)
        self.table = ArchiveTable(
            manifest.cluster_id,
            manifest.epoch,
            manifest.compaction,
            tuple(self._described(at) for at in range(len(self._entries))),
        )
        self.encoded = self.table.encode()
        self.id = archive_id(self.encoded)
        self.is_open = True

    def read(self, file_number: int, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file that stands at `file_number` in the table; fewer at its end.

        Only who reads back what it got verifies them. Raises StorageCorrupt for a short file.
        """
        name, end = self._names[file_number], self._entries[file_number].end
        data = self._files.read(name, offset, size_bytes)
        expected = min(size_bytes, end - offset)
        if len(data) != expected:
            where = self._files.describe(name)
            raise corrupt(where, offset + len(data), f"the file ends here, {end} bytes are needed")
        return data

    def check(self, file_number: int) -> None:
        """Verify a whole file. Raises StorageCorrupt."""
        for _ in read_blocks(self._files, self._names[file_number], self._entries[file_number]):
            pass

    def close(self) -> None:
        """Let the files go. Does nothing twice."""
        if self.is_open:
            self.is_open = False
            self._store.unpin(self._entries)

    def _described(self, at: int) -> ArchiveFile:
        """Name a file as its maker does: that is what its header says."""
        header = read_header(self._files, self._names[at])
        return ArchiveFile(header.node_id, attrs.evolve(self._entries[at], file_id=header.file_id))
