"""A deliberately dumb compacted prefix, in memory: dicts of everything, and nothing is ever packed.

It stands in for the storage on both sides of core/prefix.py: it takes batches and what the state
froze, each in order, and is what a state is restored from. It checks on the way what the storage
relies on: items are retained once, in order, and superseded once, while they live.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Kind
from folkmoot.core.config import LimitsConfig
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.freeze import Freeze, record_of
from folkmoot.core.machine import Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import ONE, Frozen, Items, RecordKey, RecordKind
from folkmoot.core.requests import decode_operations
from folkmoot.core.restore import encode_core

BLOCK = 5
"""Entries in one `Items`: so few that tests have several."""


@attrs.define
class Entry:
    """One command of the log; `args` shrink as its items die."""

    time: int
    session: int
    reference: Any
    name: str
    args: list[Any]
    resource: int = 0
    count: int = 0
    """How many items it owned."""


class PrefixTwin:
    """All entries of a log, and what is known of them as of `index`.

    - `live` holds the items that live, all at or below `index`.
    """

    def __init__(self) -> None:
        self.index = 0
        self.kept: dict[RecordKey, bytes] = {}
        self.entries: dict[int, Entry] = {}
        self.live: dict[int, set[int]] = {}

    def copy(self) -> "PrefixTwin":
        """Make a twin that goes its own way. (Arguments are replaced, never changed.)"""
        other = PrefixTwin()
        other.index, other.kept = self.index, dict(self.kept)
        other.entries = {index: copy.copy(entry) for index, entry in self.entries.items()}
        other.live = {index: set(ordinals) for index, ordinals in self.live.items()}
        return other

    def batch(self, batch: Batch) -> None:
        """Take the next batch of the log."""
        index = batch.first_index
        for group in batch.groups:
            if group.kind == Kind.COMMANDS and len(group.payload) > COMMANDS_HEADER.size:
                session = COMMANDS_HEADER.unpack_from(group.payload)[0]
                try:
                    operations = decode_operations(group.payload)
                except RemoteProtocolError:
                    operations = []
                for at, (reference, name, args, *_) in enumerate(operations, index):
                    self.entries[at] = Entry(batch.log_time, session, reference, name, args)
            index += group.count

    def take(self, frozen: Frozen) -> None:
        """Take what was frozen since the last time: from now on this is the prefix of its index."""
        self._take_retained(frozen)
        self._take_superseded(frozen)
        for resource in frozen.ledger.deleted:
            self.live = {i: o for i, o in self.live.items() if self.entries[i].resource != resource}
        for key, record in frozen.records.items():
            if record is None:
                self.kept.pop(key, None)
            else:
                self.kept[key] = record
        self.index = frozen.index
        for index, ordinals in self.live.items():
            entry = self.entries[index]
            entry.name, entry.args = frozen.trim(
                entry.resource, entry.name, entry.args, sorted(ordinals)
            )

    def records(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the records (see `PrefixSource`)."""
        for kind, number in sorted(self.kept):
            yield kind, number, self.kept[kind, number]

    def items(self) -> Iterator[Items]:
        """Yield the live entries (see `PrefixSource`)."""
        indexes = sorted(self.live)
        for at in range(0, len(indexes), BLOCK):
            yield self._block(indexes[at : at + BLOCK])

    def ordinals(self, index: int) -> Sequence[int]:
        """Return which items of an entry are said to live."""
        return sorted(self.live[index])

    def _block(self, indexes: Sequence[int]) -> Items:
        entries = [self.entries[index] for index in indexes]
        ordinals = {at: self.ordinals(index) for at, index in enumerate(indexes)}
        return Items(
            indexes=indexes,
            times=[entry.time for entry in entries],
            sessions=[entry.session for entry in entries],
            resources=[entry.resource for entry in entries],
            operations=copy.deepcopy([[entry.name, entry.args] for entry in entries]),
            ordinals={at: live for at, live in ordinals.items() if live != list(ONE)},
        )

    def _take_retained(self, frozen: Frozen) -> None:
        ledger = frozen.ledger
        assert list(ledger.retained) == sorted(ledger.retained), "retained out of order"
        counts: Mapping[int, int] = {**dict.fromkeys(ledger.retained, 1), **ledger.retained_many}
        assert len(counts) == len(ledger.retained) + len(ledger.retained_many), "retained twice"
        assert set(ledger.named) <= set(counts), "named, but it owns nothing"
        for index, count in counts.items():
            assert self.index < index <= frozen.index, f"{index} in {self.index}..{frozen.index}"
            entry = self.entries[index]
            by_name = type(entry.reference) is list
            assert by_name == (index in ledger.named), f"{entry} is named: {not by_name}"
            entry.resource = ledger.named[index] if by_name else entry.reference
            entry.count = count
            self.live[index] = set(range(count))

    def _take_superseded(self, frozen: Frozen) -> None:
        ledger = frozen.ledger
        parts = [(index, 0) for index in ledger.superseded] + ledger.superseded_parts
        for index, ordinal in parts:
            assert ordinal in self.live.get(index, ()), f"item {(index, ordinal)} does not live"
            self.live[index].remove(ordinal)
            if not self.live[index]:
                del self.live[index]


def expected_records(mux: Multiplexer) -> dict[RecordKey, bytes]:
    """Make all records from scratch, whatever is noted as changed."""
    core = encode_core(mux.index, mux.time, mux.sessions.floor, mux.epoch)
    records: dict[RecordKey, bytes] = {(RecordKind.CORE, 0): core}
    for resource in mux.directory.resources.values():
        records[RecordKind.RESOURCE, resource.id] = record_of(resource, mux._deadlines)
    for session in mux.sessions:
        records[RecordKind.SESSION, session.id] = record_of(session, mux._deadlines)
    return records


def finish(freeze: Freeze) -> Frozen:
    """Serialise what is pending, a record at a time, and return the result."""
    while not freeze.step(1):
        pass
    return freeze.result()


def restore(
    twin: PrefixTwin,
    registry: Registry,
    limits: LimitsConfig,
    kind: type[Multiplexer] = Multiplexer,
) -> Multiplexer:
    """Restore the state that a prefix holds."""
    steps = kind.restoring(registry, limits, twin)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            mux: Multiplexer = end.value
            return mux
