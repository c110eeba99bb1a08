"""Disks that run full: writes are refused before it comes to that, and everything else goes on.

What a disk does that fills up all the same is in test_broken_disks.py: its server stops.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import folkmoot
from folkmoot.cli.processes import LocalCluster, local_cluster
from folkmoot.core import compacting
from folkmoot.core.config import ClientConfig, NodeConfig, StorageConfig
from folkmoot.core.errors import StorageFull
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.node import Node
from tests.faults.wire import members

pytestmark = [pytest.mark.faults, pytest.mark.anyio]

STORAGE = StorageConfig(segment_bytes=1 << 16, reserve_bytes=1 << 19)
QUICK = ClientConfig(session_timeout_s=1.0)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


async def write_until_refused(users: folkmoot.Map[Any], first: int = 0) -> tuple[int, StorageFull]:
    """Write keys from `first` on; return the first one that was refused, and with what."""
    number = first
    while number < first + 20_000:
        try:
            await users.set(f"user-{number}", b"x" * 4000)
        except StorageFull as error:
            return number, error
        number += 1
    raise AssertionError("the disk took everything")


async def write_when_there_is_room(users: folkmoot.Map[Any], number: int) -> None:
    with anyio.fail_after(10):
        while True:
            try:
                await users.set(f"user-{number}", b"x" * 4000)
            except StorageFull:
                await anyio.sleep(0.05)
            else:
                return


async def check_all_there(users: folkmoot.Map[Any], count: int, *, deleted: str) -> None:
    """Every acknowledged write is there, and nothing that was refused."""
    expected = {f"user-{number}" for number in range(count)} - {deleted}
    assert set(await users.keys()) == expected


async def test_one_node_refuses_writes_in_time_and_goes_on_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "folkmoot.server")
    files = MemoryFiles()
    files.capacity_bytes = 3 << 20
    config = NodeConfig(members=members(1), storage=STORAGE)
    async with Node(config, files=files) as node:
        url = f"folkmoot://{node.client_address}"
        async with folkmoot.open(url, config=QUICK) as cluster:
            users, hits = cluster.map("users"), cluster.counter("hits")
            lock = cluster.lock("nightly")
            grant = await lock.acquire()
            session_id = cluster.client.session_id
            count, error = await write_until_refused(users)
            assert files.free_bytes() > STORAGE.reserve_bytes // 2, "well before it was full"
            assert error.applied == "no"
            assert f"reserve is {STORAGE.reserve_bytes}" in str(error)
            assert "server 1" in str(error)
            await refused_for_longer_than_a_session_lives(node, users, count)
            assert cluster.client.session_id == session_id
            grant.check()
            storage = node.status()["storage"]
            assert storage["low"]
            assert storage["free_bytes"] <= storage["reserve_bytes"] == STORAGE.reserve_bytes
            # What reads, and what frees something, goes on.
            assert await users.get("user-0") == b"x" * 4000
            assert await hits.get() == 0
            await grant.release()
            assert await users.delete("user-0")
            with pytest.raises(StorageFull):
                await lock.acquire()
            with pytest.raises(StorageFull):
                await hits.wait_for(at_least=1)
            with pytest.raises(StorageFull):
                async with users.watch():
                    pass
            # There is room again: nothing has to be started or connected anew for it.
            files.capacity_bytes *= 2
            await write_when_there_is_room(users, count)
            assert cluster.client.session_id == session_id
            async with lock.hold(timeout=1.0):
                pass
            await check_all_there(users, count + 1, deleted="user-0")
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in said] == [
        *("the disk is low", "the disk has room again")
    ]
    async with (
        Node(config, files=files) as node,
        folkmoot.open(f"folkmoot://{node.client_address}") as cluster,
    ):
        await check_all_there(cluster.map("users"), count + 1, deleted="user-0")


async def test_what_is_deleted_becomes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives the disk more room: a clear is enough, though nothing fills a segment then."""
    monkeypatch.setattr(compacting, "ROOM_S", 0.2)
    files = MemoryFiles()
    files.capacity_bytes = 4 << 20
    config = NodeConfig(members=members(1), storage=STORAGE)
    async with Node(config, files=files) as node:
        url = f"folkmoot://{node.client_address}"
        async with folkmoot.open(url, config=QUICK) as cluster:
            users = cluster.map("users")
            for _ in range(3):
                count, _ = await write_until_refused(users)
                assert await users.size() == count
                await users.clear()
                await write_when_there_is_room(users, 0)
            assert await users.keys() == ["user-0"]
            storage = node.status()["storage"]
            assert storage["counters"]["compactions"] >= 3
            assert storage["prefix_bytes"] + storage["size_bytes"] < files.capacity_bytes // 4


async def refused_for_longer_than_a_session_lives(
    node: Node, users: folkmoot.Map[Any], number: int
) -> None:
    """Try again and again: the log gets signs of life, and nothing else."""
    before, begun, tries = node.status()["last_index"], time.monotonic(), 0
    while time.monotonic() - begun < 2 * QUICK.session_timeout_s:
        with pytest.raises(StorageFull):
            await users.set(f"user-{number}", b"x" * 4000)
        tries += 1
    assert tries > 50
    assert node.status()["last_index"] - before < 15, f"after {tries} tries"


async def test_a_release_among_many_writers_gets_through(
    tmp_path: Path,
) -> None:
    """The writers keep the session's frames full of commands that are refused."""
    files = MemoryFiles()
    files.capacity_bytes = 3 << 20
    config = NodeConfig(members=members(1), storage=STORAGE)

    async def insist(users: folkmoot.Map[Any], name: str) -> None:
        while True:
            with pytest.raises(StorageFull):
                await users.set(name, b"x")

    async with (
        Node(config, files=files) as node,
        folkmoot.open(f"folkmoot://{node.client_address}") as cluster,
        folkmoot.open(f"folkmoot://{node.client_address}") as other,
        anyio.create_task_group() as tasks,
    ):
        users = cluster.map("users")
        grant = await cluster.lock("nightly").acquire()
        await write_until_refused(users)
        for number in range(20):
            tasks.start_soon(insist, users, f"writer-{number}")
        with anyio.fail_after(5):
            for number in range(20):
                await users.delete(f"user-{number}")
                await anyio.sleep(0.001 * number)
            await grant.release()
            holder = (await other.lock("nightly").describe()).holder
        assert holder is None
        tasks.cancel_scope.cancel()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(directory)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
async def servers(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three processes on one small disk, half of which something else has taken."""
    monkeypatch.setenv("FOLKMOOT_STORAGE_SEGMENT_BYTES", str(1 << 16))
    monkeypatch.setenv("FOLKMOOT_STORAGE_RESERVE_BYTES", str(RESERVE_BYTES))
    ballast(small_disk).write_bytes(bytes(12 << 20))
    with local_cluster(nodes=3, port=0, data=str(small_disk / "cluster")) as cluster:
        cluster.start()
        await cluster.wait_ready(20)
        yield cluster
        await cluster.stop()


RESERVE_BYTES = 3 << 20


def ballast(directory: Path) -> Path:
    return directory / "ballast"


async def test_three_servers_on_a_disk_that_runs_full(
    servers: LocalCluster, small_disk: Path
) -> None:
    leader = await servers.wait_ready(20)
    follower = next(one for one in servers.servers if one.node_id != leader)
    stays = ClientConfig(prefer_leader=False)
    pids = [server.pid for server in servers.servers]
    async with (
        folkmoot.open(servers.url) as cluster,
        folkmoot.open(f"folkmoot://{follower.member.client_address}", config=stays) as aside,
    ):
        users = cluster.map("users")
        grant = await aside.lock("nightly").acquire()
        count, error = await write_until_refused(users)
        assert shutil.disk_usage(small_disk).free > RESERVE_BYTES // 2, "well before it was full"
        assert f"server {leader}" in str(error)
        # A client of a follower hears the same, and what it holds is its own.
        with pytest.raises(StorageFull, match=f"server {leader}, which leads"):
            await aside.map("users").set("refused", b"")
        assert await aside.map("users").get("user-1") == b"x" * 4000
        await grant.release()
        assert await aside.map("users").delete("user-0")
        # Killed and started again, they are where they were.
        for server in servers.servers:
            server.kill()
        servers.start()
        leader = await servers.wait_ready(20)
        with pytest.raises(StorageFull, match=f"server {leader}, which leads"):
            await users.set("refused", b"")
        await check_all_there(users, count, deleted="user-0")
        assert await aside.map("users").delete("no such key") is None
        pids = [server.pid for server in servers.servers]
        ballast(small_disk).unlink()
        await write_when_there_is_room(users, count)
        await write_when_there_is_room(aside.map("users"), count + 1)
        await check_all_there(users, count + 2, deleted="user-0")
    assert [server.pid for server in servers.servers if server.running] == pids
