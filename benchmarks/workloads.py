"""The workloads, written once against a small adapter that each system fills in.

W1 one client, sequential durable writes       R1 the same, linearizable reads
W2 64 writers in one process                   R2 64 readers in one process
W3 256 writers in two processes (128 in each)  R1l, R2l the same reads with the consistency "lease",
where a system has it L1 uncontended acquire and release pairs       L2 32 contenders on one lock,
hand-offs E1a one write to its watcher, latency          E1b fan-out of writes to 100 watchers

Values have 100 bytes, keys are taken from 10,000. A rate is counted over `seconds` after a warm-up;
a latency is that of one operation as its caller sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

VALUE = b"v" * 100
KEYS = 10_000
WARM_UP_S = 0.5
WATCHERS = 100
CONCURRENCY = {"W1": 1, "W2": 64, "W3": 128, "R1": 1, "R2": 64, "R1l": 1, "R2l": 64, "L1": 1}


class Adapter(Protocol):
    """One client of one system."""

    async def put(self, key: str, value: bytes) -> None: ...
    async def get(self, key: str) -> None: ...
    async def get_lease(self, key: str) -> None: ...
    async def acquire(self, name: str) -> Any: ...
    async def release(self, held: Any) -> None: ...
    async def watch(self, key: str, seen: Callable[[bytes], None]) -> None: ...
    async def close(self) -> None: ...


Connect = Callable[[], Awaitable[Adapter]]


def key_of(worker: int, number: int) -> str:
    return f"k{(worker * 7919 + number) % KEYS:06d}"


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    """Rate per second and latencies in milliseconds."""
    ordered = sorted(latencies)
    return {
        "rate": round(len(ordered) / seconds, 1),
        "p50_ms": round(percentile(ordered, 0.5) * 1e3, 3),
        "p99_ms": round(percentile(ordered, 0.99) * 1e3, 3),
        "max_ms": round(ordered[-1] * 1e3, 3),
        "count": len(ordered),
    }


async def drive(
    operation: Callable[[int, int], Awaitable[None]], workers: int, seconds: float
) -> list[float]:
    """Each worker repeats the operation; the latencies that began after the warm-up."""
    latencies: list[float] = []
    clock = time.perf_counter
    begin = clock() + WARM_UP_S
    end = begin + seconds

    async def work(worker: int) -> None:
        number = 0
        while (started := clock()) < end:
            await operation(worker, number)
            number += 1
            if started >= begin:
                latencies.append(clock() - started)

    await asyncio.gather(*(work(worker) for worker in range(workers)))
    return latencies


async def rates(connect: Connect, workload: str, seconds: float) -> dict[str, float]:
    """W1 to W3, R1, R2 and L1."""
    adapter = await connect()
    try:
        if workload[0] == "W":

            async def operation(worker: int, number: int) -> None:
                await adapter.put(key_of(worker, number), VALUE)
        elif workload.endswith("l"):

            async def operation(worker: int, number: int) -> None:
                await adapter.get_lease(key_of(worker, number))
        elif workload[0] == "R":

            async def operation(worker: int, number: int) -> None:
                await adapter.get(key_of(worker, number))
        else:

            async def operation(worker: int, number: int) -> None:
                await adapter.release(await adapter.acquire("bench-pairs"))

        return summary(await drive(operation, CONCURRENCY[workload], seconds), seconds)
    finally:
        await adapter.close()


async def hand_offs(connect: Connect, seconds: float, contenders: int = 32) -> dict[str, float]:
    """L2: contenders in one process, each with its own wait for the lock."""
    adapter = await connect()

    async def operation(worker: int, number: int) -> None:
        await adapter.release(await adapter.acquire("bench-contended"))

    try:
        return summary(await drive(operation, contenders, seconds), seconds)
    finally:
        await adapter.close()


async def watch_latency(connect: Connect, seconds: float) -> dict[str, float]:
    """E1a: from the start of a write to the event at a watcher on another connection."""
    writer, reader = await connect(), await connect()
    seen = asyncio.Event()
    await reader.watch("bench-watched", lambda value: seen.set())
    latencies: list[float] = []
    clock = time.perf_counter
    begin = clock() + WARM_UP_S
    number = 0
    while (started := clock()) < begin + seconds:
        seen.clear()
        write = asyncio.ensure_future(writer.put("bench-watched", b"%012d" % number + VALUE[:88]))
        await asyncio.wait_for(seen.wait(), 10)
        if started >= begin:
            latencies.append(clock() - started)
        await write
        number += 1
    await reader.close()
    await writer.close()
    return summary(latencies, seconds)


async def fan_out(connect: Connect, seconds: float, writers: int = 8) -> dict[str, float]:
    """E1b: events per second that reach 100 watchers of one key in one process, 8 writes
    outstanding.
    """
    writer, reader = await connect(), await connect()
    events = writes = 0

    def seen(value: bytes) -> None:
        nonlocal events
        events += 1

    for _ in range(WATCHERS):
        await reader.watch("bench-fan-out", seen)
    clock = time.perf_counter
    begin = clock()
    end = begin + seconds

    async def write(worker: int) -> None:
        nonlocal writes
        while clock() < end:
            await writer.put("bench-fan-out", VALUE)
            writes += 1

    await asyncio.gather(*(write(worker) for worker in range(writers)))
    last_event = clock()
    before = -1
    while before != events and clock() < end + 20:
        before = events
        last_event = clock()
        await asyncio.sleep(0.25)
    await reader.close()
    await writer.close()
    return {
        "rate": round(events / (last_event - begin), 1),
        "writes_s": round(writes / seconds, 1),
        "delivered": round(events / max(1, writes * WATCHERS), 4),
        "count": events,
    }


async def preload(connect: Connect, keys: int = KEYS, concurrency: int = 64) -> None:
    """Every key once, so that reads find a value."""
    adapter = await connect()
    numbers = iter(range(keys))

    async def work() -> None:
        for number in numbers:
            await adapter.put(f"k{number:06d}", VALUE)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    await adapter.close()


async def run(connect: Connect, workload: str, seconds: float) -> dict[str, float]:
    """One run of one workload in this process."""
    if workload == "L2":
        return await hand_offs(connect, seconds)
    if workload == "E1a":
        return await watch_latency(connect, seconds)
    if workload == "E1b":
        return await fan_out(connect, seconds)
    return await rates(connect, workload, seconds)
