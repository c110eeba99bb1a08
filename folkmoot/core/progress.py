"""How far what takes long is: restoring the state, receiving another server's prefix.

What it is: the one place that says it, in the log now and then, and to whoever draws a bar
(`Reporter.present`; he may disable the logger). What it is not: exact; it is for people.

Who drives it: `core/server.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

log = logging.getLogger("folkmoot.progress")

SAY_S = 2.0
"""What takes long says so this often in the log."""


@attrs.frozen
class Progress:
    """How far one thing is."""

    what: str
    done: int
    total: int | None
    """None: nobody knows yet."""
    unit: str
    """"bytes" or "entries"."""

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.what}: {self.done:,}{of} {self.unit}"


def of_prefix(receiving: Mapping[str, Any] | None) -> Progress | None:
    """Say how far a prefix is, of which `PrefixExchange.status` tells this."""
    if receiving is None:
        return None
    what = f"the prefix up to {receiving['index']}"
    if receiving["phase"] == "receiving":
        done, total = receiving["received_bytes"], receiving["size_bytes"]
        return Progress(f"receiving {what}", done, total, "bytes")
    done, total = receiving["restored_entries"], receiving["live_entries"]
    return Progress(f"restoring {what}", done, total, "entries")


class Reporter:
    """Takes what is done, as often as one likes, and says it seldom."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.present: Progress | None = None
        """What takes long now."""
        self._clock = clock
        self._say_at = 0.0

    def report(self, progress: Progress | None) -> None:
        """This far it is; None: nothing takes long any more."""
        if progress is None or self.present is None:
            self._say_at = self._clock() + SAY_S
        self.present = progress
        if progress is not None and self._clock() >= self._say_at:
            self._say_at = self._clock() + SAY_S
            log.info("%s", progress)
