"""A leader's time in office: what it replicates, commits, confirms, and when it gives up.

Pure: no I/O, no clock, no randomness. One `Leader` exists while this server leads and is thrown
away whole when it does not, so nothing of one term can leak into the next (bug A6).

Appends are built LAZILY, in `flush`: all that was proposed and learnt in one turn leaves as one
append per follower. What makes an append leave is only that there is something to say:

    batches      new ones, and the follower's window has room
    heartbeat    every heartbeat_s, to everybody: a new round
    reads        some wait, so a new round goes out at once (§6.4)
    commit       it rose, and the follower said that clients wait for it there

A leader never counts an entry of an earlier term (§3.6.2). Figure 8, bug B1:

    1. S1 leads term 2, stores entry 2 on S1 and S2; S5 leads term 3, stores another entry 2 on S5
    2. S1 leads term 4 and brings its old entry to S3: a majority holds it, yet S5 may still win
       term 5 with the votes of S2, S3, S4 (its last term 3 is above 2) and replace it
    3. so it counts only from the first entry of term 4 on: with that on a majority S5 cannot win

Source: §3.5, §3.6, §6.2 (check quorum), §6.4 (reads), §10.2.1 (writing in parallel).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from folkmoot.core.batch import Batch, Group, Kind, encode_batch
from folkmoot.core.errors import Overloaded, RemoteProtocolError, Unavailable, UsageError
from folkmoot.core.raft.effects import LogRead
from folkmoot.core.raft.messages import Append, AppendReply, TimeoutNow
from folkmoot.core.raft.progress import Progress, ProgressState
from folkmoot.core.raft.quorum import committed, quorum_contact
from folkmoot.core.raft.reads import NEVER, LeaderReads
from folkmoot.core.raft.rounds import Rounds
from folkmoot.core.raft.state import State
from folkmoot.core.raft.trace import MessageIgnored, ProgressChanged, QuorumLost, TransferChanged
from folkmoot.core.raft.transfer import Transfer
from folkmoot.core.types import NodeId


class Leader:
    """One leadership.

    - Its own log is only appended to (leader append-only, §3.2).
    - It counts itself when its own disk has the entry, not before (bug B8), and only as a voter.
    - commit_index rises only to an entry of its own term (§3.6.2).
    - Batches leave in order, at most a window of them per follower.
    """

    __slots__ = (
        "_base_log_time",
        "_heartbeat_at",
        "_is_lease_given_up",
        "_lease_s",
        "_progress",
        "_quorum_check_at",
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
        config, log = state.config, state.log
        self._state = state
        self._since = state.now
        self._base_log_time = log.last_log_time
        self._rounds = Rounds(newest_round, config.election_timeout_s)
        self.reads = LeaderReads(state)
        self._transfer: Transfer | None = None
        self._is_lease_given_up = False
        self._uncommitted: deque[tuple[int, int]] = deque()
        """(last index, bytes) of each batch proposed in this term and not yet committed."""
        self._uncommitted_bytes = 0
        # Bug C5: even the fastest follower's clock must not end its silence before this lease ends.
        drift = config.clock_drift
        self._lease_s = config.election_timeout_s * (1 - drift) / (1 + drift)
        self._heartbeat_at = state.now + config.heartbeat_s
        self._quorum_check_at = state.now + config.election_timeout_s
        first_round = self._rounds.start(state.now)
        self._progress = {
            peer: Progress(peer, log.last_index + 1, first_round, state.now)
            for peer in state.configuration.everyone
            if peer != state.node_id
        }
        # §6.4, bug B2: an entry of the own term, without which nothing earlier can commit.
        self.initialize_index = self._append([Group(Kind.INITIALIZE, 1, b"")]).last_index

    # -- proposing -----------------------------------------------------------------------------

    def propose(self, groups: Sequence[Group]) -> Batch:
        """Append one batch. Raises Unavailable during a transfer, Overloaded beyond the limit."""
        if self._transfer is not None:
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
        """Return the log time of an entry made now: the log's last, plus the time in office."""
        in_office_ms = int((self._state.now - self._since) * 1000)
        return self._base_log_time + in_office_ms

    # -- learning ------------------------------------------------------------------------------

    def handle_reply(self, sender: NodeId, reply: AppendReply) -> None:
        """Take a follower's answer of this term. Raises RemoteProtocolError on a forged one."""
        progress = self._progress.get(sender)
        if progress is None or reply.round < progress.first_round:
            # Bug B14: not a member, or an answer from before it (again) became one.
            event = MessageIgnored(sender, "AppendReply", "not of this membership")
            self._state.effects.trace.append(event)
            return
        last_index = self._state.log.last_index
        if reply.round > self._rounds.newest or reply.match_index > last_index:
            raise RemoteProtocolError(
                f"append reply of node {sender}: round {reply.round} of {self._rounds.newest}, "
                f"match index {reply.match_index} of {last_index}"
            )
        progress.contact_at = self._state.now
        if reply.round >= progress.acked_round:
            progress.wants_commit = reply.wants_commit
            if reply.round > progress.acked_round:
                progress.acked_round = reply.round
                progress.acked_sent_at = self._rounds.sent_at(reply.round)
                if self.reads.is_asking:
                    self._confirm_reads()
        if reply.success:
            self._handle_success(progress, reply)
        elif progress.is_genuine_refusal(reply):
            self._handle_refusal(progress, reply)

    def _handle_success(self, progress: Progress, reply: AppendReply) -> None:
        log = self._state.log
        verified = max(reply.match_index, reply.prev_index)
        if verified > log.last_index or not log.is_boundary(reply.match_index):
            raise RemoteProtocolError(
                f"append reply of node {progress.peer}: match index {reply.match_index} after "
                f"{reply.prev_index} is no end of a batch in a log up to {log.last_index}"
            )
        before = progress.state
        if before is ProgressState.PREFIX and verified < log.compaction_index:
            return  # still below what is left of the log
        is_news = progress.matched(reply.match_index, verified)
        if before is not ProgressState.PIPELINE:
            self._trace_progress(progress)
        if is_news:
            self.advance_commit()
            self._continue_transfer(progress)

    def _handle_refusal(self, progress: Progress, reply: AppendReply) -> None:
        """Back up to where the logs may meet: at most one step per term (§3.5)."""
        log = self._state.log
        index = min(reply.conflict_index, reply.prev_index)
        if reply.conflict_term:
            # §3.5: where this log has that term, its own last entry of it is the better guess.
            index = max(index, min(log.last_of_term(reply.conflict_term) + 1, reply.prev_index))
        if index < log.first_index:
            progress.become_prefix()
        else:
            progress.become_probe(log.batch_first(index))
        self._trace_progress(progress)

    def advance_commit(self) -> None:
        """Commit what a quorum has stored, if it is of this term (§3.6.2)."""
        state = self._state
        match = {peer: p.match_index for peer, p in self._progress.items()}
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

    def _trace_progress(self, progress: Progress) -> None:
        self._state.effects.trace.append(
            ProgressChanged(
                progress.peer, progress.state, progress.match_index, progress.next_index
            )
        )

    # -- contact, lease, reads -----------------------------------------------------------------

    @property
    def newest_round(self) -> int:
        """The newest round's number: the next leadership of this process counts on from it."""
        return self._rounds.newest

    @property
    def has_committed_own_term(self) -> bool:
        """True once `Initialize` is committed: only then is the commit index up to date (§6.4)."""
        return self._state.commit_index >= self.initialize_index

    def lease_until(self) -> float:
        """Return when the lease ends (§6.4.1); longest ago when there is none."""
        state = self._state
        if (
            self._transfer is not None
            or self._is_lease_given_up
            or state.applied_index < self.initialize_index
        ):
            return -NEVER
        sent = {peer: p.acked_sent_at for peer, p in self._progress.items()}
        sent[state.node_id] = NEVER
        # Bug C4: from when a quorum's newest acknowledged round was SENT.
        return quorum_contact(sent, state.configuration.quorums) + self._lease_s

    def is_quorum_lost(self) -> bool:
        """Return whether no quorum was heard for an election timeout (§6.2, bug A10)."""
        state = self._state
        if state.now < self._quorum_check_at:
            return False
        contact = {peer: p.contact_at for peer, p in self._progress.items()}
        contact[state.node_id] = state.now
        heard_at = quorum_contact(contact, state.configuration.quorums)
        self._quorum_check_at = heard_at + state.config.election_timeout_s
        if state.now < self._quorum_check_at:
            return False
        state.effects.trace.append(QuorumLost(state.term))
        return True

    def _confirm_reads(self) -> None:
        acked = {peer: p.acked_round for peer, p in self._progress.items()}
        acked[self._state.node_id] = self._rounds.newest
        number = committed(acked, self._state.configuration.quorums)
        for asker, index in self.reads.confirm(number):
            progress = self._progress.get(asker)
            if progress is not None and progress.sent_commit < index:
                progress.due = True

    # -- time ----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` must be called next."""
        deadline = min(self._heartbeat_at, self._quorum_check_at)
        if self._transfer is not None:
            deadline = min(deadline, self._transfer.deadline)
        return deadline

    def tick(self) -> None:
        """Start a heartbeat when one is due, and give a transfer up that took too long."""
        state = self._state
        if self._transfer is not None and state.now >= self._transfer.deadline:
            self._end_transfer("given up")
        if state.now >= self._heartbeat_at:
            self._heartbeat_at = state.now + state.config.heartbeat_s
            self._rounds.start(state.now)
            silent_since = state.now - state.config.election_timeout_s
            for progress in self._progress.values():
                progress.due = True
                if progress.state is ProgressState.PIPELINE and progress.contact_at <= silent_since:
                    progress.become_probe(progress.match_index + 1, paced=True)
                    self._trace_progress(progress)
            if self._transfer is not None:
                self._continue_transfer(self._progress[self._transfer.target])

    # -- transfer ------------------------------------------------------------------------------

    def transfer(self, target: NodeId | None) -> None:
        """Start to hand over (§3.10). Raises UsageError or Unavailable when that cannot be."""
        state = self._state
        if self._transfer is not None:
            if target in (None, self._transfer.target):
                return
            raise Unavailable(f"leadership is being transferred to node {self._transfer.target}")
        if target is None:
            target = self._best_target()
        elif target == state.node_id:
            return
        elif target not in self._progress or not state.configuration.may_lead(target):
            raise UsageError(f"node {target} cannot lead: it is no voter that keeps machines")
        self._transfer = Transfer(target, state.now + state.config.election_timeout_s)
        state.effects.trace.append(TransferChanged(target, "started"))
        self._continue_transfer(self._progress[target])

    def _best_target(self) -> NodeId:
        """Return the voter that is furthest along among those heard of lately."""
        state = self._state
        silent_since = state.now - state.config.election_timeout_s
        able = [
            progress
            for peer, progress in sorted(self._progress.items())
            if state.configuration.may_lead(peer) and progress.contact_at > silent_since
        ]
        if not able:
            raise Unavailable("no other voter has been heard of within an election timeout")
        return max(able, key=lambda progress: progress.match_index).peer

    def _continue_transfer(self, progress: Progress) -> None:
        """Tell the target to campaign once it has everything; again at each heartbeat."""
        state, transfer = self._state, self._transfer
        if transfer is None or transfer.target != progress.peer:
            return
        if progress.match_index < state.log.last_index:
            return
        if not transfer.told:
            transfer.told = True
            state.effects.trace.append(TransferChanged(transfer.target, "told"))
        # §3.10 with §6.4.1: from here on an election may pass over stickiness, at any later time.
        self._is_lease_given_up = True
        state.effects.send(transfer.target, TimeoutNow(state.term))

    def _end_transfer(self, stage: str) -> None:
        assert self._transfer is not None, "no transfer is under way"
        self._state.effects.trace.append(TransferChanged(self._transfer.target, stage))
        self._transfer = None

    # -- sending -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Build the appends of this turn."""
        state = self._state
        if self.reads.is_waiting and self.has_committed_own_term:
            self.reads.begin(self._rounds.start(state.now))
            for progress in self._progress.values():
                progress.due = True
            self._confirm_reads()  # at once where this server is a quorum by itself
        commit_index = state.commit_index
        for progress in self._progress.values():
            if progress.next_index <= state.log.last_index:
                self._send_batches(progress)
            if progress.due or (progress.wants_commit and progress.sent_commit < commit_index):
                self._send(progress, [])

    def _send_batches(self, progress: Progress) -> None:
        """Send as many appends with batches as the follower's window lets through."""
        config = self._state.config
        while progress.may_send_batches(config.window_batches, config.window_bytes):
            batches = self._next_batches(progress)
            if not batches:
                return
            self._send(progress, batches)

    def _next_batches(self, progress: Progress) -> list[Batch]:
        """Return what follows for `progress`; nothing while it must come from storage."""
        log, config = self._state.log, self._state.config
        if progress.loaded:
            batches, progress.loaded = progress.loaded, []
            return batches
        index = progress.next_index
        if progress.reading or index > log.last_index:
            return []
        if index < log.first_index:
            progress.become_prefix()
            self._trace_progress(progress)
            return []
        bytes_max = min(config.append_bytes_max, config.window_bytes - progress.inflight_bytes)
        count_max = config.window_batches - progress.inflight_batches
        found = log.batches_from(index, bytes_max, count_max)
        if found is None:
            progress.reading = True
            self._state.effects.log_reads.append(LogRead(progress.peer, index, bytes_max))
            return []
        return found

    def _send(self, progress: Progress, batches: list[Batch]) -> None:
        state = self._state
        # In PREFIX, ask at the prefix's end: success there means that the prefix has arrived.
        prev = max(progress.prev_index, state.log.compaction_index)
        last = prev
        append = Append(
            state.term,
            prev,
            state.log.term_at(prev),
            state.commit_index,
            self._rounds.newest,
            batches,
        )
        if batches:
            last = batches[-1].last_index
            progress.sent(batches, sum([len(batch.data) for batch in batches]))
        if progress.state is ProgressState.PROBE:
            progress.probe_sent = True
        progress.due = False
        progress.sent_commit = max(progress.sent_commit, min(state.commit_index, last))
        state.effects.send(progress.peer, append)

    def log_read(self, peer: NodeId, batches: Sequence[Batch]) -> None:
        """Take batches that were read back from storage; ignored when they are no longer next."""
        progress, log = self._progress.get(peer), self._state.log
        if progress is None or not progress.reading:
            return
        progress.reading = False
        if batches and batches[0].first_index == progress.next_index:
            last = batches[-1]
            assert log.term_at(last.last_index) == last.term, (
                f"read back {last.last_index} of term {last.term}, the log has another there"
            )
            progress.loaded = list(batches)

    # -- for operators -------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to know of this leadership, as plain data."""
        state = self._state
        until = self.lease_until()
        return {
            "progress": {
                int(peer): {
                    "state": str(p.state),
                    "match_index": p.match_index,
                    "next_index": p.next_index,
                    "inflight_batches": p.inflight_batches,
                    "inflight_bytes": p.inflight_bytes,
                    "silent_s": round(state.now - p.contact_at, 3),
                }
                for peer, p in sorted(self._progress.items())
            },
            "lease_left_s": round(max(0.0, min(until, 1e9) - state.now), 3),
            "transfer_target": self._transfer and int(self._transfer.target),
            "uncommitted_bytes": self._uncommitted_bytes,
            "reads_waiting": self.reads.count,
        }
