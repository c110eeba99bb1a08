"""A leader's replication: which follower gets which batches when, and what its replies teach.

Pure: no I/O, no clock, no randomness. It decides nothing about commitment; the leader (leader.py)
reads the match indexes and rounds that are kept here. Per follower, see progress.py.

Appends are built LAZILY, in `flush`: all that was proposed and learnt in one turn leaves as one
append per follower. What makes an append leave is only that there is something to say:

    batches      there are new ones, and the follower's window has room
    heartbeat    every heartbeat_s, to everybody: a new round
    reads        some wait, so a new round goes out at once (§6.4)
    commit       it rose, and the follower said that clients wait for it there

Old batches that memory no longer has are asked for as `LogRead` effects; until they come only
heartbeats go to that follower, so a slow disk here does not look like a dead leader there.

Batches that the log no longer has are another matter: a follower that needs one is in PREFIX from
the moment that this is known. Its heartbeats ask at the log's start, which succeeds wherever it
stands between there and the end, by itself or by means of the prefix.

Source: §3.5, §10.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from folkmoot.core.batch import Batch
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft.effects import LogRead
from folkmoot.core.raft.messages import Append, AppendReply
from folkmoot.core.raft.progress import Progress, ProgressState
from folkmoot.core.raft.rounds import Rounds
from folkmoot.core.raft.state import State
from folkmoot.core.raft.trace import MessageIgnored, ProgressChanged
from folkmoot.core.types import NodeId


class Replication:
    """All followers of one leadership.

    - There is one `Progress` for every other member, learners too, and for nobody else.
    - Batches go to each follower in order, at most a window of them unacknowledged.
    - An append is never answered by an append: only by what the answer makes possible (bug B11).
    - Who is not in PREFIX can be sent what comes next: next_index is in the log, or behind its end.
    """

    __slots__ = ("_rounds", "_state", "progress")

    def __init__(self, state: State, rounds: Rounds) -> None:
        self._state = state
        self._rounds = rounds
        next_index, first_round = state.log.last_index + 1, rounds.newest
        self.progress = {
            peer: Progress(peer, next_index, first_round, state.now)
            for peer in state.configuration.everyone
            if peer != state.node_id
        }

    # -- learning ------------------------------------------------------------------------------

    def recognize(self, sender: NodeId, reply: AppendReply) -> Progress | None:
        """Return the progress that `reply` is about, or None when it is about none.

        Raises RemoteProtocolError when no follower of this leader can have said it.
        """
        progress = self.progress.get(sender)
        if progress is None or reply.round < progress.first_round:
            # Bug B14: not a member, or an answer from before it (again) became one.
            event = MessageIgnored(sender, "AppendReply", "not of this membership")
            self._state.effects.trace.append(event)
            return None
        log, match = self._state.log, reply.match_index
        verified = max(match, reply.prev_index)
        if reply.round > self._rounds.newest or verified > log.last_index:
            raise RemoteProtocolError(
                f"append reply of node {sender}: round {reply.round} of {self._rounds.newest}, "
                f"match index {match} after {reply.prev_index} of {log.last_index}"
            )
        if reply.success:
            # Where batches ended before the log starts is no longer known, and no longer matters.
            is_news = match > progress.match_index and match >= log.start_index
            if is_news and not log.is_boundary(match):
                raise RemoteProtocolError(
                    f"append reply of node {sender}: match index {match} lies inside a batch"
                )
        elif reply.prev_index < 1 or reply.conflict_index < 1:
            raise RemoteProtocolError(f"append reply of node {sender} refuses the empty log")
        return progress

    def learn_contact(self, progress: Progress, reply: AppendReply) -> bool:
        """Note when and to which round the follower answered; return whether the round is news."""
        progress.contact_at = self._state.now
        if reply.round < progress.acked_round:
            return False
        progress.wants_commit = reply.wants_commit
        if reply.round == progress.acked_round:
            return False
        progress.acked_round = reply.round
        progress.acked_sent_at = self._rounds.sent_at(reply.round)
        return True

    def learn_match(self, progress: Progress, reply: AppendReply) -> bool:
        """Note what the follower has stored or refused; return whether its match index rose."""
        if not reply.success:
            if progress.is_genuine_refusal(reply):
                self._back_up(progress, reply)
            return False
        verified = max(reply.match_index, reply.prev_index)
        before = progress.state
        if before is not ProgressState.PIPELINE and verified < self._state.log.start_index:
            return False  # nothing follows it in what is left of the log
        is_news = progress.matched(reply.match_index, verified)
        if before is not ProgressState.PIPELINE:
            self._trace(progress)
        return is_news

    def _back_up(self, progress: Progress, reply: AppendReply) -> None:
        """Go back to where the logs may meet: at most one step per term (§3.5)."""
        log = self._state.log
        index = min(reply.conflict_index, reply.prev_index)
        if reply.conflict_term:
            # Where this log has that term as well, just behind its own last entry of it is better.
            own = min(log.last_of_term(reply.conflict_term) + 1, reply.prev_index)
            index = max(index, own)
        # A late refusal may name what the follower has stored since then (bug B10).
        index = max(index, progress.match_index + 1)
        if index < log.first_index:
            progress.become_prefix(index)
        else:
            progress.become_probe(log.batch_first(index))
        self._trace(progress)

    def log_compacted(self) -> None:
        """The log starts later: whoever must be sent what is gone needs the prefix.

            1. follower F is to get 11..; they are asked of storage, or read back, or on the wire
            2. the log is compacted up to 20, and nothing of it is left that F could be sent next
            3. the batches of step 1 arrive, or F acknowledges 14: neither helps F beyond 20

        It is said now, not when its turn comes, so what was read back can never be taken for next.
        """
        first_index = self._state.log.first_index
        for progress in self.progress.values():
            if progress.next_index < first_index and progress.state is not ProgressState.PREFIX:
                progress.become_prefix(progress.next_index)
                self._trace(progress)

    def _trace(self, progress: Progress) -> None:
        p = progress
        event = ProgressChanged(p.peer, p.state, p.match_index, p.next_index)
        self._state.effects.trace.append(event)

    # -- sending -------------------------------------------------------------------------------

    def ask_everybody(self) -> None:
        """Send every member an append at the next flush, to carry the newest round."""
        for progress in self.progress.values():
            progress.due = True

    def pace(self) -> None:
        """At each heartbeat: stop pipelining to who has not answered for an election timeout."""
        silent_since = self._state.now - self._state.config.election_timeout_s
        first_index = self._state.log.first_index
        for progress in self.progress.values():
            if progress.state is ProgressState.PIPELINE and progress.contact_at <= silent_since:
                # It may have what it did not live to acknowledge, so where the log starts is asked.
                progress.become_probe(max(progress.match_index + 1, first_index), paced=True)
                self._trace(progress)

    def flush(self) -> None:
        """Build the appends of this turn."""
        last_index, commit_index = self._state.log.last_index, self._state.commit_index
        for progress in self.progress.values():
            if progress.next_index <= last_index:
                self._send_batches(progress)
            # What it cannot verify yet it cannot take as committed: asking would be all (bug B11).
            news = min(commit_index, self._asks_at(progress)) if progress.wants_commit else 0
            if progress.due or progress.sent_commit < news:
                self._send(progress, [])

    def _asks_at(self, progress: Progress) -> int:
        """Return which index an append names as the one before it.

        In PREFIX that is the one before the log: success there means that the prefix has arrived.
        """
        return max(progress.next_index - 1, self._state.log.start_index)

    def _send_batches(self, progress: Progress) -> None:
        """Send as many appends with batches as the follower's window lets through."""
        config = self._state.config
        while progress.may_send_batches(config.window_batches, config.window_bytes):
            batches = self._next_batches(progress)
            if not batches:
                return
            self._send(progress, batches)

    def _next_batches(self, progress: Progress) -> Sequence[Batch]:
        """Return what follows for `progress`; nothing while it must come from storage."""
        log, config = self._state.log, self._state.config
        index = progress.next_index
        if index > log.last_index or progress.reading:
            return ()
        if progress.loaded:
            batches, progress.loaded = progress.loaded, ()
            if batches[0].first_index == index:
                return batches
            # A late answer has shown meanwhile that the follower has them.
        assert index >= log.first_index, f"{index} is next, the log starts at {log.first_index}"
        bytes_max = min(config.append_bytes_max, config.window_bytes - progress.inflight_bytes)
        count_max = config.window_batches - progress.inflight_batches
        found = log.batches_from(index, bytes_max, count_max)
        if found is None:
            progress.reading = True
            self._state.effects.log_reads.append(LogRead(progress.peer, index, bytes_max))
            return ()
        return found

    def _send(self, progress: Progress, batches: Sequence[Batch]) -> None:
        state = self._state
        last = prev = self._asks_at(progress)
        commit_index = state.commit_index
        append = Append(
            state.term, prev, state.log.term_at(prev), commit_index, self._rounds.newest, batches
        )
        if batches:
            last = batches[-1].last_index
            progress.sent(batches)
        if progress.state is ProgressState.PROBE:
            progress.probe_sent = True
        progress.due = False
        # What it can learn from this append is bounded by what the append verifies (bug B3).
        progress.sent_commit = max(progress.sent_commit, min(commit_index, last))
        state.effects.send(progress.peer, append)

    def log_read(self, peer: NodeId, batches: Sequence[Batch]) -> None:
        """Take batches that were read back from storage; ignored when they are no longer next."""
        progress, log = self.progress.get(peer), self._state.log
        if progress is None or not progress.reading:
            return
        progress.reading = False
        if not batches or batches[0].first_index != progress.next_index:
            return
        last = batches[-1]
        assert log.term_at(last.last_index) == last.term, (
            f"read back index {last.last_index} of term {last.term}, the log has another there"
        )
        # Storage counts bytes only; the window counts batches, too.
        room = self._state.config.window_batches - progress.inflight_batches
        progress.loaded = batches[:room]

    # -- for operators -------------------------------------------------------------------------

    def status(self) -> dict[int, dict[str, Any]]:
        """Return each follower's progress as plain data."""
        return {
            int(peer): {
                "state": str(p.state),
                "match_index": p.match_index,
                "next_index": p.next_index,
                "inflight_batches": p.inflight_batches,
                "inflight_bytes": p.inflight_bytes,
                "silent_s": round(self._state.now - p.contact_at, 3),
            }
            for peer, p in sorted(self.progress.items())
        }
