"""Backups of real servers: saved under load, restored beside an old member, cut short."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import folkmoot
from folkmoot.cli.exits import ExitCode
from folkmoot.cli.processes import LocalCluster, LocalServer, local_cluster, plan, write_layout
from folkmoot.core.errors import OutcomeUnknown, Unavailable

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PROGRAM = (sys.executable, "-P", "-m", "folkmoot.cli")
SLOW = "\n[storage]\ntransfer_bytes_per_s = 65536\n"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """One backend is enough where processes are what is tested."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    with local_cluster(nodes=3, port=0, data=str(tmp_path / "old")) as cluster:
        cluster.start()
        await cluster.wait_ready(20)
        yield cluster
        await cluster.stop()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=50)


async def save(url: str, path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return await anyio.to_thread.run_sync(
        lambda: run("snapshot", "save", str(path), "--url", url, "--json", *more)
    )


def layout(directory: Path, nodes: int = 3, *, more: str = "") -> LocalCluster:
    """Configuration files for a cluster at other ports; nothing runs yet."""
    members = plan(nodes, 0)
    write_layout(directory, members)
    for path in directory.glob("*.toml"):
        path.write_text(path.read_text() + more)
    return LocalCluster(directory, [LocalServer(member, directory) for member in members])


@contextlib.contextmanager
def kept(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """Let no server outlive the block."""
    try:
        yield cluster
    finally:
        cluster.kill()


def restore(backup: Path, cluster: LocalCluster, *node_ids: int) -> list[dict[str, Any]]:
    made = []
    for server in cluster.servers:
        if not node_ids or server.node_id in node_ids:
            done = run(
                *("snapshot", "restore", str(backup), "--json"),
                *("--config", str(server.config_path)),
            )
            assert done.returncode == 0, done.stderr
            made.append(json.loads(done.stdout))
    return made


@attrs.define
class Load:
    """Increments and map writes that go on beside something else."""

    acknowledged: int = 0
    unknown: int = 0
    revision: int = 0
    """The highest that was answered."""

    async def work(self, cluster: folkmoot.Cluster) -> None:
        counter, users = cluster.counter("hits"), cluster.map("users")
        while True:
            try:
                await counter.add(1)
                self.acknowledged += 1
                version = await users.set(f"user-{self.acknowledged % 50}", self.acknowledged)
                self.revision = max(self.revision, version)
            except OutcomeUnknown:
                self.unknown += 1
            except Unavailable:
                await anyio.sleep(0.02)


async def until(holds: Callable[[], Any], timeout_s: float = 20) -> None:
    with anyio.fail_after(timeout_s):
        while not holds():  # noqa: ASYNC110 - real processes
            await anyio.sleep(0.02)


async def test_saved_under_load_and_restored_as_a_new_cluster(
    servers: LocalCluster, tmp_path: Path
) -> None:
    backup, load = tmp_path / "backup", Load()
    async with folkmoot.open(servers.url) as cluster:
        lock = cluster.lock("nightly")
        grant = await lock.acquire()
        await cluster.topic("news").publish("before")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.work, cluster)
            await until(lambda: load.acknowledged > 100)
            least = load.acknowledged
            done = await save(servers.url, backup)
            most = load.acknowledged
            await until(lambda: load.acknowledged > most + 50)
            tasks.cancel_scope.cancel()
        old_token, old_revision = grant.token, load.revision
        newest = max(old_token, old_revision)
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["index"] < newest, "the old cluster went on behind the backup"
    found = json.loads(run("snapshot", "inspect", str(backup), "--json").stdout)
    types = {one["name"]: one["type"] for one in found["resources"]}
    assert types == {"hits": "counter", "users": "map", "nightly": "lock", "news": "topic"}

    with kept(layout(tmp_path / "new")) as new:
        made = restore(backup, new)
        assert len({one["cluster_id"] for one in made}) == 1
        assert made[0]["cluster_id"] != found["cluster_id"]
        new.start()
        await new.wait_ready(20)
        async with folkmoot.open(new.url) as cluster:
            count = await cluster.counter("hits").get()
            assert least <= count <= most + load.unknown + 1, "all that was acknowledged before"
            users = await cluster.map("users").items()
            assert len(users) == 50
            grant = await cluster.lock("nightly").acquire(timeout=5)
            assert grant.token > newest, "locks are free, and tokens keep rising"
            version = await cluster.map("users").set("another", 1)
            assert version > newest
        shown = json.loads(run("status", "--json", "--url", new.url).stdout)
        assert (shown["epoch"], shown["health"]) == (1, "healthy")
        assert shown["cluster_id"] == made[0]["cluster_id"]
        again = tmp_path / "again"
        assert (await save(new.url, again)).returncode == 0
        assert json.loads(run("snapshot", "inspect", str(again), "--json").stdout)["epoch"] == 1
        for server in new.servers:
            verified = run("log", "verify", str(server.directory / f"node-{server.node_id}"))
            assert verified.returncode == 0, verified.stdout
            assert "in use by pid" in verified.stderr
        await new.stop()


async def test_bug_k7_an_old_member_that_lives_has_no_part_in_the_new_cluster(
    servers: LocalCluster, tmp_path: Path
) -> None:
    """The new cluster takes the old one's addresses and configuration, and old node 1 lives on."""
    async with folkmoot.open(servers.url) as cluster:
        await cluster.map("users").set("a", 1)
    backup = tmp_path / "backup"
    assert (await save(servers.url, backup)).returncode == 0
    async with folkmoot.open(servers.url) as cluster:
        await cluster.map("users").set("a", "only in the old one")
    for server in servers.servers[1:]:
        server.kill()
        shutil.move(server.directory / f"node-{server.node_id}", tmp_path / f"old-{server.node_id}")
    restore(backup, servers, 2, 3)
    for server in servers.servers[1:]:
        server.start()
    new = [server.member.client_address for server in servers.servers[1:]]
    await until(lambda: "led by" in _log(servers, 2) or "leading" in _log(servers, 2))
    await anyio.sleep(3)  # several election timeouts of old node 1
    async with folkmoot.open(f"folkmoot://{','.join(new)}") as cluster:
        await cluster.map("users").set("b", 2)
        assert dict(await cluster.map("users").items()) == {"a": 1, "b": 2}
    old, *others = json.loads(run("status", "--json", "--url", servers.url).stdout)["members"]
    assert old["role"] != "leader"
    assert {one["role"] for one in others} == {"leader", "follower"}
    assert others[0]["term"] < 6, "nobody was disturbed"
    assert "belongs to cluster" in _log(servers, 2)


def _log(servers: LocalCluster, node_id: int) -> str:
    return servers.server(node_id).log_path.read_text()


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Servers that take ten seconds for a backup."""
    with kept(layout(tmp_path / "slow", more=SLOW)) as cluster:
        cluster.start()
        await cluster.wait_ready(20)
        async with folkmoot.open(cluster.url) as client:
            for number in range(10):
                await client.map("users").set(f"user-{number}", os.urandom(65_000).hex()[:65_000])
        yield cluster
        await cluster.stop()


@contextlib.contextmanager
def saving(cluster: LocalCluster, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A backup that is being written."""
    process = subprocess.Popen(
        [*PROGRAM, "snapshot", "save", str(path), "--url", cluster.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 30
        while not any(one.stat().st_size > 100_000 for one in path.parent.glob("*.partial")):
            assert time.monotonic() < end, "nothing is written"
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_leader_that_is_killed_during_a_save_is_told_and_leaves_nothing(
    slow: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "backups" / "backup"
    path.parent.mkdir()
    leader = await slow.wait_ready(20)
    with saving(slow, path) as process:
        assert not path.exists()
        slow.server(leader).kill()
        _, error = process.communicate(timeout=20)
    assert process.returncode == ExitCode.UNAVAILABLE, error
    assert slow.server(leader).member.client_address in error
    assert "Traceback" not in error
    assert list(path.parent.iterdir()) == []


async def test_ctrl_c_during_a_save_leaves_nothing_and_the_server_goes_on(
    slow: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "backups" / "backup"
    path.parent.mkdir()
    with saving(slow, path) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert list(path.parent.iterdir()) == []
    async with folkmoot.open(slow.url) as cluster:
        assert await cluster.map("users").size() == 10


async def test_what_a_kill_leaves_of_a_save_is_no_backup(
    slow: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "backups" / "backup"
    path.parent.mkdir()
    with saving(slow, path) as process:
        process.kill()
        process.communicate()
    (left,) = path.parent.iterdir()
    assert left.suffix == ".partial"
    inspected = run("snapshot", "inspect", str(left))
    assert inspected.returncode == ExitCode.STORAGE
    assert "it ends here" in inspected.stderr


def test_nobody_there_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    (member,) = plan(1, 0)
    url = f"folkmoot://{member.client_address}"
    done = run("snapshot", "save", str(tmp_path / "backup"), "--url", url)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "Connection refused" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and mount for a small file system")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], check=False
    )
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


async def test_a_disk_too_small_for_the_file_leaves_nothing(
    servers: LocalCluster, small_disk: Path
) -> None:
    async with folkmoot.open(servers.url) as client:
        for number in range(10):
            await client.map("users").set(f"user-{number}", "x" * 65_000)
    done = await save(servers.url, small_disk / "backup")
    assert done.returncode == ExitCode.STORAGE, done.stderr
    assert "free there" in json.loads(done.stderr)["error"]["message"]
    assert os.listdir(small_disk) == []
