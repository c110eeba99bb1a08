"""A rate of bytes: how much may be sent now.

Pure: no I/O, no clock, no randomness. Whoever sends prefixes has one: to followers
(`prefix_sender`), into backups (`backups`).
"""

from __future__ import annotations

BURST_S = 0.05
"""What the rate allows may be saved up for so long."""


class Allowance:
    """So many bytes per second, with a small burst.

    - It may be overdrawn by one item, and is then in debt: so an item may be larger than a burst.
    """

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._saved_bytes = 0.0
        self._at = 0.0

    def refill(self, now: float) -> None:
        """Let time pass."""
        passed_s = min(max(now - self._at, 0.0), BURST_S)
        burst = max(self._bytes_per_s * BURST_S, 1.0)
        self._saved_bytes = min(self._saved_bytes + passed_s * self._bytes_per_s, burst)
        self._at = now

    @property
    def is_left(self) -> bool:
        """Whether another item may be sent."""
        return self._saved_bytes > 0

    def take(self, size_bytes: int) -> None:
        """Note that an item is sent."""
        self._saved_bytes -= size_bytes
