"""The state that every part of consensus shares: term, vote, role, log, commit index.

Pure: no I/O, no clock, no randomness. Not a protocol: nothing here decides anything, it keeps the
rules that hold whoever decides. `Raft` (node.py) owns the one instance and hands it to the parts.

What is durable (term, vote, log) changes only through methods that also record the write, so memory
and the disk's orders cannot drift apart.
"""

from __future__ import annotations

import enum
from random import Random

from folkmoot.core.batch import FLAG_CONFIGURATION, Batch
from folkmoot.core.config import RaftConfig
from folkmoot.core.raft.effects import Effects, HardState, PrefixPoint
from folkmoot.core.raft.log import LogView
from folkmoot.core.raft.membership import Configuration, as_of, effective
from folkmoot.core.raft.trace import (
    Committed,
    Compacted,
    ConfigurationChanged,
    Installed,
    LeaderChanged,
    RoleChanged,
    TermRaised,
    Truncated,
)
from folkmoot.core.types import NodeId


class Role(enum.StrEnum):
    """What a server is at the moment (§3.3, §9.6). Learner and witness are no roles."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class State:
    """Shared state of one server.

    - The term never falls; the vote is cleared only when the term rises (bug A1, A6).
    - commit_index never falls, is a boundary of the log, and what is at or below it is never cut.
    - applied_index <= min(commit_index, durable index) (bug B9).
    - The log starts at or below applied_index, save from an install until the prefix is restored.
    - The configuration in force is the last one in the log, committed or not (§4.1), else `base`:
      the last one before the log starts.
    - `now` is the newest time that was given: it never runs backwards.
    """

    __slots__ = (
        "applied_index",
        "base",
        "commit_index",
        "config",
        "configuration",
        "effects",
        "leader",
        "log",
        "node_id",
        "now",
        "rng",
        "role",
        "term",
        "voted_for",
    )

    def __init__(
        self,
        *,
        node_id: NodeId,
        config: RaftConfig,
        configuration: Configuration,
        hard_state: HardState,
        log: LogView,
        committed_index: int,
        rng: Random,
        now: float,
    ) -> None:
        assert hard_state.term >= log.last_term, (
            f"term {hard_state.term} with a log that ends in term {log.last_term} (bug A2)"
        )
        known = max(committed_index, log.start_index)
        assert log.is_boundary(known), (
            f"committed up to {known}, no boundary of a log {log.start_index}..{log.last_index}"
        )
        self.node_id = node_id
        self.config = config
        self.base = configuration
        self.configuration = effective(configuration, log.configuration_batches)
        self.log = log
        self.rng = rng
        self.now = now
        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.role = Role.FOLLOWER
        self.leader: NodeId | None = None
        self.commit_index = self.applied_index = known
        self.effects = Effects(log.last_index)
        self.effects.commit_told = known
        log.applied(known)

    # -- term, vote, role ----------------------------------------------------------------------

    def raise_term(self, term: int, voted_for: NodeId | None = None) -> None:
        """Enter a higher term, with or without a vote in it."""
        assert term > self.term, f"term {term} after {self.term}"
        self.term = term
        self.voted_for = voted_for
        self.effects.write_hard_state(HardState(term, voted_for))
        self.effects.trace.append(TermRaised(term))

    def vote_for(self, candidate: NodeId) -> None:
        """Give the vote of this term, once (§3.4)."""
        assert self.voted_for in (None, candidate), (
            f"a vote for {candidate} in term {self.term} after one for {self.voted_for}"
        )
        if self.voted_for is None:
            self.voted_for = candidate
            self.effects.write_hard_state(HardState(self.term, candidate))

    def set_role(self, role: Role) -> None:
        """Change the role, and say so when it differs."""
        if role is not self.role:
            self.role = role
            self.effects.trace.append(RoleChanged(role, self.term))

    def set_leader(self, leader: NodeId | None) -> None:
        """Follow another leader, or none; the vote is not touched by that."""
        if leader != self.leader:
            self.leader = leader
            self.effects.trace.append(LeaderChanged(leader, self.term))

    # -- log -----------------------------------------------------------------------------------

    def append(self, batch: Batch) -> None:
        """Append to the log and to the pending write."""
        assert batch.term <= self.term, f"batch of term {batch.term} in term {self.term}"
        self.log.append(batch)
        self.effects.write_batch(batch)
        if batch.flags & FLAG_CONFIGURATION:
            self._refresh_configuration()

    def truncate_after(self, index: int) -> None:
        """Cut a tail that conflicts with the leader's log (§3.5)."""
        if index < self.commit_index:
            # Bug B5: committed entries are never cut. Whatever led here, going on loses data.
            raise AssertionError(
                f"cut after {index} would lose committed entries up to {self.commit_index}"
            )
        last = self.log.last_index
        self.log.truncate_after(index)
        self.effects.write_truncation(index)
        self.effects.trace.append(Truncated(index, last))
        self._refresh_configuration()

    def commit_to(self, index: int) -> None:
        """Raise the known commit index."""
        assert self.commit_index < index <= self.log.last_index, (
            f"commit of {index} after {self.commit_index} in a log up to {self.log.last_index}"
        )
        self.commit_index = index
        self.effects.trace.append(Committed(index))

    def compact(self, index: int) -> None:
        """Let go of the log up to `index`, a boundary: the compacted prefix has it."""
        # An entry that is not in the state yet would be in no prefix that is made of the state.
        assert index <= self.applied_index, f"start at {index}, applied is {self.applied_index}"
        self.base = as_of(index, self.base, self.log.configuration_batches)
        self.log.compact_to(index)
        self.effects.trace.append(Compacted(index, self.log.start_term))

    def install(self, point: PrefixPoint, configuration: Configuration) -> None:
        """Discard the log: it starts behind `point`, with `configuration` as the base (§5.1)."""
        # Figure 5.3, bug E3: what is committed here is never replaced by something older.
        assert self.commit_index < point.index, (
            f"install of {point.index}, committed is {self.commit_index}"
        )
        assert point.term <= self.term, f"install of term {point.term} in term {self.term}"
        last = self.log.last_index
        self.log.reset(point.index, point.term, point.log_time)
        self.base, self.commit_index = configuration, point.index
        self.effects.write_install(point)
        self.effects.trace.append(Installed(point.index, point.term, last))
        self._refresh_configuration()

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Return whether a log that ends so is at least as complete as this (§3.6.1, bug A4)."""
        return (last_term, last_index) >= (self.log.last_term, self.log.last_index)

    def _refresh_configuration(self) -> None:
        configuration = effective(self.base, self.log.configuration_batches)
        if configuration != self.configuration:
            self.configuration = configuration
            self.effects.trace.append(
                ConfigurationChanged(
                    configuration.index,
                    tuple(sorted(configuration.voters)),
                    tuple(sorted(configuration.outgoing)),
                    tuple(sorted(configuration.learners)),
                )
            )
