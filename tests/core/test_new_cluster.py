"""A backup restored: a new cluster with the old one's state, and nothing that could mix them up."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from random import Random
from typing import Any

import attrs
import pytest

from folkmoot.core.batch import Kind
from folkmoot.core.config import LimitsConfig
from folkmoot.core.config import Member as MemberConfig
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt, StorageError
from folkmoot.core.forwarding import check_peer_hello
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.new_cluster import BUMP, beginning
from folkmoot.core.prefix_events import PrefixTaken
from folkmoot.core.raft import Configuration
from folkmoot.core.requests import PROTOCOL_VERSION
from folkmoot.core.storage.backup import Backup, BackupWriter
from folkmoot.core.storage.log_store import Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from folkmoot.core.storage.restored_directory import FirstContent, write_directory
from folkmoot.core.types import NodeId
from folkmoot.transport.codec import pack
from tests.core.members import CLUSTER_ID, REGISTRY, STORAGE, Members, finish

LIMITS = LimitsConfig()


def backup_of(store: LogStore) -> Backup:
    """Save what a member has compacted."""
    archive = store.archive()
    assert archive is not None
    files = MemoryFiles()
    writer = BackupWriter(files, "partial", archive.encoded)
    for number, one in enumerate(archive.table.files):
        writer.append(number, archive.read(number, 0, one.entry.end))
    writer.finish("backup", "now", "a test", 0, [])
    archive.close()
    return Backup.open(files, "backup")


def compacted(world: Members) -> Backup:
    """Have the leader compact all that there is, and save it."""
    leader = world.leader
    index = leader.replica.multiplexer.index
    world.until(lambda: leader.replica.compacting.want(index))
    return backup_of(leader.desk.store)


def state_of(backup: Backup) -> Multiplexer:
    found: Multiplexer = finish(Multiplexer.restoring(REGISTRY, LIMITS, backup.source()))
    return found


def content_for(
    backup: Backup, node_id: int, members: Sequence[MemberConfig], bump: int = BUMP
) -> FirstContent:
    begun = beginning(backup.table, backup.id, state_of(backup), members, bump)
    return FirstContent(
        identity=Identity(CLUSTER_ID, NodeId(node_id), begun.members),
        restore_id=begun.restore_id,
        epoch=begun.epoch,
        point=begun.point,
        records=begun.records,
        batch=begun.batch,
        segment_bytes=STORAGE.segment_bytes,
    )


def restored(backup: Backup, count: int = 3, bump: int = BUMP) -> Members:
    """Make a new cluster of so many members."""
    world = Members(count)
    for node_id, member in world.members.items():
        finish(
            write_directory(member.files, backup, content_for(backup, node_id, world.configs, bump))
        )
        member.files.crash(Random(node_id), 0.0)  # only what is durable counts
    return world


def old_cluster() -> Members:
    """Three members with things, touched things, watchers and a hold that sessions own."""
    world = Members(3)
    world.start()
    world.elect()
    world.open()
    for at in range(40):
        world.put(f"k{at % 9}", at)
    world.do([["shelf", "shelf", 1, {}], "watch", []])
    world.do([["tally", "tally", 1, {}], "put_many", [[["a", 1], ["b", 2], ["c", 3]]]])
    world.do([["tally", "tally", 1, {}], "take", ["b"]])
    world.do([["s", "scratch", 1, {}], "hold", []])
    return world


def things(world: Members) -> dict[str, Any]:
    """What clients would read, on every member alike."""
    found = []
    for member in world.up:
        resources = member.replica.multiplexer.directory.resources
        by_name = {one.name: one.machine for one in resources.values()}
        found.append(
            {
                name: {key: thing.value for key, thing in by_name[name].things.items()}  # type: ignore[attr-defined]
                for name in ("shelf", "tally")
            }
        )
    assert all(one == found[0] for one in found)
    return found[0]


def test_a_new_cluster_has_everything_and_goes_on() -> None:
    old = old_cluster()
    before = things(old)
    old_index = old.leader.replica.multiplexer.index
    backup = compacted(old)
    new = restored(backup)
    new.start()
    new.elect()
    new.settle()
    assert things(new) == before
    state = new.leader.replica.multiplexer
    assert state.epoch == 1
    assert len(state.sessions) == 0
    assert state.index > old_index + BUMP
    new.open()
    new.put("k0", "new")
    assert new.session > old_index + BUMP, "session ids, tokens and versions are indexes"
    shelf = next(r for r in new.leader.replica.multiplexer.directory.resources.values())
    assert shelf.machine.things["k0"].index > old_index + BUMP  # type: ignore[attr-defined]
    assert shelf.machine.watchers == {}  # type: ignore[attr-defined]
    new.settle()


def test_its_state_is_the_old_one_with_all_sessions_ended() -> None:
    """The same digest as the old state, moved up, to which the first entry is applied."""
    old = old_cluster()
    backup = compacted(old)
    content = content_for(backup, 1, old.configs)
    expected = state_of(backup)
    assert len(expected.sessions) == 1
    expected.index = content.point.index
    assert [group.kind for group in content.batch.groups] == [Kind.RESTORED]
    expected.apply(content.batch)
    new = restored(backup, 1)
    new.start()
    state = new[1].replica.multiplexer
    assert state.index == content.point.index
    assert len(state.sessions) == 1, "they end when the first entry is applied"
    new.until(lambda: state.index > content.point.index)
    assert new[1].desk.store.read(content.batch.first_index, 1)[0].data == content.batch.data
    for _, batch in zip(
        range(9), new[1].desk.store.batches(content.batch.last_index + 1), strict=False
    ):
        expected.apply(batch)
        if expected.index == state.index:
            break
    assert state.digest() == expected.digest()


def test_it_compacts_restarts_and_is_saved_and_restored_again() -> None:
    old = old_cluster()
    new = restored(compacted(old))
    new.start()
    new.elect()
    new.open()
    for at in range(200):
        new.put(f"k{at % 20}", "." * 50)
    assert all(one.replica.compacting.index > BUMP + 100 for one in new.up)
    again = Members(3, disks=new.disks())
    again.start()
    again.elect()
    again.settle()
    before = things(again)
    third = restored(compacted(again))
    third.start()
    third.elect()
    third.settle()
    assert things(third) == before
    state = third.leader.replica.multiplexer
    assert (state.epoch, third.leader.desk.store.epoch) == (2, 2)
    assert state.index > 2 * BUMP


def test_a_member_that_comes_late_is_sent_the_prefix() -> None:
    """Files keep the numbers of those who made them: they must not be taken for others'."""
    old = old_cluster()
    new = restored(compacted(old), 3)
    new.start(1, 2)
    new.elect()
    new.open()
    for at in range(900):
        new.put(f"k{at % 30}", "." * 60)
    new.start(3)
    new.settle(60)
    assert new[3].events(PrefixTaken)


def cluster_ids(backup: Backup, bump: int = BUMP) -> set[bytes]:
    found = set()
    for node_id in (1, 2, 3):
        world = Members(3)
        content = content_for(backup, node_id, world.configs, bump)
        files = MemoryFiles()
        finish(write_directory(files, backup, content))
        found.add(LogStore.open(files, STORAGE, None).identity.cluster_id)
    return found


def test_the_cluster_id_is_the_same_on_all_members_and_another_for_each_restore() -> None:
    old = old_cluster()
    first = compacted(old)
    old.put("more", 1)
    second = compacted(old)
    ids = [cluster_ids(first), cluster_ids(second), cluster_ids(first, 2 * BUMP)]
    assert [len(one) for one in ids] == [1, 1, 1]
    assert len({CLUSTER_ID, *(one for found in ids for one in found)}) == 4
    assert cluster_ids(first) == ids[0], "restoring twice makes the same cluster"


def test_bug_k7_an_old_member_is_refused_by_the_new_cluster() -> None:
    (new_id,) = cluster_ids(compacted(old_cluster()))
    hello = pack([PROTOCOL_VERSION, "peer", CLUSTER_ID, 2, "1"])
    with pytest.raises(RemoteProtocolError, match="belongs to cluster"):
        check_peer_hello(
            hello, cluster_id=new_id, node_id=NodeId(1), members=[NodeId(1), NodeId(2)]
        )


def test_a_restored_directory_belongs_to_its_member_and_configuration() -> None:
    old = old_cluster()
    backup = compacted(old)
    files = MemoryFiles()
    finish(write_directory(files, backup, content_for(backup, 2, old.configs)))
    bootstrap = pack(Configuration.bootstrap(old.configs).encode())
    mine = Identity(CLUSTER_ID, NodeId(2), bootstrap)
    for other in (
        attrs.evolve(mine, node_id=NodeId(1)),
        attrs.evolve(mine, cluster_id=b"another cluster!"),
    ):
        with pytest.raises(StorageError, match="belongs to cluster"):
            LogStore.open(files, STORAGE, other)
    store = LogStore.open(files, STORAGE, mine)
    assert store.identity.bootstrap == bootstrap
    assert (store.epoch, store.hard_state.term) == (1, backup.table.point.term + 1)
    assert store.last_term == store.hard_state.term
    numbers = [one.entry.file_id for one in backup.table.files]
    assert min(one.file_id for one in store.prefix.entries) > max(numbers), "none comes twice"


def test_a_power_cut_leaves_no_directory_or_a_whole_one() -> None:
    old = old_cluster()
    backup = compacted(old)
    content = content_for(backup, 1, old.configs)
    counted = MemoryFiles()
    finish(write_directory(counted, backup, content))
    rng, seen = Random(3), set()
    for number in range(1, counted.operations + 2):
        for survive in (0.0, 0.6, 1.0):
            files = MemoryFiles()
            files.cut_power_at = number
            with contextlib.suppress(PowerCut):
                finish(write_directory(files, backup, content))
            files.crash(rng, survive)
            is_there = "MANIFEST" in files.list()
            seen.add(is_there)
            if is_there:
                store = LogStore.open(files, STORAGE, None)
                assert store.last_index == content.batch.last_index
                finish(Multiplexer.restoring(REGISTRY, LIMITS, store.prefix.read_back()))
    assert seen == {True, False}


def test_a_backup_whose_state_is_of_another_index_is_refused() -> None:
    old = old_cluster()
    backup = compacted(old)
    state = state_of(backup)
    state.index += 1
    with pytest.raises(StorageCorrupt, match="holds a state of"):
        beginning(backup.table, backup.id, state, old.configs, BUMP)


def test_a_smaller_cluster_may_be_made_of_a_larger_one() -> None:
    old = old_cluster()
    before = things(old)
    new = restored(compacted(old), 1)
    new.start()
    new.elect()
    new.settle()
    assert things(new) == before
    assert sorted(new[1].replica.raft.configuration.members) == [1]
