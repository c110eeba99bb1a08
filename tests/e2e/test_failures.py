"""Three real server processes with fsync on: kill them, and count what was acknowledged.

Each test has its own cluster on free ports of the loopback address. Clients are the library itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import folkmoot
from folkmoot.cli.processes import LocalCluster, local_cluster
from folkmoot.core.config import ClientConfig
from folkmoot.core.errors import OutcomeUnknown

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """One backend is enough where processes are what is tested."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def servers() -> AsyncIterator[LocalCluster]:
    with local_cluster(nodes=3, port=0) as cluster:
        cluster.start()
        await cluster.wait_ready(20)
        yield cluster
        await cluster.stop()


class Tally:
    """Increments of one counter: acknowledged ones took effect, unknown ones may have."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.unknown = 0
        self.longest_gap_s = 0.0
        self._last = time.monotonic()

    async def work(self, counter: folkmoot.Counter) -> None:
        while True:
            try:
                await counter.add(1)
            except OutcomeUnknown:
                self.unknown += 1
                continue
            self.acknowledged += 1
            now = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now - self._last)
            self._last = now

    def check(self, value: int) -> None:
        assert self.acknowledged <= value <= self.acknowledged + self.unknown, (
            f"counter {value}, acknowledged {self.acknowledged}, unknown {self.unknown}"
        )


async def test_leader_killed_under_load_loses_no_acknowledged_increment(
    servers: LocalCluster,
) -> None:
    tally = Tally()
    async with folkmoot.open(servers.url) as cluster:
        counter = cluster.counter("hits")
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(tally.work, counter)
            for _ in range(2):
                await anyio.sleep(1.0)
                before = tally.acknowledged
                leader = await servers.wait_ready(20)
                servers.server(leader).kill()
                with anyio.fail_after(10):
                    while tally.acknowledged < before + 50:  # noqa: ASYNC110 - real processes
                        await anyio.sleep(0.02)
                servers.server(leader).start()
                await servers.wait_ready(20)
            tasks.cancel_scope.cancel()
        # What was cancelled in flight may have been applied: its outcome is unknown to us.
        tally.unknown += 8
        tally.check(await counter.get())
    assert tally.acknowledged > 100
    assert tally.longest_gap_s < 5.0


async def test_all_killed_at_once_and_restarted(servers: LocalCluster) -> None:
    async with folkmoot.open(servers.url) as cluster:
        users = cluster.map("users")
        for number in range(200):
            await users.set(f"user-{number}", number)
        for server in servers.servers:
            server.kill()
        servers.start()
        await servers.wait_ready(20)
        assert [await users.get(f"user-{number}") for number in range(200)] == list(range(200))
        await users.set("after", 1)
    for server in servers.servers:
        server.kill()
    servers.start()
    await servers.wait_ready(20)
    async with folkmoot.open(servers.url) as cluster:
        assert await cluster.map("users").size() == 201


async def test_rolling_restart_under_load(servers: LocalCluster) -> None:
    tally = Tally()
    async with folkmoot.open(servers.url) as cluster:
        counter = cluster.counter("hits")
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(tally.work, counter)
            for server in servers.servers:
                server.signal(signal.SIGTERM)
                assert server.process is not None
                with anyio.fail_after(15):
                    while server.running:  # noqa: ASYNC110 - a process
                        await anyio.sleep(0.02)
                assert server.process.returncode == 0, server.last_words()
                server.start()
                await servers.wait_ready(20)
                before = tally.acknowledged
                with anyio.fail_after(10):
                    while tally.acknowledged < before + 20:  # noqa: ASYNC110 - real processes
                        await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        tally.unknown += 4
        tally.check(await counter.get())
    assert tally.longest_gap_s < 3.0, "a leader that is told to stop hands over first"


async def test_a_watch_misses_and_repeats_nothing_over_failovers(servers: LocalCluster) -> None:
    seen: list[int] = []
    total = 600
    async with (
        folkmoot.open(servers.url) as writer_side,
        folkmoot.open(servers.url) as reader_side,
    ):
        numbers = writer_side.map("numbers")
        async with reader_side.map("numbers").watch(key="n") as changes:

            async def write() -> None:
                for number in range(total):
                    await numbers.set("n", number)
                    await anyio.sleep(0.002)

            async def disturb() -> None:
                await anyio.sleep(0.3)
                leader = await servers.wait_ready(20)
                servers.server(leader).kill()
                await anyio.sleep(1.5)
                servers.server(leader).start()
                follower = next(s for s in servers.servers if s.node_id != leader)
                await servers.wait_ready(20)
                follower.kill()
                await anyio.sleep(1.0)
                follower.start()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                tasks.start_soon(disturb)
                with anyio.fail_after(40):
                    async for change in changes:
                        assert isinstance(change, folkmoot.Changed), (
                            f"no session was lost: {change}"
                        )
                        seen.append(change.value)
                        if change.value == total - 1:
                            break
    assert seen == list(range(total))


HOLDER = """
import sys, time
import anyio, folkmoot
from folkmoot.core.config import ClientConfig

async def main():
    config = ClientConfig(session_timeout_s=1.0)
    async with folkmoot.open(sys.argv[1], config=config) as cluster:
        try:
            async with cluster.lock("job").hold(timeout=10) as held:
                print("held", held.token, flush=True)
                while True:
                    await anyio.sleep(0.005)
                    print("alive", time.monotonic(), flush=True)
        except folkmoot.LockLost as lost:
            print("lost", time.monotonic(), lost.cause, flush=True)

anyio.run(main)
"""


def begin_holder(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), url], stdout=subprocess.PIPE, text=True
    )


async def start_holder(servers: LocalCluster) -> tuple[subprocess.Popen[str], int]:
    holder = begin_holder(servers.url)
    assert holder.stdout is not None
    line = await anyio.to_thread.run_sync(holder.stdout.readline)
    assert line.startswith("held "), line
    return holder, int(line.split()[1])


async def test_a_paused_holder_is_cancelled_before_it_acts_again(servers: LocalCluster) -> None:
    """Bug I1: SIGSTOP a holder for longer than its session; another gets the lock meanwhile."""
    holder, token = await start_holder(servers)
    try:
        os.kill(holder.pid, signal.SIGSTOP)
        paused = time.monotonic()
        async with (
            folkmoot.open(servers.url) as cluster,
            cluster.lock("job").hold(timeout=20) as held,
        ):
            granted = time.monotonic()
            assert held.token > token, "fencing tokens strictly increase"
            os.kill(holder.pid, signal.SIGCONT)
            assert holder.stdout is not None
            output = await anyio.to_thread.run_sync(holder.stdout.read)
        assert 0.8 < granted - paused < 5.0, "after the session timeout, and not before"
        lines = output.splitlines()
        assert lines[-1].startswith("lost "), lines[-3:]
        acted = [float(line.split()[1]) for line in lines if line.startswith("alive ")]
        late = [at for at in acted if at > granted]
        assert len(late) <= 1, f"the body went on after it was resumed: {len(late)} times"
    finally:
        holder.kill()
        holder.communicate()


async def test_a_cut_off_holder_is_cancelled_before_the_next_is_granted(
    servers: LocalCluster,
) -> None:
    """Bug I3: no server answers the holder; its own deadline comes before the cluster's."""
    config = ClientConfig(session_timeout_s=1.0)
    stopped = 0.0
    async with folkmoot.open(servers.url, config=config) as cluster:
        with pytest.raises(folkmoot.LockLost) as lost:  # noqa: PT012 - the body is what is cancelled
            async with cluster.lock("job").hold(timeout=10):
                for server in servers.servers:
                    server.signal(signal.SIGSTOP)
                stopped = time.monotonic()
                await anyio.sleep(30)
        waited = time.monotonic() - stopped
        for server in servers.servers:
            server.signal(signal.SIGCONT)
        assert lost.value.cause
        assert 0.3 < waited < 1.0, "before a session timeout has passed"


async def test_a_killed_holder_passes_the_lock_on_after_its_session(servers: LocalCluster) -> None:
    holder, token = await start_holder(servers)
    holder.kill()
    killed = time.monotonic()
    holder.communicate()
    async with (
        folkmoot.open(servers.url) as cluster,
        cluster.lock("job").hold(timeout=20) as held,
    ):
        waited = time.monotonic() - killed
        assert held.token > token
    assert 0.6 < waited < 5.0


async def test_without_a_quorum_nothing_is_acknowledged_and_no_session_expires(
    servers: LocalCluster,
) -> None:
    config = ClientConfig(session_timeout_s=12.0)
    async with folkmoot.open(servers.url, config=config) as cluster:
        counter = cluster.counter("hits")
        await counter.add(1)
        session = cluster.client.session_id
        leader = await servers.wait_ready(20)
        others = [server for server in servers.servers if server.node_id != leader]
        for server in others:
            server.kill()
        begun = time.monotonic()
        with pytest.raises((OutcomeUnknown, folkmoot.Unavailable, TimeoutError)):
            await counter.add(1, timeout=1.5)
        assert time.monotonic() - begun < 3.0, "within the caller's timeout"
        for server in others:
            server.start()
        await servers.wait_ready(20)
        assert await counter.get() in {1, 2}
        assert cluster.client.session_id == session
