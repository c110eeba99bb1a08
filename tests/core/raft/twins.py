"""Planted twins: the core with one bug switched on. A test that passes with its twin proves little.

Each twin is a context manager that breaks one rule, in place, for as long as it is entered; the
simulator may enter them as well. `TWINS` is the list.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from folkmoot.core.raft.effects import Effects
from folkmoot.core.raft.election import Election
from folkmoot.core.raft.follower import Follower
from folkmoot.core.raft.leader import Leader
from folkmoot.core.raft.messages import Append, AppendReply, VoteReply, VoteRequest
from folkmoot.core.raft.node import Raft
from folkmoot.core.raft.progress import Progress
from folkmoot.core.raft.quorum import VoteResult, committed
from folkmoot.core.raft.reads import ForwardedReads, LeaderReads
from folkmoot.core.raft.replication import Replication
from folkmoot.core.raft.rounds import Rounds
from folkmoot.core.raft.state import State
from folkmoot.core.raft.transfer import Transfer
from folkmoot.core.types import NodeId

Twin = Callable[[], contextlib.AbstractContextManager[Any]]
TWINS: dict[str, Twin] = {}


def replaces(target: type, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a twin, named like the decorated function, that puts it in place of `target.name`."""

    def register(broken: Callable[..., Any]) -> Callable[..., Any]:
        value = property(broken) if isinstance(vars(target)[name], property) else broken
        TWINS[broken.__name__] = lambda: mock.patch.object(target, name, value)
        return broken

    return register


@replaces(State, "vote_for")
def vote_not_persisted(self: State, candidate: NodeId) -> None:
    self.voted_for = candidate


@replaces(Effects, "send")
def vote_spoken_before_it_is_durable(self: Effects, peer: NodeId, message: Any) -> None:
    self.messages.append((peer, message))


@replaces(Effects, "send_when_stored")
def acknowledged_before_fsync(self: Effects, peer: NodeId, reply: AppendReply) -> None:
    self.messages.append((peer, reply))


@replaces(State, "is_up_to_date")
def no_up_to_date_check(self: State, last_index: int, last_term: int) -> bool:
    return True


@replaces(State, "is_up_to_date")
def index_compared_before_term(self: State, last_index: int, last_term: int) -> bool:
    return (last_index, last_term) >= (self.log.last_index, self.log.last_term)


@replaces(Election, "count")
def votes_counted_without_term_and_kind(
    self: Election, sender: NodeId, reply: VoteReply
) -> VoteResult:
    self._votes[sender] = reply.granted
    return self.result()


_refusal = Election.refusal


@replaces(Election, "refusal")
def no_stickiness(self: Election, request: VoteRequest) -> str:
    reason = _refusal(self, request)
    return "" if reason == "leader is alive" else reason


@replaces(Election, "refusal")
def no_restart_silence(self: Election, request: VoteRequest) -> str:
    self._silent_until = -math.inf
    return _refusal(self, request)


@replaces(Raft, "_become_pre_candidate")
def no_pre_vote(self: Raft) -> None:
    self._become_candidate()


@replaces(Leader, "is_quorum_lost")
def no_check_quorum(self: Leader) -> bool:
    self._quorum_check_at = math.inf
    return False


@replaces(Follower, "refuse_old_term")
def old_leader_left_unanswered(self: Follower, sender: NodeId, message: Append) -> None:
    return None


@replaces(Follower, "refuse_old_term")
def old_append_refused_with_its_round(self: Follower, sender: NodeId, message: Append) -> None:
    self._refuse(sender, message, 1, 0)


@replaces(Election, "_draw")
def same_timeout_every_time(self: Election) -> float:
    return self._state.config.election_timeout_s


def _count(leader: Leader, own: int, *, any_term: bool) -> None:
    state = leader._state
    match = {peer: p.match_index for peer, p in leader._replication.progress.items()}
    match[state.node_id] = own
    index = committed(match, state.configuration.quorums)
    if index > state.commit_index and (any_term or state.log.term_at(index) == state.term):
        state.commit_to(index)


@replaces(Leader, "advance_commit")
def old_term_committed_by_counting(self: Leader) -> None:
    _count(self, self._state.effects.durable_index, any_term=True)


@replaces(Leader, "advance_commit")
def own_match_before_own_fsync(self: Leader) -> None:
    _count(self, self._state.log.last_index, any_term=False)


@replaces(Follower, "_advance_commit")
def commit_up_to_the_own_last_index(self: Follower, message: Append, verified: int) -> None:
    index = min(message.commit_index, self._state.log.last_index)
    if index > self._state.commit_index:
        self._state.commit_to(index)


@replaces(Follower, "_first_new")
def truncates_always(self: Follower, message: Append) -> int:
    known = [b for b in message.batches if b.last_index <= self._state.commit_index]
    end = message.batches[-1].last_index if message.batches else message.prev_index
    if end < self._state.log.last_index and end >= self._state.commit_index:
        self._state.truncate_after(end)
        return len(message.batches)
    return len(known) if len(known) < len(message.batches) else len(message.batches)


_write_truncation = Effects.write_truncation


@replaces(Effects, "write_truncation")
def durable_mark_kept_over_a_cut(self: Effects, index: int) -> None:
    before, held = self.durable_index, self._held
    _write_truncation(self, index)
    self.durable_index, self._held = before, held


_take = Effects.take


@replaces(Effects, "take")
def applied_beyond_the_own_disk(self: Effects, commit_index: int) -> Any:
    durable, self.durable_index = self.durable_index, commit_index
    ready = _take(self, commit_index)
    self.durable_index = durable
    return ready


@replaces(Progress, "is_genuine_refusal")
def every_refusal_believed(self: Progress, reply: AppendReply) -> bool:
    return True


_learn_match = Replication.learn_match


@replaces(Replication, "learn_match")
def every_reply_answered(self: Replication, progress: Progress, reply: AppendReply) -> bool:
    progress.due = True
    return _learn_match(self, progress, reply)


@replaces(Replication, "recognize")
def replies_of_earlier_memberships_counted(
    self: Replication, sender: NodeId, reply: AppendReply
) -> Progress | None:
    return self.progress.get(sender)


@replaces(Replication, "pace")
def dead_followers_pipelined_to(self: Replication) -> None:
    return None


_flush = Leader.flush


@replaces(Leader, "flush")
def read_before_the_own_term_committed(self: Leader) -> None:
    initialize, self.initialize_index = self.initialize_index, 0
    _flush(self)
    self.initialize_index = initialize


_add = LeaderReads.add


@replaces(LeaderReads, "add")
def read_joins_a_round_under_way(self: LeaderReads, asker: NodeId | None, number: int) -> None:
    _add(self, asker, number)
    if self._rounds:
        self._rounds[-1].reads.append(self._waiting.pop())


@replaces(ForwardedReads, "lose")
def read_kept_over_a_leader_change(self: ForwardedReads) -> None:
    return None


_init = ForwardedReads.__init__


@replaces(ForwardedReads, "__init__")
def questions_counted_from_one(self: ForwardedReads, state: State) -> None:
    _init(self, state)
    self._question = 0


@replaces(Rounds, "sent_at")
def lease_from_receipt_time(self: Rounds, number: int) -> float:
    return LATEST["now"]


LATEST = {"now": 0.0}
"""The time of the newest input, for the twin above."""


@replaces(Leader, "lease_until")
def lease_kept_during_transfer(self: Leader) -> float:
    target, void = self._transfer.target, self._transfer.lease_is_void
    self._transfer.target, self._transfer.lease_is_void = None, False
    until = _lease_until(self)
    self._transfer.target, self._transfer.lease_is_void = target, void
    return until


_lease_until = Leader.lease_until


@replaces(Leader, "lease_until")
def lease_back_after_a_transfer_was_given_up(self: Leader) -> float:
    self._transfer.lease_is_void = False
    return _lease_until(self)


@replaces(Leader, "lease_until")
def lease_while_the_own_disk_lags(self: Leader) -> float:
    applied, self._state.applied_index = self._state.applied_index, self._state.commit_index
    until = _lease_until(self)
    self._state.applied_index = applied
    return until


@replaces(Transfer, "tick")
def transfer_never_given_up(self: Transfer) -> None:
    self.deadline = math.inf


_refresh = State._refresh_configuration


@replaces(State, "_refresh_configuration")
def configuration_not_rolled_back(self: State) -> None:
    if self.log.configuration_batches:
        _refresh(self)


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Run the block with the bug `name` switched on."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(TWINS[name]())
        if name == "lease_from_receipt_time":
            advance = Raft._advance

            def noting(self: Raft, now: float) -> None:
                LATEST["now"] = max(LATEST["now"], now) if self.node_id == 1 else LATEST["now"]
                advance(self, now)

            LATEST["now"] = 0.0
            stack.enter_context(mock.patch.object(Raft, "_advance", noting))
        yield
