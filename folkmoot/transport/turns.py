"""Callbacks in turns of the event loop, on any backend: what in-memory links move by.

On asyncio the event loop does it; on trio one task runs what is due, turn by turn. Callbacks run
in the order in which they were asked for, those asked for by a callback one turn later, so a run
is as deterministic as the event loop is. Time is the event loop's, so a mocked clock counts.

Callbacks must not raise.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio

from folkmoot.transport.backend import running_backend
from folkmoot.transport.shelter import Shelter

Callback = Callable[[], None]


class Turns(Protocol):
    """Where callbacks wait for their turn."""

    def now(self) -> float:
        """Read the event loop's clock, in seconds."""

    def call_soon(self, callback: Callback) -> None:
        """Call in the next turn."""

    def call_at(self, when: float, callback: Callback) -> None:
        """Call when the clock shows `when`."""


def start_turns(tasks: Shelter) -> Turns:
    """Return the running backend's turns; what they need lives in `tasks`."""
    if running_backend() == "asyncio":
        return _AsyncioTurns()
    turns = _TaskTurns()
    tasks.start_soon(turns.run)
    return turns


class _AsyncioTurns:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self._loop = loop

    def call_soon(self, callback: Callback) -> None:
        self._loop.call_soon(callback)

    def call_at(self, when: float, callback: Callback) -> None:
        self._loop.call_at(when, callback)


class _TaskTurns:
    def __init__(self) -> None:
        self._ready: deque[Callback] = deque()
        self._timed: list[tuple[float, int, Callback]] = []
        self._asked = 0  # ties between equal times: first come, first served
        self._wake = anyio.Event()

    def now(self) -> float:
        return anyio.current_time()

    def call_soon(self, callback: Callback) -> None:
        self._ready.append(callback)
        self._wake.set()

    def call_at(self, when: float, callback: Callback) -> None:
        self._asked += 1
        heapq.heappush(self._timed, (when, self._asked, callback))
        self._wake.set()

    async def run(self) -> None:
        """Run callbacks until cancelled."""
        while True:
            now = self.now()
            while self._timed and self._timed[0][0] <= now:
                self._ready.append(heapq.heappop(self._timed)[2])
            for _ in range(len(self._ready)):
                self._ready.popleft()()
            if self._ready:
                await anyio.lowlevel.checkpoint()
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        self._wake = anyio.Event()
        until = self._timed[0][0] if self._timed else math.inf
        with anyio.CancelScope(deadline=until):
            await self._wake.wait()
