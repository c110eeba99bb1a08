"""A log whose liveness is known: random writes of keys in a few resources, with a dumb model.

It stands in for the replicated state: it writes batches as a leader does, keeps the ledger as the
machines do, and freezes at will. `expected` is what a prefix must hold, by the simplest means.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any
from unittest import mock

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Group, Kind, encode_batch
from folkmoot.core.prefix import Frozen, Items, Ledger, PrefixSource
from folkmoot.core.storage import compaction, incoming, items_output, prefix_file, state_file
from folkmoot.core.storage.log_store import LogStore
from folkmoot.transport.codec import pack
from tests.core.storage.support import Write

Contents = tuple[list[tuple[int, int, bytes]], list["Entry"]]
"""Records and living entries, in order."""
Entry = tuple[int, int, int, int, list[Any], tuple[int, ...]]
"""index, time, session, resource, [name, args], ordinals that live"""


def trim(resource: int, name: str, args: list[Any], ordinals: Any) -> tuple[str, list[Any]]:
    """Leave out what only dead items needed: keys become None."""
    living = set(ordinals)
    return name, [[key if at in living else None for at, key in enumerate(args[0])]]


@attrs.define(eq=False)
class History:
    """Entries up to `index`, and what of them lives."""

    rng: Random
    keys: int = 12
    record_bytes: int = 70_000
    """The largest record: more than a block of them."""
    kinds: Sequence[str] = (*("set",) * 6, "many", "many", "remove", "fail", "drop")
    index: int = 0
    time: int = 0
    ledger: Ledger = attrs.field(factory=Ledger)
    owners: dict[tuple[int, str], tuple[int, int]] = attrs.field(factory=dict)
    """(resource, key) -> (index, ordinal)"""
    entries: dict[int, Entry] = attrs.field(factory=dict)
    names: dict[str, int] = attrs.field(factory=dict)
    changed: dict[tuple[int, int], bytes | None] = attrs.field(factory=dict)
    records: dict[tuple[int, int], bytes] = attrs.field(factory=dict)

    def batch(self, *, value_bytes: int = 0) -> Batch:
        """Make the next batch: one or two frames of commands, perhaps other entries between."""
        groups: list[Group] = []
        first = self.index + 1
        self.time += self.rng.choice((0, 1, 50))
        for _ in range(self.rng.choice((1, 1, 2))):
            if self.rng.random() < 0.2:
                groups.append(Group(Kind.TICK, 1, b""))
                self.index += 1
            session = self.rng.choice((3, 4, 5_000_000_000))
            operations = [self.operation(value_bytes) for _ in range(self.rng.randint(1, 6))]
            header = COMMANDS_HEADER.pack(session, 1, 0, 0)
            groups.append(Group(Kind.COMMANDS, len(operations), header + pack(operations)))
            for index, entry in list(self.entries.items()):
                if entry[2] == 0:
                    self.entries[index] = (index, entry[1], session, *entry[3:])
        if self.rng.random() < 0.3:
            self.record()
        return encode_batch(1, first, self.time, groups)

    def operation(self, value_bytes: int) -> list[Any]:
        """Make and apply one command."""
        self.index += 1
        name = self.rng.choice(("a", "b", "c"))
        resource = self.names.setdefault(name, self.index)
        kind = self.rng.choice(self.kinds)
        by_name = resource == self.index or self.rng.random() < 0.1
        reference: Any = [name, "map", 1, {}] if by_name else resource
        count = self.rng.choice((4, 4, 60)) if kind == "many" else 1
        keys = sorted({f"k{self.rng.randrange(self.keys)}" for _ in range(count)})
        if kind == "remove":
            self.supersede(resource, keys[0])
        elif kind == "drop" and resource != self.index:
            self.drop(name, resource)
        elif kind in ("set", "many"):
            self.put(resource, kind, keys, by_name=by_name, value_bytes=value_bytes)
            return [reference, kind, [self.padded(keys, value_bytes)]]
        return [reference, kind, [keys]]

    def padded(self, keys: list[str], value_bytes: int) -> list[Any]:
        return [*keys, "." * value_bytes] if value_bytes else list(keys)

    def put(
        self, resource: int, kind: str, keys: list[str], *, by_name: bool, value_bytes: int
    ) -> None:
        for key in keys:
            self.supersede(resource, key)
        args = [self.padded(keys, value_bytes)]
        ordinals = tuple(range(len(keys)))
        if len(keys) == 1:
            self.ledger.retained.append(self.index)
        else:
            self.ledger.retained_many[self.index] = len(keys)
        if by_name:
            self.ledger.named[self.index] = resource
        for ordinal, key in enumerate(keys):
            self.owners[resource, key] = (self.index, ordinal)
        self.entries[self.index] = (self.index, self.time, 0, resource, [kind, args], ordinals)

    def supersede(self, resource: int, key: str) -> None:
        owner = self.owners.pop((resource, key), None)
        if owner is None:
            return
        index, ordinal = owner
        if ordinal:
            self.ledger.superseded_parts.append(owner)
        else:
            self.ledger.superseded.append(index)
        entry = self.entries.pop(index)
        left = tuple(one for one in entry[5] if one != ordinal)
        if left:
            self.entries[index] = (*entry[:5], left)

    def drop(self, name: str, resource: int) -> None:
        """Delete a resource: nobody says which items it had."""
        del self.names[name]
        self.ledger.deleted.append(resource)
        for owned in [one for one in self.owners if one[0] == resource]:
            index, _ = self.owners.pop(owned)
            self.entries.pop(index, None)

    def record(self) -> None:
        """Change some record."""
        key = self.rng.choice(((1, 0), (2, 5), (2, 9), (2, 70), (3, 1), (3, 8), (3, 4000)))
        if key in self.records and key != (1, 0) and self.rng.random() < 0.3:
            del self.records[key]
            self.changed[key] = None
        else:
            # It grows or shrinks.
            size_bytes = self.rng.choice((self.rng.randrange(40), 200, self.record_bytes))
            self.records[key] = self.changed[key] = self.rng.randbytes(size_bytes)

    def freeze(self) -> Frozen:
        """Hand over what has changed since the last time."""
        self.records[1, 0] = self.changed[1, 0] = pack([self.index, self.time])
        frozen = Frozen(self.index, self.time, self.ledger, self.changed, trim)
        self.ledger, self.changed = Ledger(), {}
        return frozen

    def copy(self) -> History:
        """Return one that goes on by itself."""
        one = copy.copy(self)
        for name in ("owners", "entries", "names", "changed", "records"):
            setattr(one, name, dict(getattr(self, name)))
        one.ledger = copy.deepcopy(self.ledger)
        return one

    def unfreeze(self, frozen: Sequence[Frozen]) -> None:
        """Take back what was frozen, as a server does that restarts and applies it again."""
        later, self.ledger = self.ledger, Ledger()
        changed, self.changed = self.changed, {}
        for ledger in (*(one.ledger for one in frozen), later):
            self.ledger.retained += ledger.retained
            self.ledger.retained_many |= ledger.retained_many
            self.ledger.superseded += ledger.superseded
            self.ledger.superseded_parts += ledger.superseded_parts
            self.ledger.named |= ledger.named
            self.ledger.deleted += ledger.deleted
        for records in (*(one.records for one in frozen), changed):
            self.changed |= records

    def expected(self) -> Contents:
        """Return the records and the living entries, in order."""
        records = [(*key, data) for key, data in sorted(self.records.items())]
        return records, [self.entries[index] for index in sorted(self.entries)]


def contents(source: PrefixSource) -> Contents:
    """Read a whole prefix. What was trimmed away is put back as far as it lives."""
    records = list(source.records())
    return records, [entry for items in source.items() for entry in _entries(items)]


def _entries(items: Items) -> list[Entry]:
    found = []
    for at, index in enumerate(items.indexes):
        ordinals = tuple(items.ordinals.get(at, (0,)))
        fields = (items.times[at], items.sessions[at], items.resources[at])
        found.append((index, *fields, items.operations[at], ordinals))
    return found


def equal(
    found: Contents,
    expected: Contents,
) -> bool:
    """Compare, passing over arguments that only dead items needed."""
    return found[0] == expected[0] and [*map(_needed, found[1])] == [*map(_needed, expected[1])]


def _needed(entry: Entry) -> tuple[Any, ...]:
    *fields, (name, args), ordinals = entry
    keys = [key if at in ordinals else None for at, key in enumerate(args[0])]
    return *fields, name, keys[: max(ordinals) + 1], ordinals


class Compactor:
    """A history that is written to a log and compacted."""

    def __init__(self, store: LogStore, rng: Random, **options: Any) -> None:
        self.store = store
        self.history = History(rng, **options)
        self.number = 0

    def write(self, count: int = 1, **options: Any) -> None:
        """Write and sync some batches."""
        for _ in range(count):
            self.number += 1
            self.store.write([Write(self.number, batches=[self.history.batch(**options)])])
            assert self.store.sync() == self.number

    def compact(self) -> None:
        """Roll, freeze, compact and install."""
        self.store.roll()
        compaction = self.store.compact([self.history.freeze()])
        for _ in compaction.steps():
            pass
        self.store.install(compaction)
        self.store.sweep()


@contextlib.contextmanager
def small_steps() -> Iterator[None]:
    """Let a few entries and records take as many blocks, files and steps as millions do."""
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (items_output, "BLOCK_BYTES", 500),
            (state_file, "BLOCK_BYTES", 500),
            (state_file, "_RUN_COUNT", 2),
            (compaction, "STEP_COUNT", 8),
            (compaction, "_RAW_BYTES", 1000),
            (prefix_file, "_READ_BYTES", 700),
            (incoming, "_COPY_BYTES", 300),
            (incoming, "_SYNC_BYTES", 2000),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
