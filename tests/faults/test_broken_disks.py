"""A server whose disk fails, is full, is damaged or is another's.

It says so and acknowledges nothing false.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import folkmoot
from folkmoot.cli.exits import ExitCode
from folkmoot.core.config import NodeConfig, StorageConfig
from folkmoot.core.errors import DirectoryLocked, StorageCorrupt, StorageError, StorageFull
from folkmoot.core.machine import Context, Machine, command
from folkmoot.core.resource import MachineFault
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.node import Node
from tests.faults.wire import members

pytestmark = [pytest.mark.faults, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


async def fill(directory: str, count: int) -> None:
    async with folkmoot.open(directory) as cluster:
        users = cluster.map("users")
        for number in range(count):
            await users.set(f"user-{number}", "x" * 200)


async def test_two_processes_on_one_directory_the_second_is_told_who_holds_it(
    tmp_path: Path,
) -> None:
    async with folkmoot.open(tmp_path) as cluster:
        await cluster.counter("hits").add(1)
        program = (
            "import anyio, folkmoot\n"
            "async def main():\n"
            f"    async with folkmoot.open({str(tmp_path)!r}): pass\n"
            "anyio.run(main)\n"
        )
        child = await anyio.run_process([sys.executable, "-c", program], check=False)
        assert child.returncode != 0
        assert "DirectoryLocked" in child.stderr.decode()
        assert str(os.getpid()) in child.stderr.decode()
        with pytest.raises(DirectoryLocked, match=str(tmp_path)):
            async with folkmoot.open(tmp_path):
                pass
        assert await cluster.counter("hits").get() == 1, "the first lives"


@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_bug_f2_a_failed_write_or_fsync_stops_the_server_before_it_acknowledges(
    operation: str,
) -> None:
    files = MemoryFiles()
    acknowledged = 0
    with pytest.raises(StorageError):  # noqa: PT012
        async with (
            Node(NodeConfig(), files=files) as node,
            folkmoot.core.client.Client([node.client_address], node.transport) as client,
        ):
            hits = client.resource("hits", "counter")
            await hits.command("add", 1)
            acknowledged = 1
            files.fail(operation)
            try:
                await hits.command("add", 1, timeout=2.0)
                acknowledged += 1
            except folkmoot.OutcomeUnknown:
                pass
            await node.wait_stopped()
            assert node.failed is not None
    assert acknowledged == 1, "what could not be made durable was not acknowledged"


async def test_a_torn_last_record_is_cut_and_everything_acknowledged_is_there(
    tmp_path: Path,
) -> None:
    await fill(str(tmp_path / "data"), 50)
    log = sorted((tmp_path / "data" / "log").glob("*.seg"))[-1]
    with log.open("r+b") as file:
        content = file.read()
        end = len(content.rstrip(b"\0"))
        file.seek(end)
        file.write(b"\x10\x20\x30 half a record")
    async with folkmoot.open(tmp_path / "data") as cluster:
        assert await cluster.map("users").size() == 50


async def test_a_flipped_bit_in_durable_data_is_refused_with_file_and_offset(
    tmp_path: Path,
) -> None:
    await fill(str(tmp_path / "data"), 200)
    log = sorted((tmp_path / "data" / "log").glob("*.seg"))[0]
    size = len(log.read_bytes().rstrip(b"\0"))
    with log.open("r+b") as file:
        file.seek(size // 3)
        byte = file.read(1)
        file.seek(size // 3)
        file.write(bytes([byte[0] ^ 4]))
    before = log.read_bytes()
    with pytest.raises(StorageCorrupt, match=rf"{log.name}.*offset \d+"):
        async with folkmoot.open(tmp_path / "data"):
            pass
    assert log.read_bytes() == before, "nothing was cut or repaired"


async def test_a_directory_of_another_member_is_refused(tmp_path: Path) -> None:
    everyone = members(3)
    first = NodeConfig(node_id=everyone[0].node_id, members=everyone, data_dir=str(tmp_path))
    async with Node(first):
        pass
    second = NodeConfig(node_id=everyone[1].node_id, members=everyone, data_dir=str(tmp_path))
    with pytest.raises(StorageError, match=r"node 1.*node 2|node 2.*node 1"):
        async with Node(second):
            pass


FILL_THE_DISK = """
import sys
import anyio, folkmoot
from folkmoot.core.config import NodeConfig, StorageConfig
from folkmoot.core.client import Client
from folkmoot.node import Node

async def main():
    storage = StorageConfig(segment_bytes=1 << 20, reserve_bytes=0)  # it is to fill up
    config = NodeConfig(data_dir=sys.argv[1], storage=storage)
    acknowledged = 0
    try:
        async with Node(config) as node, Client([node.client_address], node.transport) as client:
            users = client.resource("users", "map")
            while True:
                await users.command("set", f"k{acknowledged}", b"v" * 4000, timeout=5.0)
                acknowledged += 1
    except* folkmoot.StorageError as group:
        print("stopped", type(group.exceptions[0]).__name__, group.exceptions[0])
    except* folkmoot.FolkmootError as group:
        print("outcome", [error.code for error in group.exceptions])
    print("acknowledged", acknowledged)

anyio.run(main)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(directory)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def check_what_was_acknowledged(output: str, directory: Path) -> int:
    """The number that was acknowledged; all of it must be there after a restart."""
    acknowledged = int(output.rpartition("acknowledged ")[2])

    async def count() -> int:
        async with folkmoot.open(directory) as cluster:
            return await cluster.map("users").size()

    assert acknowledged <= anyio.run(count) <= acknowledged + 1
    return acknowledged


def test_a_full_disk_stops_the_server_before_it_acknowledges(
    small_disk: Path, tmp_path: Path
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL_THE_DISK), str(small_disk / "data")],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "stopped StorageFull" in child.stdout, child.stdout + child.stderr
    roomy = tmp_path / "roomy"
    shutil.copytree(small_disk / "data", roomy)
    assert check_what_was_acknowledged(child.stdout, roomy) > 300


def test_a_write_that_the_system_refuses_stops_the_server(tmp_path: Path) -> None:
    """A limit on file sizes makes a real write fail half-way, without root."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))

    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL_THE_DISK), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=50,
        preexec_fn=limit,
    )
    assert "stopped Storage" in child.stdout, child.stdout + child.stderr


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    anyio.run(fill, str(data), 100)
    log = sorted((data / "log").glob("*.seg"))[0]
    content = bytearray(log.read_bytes())
    content[2000] ^= 1
    log.write_bytes(content)
    child = subprocess.run(
        [sys.executable, "-m", "folkmoot", "server", "--data-dir", str(data)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert child.returncode in {ExitCode.STORAGE, ExitCode.USAGE}, child.stderr
    assert "Traceback" not in child.stderr


class Faulty(Machine):
    """Refuses properly, or breaks."""

    type_name = "test.faulty"

    def __init__(self, config: Any) -> None:
        self.count = 0

    @command
    def refuse(self, context: Context) -> None:
        raise folkmoot.ConditionFailed("not today")

    @command
    def explode(self, context: Context) -> None:
        raise ZeroDivisionError("a bug")

    def snapshot(self) -> Any:
        return self.count

    def restore(self, data: Any) -> None:
        self.count = data


async def test_a_declared_error_is_an_answer_and_any_other_stops_the_server() -> None:
    with pytest.raises(MachineFault, match=r"test\.faulty.*explode|explode.*test\.faulty"):  # noqa: PT012
        async with (
            Node(NodeConfig(), machines=[Faulty]) as node,
            folkmoot.core.client.Client([node.client_address], node.transport) as client,
        ):
            faulty = client.resource("bad", "test.faulty")
            with pytest.raises(folkmoot.ConditionFailed, match="not today"):
                await faulty.command("refuse")
            with pytest.raises(folkmoot.FolkmootError) as caught:
                await faulty.command("explode", timeout=2.0)
            assert caught.value.applied == "maybe"
            await node.wait_stopped()


async def test_storage_full_is_told_apart() -> None:
    files = MemoryFiles()
    files.capacity_bytes = 3 << 20
    storage = StorageConfig(segment_bytes=1 << 20, reserve_bytes=0)
    with pytest.raises(StorageFull):  # noqa: PT012
        async with (
            Node(NodeConfig(storage=storage), files=files) as node,
            folkmoot.core.client.Client([node.client_address], node.transport) as client,
        ):
            users = client.resource("users", "map")
            for number in range(3000):
                try:
                    await users.command("set", f"k{number}", b"v" * 4000, timeout=1.0)
                except folkmoot.OutcomeUnknown:
                    break
            await node.wait_stopped()
