"""The contract of a log store, over a real directory and over a disk in memory alike."""

from __future__ import annotations

import attrs
import pytest

from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageError
from folkmoot.core.storage.log_store import HardState, Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.types import NodeId
from tests.core.storage.support import OWNER, SMALL, Disk, Log, Write, batch, batches, open_log


def test_a_new_log_is_empty_and_durable_in_full(disk: Disk) -> None:
    store = open_log(disk())
    assert store.recovered.created
    assert (store.start.index, store.last_index, store.durable_index) == (0, 0, 0)
    assert store.hard_state == HardState(0, None)
    assert list(store.batches()) == []
    assert store.read(1, 1000) == []
    store.close()


def test_what_was_synced_is_there_after_reopening(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 5), term=1, vote=3)
    log.commit([batch(6, 2, count=4)], term=2)
    log.store.close()
    log = Log(disk())
    assert not log.store.recovered.created
    assert log.all() == [*batches(1, 5), batch(6, 2, count=4)]
    assert log.store.hard_state == HardState(2, None)
    assert (log.store.last_index, log.store.last_term, log.store.durable_index) == (9, 2, 9)
    assert log.store.identity == OWNER
    assert log.store.recovered.batches == 6
    log.store.close()


def test_the_bytes_read_back_are_the_very_bytes_written(disk: Disk) -> None:
    log = Log(disk())
    written = batches(1, 40, size_bytes=300)
    log.commit(written, term=1)
    assert [one.data for one in log.all()] == [one.data for one in written]
    log.store.close()


def test_nothing_is_durable_before_sync(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 2), term=1)
    log.write(batches(3, 4))
    assert (log.store.last_index, log.store.durable_index) == (4, 2)
    assert log.store.sync() == 2
    assert log.store.durable_index == 4
    log.store.close()


def test_one_sync_covers_a_group_of_writes(disk: Disk) -> None:
    log = Log(disk())
    log.commit(term=1)
    before = log.store.counters.log_syncs
    log.store.write([Write(index + 1, None, None, [batch(index)]) for index in range(1, 9)])
    assert log.store.sync() == 9
    assert log.store.counters.log_syncs == before + 1
    assert log.store.sync() == 9
    assert log.store.counters.log_syncs == before + 1, "nothing new: no sync"
    log.store.close()


def test_a_log_rolls_over_segments(disk: Disk) -> None:
    log = Log(disk())
    log.commit(term=1)
    for index in range(1, 101):
        log.commit([batch(index, size_bytes=200)])
    assert log.store.status()["segments"] > 5
    log.store.close()
    log = Log(disk())
    assert log.all() == batches(1, 100, size_bytes=200)
    assert log.store.recovered.segments > 5
    log.store.close()


@pytest.mark.parametrize("size_bytes", [3400, 3500, 4096, 20_000])
def test_a_batch_larger_than_a_segment_gets_a_larger_one(disk: Disk, size_bytes: int) -> None:
    log = Log(disk())
    wanted = [batch(1), batch(2, size_bytes=size_bytes), batch(3), batch(4)]
    wanted += [batch(5, size_bytes=size_bytes), batch(6, size_bytes=size_bytes)]
    for one in wanted:
        log.commit([one], term=1)
    log.store.close()
    log = Log(disk())
    assert log.all() == wanted
    log.store.close()


def test_a_first_batch_larger_than_a_segment_enlarges_it(disk: Disk) -> None:
    log = Log(disk())
    log.commit([batch(1, size_bytes=9000)], term=1)
    assert log.store.status()["segments"] == 1
    log.store.close()
    log = Log(disk())
    assert log.all() == [batch(1, size_bytes=9000)]
    log.store.close()


@pytest.mark.parametrize("cut", [0, 1, 9, 17, 18, 19, 35, 59, 60])
def test_truncation_cuts_and_appending_goes_on(disk: Disk, cut: int) -> None:
    log = Log(disk())
    log.commit(batches(1, 60, size_bytes=150), term=1)
    log.commit(batches(cut + 1, cut + 5, 2), term=2, truncate_after=cut)
    wanted = batches(1, cut, size_bytes=150) + batches(cut + 1, cut + 5, 2)
    assert log.all() == wanted
    assert log.store.durable_index == cut + 5
    log.store.close()
    log = Log(disk())
    assert log.all() == wanted
    assert log.store.recovered.torn_tail is None
    assert log.store.recovered.repaired == ()
    log.store.close()


def test_truncation_lowers_what_is_durable_at_once(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 10), term=1)
    log.write(batches(8, 9, 2), term=2, truncate_after=7)
    assert log.store.durable_index == 7
    log.store.sync()
    assert log.store.durable_index == 9
    log.store.close()


def test_truncation_at_or_beyond_the_end_does_nothing(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 3), term=1)
    log.commit(truncate_after=3)
    log.commit(truncate_after=8)
    assert log.store.counters.truncations == 0
    assert log.all() == batches(1, 3)
    log.store.close()


def test_the_last_term_is_known_where_the_active_segment_is_empty(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 30, size_bytes=200), term=1)
    log.commit(batches(31, 40, 2, size_bytes=200), term=2)
    log.commit(truncate_after=33)
    assert (log.store.last_index, log.store.last_term) == (33, 2)
    log.commit(truncate_after=30)
    assert (log.store.last_index, log.store.last_term) == (30, 1)
    log.store.close()
    log = Log(disk())
    assert (log.store.last_index, log.store.last_term) == (30, 1)
    log.commit(truncate_after=0)
    assert (log.store.last_index, log.store.last_term) == (0, 0)
    log.store.close()


def test_truncation_inside_a_batch_is_refused(disk: Disk) -> None:
    log = Log(disk())
    log.commit([batch(1, count=5), batch(6)], term=1)
    with pytest.raises(AssertionError, match="cut after 3 inside a batch to 5"):
        log.write(truncate_after=3)
    log.store.close()


def test_a_hole_is_refused(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 3), term=1)
    with pytest.raises(AssertionError, match="batch from 5 behind index 3"):
        log.write([batch(5)])
    log.store.close()


def test_a_term_above_the_durable_one_is_refused(disk: Disk) -> None:
    log = Log(disk())
    with pytest.raises(AssertionError, match="batch of term 1 behind term 0, the hard state is"):
        log.write([batch(1, 1)])
    log.store.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [(HardState(3, 1), HardState(2, None)), (HardState(3, 1), HardState(3, 2))],
)
def test_a_falling_term_or_a_second_vote_is_refused(
    disk: Disk, old: HardState, new: HardState
) -> None:
    log = Log(disk())
    log.commit(term=old.term, vote=old.voted_for)
    with pytest.raises(AssertionError, match="cannot become"):
        log.write(term=new.term, vote=new.voted_for)
    log.store.close()
    store = open_log(disk())
    assert store.hard_state == old
    store.close()


def test_an_unchanged_hard_state_costs_nothing(disk: Disk) -> None:
    log = Log(disk())
    log.commit(term=2, vote=1)
    log.commit(term=2, vote=1)
    assert log.store.counters.hard_state_changes == 1
    log.store.close()


def test_read_returns_at_least_one_and_about_the_bytes(disk: Disk) -> None:
    log = Log(disk())
    wanted = batches(1, 60, size_bytes=150)
    log.commit(wanted, term=1)
    record = len(wanted[0].data) + 24
    assert log.store.read(5, 1) == wanted[4:5]
    assert log.store.read(5, record * 3) == wanted[4:7]
    assert log.store.read(5, record * 4 - 1) == wanted[4:7]
    assert log.store.read(1, 1 << 20) == wanted
    assert log.store.read(15, record * 20) == wanted[14:34], "across segments"
    assert log.store.read(60, 1 << 20) == wanted[59:]
    assert log.store.read(61, 1 << 20) == []
    assert list(log.store.batches(33)) == wanted[32:]
    log.store.close()


def test_a_read_that_ends_before_its_segment_does_not_go_on_in_the_next(disk: Disk) -> None:
    """Reproduces a hole: 1, 2 and then 4, as 4 was small enough for what 3 had left."""
    log = Log(disk())
    wanted = [batch(1), batch(2), batch(3, size_bytes=1000), *batches(4, 5)]
    log.commit(wanted[:3], term=1)
    log.store.roll()
    log.commit(wanted[3:])
    for bytes_max in range(1, 2000, 10):
        found = log.store.read(1, bytes_max)
        assert found == wanted[: len(found)], bytes_max
    log.store.close()


def test_read_from_inside_a_batch_begins_with_that_batch(disk: Disk) -> None:
    log = Log(disk())
    log.commit([batch(1, count=3), batch(4, count=3), batch(7)], term=1)
    assert log.store.read(5, 1 << 20) == [batch(4, count=3), batch(7)]
    assert log.store.read(6, 1) == [batch(4, count=3)]
    log.store.close()


def test_read_sees_what_is_written_and_not_yet_durable(disk: Disk) -> None:
    log = Log(disk())
    log.write(batches(1, 3), term=1)
    assert log.store.read(1, 1 << 20) == batches(1, 3)
    log.store.close()


def test_another_clusters_directory_is_refused_with_both_named(disk: Disk) -> None:
    open_log(disk()).close()
    stranger = Identity(b"another-cluster!", NodeId(7), b"")
    with pytest.raises(StorageError) as caught:
        open_log(disk(), identity=stranger)
    assert OWNER.cluster_id.hex() in str(caught.value)
    assert stranger.cluster_id.hex() in str(caught.value)
    open_log(disk()).close()


def test_another_nodes_directory_is_refused_with_both_named(disk: Disk) -> None:
    open_log(disk()).close()
    with pytest.raises(StorageError, match=r"node 7, this is .* node 8"):
        open_log(disk(), identity=attrs.evolve(OWNER, node_id=NodeId(8)))


def test_the_bootstrap_configuration_is_the_first_one_for_ever(disk: Disk) -> None:
    open_log(disk()).close()
    store = open_log(disk(), identity=attrs.evolve(OWNER, bootstrap=b"a later list"))
    assert store.identity == OWNER
    store.close()
    store = open_log(disk(), identity=None)
    assert store.identity == OWNER
    store.close()


def test_an_empty_directory_needs_an_identity(disk: Disk) -> None:
    with pytest.raises(StorageError, match="an identity is needed"):
        open_log(disk(), identity=None)
    open_log(disk()).close()


def test_a_closed_log_says_so(disk: Disk) -> None:
    log = Log(disk())
    log.store.close()
    log.store.close()
    with pytest.raises(StorageError, match="closed"):
        log.write(term=1)
    with pytest.raises(StorageError, match="closed"):
        log.store.read(1, 1)


def test_a_prepared_segment_is_used_and_an_unused_one_is_removed(disk: Disk) -> None:
    log = Log(disk())
    log.commit(term=1)
    while not log.store.wants_prepare:
        log.commit([batch(log.store.last_index + 1, size_bytes=100)])
    log.store.prepare()
    assert not log.store.wants_prepare
    assert "0000000002.seg" in disk().list("log")
    while log.store.status()["segments"] == 1:
        log.commit([batch(log.store.last_index + 1, size_bytes=100)])
    while not log.store.wants_prepare:
        log.commit([batch(log.store.last_index + 1, size_bytes=100)])
    log.store.prepare()
    last = log.store.last_index
    log.store.close()
    log = Log(disk())
    assert log.store.last_index == last
    [said] = log.store.recovered.repaired
    assert "0000000003.seg removed" in said
    assert disk().list("log") == ["0000000001.seg", "0000000002.seg"]
    log.store.close()


def test_a_changed_segment_size_applies_to_new_segments(disk: Disk) -> None:
    log = Log(disk(), StorageConfig(segment_bytes=8192))
    log.commit(batches(1, 30, size_bytes=150), term=1)
    log.store.close()
    log = Log(disk(), SMALL)
    log.commit(batches(31, 90, size_bytes=150))
    log.store.close()
    log = Log(disk(), StorageConfig(segment_bytes=1 << 16))
    log.commit(batches(91, 200, size_bytes=150))
    assert log.all() == batches(1, 200, size_bytes=150)
    log.store.close()


def test_without_fsync_nothing_is_synced() -> None:
    files = MemoryFiles()
    store = LogStore.open(files, StorageConfig(segment_bytes=4096, fsync=False), OWNER)
    files.fail("sync")
    files.fail("sync_dir")
    store.write([Write(1, HardState(1, 1), None, batches(1, 60, size_bytes=150))])
    assert store.sync() == 1
    store.close()


def test_status_is_plain_data(disk: Disk) -> None:
    log = Log(disk())
    log.commit(batches(1, 3), term=4, vote=2)
    status = log.store.status()
    assert status["last_index"] == status["durable_index"] == 3
    assert (status["term"], status["voted_for"], status["failure"]) == (4, 2, "")
    assert status["recovered"]["created"] is True
    log.store.close()
