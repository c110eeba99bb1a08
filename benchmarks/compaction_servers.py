"""The servers of benchmarks/compaction.py: started, restarted, looked at and transferred."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from benchmarks.processes import free_ports
from benchmarks.systems import NODES, Folkmoot

SAMPLE_S = 0.5


class Servers(Folkmoot):
    """Three servers whose settings can be changed by environment variables."""

    def launch(self, number: int, **settings: Any) -> None:
        env = os.environ | {
            f"FOLKMOOT_{name.upper()}": str(value) for name, value in settings.items()
        }
        self.processes.start(number, self.command(number), env)

    def begin(self, **settings: Any) -> None:
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        if not self.ports:
            self.ports = free_ports(3 * NODES)
        for number in range(NODES):
            self.launch(number, **settings)

    def url(self, number: int) -> str:
        return f"folkmoot://127.0.0.1:{self.ports[2 * number + 1]}"

    def open(self, number: int) -> Any:
        """A client of this very server."""
        import folkmoot

        return folkmoot.open(self.url(number), config=folkmoot.ClientConfig(prefer_leader=False))

    def status(self, number: int) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            async with self.open(number) as cluster:
                found: dict[str, Any] = await cluster.client.admin("status", timeout=5.0)
                return found

        return asyncio.run(ask())

    def transfer(self) -> None:
        """Have another leader elected."""

        leader = self.leader()

        async def ask() -> None:
            async with self.open(leader) as cluster:
                await cluster.client.admin("transfer_leader", 0, timeout=5.0)

        asyncio.run(ask())
        time.sleep(2)

    def disk_bytes(self, number: int) -> int:
        """Bytes that the kernel has given to a member's files, preallocated ones too."""
        total = 0
        for path in (self.directory / "data" / str(number)).rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total


class Watch(threading.Thread):
    """Looks at all servers twice a second, through one connection to each."""

    def __init__(self, servers: Servers, numbers: list[int]) -> None:
        super().__init__(daemon=True)
        self.servers = servers
        self.numbers = numbers
        self.samples: list[dict[str, Any]] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        clusters = [await self.servers.open(number).__aenter__() for number in self.numbers]
        while not self._stopping.is_set():
            sample: dict[str, Any] = {"at": time.monotonic(), "servers": []}
            for number, cluster in zip(self.numbers, clusters, strict=True):
                status = await cluster.client.admin("status", timeout=30.0)
                storage, loop = status["storage"], status["loop"]
                sample["servers"].append(
                    {
                        "applied": status["applied_index"],
                        "role": status["role"],
                        "compacting": storage["compacting"],
                        "compactions": storage["counters"]["compactions"],
                        "prefix_bytes": storage["prefix_bytes"],
                        "log_bytes": storage["size_bytes"],
                        "disk_bytes": self.servers.disk_bytes(number),
                        "turns": loop["turns_by_ms"],
                        "longest_turn_ms": loop["longest_turn_ms"],
                    }
                )
            self.samples.append(sample)
            await asyncio.sleep(SAMPLE_S)
        for cluster in reversed(clusters):
            await cluster.__aexit__(None, None, None)

    def stop(self) -> list[dict[str, Any]]:
        self._stopping.set()
        self.join()
        return self.samples
