"""What the tests of prefix transfers share: clusters in which one member is far behind."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from folkmoot.core import prefix_frames, prefix_receiver
from folkmoot.core.prefix_frames import Ask, Chunk, decode_prefix, encode_prefix, is_prefix
from folkmoot.core.storage.stored_prefix import file_names
from folkmoot.transport.frame import FrameReader
from tests.core.members import STORAGE, Members, OneMember, Wired

CHUNK_BYTES = 250
"""So that a prefix of ten kilobytes takes some rounds of questions."""
WINDOW_BYTES = prefix_receiver.WINDOW_CHUNKS * CHUNK_BYTES
KEEPS_LITTLE = attrs.evolve(STORAGE, log_keep_bytes_max=0)
WHOLE_LOG = attrs.evolve(STORAGE, log_keep_bytes=1 << 30, log_keep_bytes_max=1 << 30)


def set_chunk_bytes(monkeypatch: pytest.MonkeyPatch, size_bytes: int = CHUNK_BYTES) -> None:
    """Let so many bytes be asked for at once."""
    monkeypatch.setattr(prefix_frames, "CHUNK_BYTES", size_bytes)
    monkeypatch.setattr(prefix_receiver, "CHUNK_BYTES", size_bytes)


@functools.cache
def grown(keys: int = 60, rounds: int = 3) -> dict[int, dict[str, bytes]]:
    """Disks of two that have written, compacted and trimmed, and of one that never started."""
    world = Members()
    world.start(1, 2)
    world.elect()
    world.open()
    for number in range(rounds * keys):
        world.put(f"key {number % keys}", [number, "." * 100])
    world.do([["scratch", "scratch", 1, {}], "add", [7]])
    world.run(3)
    assert world.leader.desk.store.start.index > 80
    return world.disks()


def world_of(**options: Any) -> Members:
    """Two that have a prefix and little log, and one that has nothing; all up, one leads."""
    world = Members(disks=grown(), **options)
    world.start()
    return world


def messages(frames: Sequence[Wired], kind: type) -> list[Any]:
    found = [decode_prefix(one.frame_type, one.body) for one in frames if is_prefix(one.frame_type)]
    return [one for one in found if type(one) is kind]


class Recorder:
    """Passes everything on, and keeps what belongs to transfers."""

    def __init__(self, world: Members) -> None:
        self.frames: list[Wired] = []
        world.pass_on = self

    def __call__(self, one: Wired) -> Sequence[Wired]:
        if is_prefix(one.frame_type):
            self.frames.append(one)
        return [one]

    def asked(self) -> list[tuple[bytes, int, int]]:
        """Places that were asked for: (archive, file, offset)."""
        asks: list[Ask] = messages(self.frames, Ask)
        return [(a.archive_id, a.file_number, a.offset) for a in asks if a.size_bytes]

    def sent_bytes(self) -> int:
        return sum(len(chunk.data) for chunk in messages(self.frames, Chunk))


def deliver(world: Members, sender: int, target: int, message: Any) -> None:
    """Put a message into a member's inbox."""
    ((frame_type, _, body),) = FrameReader(64 << 20).feed(encode_prefix(message))
    world[target].inbox.append(Wired(sender, target, frame_type, body))


def halfway(world: Members, share: float = 0.5, follower: int = 3) -> None:
    """Run until so much of the prefix has arrived."""

    def is_there() -> bool:
        found = world[follower].receiving
        return found is not None and found["received_bytes"] >= share * found["size_bytes"]

    world.until(is_there)


@functools.cache
def disks_with_a_whole_log_at_2() -> dict[int, dict[str, bytes]]:
    world = Members()
    world.storage[2] = WHOLE_LOG
    world.start(1, 2)
    world.elect()
    world.open()
    for number in range(180):
        world.put(f"key {number % 60}", [number, "." * 100])
    world.run(3)
    assert world[1].desk.store.start.index > 100
    assert world[2].desk.store.start.index == 0
    return world.disks()


def hold_in(world: Members, phase: str) -> None:
    """Run until the follower is in a phase, and keep it there until it has the log, or a leader."""
    follower = world[3]
    install = follower.replica.prefixes.install
    if phase == "receiving":
        halfway(world)
        follower.desk.holds_jobs = True
        return
    world.until(lambda: install.phase == "restoring")
    if phase == "restoring":
        install._steps = itertools.repeat(0)  # a state that takes long
        return
    follower.desk.holds_jobs = True
    world.until(lambda: install.phase == "stopping")


def isolated(world: Members, node_id: int) -> None:
    world.pass_on = lambda one: [] if node_id in (one.sender, one.target) else [one]


def grow(world: Members, count: int) -> None:
    """Have the leader write so much that it compacts and trims."""
    before = world.leader.desk.store.compaction.index
    world.open()
    for number in range(count):
        world.put(f"more {number}", "." * 150)
    world.until(lambda: world.leader.desk.store.compaction.index > before)
    world.run(2.5)


def churn(world: Members) -> None:
    """Overwrite everything, until the prefix has other files."""
    leader = world.leader
    _, *before = leader.desk.store.prefix.entries
    world.open()
    for number in range(150):
        world.put(f"key {number % 60}", [number, "," * 100])
    world.until(lambda: set(before) - set(leader.desk.store.prefix.entries))


def pinned(one: OneMember) -> set[str]:
    return set(one.desk.store.prefix._pins)


def listed(one: OneMember) -> set[str]:
    return set(file_names(one.desk.store.prefix.entries))


def used_bytes(one: OneMember) -> int:
    return sum(map(one.files.size, one.files.contents()))
