"""From the common options to an open cluster, for the commands that need a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from folkmoot.core.errors import ConfigError, ConnectionLost, OperationTimeout
from folkmoot.transport.address import format_address, parse_address

if TYPE_CHECKING:
    from folkmoot.cli.options import Options
    from folkmoot.cluster import Cluster
    from folkmoot.core.config import ClientConfig

SCHEME = "folkmoot://"
DEFAULT_PORT = 7400


def addresses_of(url: str) -> list[str]:
    """The client addresses in "folkmoot://host:port,host:port"; a port left out is 7400.

    Raises ConfigError.
    """
    if not url.startswith(SCHEME):
        raise ConfigError(f"{url!r} is no cluster: write {SCHEME}HOST:PORT,HOST:PORT")
    found = []
    for part in url.removeprefix(SCHEME).rstrip("/").split(","):
        bare = part and (":" not in part or part.endswith("]"))
        found.append(format_address(*parse_address(f"{part}:{DEFAULT_PORT}" if bare else part)))
    return found


@asynccontextmanager
async def connected(options: Options, client: ClientConfig | None = None) -> AsyncIterator[Cluster]:
    """Open the cluster that --url names, and wait until it has given us a session.

    Raises ConnectionLost naming the addresses when there is none within --timeout.
    """
    import folkmoot

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
