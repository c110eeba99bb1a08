"""Planted twins of the rules about logs that start late and prefixes that replace them.

They join the others in `twins.TWINS` when this module is imported.
"""

from __future__ import annotations

from typing import Any

from folkmoot.core.raft.effects import Effects, PrefixPoint
from folkmoot.core.raft.follower import REFUSED, Follower
from folkmoot.core.raft.known import Known
from folkmoot.core.raft.log import LogView
from folkmoot.core.raft.membership import Configuration
from folkmoot.core.raft.messages import Append, AppendReply
from folkmoot.core.raft.node import Raft
from folkmoot.core.raft.progress import Progress, ProgressState
from folkmoot.core.raft.replication import Replication
from folkmoot.core.raft.state import State
from folkmoot.core.types import NodeId
from tests.core.raft.twins import replaces

# -- compaction --------------------------------------------------------------------------------


@replaces(State, "compact")
def compacted_beyond_what_is_applied(self: State, index: int) -> None:
    self.log.compact_to(index)


@replaces(State, "compact")
def configuration_lost_with_the_start_of_the_log(self: State, index: int) -> None:
    assert index <= self.applied_index
    self.log.compact_to(index)


_state_init = State.__init__


@replaces(State, "__init__")
def prefix_not_known_to_be_committed(self: State, **options: Any) -> None:
    _state_init(self, **{**options, "committed_index": 0})


@replaces(Follower, "judge")
def append_from_before_the_log_taken_for_a_conflict(self: Follower, message: Append) -> int:
    return REFUSED if message.prev_index < self._state.log.start_index else _judge(self, message)


_judge = Follower.judge

# -- followers of a leader whose log starts late -----------------------------------------------


@replaces(Replication, "log_compacted")
def followers_left_where_the_log_is_gone(self: Replication) -> None:
    return None


_recognize, _learn_match, _back_up = (
    Replication.recognize,
    Replication.learn_match,
    Replication._back_up,
)


@replaces(Replication, "recognize")
def late_answers_below_the_start_refused(
    self: Replication, sender: NodeId, reply: AppendReply
) -> Progress | None:
    progress = _recognize(self, sender, reply)
    if progress is not None and reply.success and reply.match_index > progress.match_index:
        assert self._state.log.is_boundary(reply.match_index)
    return progress


@replaces(Replication, "learn_match")
def late_success_below_the_start_believed(
    self: Replication, progress: Progress, reply: AppendReply
) -> bool:
    if reply.success and progress.state is not ProgressState.PIPELINE:
        return progress.matched(reply.match_index, max(reply.match_index, reply.prev_index))
    return _learn_match(self, progress, reply)


@replaces(Replication, "_back_up")
def late_refusal_believed_below_the_match(
    self: Replication, progress: Progress, reply: AppendReply
) -> None:
    match, progress.match_index = progress.match_index, 0
    _back_up(self, progress, reply)
    progress.match_index = match


@replaces(Replication, "_asks_at")
def prefix_asked_for_at_the_end_of_the_log(self: Replication, progress: Progress) -> int:
    if progress.state is ProgressState.PREFIX:
        return self._state.log.last_index
    return progress.next_index - 1


@replaces(Replication, "flush")
def commits_told_to_who_cannot_verify_them(self: Replication) -> None:
    for progress in self.progress.values():
        if progress.next_index <= self._state.log.last_index:
            self._send_batches(progress)
        news = self._state.commit_index if progress.wants_commit else 0
        if progress.due or progress.sent_commit < news:
            self._send(progress, [])


# -- installs ----------------------------------------------------------------------------------


@replaces(Known, "may_install")
def install_at_or_below_the_commit_index(self: Known, index: int, term: int) -> bool:
    state, log = self._state, self._state.log
    holds_it = log.start_index <= index <= log.last_index and log.term_at(index) == term
    return state.leader not in (None, state.node_id) and not holds_it


@replaces(Known, "may_install")
def install_over_a_log_that_holds_it(self: Known, index: int, term: int) -> bool:
    return self._state.leader not in (None, self._state.node_id) and index > self.commit_index


_install = Raft.install


@replaces(Raft, "install")
def candidacy_begun_by_an_install(self: Raft, *arguments: Any) -> None:
    _install(self, *arguments)
    self._become_pre_candidate()


_state_install = State.install


@replaces(State, "install")
def configuration_of_a_prefix_ignored(
    self: State, point: PrefixPoint, configuration: Configuration
) -> None:
    _state_install(self, point, self.configuration)


_reset = LogView.reset


@replaces(LogView, "reset")
def install_keeps_a_conflicting_tail(self: LogView, index: int, term: int, log_time: int) -> None:
    if index < getattr(self, "last_index", 0):
        self.compact_to(index)
        self.start_term = term
    else:
        _reset(self, index, term, log_time)


_write_install = Effects.write_install


@replaces(Effects, "write_install")
def install_durable_at_once(self: Effects, point: PrefixPoint) -> None:
    _write_install(self, point)
    self.durable_index = point.index


@replaces(Effects, "write_install")
def durable_mark_kept_over_an_install(self: Effects, point: PrefixPoint) -> None:
    before = self.durable_index
    _write_install(self, point)
    self.durable_index = before


@replaces(Effects, "write_install")
def claims_kept_over_an_install(self: Effects, point: PrefixPoint) -> None:
    held = self._held
    _write_install(self, point)
    self._held = held


@replaces(Effects, "write_install")
def pending_writes_settle_what_an_install_discards(self: Effects, point: PrefixPoint) -> None:
    marks = [tuple(mark) for mark in self._unstored]
    _write_install(self, point)
    for (_, index), pending in zip(marks, self._unstored, strict=False):
        pending[1] = index
