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

from folkmoot.core.batch import FLAG_CONFIGURATION
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.raft.membership import from_batch
from folkmoot.core.raft.messages import Append, AppendReply
from folkmoot.core.raft.state import State
from folkmoot.core.types import NodeId


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
            _check_configuration(message, batch.first_index)
        index, term, log_time = batch.last_index, batch.term, batch.log_time


def _check_configuration(message: Append, first_index: int) -> None:
    """Decode a configuration before it is stored: it takes effect the moment it is (§4.1)."""
    for batch in message.batches:
        if batch.first_index == first_index:
            try:
                from_batch(batch)
            except StorageCorrupt as error:
                raise RemoteProtocolError(f"append: {error}") from error


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

    def accept(self, leader: NodeId, message: Append) -> None:
        """Handle an append of the present leader. Raises RemoteProtocolError, state untouched."""
        state = self._state
        log = state.log
        prev = message.prev_index
        if prev > log.last_index:
            self._refuse(leader, message, log.last_index + 1, 0)
            return
        # Bug B6: below the prefix is committed and therefore known; only above can it conflict.
        if prev >= log.compaction_index and log.term_at(prev) != message.prev_term:
            self._refuse_conflict(leader, message)
            return
        if prev >= log.compaction_index and not log.is_boundary(prev):
            raise RemoteProtocolError(f"append after {prev}, which is inside a batch")
        first_new = self._first_new(message)
        verified = message.batches[-1].last_index if message.batches else prev
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
        """Answer a leader of an older term with the present one, so that it steps down (bug A9)."""
        self._refuse(sender, message, 0, 0)

    def _first_new(self, message: Append) -> int:
        """Return the position of the first batch that is not in the log. Changes nothing."""
        log, commit_index = self._state.log, self._state.commit_index
        for position, batch in enumerate(message.batches):
            if batch.last_index <= commit_index:
                self._check_committed(batch.first_index, batch.term)
            elif batch.first_index > log.last_index or batch.term != log.term_at(batch.first_index):
                last_log_time = log.last_log_time if batch.first_index > log.last_index else 0
                if batch.log_time < last_log_time:
                    raise RemoteProtocolError(
                        f"append: log time {batch.log_time} after {last_log_time}"
                    )
                return position
            elif log.batch_last(batch.first_index) != batch.last_index:
                raise RemoteProtocolError(
                    f"append: batch {batch.first_index}..{batch.last_index} of term {batch.term} "
                    f"is here {batch.first_index}..{log.batch_last(batch.first_index)}"
                )
        return len(message.batches)

    def _check_committed(self, index: int, term: int) -> None:
        """Halt when a leader contradicts what is committed (bug B5): data was lost somewhere."""
        log = self._state.log
        if index > log.compaction_index and log.term_at(index) != term:
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

    def _refuse_conflict(self, leader: NodeId, message: Append) -> None:
        """Name the conflicting term and where it starts, so that one round trip skips it (§3.5)."""
        state, prev = self._state, message.prev_index
        if prev <= state.commit_index:
            self._check_committed(prev, message.prev_term)
        first = state.log.first_of_term_at(prev)
        self._refuse(leader, message, max(first, state.commit_index + 1), state.log.term_at(prev))

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
