"""Where a turn's groups go: into the log where this server leads, else to the leader.

Pure: no I/O, no clock, no randomness. Driven by `core/replica.py`.

The leader also proposes what nobody asks for: the end of sessions that have been silent for their
timeout, and a tick where a deadline is due and no entry carries log time past it. It grants the
time in which it stood still itself before it ends anybody's session (bugs G4): the signs of life
are waiting in its sockets.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import chain

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Group, Kind
from folkmoot.core.config import NodeConfig
from folkmoot.core.errors import Overloaded, RemoteProtocolError, Unavailable
from folkmoot.core.intake import Intake
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.raft import Raft, Role
from folkmoot.core.sessions import decode_keep_alive, encode_expire, encode_keep_alive
from folkmoot.core.types import NodeId

TURN_BOUNDS_MS = tuple(round(0.1 * 1.25**step, 3) for step in range(40))
"""Turns are counted by how long they took: upper bounds of the classes, the last one has none."""


@attrs.define
class Counts:
    """What a server has done since it started, for status and the benchmark's counts."""

    turns: int = 0
    entries_applied: int = 0
    batches_proposed: int = 0
    groups_dropped: int = 0
    """Forwarded groups that were out of order or refused here; they come again."""
    stalls: int = 0
    longest_turn_s: float = 0.0
    busy_s: float = 0.0
    """Time spent in turns; told by whoever has a clock for it."""
    turns_by_ms: list[int] = attrs.field(factory=lambda: [0] * (len(TURN_BOUNDS_MS) + 1))
    """Turns in each class of TURN_BOUNDS_MS."""

    def turn_ms(self, share: float) -> float:
        """Return how long (ms) that share of the turns took at most, up to the next bound."""
        left = share * sum(self.turns_by_ms)
        for count, bound in zip(self.turns_by_ms, TURN_BOUNDS_MS, strict=False):
            left -= count
            if left <= 0:
                return bound
        return self.longest_turn_s * 1000

    def turn_took(self, elapsed_s: float) -> None:
        """Count the time of one turn."""
        self.busy_s += elapsed_s
        self.turns_by_ms[bisect_left(TURN_BOUNDS_MS, elapsed_s * 1000)] += 1
        self.longest_turn_s = max(self.longest_turn_s, elapsed_s)


class Router:
    """The way of commands, openings, closings and keep-alives on one server.

    - A session's commands are proposed in the order of their sequences.
    - What is dropped here is outstanding on the server that it came from, and comes again.
    """

    def __init__(
        self,
        config: NodeConfig,
        raft: Raft,
        multiplexer: Multiplexer,
        intake: Intake,
        counts: Counts,
    ) -> None:
        self.config = config
        self.raft = raft
        self.multiplexer = multiplexer
        self.intake = intake
        self.counts = counts
        self.forwarded_bytes = 0
        self._forwarded: list[Group] = []
        self._keep_alives: list[list[int]] = []
        self._next_sequence: dict[int, int] = {}
        """Session id -> the sequence that its next group must begin with; of this term."""
        self._leading_term = 0
        self._peer_epochs: dict[NodeId, int] = {}
        self._expiry_proposed_to = 0
        """Index of the last expiry that was proposed; until it is applied there is no other."""
        self._expiry_hold_until = 0
        """Log time before which nobody's session is ended."""

    def peer_up(self, node_id: NodeId) -> None:
        """A link to a member came up: what was forwarded over the old one may be lost."""
        self._peer_epochs[node_id] = self._peer_epochs.get(node_id, 0) + 1

    def forget(self, session_id: int) -> None:
        """A session has ended."""
        self._next_sequence.pop(session_id, None)

    def deadline(self, now: float) -> float:
        """When a leader must propose a tick or an expiry even if nothing arrives."""
        at = self._next_log_event() if self.raft.is_leader_ready else None
        if at is None:
            return math.inf
        return now + max((at - self.raft.leader_time(now)) / 1000, 0.001)

    def _next_log_event(self) -> int | None:
        """The log time at which a leader must propose a tick or an expiry that is not in the log
        yet.
        """
        times = []
        deadline = self.multiplexer.next_deadline()
        if deadline is not None and self._needs_tick(deadline):
            times.append(deadline)
        expiry = self.multiplexer.next_expiry()
        if expiry is not None and self.multiplexer.index >= self._expiry_proposed_to:
            times.append(max(expiry, self._expiry_hold_until))
        return min(times, default=None)

    def notice_stall(self, now: float, late_s: float) -> None:
        """A leader that stood still gives its sessions the lost time first.

        Their signs of life wait in its sockets.
        """
        if late_s > self.config.raft.election_timeout_s / 2 and self.raft.role is Role.LEADER:
            self.counts.stalls += 1
            hold = self.raft.leader_time(now) + int(late_s * 1000)
            self._expiry_hold_until = max(self._expiry_hold_until, hold)

    def route(self, now: float) -> tuple[NodeId, list[Group]] | None:
        """Propose what is to be proposed here; return what is to be forwarded, and to whom."""
        raft = self.raft
        if raft.role is Role.LEADER:
            if raft.term != self._leading_term:
                self._leading_term = raft.term
                self._next_sequence.clear()
                self._expiry_proposed_to = 0
            if raft.is_leader_ready:
                self._lead(now)
            else:
                self._wait_to_lead(now)
            return None
        leader = raft.leader
        self._take_all_forwarded()
        self._keep_alives = []
        route = None if leader is None else (raft.term, leader, self._peer_epochs.get(leader, 0))
        groups = self.intake.take(route, now)
        keep_alives = self.intake.take_keep_alives()
        if keep_alives:
            groups.append(encode_keep_alive(keep_alives))
        return (leader, groups) if leader is not None and groups else None

    def _wait_to_lead(self, now: float) -> None:
        """Keep what was forwarded until `Initialize` is applied, up to a limit."""
        self.intake.take(None, now)  # no way yet, so nothing to be reminded of
        if self.forwarded_bytes > self.config.limits.pending_bytes_max:
            self.counts.groups_dropped += len(self._take_all_forwarded())  # it comes again

    def _lead(self, now: float) -> None:
        """Gather everything that came for the log in this turn into as few batches as the limits
        allow.
        """
        groups: list[Group] = []
        keep_alives = self._keep_alives + self.intake.take_keep_alives()
        self._keep_alives = []
        if keep_alives:
            groups.append(encode_keep_alive(keep_alives))
        fresh = self.intake.take((self.raft.term, self.config.node_id), now)
        groups.extend(filter(self._in_order, chain(self._take_all_forwarded(), fresh)))
        due = self._due_entries(now, bool(groups))
        groups.extend(due)
        if groups:
            self._propose(groups, now)
        if due:
            self._expiry_proposed_to = self.raft.last_index

    def _in_order(self, group: Group) -> bool:
        """Whether a group may be proposed now: a session's commands go into the log in the order of
        their sequences.

        What comes early is dropped: links are in order and the sender routes everything again, so a
        gap means that something before it was lost on the way. Apply checks again on every server;
        this only keeps useless entries out of the log.
        """
        if group.kind != Kind.COMMANDS:
            return True
        session_id, first, _, _ = COMMANDS_HEADER.unpack_from(group.payload)
        expected = self._next_sequence.get(session_id)
        if expected is None:
            session = self.multiplexer.sessions.get(session_id)
            expected = 1 if session is None else session.sequence + 1
        if first > expected:
            self.counts.groups_dropped += 1
            return False
        self._next_sequence[session_id] = max(expected, first + group.count)
        return True

    def _due_entries(self, now: float, anything_else: bool) -> list[Group]:
        """Session expiries that are due, and a tick where a deadline is due and no entry carries
        time past it.
        """
        log_now = self.raft.leader_time(now)
        groups = []
        expiry = self.multiplexer.next_expiry()
        in_flight = self.multiplexer.index < self._expiry_proposed_to
        if expiry is not None and not in_flight and max(expiry, self._expiry_hold_until) <= log_now:
            groups = [
                encode_expire(session_id) for session_id in self.multiplexer.due_sessions(log_now)
            ]
        due = self.multiplexer.next_deadline()
        if due is not None and due <= log_now and not anything_else and self._needs_tick(due):
            groups.append(Group(Kind.TICK, 1, b""))
        return groups

    def _needs_tick(self, deadline: int) -> bool:
        """Whether no entry in the log, applied or not, will make the deadline fire."""
        in_flight = self.multiplexer.index < self.raft.last_index
        return deadline > self.raft.log_time or not in_flight

    def _propose(self, groups: list[Group], now: float) -> None:
        limit = self.config.storage.batch_bytes_max
        at = 0
        while at < len(groups):
            size_bytes, end = len(groups[at].payload), at + 1
            while end < len(groups) and size_bytes + len(groups[end].payload) <= limit:
                size_bytes += len(groups[end].payload)
                end += 1
            try:
                self.raft.propose(groups[at:end], now)
            except (Overloaded, Unavailable):
                # Everything refused here is outstanding on the server that it came from, which
                # routes it again.
                self.counts.groups_dropped += len(groups) - at
                self._next_sequence.clear()
                return
            self.counts.batches_proposed += 1
            at = end

    def take_forwarded(self, groups: list[Group]) -> None:
        """Take groups of another member.

        Raises RemoteProtocolError for what only a leader makes.
        """
        for group in groups:
            if group.kind == Kind.KEEP_ALIVE:
                self._keep_alives.extend(decode_keep_alive(group.payload))
            elif group.kind in (Kind.COMMANDS, Kind.OPEN_SESSION, Kind.CLOSE_SESSION):
                self._forwarded.append(group)
                self.forwarded_bytes += len(group.payload)
            else:
                raise RemoteProtocolError(
                    f"a member forwarded a group of kind {group.kind}, which only a leader makes"
                )

    def _take_all_forwarded(self) -> list[Group]:
        groups, self._forwarded, self.forwarded_bytes = self._forwarded, [], 0
        return groups
