"""The election's machine: golden scripts, and all kinds of histories against a sorted list."""

from pathlib import Path

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from folkmoot.core.errors import NotHeld
from folkmoot.primitives.election_machine import ElectionMachine
from tests.primitives.harness import Event, Harness, check_script, scripts
from tests.primitives.twins import Twins


@pytest.mark.parametrize("path", scripts("election"))
def test_script(path: Path, rewrite: bool) -> None:
    check_script(ElectionMachine, path, rewrite)


SESSIONS = st.integers(1, 3)


@attrs.define(eq=False)
class Candidate:
    number: int
    session: int
    request: int
    value: bytes
    priority: int
    until: int | None
    since: int


class ElectionAgainstList(RuleBasedStateMachine):
    """Model: a leader, a list of candidates in order, a set of subscribers."""

    @initialize()
    def start(self) -> None:
        self.election = Twins(ElectionMachine)
        self.alive = {1: 1, 2: 2, 3: 3}
        self.requests = self.token = self.last_token = 0
        self.leader: Candidate | None = None
        self.queue: list[Candidate] = []
        self.promoted: list[Candidate] = []
        self.subscribers: set[int] = set()
        self.expected: list[Event] = []

    def reign(self, kind: str, index: int) -> None:
        one = self.leader
        assert one is not None
        name = f"client-{one.session}"
        payload = [self.token, one.value, one.since, one.session, name, one.number]
        self.expected += [Event(s, index, kind, payload) for s in sorted(self.subscribers)]

    def elect(self, one: Candidate) -> None:
        self.leader = one
        self.token = self.last_token = max(self.election.index, self.last_token + 1)
        one.since = self.election.time
        self.reign("elected", self.election.index)

    def succeed(self, cause: str) -> None:
        """The leader has gone."""
        index = self.election.index
        payload = [self.token, cause]
        self.expected += [Event(s, index, "vacant", payload) for s in sorted(self.subscribers)]
        self.leader = None
        if self.queue:
            first = self.queue.pop(0)
            grant = [first.request, max(index, self.last_token + 1), None]
            self.expected.append(Event(first.session, index, "grant", grant, keep=True))
            self.elect(first)

    def eject(self, one: Candidate, cause: str) -> None:
        led = one is self.leader
        payload = [one.request, self.token if led else 0, cause]
        self.expected.append(Event(one.session, self.election.index, "ended", payload, keep=True))
        if led:
            self.succeed(cause)
        else:
            self.queue.remove(one)

    def settle(self) -> None:
        assert self.election.take() == self.expected
        self.expected = []

    def everybody(self) -> list[Candidate]:
        return ([self.leader] if self.leader else []) + self.queue

    @rule(
        who=SESSIONS,
        priority=st.integers(-2, 2),
        timeout=st.sampled_from([None, None, 0, 10]),
        value=st.sampled_from([b"a", b"b"]),
    )
    def campaign(self, who: int, priority: int, timeout: int | None, value: bytes) -> None:
        self.requests += 1
        session, request = self.alive[who], self.requests
        answer = self.election.command(session, "campaign", request, value, priority, timeout)
        index, now = self.election.index, self.election.time
        until = None if timeout is None else now + timeout
        one = Candidate(index, session, request, value, priority, until, now)
        if self.leader is None:
            self.elect(one)
            assert answer == [index, self.token]
        elif timeout == 0:
            assert answer == []
        else:
            assert answer == [index, 0]
            place = len([other for other in self.queue if self.stands_before(other, one)])
            self.queue.insert(place, one)
        self.settle()

    def stands_before(self, other: Candidate, newcomer: Candidate) -> bool:
        return other in self.promoted or other.priority >= newcomer.priority

    @rule(who=SESSIONS, back=st.integers(0, 5))
    def withdraw(self, who: int, back: int) -> None:
        session, request = self.alive[who], self.requests - back
        mine = [c for c in self.everybody() if (c.session, c.request) == (session, request)]
        assert self.election.command(session, "withdraw", request) is bool(mine)
        for one in mine:
            if one is self.leader:
                self.succeed("resigned")
            else:
                self.queue.remove(one)
        self.settle()

    @rule(who=SESSIONS, back=st.sampled_from([0, 0, 1]), value=st.sampled_from([None, b"new"]))
    def release_or_proclaim(self, who: int, back: int, value: bytes | None) -> None:
        session, token = self.alive[who], self.last_token - back
        mine = self.leader is not None and self.leader.session == session and not back
        if value is None:
            answer = self.election.command(session, "release", token)
        else:
            answer = self.election.command(session, "proclaim", token, value)
        if not mine:
            assert answer is NotHeld
        elif value is None:
            self.succeed("resigned")
        else:
            assert self.leader is not None
            assert answer == self.election.index
            self.leader.value = value
            self.reign("changed", self.election.index)
        self.settle()

    @rule(who=SESSIONS, nth=st.none() | st.integers(0, 3))
    def resign(self, who: int, nth: int | None) -> None:
        session = self.alive[who]
        number = None if nth is None else self.number(nth)
        mine = [c for c in self.everybody() if c.session == session]
        mine = [c for c in mine if number is None or c.number == number]
        assert self.election.command(session, "resign", number) == len(mine)
        waiting = sorted((c for c in mine if c is not self.leader), key=lambda c: c.number)
        for one in [*waiting, *(c for c in mine if c is self.leader)]:
            self.eject(one, "resigned")
        self.settle()

    def number(self, nth: int) -> int:
        """The number of somebody there, or of nobody."""
        everybody = self.everybody()
        return everybody[nth].number if nth < len(everybody) else 0

    @rule(who=SESSIONS, nth=st.integers(0, 4), how=st.sampled_from(["promote", "transfer"]))
    def promote(self, who: int, nth: int, how: str) -> None:
        number = self.number(nth)
        waiting = [c for c in self.queue if c.number == number]
        assert self.election.command(self.alive[who], how, number) is bool(waiting)
        for one in waiting:
            self.queue.remove(one)
            self.queue.insert(0, one)
            self.promoted.append(one)
            if how == "transfer":
                assert self.leader is not None
                payload = [self.leader.request, self.token, "transferred"]
                to, index = self.leader.session, self.election.index
                self.expected.append(Event(to, index, "revoked", payload, keep=True))
        self.settle()

    @rule(who=SESSIONS, nth=st.integers(0, 4))
    def evict(self, who: int, nth: int) -> None:
        number = self.number(nth)
        found = [c for c in self.everybody() if c.number == number]
        assert self.election.command(self.alive[who], "evict", number) is bool(found)
        for one in found:
            self.eject(one, "evicted")
        self.settle()

    @rule(who=SESSIONS)
    def end(self, who: int) -> None:
        session = self.alive[who]
        self.alive[who] = session + 3
        self.election.end(session)
        self.subscribers.discard(session)
        self.queue = [c for c in self.queue if c.session != session]
        if self.leader and self.leader.session == session:
            self.succeed("expired")
        self.settle()

    @rule(milliseconds=st.sampled_from([1, 7, 20]))
    def advance(self, milliseconds: int) -> None:
        index, end = self.election.index, self.election.time + milliseconds
        self.election.advance(milliseconds)
        over = [c for c in self.queue if c.until is not None and c.until <= end]
        moments = sorted({c.until for c in over if c.until is not None})
        for at, now in enumerate(moments, start=index + 1):
            due = [c for c in over if c.until == now]
            for one in sorted(due, key=lambda c: f"{c.session}.{c.request}"):
                self.queue.remove(one)
                payload = [one.request]
                self.expected.append(Event(one.session, at, "timed_out", payload, keep=True))
        assert self.election.index == index + len(moments)
        self.settle()

    @rule(who=SESSIONS, how=st.sampled_from(["subscribe", "subscribe", "unsubscribe", "cut"]))
    def watch(self, who: int, how: str) -> None:
        session = self.alive[who]
        if how == "cut":
            assert self.election.cut(session) is (session in self.subscribers)
        else:
            self.election.command(session, how, "prefix", "")
        self.subscribers.discard(session)
        if how == "subscribe":
            self.subscribers.add(session)
        self.settle()

    @rule()
    def restart(self) -> None:
        self.election.restart()

    @invariant()
    def leader_and_queue_are_as_in_the_model(self) -> None:
        view = self.election.query(self.alive[1], "describe")
        assert [c[0] for c in view["candidates"]] == [c.number for c in self.queue]
        assert view["leader"] == self.election.query(self.alive[1], "leader")
        assert (view["leader"] and view["leader"][5]) == (self.leader and self.leader.number)
        assert self.leader or not self.queue
        for token in range(max(1, self.last_token - 2), self.last_token + 3):
            held = self.leader is not None and token == self.token
            assert self.election.machine.holds_grant(token) is held
        busy = self.leader or self.subscribers
        assert self.election.machine.idle() is not bool(busy)


TestElectionAgainstList = ElectionAgainstList.TestCase
TestElectionAgainstList.settings = settings(max_examples=150, stateful_step_count=30)


def test_i1_a_deposed_leaders_token_is_fenced() -> None:
    election = Harness(ElectionMachine)
    _, paused = election.command(1, "campaign", 1, b"", 0, None)
    election.command(2, "campaign", 1, b"", 0, None)
    election.end(1)
    (grant,) = election.take()
    assert grant.payload[1] > paused
    assert not election.machine.holds_grant(paused)
    with pytest.raises(NotHeld):
        election.command(1, "proclaim", paused, b"still me")


def test_i3_no_two_lead_over_any_transfer() -> None:
    """Double leader (CURATOR-696): while the leader has not resigned, its reign goes on."""
    election = Harness(ElectionMachine)
    _, first = election.command(1, "campaign", 1, b"", 0, None)
    number, _ = election.command(2, "campaign", 1, b"", 0, None)
    assert election.command(3, "transfer", number)
    assert election.machine.holds_grant(first)
    assert [event.kind for event in election.take()] == ["revoked"]
    election.command(1, "release", first)
    assert [(event.kind, event.session) for event in election.take()] == [("grant", 2)]


def test_a_promoted_candidate_that_leaves_leaves_the_order_as_it_was() -> None:
    election = Harness(ElectionMachine)
    for session in (1, 2, 3, 4):
        election.command(session, "campaign", 1, b"", 0, None)
    election.command(9, "promote", 4)
    election.command(9, "promote", 3)
    election.end(3)
    election.restart()
    view = election.query(9, "describe")
    assert [candidate[0] for candidate in view["candidates"]] == [4, 2]
