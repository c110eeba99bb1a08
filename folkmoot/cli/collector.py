"""Python's cycle collector in a server's process: no pauses that grow with the state.

A full collection visits every object that is reachable from a container, a million keys of a map
among them: a tenth of a second and more in which the loop stands still. The server makes next to no
cycles (some 900 connections left 25 objects), so it looks for them rarely; and what was restored at
the start is set aside and never looked at again.

Only for a process that is all ours. An embedded node leaves the collector to the application.
"""

from __future__ import annotations

import gc

FULL_EVERY = 1000
"""Full collections come after so many of the middle generation: some millions of objects made and
not freed."""


def collect_rarely() -> None:
    """Call it before the state is restored."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_EVERY)


def set_aside() -> None:
    """Set everything aside that is there now. Call it when the state has been restored."""
    gc.collect()
    gc.freeze()
