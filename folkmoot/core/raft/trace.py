"""What the core did, as data: small frozen events that a server logs and tests print.

Pure: no I/O, no clock, no randomness. Not the log, and not needed for correctness: a driver may
throw every event away. The core itself never logs.

Events are rare beside the work (an election, a conflict, a transfer); only `Committed` comes once a
turn, so it is the one that must stay small.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from folkmoot.core.types import NodeId


@attrs.frozen
class TraceEvent:
    """Base of every event. As text: the class's name, then field=value."""

    severity: ClassVar[str] = "debug"
    """How a server logs it."""

    def __str__(self) -> str:
        values = [f"{f.name}={getattr(self, f.name)}" for f in attrs.fields(type(self))]
        return " ".join([type(self).__name__, *values])


@attrs.frozen
class RoleChanged(TraceEvent):
    """This server is now follower, pre-candidate, candidate or leader."""

    role: str
    term: int


@attrs.frozen
class LeaderChanged(TraceEvent):
    """This server now follows `leader`, or knows none."""

    leader: NodeId | None
    term: int


@attrs.frozen
class TermRaised(TraceEvent):
    """The term rose, and with it the vote was cleared."""

    term: int


@attrs.frozen
class VoteAnswered(TraceEvent):
    """A (pre-)vote was granted or refused, and why."""

    candidate: NodeId
    term: int
    pre: bool
    granted: bool
    reason: str


@attrs.frozen
class Committed(TraceEvent):
    """The known commit index rose to `index`."""

    index: int


@attrs.frozen
class Truncated(TraceEvent):
    """Entries after `index`, which were never committed, were cut; the log had ended at `last`."""

    index: int
    last: int


@attrs.frozen
class Compacted(TraceEvent):
    """The log starts behind `index` now; what came before is in the compacted prefix only."""

    index: int
    term: int


@attrs.frozen
class Installed(TraceEvent):
    """The compacted prefix up to `index` replaces the log, which had ended at `last`."""

    index: int
    term: int
    last: int


@attrs.frozen
class ProgressChanged(TraceEvent):
    """The leader now probes, pipelines to, or must send the prefix to `peer`."""

    peer: NodeId
    state: str
    match_index: int
    next_index: int


@attrs.frozen
class ConfigurationChanged(TraceEvent):
    """The configuration of entry `index` is in force (0: the base)."""

    index: int
    voters: tuple[NodeId, ...]
    outgoing: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]


@attrs.frozen
class QuorumLost(TraceEvent):
    """The leader heard no quorum for an election timeout, and steps down (§6.2)."""

    term: int


@attrs.frozen
class TransferChanged(TraceEvent):
    """A leadership transfer started, told its target to campaign, or was given up (§3.10)."""

    target: NodeId
    stage: str


@attrs.frozen
class ReadsLost(TraceEvent):
    """Reads that waited for an index end without one."""

    count: int
    reason: str


@attrs.frozen
class MessageIgnored(TraceEvent):
    """A message had no effect, and why."""

    sender: NodeId
    message: str
    reason: str
