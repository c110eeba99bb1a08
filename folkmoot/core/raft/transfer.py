"""Leadership transfer (§3.10): stop accepting, bring the target up to date, tell it to campaign.

Pure: no I/O, no clock, no randomness. The leader (leader.py) asks it whether proposals may come and
whether its lease may be used.

The target's election passes over stickiness, on which leases rest, so the lease goes first, and
once TimeoutNow has left it does not come back in this term, even if the attempt is given up (bug
A14):

    1. A leads term 5, sends TimeoutNow to B, hears nothing for an election timeout, gives up
    2. A accepts proposals again; heartbeats are acknowledged; were the lease to hold again ...
    3. the delayed TimeoutNow reaches B, which wins term 6 by votes that skip stickiness, and writes
    4. ... A would serve stale reads until it hears of term 6

Proposals are safe in step 2, for a commit needs a quorum; default reads are, too.
"""

from __future__ import annotations

import math

from folkmoot.core.errors import Unavailable, UsageError
from folkmoot.core.raft.messages import TimeoutNow
from folkmoot.core.raft.progress import Progress
from folkmoot.core.raft.replication import Replication
from folkmoot.core.raft.state import State
from folkmoot.core.raft.trace import TransferChanged
from folkmoot.core.types import NodeId


class Transfer:
    """The attempts of one leadership, at most one at a time.

    - While one is under way nothing is proposed, and it ends within an election timeout.
    - TimeoutNow goes only to a target that has the whole log durable.
    """

    __slots__ = ("_replication", "_state", "_told", "deadline", "lease_is_void", "target")

    def __init__(self, state: State, replication: Replication) -> None:
        self._state = state
        self._replication = replication
        self.target: NodeId | None = None
        """The successor while an attempt is under way."""
        self.deadline = math.inf
        self._told = False
        self.lease_is_void = False
        """An election that passes over stickiness may come at any time, until this term ends."""

    def start(self, target: NodeId | None) -> None:
        """Begin, unless the same is under way. Raises UsageError or Unavailable."""
        state = self._state
        if self.target is not None:
            if target in (None, self.target):
                return
            raise Unavailable(f"leadership is being transferred to node {self.target}")
        if target is None:
            target = self._best_target()
        elif target == state.node_id:
            return
        elif target not in self._replication.progress or not state.configuration.may_lead(target):
            raise UsageError(f"node {target} cannot lead: it is no voter that keeps machines")
        self.target = target
        self.deadline = state.now + state.config.election_timeout_s
        self._told = False
        state.effects.trace.append(TransferChanged(target, "started"))
        self.advance(self._replication.progress[target])

    def _best_target(self) -> NodeId:
        """Return the voter that is furthest along among those heard of lately."""
        state = self._state
        silent_since = state.now - state.config.election_timeout_s
        able = [
            progress
            for peer, progress in sorted(self._replication.progress.items())
            if state.configuration.may_lead(peer) and progress.contact_at > silent_since
        ]
        if not able:
            raise Unavailable("no other voter was heard of within an election timeout")
        return max(able, key=lambda progress: progress.match_index).peer

    def advance(self, progress: Progress) -> None:
        """Tell the target to campaign, once it has everything."""
        state = self._state
        if progress.peer != self.target or progress.match_index < state.log.last_index:
            return
        if not self._told:
            self._told = True
            state.effects.trace.append(TransferChanged(progress.peer, "told"))
        self.lease_is_void = True
        state.effects.send(progress.peer, TimeoutNow(state.term))

    def tick(self) -> None:
        """Give up what took too long; then proposals are accepted again."""
        if self.target is not None and self._state.now >= self.deadline:
            self._state.effects.trace.append(TransferChanged(self.target, "given up"))
            self.target, self.deadline = None, math.inf

    def repeat(self) -> None:
        """At each heartbeat: say it again, for messages get lost."""
        if self.target is not None:
            self.advance(self._replication.progress[self.target])
