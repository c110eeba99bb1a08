"""The clock of a client's deadlines: the event loop's, and the time in which the machine slept.

`anyio.current_time` answers only inside the event loop. What is returned here goes by the same
clock, a mocked one too, and may be called from any thread: guarded code in threads asks it whether
its time is up.

The event loop's clock stands still while the machine is suspended, and the cluster's does not: a
laptop that slept for an hour would believe in its locks when it wakes (bugs C8). So the time in
suspension is added, where the system tells it (CLOCK_BOOTTIME).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from folkmoot.transport.backend import running_backend

_NOTICEABLE_S = 0.05
"""The two clocks are read one after the other; a smaller change is taken for that."""


class Suspension:
    """How long the machine has been suspended since it was started, in seconds. Never falls."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._known_s = 0.0

    def __call__(self) -> float:
        """Return the time in suspension until now."""
        found_s = self._read()
        if found_s > self._known_s + _NOTICEABLE_S:
            self._known_s = found_s
        return self._known_s


def _boot_less_monotonic() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


SUSPENDED = Suspension(_boot_less_monotonic if hasattr(time, "CLOCK_BOOTTIME") else lambda: 0.0)


def loop_clock(suspended: Callable[[], float] = SUSPENDED) -> Callable[[], float]:
    """Return the clock of the running event loop. Raises UsageError where none runs.

    Its values compare with one another only, not with `anyio.current_time`.
    """
    if running_backend() == "asyncio":
        clock = asyncio.get_running_loop().time
    else:
        clock = sys.modules["trio"].lowlevel.current_clock().current_time
    return lambda: clock() + suspended()
