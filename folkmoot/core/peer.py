"""The links on which this server speaks to the other members.

Every member keeps one link to every other, on which it only speaks; what it hears comes in on the
links that the others made to it. A link begins with HELLO and WELCOME: it carries nothing before
both sides know that they are members of one cluster. Frames for a member whose link is down are
dropped: consensus repeats what matters, and what was forwarded is routed again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import attrs

from folkmoot.core.errors import ConnectionLost, RemoteProtocolError
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, decode, encode
from folkmoot.core.types import NodeId

if TYPE_CHECKING:
    from folkmoot.transport.link import Link, Transport

PEER_FRAME_BYTES_MAX = 64 << 20
"""A member's frame: an append may carry one batch as large as a turn makes it."""
CONNECT_TIMEOUT_S = 2.0
"""One attempt to reach a member; a black hole would hold it for minutes."""
RECONNECT_S = (0.02, 1.0)
"""Delay between two attempts to reach a member: doubled from the first to the second, jittered."""


@attrs.define(eq=False)
class PeerLink:
    """The link on which this server speaks to one other member.

    Receives nothing but the answer to its HELLO.
    """

    node_id: NodeId
    address: str
    link: Link | None = None
    up: bool = False
    refused: str = ""
    """Why the member refused us, while that is so: shown in status."""
    on_up: Callable[[NodeId], None] = attrs.field(default=lambda node_id: None)
    _down: anyio.Event = attrs.field(factory=anyio.Event)

    def on_frames(self, link: Link, frames: list[tuple[int, int, bytes]]) -> None:
        """Take the answer to HELLO; there is no other."""
        for frame_type, _, body in frames:
            if frame_type == FrameType.WELCOME and not self.up:
                _, _, node_id, _, _ = decode(frame_type, body)
                if node_id != self.node_id:
                    raise RemoteProtocolError(
                        f"member {node_id} answers at {self.address}, expected {self.node_id}"
                    )
                self.up, self.refused = True, ""
                self.on_up(self.node_id)
            elif frame_type == FrameType.REFUSED:
                code, message = decode(frame_type, body)
                self.refused = f"{message} [{code}]"
            else:
                raise RemoteProtocolError(
                    f"frame type {frame_type} on a link that this server speaks on"
                )

    def on_closed(self, link: Link, reason: str) -> None:
        """Connect again (see `keep`)."""
        self.up, self.link = False, None
        self._down.set()

    async def keep(self, transport: Transport, hello: bytes, rng: random.Random) -> None:
        """Connect, say who we are, and connect again whenever the link is lost.

        Runs until cancelled.
        """
        delay, delay_max = RECONNECT_S
        while True:
            self._down = anyio.Event()
            try:
                with anyio.fail_after(CONNECT_TIMEOUT_S):
                    self.link = await transport.connect(
                        self.address, self, frame_bytes_max=16 << 10
                    )
            except (ConnectionLost, TimeoutError):
                pass
            else:
                self.link.immediate = True
                self.link.send(hello)
                await self._down.wait()
                if not self.refused:
                    delay = RECONNECT_S[0]
            await anyio.sleep(delay * (0.5 + rng.random() / 2))
            delay = min(delay * 2, delay_max)


class Peers:
    """All links on which this server speaks to the other members."""

    def __init__(
        self, transport: Transport, rng: random.Random, on_up: Callable[[NodeId], None]
    ) -> None:
        self.links: dict[NodeId, PeerLink] = {}
        self._transport = transport
        self._rng = rng
        self._on_up = on_up

    def send(self, node_id: NodeId, data: bytes) -> None:
        """Send to a member if its link is up; else drop."""
        peer = self.links.get(node_id)
        if peer is not None and peer.up and peer.link is not None:
            peer.link.send(data)

    async def run(self, self_id: NodeId, cluster_id: bytes, addresses: dict[NodeId, str]) -> None:
        """Keep a link to each of `addresses` until cancelled."""
        async with anyio.create_task_group() as tasks:
            for node_id, address in sorted(addresses.items()):
                peer = self.links[node_id] = PeerLink(node_id, address, on_up=self._on_up)
                hello = encode(
                    FrameType.HELLO, PROTOCOL_VERSION, "peer", cluster_id, self_id, str(node_id)
                )
                tasks.start_soon(peer.keep, self._transport, hello, self._rng)
