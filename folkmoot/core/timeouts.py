"""The timeouts of all callers in one heap, swept by the client's loop.

A timeout scope per operation would cost as much as the operation (performance: what decides).
"""

from __future__ import annotations

import heapq
import itertools
from typing import Protocol

from folkmoot.core.connector import NEVER

_SWEEP_AT = 1024


class Pending(Protocol):
    """Something that a caller waits for with a timeout."""

    @property
    def done(self) -> bool:
        """Whether somebody has been told."""

    def run_out(self) -> None:
        """The caller's time has run out."""


class Timeouts:
    """Who is told when.

    - What is done stays here until its time, but never makes up more than about half.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Pending]] = []
        self._numbers = itertools.count()
        self._sweep_at = _SWEEP_AT

    @property
    def due(self) -> float:
        """When to run next; infinity while nobody waits."""
        return self._heap[0][0] if self._heap else NEVER

    def add(self, at: float, pending: Pending) -> bool:
        """Call `pending.run_out()` at that time; tell whether this is the earliest now."""
        heap = self._heap
        if len(heap) >= self._sweep_at:
            heap[:] = [entry for entry in heap if not entry[2].done]
            heapq.heapify(heap)
            self._sweep_at = max(_SWEEP_AT, 2 * len(heap))
        entry = (at, next(self._numbers), pending)
        heapq.heappush(heap, entry)
        return heap[0] is entry

    def run(self, now: float) -> None:
        """Tell everybody whose time has come, and who is not done."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            pending = heapq.heappop(heap)[2]
            if not pending.done:
                pending.run_out()
