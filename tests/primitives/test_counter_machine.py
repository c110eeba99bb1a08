"""The counter's machine: golden scripts, and histories of all kinds against a plain int."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from folkmoot.core.errors import BadCommand, ConfigError, LimitExceeded, OutOfBounds
from folkmoot.primitives import counter_machine
from folkmoot.primitives.counter_machine import INT_MAX, INT_MIN, CounterMachine
from tests.primitives.harness import Event, Harness, check_script, scripts


@pytest.mark.parametrize("path", scripts("counter"))
def test_script(path: Path, rewrite: bool) -> None:
    check_script(CounterMachine, path, rewrite)


NUMBERS = st.integers(-6, 6)
SESSIONS = st.integers(1, 3)


class CounterAgainstInt(RuleBasedStateMachine):
    """Model: an int, its bounds, a list of waiters and a set of subscribers."""

    @initialize(bounds=st.none() | st.tuples(st.integers(-5, 2), st.integers(2, 5)))
    def start(self, bounds: tuple[int, int] | None) -> None:
        config = {} if bounds is None else {"low": bounds[0], "high": bounds[1]}
        self.low, self.high = bounds or (INT_MIN, INT_MAX)
        self.harness = Harness(CounterMachine, config)
        self.twin = Harness(CounterMachine, config)  # never restarted
        self.value = 0 if self.low <= 0 <= self.high else self.low
        self.waiters: list[tuple[int, int, int | None, int | None]] = []
        self.subscribers: set[int] = set()

    def command(self, name: str, *args: Any, session: int = 9) -> Any:
        answers = []
        for harness in (self.harness, self.twin):
            try:
                answers.append(harness.command(session, name, *args))
            except (OutOfBounds, BadCommand) as error:
                answers.append(type(error))
        assert answers[0] == answers[1]
        return answers[0]

    def fits(self, low: int | None, high: int | None) -> bool:
        return (low is None or low <= self.value) and (high is None or self.value <= high)

    def change(self, answer: Any, value: int, expected: Any) -> None:
        """Compare answer and events of a command that should make the value `value`."""
        told = []
        if not self.low <= value <= self.high:
            expected = OutOfBounds
        elif value != self.value:
            index, old, self.value = self.harness.index, self.value, value
            told = [
                Event(session, index, "changed", [value, old])
                for session in sorted(self.subscribers)
            ]
            woken = [waiter for waiter in self.waiters if self.fits(*waiter[2:])]
            told += [
                Event(session, index, "reached", [request, value], keep=True)
                for session, request, _, _ in woken
            ]
            self.waiters = [waiter for waiter in self.waiters if waiter not in woken]
        assert answer == expected
        assert self.harness.take() == told
        assert self.twin.take() == told

    @rule(n=NUMBERS)
    def add(self, n: int) -> None:
        answer = self.command("add", n)
        self.change(answer, self.value + n, [self.value + n, self.harness.index])

    @rule(value=NUMBERS)
    def set(self, value: int) -> None:
        self.change(self.command("set", value), value, self.harness.index)

    @rule(expected=NUMBERS, value=NUMBERS)
    def compare_and_set(self, expected: int, value: int) -> None:
        answer = self.command("compare_and_set", expected, value)
        if expected != self.value:
            assert answer is None
        else:
            self.change(answer, value, self.harness.index)

    @rule(
        session=SESSIONS,
        request=st.integers(1, 4),
        low=st.none() | NUMBERS,
        high=st.none() | NUMBERS,
    )
    def wait_for(self, session: int, request: int, low: int | None, high: int | None) -> None:
        answer = self.command("wait_for", request, low, high, session=session)
        least = max(self.low, self.low if low is None else low)
        most = min(self.high, self.high if high is None else high)
        if least > most:
            assert answer is OutOfBounds
        elif any(waiter[:2] == (session, request) for waiter in self.waiters):
            assert answer is BadCommand
        elif self.fits(low, high):
            assert answer == [self.value, self.harness.index]
        else:
            assert answer is None
            self.waiters.append((session, request, low, high))

    @rule(session=SESSIONS, request=st.integers(1, 4))
    def withdraw(self, session: int, request: int) -> None:
        left = [waiter for waiter in self.waiters if waiter[:2] != (session, request)]
        assert self.command("withdraw", request, session=session) is (left != self.waiters)
        self.waiters = left

    @rule(session=SESSIONS, on=st.booleans())
    def subscribe(self, session: int, on: bool) -> None:
        self.command("subscribe" if on else "unsubscribe", "prefix", "", session=session)
        (self.subscribers.add if on else self.subscribers.discard)(session)

    @rule(session=SESSIONS)
    def cut(self, session: int) -> None:
        for harness in (self.harness, self.twin):
            assert harness.cut(session) is (session in self.subscribers)
        self.subscribers.discard(session)

    @rule(session=SESSIONS)
    def end(self, session: int) -> None:
        """The session ends, and another one begins that the model gives the same number."""
        for harness in (self.harness, self.twin):
            harness.end(session)
            harness.ended.clear()
        self.waiters = [waiter for waiter in self.waiters if waiter[0] != session]
        self.subscribers.discard(session)

    @precondition(lambda self: self.harness.index % 3 == 0)
    @rule()
    def restart(self) -> None:
        self.harness.restart()

    @invariant()
    def state(self) -> None:
        assert self.harness.query(1, "get") == self.value
        described = self.harness.query(1, "describe")
        assert [line[:2] for line in described["waiting"]] == [
            [session, f"client-{session}"] for session, *_ in self.waiters
        ]
        assert [one for one, _ in described["watched_by"]] == sorted(self.subscribers)
        assert self.harness.digest() == self.twin.digest()
        untouched = self.value == (0 if self.low <= 0 <= self.high else self.low)
        idle = untouched and not self.waiters and not self.subscribers
        assert self.harness.machine.idle() is idle


CounterAgainstInt.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_against_an_int = CounterAgainstInt.TestCase


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"low": 2, "high": 1}, "bounds \\(2, 1\\): the lower one comes first"),
        ({"low": True}, "bounds \\(True, .*integers are needed"),
        ({"high": 1.5}, "integers are needed"),
        ({"high": 1 << 63}, "in 64 bits"),
        ({"minimum": 0}, "has low and high, not \\['minimum'\\]"),
    ],
)
def test_wrong_bounds_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CounterMachine(config)


def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_machine, "WAITERS_MAX", 2)
    harness = Harness(CounterMachine)
    harness.command(1, "wait_for", 1, 5, None)
    harness.command(1, "wait_for", 2, 5, None)
    with pytest.raises(LimitExceeded, match="2 wait for this counter already"):
        harness.command(1, "wait_for", 3, 5, None)
    assert harness.command(1, "wait_for", 3, 0, None) == [0, 4]  # satisfied: it does not wait
