"""A compacted prefix on the disk, read back, and what of its entries lives.

What it is: a `PrefixSource` over files, and `ItemsFile`, what is kept in memory of each items file,
so that a compaction need not read what it leaves alone. What it is not: it decides nothing, and
writes nothing.

Every byte of every file is verified on the way. Whatever does not add up is StorageCorrupt, also
where all checksums fit: files come from other members and out of backups, too.

Who drives it: a starting server and one that has received a prefix, through `prefix_store` and
`incoming`; `compaction` changes copies of the `ItemsFile`s.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import le
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.prefix import ONE, Items, RecordKind
from folkmoot.core.prefix_table import PrefixFileEntry
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.prefix_blocks import ENTRY_BYTES, ItemsBlock, Record, decode_parts
from folkmoot.core.storage.prefix_file import (
    HEADER_BYTES,
    LIVENESS,
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
    - `live_count` is that of the living entries, `total_bytes` are those of all; `live_bytes` those
      of the living ones, of an entry that has lost some of its items in proportion.
    """

    entry: PrefixFileEntry
    indexes: array[int] = attrs.field(factory=lambda: array("Q"), repr=False)
    sizes: array[int] = attrs.field(factory=lambda: array("I"), repr=False)
    """Bytes of each entry's operation."""
    alive: bytearray = attrs.field(factory=bytearray, repr=False)
    parts: dict[int, bytes] = attrs.field(factory=dict, repr=False)
    written: dict[int, int] = attrs.field(factory=dict, repr=False)
    """For those in `parts`: how many of their items lived when they were written."""
    total_bytes: int = 0
    live_count: int = 0
    live_bytes: int = 0

    @property
    def name(self) -> str:
        """The file's name."""
        return file_name(self.entry.kind, self.entry.file_id)

    def copy(self) -> ItemsFile:
        """Return one whose liveness may be changed without changing this."""
        return attrs.evolve(
            self,
            alive=bytearray(self.alive),
            parts=dict(self.parts),
            written=dict(self.written),
        )

    def add(self, block: ItemsBlock) -> None:
        """Take the columns of the next block that was written, all of it alive."""
        position = len(self.indexes)
        for at, mask in block.parts.items():
            self.parts[position + at] = mask
            self.written[position + at] = mask.count(1)
        self.indexes.extend(block.indexes)
        sizes = [len(operation) for operation in block.operations]
        self.sizes.extend(sizes)
        self.alive.extend(b"\1" * len(sizes))
        size_bytes = sum(sizes)
        self.total_bytes += size_bytes
        self.live_bytes += size_bytes
        self.live_count += len(sizes)

    def supersede_all(self, indexes: Sequence[int]) -> None:
        """Note that the items 0 of these entries are dead. The bulk of a compaction's marking."""
        own, alive, sizes, parts = self.indexes, self.alive, self.sizes, self.parts
        dead_bytes = dead_count = 0
        for index in indexes:
            position = bisect_left(own, index)
            if parts and position in parts:
                self.supersede(position, 0)
                continue
            assert own[position] == index, f"{index} died, {self.name} has {own[position]} there"
            assert alive[position], f"entry {index} died twice"
            alive[position] = 0
            dead_bytes += sizes[position]
            dead_count += 1
        self.live_bytes -= dead_bytes
        self.live_count -= dead_count

    def supersede(self, position: int, ordinal: int) -> None:
        """Note that an item is dead, and its entry with the last one."""
        mask = self.parts.get(position)
        if mask is None:
            assert ordinal == 0, f"ordinal {ordinal} of entry {self.indexes[position]}, which has 1"
        else:
            assert mask[ordinal], f"item {self.indexes[position]}.{ordinal} died twice"
            left = mask[:ordinal] + b"\0" + mask[ordinal + 1 :]
            if b"\1" in left:  # a search at the speed of memory; `any` is none
                before = self._live_bytes_of(position)
                self.parts[position] = left
                self.live_bytes -= before - self._live_bytes_of(position)
                return
        self.kill(position)

    def kill(self, position: int) -> None:
        """Note that an entry owns nothing any more."""
        assert self.alive[position], f"entry {self.indexes[position]} died twice"
        self.live_bytes -= self._live_bytes_of(position)
        self.live_count -= 1
        self.alive[position] = 0
        if position in self.parts:
            del self.parts[position], self.written[position]

    def _live_bytes_of(self, position: int) -> int:
        """Return what a living entry would take if what only its dead items needed were gone."""
        mask = self.parts.get(position)
        size_bytes = self.sizes[position]
        return size_bytes if mask is None else size_bytes * mask.count(1) // self.written[position]

    def take(self, block: ItemsBlock) -> None:
        """Take the columns of the next block that was read, of which it is known what lives."""
        position, count = len(self.indexes), len(block)
        alive = self.alive[position : position + count]
        sizes = [len(operation) for operation in block.operations]
        self.indexes.extend(block.indexes)
        self.sizes.extend(sizes)
        self.total_bytes += sum(sizes)
        self.live_count += sum(alive)
        self.live_bytes += sum(compress(sizes, alive))
        for at, mask in block.parts.items():
            if alive[at]:
                self.written[position + at] = mask.count(1)
                self.live_bytes -= sizes[at] - self._live_bytes_of(position + at)

    def liveness(self) -> bytes:
        """Encode what lives, for the state file."""
        parts = [[position, mask] for position, mask in sorted(self.parts.items())]
        return pack([zlib.compress(self.alive, 1), parts])

    def restore_liveness(self, data: bytes) -> None:
        """Take what `liveness` gave, before the columns are read.

        Raises ValueError, TypeError or RemoteProtocolError for what that cannot have been.
        """
        packed, parts = unpack(data)
        count_max = (self.entry.end - HEADER_BYTES) // ENTRY_BYTES
        self.alive = bytearray(_inflated(packed, count_max))
        if self.alive.translate(None, b"\0\1"):
            raise ValueError("a byte for an entry that is neither 0 nor 1")
        self.parts = decode_parts(parts, len(self.alive))


def _inflated(packed: bytes, size_bytes_max: int) -> bytes:
    """Decompress what may not become larger than that. Raises ValueError or TypeError."""
    parser = zlib.decompressobj()
    try:
        data = parser.decompress(packed, size_bytes_max + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) > size_bytes_max or not parser.eof or parser.unused_data:
        raise ValueError(f"{len(packed)} bytes are not those of at most {size_bytes_max} entries")
    return data


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
        self._names = dict(zip(entries, names or file_names(entries), strict=True))
        self._by_first = {entry.first_index: ItemsFile(entry) for entry in items}
        self.items_files = list(self._by_first.values())
        """Complete once `items` is exhausted."""
        self.configuration = b""
        """Consensus's own record, once `records` is exhausted."""
        self.live_count: int | None = None
        """How many entries live, once `records` is exhausted."""
        self.is_read = False
        """Whether all of it was read, so that all of it is what it should be."""

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
        self.live_count = sum(one.alive.count(1) for one in self.items_files)

    def _take_liveness(self, name: str, key: int, data: bytes) -> None:
        try:
            self._by_first[key].restore_liveness(data)
        except (ValueError, TypeError, RemoteProtocolError) as error:
            raise self._corrupt(name, f"liveness of the file from {key}: {error}") from error

    def items(self) -> Iterator[Items]:
        """Yield what lives, block by block."""
        for one in self.items_files:
            name, position, parts_count = self._names[one.entry], 0, 0
            for block in read_items(self._files, name, one.entry):
                if position + len(block) > len(one.alive):
                    raise self._corrupt(name, f"more entries than the {len(one.alive)} known")
                ordinals = self._ordinals(one, block, position)
                parts_count += len(ordinals)
                yield self._live(one, block, position, ordinals)
                position += len(block)
            if (position, parts_count) != (len(one.alive), len(one.parts)):
                known = f"{len(one.alive)} and {len(one.parts)} are known"
                raise self._corrupt(name, f"{position} entries, {parts_count} of several: {known}")
        self.is_read = True

    def _ordinals(self, one: ItemsFile, block: ItemsBlock, position: int) -> dict[int, list[int]]:
        """Return which items live, of those entries of the block that live and own several."""
        found = {}
        for at, mask in block.parts.items():
            if one.alive[position + at]:
                living = one.parts.get(position + at, b"")
                if len(living) != len(mask) or not all(map(le, living, mask)):
                    name = self._names[one.entry]
                    raise self._corrupt(name, f"{living!r} lives of {mask!r} at {position + at}")
                found[at] = list(compress(range(len(living)), living))
        return found

    def _live(
        self, one: ItemsFile, block: ItemsBlock, position: int, ordinals: dict[int, list[int]]
    ) -> Items:
        count = len(block)
        alive = one.alive[position : position + count]
        one.take(block)
        if all(alive):
            return self._items(one, block, ordinals)
        living = block.select(alive)
        places = {at: place for place, at in enumerate(compress(range(count), alive))}
        return self._items(one, living, {places[at]: found for at, found in ordinals.items()})

    def _items(self, one: ItemsFile, block: ItemsBlock, ordinals: dict[int, list[int]]) -> Items:
        try:
            operations = unpack_operations(block.operations)
        except (RemoteProtocolError, ValueError) as error:
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
    """Decode many operations in one call, to [name, arguments] each.

    Raises RemoteProtocolError or ValueError.
    """
    header = b"\xdd" + len(operations).to_bytes(4, "big")
    found = unpack(b"".join((header, *operations)))
    if not set(map(type, found)) <= {list}:
        raise ValueError("one of them is no list")
    return [operation[1:3] for operation in found]


def file_names(entries: Iterable[PrefixFileEntry]) -> list[str]:
    """Return where these files lie, once MANIFEST lists them."""
    return [file_name(entry.kind, entry.file_id) for entry in entries]
