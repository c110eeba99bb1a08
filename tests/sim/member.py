"""A server: its machine (clock, disk) and, while it is up, a Replica with a loop of its own.

The loop mirrors core/server.py: what arrived is gathered, `turn` is called once for all of it, what
the turn sent is under way before the disk begins, and the next turn comes when something arrives or
is due. A crash can strike between any two of these steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from folkmoot.core.config import Member as MemberConfig
from folkmoot.core.config import NodeConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import FolkmootError, Overloaded
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix_events import PrefixDiscarded, PrefixTaken
from folkmoot.core.raft import Configuration, Role
from folkmoot.core.replica import Replica
from folkmoot.core.restart import recovered_raft, restored
from folkmoot.core.storage.log_store import Identity
from folkmoot.core.types import NodeId
from folkmoot.transport.codec import pack
from folkmoot.transport.frame import Frame, FrameReader
from tests.sim.disk import SimDisk
from tests.sim.links import Connection, PeerLink, ServerLink
from tests.sim.scheduler import Clock, Timer, end_of
from tests.sim.watched import WatchedMultiplexer, WatchedRaft

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

CLUSTER_ID = b"simulated clust."
FRAME_BYTES_MAX = 64 << 20
STOP_TIMEOUT_S = 2.0


class Member:
    """One server over all its lives."""

    def __init__(self, world: Simulation, node_id: NodeId, clock: Clock) -> None:
        self.world = world
        self.node_id = node_id
        self.name = str(int(node_id))
        self.clock = clock
        self.disk = SimDisk(self, world.random(f"disk {node_id}"))
        self.links: dict[NodeId, PeerLink] = {}
        self.life = 0
        """How often it has been started."""
        self.is_up = False
        self.is_paused = False
        self.after_pause: list[Callable[[], None]] = []
        self.strike = ""
        """The point at which it is to crash next."""
        self.away_until = 0.0
        """It does not start again before."""
        self.config: NodeConfig
        self.replica: Replica
        self.raft: WatchedRaft
        self._rng = world.random(f"member {node_id}")
        self._timer = Timer(world.scheduler, self._on_timer)
        self._reader = FrameReader(FRAME_BYTES_MAX)
        self._is_turning = False
        self._now = 0.0
        self._stop_by: float | None = None
        self._connections: dict[Connection, tuple[ClientConnection, FrameReader]] = {}
        self._clear()

    def _clear(self) -> None:
        self._durable: int | None = None
        self._ups: list[NodeId] = []
        self._peer_inbox: list[tuple[NodeId, list[Frame]]] = []
        self._client_inbox: list[tuple[ClientConnection, list[Frame] | None]] = []
        self._sent = False
        self._connections.clear()
        self.after_pause.clear()

    # -- life ----------------------------------------------------------------------------------

    def configure(self, members: tuple[MemberConfig, ...]) -> None:
        """Say who the members are, once."""
        options = self.world.options
        self.config = NodeConfig(
            node_id=self.node_id,
            members=members,
            raft=options.raft(),
            limits=options.limits(),
            storage=options.storage(self.node_id),
        )

    @property
    def multiplexer(self) -> Multiplexer:
        """The replicated state, which another server's prefix may replace."""
        return self.replica.multiplexer

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is compacted, sent, received or trimmed, nor is to be."""
        compacting, prefixes = self.replica.compacting, self.replica.prefixes
        is_compacting = compacting._is_running or compacting._is_rolling or compacting.is_slicing
        is_wanted = compacting._wanted > compacting.index or compacting._retry_at is not None
        is_exchanging = prefixes.receiver.table is not None or not prefixes.sender.is_idle
        config, store = self.config.storage, self.disk.store
        needed = self.raft.reachable_match(self.local_now())
        keep_max = max(config.log_keep_bytes, config.log_keep_bytes_max)
        target = store.trim_target(config.log_keep_bytes, keep_max, needed)
        is_busy = is_compacting or is_wanted or is_exchanging or target is not None
        return self.disk.housekeeping.is_idle and not is_busy

    def connect_to(self, target: Member) -> None:
        """Keep a link to another member from now on."""
        self.links[target.node_id] = PeerLink(self.world.network, self, target)

    def start(self) -> None:
        """Recover from the disk, and run."""
        if self.is_up:
            return
        if self.world.scheduler.now < self.away_until and not self.world.is_healing:
            self.world.scheduler.at(self.away_until, self.start)
            return
        configuration = Configuration.bootstrap(self.config.members)
        identity = Identity(CLUSTER_ID, self.node_id, pack(configuration.encode()))
        if not self.disk.open(self.config.storage, identity):
            self.world.crashed(self)
            return
        self.life += 1
        store = self.disk.store
        self._now = self.clock.now()
        multiplexer, configuration = end_of(
            restored(store, self.config, self.world.registry, WatchedMultiplexer)
        )
        rng = random.Random(self._rng.random())
        self.raft = recovered_raft(
            store, self.config, configuration, WatchedRaft, rng=rng, now=self._now
        )
        self.raft.member = multiplexer.member = self
        self.replica = Replica(
            config=self.config,
            cluster_id=CLUSTER_ID,
            raft=self.raft,
            multiplexer=multiplexer,
            storage=self.disk,
            peers=self,
            clock=self.local_now,
        )
        self.replica.trace = self._on_trace
        self.is_up, self.is_paused, self.strike, self._stop_by = True, False, "", None
        self._clear()
        trace = self.world.trace
        where = store.start.index, store.compaction.index, store.last_index
        trace.add("start", self.name, self.life, store.hard_state.term, *where)
        if self.life > 1:
            trace.count("restarts")
        if self.multiplexer.index:
            trace.count("restarts from a prefix")
            self._count_restored()
        self.world.checks.booted(self, list(store.batches(store.start.index + 1)))
        for link in self.links.values():
            link.open()
        self.wake()

    def _on_trace(self, event: Any) -> None:
        if isinstance(event, PrefixTaken):
            self.world.trace.add("prefix taken", self.name, event.index)
            self.world.trace.count("prefixes installed")
            self._count_restored()
            self.world.checks.went_over(self)
        elif isinstance(event, PrefixDiscarded):
            self.world.trace.add("prefix discarded", self.name, event.why)
            self.world.trace.count("received prefixes damaged")

    def _count_restored(self) -> None:
        """Count what of a restored state is rare."""
        count, sessions = self.world.trace.count, list(self.multiplexer.sessions)
        count("sessions restored with events", sum(bool(one.events.count) for one in sessions))
        count("sessions restored with answers", sum(bool(one.results) for one in sessions))
        count("deadlines restored", int(self.multiplexer.next_deadline() is not None))

    def crash(self, *, power_cut: bool) -> None:
        """End at once, wherever it is."""
        if not self.is_up:
            return
        trace = self.world.trace
        trace.add("crash", self.name, "power cut" if power_cut else "kill", self.strike)
        trace.count("crashes")
        trace.count("power cuts" if power_cut else "kills")
        is_compacting = self.disk.housekeeping.compaction is not None
        trace.count("crashes inside a compaction", int(is_compacting))
        self._die(tells=not power_cut)
        if power_cut:
            self.disk.files.crash(self.disk.rng)
        else:
            self.disk.files.kill()
        self.world.crashed(self)

    def _die(self, *, tells: bool) -> None:
        self.is_up = False
        receiving = self.replica.prefixes.receiver.table is not None
        self.world.trace.count("transfers interrupted", int(receiving))
        self.world.checks.died(self)
        connections = list(self._connections)
        self._clear()
        for link in self.links.values():
            link.breaks()
        for connection in connections:
            connection.server_died()
        if tells:
            for link in self.links.values():
                link.target.links[self.node_id].target_ended()

    def strikes(self, point: str) -> bool:
        """Crash if this is the point at which it was to; say whether it did."""
        if self.strike != point:
            return False
        self.world.trace.count(f"crashes {point}")
        self.crash(power_cut=self.world.power_cut())
        return True

    def stop(self) -> None:
        """Stop gracefully: hand leadership over, finish, close."""
        if self.is_up and self._stop_by is None:
            self.world.trace.add("stop", self.name)
            self._stop_by = self.local_now() + STOP_TIMEOUT_S
            self.wake()

    def _may_stop(self) -> bool:
        now, raft = self.local_now(), self.raft
        assert self._stop_by is not None, "asked to stop"
        if raft.role is not Role.LEADER or now >= self._stop_by:
            return True
        try:
            raft.transfer_leadership(None, now)
        except FolkmootError:
            return True
        return False

    def pause(self) -> None:
        """Stand still, as a stopped process does; time goes on, and what arrives waits."""
        self.is_paused = True
        self.world.trace.add("pause", self.name)

    def resume(self) -> None:
        """Go on with everything that has arrived meanwhile."""
        if self.is_up and self.is_paused:
            self.is_paused = False
            self.world.trace.add("resume", self.name)
            waiting, self.after_pause = self.after_pause, []
            for act in waiting:
                act()
            self.wake()

    # -- what arrives --------------------------------------------------------------------------

    def local_now(self) -> float:
        """The time on its own clock."""
        self._now = max(self._now, self.clock.now())
        return self._now

    def on_peer_bytes(self, sender: NodeId, data: bytes) -> None:
        """Whole frames of another member have arrived."""
        self.world.trace.frame("", str(int(sender)), self.name, data)
        self._peer_inbox.append((sender, self._reader.feed(data)))
        self.wake()

    def on_peer_up(self, node_id: NodeId) -> None:
        """A link to another member came up."""
        self._ups.append(node_id)
        self.wake()

    def accept(self, connection: Connection) -> ClientConnection:
        """A client has connected."""
        link = ServerLink(connection.down)
        server = ClientConnection(link, self.replica.front.unflushed)
        if self._stop_by is not None:
            self.replica.front.refuse(server, Overloaded("this server is stopping"))
        else:
            self.replica.add_connection(server)
        self._connections[connection] = (server, FrameReader(FRAME_BYTES_MAX))
        return server

    def on_client_bytes(self, connection: Connection, data: bytes | None) -> None:
        """Bytes of a client have arrived, or the end of its connection."""
        found = self._connections.get(connection)
        if found is None:
            return
        server, reader = found
        if data is None:
            del self._connections[connection]
            self._client_inbox.append((server, None))
        else:
            self.world.trace.frame("", connection.client.name, self.name, data)
            self._client_inbox.append((server, reader.feed(data)))
        self.wake()

    def on_durable(self, number: int) -> None:
        """Writes up to `number` are on disk."""
        self._durable = number
        self.wake()

    def send(self, node_id: NodeId, data: bytes) -> None:
        """Send a frame to another member (the replica's port)."""
        self._sent = True
        self.links[node_id].send(data)

    # -- the loop ------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something has arrived: turn soon."""
        if not self._is_turning:
            self._timer.set(self.world.scheduler.now + self.world.options.loop_s)

    def _on_timer(self) -> None:
        if not self.is_up or self.is_paused:
            return
        if self._stop_by is not None and self._may_stop():
            self._leave()
            return
        self._is_turning = True
        try:
            self._turn()
            if self.world.options.inline_sync:
                self._settle_all()
        finally:
            self._is_turning = False
        if self.is_up:
            self._timer.set(self._next_turn())

    def _next_turn(self) -> float:
        waiting = self._durable is not None or self._peer_inbox or self._client_inbox or self._ups
        if waiting or self.disk.housekeeping.is_answered:
            return self.world.scheduler.now
        return self.clock.true(self.replica.deadline())

    def _settle_all(self) -> None:
        while self.is_up and self._durable is not None:
            self._settle()

    def _settle(self) -> None:
        """A write that the loop did itself is durable: half a turn, mostly."""
        assert self._durable is not None, "nothing has become durable"
        number, self._durable = self._durable, None
        now = self.local_now()
        self.replica.durable(number, now)
        if self.replica.settle(now):
            self._turn()
        else:
            self._after_turn()

    def _turn(self) -> None:
        now, replica = self.local_now(), self.replica
        if self._durable is not None:
            number, self._durable = self._durable, None
            replica.durable(number, now)
        self.disk.housekeeping.take_done()
        ups, self._ups = self._ups, []
        for node_id in ups:
            replica.peer_up(node_id)
        peer_inbox, self._peer_inbox = self._peer_inbox, []
        for sender, frames in peer_inbox:
            for frame_type, _, body in frames:
                replica.peer_frame(sender, frame_type, body, now)
        client_inbox, self._client_inbox = self._client_inbox, []
        for server, received in client_inbox:
            if received is None:
                replica.front.closed(server)
            elif server in replica.front.connections:
                replica.front.frames(server, received, now)
        stalls, dropped = replica.counts.stalls, replica.counts.groups_dropped
        replica.turn(now)
        self.world.trace.count("stalls noticed", replica.counts.stalls - stalls)
        self.world.trace.count("groups dropped", replica.counts.groups_dropped - dropped)
        self._after_turn()

    def _after_turn(self) -> None:
        self.world.checks.turned(self)
        sent, self._sent = self._sent, False
        if not (sent and self.strikes("after a send")):
            self.disk.work()

    def _leave(self) -> None:
        """The graceful stop is complete."""
        self.world.trace.add("stopped", self.name)
        self.world.trace.count("graceful stops")
        self._die(tells=True)
        self.disk.close()
        self.world.crashed(self)

    def break_a_connection(self, rng: random.Random) -> None:
        """Lose one connection, of a member's or a client's."""
        everything: list[PeerLink | Connection] = [*self.links.values(), *self._connections]
        rng.choice(everything).breaks()
