"""What a server does with everything that arrived in one turn of its loop.

Pure: no I/O, no clock, no randomness of its own, no threads. `core/server.py` drives it with real
links, files and clocks; the simulator drives it with none. Whoever drives it hands in inputs
(`peer_frame`, `front.frames`, `durable`, ...) and then calls `turn(now)` once for all of them;
what should happen leaves through three small ports: links, peers, storage.

    inputs of one turn -> route (propose, or forward to the leader)
                       -> raft.ready(): messages, writes
                       -> apply what is committed -> results and events -> reads
                       -> one write per connection

Everything is handled in bulk: a turn with a hundred commands costs about what a turn with one
costs, plus the commands' own work. Nothing here awaits, so nothing is ever half-changed between two
inputs.

The connected server alone speaks to its client: it answers a command when it has applied the entry
itself, whoever leads. So no answer travels between servers, and the order of delivery is the order
of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from folkmoot.core.backups import Backups
from folkmoot.core.batch import Batch
from folkmoot.core.compacting import Compacting
from folkmoot.core.config import NodeConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import Overloaded, SequenceGap
from folkmoot.core.forwarding import (
    FORWARD,
    ROOM,
    decode_consensus,
    decode_forward,
    decode_room,
    encode_consensus,
    encode_forward,
    encode_room,
)
from folkmoot.core.front import Front
from folkmoot.core.intake import Intake
from folkmoot.core.jobs import Sweep
from folkmoot.core.multiplexer import Applied, Multiplexer
from folkmoot.core.prefix_events import PrefixTaken
from folkmoot.core.prefix_exchange import PrefixExchange, PrefixPort
from folkmoot.core.prefix_frames import is_prefix
from folkmoot.core.raft import Raft, Ready, Role, Write
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.reading import ReadDesk
from folkmoot.core.requests import FrameType
from folkmoot.core.room import Room, Shortage
from folkmoot.core.routing import Counts, Router
from folkmoot.core.types import NodeId

APPLY_BYTES_PER_TURN = 1 << 20
"""A turn applies about this much, so that catching up never starves heartbeats (bug K1)."""

_NOT_CONSUMED = frozenset({SequenceGap.code, Overloaded.code})
"""Answers that leave the sequence unused: the commands are routed again rather than answered."""


class StoragePort(PrefixPort, Protocol):
    """Where writes go. Completion comes back as `Replica.durable(number)`."""

    def submit(self, writes: Sequence[Write]) -> None:
        """Write these, after all that came before."""

    def read(self, first_index: int, bytes_max: int) -> list[Batch]:
        """Batches from the one that holds `first_index`."""

    def free_bytes(self) -> int:
        """Bytes that are free on its disk."""

    def status(self) -> dict[str, Any]:
        """Plain data for operators."""


class PeerPort(Protocol):
    """Where frames for other members go. Never blocks.

    A frame for a member that is away is dropped.
    """

    def send(self, node_id: NodeId, data: bytes) -> None:
        """Send whole frames."""


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
        self.router = Router(config, raft, multiplexer, self.intake, self.counts)
        self.room = Room(config.node_id, config.storage.reserve_bytes)
        self.compacting = Compacting(config.storage, raft, multiplexer, storage, multiplexer.index)
        self.prefixes = PrefixExchange(
            raft,
            self.compacting,
            storage,
            config.storage.transfer_bytes_per_s,
            self._post,
            self._report,
        )
        self.backups = Backups(raft, self.compacting, storage, config.storage.transfer_bytes_per_s)
        self.reads = ReadDesk()
        self.front = Front(self)
        self.trace: Callable[[Any], None] = lambda event: None
        """Told every trace event of consensus."""
        self.version = ""
        """Of the program, for status."""
        self._outbox: dict[NodeId, list[bytes]] = {}
        """Frames of this turn for other members."""
        self._told_leader: NodeId | None = None
        self.clock = clock
        self.started_at = clock()
        self._due = self.started_at
        self._more_to_apply = False
        self._applicable = 0
        """Committed, and durable here."""

    # inputs

    def peer_frame(self, sender: NodeId, frame_type: int, body: bytes, now: float) -> None:
        """Take one frame of another member. Raises RemoteProtocolError: its link must close."""
        if frame_type == FORWARD:
            self.router.take_forwarded(decode_forward(body))
        elif frame_type == ROOM:
            self.room.heard(*decode_room(sender, body), now)
        elif is_prefix(frame_type):
            self.prefixes.heard(sender, frame_type, body, now)
        else:
            self.raft.step(sender, decode_consensus(frame_type, body), now)

    def peer_up(self, node_id: NodeId) -> None:
        """A link to a member came up: what was forwarded over the old one may be lost."""
        self.router.peer_up(node_id)
        self.room.peer_up()

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
        self.router.notice_stall(now, now - self._due)
        raft = self.raft
        if self.room.wants_look(now):
            self._look_at_disk(now)
        raft.tick(now)
        forward = self.router.route(now)
        if forward is not None:
            self._post(forward[0], encode_forward(forward[1]))
        token = self.reads.begin_round() if raft.leader is not None else None
        if token is not None:
            try:
                raft.read_index(token, now)
            except Overloaded:
                self.reads.lost(token)  # so many rounds are under way: with a later one
        ready = raft.ready()
        if ready:
            self._take_effects(ready)
        if raft.role is Role.LEADER and self.room.must_tell(raft.term):
            self._tell_room()
        self._exchange_prefixes(now)
        self.backups.tick(now)
        if self._outbox:
            self._flush_peers()
        if self.prefixes.install.is_writing:
            self._more_to_apply = False
        elif self.multiplexer.index < self._applicable:
            self._apply_committed(now)
        self._compact(now)
        if raft.leader != self._told_leader:
            self._tell_leader()
        self.front.answer()
        raft.set_commit_interest(bool(self.front.by_session) or self.reads.waiting() > 0)
        self._due = self._deadline(now)

    def deadline(self) -> float:
        """When `turn` must be called next even if nothing arrives (seconds on the caller's
        clock).
        """
        return self._due

    def _deadline(self, now: float) -> float:
        if self._more_to_apply or self.compacting.is_slicing or self.prefixes.is_busy:
            return now
        due = self.raft.deadline()
        retry = self.intake.retry_at()
        if retry is not None:
            due = min(due, retry)
        due = min(due, self.compacting.deadline(now), self.prefixes.deadline(now))
        due = min(due, self.backups.deadline(now))
        return min(due, self.router.deadline(now), self.room.deadline())

    def shortage(self, now: float) -> Shortage | None:
        """How the leader's disk is low, if it is: only commands that free something are taken."""
        if self.raft.role is Role.LEADER:
            return self.room.shortage
        return self.room.of_leader(self.raft.leader, self.raft.term, now)

    def _look_at_disk(self, now: float) -> None:
        changed = self.room.looked(self.storage.free_bytes(), now)
        if changed is not None:
            self.trace(changed)

    def _tell_room(self) -> None:
        """Tell the other members how the leader's disk, this server's, is."""
        frame = encode_room(self.raft.term, self.room.shortage)
        for node_id in sorted(self.raft.configuration.members):
            if node_id != self.node_id:
                self._post(node_id, frame)

    def _take_effects(self, ready: Ready) -> None:
        self._applicable = ready.commit_index
        for node_id, message in ready.messages:
            self._post(node_id, encode_consensus(message))
        if ready.writes:
            for write in ready.writes:
                self.room.wrote(sum(len(batch.data) for batch in write.batches))
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
                if self.compacting.is_due:
                    self.compacting.look()
                applied = self.multiplexer.apply(batch)
                batch.release()
                applied_bytes += len(batch.data)
                self.counts.entries_applied += batch.last_index - batch.first_index + 1
                self._tell(applied, now)
                self.compacting.applied(len(batch.data))
            self.raft.applied(self.multiplexer.index)

    def _compact(self, now: float) -> None:
        """Take a step towards the next compaction, and give log up that nobody needs."""
        compacting = self.compacting
        if compacting.is_due:
            compacting.look()
        if compacting.is_slicing:
            compacting.slice()
        sending = self.prefixes.sender.oldest
        shortage = self.room.shortage
        low_bytes = None if shortage is None else shortage.free_bytes
        compacting.tick(now, low_bytes=low_bytes, sending=sending)

    def _report(self, event: TraceEvent) -> None:
        self.trace(event)

    def _exchange_prefixes(self, now: float) -> None:
        """Send and receive prefixes, and go over to one that was installed."""
        self.prefixes.turn(self.multiplexer, now)
        state = self.prefixes.install.take(self._applicable)
        if state is not None:
            self._go_over(state)

    def _go_over(self, state: Multiplexer) -> None:
        """Serve from a state that another server's prefix brought.

        It is ahead of what was told to clients here by steps that were never taken here, so they
        are sent away: their sessions are in it, and resume here or elsewhere.
        """
        for connection in list(self.front.connections):
            connection.link.close("this server has fallen behind and went over to a newer state")
            self.front.closed(connection)
        self.multiplexer = self.router.multiplexer = state
        self.compacting.replaced(state)
        self.raft.applied(state.index)
        self.storage.post(Sweep(), lambda _: None)  # the files of the prefix that it replaced
        self.trace(PrefixTaken(state.index))

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
            self.router.forget(ended.session_id)
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
