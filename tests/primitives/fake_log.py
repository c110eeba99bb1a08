"""The log and the compaction of one machine whose retention is ENTRIES, in a few lines.

It keeps each command's entry, and what of it lives; a machine is restored from exactly that. It
checks that a machine retains once per command, supersedes each item at most once, and owns, by what
its own snapshot says, exactly what lives.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from folkmoot.core.machine import Machine, Retention
from folkmoot.core.prefix import ONE
from folkmoot.transport.codec import pack, unpack

Item = tuple[int, int]
"""index, ordinal"""


@attrs.define
class RestoreContext:
    """What `restore_item` sees."""

    deadlines: dict[str, int]
    index: int = 0
    time: int = 0
    session: int = 0

    def set_deadline(self, key: str, time: int) -> None:
        assert key not in self.deadlines, f"{key!r} has the deadline {self.deadlines[key]} already"
        self.deadlines[key] = time


@attrs.define
class FakeLog:
    """Entries, packed as they would be on disk, and the ordinals of their items that live."""

    kind: type[Machine]
    entries: dict[int, bytes] = attrs.field(factory=dict)
    live: dict[int, set[int]] = attrs.field(factory=dict)
    owner: int | None = None
    """The entry whose command is running and may still retain."""

    def begin(self, index: int, time: int, session: int, name: str, args: Any) -> None:
        """Come to a command."""
        if self.kind.retention is Retention.ENTRIES:
            self.entries[index] = pack([time, session, name, args])
            self.owner = index

    def end(self) -> None:
        self.owner = None

    def retain(self, index: int, count: int) -> None:
        assert self.owner == index, f"retain() at {index}, where {self.owner} may"
        assert count > 0, f"retain({count})"
        self.owner = None
        self.live[index] = set(range(count))

    def supersede(self, index: int, ordinal: int) -> None:
        assert ordinal in self.live.get(index, ()), f"item {index}.{ordinal} does not live"
        self.live[index].remove(ordinal)
        if not self.live[index]:
            del self.live[index]

    def items(self) -> list[Item]:
        return [(index, ordinal) for index in sorted(self.live) for ordinal in self.ordinals(index)]

    def ordinals(self, index: int) -> list[int]:
        return sorted(self.live[index])

    def check(self, machine: Machine) -> None:
        """Compare what lives with what the machine says of itself."""
        owned = sorted(OWNERS[self.kind.type_name](unpack(pack(machine.snapshot()))))
        assert owned == self.items()

    def trim(self) -> None:
        """Compact: drop what is dead, and of the rest what nobody needs."""
        for index in list(self.entries):
            if index not in self.live:
                del self.entries[index]
                continue
            time, session, name, args = unpack(self.entries[index])
            before = pack(args)
            trimmed = self.kind.trim(name, args, self.ordinals(index))
            assert pack(args) == before, f"trim() of {name} changed its arguments"
            self.entries[index] = pack([time, session, *trimmed])

    def restore(
        self, config: Mapping[str, Any], remainder: bytes | None
    ) -> tuple[Machine, dict[str, int]]:
        """Make a machine from what lives; return it with the deadlines that it set."""
        machine = self.kind(config)
        context = RestoreContext({})
        if remainder is not None:
            machine.restore_remainder(unpack(remainder))
        for index in sorted(self.live):
            context.index = index
            context.time, context.session, name, args = unpack(self.entries[index])
            ordinals = self.ordinals(index)
            machine.restore_item(context, name, args, ONE if ordinals == [0] else ordinals)
        return machine, context.deadlines


def _of_subscriptions(data: Any) -> Iterator[Item]:
    return ((owner, 0) for _, *filters in data for _, _, owner in filters)


def _of_map(data: Any) -> Iterator[Item]:
    keys, subscriptions = data
    for _, _, version, ordinal, *expiry in keys:
        yield version, ordinal
        if expiry:
            yield expiry[1], expiry[2]
    yield from _of_subscriptions(subscriptions)


def _of_topic(data: Any) -> Iterator[Item]:
    _, (_, _, messages), subscriptions = data
    yield from ((revision, 0) for revision, _, _ in messages)
    yield from _of_subscriptions(subscriptions)


OWNERS: Mapping[str, Callable[[Any], Iterator[Item]]] = {"map": _of_map, "topic": _of_topic}
"""By type name: which items a machine owns, read from its snapshot."""
