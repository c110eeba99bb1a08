"""The compacted prefix of one member: its files, what of them lives, and who still needs old ones.

What it is: the owner of `prefix/`. It reads the prefix back at a start (`StoredPrefix`), knows for
each items file which entries live, so that a compaction need not read what it leaves alone, and
removes files that MANIFEST no longer lists once nobody reads them. What it is not: it writes no
prefix (`compaction`), and MANIFEST is `LogStore`'s.

Who drives it: `LogStore`. `pin`, `unpin` and `read` may be called from any thread.

A file may be under way to a follower or into a backup when a compaction replaces it. Who reads PINS
it; a replaced file goes when its last pin does (bugs E14), or at the next start.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.prefix import ONE, Items, RecordKind
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import FileKind, Manifest, PrefixFileEntry
from folkmoot.core.storage.prefix_file import (
    LIVENESS,
    SUBDIR,
    ItemsBlock,
    Record,
    file_name,
    read_items,
    read_records,
)
from folkmoot.transport.codec import pack, unpack


@attrs.define(eq=False)
class ItemsFile:
    """One items file and what of it lives, as of the compaction index.

    - `indexes`, `sizes` and `alive` have one item per entry of the file, in order.
    - `parts` has the ordinals of each living entry that owns several items; one of them lives.
    - `live_bytes` and `live_count` are those of the living entries, `total_bytes` those of all.
    """

    entry: PrefixFileEntry
    indexes: array[int] = attrs.field(factory=lambda: array("Q"), repr=False)
    sizes: array[int] = attrs.field(factory=lambda: array("I"), repr=False)
    """Bytes of each entry's operation."""
    alive: bytearray = attrs.field(factory=bytearray, repr=False)
    parts: dict[int, bytearray] = attrs.field(factory=dict, repr=False)
    total_bytes: int = 0
    live_count: int = 0
    live_bytes: int = 0

    @property
    def name(self) -> str:
        """The file's name."""
        return file_name(self.entry.kind, self.entry.file_id)

    def copy(self) -> ItemsFile:
        """Return one whose liveness may be changed without changing this."""
        parts = {position: bytearray(mask) for position, mask in self.parts.items()}
        return attrs.evolve(self, alive=bytearray(self.alive), parts=parts)

    def add(self, block: ItemsBlock) -> None:
        """Take the columns of the next block that was written, all of it alive."""
        position = len(self.indexes)
        for at, mask in block.parts.items():
            self.parts[position + at] = bytearray(mask)
        self.indexes.extend(block.indexes)
        sizes = [len(operation) for operation in block.operations]
        self.sizes.extend(sizes)
        self.alive.extend(b"\1" * len(sizes))
        size_bytes = sum(sizes)
        self.total_bytes += size_bytes
        self.live_bytes += size_bytes
        self.live_count += len(sizes)

    def supersede(self, position: int, ordinal: int) -> None:
        """Note that an item is dead, and its entry with the last one."""
        mask = self.parts.get(position)
        if mask is None:
            assert ordinal == 0, f"ordinal {ordinal} of entry {self.indexes[position]}, which has 1"
        else:
            assert mask[ordinal], f"item {self.indexes[position]}.{ordinal} died twice"
            mask[ordinal] = 0
            if any(mask):
                return
            del self.parts[position]
        self.kill(position)

    def kill(self, position: int) -> None:
        """Note that an entry owns nothing any more."""
        assert self.alive[position], f"entry {self.indexes[position]} died twice"
        self.alive[position] = 0
        self.parts.pop(position, None)
        self.live_count -= 1
        self.live_bytes -= self.sizes[position]

    def liveness(self) -> bytes:
        """Encode what lives, for the state file."""
        parts = [[position, bytes(mask)] for position, mask in sorted(self.parts.items())]
        return pack([zlib.compress(self.alive, 1), parts])

    def restore_liveness(self, data: bytes) -> None:
        """Take what `liveness` gave, before the columns are read. Raises ValueError."""
        packed, parts = unpack(data)
        self.alive = bytearray(zlib.decompress(packed))
        self.parts = {position: bytearray(mask) for position, mask in parts}


class StoredPrefix:
    """A prefix on the disk, read back: a `PrefixSource`.

    Every byte of every file is verified on the way; what is read builds the `ItemsFile`s, too.
    """

    def __init__(
        self, files: Files, entries: Sequence[PrefixFileEntry], names: Sequence[str] = ()
    ) -> None:
        """The state file is first; `names` says where the files lie if not in `prefix/`."""
        self._files = files
        self._state, *items = entries
        self._names = dict(zip(entries, names or _names(entries), strict=True))
        self._by_first = {entry.first_index: ItemsFile(entry) for entry in items}
        self.items_files = list(self._by_first.values())
        """Complete once `items` is exhausted."""
        self.configuration = b""
        """Consensus's own record, once `records` is exhausted."""

    def records(self) -> Iterator[Record]:
        """Yield the records of the state file, but for the liveness and the configuration."""
        name = self._names[self._state]
        missing = set(self._by_first)
        for block in read_records(self._files, name, self._state):
            for kind, key, data in block:
                if kind == RecordKind.CONFIGURATION:
                    self.configuration = data
                elif kind != LIVENESS:
                    yield kind, key, data
                elif key in missing:
                    missing.remove(key)
                    self._take_liveness(name, key, data)
                else:
                    raise self._corrupt(name, f"liveness of an items file from {key}: none is so")
        if missing:
            raise self._corrupt(name, f"no liveness of the items files from {sorted(missing)}")

    def _take_liveness(self, name: str, key: int, data: bytes) -> None:
        try:
            self._by_first[key].restore_liveness(data)
        except (ValueError, TypeError, zlib.error, RemoteProtocolError) as error:
            raise self._corrupt(name, f"liveness of the file from {key}: {error}") from error

    def items(self) -> Iterator[Items]:
        """Yield what lives, block by block."""
        for one in self.items_files:
            name, position = self._names[one.entry], 0
            for block in read_items(self._files, name, one.entry):
                if position + len(block) > len(one.alive):
                    raise self._corrupt(name, f"more entries than the {len(one.alive)} known")
                yield self._live(one, block, position)
                position += len(block)
            if position != len(one.alive):
                raise self._corrupt(name, f"{position} entries of {len(one.alive)}")

    def _live(self, one: ItemsFile, block: ItemsBlock, position: int) -> Items:
        count = len(block)
        alive = one.alive[position : position + count]
        sizes = [len(operation) for operation in block.operations]
        one.indexes.extend(block.indexes)
        one.sizes.extend(sizes)
        one.total_bytes += sum(sizes)
        ordinals = {
            at: [ordinal for ordinal, lives in enumerate(one.parts[position + at]) if lives]
            for at in block.parts
            if alive[at]
        }
        live_count = sum(alive)
        one.live_count += live_count
        one.live_bytes += sum(compress(sizes, alive))
        if live_count == count:
            return self._items(one, block, ordinals)
        living = block.select(alive)
        places = {at: place for place, at in enumerate(compress(range(count), alive))}
        return self._items(one, living, {places[at]: found for at, found in ordinals.items()})

    def _items(self, one: ItemsFile, block: ItemsBlock, ordinals: dict[int, list[int]]) -> Items:
        try:
            operations = unpack_operations(block.operations)
        except RemoteProtocolError as error:
            name = self._names[one.entry]
            raise self._corrupt(name, f"operations from {block.indexes[0]}: {error}") from error
        found = {at: (ONE if live == [0] else live) for at, live in ordinals.items()}
        return Items(block.indexes, block.times, block.sessions, block.resources, operations, found)

    def _corrupt(self, name: str, why: str) -> StorageCorrupt:
        where = self._files.describe(name)
        return StorageCorrupt(
            f"{where}: {why}; rebuild this member from the others, or restore a backup"
        )


def unpack_operations(operations: Sequence[bytes]) -> list[list[Any]]:
    """Decode many operations in one call, to [name, arguments] each. Raises RemoteProtocolError."""
    header = b"\xdd" + len(operations).to_bytes(4, "big")
    found = unpack(b"".join((header, *operations)))
    return [operation[1:3] for operation in found]


class PrefixStore:
    """The prefix files of one directory.

    - `entries` are those that MANIFEST lists, the state file first; `items_files` stand for the
      others, and are there once the prefix was read back, or made by a compaction.
    - A file is removed when it is neither listed nor pinned.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._pins: dict[str, int] = {}
        self._doomed: set[str] = set()
        self._begun: list[str] = []
        """Files of a compaction under way, which nobody lists yet."""
        self.entries = manifest.files
        self.items_files: list[ItemsFile] = []
        self.is_loaded = not self.entries
        self._next_id = max((entry.file_id for entry in self.entries), default=0) + 1

    def new_id(self) -> int:
        """Return an id that no file has. Ids of files that were never listed may come again."""
        self._next_id += 1
        return self._next_id - 1

    def begin_file(self, kind: FileKind) -> int:
        """Return the id of a file that a compaction is about to write."""
        file_id = self.new_id()
        self._begun.append(file_name(kind, file_id))
        return file_id

    def read_back(self) -> StoredPrefix:
        """Return the listed prefix as a source; `loaded` takes it when it was read to the end."""
        return StoredPrefix(self._files, self.entries)

    def loaded(self, source: StoredPrefix) -> None:
        """Take over what reading has found out about the files."""
        self.items_files = source.items_files
        self.is_loaded = True

    def replace(self, entries: Sequence[PrefixFileEntry], items_files: list[ItemsFile]) -> None:
        """Go over to the files that MANIFEST lists now; the others go with the next `sweep`."""
        kept = set(_names(entries))
        with self._lock:
            self._doomed.update(name for name in _names(self.entries) if name not in kept)
        self.entries, self.items_files, self.is_loaded = tuple(entries), items_files, True
        self._begun.clear()

    def give_up(self) -> None:
        """Forget the files of a compaction under way; they go with the next `sweep`."""
        with self._lock:
            self._doomed.update(self._begun)
        self._begun.clear()

    def pin(self, entries: Sequence[PrefixFileEntry]) -> None:
        """Keep these files until as many `unpin`s as pins have come."""
        with self._lock:
            for name in _names(entries):
                self._pins[name] = self._pins.get(name, 0) + 1

    def unpin(self, entries: Sequence[PrefixFileEntry]) -> None:
        """Let go of these files. Those that are not listed any more go with the next `sweep`."""
        with self._lock:
            for name in _names(entries):
                self._pins[name] -= 1
                if not self._pins[name]:
                    del self._pins[name]

    def sweep(self) -> None:
        """Remove the files that are neither listed nor pinned."""
        with self._lock:
            free = sorted(self._doomed - set(self._pins))
            self._doomed.difference_update(free)
        for name in free:
            self._files.unlink(name)

    @property
    def size_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.end for entry in self.entries)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state file, which each compaction writes anew."""
        return self.entries[0].end if self.entries else 0

    def status(self) -> dict[str, int]:
        """Return what an operator wants to know: sizes in bytes."""
        return {
            "prefix_files": len(self.entries),
            "prefix_bytes": self.size_bytes,
            "live_entries": sum(one.live_count for one in self.items_files),
            "live_bytes": sum(one.live_bytes for one in self.items_files),
        }


def _names(entries: Iterable[PrefixFileEntry]) -> list[str]:
    return [file_name(entry.kind, entry.file_id) for entry in entries]


def leftovers(files: Files, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return the files in `prefix/` that are not listed, and those listed that are missing."""
    listed = {file_name(entry.kind, entry.file_id) for entry in manifest.files}
    present = {f"{SUBDIR}/{name}" for name in files.list(SUBDIR)}
    return sorted(present - listed), sorted(listed - present)
