"""`folkmoot.open` and the Cluster: what is meant by which url, and the way in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

import folkmoot
from folkmoot.cluster import Cluster, addresses_of
from folkmoot.core.machine import Context, Machine, QueryContext, command, query
from folkmoot.core.types import ConnectionState
from folkmoot.transport.tcp import TcpTransport
from tests.core.standalone import Standalone
from tests.faults.wire import three_nodes


class Greeter(Machine):
    """A user's own machine."""

    type_name = "example.greeter"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.names: list[str] = []

    @command
    def greet(self, context: Context, name: str) -> int:
        self.names.append(name)
        return len(self.names)

    @query
    def everybody(self, context: QueryContext) -> list[str]:
        return self.names

    def snapshot(self) -> list[str]:
        return self.names

    def restore(self, data: list[str]) -> None:
        self.names = list(data)


# what is meant


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("folkmoot://a", ["a:7400"]),
        ("folkmoot://a,b:1,c/", ["a:7400", "b:1", "c:7400"]),
        ("folkmoot://[::1],[::2]:9", ["[::1]:7400", "[::2]:9"]),
    ],
)
def test_a_url_names_the_servers(url: str, addresses: list[str]) -> None:
    assert addresses_of(url) == addresses


@pytest.mark.parametrize(
    "url",
    [
        "folkmoot://",
        "folkmoot://a,,b",
        "folkmoot://a:port",
        "folkmoot://a:0",
        "folkmoot://a:70000",
        "folkmoot://::1",
        "http://a:7400",
        "redis://a",
        "",
        7400,
        b"folkmoot://a",
    ],
)
def test_what_names_nothing_is_refused_and_told_what_would(url: Any) -> None:
    with pytest.raises(folkmoot.UsageError, match="folkmoot://HOST:PORT"):
        folkmoot.open(url)


def test_no_url_is_the_environments_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOLKMOOT_URL", raising=False)
    assert repr(folkmoot.open()) == "<Cluster in memory, suspended>"
    monkeypatch.setenv("FOLKMOOT_URL", "")
    assert repr(folkmoot.open()) == "<Cluster in memory, suspended>"
    monkeypatch.setenv("FOLKMOOT_URL", "folkmoot://a:1,b")
    assert repr(folkmoot.open()) == "<Cluster folkmoot://a:1,b:7400, suspended>"
    assert repr(folkmoot.open("here")) == "<Cluster in here, suspended>"


def test_any_other_text_or_path_is_a_directory(tmp_path: Path) -> None:
    assert repr(folkmoot.open(tmp_path)) == f"<Cluster in {tmp_path}, suspended>"
    assert repr(folkmoot.open("./data")) == "<Cluster in ./data, suspended>"


def test_primitives_are_made_without_a_running_cluster() -> None:
    cluster = folkmoot.open()
    made: list[Any] = [
        cluster.map("m"),
        cluster.lock("l", lock_delay=1),
        cluster.election("e"),
        cluster.counter("c", bounds=(0, 9)),
        cluster.topic("t", count=5),
        cluster.resource(Greeter, "g"),
    ]
    assert [one.name for one in made] == ["m", "l", "e", "c", "t", "g"]


def test_wrong_options_are_refused_at_once() -> None:
    cluster = folkmoot.open()
    with pytest.raises(folkmoot.ConfigError):
        cluster.counter("c", bounds=(9, 0))
    with pytest.raises(folkmoot.ConfigError):
        cluster.topic("t", count=0)
    with pytest.raises(folkmoot.UsageError):
        cluster.map("")
    with pytest.raises(folkmoot.TooLarge):
        cluster.lock("n" * 1000)


def test_every_public_name_is_there() -> None:
    assert sorted(folkmoot.__all__) == sorted(set(folkmoot.__all__))
    for name in folkmoot.__all__:
        assert getattr(folkmoot, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = folkmoot.nonsense


# in and out


@pytest.mark.anyio
async def test_an_embedded_cluster_works() -> None:
    async with folkmoot.open(name="me") as cluster:
        await cluster.wait_ready(timeout=10)
        assert cluster.state.value == "connected"
        async with cluster.lock("nightly").hold(timeout=5) as held:
            assert held.token > 0
        await cluster.map("users").set("ada", {"born": 1815})
        assert await cluster.map("users").get("ada") == {"born": 1815}
        assert (await cluster.status(timeout=5))["role"] == "leader"
    assert cluster.state is ConnectionState.CLOSED


@pytest.mark.anyio
async def test_the_directory_lists_and_deletes() -> None:
    async with folkmoot.open() as cluster:
        counters = [cluster.counter(name) for name in ("b", "aa", "ab")]
        for counter in counters:
            await counter.add(1)
        found = await cluster.resources(prefix="a")
        assert [(one.name, one.type_name, one.sessions) for one in found] == [
            ("aa", "counter", 1),
            ("ab", "counter", 1),
        ]
        assert await cluster.delete("aa") is True
        assert await cluster.delete("aa") is False
        assert [one.name for one in await cluster.resources()] == ["ab", "b"]


@pytest.mark.anyio
async def test_a_machine_of_ones_own_takes_the_same_road() -> None:
    async with folkmoot.open(machines=[Greeter]) as cluster:
        greeter = cluster.resource(Greeter, "hall")
        assert await greeter.command("greet", "ada") == 1
        assert (await greeter.query("everybody"))[0] == ["ada"]


@pytest.mark.anyio
async def test_an_exception_of_the_body_comes_out_as_it_is() -> None:
    async def fail() -> None:
        async with folkmoot.open() as cluster:
            await cluster.counter("n").add(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


@pytest.mark.anyio
async def test_cancelling_the_body_leaves_in_order() -> None:
    with anyio.CancelScope() as scope:
        async with folkmoot.open() as cluster:
            await cluster.counter("n").add(1)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert cluster.state is ConnectionState.CLOSED


@pytest.mark.anyio
async def test_a_closed_cluster_says_so_and_is_not_entered_again() -> None:
    async with folkmoot.open() as cluster:
        counter = cluster.counter("n")
    with pytest.raises(folkmoot.ClosedError):
        await counter.add(1)
    with pytest.raises(folkmoot.UsageError):
        async with cluster:
            raise AssertionError("not reached")


@pytest.mark.anyio
async def test_a_directory_is_durable(tmp_path: Path) -> None:
    for expected in (1, 2):
        async with folkmoot.open(tmp_path / "data") as cluster:
            assert (await cluster.counter("n").add(1)) == expected


@pytest.mark.anyio
async def test_a_cluster_is_reached_over_tcp() -> None:
    async with (
        TcpTransport() as transport,
        Standalone(transport) as standalone,
        folkmoot.open("folkmoot://" + ",".join(standalone.addresses)) as cluster,
    ):
        await cluster.counter("n").add(1)
        assert await cluster.counter("n").get() == 1
        assert (await cluster.status())["node_id"] == 1


@pytest.mark.anyio
async def test_a_wrong_address_is_named_within_the_callers_timeout() -> None:
    async with folkmoot.open("folkmoot://127.0.0.1:1") as cluster:
        with pytest.raises(
            folkmoot.OperationTimeout, match=r"127\.0\.0\.1:1 \(.*refused"
        ) as caught:
            await cluster.counter("n").add(1, timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.applied == "no"
        with pytest.raises(folkmoot.OperationTimeout, match=r"127\.0\.0\.1:1"):
            await cluster.wait_ready(timeout=0.05)


def test_a_cluster_is_generic_in_its_values() -> None:
    """For the type checker, which reads this test too."""
    cluster = Cluster(["a:1"], None)
    numbers: folkmoot.Map[int] = cluster.map("n", int)
    anything: folkmoot.Map[Any] = cluster.map("a", codec="json")
    assert (numbers.name, anything.name) == ("n", "a")


def test_under_asyncio_itself_a_client_follows_the_leader() -> None:
    """A callback of a link must not start tasks: anyio knows no event loop there."""

    async def main() -> None:
        async with three_nodes() as nodes:
            followers = [node for node in nodes if node.status()["role"] == "follower"]
            for node in followers:
                async with folkmoot.open(f"folkmoot://{node.client_address}") as cluster:
                    await cluster.wait_ready(10)
                    assert await cluster.counter("hits").add(1) > 0

    asyncio.run(main())


def test_memory_is_memory_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLKMOOT_URL", "folkmoot://127.0.0.1:1")

    async def main() -> None:
        async with folkmoot.open("memory://") as cluster:
            assert await cluster.counter("hits").add(1) == 1

    anyio.run(main)


@pytest.mark.anyio
async def test_a_cancelled_body_leaves_an_embedded_cluster_at_once() -> None:
    """The node outlives the body for as long as the client needs to close its session."""
    begun = anyio.current_time()
    with anyio.move_on_after(0.1):
        async with folkmoot.open() as cluster:
            await cluster.counter("hits").add(1)
            await anyio.sleep_forever()
    assert anyio.current_time() - begun < 0.9
