"""What happens to prefixes that are sent and received, as data: a server logs it.

Pure: no I/O, no clock, no randomness. Not needed for correctness.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.types import NodeId


@attrs.frozen
class PrefixBegun(TraceEvent):
    """A prefix is being received: this much of it is here already."""

    severity: ClassVar[str] = "info"
    index: int
    leader: NodeId
    size_bytes: int
    received_bytes: int


@attrs.frozen
class PrefixDelayed(TraceEvent):
    """The disk has no room for a prefix; it is tried again before long."""

    severity: ClassVar[str] = "warning"
    index: int
    why: str


@attrs.frozen
class PrefixDiscarded(TraceEvent):
    """A prefix that was received is not what it should be; what is damaged is sent anew."""

    severity: ClassVar[str] = "warning"
    why: str


@attrs.frozen
class PrefixRefused(TraceEvent):
    """A prefix was damaged again when it was sent anew: look at the disk of who sends it."""

    severity: ClassVar[str] = "error"
    index: int
    leader: NodeId


@attrs.frozen
class PrefixTaken(TraceEvent):
    """This server serves from another server's prefix now."""

    severity: ClassVar[str] = "info"
    index: int
