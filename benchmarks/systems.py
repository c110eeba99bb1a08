"""The systems that are measured: how three servers of each are started, and how a client of each
does one operation.

A system that is not installed is left out and said so. All listen on loopback only; data lies on
the real disk.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import HOST, Processes, free_ports
from benchmarks.workloads import KEYS

NODES = 3


class System:
    """Three servers of one kind.

    Subclasses say how one is started, who leads, and how a client connects.
    """

    name = ""
    version = ""
    settings = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes = Processes(directory / "logs")
        self.ports: list[int] = []

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured here; empty when it can."""
        return ""

    def command(self, number: int) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        shutil.rmtree(self.directory / "data", ignore_errors=True)
        (self.directory / "data").mkdir(parents=True)
        self.ports = free_ports(3 * NODES)
        for number in range(NODES):
            self.processes.start(number, self.command(number))

    def stop(self) -> None:
        self.processes.stop()

    def leader(self) -> int:
        raise NotImplementedError

    def address(self, prefer_leader: bool = True) -> str:
        """What a client process is told to connect to."""
        raise NotImplementedError


def wait_for(question: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Repeat a question until it has an answer."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            answer = question()
        except Exception:
            answer = None
        if answer is not None:
            return answer
        time.sleep(0.05)
    raise TimeoutError(f"{what}: no answer within {timeout_s} s")


class Folkmoot(System):
    name = "folkmoot"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        from importlib.metadata import version

        self.version = version("folkmoot")
        self.settings = "defaults: fsync on, election timeout 0.5 s"

    def command(self, number: int) -> list[str]:
        members = []
        for node in range(NODES):
            peer, client = self.ports[2 * node], self.ports[2 * node + 1]
            members += ["--member", f"{node + 1}={HOST}:{peer},{HOST}:{client}"]
        data = self.directory / "data" / str(number)
        return [
            sys.executable, "-m", "folkmoot", "server",
            "--node-id", str(number + 1), "--data-dir", str(data), *members,
        ]  # fmt: skip

    def address(self, prefer_leader: bool = True) -> str:
        return "folkmoot://" + ",".join(
            f"{HOST}:{self.ports[2 * node + 1]}" for node in range(NODES)
        )

    def leader(self) -> int:
        async def ask() -> int | None:
            import folkmoot

            async with folkmoot.open(self.address()) as cluster:
                status = await cluster.client.admin("status", timeout=2.0)
                return None if status["leader"] is None else int(status["leader"]) - 1

        return int(wait_for(lambda: asyncio.run(ask()), "the leader of folkmoot"))


class FolkmootSingle(System):
    """One durable node embedded in the client's own process."""

    name = "folkmoot-single"
    settings = "embedded in the client's process, on disk, fsync on"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        from importlib.metadata import version

        self.version = version("folkmoot")

    def start(self) -> None:
        shutil.rmtree(self.directory / "data", ignore_errors=True)
        (self.directory / "data").mkdir(parents=True)

    def address(self, prefer_leader: bool = True) -> str:
        return str(self.directory / "data" / "node")


class Etcd(System):
    name = "etcd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        shown = subprocess.run(
            ["etcd", "--version"], capture_output=True, text=True, check=False
        ).stdout
        self.version = shown.split()[2] if shown else "?"
        self.settings = (
            "defaults: fsync on, election timeout 1 s; client aetcd, locks by etcd's lock service"
        )

    @classmethod
    def missing(cls) -> str:
        if shutil.which("etcd") is None:
            return "etcd is not installed (Debian: etcd-server)"
        try:
            import aetcd  # noqa: F401
        except ImportError:
            return "the client aetcd is not installed (pip install aetcd)"
        return ""

    def command(self, number: int) -> list[str]:
        client, peer = self.ports[2 * number], self.ports[2 * number + 1]
        first = ",".join(
            f"n{node}=http://{HOST}:{self.ports[2 * node + 1]}" for node in range(NODES)
        )
        data = self.directory / "data" / str(number)
        here, there = f"http://{HOST}:{client}", f"http://{HOST}:{peer}"
        return [
            "etcd", "--name", f"n{number}", "--data-dir", str(data),
            "--listen-client-urls", here, "--advertise-client-urls", here,
            "--listen-peer-urls", there, "--initial-advertise-peer-urls", there,
            "--initial-cluster", first, "--initial-cluster-state", "new", "--log-level", "error",
        ]  # fmt: skip

    def leader(self) -> int:
        async def ask() -> int | None:
            import aetcd

            for number in self.processes.children:
                client = aetcd.Client(host=HOST, port=self.ports[2 * number])
                await client.connect()
                try:
                    status = await asyncio.wait_for(client.status(), 1.0)
                    if status.leader is not None and str(self.ports[2 * number + 1]) in str(
                        status.leader.peer_urls
                    ):
                        return number
                finally:
                    await client.close()
            return None

        return int(wait_for(lambda: asyncio.run(ask()), "the leader of etcd"))

    def address(self, prefer_leader: bool = True) -> str:
        number = self.leader() if prefer_leader else min(self.processes.children)
        return f"{HOST}:{self.ports[2 * number]}"


class ZooKeeper(System):
    name = "zookeeper"
    jars = Path("/usr/share/java")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = sorted(self.jars.glob("zookeeper-[0-9]*.jar"))
        self.version = found[0].stem.removeprefix("zookeeper-") if found else "?"
        self.settings = (
            "Debian's defaults: forceSync on, tickTime 2 s; client kazoo, a read is sync and get"
        )

    @classmethod
    def missing(cls) -> str:
        if shutil.which("java") is None or not list(cls.jars.glob("zookeeper-[0-9]*.jar")):
            return "ZooKeeper is not installed (Debian: zookeeper)"
        try:
            import kazoo  # noqa: F401
        except ImportError:
            return "the client kazoo is not installed (pip install kazoo)"
        return ""

    def command(self, number: int) -> list[str]:
        data = self.directory / "data" / str(number)
        data.mkdir(parents=True, exist_ok=True)
        (data / "myid").write_text(str(number + 1))
        lines = [
            "tickTime=2000", "initLimit=10", "syncLimit=5", f"dataDir={data}",
            f"clientPort={self.ports[3 * number]}", f"clientPortAddress={HOST}",
            "admin.enableServer=false", "4lw.commands.whitelist=*", "maxClientCnxns=0",
        ]  # fmt: skip
        lines += [
            f"server.{node + 1}={HOST}:{self.ports[3 * node + 1]}:{self.ports[3 * node + 2]}"
            for node in range(NODES)
        ]
        (data / "zoo.cfg").write_text("\n".join(lines) + "\n")
        classpath = ":".join(str(jar) for jar in sorted(self.jars.glob("*.jar")))
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        return [
            "java",
            "-Xmx1g",
            f"-Dzookeeper.log.dir={data}",
            "-cp",
            classpath,
            main,
            str(data / "zoo.cfg"),
        ]

    def leader(self) -> int:
        def ask() -> int | None:
            for number in self.processes.children:
                with socket.create_connection((HOST, self.ports[3 * number]), 1) as connection:
                    connection.sendall(b"srvr")
                    answer = b""
                    while part := connection.recv(4096):
                        answer += part
                if b"Mode: leader" in answer:
                    return number
            return None

        return int(wait_for(ask, "the leader of ZooKeeper"))

    def address(self, prefer_leader: bool = True) -> str:
        number = self.leader() if prefer_leader else min(self.processes.children)
        return f"{HOST}:{self.ports[3 * number]}"


SYSTEMS: dict[str, type[System]] = {
    kind.name: kind for kind in (Folkmoot, FolkmootSingle, Etcd, ZooKeeper)
}


def client_run(
    system: str,
    address: str,
    workload: str,
    seconds: float,
    processes: int = 1,
    keys: int = KEYS,
) -> dict[str, Any]:
    """Run a workload in one or more client processes at once and add up what they report."""
    command = [
        sys.executable, "-m", "benchmarks.client",
        "--system", system, "--address", address, "--workload", workload, "--seconds", str(seconds),
        "--keys", str(keys), "--go-at", str(time.monotonic() + (2.0 if processes > 1 else 0.0)),
    ]  # fmt: skip
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    reports = []
    for child in children:
        output, _ = child.communicate(timeout=seconds + 120)
        if child.returncode:
            raise RuntimeError(
                f"{system} {workload}: the client process ended with status {child.returncode}"
            )
        reports.append(json.loads(output.strip().splitlines()[-1]))
    merged = dict(reports[0])
    if len(reports) > 1:
        merged["rate"] = round(sum(report["rate"] for report in reports), 1)
        merged["count"] = sum(report["count"] for report in reports)
        merged["cpu_s"] = round(sum(report["cpu_s"] for report in reports), 3)
        for key in ("p50_ms", "p99_ms", "max_ms"):
            merged[key] = max(report[key] for report in reports)
    return merged
