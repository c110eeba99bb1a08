"""Real clients over in-memory links to a server without consensus, for the tests of proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs

from folkmoot.core.client import Client
from folkmoot.core.config import ClientConfig, LimitsConfig
from folkmoot.primitives.counter import Counter
from folkmoot.primitives.map import Map
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from tests.core.standalone import Standalone


@attrs.frozen
class Live:
    """A server, its network, and clients with one session each, which are hosts "c0", "c1", ..."""

    network: MemoryNetwork
    server: Standalone
    clients: list[Client]

    def map(
        self, client: int = 0, type: Any = None, *, name: str = "m", **options: Any
    ) -> Map[Any]:
        return Map(self.clients[client].resource(name, "map"), type, **options)

    def counter(
        self, client: int = 0, bounds: tuple[int | None, int | None] | None = None
    ) -> Counter:
        config = Counter.configuration(bounds)
        return Counter(self.clients[client].resource("n", "counter", config=config))

    def lose_session(self, client: int = 0) -> None:
        """The servers end a client's session."""
        self.server.end_session(self.clients[client].session_id)


@asynccontextmanager
async def live(
    count: int = 1, *, server_limits: LimitsConfig | None = None, **config: Any
) -> AsyncIterator[Live]:
    """Start a server and clients."""
    async with AsyncExitStack() as stack:
        network = MemoryNetwork()
        transport = await stack.enter_async_context(MemoryTransport(network, "server"))
        server = await stack.enter_async_context(
            Standalone(transport, ("server:1",), limits=server_limits)
        )
        clients = []
        for number in range(count):
            host = await stack.enter_async_context(MemoryTransport(network, f"c{number}"))
            settings = ClientConfig(name=f"client-{number}", reconnect_delay_s=0.0, **config)
            client = Client(server.addresses, host, settings)
            clients.append(await stack.enter_async_context(client))
        for client in clients:
            await client.wait_ready(timeout=5)
        yield Live(network, server, clients)
