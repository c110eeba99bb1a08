"""The client where time matters: timeouts, keep-alives, the local deadline. Virtual time, on trio.

The session timeout is 3 s: the local deadline lies 2.7 s after the last acknowledged sign of life.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from folkmoot.core.client import Client
from folkmoot.core.config import ClientConfig
from folkmoot.core.errors import OperationTimeout, OutcomeUnknown, SessionExpired
from folkmoot.core.timeouts import Timeouts
from folkmoot.core.types import ConnectionState
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from tests.core.standalone import Standalone

CONFIG = ClientConfig(session_timeout_s=3.0)
World = tuple[Client, Standalone, MemoryNetwork]


@asynccontextmanager
async def world(config: ClientConfig = CONFIG, **server: Any) -> AsyncIterator[World]:
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as far,
        MemoryTransport(network, "client") as near,
        Standalone(far, **server) as standalone,
        Client(standalone.addresses, near, config) as client,
    ):
        yield client, standalone, network


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    run.__name__ = test.__name__
    return run


class Guard:
    def __init__(self) -> None:
        self.lost_at: list[float] = []

    def on_lost(self, cause: str, index: int) -> None:
        self.lost_at.append(anyio.current_time())


@in_virtual_time
async def test_an_idle_session_lives_by_its_keep_alives() -> None:
    async with world() as (client, standalone, _):
        await client.wait_ready()
        session_id = client.session_id
        await anyio.sleep(60)
        assert (client.state, client.session_id) == (ConnectionState.CONNECTED, session_id)
        assert 55 <= len(standalone.received) <= 65, "about one a second"


@in_virtual_time
async def test_a_timeout_before_sending_says_not_applied_and_names_the_address() -> None:
    async with world() as (client, standalone, network):
        network.cut("client", "server")
        resource = client.resource("n", "counter")
        before = anyio.current_time()
        with pytest.raises(OperationTimeout, match=r"127\.0\.0\.1:") as caught:
            await resource.command("add", 1, timeout=0.5)
        assert anyio.current_time() == pytest.approx(before + 0.5)
        assert caught.value.applied == "no"
        with pytest.raises(OperationTimeout):
            await resource.query("get", timeout=0.5)
        with pytest.raises(OperationTimeout):
            await client.admin("status", timeout=0.5)
        network.heal()
        await resource.command("add", 1)
        assert standalone.multiplexer.query(0, [["n", "counter", 1, {}], "get", []]) == 1


@in_virtual_time
async def test_a_timeout_after_sending_says_perhaps_and_the_next_command_still_works() -> None:
    async with world() as (client, _, network):
        resource = client.resource("n", "counter")
        await resource.command("add", 1)
        network.cut("server", "client", one_way=True)
        with pytest.raises(OutcomeUnknown) as caught:
            await resource.command("add", 1, timeout=0.5)
        assert caught.value.applied == "maybe"
        with pytest.raises(OutcomeUnknown):
            await client.admin("status", timeout=0.1)
        network.heal()
        assert (await resource.command("add", 1))[0] == 3


@in_virtual_time
async def test_a_timeout_of_waiting_counts_from_when_the_waiting_begins() -> None:
    async with world() as (client, _, network):
        resource = client.resource("n", "counter")
        await resource.command("add", 1)
        network.cut("server", "client", one_way=True)
        call = resource.send("add", 1)
        await anyio.sleep(0.1)
        before = anyio.current_time()
        with pytest.raises(OutcomeUnknown):
            await call.wait(timeout=0.25)
        assert anyio.current_time() == pytest.approx(before + 0.25)


@in_virtual_time
async def test_without_a_timeout_a_command_waits_for_as_long_as_it_takes() -> None:
    async with world() as (client, _, network):
        network.cut("client", "server")
        async with anyio.create_task_group() as tasks:

            async def heal() -> None:
                await anyio.sleep(3600)
                network.heal()

            tasks.start_soon(heal)
            assert (await client.resource("n", "counter").command("add", 1))[0] == 1


@in_virtual_time
async def test_bug_i3_guards_hear_of_a_partition_before_the_cluster_may_grant_again() -> None:
    async with world() as (client, standalone, network):
        resource, guard = client.resource("l", "lock"), Guard()
        await resource.command("acquire", 1, None)
        client.add_guard(guard)
        cut_at = anyio.current_time()
        network.cut("client", "server")
        while standalone.multiplexer.sessions.get(1) is not None:  # noqa: ASYNC110
            await anyio.sleep(0.01)  # virtual: whenever the server lets it expire
        ended_at = anyio.current_time()
        assert len(guard.lost_at) == 1
        assert cut_at < guard.lost_at[0] < ended_at
        assert guard.lost_at[0] == pytest.approx(cut_at + 2.7, abs=0.05)
        assert client.state is ConnectionState.EXPIRED
        network.heal()
        await client.wait_ready(timeout=10)
        assert client.session_id > 1


@in_virtual_time
async def test_a_session_that_outlived_its_local_deadline_is_closed_not_used() -> None:
    config = ClientConfig(session_timeout_s=3.0, drift_margin=0.5)
    async with world(config) as (client, standalone, network):
        resource = client.resource("l", "lock")
        await resource.command("acquire", 1, None)
        network.cut("client", "server")
        await anyio.sleep(1.6)
        assert client.state is ConnectionState.EXPIRED
        assert standalone.multiplexer.sessions.get(1) is not None
        network.heal()
        await client.wait_ready(timeout=10)
        assert standalone.multiplexer.sessions.get(1) is None
        assert await resource.command("acquire", 2, None) > 0, "the old holder is gone"


@in_virtual_time
async def test_at_the_local_deadline_nothing_is_left_waiting() -> None:
    async with world() as (client, _, network):
        resource = client.resource("n", "counter")
        await resource.command("add", 1)
        network.cut("client", "server")
        sent = resource.send("add", 1)
        await anyio.sleep(2.3)
        unsent = resource.send("add", 1)
        with pytest.raises(OutcomeUnknown):
            await sent.wait()
        with pytest.raises(SessionExpired):
            await unsent.wait()


@in_virtual_time
async def test_a_silent_server_is_left_for_another_before_the_local_deadline() -> None:
    addresses = ("server:1", "server:2")
    config = ClientConfig(session_timeout_s=3.0, prefer_leader=False)
    async with world(config, addresses=addresses) as (client, standalone, _):
        resource = client.resource("n", "counter")
        await resource.command("add", 1)
        session_id = client.session_id
        for receiver in standalone.receivers:
            receiver.deaf = True
        assert (await resource.command("add", 1))[0] == 2
        assert client.session_id == session_id


@in_virtual_time
async def test_leaving_takes_no_longer_than_a_second_without_a_network() -> None:
    async with world() as (client, _, network):
        await client.wait_ready()
        network.cut("client", "server")
        left_at = anyio.current_time()
        await client.__aexit__(None, None, None)
        assert anyio.current_time() - left_at == pytest.approx(1.0)
        assert client.state is ConnectionState.CLOSED
        client._tasks = anyio.create_task_group()
        await client._tasks.__aenter__()


@in_virtual_time
async def test_a_cancelled_body_is_left_at_once_where_nobody_can_be_told() -> None:
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as far,
        MemoryTransport(network, "client") as near,
        Standalone(far) as standalone,
    ):
        with anyio.CancelScope() as scope:
            async with Client(standalone.addresses, near, CONFIG) as client:
                await client.wait_ready()
                network.cut("client", "server")
                standalone.cut()
                network.drop("client", "server")
                await anyio.sleep(0.5)
                assert client.state is ConnectionState.SUSPENDED
                left_at = anyio.current_time()
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        assert anyio.current_time() == left_at


class Waiting:
    def __init__(self, *, done: bool = False) -> None:
        self.done = done

    def run_out(self) -> None:
        assert not self.done, "told twice"
        self.done = True


def test_timeouts_are_told_once_in_time_and_what_is_done_does_not_pile_up() -> None:
    timeouts = Timeouts()
    assert timeouts.due == float("inf")
    late, early = Waiting(), Waiting()
    assert timeouts.add(5.0, late)
    assert timeouts.add(3.0, early)
    assert not timeouts.add(4.0, Waiting())
    timeouts.run(4.5)
    assert (early.done, late.done, timeouts.due) == (True, False, 5.0)
    timeouts.add(5.0, Waiting(done=True))
    timeouts.run(5.0)
    assert late.done
    for number in range(10_000):
        timeouts.add(100.0 + number, Waiting(done=True))
    assert len(timeouts._heap) <= 1024
