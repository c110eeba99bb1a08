"""Server processes that a benchmark starts, and what the kernel says of them.

Ended by their own ids only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

HOST = "127.0.0.1"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Processes:
    """A few children, by number."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, number: int, command: list[str], env: dict[str, str] | None = None) -> None:
        with (self._logs / f"{number}.log").open("ab") as log:
            self.children[number] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )

    def kill(self, number: int) -> None:
        """SIGKILL."""
        child = self.children.pop(number)
        child.kill()
        child.wait()

    def stop(self) -> None:
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.children.clear()

    def cpu_s(self) -> float:
        """CPU seconds that all children have used."""
        return sum(cpu_s(child.pid) for child in self.children.values())

    def rss_mib(self) -> list[float]:
        """Resident memory of each child, MiB."""
        return [rss_mib(child.pid) for _, child in sorted(self.children.items())]

    def idle_percent(self, seconds: float = 5.0) -> float:
        """Percent of one core that one child uses while nobody asks anything of it, the mean over
        all.
        """
        before = self.cpu_s()
        time.sleep(seconds)
        return round((self.cpu_s() - before) / seconds / max(1, len(self.children)) * 100, 2)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mib(pid: int) -> float:
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20, 1)
