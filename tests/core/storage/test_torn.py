"""Torn writes: at every byte, everything that was durable is there and nothing else is."""

from __future__ import annotations

import pytest

from folkmoot.core.batch import Batch
from folkmoot.core.errors import StorageCorrupt
from folkmoot.core.storage import hard_state, manifest
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles
from tests.core.storage.support import SMALL, Log, batches

SEGMENT = "log/0000000001.seg"
DURABLE, UNSYNCED = batches(1, 3), batches(4, 6)


def before_and_after() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The disk before and after three batches were written, and never synced."""
    files = MemoryFiles()
    log = Log(files)
    log.commit(DURABLE, term=1, vote=2)
    before = files.contents()
    log.write(UNSYNCED)
    return before, files.contents()


def span(before: bytes, after: bytes) -> range:
    """From the first to behind the last byte that a write changed."""
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    return range(changed[0], changed[-1] + 1)


def records_of(found: list[Batch]) -> int:
    wanted = DURABLE + UNSYNCED
    assert found == wanted[: len(found)]
    return len(found)


@pytest.mark.parametrize("behind", ["zeros", "garbage", "end of file"])
def test_the_last_write_of_a_segment_torn_at_every_byte(behind: str) -> None:
    before, after = before_and_after()
    old, new = before[SEGMENT], after[SEGMENT]
    written = span(old, new)
    counts = set()
    for at in range(written.start, written.stop + 1):
        rest = old[at:]
        if behind == "garbage":
            rest = b"\xa5" * 100 + old[at + 100 :]
        elif behind == "end of file":
            rest = b""
        files = MemoryFiles(before | {SEGMENT: new[:at] + rest})
        log = Log(files)
        found = log.all()
        counts.add(records_of(found))
        torn = log.store.recovered.torn_tail
        assert files.size(SEGMENT) == SMALL.segment_bytes, "preallocated again"
        if torn is not None:
            assert torn.file.endswith(SEGMENT)
            assert torn.offset == log.store._log.active.end
            assert torn.offset + torn.size_bytes <= max(at, written.start) + 100
        # The stale bytes are gone for good: what is appended now is never followed by them.
        log.commit(batches(log.store.last_index + 1, log.store.last_index + 1, 2), term=2)
        wanted = log.all()
        log.store.close()
        log = Log(files)
        assert log.all() == wanted
        assert log.store.recovered.torn_tail is None
    assert counts == {3, 4, 5, 6}


def test_any_block_of_an_unsynced_write_may_be_missing() -> None:
    """Blocks reach the disk out of order: later records that verify are cut as well (bugs F1)."""
    before, after = before_and_after()
    old, new = before[SEGMENT], after[SEGMENT]
    written = span(old, new)
    for at in range(written.start, written.stop - 8):
        holed = new[:at] + old[at : at + 8] + new[at + 8 :]
        log = Log(MemoryFiles(before | {SEGMENT: holed}))
        assert records_of(log.all()) < 6
        assert log.store.recovered.torn_tail is not None


def test_either_slot_of_the_hard_state_torn_at_every_byte() -> None:
    before, _ = before_and_after()
    old = before[hard_state.NAME]
    files = MemoryFiles(before)
    Log(files).commit(term=2, vote=3)
    new = files.contents()[hard_state.NAME]
    half = hard_state.SLOT_BYTES
    for at in range(100):
        first = new[:at] + old[at:]
        log = Log(MemoryFiles(before | {hard_state.NAME: first}))
        assert log.store.hard_state in (HardState(1, 2), HardState(2, 3))
        second = new[: half + at] + old[half + at :]
        log = Log(MemoryFiles(before | {hard_state.NAME: second}))
        assert log.store.hard_state == HardState(2, 3)


def test_the_hard_state_cut_short_at_every_byte_keeps_one_slot_or_refuses() -> None:
    before, _ = before_and_after()
    data = before[hard_state.NAME]
    for at in (*range(100), *range(4090, 4200)):
        files = MemoryFiles(before | {hard_state.NAME: data[:at]})
        if at < 68:
            with pytest.raises(StorageCorrupt, match="hard_state at offset 0 and at offset 4096"):
                Log(files)
        else:
            assert Log(files).store.hard_state == HardState(1, 2)


def test_a_torn_new_manifest_is_ignored_at_every_byte() -> None:
    before, _ = before_and_after()
    whole = before[manifest.NAME]
    for at in range(len(whole) + 1):
        files = MemoryFiles(before | {manifest.NEW_NAME: whole[:at]})
        log = Log(files)
        assert log.all() == DURABLE
        assert manifest.NEW_NAME not in files.list()
        assert log.store.recovered.repaired


def test_the_manifest_cut_short_at_every_byte_is_refused() -> None:
    before, _ = before_and_after()
    whole = before[manifest.NAME]
    for at in range(len(whole)):
        with pytest.raises(StorageCorrupt, match="MANIFEST at offset"):
            Log(MemoryFiles(before | {manifest.NAME: whole[:at]}))
