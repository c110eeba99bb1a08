"""Rounds: numbered moments at which a leader asks its followers "am I still the leader?".

Pure: no I/O, no clock, no randomness.

Every append carries the newest round's number and every reply echoes it. A reply to round r proves
that its sender still followed this leader at some time AFTER r started. Reads (§6.4) and the lease
(§6.4.1) both rest on that one sentence:

- a read that arrived before round r started may be answered once a quorum has acknowledged r;
- a lease counts from the START of the newest round that a quorum has acknowledged, never from the
  arrival of the replies (bug C4):

    1. at 0.00 the leader sends a heartbeat; the followers get it at once and keep quiet until 0.50
    2. their replies take 0.20; counted from arrival, a lease of 0.40 would reach to 0.60
    3. at 0.51 a new leader is elected and writes; at 0.55 the old one would still serve reads

Numbers rise over the life of the process and replies are bound to a term, so a number never comes
to mean two rounds.
"""

from __future__ import annotations

import math


class Rounds:
    """The rounds of one leadership that can still matter, with their start times.

    - Start times rise with the numbers.
    - A round older than `horizon_s` is forgotten: no lease reaches that far.
    """

    __slots__ = ("_horizon_s", "_started", "newest")

    def __init__(self, newest: int, horizon_s: float) -> None:
        self.newest = newest
        self._horizon_s = horizon_s
        self._started: dict[int, float] = {}

    def start(self, now: float) -> int:
        """Begin the next round and return its number."""
        started = self._started
        while started:
            oldest = next(iter(started))
            if started[oldest] > now - self._horizon_s:
                break
            del started[oldest]
        self.newest += 1
        started[self.newest] = now
        return self.newest

    def sent_at(self, number: int) -> float:
        """Return when round `number` started; longest ago for one that is forgotten."""
        return self._started.get(number, -math.inf)
