"""Restoring a compacted prefix and applying the rest is the same as applying everything.

For random histories over every machine, with freezes and restarts in a row: what every later batch
answers and tells, the whole state after it, and what is due are the same. And a difference would be
noticed: bugs are planted in how liveness is judged, in what is frozen, and in how it is restored.
"""

import contextlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from folkmoot.core.context import EntryContext
from folkmoot.core.directory import Directory
from folkmoot.core.errors import CommandError, StorageCorrupt
from folkmoot.core.freeze import Changes, Freeze
from folkmoot.core.multiplexer import MachineFault
from folkmoot.core.prefix import Items, RecordKind
from folkmoot.core.restore import ItemContext, Restore
from folkmoot.primitives.topic_machine import TopicMachine
from folkmoot.transport.codec import pack, unpack
from tests.core.histories import LIMITS, MACHINES, OPERATIONS, History, Server
from tests.core.prefix_twin import PrefixTwin

BATCHES = 30
SEEDS = 30
"""Per test, of which there are ten."""


@pytest.mark.parametrize("kind", MACHINES, ids=[kind.type_name for kind in MACHINES])
def test_every_command_of_every_machine_has_its_part_in_the_histories(kind: Any) -> None:
    make, random = OPERATIONS[kind.type_name], Random(1)
    drawn = {make(random, 1)[0] for _ in range(1000)}
    assert drawn == set(kind.commands) - {"fault"}


@pytest.mark.parametrize("part", range(10))
def test_restored_and_applied_equals_applied(part: int) -> None:
    restored = 0
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        history = History(seed)
        try:
            history.run(BATCHES)
        except Exception as error:
            error.add_note(f"History({seed}).run({BATCHES}), of {history.kinds}")
            raise
        restored += history.restored
    assert restored > 2 * SEEDS, "too few restarts to show anything"


# -- planted bugs ---------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, Plant] = {}


def plants(name: str) -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        PLANTS[name] = plant
        return plant

    return add


def in_source(patch: pytest.MonkeyPatch, spoil: Callable[[Server, PrefixTwin], None]) -> None:
    """Let every prefix be spoilt before it is restored from."""
    source = Server.source

    def spoilt(self: Server) -> PrefixTwin:
        found = source(self)
        spoil(self, found)
        return found

    patch.setattr(Server, "source", spoilt)


def untrimmed(patch: pytest.MonkeyPatch) -> None:
    """Keep entries whole, so that a bug stumbles over nothing but itself."""
    patch.setattr(Directory, "trim_entry", lambda _, resource, name, args, live: (name, args))


def in_records(
    patch: pytest.MonkeyPatch, kind: RecordKind, spoil: Callable[[list[Any]], None]
) -> None:
    def all_records(server: Server, prefix: PrefixTwin) -> None:
        for key, record in prefix.kept.items():
            if key[0] == kind:
                fields = unpack(record)
                spoil(fields)
                prefix.kept[key] = pack(fields)

    in_source(patch, all_records)


@plants("liveness is judged by the present state")
def present(patch: pytest.MonkeyPatch) -> None:
    def spoil(server: Server, prefix: PrefixTwin) -> None:
        ledger = server.mux._changes.ledger
        for index, ordinal in [*((i, 0) for i in ledger.superseded), *ledger.superseded_parts]:
            if ordinal in prefix.live.get(index, ()):
                prefix.live[index].remove(ordinal)
                if not prefix.live[index]:
                    del prefix.live[index]

    in_source(patch, spoil)


class Replayed:
    """A context that only sees whether something is retained."""

    def __init__(self, index: int, time: int, session: int) -> None:
        self.index, self.time, self.session = index, time, session
        self.retained = False

    def retain(self, count: int = 1) -> None:
        self.retained = True

    def nothing(self, *_: Any, **__: Any) -> None: ...

    publish = set_deadline = clear_deadline = supersede = supersede_all = nothing


@plants("liveness is recomputed by replay")
def replay(patch: pytest.MonkeyPatch) -> None:
    def spoil(server: Server, prefix: PrefixTwin) -> None:
        machines: dict[int, Any] = {}
        for index in sorted(prefix.live):
            entry = prefix.entries[index]
            fields = unpack(prefix.kept[RecordKind.RESOURCE, entry.resource])
            kind = next(kind for kind in MACHINES if kind.type_name == fields[2])
            machine = machines.setdefault(entry.resource, kind(fields[4]))
            context = Replayed(index, entry.time, entry.session)
            with contextlib.suppress(CommandError):
                machine.commands[entry.name].function(machine, context, *entry.args)
            if not context.retained:
                del prefix.live[index]

    untrimmed(patch)
    in_source(patch, spoil)


@plants("a partly live entry is restored whole")
def whole(patch: pytest.MonkeyPatch) -> None:
    def spoil(server: Server, prefix: PrefixTwin) -> None:
        for index in prefix.live:
            prefix.live[index] = set(range(prefix.entries[index].count))

    untrimmed(patch)
    in_source(patch, spoil)


@plants("resources are restored after the items")
def resources_last(patch: pytest.MonkeyPatch) -> None:
    def run(self: Restore) -> Iterator[int]:
        yield from self.take_items()
        yield from self.take_records()

    patch.setattr(Restore, "run", run)


@plants("items are applied, not restored")
def applied(patch: pytest.MonkeyPatch) -> None:
    def take(self: Restore, items: Items) -> None:
        changes = Changes(self._deadlines)
        context = EntryContext(self._sessions, self._deadlines, changes, LIMITS)
        fields = (items.indexes, items.times, items.sessions, items.resources, items.operations)
        for context.index, context.time, context.session, resource, (name, args) in zip(
            *fields, strict=True
        ):
            context.resource = self._directory.resources[resource]
            with contextlib.suppress(CommandError):
                context.resource.call(context, name, args)

    untrimmed(patch)
    patch.setattr(Restore, "_take", take)


@plants("cached results are left out")
def no_results(patch: pytest.MonkeyPatch) -> None:
    in_records(patch, RecordKind.SESSION, lambda fields: fields[8].clear())


@plants("pending events are left out")
def no_events(patch: pytest.MonkeyPatch) -> None:
    in_records(patch, RecordKind.SESSION, lambda fields: fields[9][2].clear())


@plants("deadlines are left out of records")
def no_deadlines(patch: pytest.MonkeyPatch) -> None:
    in_records(patch, RecordKind.RESOURCE, lambda fields: fields[7] and fields[7].clear())


@plants("deadlines are not set by items")
def no_item_deadlines(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ItemContext, "set_deadline", lambda *_: None)


@plants("a deadline counts from the time of the restore")
def late_deadlines(patch: pytest.MonkeyPatch) -> None:
    def take(self: Restore, items: Items) -> None:
        items.times = [self.time] * len(items.times)
        original(self, items)

    original = Restore._take
    patch.setattr(Restore, "_take", take)


@plants("what a topic's cursors hold is forgotten")
def unheld(patch: pytest.MonkeyPatch) -> None:
    def restore(self: TopicMachine, data: list[Any]) -> None:
        original(self, data)
        self._cursors._heap.clear()

    original = TopicMachine.restore_remainder
    patch.setattr(TopicMachine, "restore_remainder", restore)


def nothing(*_: Any) -> None: ...


@plants("touches of sessions are lost")
def sessions_untouched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Changes, "touch_session", nothing)


@plants("touches of resources are lost")
def resources_untouched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Changes, "touch_resource", nothing)


@plants("what changes while it is pending is not kept")
def not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Freeze, "keep", nothing)


@plants("what changes while it is pending is given up")
def given_up(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Freeze, key: Any) -> None:
        self._pending.pop(key, None)

    patch.setattr(Freeze, "keep", keep)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    for seed in range(100):
        try:
            History(seed).run(BATCHES)
        except (AssertionError, MachineFault, StorageCorrupt):
            return
    pytest.fail(f"{name}, and nobody noticed")
