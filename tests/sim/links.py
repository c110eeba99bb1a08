"""Connections: the links on which members speak to one another, and clients' connections.

As in the product, each member keeps one link to every other, on which only it speaks, and connects
again when the link is lost. A client's connection has two streams, which live and die together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from folkmoot.core.connection import ClientConnection
from folkmoot.transport.frame import FrameReader, encode_frame
from tests.sim.network import Network, Stream

if TYPE_CHECKING:
    from tests.sim.client import SimClient
    from tests.sim.member import Member

RECONNECT_S = (0.02, 1.0)


class PeerLink:
    """The link on which `source` speaks to `target`, over all its connections."""

    def __init__(self, network: Network, source: Member, target: Member) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.stream: Stream | None = None
        self._source_life = self._target_life = 0
        self._delay_s = RECONNECT_S[0]

    def open(self) -> None:
        """The source has started: begin to connect."""
        self.stream = None
        self._source_life = self.source.life
        self._delay_s = RECONNECT_S[0]
        self._attempt(self._source_life)

    def send(self, data: bytes) -> None:
        """Send a frame, or drop it while there is no connection."""
        if self.network.options.datagrams:
            self._send_datagram(data)
        elif self.stream is not None:
            self.stream.send(data)

    def breaks(self) -> None:
        """The connection is lost: frames are, from some point on, and then it is made again."""
        if self.stream is not None:
            self.stream.breaks()
            self.stream = None
            if self.source.is_up:
                self._again()

    def target_ended(self) -> None:
        """The target's process has ended; its machine lives and closes the connection."""
        stream, network = self.stream, self.network

        def closed() -> None:
            open_way = network.is_open(self.target.name, self.source.name)
            if stream is not None and stream is self.stream and open_way:
                self.breaks()

        network.scheduler.after(network.delay(), closed)

    def _attempt(self, life: int) -> None:
        source, target, network = self.source, self.target, self.network
        if life != source.life or not source.is_up or self.stream is not None:
            return
        ways_open = network.is_open(source.name, target.name) and network.is_open(
            target.name, source.name
        )
        if target.is_up and not target.is_paused and ways_open:
            there_and_back_s = network.delay() + network.delay()
            network.scheduler.after(there_and_back_s, self._established, life, target.life)
        else:
            self._again()

    def _again(self) -> None:
        delay = self._delay_s * (0.5 + self.network.rng.random() / 2)
        self._delay_s = min(2 * self._delay_s, RECONNECT_S[1])
        self.network.scheduler.after(delay, self._attempt, self.source.life)

    def _established(self, life: int, target_life: int) -> None:
        if life != self.source.life or not self.source.is_up or self.stream is not None:
            return
        if target_life != self.target.life or not self.target.is_up:
            self._again()
            return
        self.stream = Stream(self.network, self.source.name, self.target.name, self._deliver)
        self._delay_s = RECONNECT_S[0]
        self._target_life = target_life
        self.source.on_peer_up(self.target.node_id)

    def _deliver(self, stream: Stream, data: bytes | None) -> None:
        target = self.target
        if stream is not self.stream and data is None:
            return  # its end; the next connection is being made already
        if target.is_up and target.life == self._target_life:
            if data is not None:
                target.on_peer_bytes(self.source.node_id, data)
        else:
            stream.drop()
            if stream is self.stream:  # the machine answers that there is no such connection
                self.breaks()

    def _send_datagram(self, data: bytes) -> None:
        source, target = self.source, self.target

        def deliver(data: bytes) -> None:
            if target.is_up:
                target.on_peer_bytes(source.node_id, data)

        for frame_type, flags, body in FrameReader(1 << 30).feed(data):
            frame = encode_frame(frame_type, body, flags)
            self.network.datagram(source.name, target.name, frame, deliver)


class ServerLink:
    """The server's end of a client's connection: what `ClientConnection` needs of a link."""

    def __init__(self, down: Stream) -> None:
        self.frame_bytes_max = 1 << 14
        self._down = down

    def send(self, data: bytes) -> None:
        """Send to the client."""
        self._down.send(data)

    def close(self, reason: str = "") -> None:
        """Close behind what was sent."""
        self._down.end()


class Connection:
    """A client's connection, or its attempt at one."""

    def __init__(self, network: Network, client: SimClient, member: Member) -> None:
        self.network = network
        self.client = client
        self.member = member
        self.server: ClientConnection | None = None
        self.is_dropped = False
        """The client has let it go."""
        self._life = member.life
        self.up = Stream(network, client.name, member.name, self._to_server)
        self.down = Stream(network, member.name, client.name, self._to_client)
        network.scheduler.after(network.delay(), self._knock)

    def _knock(self) -> None:
        """The attempt arrives at the server's machine, or stalls on its way."""
        network, member = self.network, self.member
        if self.is_dropped or not network.is_open(self.client.name, member.name):
            return  # the client's own timeout ends it
        self._life = member.life
        if not member.is_up:
            self.down.end()
            return
        if not network.is_open(member.name, self.client.name):
            return
        self.server = member.accept(self)
        self.network.trace.add("accept", member.name, self.client.name)
        network.scheduler.after(network.delay(), self._opened)

    def _opened(self) -> None:
        if not self.is_dropped:
            self.client.on_connected(self)

    def _to_server(self, stream: Stream, data: bytes | None) -> None:
        member, server = self.member, self.server
        if server is None or not member.is_up or member.life != self._life:
            self.up.drop()
            self.down.breaks()  # the machine answers that there is no such connection
        else:
            member.on_client_bytes(self, data)

    def _to_client(self, stream: Stream, data: bytes | None) -> None:
        if not self.is_dropped:
            self.client.on_bytes(self, data)

    def drop(self) -> None:
        """The client closes, behind what it has sent."""
        self.is_dropped = True
        self.up.end()
        self.down.drop()

    def server_died(self) -> None:
        """The server is gone: its answers arrive up to some point."""
        self.up.drop()
        self.down.breaks()

    def client_died(self) -> None:
        """The client is gone without closing."""
        self.is_dropped = True
        self.down.drop()
        self.up.breaks()

    def breaks(self) -> None:
        """The connection is lost for both."""
        self.up.breaks()
        self.down.breaks()
