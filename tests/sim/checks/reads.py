"""Reads: linearizable ones see everything before them, sequential ones never go back."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import attrs

from folkmoot.core.errors import Overloaded
from folkmoot.core.event_chain import Event
from folkmoot.core.raft import Role
from folkmoot.core.types import Consistency
from tests.sim.checks import Checker, Done, Step

if TYPE_CHECKING:
    from tests.sim.application import Ask, Call
    from tests.sim.client import SimClient
    from tests.sim.member import Member


@attrs.define(eq=False, slots=False)
class ReadsSeeTheirPast(Checker):
    rule = (
        "invariants 4 and 5, §6.4: a linearizable or lease read sees everything that had been "
        "answered to anybody before it began; a sequential one what its own client had seen"
    )
    completed: int = 0
    """The highest index of anything that any application was told of."""
    seen: dict[str, int] = attrs.field(factory=dict)
    """The same for each client."""

    def asked(self, client: SimClient, ask: Ask) -> None:
        sequential = ask.consistency is Consistency.SEQUENTIAL
        ask.floor = self.seen.get(client.name, 0) if sequential else self.completed

    def read(self, client: SimClient, ask: Ask) -> None:
        if isinstance(ask.error, Overloaded):
            return
        self.world.trace.count(f"{ask.consistency.value} reads")
        if ask.index < ask.floor:
            self.fail(
                f"the {ask.consistency} read of {client.name} was answered as of index "
                f"{ask.index}; {ask.floor} was known before it began"
            )
        behind = ask.behind
        same = behind is not None and behind.session_id == client.core.session.id
        if ask.consistency is Consistency.SEQUENTIAL and behind is not None and same:
            answers = self.world.exactly_once.answers
            known = answers.get((behind.session_id, behind.sequence))
            refused = behind.error is not None and behind.error.applied != "yes"
            if (known is None or known[0] > ask.index) and behind.sequence and not refused:
                self.fail(
                    f"the sequential read of {client.name} as of index {ask.index} does not see "
                    f"its own {behind.name} of sequence {behind.sequence}, applied at {known}"
                )
        self._learn(client, ask.index)

    def answered(self, client: SimClient, call: Call) -> None:
        if call.error is None:
            self._learn(client, call.index)

    def event(self, client: SimClient, event: Event) -> None:
        self._learn(client, event.index)

    def _learn(self, client: SimClient, index: int) -> None:
        self.completed = max(self.completed, index)
        self.seen[client.name] = max(self.seen.get(client.name, 0), index)


@attrs.define(eq=False, slots=False)
class ReadsAreTrue(Checker):
    rule = "a read answers with what the log makes of its resource at the index that it names"
    histories: dict[tuple[str, str], tuple[list[int], list[Any]]] = attrs.field(factory=dict)
    """(resource, key) -> indexes at which it changed, and the values from there on."""
    names: dict[int, str] = attrs.field(factory=dict)

    def step(self, step: Step) -> None:
        for done in step.done:
            if not done.error:
                self._change(step, done)

    def _change(self, step: Step, done: Done) -> None:
        resource = step.multiplexer.directory.resources.get(done.resource)
        if resource is not None:
            self.names[done.resource] = resource.name
        name, args = done.operation[1], done.operation[2]
        of = self.names.get(done.resource, "")
        if name == "add":
            self._set(done.index, of, "", done.value[0])
        elif of == "map" and (name == "set" or (name == "create" and done.value is not None)):
            self._set(done.index, of, args[0], args[1])
        elif of == "map" and name == "set_many":
            for key, value in args[0].items():
                self._set(done.index, of, key, value)
        elif of == "map" and name == "delete":
            self._set(done.index, of, args[0], None)

    def _set(self, index: int, resource: str, key: str, value: Any) -> None:
        indexes, values = self.histories.setdefault((resource, key), ([], []))
        indexes.append(index)
        values.append(value)

    def read(self, client: SimClient, ask: Ask) -> None:
        if isinstance(ask.error, Overloaded):
            return
        key = ask.args[0] if ask.args else ""
        indexes, values = self.histories.get((ask.target.name, key), ([], []))
        at = bisect_right(indexes, ask.index)
        expected = values[at - 1] if at else (None if key else 0)
        if ask.error is not None or ask.value != expected:
            self.fail(
                f"{client.name} read {ask.target.name} {key} as of index {ask.index} as "
                f"{ask.value!r} ({ask.error}); the log says {expected!r}"
            )


@attrs.define(eq=False, slots=False)
class LeaseExcludesCommits(Checker):
    rule = "§6.4.1: while one leader's lease holds, nobody of a higher term commits"

    def committed(self, member: Member, index: int, entry: tuple[int, int]) -> None:
        if not self.world.options.uses_leases or member.raft.role is not Role.LEADER:
            return
        for other in self.world.members.values():
            if other is member or not other.is_up:
                continue
            leader = other.raft._leader
            if leader is None or other.raft.term >= member.raft.term:
                continue
            left_s = leader.lease_until() - other.local_now()
            if left_s > 0:
                self.fail(
                    f"server {member.name} commits {index} in term {member.raft.term}, and server "
                    f"{other.name} has a lease of term {other.raft.term} for {left_s:.3f} s more"
                )
