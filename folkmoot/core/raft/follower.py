"""A follower's side of replication: verify an append, cut what conflicts, store, acknowledge.

Pure: no I/O, no clock, no randomness. The node has already settled terms and roles: what arrives
here is from the leader of the present term.

An append is judged completely before anything changes, so one that is refused leaves no trace:

    prev_index known, and of prev_term?   no: refuse, and say where to try next (§3.5)
    then batch by batch:
        at or below commit       it is there: committed entries are in every leader's log
        same term at its start   it is there: the same index and term mean the same batch
        another term             a real conflict: cut here, store this and all that follow
        beyond the end           store this and all that follow

Cutting only at a real conflict is what keeps a late duplicate harmless (bug B4):

    1. the leader sends A = {5}, then B = {5, 6}; B overtakes A, 6 is stored and acknowledged
    2. A arrives: had it cut everything behind its own last entry, the acknowledged 6 would be gone

And the commit index follows only what THIS append verified (bug B3):

    1. this server holds 1..5, where 4 and 5 came from a deposed leader and never committed
    2. the new leader, whose log is 1..3, 4', 5', sends a heartbeat with prev_index 3, commit 5
    3. min(5, own last index) would commit the foreign 4 and 5; min(5, verified 3) is right

Source: §3.5, §3.6; figure 3.1, AppendEntries.
"""

from __future__ import annotations

from attrs import evolve

from folkmoot.core.batch import FLAG_CONFIGURATION
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft.membership import from_batch
from folkmoot.core.raft.messages import NO_ROUND, Append, AppendReply
from folkmoot.core.raft.state import State
from folkmoot.core.types import NodeId

REFUSED = -1
"""The verdict on an append whose predecessor is not in this log."""


def check_append(message: Append) -> None:
    """Refuse an append that no leader could have sent (bug B12). Raises RemoteProtocolError."""
    index, term, log_time = message.prev_index, message.prev_term, 0
    if term > message.term:
        raise RemoteProtocolError(f"append of term {message.term} after an entry of term {term}")
    for batch in message.batches:
        if batch.first_index != index + 1:
            raise RemoteProtocolError(f"append: batch from {batch.first_index} after index {index}")
        if not term <= batch.term <= message.term or batch.term < 1:
            raise RemoteProtocolError(
                f"append of term {message.term}: batch of term {batch.term} after term {term}"
            )
        if batch.log_time < log_time:
            raise RemoteProtocolError(f"append: log time {batch.log_time} after {log_time}")
        if batch.flags & FLAG_CONFIGURATION:
            from_batch(batch)  # it takes effect the moment it is stored (§4.1)
        index, term, log_time = batch.last_index, batch.term, batch.log_time


class Follower:
    """Takes appends.

    - Acknowledges only what one request verified and this disk holds (bug B7).
    - Cuts only at the first real term conflict, never at or below the commit index (bugs B4, B5).
    - commit_index never passes what the request at hand verified (bug B3).
    """

    __slots__ = ("_state", "wants_commit")

    def __init__(self, state: State) -> None:
        self._state = state
        self.wants_commit = False
        """Clients wait on this server: commits should be told at once."""

    def judge(self, message: Append) -> int:
        """Return the position of the first batch to store, or REFUSED. Changes nothing.

        Raises RemoteProtocolError when no leader of this cluster can have sent it, and halts
        (AssertionError) when it contradicts what is committed here (bug B5).
        """
        check_append(message)
        log, prev = self._state.log, message.prev_index
        if prev > log.last_index:
            return REFUSED
        # Bug B6: what lies before the log is committed, so it is known and cannot conflict.
        if prev >= log.start_index:
            if log.term_at(prev) != message.prev_term:
                self._check_committed(prev, message.prev_term)
                return REFUSED
            if not log.is_boundary(prev):
                raise RemoteProtocolError(f"append after {prev}, which is inside a batch")
        return self._first_new(message)

    def accept(self, leader: NodeId, message: Append, first_new: int) -> None:
        """Do what was judged, and answer."""
        state = self._state
        if first_new == REFUSED:
            self._refuse_mismatch(leader, message)
            return
        verified = message.batches[-1].last_index if message.batches else message.prev_index
        if first_new < len(message.batches):
            self._store(message, first_new)
            self._advance_commit(message, verified)
            state.effects.send_when_stored(leader, self._success(message, verified))
        else:
            self._advance_commit(message, verified)
            # Known before, so nothing new to wait for: say what of it is durable now (bug B7).
            # A committed prefix needs no request to verify it: every leader has it (§3.6.3).
            match = min(max(verified, state.commit_index), state.effects.durable_index)
            state.effects.send(leader, self._success(message, match))

    def refuse_old_term(self, sender: NodeId, message: Append) -> None:
        """Answer a leader of an older term with the present one, so that it steps down (bug A9).

        The answer names no round. It carries the present term, which the sender may meanwhile lead:

            1. A leads term 5, sends its round 9, which is delayed; A restarts, and counts from 1
            2. A wins term 6 with the vote of B; now the append of step 1 reaches B
            3. B's refusal has term 6: with round 9 in it, A would take it for B's answer to its own
               round 9 of term 6, which a read or a lease may be waiting for
        """
        no_round = evolve(message, round=NO_ROUND, prev_index=0, batches=())
        self._refuse(sender, no_round, 0, 0)

    def _first_new(self, message: Append) -> int:
        """Return the position of the first batch that is not in the log. Changes nothing."""
        log, commit_index = self._state.log, self._state.commit_index
        for position, batch in enumerate(message.batches):
            first, last = batch.first_index, batch.last_index
            if first <= commit_index:
                self._check_committed(first, batch.term)
                is_split = last > commit_index
            elif first > log.last_index or batch.term != log.term_at(first):
                earliest = log.log_time_at(first - 1)
                if batch.log_time < earliest:
                    raise RemoteProtocolError(
                        f"append: log time {batch.log_time} at {first} after {earliest}"
                    )
                return position
            else:
                is_split = last != log.batch_last(first)
            if is_split:
                raise RemoteProtocolError(f"append: batch {first}..{last} ends elsewhere here")
        return len(message.batches)

    def _check_committed(self, index: int, term: int) -> None:
        """Halt when a leader contradicts what is committed (bug B5): data was lost somewhere."""
        log = self._state.log
        is_known = log.start_index <= index <= self._state.commit_index
        if is_known and log.term_at(index) != term:
            raise AssertionError(
                f"the leader of term {self._state.term} has term {term} at committed {index}, "
                f"this server has term {log.term_at(index)}"
            )

    def _store(self, message: Append, first_new: int) -> None:
        state = self._state
        first_index = message.batches[first_new].first_index
        if first_index <= state.log.last_index:
            # §3.5: delete the conflicting entry and all that follow it.
            state.truncate_after(first_index - 1)
        for batch in message.batches[first_new:]:
            state.append(batch)

    def _advance_commit(self, message: Append, verified: int) -> None:
        # Figure 3.1, AppendEntries 5, with "last new entry" meant as written (bug B3).
        index = min(message.commit_index, verified)
        if index > self._state.commit_index:
            self._state.commit_to(index)

    def _success(self, message: Append, match_index: int) -> AppendReply:
        state = self._state
        return AppendReply(
            state.term,
            message.round,
            True,
            message.prev_index,
            match_index,
            state.log.last_index,
            0,
            0,
            self.wants_commit,
        )

    def _refuse_mismatch(self, leader: NodeId, message: Append) -> None:
        """Name the conflicting term and where it starts, so that one round trip skips it (§3.5)."""
        state, prev = self._state, message.prev_index
        if prev > state.log.last_index:
            self._refuse(leader, message, state.log.last_index + 1, 0)
            return
        first = max(state.log.first_of_term_at(prev), state.commit_index + 1)
        self._refuse(leader, message, first, state.log.term_at(prev))

    def _refuse(self, leader: NodeId, message: Append, index: int, term: int) -> None:
        state = self._state
        reply = AppendReply(
            state.term,
            message.round,
            False,
            message.prev_index,
            0,
            state.log.last_index,
            index,
            term,
            self.wants_commit,
        )
        state.effects.send(leader, reply)
