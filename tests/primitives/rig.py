"""Real clients and a standalone server over an in-memory network, for tests of proxies.

    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")

Nothing sleeps: `settle` lets everything happen that can happen without time passing.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio.lowlevel

from folkmoot.core.client import Client, Resource
from folkmoot.core.config import ClientConfig
from folkmoot.primitives.election import Election
from folkmoot.primitives.lock import Lock
from folkmoot.primitives.topic import Topic
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from tests.core.standalone import Standalone

TURNS = 80
"""So many turns of the event loop are more than anything in here needs to come to rest."""

_KEPT: list[Resource] = []
"""A resource that nobody holds is left, and with it whatever was claimed there: that would hide a
claim that was forgotten. So all resources of a test are held until it ends."""


def _kept(resource: Resource) -> Resource:
    _KEPT.append(resource)
    return resource


class Cluster:
    def __init__(self, network: MemoryNetwork, server: Standalone, stack: AsyncExitStack) -> None:
        self.network = network
        self.server = server
        self.stack = stack

    async def client(self, name: str = "a", session_timeout_s: float = 5.0) -> Client:
        """Start a client that ends with the rig; inside of no cancel scope but the rig's."""
        return await self.stack.enter_async_context(self.transient(name, session_timeout_s))

    @asynccontextmanager
    async def transient(
        self, name: str = "t", session_timeout_s: float = 5.0
    ) -> AsyncIterator[Client]:
        """Run a client, and wait until it has a session."""
        async with MemoryTransport(self.network, name) as transport:
            settings = ClientConfig(name=name, session_timeout_s=session_timeout_s)
            async with Client(self.server.addresses, transport, settings) as client:
                await client.wait_ready()
                yield client

    async def settle(self) -> None:
        for _ in range(TURNS):
            await anyio.lowlevel.checkpoint()

    def expire(self, client: Client) -> None:
        """The cluster ends a client's session, and tells it."""
        self.server.end_session(client.session_id, "closed")  # no other session hears of it


async def holder_and_waiters(any_lock: Lock) -> tuple[str | None, list[str]]:
    """Name the clients that hold and wait."""
    view = await any_lock.describe()
    holder = view.holder.client if view.holder else None
    return holder, [waiter.client for waiter in view.waiters]


def lock(client: Client, name: str = "l", **config: float) -> Lock:
    return Lock(_kept(client.resource(name, "lock", 1, Lock.configuration(**config))))


def election(client: Client, name: str = "e") -> Election[str]:
    return Election(_kept(client.resource(name, "election")), str)


def topic(client: Client, name: str = "t", **config: int) -> Topic[str]:
    return Topic(_kept(client.resource(name, "topic", 1, Topic.configuration(**config))), str)


@asynccontextmanager
async def rig() -> AsyncIterator[Cluster]:
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as transport,
        Standalone(transport, ("server:1",)) as server,
        AsyncExitStack() as stack,
    ):
        yield Cluster(network, server, stack)
    _KEPT.clear()
