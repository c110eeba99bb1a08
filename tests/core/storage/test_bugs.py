"""The disk bugs that systems like this one have had (F), and the order of writes (A2, B7)."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageCorrupt, StorageError, StorageFull
from folkmoot.core.storage import hard_state
from folkmoot.core.storage.files import DirectoryFiles
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from folkmoot.core.storage.segment import HEADER_BYTES, RECORD_BYTES
from tests.core.storage.support import SMALL, Log, Write, batch, batches, open_log

SEGMENT = "log/0000000001.seg"


class WatchedFiles(MemoryFiles):
    """Writes down what is done, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, str]] = []

    def _step(self, operation: str, name: str) -> None:
        super()._step(operation, name)
        self.done.append((operation, name))


def test_bug_a2_a_term_is_durable_before_its_entries_are_written() -> None:
    files = WatchedFiles()
    log = Log(files)
    files.done.clear()
    log.commit(batches(1, 2, 5), term=5, vote=1)
    slots = [("write", hard_state.NAME), ("sync", hard_state.NAME)] * 2
    assert files.done == [*slots, ("write", SEGMENT), ("sync", SEGMENT)]


def test_bug_a2_an_entry_above_the_durable_term_is_refused_at_the_start() -> None:
    """The hard state came back from a backup, both copies of it: the log knows better."""
    files = MemoryFiles()
    log = Log(files)
    old = files.contents()[hard_state.NAME]
    log.commit(batches(1, 2, 5), term=5)
    log.store.close()
    with pytest.raises(StorageCorrupt, match="term 0, and the log has an entry of term 5"):
        Log(MemoryFiles(files.contents() | {hard_state.NAME: old}))


def test_bug_b7_truncation_lowers_the_durable_mark_that_is_written() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 9), term=1)
    log.write(batches(6, 7, 2), term=2, truncate_after=5)
    assert log.store.durable_index == 5
    files.crash(random.Random(1), survive=1.0)
    assert Log(files).all() == batches(1, 5) + batches(6, 7, 2)


def test_bug_f1_the_same_damage_is_cut_above_every_mark_and_refused_below_one() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 3), term=1)
    third = log.store._log.active.offsets[2]
    unvouched = files.contents()
    log.commit(batches(4, 4))
    vouched = files.contents()

    def damaged(contents: dict[str, bytes]) -> MemoryFiles:
        damaged = MemoryFiles(contents)
        damaged.flip_bit(SEGMENT, third + RECORD_BYTES + 5)
        return damaged

    log = Log(damaged(unvouched))
    assert log.all() == batches(1, 2)
    torn = log.store.recovered.torn_tail
    assert torn is not None
    assert (torn.offset, torn.file) == (third, f"memory:{SEGMENT}")
    with pytest.raises(StorageCorrupt, match=f"at offset {third}: .* index 3 was durable"):
        Log(damaged(vouched))


def test_bug_f1_a_mark_vouches_for_the_last_record_when_nothing_follows() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 3), term=1)
    log.store.mark()
    third = log.store._log.active.offsets[2]
    files.flip_bit(SEGMENT, third + 3)
    files.crash(random.Random(1), survive=1.0)
    with pytest.raises(StorageCorrupt, match="index 3 was durable"):
        Log(files)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_bug_f2_a_failure_is_never_retried(operation: str) -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 3), term=1)
    files.fail(operation, error=StorageError("the disk is on fire"))
    with pytest.raises(StorageError, match="on fire"):
        log.commit(batches(4, 5))
    before = files.operations
    for call in (
        lambda: log.write(batches(4, 5)),
        log.store.sync,
        log.store.prepare,
        log.store.mark,
        lambda: log.store.read(1, 100),
        lambda: list(log.store.batches()),
    ):
        with pytest.raises(StorageError, match="on fire"):
            call()
    assert log.store.status()["failure"] == "the disk is on fire"
    log.store.close()
    assert files.operations == before, "something was tried again"
    files.crash(random.Random(1), survive=0.0)
    assert Log(files).all() == batches(1, 3)


def test_bug_f2_the_disk_of_these_tests_lies_after_a_failed_sync() -> None:
    """Else the test above could not fail: a second sync succeeds, and the bytes are gone."""
    files = MemoryFiles()
    files.create("a")
    files.sync_dir()
    files.write("a", 0, b"x")
    files.fail("sync")
    with pytest.raises(StorageError):
        files.sync("a")
    files.sync("a")
    files.crash(random.Random(1), survive=0.0)
    assert files.read("a") == b""


def test_bug_f3_the_names_of_new_segments_are_durable() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 100, size_bytes=200), term=1)
    files.crash(random.Random(1), survive=0.0)
    assert Log(files).all() == batches(1, 100, size_bytes=200)


def test_bug_f4_zeros_are_no_records() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 2), term=1)
    end = log.store._log.active.end
    assert files.contents()[SEGMENT][end:] == bytes(SMALL.segment_bytes - end)
    files.crash(random.Random(1), survive=1.0)
    log = Log(files)
    assert log.all() == batches(1, 2)
    assert log.store.recovered.torn_tail is None


def test_bug_f4_stale_records_of_another_segment_are_not_read() -> None:
    """A file system that hands out old blocks: the records there once were good ones."""
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 30, size_bytes=250), term=1)
    contents = files.contents()
    first, active = contents[SEGMENT], log.store._log.active
    assert active.segment_id > 1
    stale = contents[active.name][: active.end] + first[HEADER_BYTES:]
    log = Log(MemoryFiles(contents | {active.name: stale}))
    assert log.all() == batches(1, 30, size_bytes=250)
    assert log.store.recovered.torn_tail is not None


def test_bug_f4_a_record_behind_a_cut_one_never_comes_back() -> None:
    """The same batch at the same place again: what was cut behind it would fit in the chain."""
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 2), term=1)
    log.write(batches(3, 5))
    third = log.store._log.active.offsets[2]
    torn = bytearray(files.contents()[SEGMENT])
    torn[third] ^= 1
    files = MemoryFiles(files.contents() | {SEGMENT: bytes(torn)})
    log = Log(files)
    assert log.all() == batches(1, 2)
    log.commit(batches(3, 3))
    files.crash(random.Random(1), survive=1.0)
    assert Log(files).all() == batches(1, 3)


def test_bug_f4_a_good_record_of_another_history_of_the_segment_is_not_read() -> None:
    """Its frame, its index and its batch verify; the chain says that it followed another record."""
    disks = []
    for size_bytes in (20, 21):
        files = MemoryFiles()
        log = Log(files)
        log.commit([batch(1), batch(2, size_bytes=size_bytes), batch(3, size_bytes=41)], term=1)
        disks.append((files.contents(), log.store._log.active.offsets[2]))
    (mine, third), (other, foreign) = disks
    data = mine[SEGMENT][:third] + other[SEGMENT][foreign:]
    log = Log(MemoryFiles(mine | {SEGMENT: data}))
    assert log.all() == batches(1, 2)
    assert log.store.recovered.torn_tail is not None
    assert "chained to" in log.store.recovered.torn_tail.why


def test_bug_f5_segments_are_removed_newest_first_after_the_manifest_dropped_them() -> None:
    files = WatchedFiles()
    log = Log(files)
    log.commit(batches(1, 60, size_bytes=200), term=1)
    last = log.store._log.active.segment_id
    files.done.clear()
    log.write(truncate_after=2)
    gone = [name for operation, name in files.done if operation == "unlink"]
    assert gone == [f"log/{number:010d}.seg" for number in range(last, 1, -1)]
    renamed = files.done.index(("rename", "MANIFEST.new"))
    assert files.done[renamed + 1] == ("sync_dir", "")
    assert files.done.index(("unlink", gone[0])) > renamed + 1


def test_bug_f6_short_writes_are_continued(tmp_path: Path) -> None:
    class ShortFiles(DirectoryFiles):
        @staticmethod
        def _pwrite(handle: int, data: bytes | memoryview, offset: int) -> int:  # type: ignore[override]
            return os.pwrite(handle, data[: max(1, len(data) // 2)], offset)

    root = tmp_path / "data"
    log = Log(ShortFiles(root))
    log.commit(batches(1, 30, size_bytes=250), term=1)
    log.store.close()
    assert Log(DirectoryFiles(root)).all() == batches(1, 30, size_bytes=250)


def test_bug_f6_a_write_that_makes_no_progress_is_an_error(
    tmp_path: Path,
) -> None:
    class StuckFiles(DirectoryFiles):
        @staticmethod
        def _pwrite(handle: int, data: bytes | memoryview, offset: int) -> int:  # type: ignore[override]
            return 0

    with pytest.raises(StorageError, match=r"cannot write \d+ bytes at offset 0 .* takes no more"):
        Log(StuckFiles(tmp_path))


def test_bug_f6_a_full_disk_stops_before_anything_is_acknowledged() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 3), term=1)
    files.capacity_bytes = sum(map(len, files.contents().values())) + 1000
    with pytest.raises(StorageFull, match="disk in memory is full"):
        log.commit(batches(4, 60, size_bytes=200))
    assert log.store.durable_index < 60
    durable_index = log.store.durable_index
    with pytest.raises(StorageFull):
        log.store.sync()
    log.store.close()
    files.crash(random.Random(3), survive=0.3)
    files.capacity_bytes = None
    found = Log(files).all()
    assert found[:3] == batches(1, 3)
    assert found == (batches(1, 3) + batches(4, 60, size_bytes=200))[: len(found)]
    assert len(found) >= durable_index


def test_what_recovery_found_in_memory_only_is_durable_before_it_counts() -> None:
    """A killed process leaves unsynced writes to be seen; then the power goes."""
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 2), term=1)
    log.write(batches(3, 4))
    files.cut_power_at = files.operations + 2
    with pytest.raises(PowerCut):
        log.write(term=2, vote=5)
    files.kill()
    log = Log(files)
    found, state, durable_index = log.all(), log.store.hard_state, log.store.durable_index
    assert (len(found), durable_index, state) == (4, 4, HardState(2, 5))
    files.crash(random.Random(1), survive=0.0)
    log = Log(files)
    assert (log.all(), log.store.hard_state) == (found, state)


@pytest.mark.parametrize("hard_state_too", [False, True])
def test_bug_f2_what_a_failed_sync_left_in_memory_is_written_again(hard_state_too: bool) -> None:
    """The server stops, as it must, and is started again; the kernel still shows what it lost."""
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 2), term=1)
    files.fail("sync")
    with pytest.raises(StorageError):
        log.commit(batches(3, 4), term=2 if hard_state_too else None)
    log.store.close()
    log = Log(files)
    found, state = log.all(), log.store.hard_state
    assert (len(found), state.term) == ((2, 2) if hard_state_too else (4, 1))
    seen = files.contents()
    files.crash(random.Random(1), survive=0.0)
    assert files.contents() == seen, "all of it, and both slots"
    log = Log(files)
    assert (log.all(), log.store.hard_state) == (found, state)


def test_bug_f7_the_index_is_rebuilt_and_equal() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit([batch(1, count=4), *batches(5, 50, size_bytes=130)], term=1)
    log.commit(batches(20, 40, 2), term=2, truncate_after=19)
    before = [(one.name, one.firsts, one.offsets, one.end) for one in log.store._log.segments]
    log.store.close()
    log = Log(files)
    after = [(one.name, one.firsts, one.offsets, one.end) for one in log.store._log.segments]
    assert after == before


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_bug_f9_only_what_a_successful_sync_covered_is_acknowledged(nth: int) -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(term=1)
    acknowledged = 0
    files.fail("sync", nth)
    with contextlib.suppress(StorageError):
        for index in range(1, 9):
            log.commit([batch(index)])
            acknowledged = index
    assert acknowledged == nth - 1 == log.store.durable_index
    files.crash(random.Random(nth), survive=0.0)
    assert Log(files).all() == batches(1, acknowledged)


def test_bug_f9_a_sync_does_not_cover_a_write_that_failed_halfway() -> None:
    files = MemoryFiles()
    store = open_log(files, StorageConfig(segment_bytes=4096))
    store.write([Write(1, HardState(1), None, batches(1, 2))])
    assert store.sync() == 1
    files.fail("write")
    with pytest.raises(StorageError):
        store.write([Write(2, None, None, batches(3, 3)), Write(3, None, None, batches(4, 4))])
    with pytest.raises(StorageError):
        store.sync()
    assert store.durable_index == 2


def test_bug_f11_an_old_manifest_does_not_make_newer_segments_go_away() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 3), term=1)
    old = files.contents()["MANIFEST"]
    log.commit(batches(4, 40, size_bytes=200))
    log.store.close()
    files = MemoryFiles(files.contents() | {"MANIFEST": old})
    with pytest.raises(StorageCorrupt, match="that is an old one"):
        Log(files)
    assert len(files.list("log")) > 2
