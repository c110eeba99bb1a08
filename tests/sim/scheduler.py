"""Virtual time: a heap of events, timers that can be moved, and clocks that run at their own rate.

Nothing here is random and nothing sleeps. Events of equal time happen in the order in which they
were scheduled.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from typing import Any, TypeVar

R = TypeVar("R")
NEVER = float("inf")
_SAME_TIME_MAX = 20_000
"""So many events without time passing are a loop that spins."""
_EVENTS_MAX, _EVENTS_PER_S_MAX = 20_000, 5_000
"""More events than this, and so many per second, are a storm: everybody answers everything (B11).
An ordinary run has a tenth of that, the busiest a quarter."""


class Scheduler:
    """All events to come. `now` is the true time, which no simulated program can see."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._same_time = 0

    def at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        """Call `act(*args)` at a time, or now if that has passed."""
        self._number += 1
        heapq.heappush(self._heap, (max(when, self.now), self._number, act, args))

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        """Call `act(*args)` after so long."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._number, act, args))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let events happen up to a time, or until `done()`; say whether it was done."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, act, args = heapq.heappop(heap)
            if when > self.now:
                self.now, self._same_time = when, 0
            else:
                self._same_time += 1
                assert self._same_time < _SAME_TIME_MAX, f"time stands still at {when}: {act}"
            self.events += 1
            assert self.events <= _EVENTS_MAX + _EVENTS_PER_S_MAX * when, (
                f"{self.events} events in {when:.1f} s: messages beget messages"
            )
            act(*args)
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return False


class Timer:
    """One wake-up of somebody, which moves about. Moving it later costs nothing."""

    __slots__ = ("_act", "_due", "_pending", "_scheduler")

    def __init__(self, scheduler: Scheduler, act: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._act = act
        self._due = NEVER
        self._pending = NEVER
        """The earliest time at which the heap will call `_fire`."""

    def set(self, when: float) -> None:
        """Wake up then, and not at any time set before."""
        self._due = when
        if when < self._pending:
            self._pending = when
            self._scheduler.at(when, self._fire, when)

    def _fire(self, when: float) -> None:
        if when != self._pending:
            return  # an earlier one was set since, and took over
        self._pending = NEVER
        if self._due <= self._scheduler.now:
            self._due = NEVER
            self._act()
        elif self._due < NEVER:
            self.set(self._due)


class Clock:
    """A monotonic clock that starts anywhere and runs at `rate` seconds per true second."""

    def __init__(self, scheduler: Scheduler, rate: float, start: float) -> None:
        self.rate = rate
        self._scheduler = scheduler
        self._true, self._local = scheduler.now, start

    def now(self) -> float:
        """What the clock shows."""
        return self._local + (self._scheduler.now - self._true) * self.rate

    def true(self, local: float) -> float:
        """The true time at which it will show `local`; a moment later, never earlier."""
        if local == NEVER:
            return NEVER
        return self._true + (local - self._local) / self.rate + 1e-9

    def set_rate(self, rate: float) -> None:
        """Run at another rate from now on."""
        self._local, self._true = self.now(), self._scheduler.now
        self.rate = rate


def end_of(steps: Generator[Any, None, R]) -> R:
    """Take all steps at once; return what comes of them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: R = end.value
            return found
