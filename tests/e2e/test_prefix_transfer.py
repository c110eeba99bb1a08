"""Real servers whose log does not reach back far enough: one that was away gets the state first.

Segments, logs and rates are so small that a few megabytes are a lot.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import folkmoot
from folkmoot.cli.members import ask
from folkmoot.cli.processes import LocalCluster, LocalServer, local_cluster
from folkmoot.core.config import ClientConfig
from folkmoot.core.errors import Unavailable

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

STORAGE = """
[storage]
segment_bytes = 65536
reserve_bytes = 0
compaction_log_bytes = 131072
compaction_duty = 1.0
log_keep_bytes = {keep}
log_keep_bytes_max = {keep}
transfer_bytes_per_s = {rate}
"""
VALUE = "." * 1000


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """One backend is enough where processes are what is tested."""
    return "asyncio", {"use_uvloop": False}


@contextlib.contextmanager
def cluster_with(keep: int, rate: int = 1 << 20) -> Iterator[LocalCluster]:
    with local_cluster(nodes=3, port=0) as cluster:
        for server in cluster.servers:
            with open(server.config_path, "a") as file:
                file.write(STORAGE.format(keep=keep, rate=rate))
        yield cluster


async def status(server: LocalServer) -> dict[str, Any] | None:
    """What a server says of itself; None while it does not answer."""
    with contextlib.suppress(Unavailable):
        found: dict[str, Any] = await ask(server.member.client_address, "status", timeout_s=2.0)
        return found
    return None


async def until(
    server: LocalServer, holds: Callable[[dict[str, Any]], Any], timeout_s: float = 20.0
) -> dict[str, Any]:
    """Wait until its status is so; return it."""
    with anyio.fail_after(timeout_s):
        while True:
            found = await status(server)
            if found is not None and holds(found):
                return found
            assert server.running, server.last_words(20)
            await anyio.sleep(0.01)


async def fill(url: str, count: int, mark: str) -> None:
    """Overwrite so many keys, a kilobyte each."""
    async with folkmoot.open(url) as cluster:
        users = cluster.map("users")
        for first in range(0, count, 50):
            await users.set_many({f"user {n}": [mark, n, VALUE] for n in range(first, first + 50)})


async def contents(server: LocalServer) -> dict[str, Any]:
    """What a server itself has."""
    config = ClientConfig(prefer_leader=False)
    async with folkmoot.open(f"folkmoot://{server.member.client_address}", config=config) as one:
        return dict(await one.map("users").items())


async def same_contents(servers: LocalCluster) -> None:
    leader = await servers.wait_ready(20)
    index = (await until(servers.server(leader), lambda s: s["role"] == "leader"))["commit_index"]
    found = []
    for server in servers.servers:
        await until(server, lambda s: s["applied_index"] >= index)
        found.append(await contents(server))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 100


def log_of(server: LocalServer) -> str:
    return server.log_path.read_text()


async def trimmed_beyond(server: LocalServer, index: int) -> None:
    await until(server, lambda s: s["storage"]["first_index"] > index + 1)


def share(status: dict[str, Any]) -> float:
    """How much of the prefix is there; 0 while none comes."""
    receiving = status["receiving"]
    return receiving["received_bytes"] / receiving["size_bytes"] if receiving else 0.0


async def received(server: LocalServer, least: float) -> None:
    await until(server, lambda found: share(found) >= least)


async def test_one_that_was_killed_comes_back_by_the_prefix_whenever_it_is_killed_again() -> None:
    with cluster_with(keep=0) as servers:
        servers.start()
        leader_id = await servers.wait_ready(20)
        leader = servers.server(leader_id)
        away = next(server for server in servers.servers if server is not leader)
        await fill(servers.url, 2500, "first")
        last = await until(away, lambda s: s["applied_index"] > 50)
        away.kill()
        await fill(servers.url, 1000, "second")
        await trimmed_beyond(leader, last["last_index"])
        for moment in (0.3, 0.6):
            away.start()
            await received(away, moment)
            away.kill()
        away.start()
        found = await until(away, share)
        assert share(found) > 0.5, "it went on with what it had"
        row = await row_of(leader, away)
        assert re.fullmatch(r"prefix \d+% of .* MiB", row["catching_up"])
        assert row["prefix"]["phase"] == "receiving"
        await until(away, lambda s: s["receiving"] and s["receiving"]["phase"] != "receiving")
        away.kill()  # while it restores, or is just about to go over
        away.start()
        await same_contents(servers)
        resumed = log_of(away).count("PrefixBegun")
        assert resumed >= 3
        await until(leader, lambda s: not any(m["prefix"] for m in s["members"]))
        assert not any((away.directory / f"node-{away.node_id}" / "incoming").iterdir())
        async with folkmoot.open(servers.url) as cluster:
            await cluster.map("users").set("after", 1)
        away.kill()
        away.start()
        await same_contents(servers)
        assert log_of(away).count("PrefixBegun") == resumed, "it starts from what it got"


async def row_of(asked: LocalServer, about: LocalServer) -> dict[str, Any]:
    """What the command line says of a member, as JSON."""
    command = [sys.executable, "-m", "folkmoot.cli", "status", "--json"]
    command += ["--url", f"folkmoot://{asked.member.client_address}"]
    done = await anyio.run_process(command)
    members: list[dict[str, Any]] = json.loads(done.stdout)["members"]
    return next(member for member in members if member["node_id"] == about.node_id)


async def test_a_member_that_starts_for_the_first_time_joins_by_the_prefix() -> None:
    with cluster_with(keep=0, rate=1 << 19) as servers:
        first, second, late = servers.servers
        first.start()
        second.start()
        await fill(servers.url, 1500, "only")
        leader = first if (await until(first, lambda s: s["leader"]))["leader"] == 1 else second
        await trimmed_beyond(leader, 1)
        screen = start_on_a_terminal(late)
        await received(late, 0.4)
        await same_contents(servers)
        late.kill()
        shown = screen()
        assert "receiving the prefix up to" in shown
        assert "━" in shown
        assert "PrefixTaken" in shown


def start_on_a_terminal(server: LocalServer) -> Callable[[], str]:
    """Start a server whose standard error is a terminal; return what tells what was written."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "folkmoot.cli", "server", "--config", str(server.config_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    server.process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=theirs, stdout=theirs, env=environment
    )
    os.close(theirs)

    def read() -> str:
        data = b""
        with contextlib.suppress(OSError):
            while select.select([ours], [], [], 1.0)[0] and (part := os.read(ours, 1 << 16)):
                data += part
        os.close(ours)
        return data.decode(errors="replace")

    return read


async def test_one_that_was_away_briefly_never_needs_it() -> None:
    with cluster_with(keep=8 << 20) as servers:
        servers.start()
        leader = servers.server(await servers.wait_ready(20))
        away = next(server for server in servers.servers if server is not leader)
        await fill(servers.url, 300, "first")
        away.kill()
        await fill(servers.url, 600, "second")
        compacted = await until(leader, lambda s: s["storage"]["compaction_index"] > 10)
        away.start()
        begun = time.monotonic()
        found = await until(away, lambda s: s["applied_index"] >= compacted["commit_index"])
        assert time.monotonic() - begun < 10
        assert found["receiving"] is None
        await same_contents(servers)
        assert "Prefix" not in log_of(away)
        assert all(m["prefix"] is None for m in (await until(leader, bool))["members"])
