"""`up`, `server`, `status` and `leader` with real server processes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.processes import free_ports, plan, write_layout

pytestmark = pytest.mark.e2e

PROGRAM = [sys.executable, "-m", "folkmoot.cli"]


def run(*arguments: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout_s)


def until(holds: Callable[[], Any], timeout_s: float = 20) -> Any:
    """Wait until it holds; return what it returned."""
    end = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.05)
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


@attrs.define
class Up:
    """A running `folkmoot up --json`."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in self.ready["pids"].values()]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("status", "--json", "--url", self.url).stdout)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)[0]


@contextlib.contextmanager
def up(*arguments: str) -> Iterator[Up]:
    process = subprocess.Popen(
        [*PROGRAM, "up", "--json", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"up ended with {process.wait()}"
        yield Up(process, json.loads(line))
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_up_serves_and_ends_all_that_it_started() -> None:
    with up() as found:
        assert all(is_running(pid) for pid in found.pids)
        status = found.status()
        assert status["health"] == "healthy"
        assert [member["node_id"] for member in status["members"]] == [1, 2, 3]
        directory = Path(found.ready["directory"])
        assert directory.exists()
        found.stop()
        assert found.process.returncode == 0
        assert not any(is_running(pid) for pid in found.pids)
        assert not directory.exists(), "it was a temporary one"


def test_a_killed_leader_is_told_and_another_leads() -> None:
    with up() as found:
        leader = found.status()["leader"]
        os.kill(int(found.ready["pids"][str(leader)]), signal.SIGKILL)

        def another() -> bool:
            status = found.status()
            return status["leader"] not in (None, leader) and status["health"] == "degraded"

        until(another)
        down = found.status()["members"][leader - 1]
        assert (down["role"], down["trouble"]) == ("down", "Connection refused")
        events = [json.loads(line) for line in found.stop(signal.SIGINT).splitlines()]
        assert any(f"server {leader} was ended by SIGKILL" in event["event"] for event in events)


def test_servers_do_not_outlive_an_up_that_is_killed() -> None:
    with up("--nodes", "1") as found:
        found.process.kill()
        until(lambda: not any(is_running(pid) for pid in found.pids))
        shutil.rmtree(found.ready["directory"])


def test_data_is_kept_and_taken_up_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with up("--nodes", "1", "--data", str(data)) as found:
        first = found.status()
    with up("--data", str(data)) as found:
        again = found.status()
        assert again["cluster_id"] == first["cluster_id"]
        assert again["term"] > first["term"]
    refused = run("up", "--nodes", "3", "--data", str(data))
    assert refused.returncode == ExitCode.USAGE
    assert f"{data} holds a cluster of 1 nodes" in refused.stderr


def test_leadership_moves_on_request() -> None:
    with up() as found:
        before = found.status()["leader"]
        wanted = next(node for node in (1, 2, 3) if node != before)
        moved = run("leader", "transfer", str(wanted), "--json", "--url", found.url)
        assert (moved.returncode, json.loads(moved.stdout)["leader"]) == (0, wanted)
        shown = run("leader", "show", "--url", found.url)
        assert shown.stdout.split("\t")[0] == str(wanted)
        nobody = run("leader", "transfer", "9", "--url", found.url)
        assert (nobody.returncode, nobody.stderr) == (
            ExitCode.USAGE,
            "folkmoot: there is no member 9: members are [1, 2, 3]\n",
        )


def test_nobody_there_is_told_with_the_address() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    done = run("status", "--url", f"folkmoot://{address}")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert f"no server answers: {address}: Connection refused" in done.stderr


def test_something_else_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("status", "--url", f"folkmoot://{address}", "--timeout", "0.3")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert f"{address} did not answer within 0.3 s" in done.stderr


def layout(directory: Path, nodes: int = 1) -> Path:
    members = plan(nodes, 0)
    write_layout(directory, members)
    return directory / "node-1.toml"


@contextlib.contextmanager
def server(config: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*PROGRAM, "server", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        until(lambda: "data in" in process.stderr.readline())  # type: ignore[union-attr]
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_server_stops_gracefully_on_sigterm(tmp_path: Path) -> None:
    with server(layout(tmp_path)) as process:
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "SIGTERM: stopping" in log
    assert log.splitlines()[-1].endswith("stopped")


def test_two_servers_cannot_have_one_directory(tmp_path: Path) -> None:
    config = layout(tmp_path)
    with server(config) as first:
        second = run("server", "--config", str(config))
    assert second.returncode == ExitCode.CANNOT_START, second.stderr
    assert str(first.pid) in second.stderr, "it says who holds it"
    assert "Traceback" not in second.stderr


def test_damaged_data_is_told_with_file_and_offset(tmp_path: Path) -> None:
    config = layout(tmp_path)
    for _ in range(2):  # a second start, so that a later entry follows the one that is damaged
        with server(config) as first:
            until(lambda: "leading" in first.stderr.readline())  # type: ignore[union-attr]
    segment = min((tmp_path / "node-1").rglob("*.seg"))
    data = bytearray(segment.read_bytes())
    used = len(data.rstrip(b"\0"))
    data[used // 2] ^= 1
    segment.write_bytes(data)
    done = run("server", "--config", str(config))
    assert done.returncode == ExitCode.STORAGE, done.stderr
    assert segment.name in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_in_use_is_told(tmp_path: Path) -> None:
    config = layout(tmp_path)
    with server(config):
        text = config.read_text().replace('"node-1"', '"other"')
        other = tmp_path / "other.toml"
        other.write_text(text)
        second = run("server", "--config", str(other))
    assert second.returncode == ExitCode.CANNOT_START, second.stderr
    assert "Address already in use" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no members"),
        (["--member", "1=127.0.0.1:1,127.0.0.1:2"], "no data_dir"),
        (["--member", "1=127.0.0.1:1"], "write NODE_ID=HOST:PEER_PORT,HOST:CLIENT_PORT"),
        (["--config", "missing.toml"], "missing.toml: No such file or directory"),
    ],
)
def test_a_server_that_lacks_something_says_what(arguments: list[str], said: str) -> None:
    done = run("server", *arguments)
    assert done.returncode == ExitCode.USAGE
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_stops_up_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("up", "--port", str(min(port, 65_000)))
    if port <= 65_000:
        assert done.returncode == ExitCode.USAGE
        assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr


def test_a_machine_of_ones_own_is_loaded_or_refused_by_name(tmp_path: Path) -> None:
    def start(machine: str) -> subprocess.CompletedProcess[str]:
        ports = free_ports(2)
        member = f"1=127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
        return run(
            *("server", "--node-id", "1", "--data-dir", str(tmp_path / "data")),
            *("--member", member, "--machine", machine),
        )

    for machine, why in (
        ("no.such.module:Thing", "no.such.module"),
        ("folkmoot.core.machine:Thing", "Thing"),
        ("folkmoot.core.types:NodeId", "is no folkmoot.Machine"),
        ("nonsense", "package.module:Class"),
    ):
        ended = start(machine)
        assert ended.returncode == ExitCode.USAGE
        assert why in ended.stderr
        assert "Traceback" not in ended.stderr
