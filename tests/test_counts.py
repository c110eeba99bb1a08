"""Counts that decide the speed, free of the machine's noise: syncs, writes to sockets, entries.

Three members in this process, over real sockets and real files.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import folkmoot
from folkmoot.core.config import NodeConfig
from folkmoot.node import Node
from tests.faults.wire import members

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


@contextlib.asynccontextmanager
async def durable_nodes(directory: Path) -> AsyncIterator[list[Node]]:
    everyone = members(3)
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Node(
                    NodeConfig(
                        node_id=member.node_id,
                        members=everyone,
                        data_dir=str(directory / str(member.node_id)),
                    )
                )
            )
            for member in everyone
        ]


def url_of(nodes: list[Node]) -> str:
    return "folkmoot://" + ",".join(node.client_address for node in nodes)


def leader_of(nodes: list[Node]) -> Node:
    return next(node for node in nodes if node.status()["role"] == "leader")


def syncs(node: Node) -> int:
    return node.server.disk.store.counters.log_syncs


async def settled(nodes: list[Node]) -> None:
    """Wait until every member has everything on its disk."""
    with anyio.fail_after(10):
        while len({node.status()["storage"]["durable_index"] for node in nodes}) > 1:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_one_sync_per_node_and_sequential_write(tmp_path: Path) -> None:
    async with durable_nodes(tmp_path) as nodes, folkmoot.open(url_of(nodes)) as cluster:
        users = cluster.map("users", codec="bytes")
        await users.set("first", b"v")
        await settled(nodes)
        before = [(syncs(node), node.status()["last_index"]) for node in nodes]
        for number in range(100):
            await users.set(f"k{number}", b"v" * 100)
        await settled(nodes)
        for node, (syncs_before, index_before) in zip(nodes, before, strict=True):
            # A keep-alive or two may fall into the time; each is an entry of its own.
            entries = node.status()["last_index"] - index_before
            assert 100 <= entries <= 104
            assert syncs(node) - syncs_before <= entries


async def test_many_writers_share_syncs_and_writes(tmp_path: Path) -> None:
    async with durable_nodes(tmp_path) as nodes, folkmoot.open(url_of(nodes)) as cluster:
        users = cluster.map("users", codec="bytes")
        await users.set("first", b"v")
        leader = leader_of(nodes)
        await settled(nodes)
        syncs_before, turns_before = syncs(leader), leader.server.replica.counts.turns
        peers = [peer.link for peer in leader.server.peers.links.values() if peer.link is not None]
        (client,) = leader.server.replica.front.by_session.values()
        links: list[Any] = [*peers, client.link]
        writes_before = [link.writes for link in links]

        async def write(worker: int) -> None:
            for number in range(50):
                await users.set(f"k{worker}-{number}", b"v" * 100)

        async with anyio.create_task_group() as tasks:
            for worker in range(64):
                tasks.start_soon(write, worker)
        await settled(nodes)
        turns = leader.server.replica.counts.turns - turns_before
        assert (syncs(leader) - syncs_before) * 16 <= 64 * 50, "at most one sync per 16 writes"
        for link, before in zip(links, writes_before, strict=True):
            assert link.writes - before <= turns, "one write per connection and turn at most"


async def test_a_hand_off_of_a_lock_is_one_entry(tmp_path: Path) -> None:
    async with durable_nodes(tmp_path) as nodes, folkmoot.open(url_of(nodes)) as cluster:
        lock = cluster.lock("job")
        rounds = 50
        grants = 0

        async def contend() -> None:
            nonlocal grants
            for _ in range(rounds):
                grant = await lock.acquire()
                grants += 1
                await grant.release()

        await cluster.counter("warm-up").add(1)
        before = leader_of(nodes).status()["last_index"]
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(contend)
        entries = leader_of(nodes).status()["last_index"] - before
        assert grants == 4 * rounds
        # One entry to ask for it and one to give it up, which is also the next one's grant.
        assert entries <= 2 * grants + 4
