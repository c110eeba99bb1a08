"""Data directories and backups on the real disk, made without a server: for the tests of commands.

The cluster behind them is tests/core/members.py's; its resources are of types that the built-in
servers do not know.
"""

from __future__ import annotations

from pathlib import Path

from tests.core.members import Members


def small_cluster(*, count: int = 1) -> Members:
    """A cluster with a few things, compacted, and a few entries behind that."""
    world = Members(count)
    world.start()
    world.elect()
    world.open()
    for at in range(60):
        world.put(f"k{at % 9}", at)
    world.do([["tally", "tally", 1, {}], "put_many", [[["a", 1], ["b", 2]]]])
    member = world.leader
    index = member.replica.multiplexer.index
    world.until(lambda: member.replica.compacting.want(index))
    for at in range(3):
        world.put("late", at)
    return world


def write_directory(path: Path, world: Members, node_id: int = 1) -> Path:
    """Write a member's disk to `path`, as a graceful end leaves it."""
    member = world[node_id]
    member.desk.store.close()
    for name, data in member.files.contents().items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a directory: its bytes and when it was changed."""
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
