"""What a server does with everything that arrived in one turn of its loop.

Pure: no I/O, no clock, no randomness of its own, no threads. `core/server.py` drives it with real
links, files and clocks; the simulator drives it with none. Whoever drives it hands in inputs
(`peer_frame`, `client_frames`, `durable`, ...) and then calls `turn(now)` once for all of them;
what should happen leaves through three small ports: links, peers, storage.

    inputs of one turn -> route (propose, or forward to the leader) -> raft.ready(): messages,
    writes
                       -> apply what is committed -> results and events, one write per connection ->
                       reads

Everything is handled in bulk: a turn with a hundred commands costs about what a turn with one
costs, plus the commands' own work. Nothing here awaits, so nothing is ever half-changed between two
inputs.

The connected server alone speaks to its client: it answers a command when it has applied the entry
itself, whoever leads. So no answer travels between servers, and the order of delivery is the order
of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Group, Kind
from folkmoot.core.config import NodeConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import Overloaded, RemoteProtocolError, SequenceGap, Unavailable
from folkmoot.core.forwarding import (
    FORWARD,
    decode_consensus,
    decode_forward,
    encode_consensus,
    encode_forward,
)
from folkmoot.core.front import Front
from folkmoot.core.intake import Intake
from folkmoot.core.multiplexer import Applied, Multiplexer
from folkmoot.core.raft import Raft, Ready, Role, Write
from folkmoot.core.reading import ReadDesk
from folkmoot.core.requests import FrameType
from folkmoot.core.sessions import decode_keep_alive, encode_expire, encode_keep_alive
from folkmoot.core.types import NodeId

APPLY_BYTES_PER_TURN = 1 << 20
"""A turn applies about this much, so that catching up never starves heartbeats (bugs.

LogCabin #161).
"""

_NOT_CONSUMED = frozenset({SequenceGap.code, Overloaded.code})
"""Answers that leave the sequence unused: the commands are routed again rather than answered."""


class StoragePort(Protocol):
    """Where writes go. Completion comes back as `Replica.durable(number)`."""

    def submit(self, writes: Sequence[Write]) -> None:
        """Write these, after all that came before."""

    def read(self, first_index: int, bytes_max: int) -> list[Batch]:
        """Batches from the one that holds `first_index`."""

    def status(self) -> dict[str, Any]:
        """Plain data for operators."""


class PeerPort(Protocol):
    """Where frames for other members go. Never blocks.

    A frame for a member that is away is dropped.
    """

    def send(self, node_id: NodeId, data: bytes) -> None:
        """Send whole frames."""


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

    def turn_took(self, elapsed_s: float) -> None:
        """Count the time of one turn."""
        self.busy_s += elapsed_s
        self.longest_turn_s = max(self.longest_turn_s, elapsed_s)


class Replica:
    """One member: consensus, the replicated state, and its clients' connections.

    - `multiplexer.index <= raft's committed and durable index`, always.
    - Only what was applied here is told to clients of this server.
    """

    def __init__(
        self,
        *,
        config: NodeConfig,
        cluster_id: bytes,
        raft: Raft,
        multiplexer: Multiplexer,
        storage: StoragePort,
        peers: PeerPort,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.cluster_id = cluster_id
        self.raft = raft
        self.multiplexer = multiplexer
        self.storage = storage
        self.peers = peers
        self.counts = Counts()
        self.intake = Intake(config.limits.pending_bytes_max, 2 * config.raft.election_timeout_s)
        self.reads = ReadDesk()
        self.front = Front(self)
        self.trace: Callable[[Any], None] = lambda event: None
        """Told every trace event of consensus."""
        self.version = ""
        """Of the program, for status."""
        self._outbox: dict[NodeId, list[bytes]] = {}
        """Frames of this turn for other members."""
        self._forwarded: list[Group] = []
        self._keep_alives: list[list[int]] = []
        self._next_sequence: dict[int, int] = {}
        self._forwarded_bytes = 0
        self._expiry_proposed_to = 0
        self._leading_term = 0
        self._peer_epochs: dict[NodeId, int] = {}
        self._told_leader: NodeId | None = None
        self.clock = clock
        self.started_at = clock()
        self._due = self.started_at
        self._expiry_hold_until = 0
        self._more_to_apply = False
        self._applicable = 0
        """Committed, and durable here."""

    # inputs

    def peer_frame(self, sender: NodeId, frame_type: int, body: bytes, now: float) -> None:
        """Take one frame of another member. Raises RemoteProtocolError: its link must close."""
        if frame_type == FORWARD:
            self._take_forwarded(decode_forward(body))
        else:
            self.raft.step(sender, decode_consensus(frame_type, body), now)

    def peer_up(self, node_id: NodeId) -> None:
        """A link to a member came up: what was forwarded over the old one may be lost."""
        self._peer_epochs[node_id] = self._peer_epochs.get(node_id, 0) + 1

    def durable(self, number: int, now: float) -> None:
        """Writes up to `number` are on disk."""
        self.raft.durable(number, now)

    def settle(self, now: float) -> bool:
        """Send what waited for a write that is durable now; say whether a turn is due at once.

        Half a turn, and a fifth of its price: after most writes a leader has nothing to say before
        its followers have answered, and a follower nothing but its reply.
        """
        ready = self.raft.ready()
        if ready:
            self._take_effects(ready)
            self._flush_peers()
        self._due = min(self._due, self.raft.deadline())
        return self._applicable > self.multiplexer.index or bool(ready.reads or ready.reads_lost)

    # the turn

    def turn(self, now: float) -> None:
        """Do everything that the inputs since the last turn call for."""
        self.counts.turns += 1
        self._notice_stall(now)
        raft = self.raft
        raft.tick(now)
        self._route(now)
        token = self.reads.begin_round() if raft.leader is not None else None
        if token is not None:
            try:
                raft.read_index(token, now)
            except Overloaded:
                self.reads.lost(token)  # so many rounds are under way: with a later one
        ready = raft.ready()
        if ready:
            self._take_effects(ready)
        if self._outbox:
            self._flush_peers()
        if self.multiplexer.index < self._applicable:
            self._apply_committed(now)
        if raft.leader != self._told_leader:
            self._tell_leader()
        self.front.answer()
        if self._forwarded_bytes > self.config.limits.pending_bytes_max:
            # A leader that is not ready cannot keep any more of it; it comes again.
            self.counts.groups_dropped += len(self._take_all_forwarded())
        raft.set_commit_interest(bool(self.front.by_session) or self.reads.waiting() > 0)
        self._due = self._deadline(now)

    def deadline(self) -> float:
        """When `turn` must be called next even if nothing arrives (seconds on the caller's
        clock).
        """
        return self._due

    def _deadline(self, now: float) -> float:
        if self._more_to_apply:
            return now
        due = self.raft.deadline()
        retry = self.intake.retry_at()
        if retry is not None:
            due = min(due, retry)
        at = self._next_log_event() if self.raft.is_leader_ready else None
        if at is not None:
            due = min(due, now + max((at - self.raft.leader_time(now)) / 1000, 0.001))
        return due

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

    def _notice_stall(self, now: float) -> None:
        """A leader that stood still gives its sessions the lost time first.

        Their signs of life wait in its sockets.
        """
        late = now - self._due
        if late > self.config.raft.election_timeout_s / 2 and self.raft.role is Role.LEADER:
            self.counts.stalls += 1
            hold = self.raft.leader_time(now) + int(late * 1000)
            self._expiry_hold_until = max(self._expiry_hold_until, hold)

    def _take_effects(self, ready: Ready) -> None:
        self._applicable = ready.commit_index
        for node_id, message in ready.messages:
            self._post(node_id, encode_consensus(message))
        if ready.writes:
            self.storage.submit(ready.writes)
        for read in ready.log_reads:
            self.raft.log_read(read.peer, self.storage.read(read.first_index, read.bytes_max))
        for state in ready.reads:
            self.reads.confirmed(state.token, state.index)
        for token in ready.reads_lost:
            self.reads.lost(token)
        for event in ready.trace:
            self.trace(event)

    def _post(self, node_id: NodeId, frame: bytes) -> None:
        frames = self._outbox.get(node_id)
        if frames is None:
            self._outbox[node_id] = [frame]
        else:
            frames.append(frame)

    def _flush_peers(self) -> None:
        """One write per member; it leaves before this turn's own disk write begins (§10.2.1)."""
        outbox, self._outbox = self._outbox, {}
        for node_id, frames in outbox.items():
            self.peers.send(node_id, frames[0] if len(frames) == 1 else b"".join(frames))

    # routing: propose, or forward

    def _route(self, now: float) -> None:
        raft = self.raft
        if raft.role is Role.LEADER:
            if raft.term != self._leading_term:
                self._leading_term = raft.term
                self._next_sequence.clear()
                self._expiry_proposed_to = 0
            if raft.is_leader_ready:
                self._lead(now)
            else:
                self.intake.take(None, now)  # no way yet, so nothing to be reminded of
            return
        leader = raft.leader
        self._take_all_forwarded()
        self._keep_alives = []
        route = None if leader is None else (raft.term, leader, self._peer_epochs.get(leader, 0))
        groups = self.intake.take(route, now)
        keep_alives = self.intake.take_keep_alives()
        if leader is not None and (groups or keep_alives):
            if keep_alives:
                groups.append(encode_keep_alive(keep_alives))
            self._post(leader, encode_forward(groups))

    def _lead(self, now: float) -> None:
        """Gather everything that came for the log in this turn into as few batches as the limits
        allow.
        """
        groups: list[Group] = []
        keep_alives = self._keep_alives + self.intake.take_keep_alives()
        self._keep_alives = []
        if keep_alives:
            groups.append(encode_keep_alive(keep_alives))
        fresh = self.intake.take((self.raft.term, self.node_id), now)
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

    def _take_forwarded(self, groups: list[Group]) -> None:
        for group in groups:
            if group.kind == Kind.KEEP_ALIVE:
                self._keep_alives.extend(decode_keep_alive(group.payload))
            elif group.kind in (Kind.COMMANDS, Kind.OPEN_SESSION, Kind.CLOSE_SESSION):
                self._forwarded.append(group)
                self._forwarded_bytes += len(group.payload)
            else:
                raise RemoteProtocolError(
                    f"a member forwarded a group of kind {group.kind}, which only a leader makes"
                )

    def _take_all_forwarded(self) -> list[Group]:
        groups, self._forwarded, self._forwarded_bytes = self._forwarded, [], 0
        return groups

    # applying

    def _apply_committed(self, now: float) -> None:
        """Apply what is committed and durable here, at most so much that the turn stays short."""
        commit_index = self._applicable
        applied_bytes = 0
        self._more_to_apply = False
        while self.multiplexer.index < commit_index:
            if applied_bytes >= APPLY_BYTES_PER_TURN:
                self._more_to_apply = True
                break
            for batch in self._next_batches(commit_index):
                applied = self.multiplexer.apply(batch)
                batch.release()
                applied_bytes += len(batch.data)
                self.counts.entries_applied += batch.last_index - batch.first_index + 1
                self._tell(applied, now)
            self.raft.applied(self.multiplexer.index)

    def _next_batches(self, commit_index: int) -> list[Batch]:
        first = self.multiplexer.index + 1
        batch = self.raft.log.get(first)
        if batch is not None:
            return [batch]
        found = self.storage.read(first, APPLY_BYTES_PER_TURN)
        assert found, f"the log has no batch at {first}, committed is {commit_index}"
        assert found[0].first_index == first, f"batch {found[0].first_index} for index {first}"
        return [batch for batch in found if batch.last_index <= commit_index]

    def _tell(self, applied: Applied, now: float) -> None:
        front = self.front
        for results in applied.results:
            if results.errors is not None and results.errors[0][1] in _NOT_CONSUMED:
                self.intake.route_again(results.session_id, now)
                continue
            due = self.intake.answered(
                results.session_id, results.first_sequence, len(results.values), now
            )
            if due:
                front.answered(results, due)
        for session_id in applied.dirty:
            front.touched(session_id)
        for opened in applied.opened:
            self.intake.opens.pop(opened.secret_hash, None)
            front.session_opened(opened)
        for kept in applied.kept:
            front.kept(kept)
        for ended in applied.ended:
            self._next_sequence.pop(ended.session_id, None)
            front.session_ended(ended)

    def _tell_leader(self) -> None:
        self._told_leader = self.raft.leader
        for connection in self.front.connections:
            if connection.greeted:
                connection.send(FrameType.LEADER, *self.leader_fields())

    def leader_fields(self) -> tuple[int, str]:
        """The leader's node id and client address (0 and "" while none is known)."""
        leader = self.raft.leader
        if leader is None:
            return 0, ""
        return leader, self.raft.configuration.members[leader][1]

    def add_connection(self, connection: ClientConnection) -> None:
        """A client connected.

        It has `hello_timeout_s` to say who it is (the server's to enforce).
        """
        self.front.connections[connection] = None
