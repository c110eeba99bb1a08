"""The cluster as an application sees it: `open` it, enter it, and ask it for primitives by name.

A thin face. `open` decides what is meant: nothing given is a cluster in this process and its
memory, a path one durable node, `folkmoot://a,b,c` the servers there. All give the same `Cluster`,
which owns a client and, where the cluster is embedded, the node.

    async with folkmoot.open() as cluster:
        async with cluster.lock("nightly").hold(timeout=5) as held: ...

What is asked for by name does no I/O: it may be made before the cluster is entered, and opens with
its first operation. An exception of the body passes through unchanged, never in a group.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

import anyio
import attrs

from folkmoot.core.client import Client, Resource, StateChanges
from folkmoot.core.config import ClientConfig, NodeConfig
from folkmoot.core.errors import ConfigError, OutcomeUnknown, UsageError
from folkmoot.core.machine import Machine
from folkmoot.core.types import ConnectionState, Duration, seconds
from folkmoot.primitives.counter import Counter
from folkmoot.primitives.election import Election
from folkmoot.primitives.lock import Lock
from folkmoot.primitives.map import Map
from folkmoot.primitives.topic import Topic
from folkmoot.transport.address import format_address, parse_address

if TYPE_CHECKING:
    from folkmoot.primitives._values import Codec, CodecName

V = TypeVar("V")

SCHEME = "folkmoot://"
MEMORY = "memory://"
"""One node in this process and its memory, whatever the environment says."""
DEFAULT_PORT = 7400
"""Of a cluster's clients, where an address names none."""
URL_VARIABLE = "FOLKMOOT_URL"
_PAGE = 1000
_ACCEPTED = (
    f"write {SCHEME}HOST:PORT,HOST:PORT for a cluster, the path of a directory for one durable "
    "node, or nothing for one in memory"
)


def open(
    url: str | os.PathLike[str] | None = None,
    *,
    machines: Iterable[type[Machine]] = (),
    config: ClientConfig | None = None,
    name: str = "",
) -> Cluster:
    """Describe a cluster; nothing happens before it is entered with `async with`.

    Args:
        url: `folkmoot://host:port,host:port` is a cluster (port 7400 where none is given);
            `memory://` is one node in this process and its memory, as in a test that must not touch
            a real cluster; any other text or path is the directory of one durable node in this
            process. None: what the environment's FOLKMOOT_URL says, or one node in memory.
        machines: types of your own, which an embedded node shall serve beside the built-in ones.
            The servers of a cluster have their own (`Node(machines=...)`, or the command line's
            `folkmoot server --machine`).
        config: the client's settings.
        name: shown to others as the holder, waiter or candidate; by default host, program, process.

    Raises UsageError for a url that is none of these.
    """
    if url is None:
        url = os.environ.get(URL_VARIABLE) or None
    if name:
        config = attrs.evolve(config or ClientConfig(), name=name)
    if url is None:
        return Cluster(None, None, machines=machines, config=config)
    if not _is_path(url):
        raise UsageError(f"open({url!r}): {_ACCEPTED}")
    if url == MEMORY:
        return Cluster(None, None, machines=machines, config=config)
    if isinstance(url, str) and "://" in url:
        return Cluster(addresses_of(url), None, machines=machines, config=config)
    return Cluster(None, os.fspath(url), machines=machines, config=config)


def _is_path(url: object) -> bool:
    return isinstance(url, str | os.PathLike) and isinstance(os.fspath(url), str) and url != ""


def addresses_of(url: str) -> list[str]:
    """Return the addresses in "folkmoot://host:port,host:port". Raises UsageError."""
    if not url.startswith(SCHEME):
        raise UsageError(f"{url!r} is no cluster: {_ACCEPTED}")
    found = []
    for part in url.removeprefix(SCHEME).rstrip("/").split(","):
        has_port = ":" in part and not part.endswith("]")
        try:
            host, port = parse_address(part if has_port else f"{part}:{DEFAULT_PORT}")
        except ConfigError as error:
            raise UsageError(f"{url!r}: {error}; {_ACCEPTED}") from None
        if port == 0:
            raise UsageError(f"{url!r}: port 0 is no port to connect to; {_ACCEPTED}")
        found.append(format_address(host, port))
    return found


@attrs.frozen
class ResourceInfo:
    """What the directory knows of a resource."""

    name: str
    id: int
    type_name: str
    type_version: int
    config: Mapping[str, Any]
    sessions: int
    """How many sessions have it open."""


class Retention(TypedDict, total=False):
    """How many of its newest messages a topic keeps; what is not given has a default."""

    count: int
    bytes: int
    age: Duration
    """Seconds of log time."""


class Cluster:
    """A cluster, entered with `async with`; the primitives in it by name.

    Make one with `folkmoot.open`. Entering does not wait for the network (`wait_ready` does);
    leaving closes the session, so that locks are released and candidates leave at once.
    """

    def __init__(
        self,
        addresses: list[str] | None,
        data_dir: str | None,
        *,
        machines: Iterable[type[Machine]] = (),
        config: ClientConfig | None = None,
    ) -> None:
        self._addresses = addresses
        self._data_dir = data_dir
        self._machines = tuple(machines)
        self._client = Client(config=config)
        self._stack = AsyncExitStack()

    # entering and leaving

    async def __aenter__(self) -> Self:
        """Start the node, where it is embedded, and the client."""
        async with AsyncExitStack() as stack:
            if self._addresses is not None:
                from folkmoot.transport.tcp import TcpTransport

                transport = await stack.enter_async_context(TcpTransport())
                self._client.use(self._addresses, transport)
            else:
                from folkmoot.node import Node  # servers only where one is embedded

                node = Node(NodeConfig(data_dir=self._data_dir), machines=self._machines)
                await stack.enter_async_context(node)
                self._client.use([node.client_address], node.transport)
            await stack.enter_async_context(self._client)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Close the session for a bounded time, then stop everything."""
        if exc is None or isinstance(exc, Exception):
            # Nobody below needs to know, and none of them can wrap it into a group.
            await self._stack.aclose()
            return None
        return await self._stack.__aexit__(exc_type, exc, traceback)

    # primitives

    @overload
    def map(
        self, name: str, type: None = None, *, codec: CodecName | Codec[Any] = "msgpack"
    ) -> Map[Any]: ...
    @overload
    def map(self, name: str, type: type[V], *, codec: CodecName = "msgpack") -> Map[V]: ...
    def map(self, name: str, type: Any = None, *, codec: Any = "msgpack") -> Map[Any]:
        """Return the map of that name; values of `type`, written by `codec`."""
        return Map(self._client.resource(name, "map"), type, codec=codec)

    def lock(self, name: str, *, lock_delay: Duration | None = None) -> Lock:
        """Return the lock of that name.

        `lock_delay`: how long nobody gets it after a holder was lost, rather than released it.
        """
        config = Lock.configuration(lock_delay)
        return Lock(self._client.resource(name, "lock", config=config))

    @overload
    def election(
        self, name: str, type: None = None, *, codec: CodecName | Codec[Any] = "msgpack"
    ) -> Election[Any]: ...
    @overload
    def election(
        self, name: str, type: type[V], *, codec: CodecName = "msgpack"
    ) -> Election[V]: ...
    def election(self, name: str, type: Any = None, *, codec: Any = "msgpack") -> Election[Any]:
        """Return the election of that name; what its leaders proclaim is of `type`."""
        return Election(self._client.resource(name, "election"), type, codec=codec)

    def counter(self, name: str, *, bounds: tuple[int | None, int | None] | None = None) -> Counter:
        """Return the counter of that name, which stays within `bounds`."""
        config = Counter.configuration(bounds)
        return Counter(self._client.resource(name, "counter", config=config))

    @overload
    def topic(
        self,
        name: str,
        type: None = None,
        *,
        codec: CodecName | Codec[Any] = "msgpack",
        **retention: Unpack[Retention],
    ) -> Topic[Any]: ...
    @overload
    def topic(
        self,
        name: str,
        type: type[V],
        *,
        codec: CodecName = "msgpack",
        **retention: Unpack[Retention],
    ) -> Topic[V]: ...
    def topic(
        self,
        name: str,
        type: Any = None,
        *,
        codec: Any = "msgpack",
        **retention: Unpack[Retention],
    ) -> Topic[Any]:
        """Return the topic of that name; messages of `type`, retained up to `count`, `bytes`,
        `age`.
        """
        config = Topic.configuration(**retention)
        return Topic(self._client.resource(name, "topic", config=config), type, codec=codec)

    def resource(
        self, machine: type[Machine], name: str, config: Mapping[str, Any] | None = None
    ) -> Resource:
        """Return a resource of a type of your own: issue commands and ask queries by their names.

        The servers must know the type: `open(machines=...)` or `Node(machines=...)`.
        """
        return self._client.resource(name, machine.type_name, machine.type_version, config)

    # the connection

    @property
    def state(self) -> ConnectionState:
        """What is known of the session."""
        return self._client.state

    @property
    def client(self) -> Client:
        """The client underneath, for proxies of your own."""
        return self._client

    def states(self) -> StateChanges:
        """Observe the session, from entering on: `async with cluster.states() as changes`."""
        return self._client.states()

    async def wait_ready(self, timeout: Duration | None = None) -> None:
        """Wait until there is a session. Raises OperationTimeout naming addresses and causes."""
        await self._client.wait_ready(timeout)

    # the directory, and the servers

    async def resources(
        self, *, prefix: str = "", timeout: Duration | None = None
    ) -> list[ResourceInfo]:
        """List the resources whose names begin with `prefix`, in order of name.

        Each page is read at its own moment: what is made or deleted meanwhile may be missed.
        """
        directory, found, after = self._client.directory, [], ""
        while True:
            rows, _ = await directory.query("list", prefix, after, _PAGE, timeout=timeout)
            found += [ResourceInfo(*row) for row in rows]
            if len(rows) < _PAGE:
                return found
            after = rows[-1][0]

    async def delete(self, name: str, *, timeout: Duration | None = None) -> bool:
        """Delete a resource and all that is in it, for everybody; tell whether there was one.

        Who uses it hears of it, and is answered with ResourceDeleted.
        """
        directory = self._client.directory
        row, _ = await directory.query("find", name, timeout=timeout)
        if row is None:
            return False
        await directory.command("delete", row[1], timeout=timeout)
        return True

    async def status(self, *, timeout: Duration | None = None) -> dict[str, Any]:
        """Return the connected server's view of the cluster. Needs no leader."""
        deadline = None if timeout is None else anyio.current_time() + seconds(timeout)
        while True:
            left = None if deadline is None else max(0.0, deadline - anyio.current_time())
            try:
                answer: dict[str, Any] = await self._client.admin("status", timeout=left)
            except OutcomeUnknown:  # the connection was lost: it only asks, so it may ask again
                if left == 0.0:
                    raise
            else:
                return answer

    def __repr__(self) -> str:
        if self._addresses is not None:
            where = SCHEME + ",".join(self._addresses)
        else:
            where = f"in {self._data_dir}" if self._data_dir else "in memory"
        return f"<Cluster {where}, {self.state.value}>"
