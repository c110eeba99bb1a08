"""Worlds for the links' tests: a pair of transports of each kind, and a receiver that takes notes.

Nothing here sleeps: tests wait for what they expect, and `SAFETY_S` only ends a test that hangs.
"""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.transport.base import BaseTransport
from folkmoot.transport.frame import Frame, encode_frame
from folkmoot.transport.link import Link, Listener
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from folkmoot.transport.tcp import TcpTransport

SAFETY_S = 10.0
FRAME_BYTES_MAX = 1 << 20
HOST = "127.0.0.1"
REFUSED = 99
"""A frame of this type makes a Notes refuse it."""
BUG = 98
"""A frame of this type makes a Notes fail."""


class Notes:
    """A receiver that writes down what it is called with."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.batches: list[int] = []
        self.reasons: list[str] = []
        self.links: list[Link] = []
        self.on_batch: Callable[[Link, list[Frame]], None] = lambda link, frames: None
        self._inside = False
        self._changed = anyio.Event()

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.frames]

    def on_frames(self, link: Link, frames: list[Frame]) -> None:
        assert frames, "called without frames"
        assert not link.closed, "called after the link was closed"
        with self._not_reentered():
            self.frames += frames
            self.batches.append(len(frames))
            types = {frame_type for frame_type, _, _ in frames}
            if REFUSED in types:
                raise RemoteProtocolError("frame type 99 is not spoken here")
            if BUG in types:
                raise LookupError("a bug in the receiver")
            self.on_batch(link, frames)

    def on_closed(self, link: Link, reason: str) -> None:
        assert link.closed
        with self._not_reentered():
            self.reasons.append(reason)

    def on_link(self, link: Link) -> "Notes":
        self.links.append(link)
        self._wake()
        return self

    async def until(self, condition: Callable[["Notes"], Any]) -> None:
        with anyio.fail_after(SAFETY_S):
            while not condition(self):
                await self._changed.wait()

    async def until_frames(self, count: int) -> None:
        await self.until(lambda notes: len(notes.frames) >= count)

    @contextmanager
    def _not_reentered(self) -> Iterator[None]:
        assert not self._inside, "called while it was being called"
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class World:
    """Two transports of one kind that can reach one another."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork()

    @property
    def address(self) -> str:
        return "server:0" if self.kind == "memory" else f"{HOST}:0"

    def transport(self, host: str = "client", **options: Any) -> BaseTransport:
        if self.kind == "memory":
            return MemoryTransport(self.network, host, **options)
        return TcpTransport(streams=self.kind == "streams", **options)

    def link_transport(self, host: str = "client", **options: Any) -> Any:
        return self.transport(host, **options)

    @asynccontextmanager
    async def pair(self, **options: Any) -> AsyncIterator["Pair"]:
        """One connection between two transports."""
        async with (
            self.link_transport("server", **options) as server,
            self.link_transport("client", **options) as client,
        ):
            pair = Pair()
            pair.server, pair.client = server, client
            pair.listener = await server.listen(
                self.address, pair.far_notes.on_link, frame_bytes_max=FRAME_BYTES_MAX
            )
            pair.near = await client.connect(
                pair.listener.address, pair.near_notes, frame_bytes_max=FRAME_BYTES_MAX
            )
            await pair.far_notes.until(lambda notes: notes.links)
            pair.far = pair.far_notes.links[0]
            yield pair


class Pair:
    """A connection: `near` was connected, `far` accepted."""

    near: Link
    far: Link
    listener: Listener
    server: Any
    client: Any

    def __init__(self) -> None:
        self.near_notes = Notes()
        self.far_notes = Notes()


def frame(text: str, frame_type: int = 1) -> bytes:
    return encode_frame(frame_type, text.encode())


def raw_connection(address: str) -> socket.socket:
    """A plain blocking socket: a peer that may do anything."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SAFETY_S)
