"""From the common options to an open cluster, for the commands that need a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from folkmoot.cluster import addresses_of
from folkmoot.core.errors import ConnectionLost, OperationTimeout

if TYPE_CHECKING:
    from folkmoot.cli.options import Options
    from folkmoot.cluster import Cluster
    from folkmoot.core.config import ClientConfig


@asynccontextmanager
async def connected(options: Options, client: ClientConfig | None = None) -> AsyncIterator[Cluster]:
    """Open the cluster that --url names, and wait until it has given us a session.

    Raises ConnectionLost naming the addresses when there is none within --timeout.
    """
    import folkmoot

    addresses_of(options.url)  # or a mistyped url would be taken as the path of an embedded node
    config = client or options.load().client
    async with folkmoot.open(options.url, config=config) as cluster:
        try:
            await cluster.wait_ready(timeout=options.timeout)
        except OperationTimeout as error:
            raise ConnectionLost(str(error)) from None
        yield cluster


def with_cluster(options: Options, use: Callable[[Cluster], Awaitable[int]]) -> int:
    """Run `use` with the cluster that --url names; return its exit code."""
    import anyio

    async def main() -> int:
        async with connected(options) as cluster:
            return await use(cluster)

    return anyio.run(main)
