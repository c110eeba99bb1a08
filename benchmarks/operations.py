"""What an operator sees of three servers.

Start-up, idle CPU, memory, and the gap after the leader is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from benchmarks.client import ADAPTERS
from benchmarks.systems import NODES, System, client_run


async def _until_write(system: System, addresses: list[str], limit_s: float) -> float:
    """Seconds until one of several patient clients has written something."""
    begun = time.perf_counter()
    done = asyncio.Event()

    async def attempt(address: str) -> None:
        while not done.is_set():
            adapter = ADAPTERS[system.name]()
            try:
                async with asyncio.timeout(2.0):
                    await adapter.connect(address)
                    await adapter.put("bench-probe", b"x")
                done.set()
            except Exception:
                await asyncio.sleep(0.01)
            finally:
                try:
                    async with asyncio.timeout(0.5):
                        await adapter.close()
                except Exception:
                    pass

    tasks = [asyncio.create_task(attempt(address)) for address in addresses]
    async with asyncio.timeout(limit_s):
        await done.wait()
    elapsed = time.perf_counter() - begun
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return elapsed


async def _gap(system: System, addresses: list[str], leader: int, limit_s: float = 30.0) -> float:
    """Kill the leader; seconds until a client that was connected to another server has written
    again.
    """
    adapters = []
    for address in addresses:
        adapter = ADAPTERS[system.name]()
        await adapter.connect(address)
        await adapter.put("bench-probe", b"x")
        adapters.append(adapter)
    system.processes.kill(leader)
    begun = time.perf_counter()
    done = asyncio.Event()

    async def attempt(adapter: Any) -> None:
        while not done.is_set():
            try:
                async with asyncio.timeout(0.5):
                    await adapter.put("bench-probe", b"x")
                done.set()
            except Exception:
                await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(attempt(adapter)) for adapter in adapters]
    async with asyncio.timeout(limit_s):
        await done.wait()
    elapsed = time.perf_counter() - begun
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for adapter in adapters:
        try:
            async with asyncio.timeout(2.0):
                await adapter.close()
        except Exception:
            pass
    return elapsed


def _addresses(system: System, without: int | None = None) -> list[str]:
    """One address per server, so that a client of a system that knows only one server reaches
    each.
    """
    if system.name == "folkmoot":
        return [system.address()]
    stride = 2 if system.name == "etcd" else 3
    return [f"127.0.0.1:{system.ports[stride * node]}" for node in range(NODES) if node != without]


def measure(systems: list[System], repeats: int) -> list[dict[str, Any]]:
    """Facts of every system, in turns."""
    facts = []
    for repeat in range(repeats):
        for system in systems:
            fact: dict[str, Any] = {"system": system.name, "repeat": repeat}
            try:
                _one(system, fact)
            except Exception as error:
                fact["error"] = f"{type(error).__name__}: {error}"
            finally:
                system.stop()
            facts.append(fact)
            print(f"[operations {repeat + 1}/{repeats}] {fact}", file=sys.stderr)
    return facts


def _one(system: System, fact: dict[str, Any]) -> None:
    system.start()
    fact["first_write_s"] = round(asyncio.run(_until_write(system, _addresses(system), 60.0)), 3)
    time.sleep(2.0)
    fact["idle_percent"] = system.processes.idle_percent(4.0)
    fact["rss_idle_mib"] = max(system.processes.rss_mib())
    client_run(system.name, system.address(), "preload", 0.0, keys=100_000)
    fact["rss_100k_keys_mib"] = max(system.processes.rss_mib())
    leader = system.leader()
    fact["failover_s"] = round(asyncio.run(_gap(system, _addresses(system, leader), leader)), 3)
