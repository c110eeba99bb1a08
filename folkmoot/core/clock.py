"""The event loop's clock, for threads too.

`anyio.current_time` answers only inside the event loop. What is returned here goes by the same
clock, and may be called from any thread: guarded code in threads asks it whether its time is up.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from folkmoot.transport.backend import running_backend


def loop_clock() -> Callable[[], float]:
    """Return the clock of the running event loop. Raises UsageError where none runs."""
    if running_backend() == "asyncio":
        return asyncio.get_running_loop().time
    clock: Callable[[], float] = sys.modules["trio"].lowlevel.current_clock().current_time
    return clock
