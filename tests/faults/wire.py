"""Raw bytes to a server's listeners, over real sockets."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import anyio
import attrs

from folkmoot.cli.processes import free_ports
from folkmoot.core.config import LimitsConfig, Member, NodeConfig
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, decode, encode
from folkmoot.core.types import NodeId
from folkmoot.node import Node
from folkmoot.transport.frame import FrameReader

ANSWER_S = 10.0
"""A server that has not answered by then has failed the test."""


@attrs.define
class Raw:
    """One connection that says what it likes."""

    stream: anyio.abc.SocketStream
    reader: FrameReader = attrs.field(factory=lambda: FrameReader(1 << 20))
    frames: list[tuple[int, int, bytes]] = attrs.field(factory=list)

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def hello(self, **changes: Any) -> list[Any]:
        """Say hello as a client does, with `changes`, and return the answer's fields."""
        fields = {
            "version": PROTOCOL_VERSION,
            "role": "client",
            "cluster": b"",
            "node": 0,
            "name": "raw",
        }
        fields.update(changes)
        await self.send(encode(FrameType.HELLO, *fields.values()))
        return await self.receive()

    async def receive(self) -> list[Any]:
        """The next frame: its type's name and its fields. Raises EndOfStream when closed."""
        with anyio.fail_after(ANSWER_S):
            while not self.frames:
                self.frames += self.reader.feed(await self.stream.receive())
        frame_type, _, body = self.frames.pop(0)
        return [FrameType(frame_type).name, *decode(frame_type, body)]

    async def reason(self) -> str:
        """Read on until the server closes; why it did, in its own words ("" if it said nothing)."""
        said = ""
        with anyio.fail_after(ANSWER_S):
            while True:
                try:
                    name, *fields = await self.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return said
                if name == "REFUSED":
                    said = f"{fields[0]}: {fields[1]}"


@contextlib.asynccontextmanager
async def connect(address: str) -> AsyncIterator[Raw]:
    host, _, port = address.rpartition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        yield Raw(stream)


def frame(frame_type: int, body: bytes, *, claim: int | None = None) -> bytes:
    """A frame by hand; `claim` is the length that it says it has."""
    length = len(body) + 2 if claim is None else claim
    return struct.pack("<IBB", length, frame_type, 0) + body


def members(count: int) -> tuple[Member, ...]:
    ports = free_ports(2 * count)
    return tuple(
        Member(
            node_id=NodeId(number + 1),
            peer_address=f"127.0.0.1:{ports[2 * number]}",
            client_address=f"127.0.0.1:{ports[2 * number + 1]}",
        )
        for number in range(count)
    )


@contextlib.asynccontextmanager
async def three_nodes(limits: LimitsConfig | None = None) -> AsyncIterator[list[Node]]:
    """Three members in this process, in memory, over real sockets."""
    everyone = members(3)
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for member in everyone:
            config = NodeConfig(
                node_id=member.node_id, members=everyone, limits=limits or LimitsConfig()
            )
            nodes.append(await stack.enter_async_context(Node(config)))
        yield nodes
