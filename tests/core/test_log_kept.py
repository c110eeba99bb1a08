"""What real servers keep of their logs, for whom, and how one that lacks the rest comes back."""

from __future__ import annotations

from typing import Any

import attrs

from folkmoot.core.compacting import RETRY_S, TRIM_S
from folkmoot.core.errors import StorageFull
from folkmoot.core.prefix_events import PrefixTaken
from tests.core.members import STORAGE, Members, OneMember
from tests.core.transfers import isolated


def log_bytes(one: OneMember) -> int:
    return one.desk.store.size_bytes


def write(world: Members, count: int) -> None:
    for _ in range(count):
        world.put(f"key {world.sequence % 10}", [world.sequence, "." * 150])


def test_bug_e9_a_key_that_was_deleted_does_not_come_back_on_a_member_that_was_cut_off() -> None:
    """Bugs E9: its tombstone is compacted and trimmed away before the member ever saw it."""
    world = Members()
    world.start()
    world.elect()
    world.open()
    world.put("gone", 1)
    world.put("stays", 2)
    world.settle()
    away = next(one for one in world.up if one.node_id != world.leader_id)
    isolated(world, away.node_id)
    world.take("gone")
    has_it = away.replica.raft.last_index
    while world.leader.replica.raft.log.start_index <= has_it + 1:
        write(world, 30)
        world.run(2 * TRIM_S)
    world.pass_on = lambda one: [one]
    world.settle()
    assert away.events(PrefixTaken)
    (machine,) = [
        resource.machine
        for resource in away.replica.multiplexer.directory.resources.values()
        if resource.name == "shelf"
    ]
    assert "gone" not in machine.things  # type: ignore[attr-defined]
    assert "stays" in machine.things  # type: ignore[attr-defined]


def test_bug_e10_a_member_that_is_away_for_a_day_does_not_hold_the_log() -> None:
    """Bugs E10: and it comes back by the prefix."""
    world = Members(storage=attrs.evolve(STORAGE, log_keep_bytes=10_000, log_keep_bytes_max=50_000))
    world.start()
    world.elect()
    world.open()
    write(world, 10)
    world.settle()
    world[3].kill()
    largest = 0
    for _ in range(24):
        world.now += 3600
        world.elect()
        write(world, 50)
        world.run(3)
        largest = max(largest, *(log_bytes(one) for one in world.up))
    assert 3 * largest < 24 * 50 * 150, "most of what was written is not there any more"
    assert largest < 40_000
    world[3].start()
    world.settle()
    assert world[3].events(PrefixTaken)


def test_one_that_was_away_briefly_gets_the_log() -> None:
    world = Members(storage=attrs.evolve(STORAGE, log_keep_bytes=30_000))
    world.start()
    world.elect()
    world.open()
    write(world, 60)
    world.settle()
    away = next(one for one in world.up if one.node_id != world.leader_id)
    isolated(world, away.node_id)
    before = world.leader.desk.store.compaction.index
    write(world, 60)
    world.run(3)
    assert world.leader.desk.store.compaction.index > before > 0
    world.pass_on = lambda one: [one]
    world.settle()
    assert not away.events(PrefixTaken)
    assert world.leader.replica.prefixes.status()["sending"] == {}


def test_log_waits_for_one_that_lags_and_answers() -> None:
    world = Members(storage=attrs.evolve(STORAGE, log_keep_bytes_max=40_000))
    world.start()
    world.elect()
    world.open()
    slow = next(one for one in world.up if one.node_id != world.leader_id)
    write(world, 5)
    world.settle()
    has_it = slow.replica.raft.last_index

    def without_batches(one: Any) -> Any:
        """It hears heartbeats; what is longer gets lost."""
        return [] if one.target == slow.node_id and len(one.body) > 150 else [one]

    world.pass_on = without_batches
    write(world, 100)
    world.run(3)
    leader = world.leader
    assert leader.desk.store.compaction.index > has_it + 30
    assert leader.desk.store.start.index <= has_it
    write(world, 200)
    world.run(3)
    assert leader.desk.store.start.index > has_it, "not for ever"
    world.pass_on = lambda one: [one]
    world.settle()


def test_a_full_disk_ends_a_compaction_and_nothing_else() -> None:
    world = Members(1)
    world.start()
    world.elect()
    world.open()
    one = world.leader
    one.desk.holds_compactions = True
    while one.desk.compaction is None:
        write(world, 1)
    index, segments = one.desk.compaction.index, one.desk.store.status()["segments"]
    one.files.fail("create", 1, StorageFull("no room"))
    one.desk.holds_compactions = False
    world.run(1)
    assert one.replica.compacting.is_short_of_room
    assert one.desk.store.compaction.index == 0
    write(world, 3)
    world.run(RETRY_S)
    assert one.desk.store.compaction.index == index
    assert one.desk.store.status()["segments"] <= segments
    assert one.desk.store.prefix.status()["live_entries"] == 10
