"""A prefix on its way to a follower that is below the log's start: whole, once, and in the end."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from folkmoot.core import prefix_frames
from folkmoot.core.prefix_events import PrefixDiscarded, PrefixTaken
from folkmoot.core.prefix_frames import Ask, Chunk, is_prefix
from folkmoot.core.storage import incoming
from folkmoot.core.storage.memory import PowerCut
from tests.core.members import STORAGE, Members, Wired
from tests.core.transfers import (
    Recorder,
    deliver,
    grown,
    messages,
    set_chunk_bytes,
    world_of,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_bytes(monkeypatch)


def test_a_member_with_an_empty_disk_gets_the_prefix_and_then_the_log() -> None:
    world = world_of()
    recorder = Recorder(world)
    world.settle()
    follower, leader = world[3], world.leader
    archive = leader.desk.store.prefix.size_bytes
    assert recorder.sent_bytes() == archive, "each byte once"
    assert max(Counter(recorder.asked()).values()) == 1
    assert [event.index for event in follower.events(PrefixTaken)] == [
        leader.desk.store.compaction.index
    ]
    store = follower.desk.store
    assert store.start == store.compaction == leader.desk.store.compaction
    assert not follower.files.list(incoming.SUBDIR), "nothing is left of it"
    follower.kill()
    follower.start()
    world.settle()
    assert len(follower.events(PrefixTaken)) == 1, "it starts from what it got"
    world.put("after", 1)
    world.settle()


@pytest.mark.parametrize("delta", [-1, 0, 1])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_files_of_about_a_whole_number_of_chunks(
    monkeypatch: pytest.MonkeyPatch, parts: int, delta: int
) -> None:
    """Bugs E6: sizes of k chunks, one more, one less. Each file is such once."""
    ends = [one.end for one in world_of()[1].desk.store.prefix.entries]
    for end in ends:
        set_chunk_bytes(monkeypatch, (end - delta + parts - 1) // parts)
        world = world_of()
        recorder = Recorder(world)
        world.settle()
        assert recorder.sent_bytes() == sum(ends)


def test_a_byte_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Members(disks=grown(1, 110))
    set_chunk_bytes(monkeypatch, 7)
    world.start()
    world.settle(seconds=120)
    assert len(world[3].events(PrefixTaken)) == 1


def test_a_prefix_without_any_entry() -> None:
    """Bugs E6: nothing lives; there is the file of the state alone."""
    world = Members()
    world.start(1, 2)
    world.elect()
    world.open()
    for number in range(150):
        world.do([["scratch", "scratch", 1, {}], "add", [number + 1]])
    world.run(3)
    assert len(world.leader.desk.store.prefix.entries) == 1
    world[3].start()
    world.settle()
    assert len(world[3].events(PrefixTaken)) == 1


def prefix_frames_of_a_transfer() -> int:
    world = world_of()
    recorder = Recorder(world)
    world.settle()
    return len(recorder.frames)


def test_each_frame_may_be_lost() -> None:
    count = prefix_frames_of_a_transfer()
    assert count > 20
    for lost in range(count):
        world = world_of()
        seen = 0

        def pass_on(one: Wired, lost: int = lost) -> Sequence[Wired]:
            nonlocal seen
            if is_prefix(one.frame_type):
                seen += 1
                return [] if seen == lost + 1 else [one]
            return [one]

        world.pass_on = pass_on
        world.settle(seconds=8)
        assert world[3].events(PrefixTaken), lost


def test_what_is_lost_is_asked_for_again_though_the_offer_is_repeated() -> None:
    """The offer came every half second, and each time put off by a second the moment at which what
    was lost is asked for again: it never came.
    """
    world = world_of()
    asks_lost = 0

    def pass_on(one: Wired) -> Sequence[Wired]:
        nonlocal asks_lost
        if one.frame_type == prefix_frames.ASK and asks_lost < 16:
            asks_lost += 1
            return []
        return [one]

    world.pass_on = pass_on
    world.settle(seconds=5)
    assert asks_lost == 16


def test_each_frame_may_come_twice() -> None:
    world = world_of()
    kept: list[Wired] = []

    def pass_on(one: Wired) -> Sequence[Wired]:
        if not is_prefix(one.frame_type):
            return [one]
        kept.append(one)
        return [one, one, *kept[-7:-6]]

    world.pass_on = pass_on
    world.settle()
    assert len(world[3].events(PrefixTaken)) == 1
    for one in kept:  # and once more, when all is over
        world[one.target].inbox.append(one)
    world.run(1)
    world.settle()
    assert len(world[3].events(PrefixTaken)) == 1


@pytest.mark.parametrize("seed", range(12))
def test_frames_may_come_in_any_order_late_or_never(seed: int) -> None:
    world, rng = world_of(), random.Random(seed)
    late: list[Wired] = []

    def pass_on(one: Wired) -> Sequence[Wired]:
        if not is_prefix(one.frame_type):
            return [one]
        fate = rng.random()
        if fate < 0.1:
            return []
        late.append(one)
        rng.shuffle(late)
        take = rng.randrange(3) if fate < 0.6 else len(late)
        out, late[:] = late[:take], late[take:]
        return out + (out if rng.random() < 0.1 else [])

    world.pass_on = pass_on
    world.settle(seconds=120)
    assert len(world[3].events(PrefixTaken)) == 1


def test_bytes_that_were_not_asked_for_change_nothing() -> None:
    world = world_of()
    follower = world[3]
    receiver = follower.replica.prefixes.receiver
    world.until(lambda: receiver._asked and receiver.received_bytes)
    (number, offset), size_bytes = next(iter(receiver._asked.items()))
    leader, data = world.leader.node_id, bytes(size_bytes)
    for chunk in (
        Chunk(b"?" * 16, number, offset, data),
        Chunk(receiver._id, 1 << 40, offset, data),
        Chunk(receiver._id, number, 1 << 63, data),
        Chunk(receiver._id, 0, 0, data),
    ):
        deliver(world, leader, 3, chunk)
    deliver(world, 3 - leader, 3, Chunk(receiver._id, number, offset, data))
    world.settle()
    assert not follower.events(PrefixDiscarded), "not a byte of it was written"


def test_questions_that_cannot_be_answered_are_passed_over() -> None:
    world = world_of()
    recorder = Recorder(world)
    world.until(lambda: messages(recorder.frames, Ask))
    asked, leader = messages(recorder.frames, Ask)[0], world.leader
    for ask in (
        attrs.evolve(asked, term=asked.term + 1),
        attrs.evolve(asked, archive_id=b"?" * 16),
        attrs.evolve(asked, file_number=1 << 40),
        attrs.evolve(asked, offset=1 << 60),
    ):
        deliver(world, 3, leader.node_id, ask)
    deliver(world, 3, 3 - leader.node_id, asked)
    deliver(world, 3, leader.node_id, attrs.evolve(asked, received_bytes=1 << 60))
    world.step()
    told = leader.replica.prefixes.status()["sending"][3]
    assert told["received_bytes"] <= told["size_bytes"]
    world.settle()


def steps_of_a_transfer() -> int:
    """From the election on, in steps of the world."""
    world = world_of()
    world.elect()
    begun = world.now
    world.settle()
    return round((world.now - begun) * 100)


@pytest.mark.parametrize("power_cut", [False, True])
def test_the_follower_may_die_at_each_moment(
    power_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resumes: what was whole is not asked for again."""
    set_chunk_bytes(monkeypatch, 900)
    count = steps_of_a_transfer()
    assert count > 8
    for moment in range(count + 2):
        world, follower = world_of(), None
        world.elect()
        for _ in range(moment):
            world.step()
        follower = world[3]
        if power_cut:
            follower.cut_power(random.Random(moment))
        else:
            follower.kill()
        whole = {name for name in follower.files.list(incoming.SUBDIR) if "whole" in name}
        world.run(0.3)
        recorder = Recorder(world)
        follower.start()
        world.settle()
        store = world.leader.desk.store
        again = {number for _, number, _ in recorder.asked()}
        files = world_files(store)
        kept = {n for n, name in enumerate(files) if f"{name}.whole" in whole}
        assert not again & kept, (moment, again, kept)


def world_files(store: Any) -> list[str]:
    """Return under which names the files of a prefix are received."""
    archive = store.archive()
    archive.close()
    return [
        f"{origin}-{file_id:010d}-{chain:08x}"
        for origin, file_id, chain in (one.identity for one in archive.table.files)
    ]


def test_the_power_may_go_at_each_operation_of_its_disk() -> None:
    world = world_of()
    begun = world[3].files.operations
    world.settle()
    count = world[3].files.operations - begun
    assert count > 80
    for operation in range(1, count + 1):
        world = world_of()
        files = world[3].files
        files.cut_power_at = files.operations + operation
        with contextlib.suppress(PowerCut):
            world.settle()  # the power may go behind the last operation that this needs
        world[3].cut_power(random.Random(operation))
        world[3].start()
        world.settle()
        world.put("after", 1)
        world.settle()


def test_progress_is_told_by_both_sides() -> None:
    world = world_of(storage=attrs.evolve(STORAGE, transfer_bytes_per_s=20_000))
    phases: dict[str, None] = {}
    received, told = [0], [0]
    follower = world[3]
    while not follower.events(PrefixTaken):
        world.step()
        found = follower.receiving
        if found is not None:
            phases[found["phase"]] = None
            received.append(found["received_bytes"])
            assert found["received_bytes"] <= found["size_bytes"] == received_of(world)
        sending = world.leader_id and world.leader.replica.prefixes.status()["sending"].get(3)
        if sending:
            told.append(sending["received_bytes"])
    assert received == sorted(received)
    assert told == sorted(told)
    assert len(set(received)) > 10 < len(set(told))
    assert list(phases) == ["receiving", "restoring", "stopping", "writing"]
    world.settle()
    assert follower.receiving is None
    assert world.leader.replica.prefixes.status()["sending"] == {}


def received_of(world: Members) -> int:
    return world.leader.desk.store.prefix.size_bytes
