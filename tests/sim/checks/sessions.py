"""Exactly once, in order, the same answer on every retry; and no expiry while a session lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Kind
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.sessions import decode_keep_alive
from folkmoot.transport.codec import pack
from tests.sim.checks import NOT_COUNTED, Checker, Step

if TYPE_CHECKING:
    from tests.sim.application import Call
    from tests.sim.client import SimClient

Answer = tuple[int, Any, str]
"""index, value as it was answered, code of the error"""


@attrs.define(eq=False, slots=False)
class ExactlyOnce(Checker):
    rule = (
        "invariants 1 and 2: a session's commands take effect once each, in the order of their "
        "sequences, and a retry gets the same answer"
    )
    answers: dict[tuple[int, int], Answer] = attrs.field(factory=dict)
    last: dict[int, int] = attrs.field(factory=dict)
    low_water: dict[int, int] = attrs.field(factory=dict)

    def step(self, step: Step) -> None:
        for group in step.batch.groups:
            if group.kind == Kind.COMMANDS:
                session, _, low_water, _ = COMMANDS_HEADER.unpack_from(group.payload)
                self.low_water[session] = max(self.low_water.get(session, 0), low_water)
            elif group.kind == Kind.KEEP_ALIVE:
                for session, low_water, _, _ in decode_keep_alive(group.payload):
                    self.low_water[session] = max(self.low_water.get(session, 0), low_water)
        for results in step.applied.results:
            codes = {error[0]: error[1] for error in results.errors or ()}
            first_index = results.index - len(results.values) + 1
            for at, value in enumerate(results.values):
                answer = (first_index + at, value, codes.get(at, ""))
                self._take(results.session_id, results.first_sequence + at, answer)

    def _take(self, session: int, sequence: int, answer: Answer) -> None:
        last, count = self.last.get(session, 0), self.world.trace.count
        code = answer[2]
        if code == "result_expired":
            if sequence > self.low_water.get(session, 0):
                self.fail(f"the answer to {session}.{sequence} is gone, and was not acknowledged")
            return
        if code in NOT_COUNTED:
            return
        if sequence <= last:
            count("duplicates answered")
            if self.answers[session, sequence] != answer:
                self.fail(
                    f"command {session}.{sequence} was answered {self.answers[session, sequence]} "
                    f"and then {answer}"
                )
            return
        if sequence != last + 1:
            self.fail(f"command {session}.{sequence} was applied after {session}.{last}")
        self.last[session] = sequence
        self.answers[session, sequence] = answer

    def answered(self, client: SimClient, call: Call) -> None:
        error, key = call.error, (call.session_id, call.sequence)
        if error is not None and error.applied != "yes":
            return
        known = self.answers.get(key)
        if known is None:
            self.fail(f"{call.name} of {key} was answered and never applied")
            return
        index, value, code = known
        if call.by_name and not code:
            value = value[1]
        got = (call.index, call.value, "" if error is None else error.code)
        if pack([list(got)]) != pack([[index, value, code]]):
            self.fail(f"{call.name} of {key} was answered {got}, applied as {(index, value, code)}")


@attrs.define(eq=False, slots=False)
class CountedOnce(Checker):
    rule = "invariant 1, from outside: each acknowledged increment counts once, no other does"
    sums: dict[str, list[int]] = attrs.field(factory=dict)
    """Counter -> [sum of what was acknowledged, least and most that the unknown ones add]."""

    def answered(self, client: SimClient, call: Call) -> None:
        if call.name != "add":
            return
        sums = self.sums.setdefault(call.target.name, [0, 0, 0])
        if call.error is None:
            sums[0] += call.args[0]
        elif call.error.applied == "maybe":
            self.lost(client, call)

    def lost(self, client: SimClient, call: Call) -> None:
        if call.name == "add":
            sums = self.sums.setdefault(call.target.name, [0, 0, 0])
            sums[1 if call.args[0] < 0 else 2] += call.args[0]

    def finished(self) -> None:
        multiplexer = self.world.some_member().multiplexer
        for resource in multiplexer.directory.resources.values():
            if resource.name in self.sums:
                value = resource.machine.snapshot()[0]
                known, least, most = self.sums[resource.name]
                if not known + least <= value <= known + most:
                    self.fail(
                        f"counter {resource.name!r} is {value}: {known} was acknowledged, "
                        f"unknown is {least} to {most}"
                    )


@attrs.define(eq=False, slots=False)
class RefusedMeansNever(Checker):
    rule = "G14: a command that ended as certainly not applied never takes effect"
    refused: set[bytes] = attrs.field(factory=set)
    """Values of such writes; no two writes of a run have the same value."""
    applied_values: set[bytes] = attrs.field(factory=set)

    def step(self, step: Step) -> None:
        for done in step.done:
            name, args = done.operation[1], done.operation[2]
            if name == "set" and not done.error:
                self.applied_values.add(args[1])
                if args[1] in self.refused:
                    self.fail(f"{done} took effect after it had ended as not applied")

    def answered(self, client: SimClient, call: Call) -> None:
        if call.name == "set" and call.error is not None and call.error.applied == "no":
            self.refused.add(call.args[1])
            if call.args[1] in self.applied_values:
                self.fail(f"{call.args} took effect and ended as not applied: {call.error!r}")


@attrs.define(eq=False, slots=False)
class SilentWhenExpired(Checker):
    rule = "§6.3, G5, G6: a session expires only after its whole timeout of silence in the log"
    timeouts: dict[int, int] = attrs.field(factory=dict)
    seen: dict[int, int] = attrs.field(factory=dict)
    floor: int = 0

    def step(self, step: Step) -> None:
        time, count = step.batch.log_time, self.world.trace.count
        for opened in step.applied.opened:
            if opened.session_id:
                count("sessions opened")
                self.timeouts[opened.session_id] = opened.timeout_ms
                self.seen[opened.session_id] = time
        index = step.batch.first_index
        ended = {one.index for one in step.applied.ended}
        expiries: set[int] = set()
        for group in step.batch.groups:
            if group.kind == Kind.INITIALIZE:
                self.floor = time
            elif group.kind == Kind.COMMANDS:
                self.seen[COMMANDS_HEADER.unpack_from(group.payload)[0]] = time
            elif group.kind == Kind.KEEP_ALIVE:
                for session, _, _, _ in decode_keep_alive(group.payload):
                    self.seen[session] = time
            elif group.kind == Kind.EXPIRE_SESSION:
                expiries.add(index)
                if index not in ended:
                    count("expiries void")
            index += group.count
        for one in step.applied.ended:
            if one.reason == "closed":
                count("sessions closed")
            elif one.reason == "expired":
                count("sessions expired")
                if one.index in expiries:  # else its events overflowed even when cut
                    self._check(one.session_id, time)

    def _check(self, session: int, time: int) -> None:
        silent = time - max(self.seen[session], self.floor)
        if silent < self.timeouts[session]:
            self.fail(
                f"session {session} expired after {silent} ms of silence, "
                f"its timeout is {self.timeouts[session]} ms"
            )


@attrs.define(eq=False, slots=False)
class OwnersExpireFirst(Checker):
    rule = "G5, I3: when the cluster ends a session by expiry, its client has given it up before"

    def step(self, step: Step) -> None:
        if not self.world.options.uses_leases:
            return
        ended = {one.session_id for one in step.applied.ended if one.reason == "expired"}
        for client in self.world.clients.values():
            session = client.core.session
            if session.id in ended and session.owns and not client.is_expired():
                self.fail(
                    f"session {session.id} of {client.name} expired at index "
                    f"{step.batch.last_index}; it counts on it for "
                    f"{client.core.local_deadline - client.clock.now():.3f} s more"
                )


@attrs.define(eq=False, slots=False)
class NeverMalformed(Checker):
    rule = "a correct client and correct servers never refuse one another's frames"

    def left(self, client: SimClient, reason: str) -> None:
        if "EVENTS" in reason or "RESULTS" in reason or RemoteProtocolError.code in reason:
            self.fail(f"{client.name} leaves: {reason}")
