"""Transfers of a prefix while leaders change, compact and hurry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import attrs
import pytest

from folkmoot.core import prefix_frames, prefix_receiver, prefix_sender
from folkmoot.core.jobs import ReadArchive
from folkmoot.core.prefix_events import (
    PrefixBegun,
    PrefixTaken,
)
from folkmoot.core.prefix_frames import Chunk, Offer
from folkmoot.core.storage import incoming
from folkmoot.core.types import NodeId
from tests.core.members import STORAGE, Members, Wired
from tests.core.transfers import (
    CHUNK_BYTES,
    KEEPS_LITTLE,
    WHOLE_LOG,
    WINDOW_BYTES,
    Recorder,
    churn,
    deliver,
    disks_with_a_whole_log_at_2,
    grow,
    halfway,
    hold_in,
    isolated,
    listed,
    messages,
    pinned,
    set_chunk_bytes,
    world_of,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_bytes(monkeypatch)


def test_another_leader_sends_its_own_prefix() -> None:
    world = world_of()
    halfway(world)
    first = world.leader
    first.kill()
    world.settle()
    assert world.leader is not first
    assert world[3].desk.store.compaction == world.leader.desk.store.compaction
    assert len(world[3].events(PrefixBegun)) == 2


def test_another_leader_with_the_same_prefix_goes_on_with_it() -> None:
    """Four has it from the leader: the archive is the same, whoever sends it to five."""
    world = Members(5)
    world.start(1, 2, 3)
    world.elect()
    world.open()
    for number in range(180):
        world.put(f"key {number % 60}", [number, "." * 100])
    world.run(3)
    world[4].start()
    world.settle()
    world[5].start()
    recorder = Recorder(world)
    halfway(world, follower=5)
    first = world.leader
    first.replica.raft.transfer_leadership(NodeId(4), world.now)
    world.settle()
    assert world.leader_id == 4
    assert len(world[5].events(PrefixBegun)) == 1, "it is the same transfer"
    assert recorder.sent_bytes() <= world.leader.desk.store.prefix.size_bytes + WINDOW_BYTES
    assert {one.sender for one in recorder.frames if one.target == 5} == {first.node_id, 4}


def test_a_leader_that_leads_again_is_asked_again() -> None:
    world = world_of()
    halfway(world)
    leader = world.leader
    world.pass_on = lambda one: [one] if leader.node_id not in (one.sender, one.target) else []
    world.until(lambda: world.leader_id not in (0, leader.node_id))
    second = world.leader
    world.pass_on = lambda one: [one] if second.node_id not in (one.sender, one.target) else []
    world.until(lambda: world.leader_id == leader.node_id, seconds=60)
    world.pass_on = lambda one: [one]
    world.settle()


@pytest.mark.parametrize("phase", ["receiving", "restoring", "stopping"])
def test_what_comes_in_the_ordinary_way_makes_it_pointless(phase: str) -> None:
    """Another leader has all of the log: bugs E3. What was received is thrown away."""
    world = Members(disks=disks_with_a_whole_log_at_2())
    world.storage[2] = WHOLE_LOG
    world.start(1, 3)
    world.until(lambda: world.leader_id == 1)
    follower = world[3]
    hold_in(world, phase)
    world[2].start()
    world[1].kill()
    index = (follower.receiving or {})["index"]
    world.until(lambda: follower.replica.raft.commit_index > index, seconds=60)
    follower.desk.holds_jobs = False
    world.settle()
    world.run(0.1)
    assert not follower.events(PrefixTaken)
    assert follower.receiving is None
    assert not follower.files.list(incoming.SUBDIR)
    assert not follower.replica.compacting.is_stopped
    world.put("after", 1)
    world.settle()


def test_what_is_restored_waits_for_a_leader() -> None:
    """And waits without turning round and round."""
    world = world_of()
    hold_in(world, "stopping")
    follower = world[3]
    assert follower.replica.deadline() > world.now, "while a compaction is being stopped"
    for one in world.up:
        if one is not follower:
            one.kill()
    world.run(3)
    follower.desk.holds_jobs = False
    world.run(0.1)
    assert follower.replica.prefixes.install.phase == "ready"
    assert follower.replica.deadline() > world.now
    world.start(1, 2)
    world.settle()
    assert len(follower.events(PrefixTaken)) == 1


def test_a_prefix_that_has_arrived_is_kept_while_there_is_no_leader() -> None:
    """It was thrown away: an hour of transfer for an election."""
    world = world_of()
    recorder = Recorder(world)
    halfway(world, 1.0)
    first, follower = world.leader, world[3]
    others = [one for one in world.up if one is not follower]
    for one in others:
        one.kill()
    world.run(5)
    assert follower.replica.raft.leader is None
    sent_bytes = recorder.sent_bytes()
    first.start()
    for one in others:
        if one is not first:
            one.start()
    world.settle()
    assert first is world.leader or world.leader in others
    if world.leader is first:
        assert recorder.sent_bytes() == sent_bytes, "nothing was sent again"
    assert len(follower.events(PrefixTaken)) == 1


def test_what_is_complete_stays_while_the_log_of_another_leader_goes_on_from_it() -> None:
    world = world_of()
    hold_in(world, "restoring")
    follower, first = world[3], world.leader
    first.kill()
    second = world[3 - first.node_id]
    first.start()
    isolated(world, first.node_id)
    world.until(lambda: world.leader_id == second.node_id, seconds=60)
    world.pass_on = lambda one: [one]
    world.run(3)
    assert second.desk.store.prefix.entries != first.desk.store.prefix.entries
    assert follower.replica.prefixes.install.phase == "restoring"
    assert len(follower.events(PrefixBegun)) == 1


def test_a_leader_keeps_what_a_follower_needs_while_that_restores_for_long() -> None:
    """It says that it is alive, or the log that goes on from its prefix would be given up."""
    world = world_of()
    hold_in(world, "restoring")
    leader = world.leader
    index = leader.replica.prefixes.sender.oldest
    for _ in range(4):
        world.run(prefix_sender.SILENCE_S / 2)
        assert leader.replica.prefixes.sender.oldest == index
    sending = leader.replica.prefixes.status()["sending"][3]
    assert sending["received_bytes"] == sending["size_bytes"]


def test_an_offer_that_was_overtaken_by_a_newer_one_is_passed_over() -> None:
    """Bugs E3: 20 is being received when the offer of 10 arrives."""
    world = world_of(storage=KEEPS_LITTLE)
    recorder = Recorder(world)
    world.until(lambda: messages(recorder.frames, Offer))
    (offer,), leader = messages(recorder.frames, Offer), world.leader
    isolated(world, 3)
    grow(world, 100)
    world.pass_on = recorder
    recorder.frames.clear()
    world.until(lambda: messages(recorder.frames, Offer))
    assert messages(recorder.frames, Offer)[0].table != offer.table
    world.until(lambda: world[3].receiving)
    begun = world[3].replica.prefixes.receiver.number
    deliver(world, leader.node_id, 3, offer)
    world.step()
    assert world[3].replica.prefixes.receiver.number == begun
    world.settle()


# -- a leader that goes on --------------------------------------------------------------------


def test_the_files_that_are_sent_stay_while_they_are_compacted_away() -> None:
    """Bugs E14: the archive is read to its end, and then its files go."""
    world = world_of()
    halfway(world, 0.3)
    leader, follower = world.leader, world[3]
    index = (follower.receiving or {})["index"]
    follower.desk.holds_jobs = True
    churn(world)
    old = pinned(leader)
    assert not old <= listed(leader), "some were replaced"
    follower.desk.holds_jobs = False
    world.settle()
    assert follower.events(PrefixTaken)[0].index == index
    world.run(1)
    assert not pinned(leader)
    assert {f"prefix/{name}" for name in leader.files.list("prefix")} == listed(leader)


def test_an_archive_is_not_let_go_before_what_was_asked_of_it_is_read() -> None:
    """The reads wait, the follower vanishes, and a compaction replaces the files."""
    world = world_of()
    halfway(world, 0.3)
    leader = world.leader
    leader.desk.holds_compactions = True
    world[3].desk.holds_jobs = True
    world.open()
    for number in range(120):
        world.put(f"key {number % 60}", [number, "," * 100])
    assert leader.desk.compaction is not None
    leader.desk.holds_jobs = True
    world[3].desk.holds_jobs = False
    world.run(1)
    reads = [job for job, _ in leader.desk.jobs if type(job) is ReadArchive]
    assert 0 < len(reads) <= prefix_receiver.WINDOW_CHUNKS
    world.run(3 * prefix_receiver.AGAIN_S)
    again = [job for job, _ in leader.desk.jobs if type(job) is ReadArchive]
    assert again == reads, "what is asked for again while it is read is read once"
    world[3].kill()
    world.run(prefix_sender.SILENCE_S + 1)
    assert leader.replica.prefixes.sender.is_idle
    before = set(leader.files.list("prefix"))
    leader.desk.finish_compaction()
    assert set(leader.files.list("prefix")) > before, "nothing is removed yet"
    leader.desk.holds_jobs = leader.desk.holds_compactions = False
    world.run(1)
    assert not pinned(leader)
    assert not before <= set(leader.files.list("prefix"))


def test_a_follower_that_vanishes_lets_the_files_go() -> None:
    world = world_of()
    halfway(world)
    leader = world.leader
    world[3].kill()
    world.run(prefix_sender.SILENCE_S - 1)
    assert pinned(leader), "it may come back"
    world.run(2)
    assert not pinned(leader)
    assert leader.replica.prefixes.sender.is_idle
    assert leader.replica.prefixes.sender.oldest is None


def test_a_leader_that_leads_no_more_lets_the_files_go() -> None:
    world = world_of()
    halfway(world)
    leader = world.leader
    isolated(world, leader.node_id)
    world.run(5)
    assert not pinned(leader)
    assert leader.replica.prefixes.sender.is_idle


@pytest.mark.parametrize("keep_max", [0, 1 << 20])
def test_a_slow_follower_under_load_catches_up(keep_max: int) -> None:
    """Bugs E7: the leader writes, compacts and trims all the time."""
    storage = attrs.evolve(STORAGE, log_keep_bytes_max=keep_max, transfer_bytes_per_s=3000)
    world = world_of(storage=storage)
    recorder = Recorder(world)
    world.elect()
    world.open()
    follower = world[3]
    end = world.now + 60
    count = 0
    while not follower.events(PrefixTaken) or follower.replica.prefixes.receiver.table:
        count += 1
        world.put(f"key {count % 5}", [count, "." * 100])
        world.run(0.05)
        assert world.now < end, follower.receiving
    begun, taken = follower.events(PrefixBegun), follower.events(PrefixTaken)
    assert max(begun[-1].index, world.leader.desk.store.compaction.index) > begun[0].index
    assert len(taken) == 1
    assert (len(begun) > 1) == (not keep_max), "the log waits, or the follower gets the next"
    whole = recorder.sent_bytes()
    assert whole < 4 * world.leader.desk.store.prefix.size_bytes, "files that both have come once"
    world.settle()


def test_what_is_complete_gives_way_where_the_log_goes_on_from_it_no_more() -> None:
    world = world_of(storage=KEEPS_LITTLE)
    recorder = Recorder(world)
    hold_in(world, "restoring")
    follower = world[3]
    point = (follower.receiving or {})["index"]
    isolated(world, 3)
    grow(world, 60)
    world.pass_on = recorder
    world.settle()
    (taken,) = follower.events(PrefixTaken)
    assert taken.index > point
    assert recorder.sent_bytes() < 2 * world.leader.desk.store.prefix.size_bytes


def test_the_rate_is_honoured_and_shared() -> None:
    rate = 5_000
    world = Members(5, storage=attrs.evolve(STORAGE, transfer_bytes_per_s=rate))
    world.start(1, 2, 3)
    world.elect()
    world.open()
    for number in range(180):
        world.put(f"key {number % 60}", [number, "." * 100])
    world.run(3)
    world.start(4, 5)
    begun, sent = world.now, Counter[int]()

    def pass_on(one: Wired) -> Sequence[Wired]:
        if one.frame_type == prefix_frames.CHUNK:
            sent[one.target] += len(one.body)
            allowed = rate * (world.now - begun + 0.1) * 1.2 + CHUNK_BYTES
            assert sum(sent.values()) <= allowed, "headers included"
            assert abs(sent[4] - sent[5]) <= 3 * CHUNK_BYTES or min(sent.values()) > 9_000
        return [one]

    world.pass_on = pass_on
    world.settle(seconds=60)
    size_bytes = world.leader.desk.store.prefix.size_bytes
    assert 2 * size_bytes / rate * 0.8 < world.now - begun < 2 * size_bytes / rate * 1.5 + 2


def test_a_slow_disk_slows_the_transfer() -> None:
    """What waits for the disk counts as asked for: memory is bounded."""
    world = world_of()
    recorder = Recorder(world)
    halfway(world, 0.1)
    follower = world[3]
    follower.desk.holds_jobs = True
    world.run(3)
    waiting = len(follower.desk.jobs)
    assert 0 < waiting <= prefix_receiver.WINDOW_CHUNKS
    recorder.frames.clear()
    world.run(3)
    assert len(follower.desk.jobs) == waiting
    assert not recorder.sent_bytes()
    follower.desk.holds_jobs = False
    world.settle()


def test_a_slow_rate_does_not_send_anything_twice() -> None:
    """A chunk takes longer than it takes to ask again."""
    world = world_of(storage=attrs.evolve(STORAGE, transfer_bytes_per_s=1024))
    recorder = Recorder(world)
    world.until(lambda: recorder.sent_bytes() > 4000, seconds=60)
    sent = Counter((c.file_number, c.offset) for c in messages(recorder.frames, Chunk))
    assert max(sent.values()) == 1
