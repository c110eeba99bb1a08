"""The bugs that snapshots, installs and cleaning have had elsewhere (E), and what of the disk's (F)
concerns them. What needs a crash at every operation is in test_compaction_crashes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from random import Random

import attrs
import pytest

from folkmoot.core.batch import Group, Kind, encode_batch
from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.prefix_table import Point
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.memory import MemoryFiles
from tests.core.storage.history import Compactor, contents, equal
from tests.core.storage.support import SMALL, Write, open_log
from tests.core.storage.test_bugs import WatchedFiles
from tests.core.storage.transfers import Source, begun, install, receive


def disk_of(compactor: Compactor) -> MemoryFiles:
    files = compactor.store._files
    assert isinstance(files, MemoryFiles)
    return files


def frozen_and_compacted(compactor: Compactor) -> Callable[[], None]:
    """Freeze here; what is returned compacts to here, whatever was written meanwhile."""
    compactor.store.roll()
    frozen = compactor.history.freeze()

    def compact() -> None:
        compaction = compactor.store.compact([frozen])
        for _ in compaction.steps():
            pass
        compactor.store.install(compaction)

    return compact


def test_bug_e1_state_and_index_change_together_and_only_when_both_are_durable() -> None:
    files = WatchedFiles()
    compactor = begun(1, files)
    compactor.write(30)
    compact = frozen_and_compacted(compactor)
    files.done.clear()
    compact()
    [renamed] = [at for at, done in enumerate(files.done) if done == ("rename", "MANIFEST.new")]
    before = files.done[:renamed]
    made = [name for operation, name in before if operation == "create" and "prefix/" in name]
    assert len(made) == 2
    for name in made:
        mine = [operation for operation, other in before if other == name]
        assert mine[-1] == "sync", f"{name} was not durable: {mine}"
        assert ("sync_dir", "prefix") in before[before.index(("create", name)) :]
    assert files.done[renamed:] == [("rename", "MANIFEST.new"), ("sync_dir", "")]


def test_bug_e2_a_prefix_is_of_its_index_whatever_was_applied_since() -> None:
    """Nothing of what came later is in it, and nothing that later entries superseded is missing."""
    for seed in range(20):
        compactor = begun(seed, keys=5)
        compactor.write(20)
        expected = compactor.history.copy().expected()
        compact = frozen_and_compacted(compactor)
        expected = (compactor.history.expected()[0], expected[1])
        compactor.write(20)
        compact()
        store = compactor.store
        assert equal(contents(store.prefix.read_back()), expected)
        store.trim(store.compaction.index)
        assert next(iter(store.batches())).first_index == store.compaction.index + 1


def test_bug_e4_an_install_drops_a_conflicting_log_in_the_same_step() -> None:
    source = Source.made(3)
    compactor = begun(4)
    compactor.write(200)
    store, files = compactor.store, disk_of(compactor)
    assert store.last_index > source.index
    receive(store.incoming, source, 1 << 20)
    install(store, source, 1000)
    assert store.start == store.compaction == source.archive.table.point
    assert [one.first_index for one in store.batches()] == [source.index + 1]
    assert store.durable_index == store.last_index
    files.crash(Random(1), survive=0.0)
    again = open_log(files)
    assert [one.first_index for one in again.batches()] == [source.index + 1]


def test_bug_e4_a_later_term_than_the_durable_one_is_not_installed() -> None:
    """Also an entry of a prefix is never above the term that is durable (bugs A2)."""
    source = Source.made(3)
    store = begun(4).store
    receive(store.incoming, source, 1 << 20)
    assert equal(contents(store.incoming.read_back()), source.expected)
    table = store.incoming.table
    assert table is not None
    point = attrs.evolve(table.point, term=2)
    store.incoming.table = attrs.evolve(table, point=point)
    with pytest.raises(AssertionError, match=r"install of .*term=2.* in HardState"):
        store.write([Write(1000, install=point)])


@pytest.mark.parametrize("by", [-1, 0, 1])
def test_bug_e5_cutting_at_the_compaction_index_and_beside_it(by: int) -> None:
    compactor = begun(1)
    compactor.write(10)
    compactor.compact()
    store = compactor.store
    index = store.compaction.index
    appended = [
        encode_batch(1, at, 1 << 20, [Group(Kind.TICK, 1, b"")]) for at in (index + 1, index + 2)
    ]
    store.write([Write(100, batches=appended)])
    store.sync()
    if by < 0:
        with pytest.raises(AssertionError, match=f"cut at {index - 1}, compacted to"):
            store.write([Write(101, truncate_after=index - 1)])
        return
    store.write([Write(101, truncate_after=index + by)])
    store.sync()
    assert store.last_index == index + by
    assert list(store.batches(index + 1)) == appended[:by]
    store.trim(index)
    assert list(store.batches()) == appended[:by]
    assert (
        store.boundary_from(index) is None
        if by == 0
        else store.boundary_from(index + 1) == index + 1
    )


@pytest.mark.parametrize("by", [-1, 0, 1])
def test_bug_e5_trimming_at_the_compaction_index_and_beside_it(by: int) -> None:
    compactor = begun(1)
    for _ in range(3):
        compactor.write(10)
        compactor.store.roll()
    compactor.compact()
    compactor.write(5)
    store = compactor.store
    index, batches = store.compaction.index, list(store.batches())
    if by > 0:
        with pytest.raises(AssertionError, match=f"trim to {index + 1}, compacted to"):
            store.trim(index + 1)
        return
    store.trim(index + by)
    start = store.start.index
    assert start == index if by == 0 else start < index
    assert list(store.batches()) == [one for one in batches if one.last_index > start]
    assert store.start == Point(
        start, 1, next(one.log_time for one in batches if one.last_index == start)
    )


@pytest.mark.parametrize("keep", [0, 1, 500, 3000, 1 << 30])
@pytest.mark.parametrize("needed", [None, 0, 20, 60, 1 << 30])
def test_bug_e7_as_much_log_stays_as_is_asked_for_and_no_more(
    keep: int, needed: int | None
) -> None:
    """Against the plain definition: the last boundary that leaves enough."""
    compactor = begun(1)
    for _ in range(6):
        compactor.write(3, value_bytes=100)
        compactor.store.roll()
    compactor.compact()
    compactor.write(3)
    store = compactor.store
    for keep_max in (0, 700, 2500, 1 << 30):
        wanted = None
        ends = [one.last_index for one in store._log.segments[:-1]]
        for at, boundary in enumerate(ends):
            kept = sum(one.end for one in store._log.segments[at + 1 :])
            is_enough = kept >= keep and (needed is None or boundary <= needed)
            if boundary <= store.compaction.index and (is_enough or kept >= keep_max):
                wanted = boundary
        assert store.trim_target(keep, keep_max, needed) == wanted


@pytest.mark.parametrize("by", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_bug_e6_files_of_whole_chunks_and_a_byte_more_or_less(chunks: int, by: int) -> None:
    """And pieces that are lost, come twice, too early, or are longer than the file."""
    source = Source.made(5)
    store = begun(4).store
    incoming = store.incoming
    incoming.begin(source.archive.encoded)
    for number, one in enumerate(source.archive.table.files):
        size_bytes = one.entry.end
        chunk_bytes = (size_bytes - by) // chunks
        offset = 0
        while offset < size_bytes:
            data = source.archive.read(number, offset, chunk_bytes)
            assert not incoming.write(number, offset, b""), "nothing"
            assert not incoming.write(number, offset + 1, data), "too early"
            assert not incoming.write(number, offset, data + bytes(size_bytes)), "too long"
            assert incoming.write(number, offset, data)
            assert not incoming.write(number, offset, data), "twice"
            offset += len(data)
            assert incoming.have[number] == offset
    assert incoming.gap() is None
    install(store, source, 1000)
    assert equal(contents(store.prefix.read_back()), source.expected)


def test_bug_e6_a_newer_archive_keeps_the_files_that_both_have() -> None:
    source = Source.made(11)
    newer = source.compact()
    shared = {one.identity for one in source.archive.table.files} & {
        one.identity for one in newer.archive.table.files
    }
    store = begun(4).store
    receive(store.incoming, source, 1 << 20)
    asked = receive(store.incoming, newer, 1 << 20)
    for number, one in enumerate(newer.archive.table.files):
        assert (number in asked.bytes) == (one.identity not in shared)
    install(store, newer, 1000)
    assert equal(contents(store.prefix.read_back()), newer.expected)


def test_bug_e8_a_log_behind_a_prefix_begins_with_the_next_index() -> None:
    source = Source.made(3)
    store = begun(4).store
    receive(store.incoming, source, 1 << 20)
    assert equal(contents(store.incoming.read_back()), source.expected)
    store.write([Write(1000, install=source.archive.table.point)])
    hole = encode_batch(1, source.index + 2, 1 << 20, [Group(Kind.TICK, 1, b"")])
    with pytest.raises(AssertionError, match=f"batch from {hole.first_index} behind index"):
        store.write([Write(1001, batches=[hole])])


def test_bug_e13_a_compaction_given_up_anywhere_leaves_nothing_and_the_next_one_is_right() -> None:
    """Twice in a row; what was frozen for them goes into the next."""
    stop = 0
    while True:
        stop += 1
        compactor = begun(1, keys=40)
        compactor.write(30)
        compactor.compact()
        store, files = compactor.store, disk_of(compactor)
        files_before, frozen, is_short = files.list("prefix"), [], False
        for _ in range(2):
            compactor.write(10)
            store.roll()
            frozen.append(compactor.history.freeze())
            compaction = store.compact(frozen)
            steps = compaction.steps()
            for _ in range(stop):
                is_short = is_short or next(steps, None) is None
            compaction.give_up()
            store.sweep()
            assert files.list("prefix") == files_before
        compactor.write(10)
        store.roll()
        compaction = store.compact([*frozen, compactor.history.freeze()])
        for _ in compaction.steps():
            pass
        store.install(compaction)
        store.sweep()
        assert equal(contents(store.prefix.read_back()), compactor.history.expected())
        assert len(files.list("prefix")) == len(store.prefix.entries)
        if is_short:
            assert stop > 5, "it was never given up within"
            return


def test_bug_e13_a_compaction_behind_another_prefix_is_not_installed() -> None:
    """Another came first, which it knows nothing of."""
    compactor = begun(1)
    compactor.write(20)
    store = compactor.store
    store.roll()
    first = store.compact([compactor.history.copy().freeze()])
    for _ in first.steps():
        pass
    compactor.compact()
    with pytest.raises(AssertionError, match="a compaction behind 0, not"):
        store.install(first)


def test_bug_e14_files_that_are_read_stay_until_the_last_reader_is_done() -> None:
    compactor = begun(1, keys=60)
    compactor.write(40, value_bytes=100)
    compactor.compact()
    store, files = compactor.store, disk_of(compactor)
    readers = [store.archive(), store.archive()]
    archive = readers[0]
    assert archive is not None
    numbers = range(len(archive.table.files))
    before = [archive.read(number, 0, 1 << 20) for number in numbers]
    for _ in range(3):
        compactor.write(40, value_bytes=100)
        compactor.compact()
        store.sweep()
        assert [archive.read(number, 0, 1 << 20) for number in numbers] == before
    listed = len(store.prefix.entries)
    for reader in readers:
        assert reader is not None
        assert len(files.list("prefix")) > listed
        reader.close()
        store.sweep()
    assert len(files.list("prefix")) == listed
    with pytest.raises(StorageError, match="no such file"):
        archive.read(0, 0, 1)


def test_bug_e14_a_reader_in_another_thread_never_meets_a_hole() -> None:
    """One thread writes, compacts, trims and removes; another reads what is behind the start."""
    compactor = begun(1, keys=5)
    store = compactor.store
    stop, wrong = threading.Event(), list[object]()

    def read() -> None:
        try:
            while not stop.is_set():
                first_index = store.start.index + 1
                found = store.read(first_index, 1 << 20)
                for before, after in itertools.pairwise(found):
                    if after.first_index != before.last_index + 1:
                        wrong.append((before, after))
        except StorageError as error:
            wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(60):
        compactor.write(10)
        compactor.compact()
        store.trim(store.compaction.index)
        store.sweep()
    stop.set()
    thread.join()
    assert wrong == []


def test_bug_f5_trimmed_segments_go_oldest_first_after_manifest_dropped_them() -> None:
    files = WatchedFiles()
    compactor = begun(1, files)
    for _ in range(4):
        compactor.write(5)
        compactor.store.roll()
    compactor.compact()
    store = compactor.store
    names = [one.name for one in store._log.segments[:-1]]
    files.done.clear()
    store.trim(store.compaction.index)
    assert "unlink" not in [operation for operation, _ in files.done]
    assert files.done[-2:] == [("rename", "MANIFEST.new"), ("sync_dir", "")]
    files.done.clear()
    store.sweep()
    assert files.done == [("unlink", name) for name in names]


def test_bug_f7_what_is_kept_of_items_files_is_rebuilt_and_equal() -> None:
    config = attrs.evolve(SMALL, compaction_dead_share=0.95)
    compactor = begun(1, config=config, keys=60, kinds=("set", "set", "many", "remove"))
    for _ in range(4):
        compactor.write(20, value_bytes=100)
        compactor.compact()
    before = [attrs.astuple(one) for one in compactor.store.prefix.items_files]
    assert any(0 in one.alive for one in compactor.store.prefix.items_files), "nothing is dead"
    disk_of(compactor).kill()
    source = open_log(disk_of(compactor)).prefix.read_back()
    contents(source)
    assert [attrs.astuple(one) for one in source.items_files] == before


@pytest.mark.parametrize("trimmed", [False, True])
def test_bug_f11_an_old_manifest_removes_nothing_of_what_it_does_not_know(trimmed: bool) -> None:
    """Put back by hand, it does not list the prefix. With the log it is the same state still."""
    compactor = begun(1, keys=60)
    compactor.write(20)
    compactor.store.roll()
    files = disk_of(compactor)
    old = files.contents()["MANIFEST"]
    compact = frozen_and_compacted(compactor)
    compact()
    if trimmed:
        compactor.store.trim(compactor.store.compaction.index)
        compactor.store.sweep()
    disk = files.contents() | {"MANIFEST": old}
    files = MemoryFiles(disk)
    if trimmed:
        with pytest.raises(StorageCorrupt, match="the file is missing, and MANIFEST lists it"):
            open_log(files)
        assert files.contents() == disk
    else:
        found = list(open_log(files).batches())
        assert found == list(compactor.store.batches())


def test_bug_f11_an_old_manifest_with_an_old_prefix_removes_nothing_either() -> None:
    compactor = begun(1, keys=60)
    compactor.write(20)
    compactor.compact()
    files = disk_of(compactor)
    old = files.contents()["MANIFEST"]
    compactor.write(20)
    compactor.compact()
    compactor.store.sweep()
    disk = files.contents() | {"MANIFEST": old}
    files = MemoryFiles(disk)
    with pytest.raises(StorageCorrupt, match=r"prefix/.* is missing, and MANIFEST lists it"):
        open_log(files)
    assert files.contents() == disk


def test_a_log_store_knows_no_prefix_before_it_was_read_back() -> None:
    """A compaction needs to know what lives: that comes with reading, which verifies it."""
    compactor = begun(1)
    compactor.write(20)
    compactor.compact()
    disk_of(compactor).kill()
    store: LogStore = open_log(disk_of(compactor))
    source = store.prefix.read_back()
    list(source.records())
    with pytest.raises(AssertionError, match="were not read to the end"):
        store.prefix.loaded(source)
    compactor.store = store
    compactor.number = 0
    compactor.write(5)
    store.roll()
    with pytest.raises(AssertionError, match="compacted before the prefix was read back"):
        store.compact([compactor.history.freeze()])
