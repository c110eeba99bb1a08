"""A leader's time in office: what it proposes, commits and confirms, and when it steps down.

Pure: no I/O, no clock, no randomness. One `Leader` exists while this server leads and is thrown
away whole when it does not, so nothing of one term can leak into the next (bug A6). Who gets which
batches is replication's business (replication.py).

A leader never counts copies of an entry of an earlier term (§3.6.2). Figure 8, bug B1:

    1. S1 leads term 2, stores entry 2 on S1 and S2; S5 leads term 3, stores another entry 2 on S5
    2. S1 leads term 4 and brings its old entry to S3: a majority holds it, yet S5 may still win
       term 5 with the votes of S2, S3, S4 (its last term 3 is above 2) and replace it
    3. so it counts only from the first entry of term 4 on: with that on a majority S5 cannot win

Source: §3.6, §6.2 (check quorum), §6.4 (reads, lease), §10.2.1 (writing in parallel).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from folkmoot.core.batch import Batch, Group, Kind, encode_batch
from folkmoot.core.errors import Overloaded, Unavailable
from folkmoot.core.raft.messages import AppendReply
from folkmoot.core.raft.progress import Progress, ProgressState
from folkmoot.core.raft.quorum import committed, quorum_contact
from folkmoot.core.raft.reads import LeaderReads
from folkmoot.core.raft.replication import Replication
from folkmoot.core.raft.rounds import Rounds
from folkmoot.core.raft.state import State
from folkmoot.core.raft.trace import QuorumLost
from folkmoot.core.raft.transfer import Transfer
from folkmoot.core.types import NodeId


class Leader:
    """One leadership.

    - Its own log is only appended to (leader append-only, §3.2).
    - It counts itself when its own disk has the entry, not before (bug B8), and only as a voter.
    - commit_index rises only to an entry of its own term (§3.6.2).
    - Log time rises with its own clock from where the log left it, never with a wall clock.
    """

    __slots__ = (
        "_base_log_time",
        "_heartbeat_at",
        "_lease_s",
        "_quorum_check_at",
        "_replication",
        "_rounds",
        "_since",
        "_state",
        "_transfer",
        "_uncommitted",
        "_uncommitted_bytes",
        "initialize_index",
        "reads",
    )

    def __init__(self, state: State, newest_round: int) -> None:
        config = state.config
        self._state = state
        self._since = state.now
        self._base_log_time = state.log.last_log_time
        self._rounds = Rounds(newest_round, config.election_timeout_s)
        self._rounds.start(state.now)
        self._replication = Replication(state, self._rounds)
        self._transfer = Transfer(state, self._replication)
        self.reads = LeaderReads(state)
        self._heartbeat_at = state.now + config.heartbeat_s
        self._quorum_check_at = state.now + config.election_timeout_s
        # Bug C5: even the fastest follower's clock must not end its silence before this lease ends.
        drift = config.clock_drift
        self._lease_s = config.election_timeout_s * (1 - drift) / (1 + drift)
        self._uncommitted: deque[tuple[int, int]] = deque()
        """(last index, bytes) of each batch proposed in this term and not yet committed."""
        self._uncommitted_bytes = 0
        # §6.4, bug B2: an entry of the own term, without which nothing earlier can commit.
        self.initialize_index = self._append([Group(Kind.INITIALIZE, 1, b"")]).last_index

    # -- proposing and committing --------------------------------------------------------------

    def propose(self, groups: Sequence[Group]) -> Batch:
        """Append one batch. Raises Unavailable during a transfer, Overloaded beyond the limit."""
        if self._transfer.target is not None:
            raise Unavailable(f"leadership is being transferred to node {self._transfer.target}")
        limit = self._state.config.uncommitted_bytes_max
        if self._uncommitted_bytes >= limit:
            raise Overloaded(
                f"uncommitted_bytes_max: {self._uncommitted_bytes} bytes are not yet committed, "
                f"the limit is {limit}"
            )
        return self._append(groups)

    def _append(self, groups: Sequence[Group]) -> Batch:
        state = self._state
        batch = encode_batch(state.term, state.log.last_index + 1, self.log_time(), groups)
        state.append(batch)
        self._uncommitted.append((batch.last_index, len(batch.data)))
        self._uncommitted_bytes += len(batch.data)
        return batch

    def log_time(self) -> int:
        """Return the log time of an entry made now, in ms: the log's last plus time in office."""
        return self._base_log_time + int((self._state.now - self._since) * 1000)

    def advance_commit(self) -> None:
        """Commit what a quorum has stored, if it is of this term (§3.6.2)."""
        state = self._state
        match = {peer: p.match_index for peer, p in self._replication.progress.items()}
        # §10.2.1, bug B8: the own copy counts when the own disk has it.
        match[state.node_id] = state.effects.durable_index
        index = committed(match, state.configuration.quorums)
        # §3.6.2, bug B1: only an entry of the own term commits by counting; the rest follow it.
        if index <= state.commit_index or state.log.term_at(index) != state.term:
            return
        state.commit_to(index)
        uncommitted = self._uncommitted
        while uncommitted and uncommitted[0][0] <= index:
            self._uncommitted_bytes -= uncommitted.popleft()[1]

    # -- replies -------------------------------------------------------------------------------

    def handle_reply(self, sender: NodeId, reply: AppendReply) -> None:
        """Take a follower's answer of this term. Raises RemoteProtocolError on a forged one."""
        replication = self._replication
        progress = replication.recognize(sender, reply)
        if progress is None:
            return
        if replication.learn_contact(progress, reply) and self.reads.is_asking:
            self._confirm_reads()
        if replication.learn_match(progress, reply):
            if progress.match_index > self._state.commit_index:
                self.advance_commit()
            if self._transfer.target is not None:
                self._transfer.advance(progress)

    def log_read(self, peer: NodeId, batches: Sequence[Batch]) -> None:
        """Take batches for `peer` that were read back from storage."""
        self._replication.log_read(peer, batches)

    # -- the compacted prefix ------------------------------------------------------------------

    def log_compacted(self) -> None:
        """Learn that the log starts later than before."""
        self._replication.log_compacted()

    def followers_below_log(self) -> list[NodeId]:
        """Return whom only the prefix can help, of those heard from within an election timeout."""
        return [p.peer for p in self._reachable(self._state.now) if p.state is ProgressState.PREFIX]

    def needs_prefix(self, peer: NodeId) -> bool:
        """Return whether only the prefix can help `peer`, heard from or not."""
        progress = self._replication.progress.get(peer)
        return progress is not None and progress.state is ProgressState.PREFIX

    def reachable_match(self, now: float) -> int | None:
        """Return the lowest match index of those heard from within an election timeout, if any.

        Whom only the prefix can help does not count: the log can do nothing for him.
        """
        matches = [
            p.match_index for p in self._reachable(now) if p.state is not ProgressState.PREFIX
        ]
        return min(matches, default=None)

    def _reachable(self, now: float) -> list[Progress]:
        silent_since = now - self._state.config.election_timeout_s
        return [p for p in self._replication.progress.values() if p.contact_at > silent_since]

    # -- contact, lease, reads -----------------------------------------------------------------

    @property
    def newest_round(self) -> int:
        """The newest round's number: the next leadership of this process counts on from it."""
        return self._rounds.newest

    def lease_until(self) -> float:
        """Return when the lease ends (§6.4.1); longest ago when there is none."""
        state = self._state
        if (
            self._transfer.target is not None
            or self._transfer.lease_is_void
            or state.applied_index < max(self.initialize_index, state.commit_index)
        ):
            # The last: what a follower has applied and answered, this server must have applied,
            # too, though its own disk may be the slowest.
            return -math.inf
        sent = {peer: p.acked_sent_at for peer, p in self._replication.progress.items()}
        sent[state.node_id] = math.inf
        # Bug C4: from when a quorum's newest acknowledged round was SENT.
        return quorum_contact(sent, state.configuration.quorums) + self._lease_s

    def is_quorum_lost(self) -> bool:
        """Return whether no quorum was heard for an election timeout (§6.2, bug A10)."""
        state = self._state
        if state.now < self._quorum_check_at:
            return False
        contact = {peer: p.contact_at for peer, p in self._replication.progress.items()}
        contact[state.node_id] = state.now
        heard_at = quorum_contact(contact, state.configuration.quorums)
        self._quorum_check_at = heard_at + state.config.election_timeout_s
        if state.now < self._quorum_check_at:
            return False
        state.effects.trace.append(QuorumLost(state.term))
        return True

    def _confirm_reads(self) -> None:
        acked = {peer: p.acked_round for peer, p in self._replication.progress.items()}
        acked[self._state.node_id] = self._rounds.newest
        number = committed(acked, self._state.configuration.quorums)
        for asker, index in self.reads.confirm(number):
            progress = self._replication.progress.get(asker)
            if progress is not None and progress.sent_commit < index:
                progress.due = True  # or it would wait for the next heartbeat to apply that far

    # -- time ----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` must be called next."""
        return min(self._heartbeat_at, self._quorum_check_at, self._transfer.deadline)

    def tick(self) -> None:
        """Start a heartbeat when one is due, and give a transfer up that took too long."""
        state = self._state
        self._transfer.tick()
        if state.now >= self._heartbeat_at:
            self._heartbeat_at = state.now + state.config.heartbeat_s
            self._rounds.start(state.now)
            self._replication.pace()
            self._replication.ask_everybody()
            self._transfer.repeat()

    def transfer(self, target: NodeId | None) -> None:
        """Start to hand over (§3.10). Raises UsageError or Unavailable when that cannot be."""
        self._transfer.start(target)

    def flush(self) -> None:
        """Build the messages of this turn."""
        state = self._state
        # §6.4, bug C1: reads wait until an entry of the own term is committed.
        if self.reads.is_waiting and state.commit_index >= self.initialize_index:
            self.reads.begin(self._rounds.start(state.now))
            self._replication.ask_everybody()
            self._confirm_reads()  # at once, where this server is a quorum by itself
        self._replication.flush()

    # -- for operators -------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to know of this leadership, as plain data."""
        left_s = min(self.lease_until(), self._state.now + self._lease_s) - self._state.now
        target = self._transfer.target
        return {
            "progress": self._replication.status(),
            "lease_left_s": round(max(0.0, left_s), 3),
            "transfer_target": None if target is None else int(target),
            "uncommitted_bytes": self._uncommitted_bytes,
            "reads_waiting": self.reads.count,
        }
