"""Rot: a flipped bit in anything that was durable is found, named, and nothing is cut."""

from __future__ import annotations

import re

import attrs
import pytest

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.storage import hard_state, manifest
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.segment import HEADER_BYTES
from tests.core.storage.support import Log, batches

SEALED, ACTIVE = "log/0000000001.seg", "log/0000000002.seg"
WHOLE = batches(1, 14, size_bytes=300)


def closed_disk() -> tuple[dict[str, bytes], list[int]]:
    """A sealed segment and an active one, closed cleanly; and where the latter's records begin."""
    files = MemoryFiles()
    log = Log(files)
    for one in WHOLE:
        log.commit([one], term=1, vote=2)
    offsets = [*log.store._log.active.offsets, log.store._log.active.end]
    log.store.close()
    assert files.list("log") == ["0000000001.seg", "0000000002.seg"]
    return files.contents(), offsets


def flipped(contents: dict[str, bytes], name: str, offset: int) -> MemoryFiles:
    files = MemoryFiles(contents)
    files.flip_bit(name, offset, offset % 8)
    return files


def offset_named(error: StorageError, name: str) -> int:
    found = re.search(rf"{name} at offset (\d+)", str(error))
    assert found, f"{name} is not named in: {error}"
    return int(found[1])


def test_a_flipped_bit_at_every_byte_of_a_sealed_segment() -> None:
    contents, _ = closed_disk()
    for offset in range(len(contents[SEALED])):
        files = flipped(contents, SEALED, offset)
        with pytest.raises(StorageCorrupt) as caught:
            Log(files)
        named = offset_named(caught.value, SEALED)
        assert named <= offset < max(named, HEADER_BYTES) + 500
        assert files.contents() == flipped(contents, SEALED, offset).contents(), "was touched"


def test_a_flipped_bit_at_every_durable_byte_of_the_active_segment() -> None:
    contents, offsets = closed_disk()
    for offset in range(offsets[-1]):
        files = flipped(contents, ACTIVE, offset)
        with pytest.raises(StorageCorrupt) as caught:
            Log(files)
        named = offset_named(caught.value, ACTIVE)
        assert named == max((start for start in offsets if start <= offset), default=0)
        assert files.contents() == flipped(contents, ACTIVE, offset).contents(), "was touched"


def test_a_flipped_bit_behind_the_last_record_costs_nothing() -> None:
    contents, offsets = closed_disk()
    for offset in range(offsets[-1], offsets[-1] + 40):
        log = Log(flipped(contents, ACTIVE, offset))
        assert log.all() == WHOLE
        assert log.store.recovered.torn_tail is not None


def test_a_flipped_bit_at_every_byte_of_either_hard_state_slot_is_repaired() -> None:
    contents, _ = closed_disk()
    for start in (0, hard_state.SLOT_BYTES):
        for offset in range(start, start + 68):
            files = flipped(contents, hard_state.NAME, offset)
            log = Log(files)
            assert log.store.hard_state == HardState(1, 2)
            assert f"slot {start // hard_state.SLOT_BYTES}" in log.store.recovered.repaired[0]
            log.store.close()
            assert files.contents()[hard_state.NAME] == contents[hard_state.NAME]


def test_both_hard_state_slots_damaged_is_refused() -> None:
    contents, _ = closed_disk()
    for offset in range(68):
        files = flipped(contents, hard_state.NAME, offset)
        files.flip_bit(hard_state.NAME, hard_state.SLOT_BYTES + (offset * 7) % 68)
        with pytest.raises(StorageCorrupt, match="hard_state at offset 0 and at offset 4096"):
            Log(files)


def test_a_flipped_bit_at_every_byte_of_the_manifest() -> None:
    contents, _ = closed_disk()
    for offset in range(len(contents[manifest.NAME])):
        with pytest.raises(StorageCorrupt, match="MANIFEST at offset"):
            Log(flipped(contents, manifest.NAME, offset))


@pytest.mark.parametrize("name", [SEALED, ACTIVE, hard_state.NAME])
def test_a_missing_file_is_refused(name: str) -> None:
    contents, _ = closed_disk()
    del contents[name]
    with pytest.raises(StorageCorrupt, match=f"{name} at offset 0: the file is missing"):
        Log(MemoryFiles(contents))


def test_a_missing_manifest_is_not_taken_for_an_empty_directory() -> None:
    contents, _ = closed_disk()
    del contents[manifest.NAME]
    with pytest.raises(StorageCorrupt, match="MANIFEST is missing, but hard_state"):
        Log(MemoryFiles(contents))
    del contents[hard_state.NAME]
    with pytest.raises(StorageCorrupt, match=r"MANIFEST is missing, but .* holds records"):
        Log(MemoryFiles(contents))


def test_a_sealed_segment_cut_short_is_refused() -> None:
    contents, _ = closed_disk()
    for size_bytes in (0, 100, HEADER_BYTES, len(contents[SEALED]) - 1):
        with pytest.raises(StorageCorrupt, match=f"{SEALED} at offset"):
            Log(MemoryFiles(contents | {SEALED: contents[SEALED][:size_bytes]}))


def test_a_sealed_segment_whose_last_write_never_came_is_refused() -> None:
    """What is there verifies, and ends cleanly: only MANIFEST knows that something is missing."""
    contents, _ = closed_disk()
    log = Log(MemoryFiles(contents))
    for start in log.store._log.segments[0].offsets:
        zeroed = contents[SEALED][:start].ljust(len(contents[SEALED]), b"\0")
        with pytest.raises(StorageCorrupt, match=f"{SEALED} at offset {start}: ends with index"):
            Log(MemoryFiles(contents | {SEALED: zeroed}))


def test_the_newer_hard_state_slot_is_right_whichever_it_is() -> None:
    contents, _ = closed_disk()
    slot = hard_state.decode_slot(contents[hard_state.NAME])
    assert slot is not None
    old = contents[hard_state.NAME][:4096]
    newer = attrs.evolve(slot, sequence=slot.sequence + 1, state=HardState(4, 4))
    new = hard_state.encode_slot(newer).ljust(4096, b"\0")
    for number, data in enumerate((new + old, old + new)):
        log = Log(MemoryFiles(contents | {hard_state.NAME: data}))
        assert log.store.hard_state == HardState(4, 4)
        assert f"slot {1 - number} had sequence {slot.sequence}" in log.store.recovered.repaired[0]
    same = hard_state.encode_slot(attrs.evolve(newer, sequence=slot.sequence))
    with pytest.raises(StorageCorrupt, match=f"both with sequence {slot.sequence}"):
        Log(MemoryFiles(contents | {hard_state.NAME: old + same}))


def test_segments_that_changed_places_are_refused() -> None:
    contents, _ = closed_disk()
    swapped = {SEALED: contents[ACTIVE], ACTIVE: contents[SEALED]}
    with pytest.raises(StorageCorrupt, match="where the manifest lists"):
        Log(MemoryFiles(contents | swapped))


def test_a_segment_of_another_history_is_refused() -> None:
    """Same ids, same indexes, same owner: only the chain tells."""
    contents, _ = closed_disk()
    other = MemoryFiles()
    log = Log(other)
    for one in batches(1, 14, 2, size_bytes=300):
        log.commit([one], term=2)
    log.store.close()
    with pytest.raises(StorageCorrupt, match=f"{ACTIVE} at offset 0: it was started behind"):
        Log(MemoryFiles(contents | {ACTIVE: other.contents()[ACTIVE]}))


def test_a_hard_state_of_another_node_is_refused() -> None:
    contents, _ = closed_disk()
    slot = hard_state.decode_slot(contents[hard_state.NAME])
    assert slot is not None
    data = hard_state.encode_slot(hard_state.Slot(9, slot.cluster_id, 8, slot.state))
    with pytest.raises(StorageCorrupt, match=r"hard_state at offset 0: it is of .* node 8"):
        Log(MemoryFiles(contents | {hard_state.NAME: data.ljust(4096, b"\0") + data}))


def test_damage_after_opening_is_found_when_it_is_read() -> None:
    contents, _ = closed_disk()
    files = MemoryFiles(contents)
    log = Log(files)
    files.flip_bit(SEALED, 700)
    with pytest.raises(StorageCorrupt, match=f"{SEALED} at offset 512"):
        log.all()
    with pytest.raises(StorageCorrupt, match=f"{SEALED} at offset 512"):
        log.write(batches(15, 15))


def test_a_newer_format_is_refused_with_both_versions_named() -> None:
    contents, _ = closed_disk()
    for name, newer, known in (
        (manifest.NAME, 3, "1 and 2"),
        (hard_state.NAME, 2, "1"),
        (ACTIVE, 2, "1"),
    ):
        data = bytearray(contents[name])
        data[8] = newer
        with pytest.raises(StorageError, match=f"version {newer}, this program knows {known};"):
            Log(MemoryFiles(contents | {name: with_checksum(name, data)}))


def with_checksum(name: str, data: bytearray) -> bytes:
    """Put right what a program of another version would have put right."""
    from zlib import crc32

    end = {manifest.NAME: len(data) - 4, hard_state.NAME: 64, ACTIVE: 508}[name]
    data[end : end + 4] = crc32(data[:end]).to_bytes(4, "little")
    return bytes(data)
