"""The small shared vocabulary: ids, consistency levels, connection states.

Ground layer: imports nothing of the package and may be imported by every layer.
"""

from __future__ import annotations

import datetime
import enum
from typing import NewType

Duration = float | datetime.timedelta
"""Seconds, or a timedelta: what every `timeout=` takes."""


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    if isinstance(duration, datetime.timedelta):
        return duration.total_seconds()
    return duration


NodeId = NewType("NodeId", int)
"""A member's stable id, a positive integer.

Never an address, never used again for another member.
"""

SessionId = NewType("SessionId", int)
"""The index of the entry that opened the session."""

ResourceId = NewType("ResourceId", int)
"""The index of the entry that created the resource."""


class Consistency(enum.StrEnum):
    """What a read promises (dissertation §6.4)."""

    LINEARIZABLE = "linearizable"
    """Sees every write that was acknowledged before the read began. Needs no clock. The default."""
    LEASE = "lease"
    """As linearizable while clocks drift less than the configured bound; served without a round."""
    SEQUENTIAL = "sequential"
    """From any server; never behind this session's own writes, reads and events."""


class ConnectionState(enum.StrEnum):
    """What a client knows of its session."""

    CONNECTED = "connected"
    SUSPENDED = "suspended"
    """No contact with a leader.

    Whether grants are still owned is uncertain until the local deadline.
    """
    EXPIRED = "expired"
    """The session has ended, or may have: every grant of it is lost."""
    CLOSED = "closed"
