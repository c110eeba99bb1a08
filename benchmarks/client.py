"""A client process of a benchmark.

Connects to one system, runs one workload, prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks import workloads
from benchmarks.workloads import Adapter


class FolkmootAdapter:
    """Folkmoot through its public API."""

    async def connect(self, address: str) -> Adapter:
        import folkmoot

        self.cluster = folkmoot.open(address)
        await self.cluster.__aenter__()
        await self.cluster.wait_ready(10)
        self.map = self.cluster.map("bench", codec="bytes")
        self.watches: list[Any] = []
        self.tasks: list[asyncio.Task[None]] = []
        return self

    async def put(self, key: str, value: bytes) -> None:
        await self.map.set(key, value)

    async def get(self, key: str) -> None:
        await self.map.get(key)

    async def get_lease(self, key: str) -> None:
        await self.map.get(key, consistency="lease")

    async def acquire(self, name: str) -> Any:
        return await self.cluster.lock(name).acquire()

    async def release(self, held: Any) -> None:
        await held.release()

    async def watch(self, key: str, seen: Callable[[bytes], None]) -> None:
        changes = await self.map.watch(key=key).__aenter__()
        self.watches.append(changes)

        async def follow() -> None:
            async for change in changes:
                seen(change.value)

        self.tasks.append(asyncio.create_task(follow()))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for changes in self.watches:
            await changes.__aexit__(None, None, None)
        await self.cluster.__aexit__(None, None, None)


class EtcdAdapter:
    """etcd through aetcd; its lock service directly, under one lease per contender."""

    async def connect(self, address: str) -> Adapter:
        import aetcd

        host, _, port = address.partition(":")
        self.client = aetcd.Client(host=host, port=int(port))
        await self.client.connect()
        channel = self.client.channel
        self.lock_call = channel.unary_unary("/v3lockpb.Lock/Lock")
        self.unlock_call = channel.unary_unary("/v3lockpb.Lock/Unlock")
        self.leases: list[int] = []
        self.stops: list[Any] = []
        return self

    async def put(self, key: str, value: bytes) -> None:
        await self.client.put(key.encode(), value)

    async def get(self, key: str) -> None:
        await self.client.get(key.encode())

    async def get_lease(self, key: str) -> None:
        raise NotImplementedError("etcd has no lease reads")

    async def acquire(self, name: str) -> Any:
        lease = self.leases.pop() if self.leases else (await self.client.lease(600)).id
        request = _field(1, name.encode()) + b"\x10" + _varint(lease)
        return lease, _first_bytes(await self.lock_call(request), 2)

    async def release(self, held: Any) -> None:
        lease, key = held
        await self.unlock_call(_field(1, key))
        self.leases.append(lease)

    async def watch(self, key: str, seen: Callable[[bytes], None]) -> None:
        async def on_event(event: Any) -> None:
            seen(b"")

        await self.client._watcher.add_callback(key.encode(), on_event)

    async def close(self) -> None:
        await self.client.close()


class ZooKeeperAdapter:
    """ZooKeeper through kazoo's asynchronous calls.

    The lock is kazoo's recipe, in threads of its own.
    """

    async def connect(self, address: str) -> Adapter:
        import logging
        from concurrent.futures import ThreadPoolExecutor

        from kazoo.client import KazooClient

        logging.getLogger("kazoo").setLevel(logging.CRITICAL)
        self.loop = asyncio.get_running_loop()
        self.client = KazooClient(address, timeout=10)
        self.pool = ThreadPoolExecutor(40)
        await self.loop.run_in_executor(self.pool, self.client.start)
        self.known: set[str] = set()
        self.client.ensure_path("/bench")
        return self

    def _call(self, pending: Any) -> asyncio.Future[Any]:
        future = self.loop.create_future()

        def done(result: Any) -> None:
            self.loop.call_soon_threadsafe(lambda: future.done() or future.set_result(result))

        pending.rawlink(done)
        return future

    async def put(self, key: str, value: bytes) -> None:
        path = f"/bench/{key}"
        result = await self._call(self.client.set_async(path, value))
        if not result.successful():
            await self._call(self.client.create_async(path, value))

    async def get(self, key: str) -> None:
        path = f"/bench/{key}"
        first = self._call(self.client.sync_async(path))
        second = self._call(self.client.get_async(path))
        await first
        await second

    async def get_lease(self, key: str) -> None:
        raise NotImplementedError("ZooKeeper has no lease reads")

    async def acquire(self, name: str) -> Any:
        lock = self.client.Lock(f"/bench/{name}")
        await self.loop.run_in_executor(self.pool, lock.acquire)
        return lock

    async def release(self, held: Any) -> None:
        await self.loop.run_in_executor(self.pool, held.release)

    async def watch(self, key: str, seen: Callable[[bytes], None]) -> None:
        path = f"/bench/{key}"
        loop = self.loop

        def on_data(data: bytes | None, stat: Any) -> None:
            if data is not None:
                loop.call_soon_threadsafe(seen, data)

        def begin() -> None:
            self.client.ensure_path(path)
            self.client.DataWatch(path, on_data)

        await loop.run_in_executor(self.pool, begin)

    async def close(self) -> None:
        await self.loop.run_in_executor(self.pool, self.client.stop)
        self.pool.shutdown()


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _field(number: int, data: bytes) -> bytes:
    """One protobuf field of bytes: the lock service has no class in aetcd."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _first_bytes(message: bytes, wanted: int) -> bytes:
    """The first field `wanted` of type bytes in a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        shift = number = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            varint()
            continue
        size = varint()
        if tag >> 3 == wanted:
            return message[at : at + size]
        at += size
    raise ValueError(f"no field {wanted}")


ADAPTERS: dict[str, type[Any]] = {
    "folkmoot": FolkmootAdapter,
    "folkmoot-single": FolkmootAdapter,
    "etcd": EtcdAdapter,
    "zookeeper": ZooKeeperAdapter,
}


async def work(arguments: argparse.Namespace) -> dict[str, Any]:
    async def connect() -> Adapter:
        adapter: Adapter = await ADAPTERS[arguments.system]().connect(arguments.address)
        return adapter

    if arguments.workload == "preload":
        await workloads.preload(connect, arguments.keys)
        return {"rate": 0.0, "count": arguments.keys}
    await asyncio.sleep(max(0.0, arguments.go_at - time.monotonic()))
    before = sum(os.times()[:2])
    result: dict[str, Any] = await workloads.run(connect, arguments.workload, arguments.seconds)
    result["cpu_s"] = round(sum(os.times()[:2]) - before, 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True, choices=sorted(ADAPTERS))
    parser.add_argument("--address", required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--keys", type=int, default=workloads.KEYS, help="of a preload")
    parser.add_argument("--go-at", type=float, default=0.0)
    parser.add_argument("--profile", help="write a cProfile of this process here")
    arguments = parser.parse_args()
    if arguments.profile:
        import cProfile

        profile = cProfile.Profile()
        print(json.dumps(profile.runcall(lambda: asyncio.run(work(arguments)))))
        profile.dump_stats(arguments.profile)
    else:
        print(json.dumps(asyncio.run(work(arguments))))


if __name__ == "__main__":
    main()
