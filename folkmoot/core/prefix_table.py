"""What a compacted prefix consists of: points, files, and the table that describes them to others.

Pure: no I/O, no clock, no randomness. MANIFEST lists these files (core/storage/manifest.py); an
archive of them (core/storage/archive.py) is told to a follower, and stands in a backup, by its
table.

The id of an archive is a hash of its table, which names every file by who made it, its number
there, its size and its chain. So equal ids mean equal bytes, and a file with the same line in two
tables need not be sent again.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.transport.codec import pack, unpack

FILE_HEADER_BYTES = 128
"""No prefix file is shorter (core/storage/prefix_file.py)."""
FILES_MAX = 1 << 16
"""More files than this in one table are refused when it is decoded."""
_NUMBER_MAX = (1 << 64) - 1
_CHAIN_MAX = (1 << 32) - 1


class FileKind(enum.IntEnum):
    """What a prefix file holds. The numbers are on disk."""

    ITEMS = 1
    STATE = 2


@attrs.frozen
class PrefixFileEntry:
    """One file of the compacted prefix: what lives of the entries `first_index`..`last_index`."""

    kind: FileKind
    file_id: int
    first_index: int
    last_index: int
    end: int
    """Its size in bytes."""
    chain: int


@attrs.frozen
class Point:
    """A place in the log: an entry, with its term and log time."""

    index: int = 0
    term: int = 0
    log_time: int = 0


BEGINNING = Point()
"""Before the first entry."""


def check_files(index: int, files: Sequence[PrefixFileEntry]) -> str:
    """Return why these cannot be the files of a prefix that speaks for `index`; empty if they can.

    The state file is first, of exactly that index; the others are items files in order of index, at
    or below it, without overlap. Index 0 is that of no prefix.
    """
    if not index:
        return f"prefix files {files} without a prefix" if files else ""
    if not files:
        return f"no files for index {index}"
    state, *items = files
    if state.kind is not FileKind.STATE or state.last_index != index:
        return f"the first prefix file {state} is not the state of index {index}"
    last_index = 0
    for entry in items:
        if entry.kind is not FileKind.ITEMS or not (
            last_index < entry.first_index <= entry.last_index <= index
        ):
            return f"items file {entry} behind index {last_index}"
        last_index = entry.last_index
    if len({entry.file_id for entry in files}) != len(files):
        return "a prefix file is listed twice"
    return ""


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
        if end <= FILE_HEADER_BYTES or chain > _CHAIN_MAX:
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
        return check_files(self.point.index, entries)


def _numbers(fields: Sequence[Any]) -> list[int]:
    """Return fields that are numbers as MANIFEST holds them. Raises ValueError or TypeError."""
    numbers = [field for field in fields if type(field) is int and 0 <= field <= _NUMBER_MAX]
    if len(numbers) != len(fields):
        raise ValueError(f"{fields!r:.80} are not all numbers")
    return numbers


def archive_id(table: bytes) -> bytes:
    """Return the id of the archive with this encoded table: 16 bytes."""
    return hashlib.sha256(table).digest()[:16]
