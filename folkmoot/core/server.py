"""The server's loop: it feeds `core/replica.py` with what arrives and carries out what it says.

One task owns the replica. Everybody else (links, the storage's worker thread, timers) puts inputs
into the inbox and wakes it; it takes all of them at once and does one turn. Nothing in a turn
awaits.

    wait -> turn: inbox, timers -> messages, writes, answers
         -> writes done here and now when the disk is quick and nothing else waits (else by the
         worker thread) -> turn

PERSIST BEFORE YOU SPEAK (§3.8): consensus holds back what must not leave before a write is durable.
What may leave before it (a leader's appends, §10.2.1) is handed to the kernel before an inline sync
begins.

A failed write or sync, or a machine that raised, stops the server: `run` raises, and nothing more
is acknowledged.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from random import Random, SystemRandom
from typing import Any

import anyio
import anyio.lowlevel
import attrs
from anyio.abc import TaskStatus

from folkmoot.core.config import Member, NodeConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.disk import DiskDriver
from folkmoot.core.errors import FolkmootError, Overloaded, RemoteProtocolError
from folkmoot.core.forwarding import check_peer_hello
from folkmoot.core.machine import Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.peer import PEER_FRAME_BYTES_MAX, Peers
from folkmoot.core.progress import Progress, Reporter, of_prefix
from folkmoot.core.raft import Configuration, Raft, Role
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.replica import Replica
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, encode
from folkmoot.core.restart import recovered_raft, restored
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.log_store import Identity, LogStore
from folkmoot.core.types import NodeId
from folkmoot.core.wakeup import Wakeup
from folkmoot.transport.codec import pack
from folkmoot.transport.link import Link, Listener, Receiver, Transport

log = logging.getLogger("folkmoot.server")

IDLE_S = 10.0
"""The loop turns at least this often, whatever its timers say."""
LET_RUN_S = 0.01
"""What takes long lets others run this often."""
STOP_TIMEOUT_S = 5.0
"""A graceful stop takes no longer: what is not finished then is cut off."""


def boot_clock() -> float:
    """Seconds on a monotonic clock that also counts time in suspension, where the system has
    one.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def cluster_id_of(cluster: str, members: Sequence[Member]) -> bytes:
    """The id that guards every connection.

    Equal only for the same cluster name and the same first members.
    """
    first = [
        [member.node_id, member.peer_address]
        for member in sorted(members, key=lambda member: member.node_id)
    ]
    return hashlib.sha256(pack(["folkmoot", cluster, first])).digest()[:16]


def _refusal(error: FolkmootError) -> bytes:
    """The last frame on a link that is closed because of its bytes."""
    return encode(FrameType.REFUSED, error.code, Exception.__str__(error))


@attrs.define(eq=False)
class _ClientReceiver:
    """What a client's link tells the loop."""

    server: Server
    connection: ClientConnection
    since: float

    def on_frames(self, link: Link, frames: list[tuple[int, int, bytes]]) -> None:
        self.server.inbox.append((self.connection, frames, ""))
        self.server.wakeup.set()

    def on_closed(self, link: Link, reason: str) -> None:
        self.server.inbox.append((self.connection, None, reason))
        self.server.wakeup.set()


@attrs.define(eq=False)
class _PeerReceiver:
    """What a member's link tells the loop. `node_id` is 0 until the member has said hello."""

    server: Server
    link: Link
    since: float
    node_id: NodeId = NodeId(0)

    def on_frames(self, link: Link, frames: list[tuple[int, int, bytes]]) -> None:
        self.server.peer_inbox.append((self, frames))
        self.server.wakeup.set()

    def on_closed(self, link: Link, reason: str) -> None:
        self.server.peer_receivers.discard(self)


class Server:
    """One member: recovers, listens, and runs the loop until it is stopped or fails."""

    def __init__(
        self,
        config: NodeConfig,
        registry: Registry,
        files: Files,
        transport: Transport,
        *,
        clock: Callable[[], float] = boot_clock,
        rng: Random | None = None,
    ) -> None:
        self.config = config
        self.transport = transport
        self.clock = clock
        self.rng = rng if rng is not None else Random(SystemRandom().getrandbits(64))
        self.inbox: list[tuple[ClientConnection, list[tuple[int, int, bytes]] | None, str]] = []
        self.peer_inbox: list[tuple[_PeerReceiver, list[tuple[int, int, bytes]]]] = []
        self.peer_receivers: set[_PeerReceiver] = set()
        self.client_address = ""
        self.peer_address = ""
        self.progress = Reporter()
        self._registry = registry
        self._files = files
        self._ungreeted: deque[_ClientReceiver | _PeerReceiver] = deque()
        self._ups: list[NodeId] = []
        self._stopping = False
        self._stop_by = 0.0
        self._stopped = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Recover, listen and serve. Returns after `stop`.

        Raises StorageError or MachineFault when the server must stop.
        """
        self.wakeup = Wakeup()
        store = LogStore.open(self._files, self.config.storage, self._identity())
        self.disk = DiskDriver(store, self.wakeup, self.config.storage)
        try:
            await self._recover(store)
        except BaseException:
            self.disk.close()
            raise
        listeners: list[Listener] = []
        try:
            async with anyio.create_task_group() as tasks:
                listeners.extend(await self._listen())
                self._keep_peers(tasks)
                task_status.started()
                await self._loop()
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The loop and the links to members are the only tasks; one failure is the whole story.
            raise group.exceptions[0] if len(group.exceptions) == 1 else group from None
        finally:
            with anyio.CancelScope(shield=True):
                for listener in listeners:
                    await listener.aclose()
            self._close_links()
            self.disk.close()
            self._stopped.set()

    def _identity(self) -> Identity:
        """Whose data directory it must be, if it is a new one."""
        config = self.config
        members = config.members or (config.member(),)
        configuration = Configuration.bootstrap(members)
        return Identity(
            cluster_id_of(config.cluster, members), config.node_id, pack(configuration.encode())
        )

    async def _recover(self, store: LogStore) -> None:
        config = self.config
        self.peers = Peers(self.transport, self.rng, self._peer_up)
        multiplexer, configuration = await self._restore(store)
        raft = recovered_raft(store, config, configuration, Raft, rng=self.rng, now=self.clock())
        self.replica = Replica(
            config=config,
            cluster_id=store.identity.cluster_id,
            raft=raft,
            multiplexer=multiplexer,
            storage=self.disk,
            peers=self.peers,
            clock=self.clock,
        )
        self.replica.trace = self._log_trace
        self.replica.version = version("folkmoot")
        self._log_recovery(store, config.members or (config.member(),))

    async def _restore(self, store: LogStore) -> tuple[Multiplexer, Configuration]:
        """Make the state as of the compacted prefix, letting others run meanwhile."""
        steps = restored(store, self.config, self._registry, Multiplexer)
        let_run_s = time.monotonic()
        while True:
            try:
                done, total = next(steps)
            except StopIteration as end:
                self.progress.report(None)
                found: tuple[Multiplexer, Configuration] = end.value
                return found
            if time.monotonic() - let_run_s >= LET_RUN_S:
                self.progress.report(Progress("restoring the state", done, total, "entries"))
                await anyio.lowlevel.checkpoint()
                let_run_s = time.monotonic()

    def _log_recovery(self, store: LogStore, members: Sequence[Member]) -> None:
        """Say what was found on the disk that an operator should know."""
        torn = store.recovered.torn_tail
        if torn is not None:
            log.warning(
                "cut a torn tail of %d bytes at offset %d of %s: %s",
                *(torn.size_bytes, torn.offset, torn.file, torn.why),
            )
        for repaired in store.recovered.repaired:
            log.warning("%s", repaired)
        known = self.replica.raft.configuration.members
        given = {member.node_id: (member.peer_address, member.client_address) for member in members}
        if known != given and not store.recovered.created:
            log.warning(
                "the configured members %s are ignored: this directory has %s", given, dict(known)
            )

    def _log_trace(self, event: TraceEvent) -> None:
        getattr(log, event.severity)("%s", event)

    async def _listen(self) -> list[Listener]:
        config, limits = self.config, self.config.limits
        own = self.replica.raft.configuration.members[config.node_id]
        clients = await self.transport.listen(
            config.client_listen or own[1],
            self._accept_client,
            frame_bytes_max=limits.hello_bytes_max,
        )
        self.client_address = clients.address
        if len(self.replica.raft.configuration.members) == 1:
            return [clients]
        peers = await self.transport.listen(
            config.peer_listen or own[0], self._accept_peer, frame_bytes_max=limits.hello_bytes_max
        )
        self.peer_address = peers.address
        return [clients, peers]

    def _keep_peers(self, tasks: anyio.abc.TaskGroup) -> None:
        """Start keeping links to the other members."""
        addresses = {
            node_id: member[0]
            for node_id, member in self.replica.raft.configuration.members.items()
            if node_id != self.config.node_id
        }
        tasks.start_soon(self.peers.run, self.config.node_id, self.replica.cluster_id, addresses)

    # links

    def _accept_client(self, link: Link) -> Receiver:
        link.immediate, link.farewell = True, _refusal
        connection = ClientConnection(link, self.replica.front.unflushed)
        receiver = _ClientReceiver(self, connection, self.clock())
        limit = self.config.limits.connections_max
        if len(self.replica.front.connections) >= limit or self._stopping:
            why = (
                "this server is stopping"
                if self._stopping
                else f"{limit} clients are connected, the limit"
            )
            self.replica.front.refuse(connection, Overloaded(why))
        else:
            self.replica.add_connection(connection)
            self._ungreeted.append(receiver)
        return receiver

    def _accept_peer(self, link: Link) -> Receiver:
        link.immediate, link.farewell = True, _refusal
        receiver = _PeerReceiver(self, link, self.clock())
        self.peer_receivers.add(receiver)
        self._ungreeted.append(receiver)
        return receiver

    def _peer_up(self, node_id: NodeId) -> None:
        self._ups.append(node_id)
        self.wakeup.set()

    def _close_links(self) -> None:
        for connection in list(self.replica.front.connections):
            connection.link.close("the server stopped")
        for receiver in list(self.peer_receivers):
            receiver.link.close("the server stopped")
        for peer in self.peers.links.values():
            if peer.link is not None:
                peer.link.close("the server stopped")

    # the loop

    async def _loop(self) -> None:
        while True:
            await self.wakeup.wait(min(max(self.replica.deadline() - self.clock(), 0.0), IDLE_S))
            if self._stopping and self._may_stop():
                return
            self._turn()
            while self.disk.inline:
                # What this turn sent leaves before the own disk is asked (§10.2.1).
                if not self.transport.can_write_at_once:
                    await anyio.lowlevel.checkpoint()
                self.replica.durable(self.disk.sync_inline(), self.clock())
                if self.replica.settle(self.clock()):
                    self._turn()

    def _turn(self) -> None:
        begun = time.perf_counter()
        if self.disk.failure is not None:
            raise self.disk.failure
        now = self.clock()
        number = self.disk.take_done()
        if number is not None:
            self.replica.durable(number, now)
        if self._ups:
            ups, self._ups = self._ups, []
            for node_id in ups:
                self.replica.peer_up(node_id)
        if self.peer_inbox:
            self._take_peers(now)
        if self.inbox:
            self._take_clients(now)
        self.replica.turn(now)
        if self.replica.prefixes.receiver.table is not None or self.progress.present is not None:
            self.progress.report(of_prefix(self.replica.prefixes.status()["receiving"]))
        if self._ungreeted:
            self._check_ungreeted(now)
        self.replica.counts.turn_took(time.perf_counter() - begun)

    def _take_peers(self, now: float) -> None:
        inbox, self.peer_inbox = self.peer_inbox, []
        for receiver, frames in inbox:
            try:
                for frame_type, _, body in frames:
                    if receiver.node_id:
                        self.replica.peer_frame(receiver.node_id, frame_type, body, now)
                    else:
                        self._greet_peer(receiver, frame_type, body)
            except RemoteProtocolError as error:
                log.warning("closing the link from %s: %s", receiver.link.remote, error)
                receiver.link.send(_refusal(error))
                receiver.link.close(str(error))

    def _greet_peer(self, receiver: _PeerReceiver, frame_type: int, body: bytes) -> None:
        if frame_type != FrameType.HELLO:
            raise RemoteProtocolError(f"frame type {frame_type} before HELLO")
        replica = self.replica
        members = replica.raft.configuration.members
        receiver.node_id = check_peer_hello(
            body, cluster_id=replica.cluster_id, node_id=self.config.node_id, members=members
        )
        receiver.link.frame_bytes_max = PEER_FRAME_BYTES_MAX
        receiver.link.send(
            encode(
                FrameType.WELCOME,
                PROTOCOL_VERSION,
                replica.cluster_id,
                self.config.node_id,
                *replica.leader_fields(),
            )
        )

    def _take_clients(self, now: float) -> None:
        inbox, self.inbox = self.inbox, []
        front = self.replica.front
        for connection, frames, _ in inbox:
            if frames is None:
                front.closed(connection)
            elif connection in front.connections:
                front.frames(connection, frames, now)

    def _check_ungreeted(self, now: float) -> None:
        """Close connections that have not said who they are in time."""
        timeout_s = self.config.limits.hello_timeout_s
        while self._ungreeted:
            oldest = self._ungreeted[0]
            greeted = (
                oldest.connection.greeted
                if isinstance(oldest, _ClientReceiver)
                else bool(oldest.node_id)
            )
            if not greeted and now - oldest.since < timeout_s:
                break
            self._ungreeted.popleft()
            if not greeted:
                link = (
                    oldest.connection.link if isinstance(oldest, _ClientReceiver) else oldest.link
                )
                link.close(f"no HELLO within {timeout_s} s")

    # stopping

    async def stop(self) -> None:
        """Stop gracefully: hand leadership over, finish what is under way, flush, close.

        Bounded by STOP_TIMEOUT_S; repeating it is allowed.
        """
        if not self._stopping:
            self._stopping = True
            self._stop_by = self.clock() + STOP_TIMEOUT_S
            self.wakeup.set()
        await self._stopped.wait()

    def _may_stop(self) -> bool:
        """Whether nobody is left to hand leadership to, or it has been handed over."""
        now, raft = self.clock(), self.replica.raft
        if raft.role is not Role.LEADER or now >= self._stop_by:
            return True
        try:
            raft.transfer_leadership(None, now)
        except FolkmootError as error:
            log.info("stopping without handing leadership over: %s", error)
            return True
        return False

    def status(self) -> dict[str, Any]:
        """This server's status, as the admin operation of that name gives it."""
        from folkmoot.core.admin import status

        return status(self.replica, [], self.clock())
