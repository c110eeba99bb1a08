"""What takes long is told: in the log now and then, and a server that cannot restore says why."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from folkmoot.core.config import NodeConfig
from folkmoot.core.errors import StorageCorrupt
from folkmoot.core.progress import SAY_S, Progress, Reporter, of_prefix
from folkmoot.core.server import cluster_id_of
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.stored_prefix import file_names
from folkmoot.node import Node
from tests.core.members import STORAGE, Members, OneMember

RECEIVING = {
    "index": 170,
    "received_bytes": 430,
    "size_bytes": 1000,
    "phase": "receiving",
    "restored_entries": 0,
    "live_entries": None,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "receiving the prefix up to 170: 430 of 1,000 bytes"),
        ({"phase": "restoring"}, "restoring the prefix up to 170: 0 entries"),
        (
            {"phase": "restoring", "restored_entries": 12_000, "live_entries": 50_000},
            "restoring the prefix up to 170: 12,000 of 50,000 entries",
        ),
    ],
)
def test_a_prefix_is_told_in_bytes_and_then_in_entries(changed: Any, said: str) -> None:
    assert str(of_prefix(RECEIVING | changed)) == said


def test_it_is_said_now_and_then_and_not_for_what_is_short(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    reporter = Reporter(lambda: now)
    for count in range(100):
        now += SAY_S / 10
        reporter.report(Progress("counting", count, 100, "entries"))
    assert 9 <= len(caplog.messages) <= 10
    assert caplog.messages[0] == "counting: 10 of 100 entries"
    caplog.clear()
    reporter.report(None)
    assert reporter.present is None
    for _ in range(10):
        now += SAY_S
        reporter.report(Progress("again", 1, 1, "entries"))
        reporter.report(None)
    assert caplog.messages == []


def compacted() -> tuple[MemoryFiles, NodeConfig]:
    """The disk of a server with a prefix."""
    config = NodeConfig(storage=STORAGE)
    world = Members(1)
    world.configs = (config.member(),)
    world.cluster_id = cluster_id_of(config.cluster, world.configs)
    world.start()
    world.elect()
    world.open()
    for number in range(100):
        world.do([["count", "counter", 1, {}], "add", [1]])
        world.do([["map", "map", 1, {}], "set", [f"key {number}", "." * 100]])
    world.run(3)
    assert world[1].desk.store.compaction.index > 0
    damaged = damage(world[1])
    world[1].kill()
    return damaged, config


def damage(one: OneMember) -> MemoryFiles:
    name = file_names(one.desk.store.prefix.entries)[-1]
    one.files.flip_bit(name, one.files.size(name) // 2)
    return one.files


@pytest.mark.anyio
async def test_a_server_that_cannot_restore_says_why_and_gives_its_directory_up() -> None:
    files, config = compacted()
    for _ in range(2):  # DirectoryLocked, if the first had kept it
        with pytest.raises(StorageCorrupt, match=r"prefix/\d+\.\w+ at offset \d+"):
            async with Node(config, files=files):
                pass
