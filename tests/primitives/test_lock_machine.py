"""The lock's machine: golden scripts, all kinds of histories against a plain list, known bugs."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from folkmoot.core.errors import BadCommand, ConfigError, LimitExceeded, NotHeld
from folkmoot.primitives import _seat
from folkmoot.primitives.lock_machine import WAITERS_LISTED_MAX, LockMachine
from tests.primitives.harness import Event, Harness, check_script, scripts
from tests.primitives.twins import Twins


@pytest.mark.parametrize("path", scripts("lock"))
def test_script(path: Path, rewrite: bool) -> None:
    check_script(LockMachine, path, rewrite)


SESSIONS = st.integers(1, 3)
Claim = tuple[int, int]
"""session, request"""


class LockAgainstList(RuleBasedStateMachine):
    """Model: a holder, a list of those who wait, a delay, a set of subscribers.

    Sessions 1 to 3 are seats at the table: when one ends, another session takes its place.
    """

    @initialize(delay=st.sampled_from([0, 0, 20]))
    def start(self, delay: int) -> None:
        self.delay = delay
        self.lock = Twins(LockMachine, {"lock_delay_ms": delay} if delay else {})
        self.alive = {1: 1, 2: 2, 3: 3}
        self.requests = 0
        self.holder: Claim | None = None
        self.token = self.last_token = 0
        self.queue: list[tuple[Claim, int | None]] = []
        self.delayed_until: int | None = None
        self.subscribers: set[int] = set()
        self.expected: list[Event] = []

    def tell(self, kind: str, payload: Any, index: int) -> None:
        self.expected += [Event(s, index, kind, payload) for s in sorted(self.subscribers)]

    def grant(self, claim: Claim, index: int, time: int) -> None:
        self.holder = claim
        self.token = self.last_token = max(index, self.last_token + 1)
        fields = [self.token, claim[0], f"client-{claim[0]}", time]
        self.tell("granted", fields, index)

    def grant_next(self, index: int, time: int) -> None:
        if self.holder is None and self.queue and self.delayed_until is None:
            claim, _ = self.queue.pop(0)
            token = max(index, self.last_token + 1)
            payload = [claim[1], token, None]
            self.expected.append(Event(claim[0], index, "grant", payload, keep=True))
            self.grant(claim, index, time)

    def settle(self) -> None:
        assert self.lock.take() == self.expected
        self.expected = []

    @rule(who=SESSIONS, timeout=st.sampled_from([None, None, 0, 10, 30]))
    def acquire(self, who: int, timeout: int | None) -> None:
        session = self.alive[who]
        self.requests += 1
        claim = (session, self.requests)
        free = self.holder is None and self.delayed_until is None
        answer = self.lock.command(session, "acquire", self.requests, timeout)
        if free:
            self.grant(claim, self.lock.index, self.lock.time)
        elif timeout != 0:
            until = None if timeout is None else self.lock.time + timeout
            self.queue.append((claim, until))
        assert answer == (self.token if free else 0)
        self.settle()

    @rule(who=SESSIONS, back=st.integers(0, 6))
    def withdraw(self, who: int, back: int) -> None:
        """Withdraw a recent request: one that waits, holds, is over, or is another's."""
        claim = (self.alive[who], self.requests - back)
        waits = [waiter for waiter in self.queue if waiter[0] == claim]
        if claim[1] < 1:
            return
        answer = self.lock.command(claim[0], "withdraw", claim[1])
        assert answer is (bool(waits) or claim == self.holder)
        if waits:
            self.queue.remove(waits[0])
        elif claim == self.holder:
            self.release_it()
        self.settle()

    def release_it(self) -> None:
        self.holder = None
        self.tell("released", [self.token], self.lock.index)
        self.grant_next(self.lock.index, self.lock.time)

    @rule(who=SESSIONS, back=st.sampled_from([0, 0, 0, 1, 5]))
    def release(self, who: int, back: int) -> None:
        session = self.alive[who]
        mine = self.holder is not None and self.holder[0] == session and not back
        answer = self.lock.command(session, "release", self.last_token - back)
        assert answer is (None if mine else NotHeld)
        if mine:
            self.release_it()
        self.settle()

    @rule(who=SESSIONS, named=st.sampled_from([None, 0, 1]))
    def break_lock(self, who: int, named: int | None) -> None:
        token = None if named is None else self.last_token - named
        answer = self.lock.command(self.alive[who], "break_lock", token)
        if token is not None and (self.holder is None or token != self.token):
            assert answer is NotHeld
            return self.settle()
        assert answer == (self.token if self.holder else 0)
        self.delayed_until = None
        if self.holder:
            index = self.lock.index
            payload = [self.holder[1], self.token, "released"]
            self.expected.append(Event(self.holder[0], index, "ended", payload, keep=True))
            self.tell("lost", [self.token, "released"], index)
            self.holder = None
        self.grant_next(self.lock.index, self.lock.time)
        return self.settle()

    @rule(who=SESSIONS)
    def end(self, who: int) -> None:
        session = self.alive[who]
        self.alive[who] = session + 3
        self.lock.end(session)
        self.subscribers.discard(session)
        self.queue = [waiter for waiter in self.queue if waiter[0][0] != session]
        if self.holder and self.holder[0] == session:
            self.holder = None
            self.tell("lost", [self.token, "expired"], self.lock.index)
            if self.delay:
                self.delayed_until = self.lock.time + self.delay
            self.grant_next(self.lock.index, self.lock.time)
        self.settle()

    @rule(milliseconds=st.sampled_from([1, 10, 25]))
    def advance(self, milliseconds: int) -> None:
        index, end = self.lock.index, self.lock.time + milliseconds
        self.lock.advance(milliseconds)
        while True:
            due = [until for _, until in self.queue if until is not None]
            due += [self.delayed_until] if self.delayed_until is not None else []
            if not due or min(due) > end:
                break
            index, now = index + 1, min(due)
            # At one moment deadlines fire by key: "delay", then "wait:SESSION.REQUEST".
            if self.delayed_until == now:
                self.delayed_until = None
                self.grant_next(index, now)
            over = [waiter for waiter in self.queue if waiter[1] == now]
            for waiter in sorted(over, key=lambda w: f"{w[0][0]}.{w[0][1]}"):
                self.queue.remove(waiter)
                session, request = waiter[0]
                event = Event(session, index, "timed_out", [request], keep=True)
                self.expected.append(event)
        assert self.lock.index == index
        self.settle()

    @rule(who=SESSIONS, leave=st.sampled_from(["unsubscribe", "cut", "subscribe"]))
    def watch(self, who: int, leave: str) -> None:
        session = self.alive[who]
        if leave == "cut":
            assert self.lock.cut(session) is (session in self.subscribers)
        else:
            self.lock.command(session, leave, "prefix", "")
        self.subscribers.discard(session)
        if leave == "subscribe":
            self.subscribers.add(session)
        self.settle()

    @rule()
    def restart(self) -> None:
        self.lock.restart()

    @invariant()
    def holder_and_queue_are_as_in_the_model(self) -> None:
        view = self.lock.query(self.alive[1], "describe")
        holder = view["holder"]
        assert (holder and holder[1]) == (self.holder and self.holder[0])
        assert [waiter[1] for waiter in view["waiters"]] == [claim[0] for claim, _ in self.queue]
        assert view["delayed_until"] == self.delayed_until
        for token in range(max(1, self.last_token - 2), self.last_token + 3):
            held = self.holder is not None and token == self.token
            assert self.lock.machine.holds_grant(token) is held

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        assert self.holder or self.delayed_until is not None or not self.queue

    @invariant()
    def idle_is_when_nothing_is_there(self) -> None:
        busy = self.holder or self.queue or self.subscribers or self.delayed_until is not None
        assert self.lock.machine.idle() is not bool(busy)


TestLockAgainstList = LockAgainstList.TestCase
TestLockAgainstList.settings = settings(max_examples=150, stateful_step_count=30)


@pytest.mark.parametrize(
    "config",
    [{"lock_delay_ms": -1}, {"lock_delay_ms": 1.5}, {"lock_delay_ms": 86_400_001}, {"delay": 1}],
)
def test_a_wrong_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"lock_delay_ms"):
        LockMachine(config)


def test_two_grants_at_one_index_have_two_tokens() -> None:
    """A delay that ends fires before the entry of the same moment, and so under its index."""
    lock = Harness(LockMachine, {"lock_delay_ms": 10})
    lock.command(1, "acquire", 1, None)
    lock.end(1)
    lock.command(2, "acquire", 1, None)
    lock.command(3, "acquire", 1, None)
    lock.advance(10)
    first = lock.query(2, "describe")["holder"][0]
    lock.index -= 1
    lock.command(2, "release", first)
    assert lock.query(2, "describe")["holder"][0] == first + 1 == lock.index + 1
    lock.index -= 1
    lock.command(3, "release", first + 1)
    assert lock.command(2, "acquire", 2, None) == first + 2 == lock.index + 1


def test_breaking_the_delay_forgets_its_deadline() -> None:
    lock = Harness(LockMachine, {"lock_delay_ms": 10})
    lock.command(1, "acquire", 1, None)
    lock.end(1)
    assert lock.deadlines
    assert lock.command(2, "break_lock", None) == 0
    assert not lock.deadlines
    assert lock.machine.idle()


def test_i1_the_token_rises_and_the_old_one_is_fenced() -> None:
    """Two holders: an owner paused past its expiry (Jepsen on etcd; Kleppmann)."""
    lock = Harness(LockMachine)
    paused = lock.command(1, "acquire", 1, None)
    lock.command(2, "acquire", 1, None)
    lock.end(1)  # session 1 is paused, and knows nothing of it
    (grant,) = lock.take()
    assert grant.payload[1] > paused
    assert lock.machine.holds_grant(grant.payload[1])
    assert not lock.machine.holds_grant(paused)
    with pytest.raises(NotHeld):
        lock.command(1, "release", paused)  # its late release takes nothing from the new holder
    assert lock.machine.holds_grant(grant.payload[1])


def test_i2_no_waiter_is_granted_after_its_session_ended() -> None:
    """Waiter granted after its own session died (etcd 3.4.3)."""
    lock = Harness(LockMachine)
    token = lock.command(1, "acquire", 1, None)
    lock.command(2, "acquire", 1, None)
    lock.command(3, "acquire", 1, None)
    lock.end(2)
    lock.command(1, "release", token)
    assert [event.session for event in lock.take()] == [3]


def test_h8_a_dead_sessions_lock_is_free_in_the_very_entry() -> None:
    """Lock of a dead session never removed (ZOOKEEPER-2355, 3471)."""
    lock = Harness(LockMachine)
    token = lock.command(1, "acquire", 1, None)
    lock.command(1, "acquire", 2, None)
    lock.end(1)
    assert lock.machine.idle()
    assert not lock.machine.holds_grant(token)
    assert not lock.events
    lock.end(1)  # told twice, nothing happens
    assert lock.command(2, "acquire", 1, 0) == lock.index


@pytest.mark.parametrize("crossing", ["waiting", "granted", "timed out", "broken", "never made"])
def test_i4_a_withdrawal_leaves_no_ghost_behind(crossing: str) -> None:
    """Acquire given up at the client but queued at the server (Hazelcast's FencedLock)."""
    lock = Harness(LockMachine)
    token = lock.command(1, "acquire", 1, None)
    if crossing != "never made":
        lock.command(2, "acquire", 7, 100)
    if crossing in ("granted", "broken"):
        lock.command(1, "release", token)
    if crossing == "timed out":
        lock.advance(100)
    if crossing == "broken":
        lock.command(1, "break_lock", None)
    assert lock.command(2, "withdraw", 7) is (crossing in ("waiting", "granted"))
    lock.take()
    if crossing not in ("granted", "broken"):
        lock.command(1, "release", token)
    assert not lock.events
    assert lock.machine.idle()


def test_waiters_are_bounded_and_listed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seat, "WAITERS_MAX", WAITERS_LISTED_MAX + 2)
    lock = Harness(LockMachine, thorough=False)  # it would be quadratic here
    for request in range(1, WAITERS_LISTED_MAX + 4):
        lock.command(1, "acquire", request, None)
    with pytest.raises(LimitExceeded):
        lock.command(2, "acquire", 1, None)
    assert lock.command(2, "acquire", 1, 0) == 0
    view = lock.query(1, "describe")
    assert (view["waiting"], len(view["waiters"])) == (WAITERS_LISTED_MAX + 2, WAITERS_LISTED_MAX)


@pytest.mark.parametrize("args", [(0, None), (1, -1), (1, 1.0), ("1", None), (1,), (1, None, 2)])
def test_malformed_arguments_are_refused(args: tuple[Any, ...]) -> None:
    with pytest.raises(BadCommand):
        Harness(LockMachine).command(1, "acquire", *args)
