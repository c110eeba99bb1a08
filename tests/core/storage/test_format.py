"""The formats on disk: golden bytes, gaps below the compaction index, and any bytes at all."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.storage import hard_state, manifest
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.manifest import Manifest, SegmentEntry
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.recovery import highest_claim, start_segment
from folkmoot.core.storage.segment import (
    Segment,
    decode_record,
    encode_record,
    read_batch,
    segment_name,
)
from tests.core.storage.support import OWNER, Log, batch, batches

GOLDEN = Path(__file__).parents[2] / "golden" / "storage"


def golden_disk() -> dict[str, bytes]:
    """Everything that the formats know: two terms, a roll-over, a truncation, a mark."""
    files = MemoryFiles()
    log = Log(files)
    log.commit([batch(1, count=3), *batches(4, 6)], term=1, vote=2)
    log.commit(batches(6, 7, 3), term=3, truncate_after=5)
    log.commit([batch(8, 3)])
    log.store.close()
    return files.contents()


def as_text(data: bytes) -> str:
    """Hex, sixteen bytes a line, with runs of zeros left out: to be read in a diff."""
    lines = []
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        if line.strip(b"\0"):
            lines.append(f"{at:06x}  {line.hex(' ')}\n")
    return "".join(lines) + f"{len(data):06x}  end\n"


@pytest.mark.parametrize(
    "name", ["hard_state", "MANIFEST", "log/0000000001.seg", "log/0000000002.seg"]
)
def test_the_format_is_as_it_was(name: str, rewrite: bool) -> None:
    """A change here is a change of format: it needs a new version number and a way to read both."""
    path = GOLDEN / f"{name.replace('/', '-')}.hex"
    found = as_text(golden_disk()[name])
    if rewrite:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


def test_the_golden_files_open() -> None:
    disk = {}
    for path in GOLDEN.glob("*.hex"):
        *lines, end = path.read_text().splitlines()
        data = bytearray(int(end.split()[0], 16))
        for line in lines:
            at, _, hexes = line.partition("  ")
            data[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(hexes)
        disk[path.stem.replace("log-", "log/")] = bytes(data)
    log = Log(MemoryFiles(disk))
    assert log.all() == [batch(1, count=3), *batches(4, 5), *batches(6, 8, 3)]
    assert log.store.hard_state == HardState(3, None)
    assert log.store.identity == OWNER
    assert log.store.recovered.torn_tail is None


def disk_with_gaps(compaction_index: int) -> MemoryFiles:
    """What compaction leaves (made by hand here): fewer batches below its index, same indexes."""
    files = MemoryFiles()
    Log(files).store.close()
    files.unlink("log/0000000001.seg")
    cluster_id, node_id = OWNER.cluster_id, OWNER.node_id
    kept = Segment(SegmentEntry(5, 2), 0, 0, 0, cluster_id, node_id, 4096)
    start_segment(files, kept)
    for one in (batch(2), batch(5, count=2), batch(9, count=2)):
        kept.stage(one, 0)
    kept.flush(files)
    # The one behind it was started behind segment 3, which is no more.
    active = Segment(SegmentEntry(4, 11), 3, 0xABCD, 1, cluster_id, node_id, 4096)
    start_segment(files, active)
    for one in batches(11, 13):
        active.stage(one, 10)
    active.flush(files)
    entries = (kept.entry(sealed=True), active.entry(sealed=False))
    made = Manifest(cluster_id, node_id, OWNER.bootstrap, entries, compaction_index, 1)
    data = _encode_unchecked(made)
    files.unlink("MANIFEST")
    files.create("MANIFEST")
    files.write("MANIFEST", 0, data)
    contents = files.contents()
    state = hard_state.encode_slot(hard_state.Slot(2, cluster_id, node_id, HardState(1)))
    contents["hard_state"] = state.ljust(4096, b"\0") + state
    return MemoryFiles(contents)


def _encode_unchecked(made: Manifest) -> bytes:
    from zlib import crc32

    if not made.check():
        return manifest.encode_manifest(made)
    fine = manifest.encode_manifest(attrs.evolve(made, compaction_index=10))
    body = bytearray(fine[:-4])
    body[40:48] = made.compaction_index.to_bytes(8, "little")
    return bytes(body) + crc32(body).to_bytes(4, "little")


def test_indexes_may_have_gaps_below_the_compaction_index() -> None:
    files = disk_with_gaps(10)
    log = Log(files)
    wanted = [batch(2), batch(5, count=2), batch(9, count=2), *batches(11, 13)]
    assert log.all() == wanted
    assert log.store.read(7, 1) == [batch(9, count=2)]
    assert log.store.read(3, 1) == [batch(5, count=2)]
    assert (log.store.first_index, log.store.last_index) == (2, 13)
    log.commit(batches(12, 60, size_bytes=200), truncate_after=11)
    with pytest.raises(AssertionError, match="9 is compacted"):
        log.write(truncate_after=9)
    log.store.close()
    assert Log(files).all() == [*wanted[:4], *batches(12, 60, size_bytes=200)]


@pytest.mark.parametrize("compaction_index", [0, 3, 7])
def test_a_gap_above_the_compaction_index_is_refused(compaction_index: int) -> None:
    with pytest.raises(StorageCorrupt, match="index"):
        Log(disk_with_gaps(compaction_index))


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ((), "no segment"),
        ((SegmentEntry(1, 2),), "indexes are missing before"),
        ((SegmentEntry(1, 1, 5, 600, 9),), "is sealed"),
        ((SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(1, 6)), "listed twice"),
        ((SegmentEntry(1, 1), SegmentEntry(2, 6)), "do not follow"),
        ((SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(2, 5)), "do not follow"),
        ((SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(2, 7)), "indexes are missing"),
    ],
)
def test_a_manifest_checks_itself(entries: tuple[SegmentEntry, ...], wrong: str) -> None:
    made = Manifest(OWNER.cluster_id, 7, b"", entries)
    assert wrong in made.check()
    with pytest.raises(AssertionError, match=wrong):
        manifest.encode_manifest(made)


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    """Only the declared error, whatever the bytes are."""
    hard_state.decode_slot(data)
    record = decode_record(data, 0, 7)
    assert isinstance(record, str)
    assert isinstance(read_batch(data, 0, len(data)), str)
    assert highest_claim(data, 7) == (0, 0)
    with pytest.raises(StorageCorrupt):
        manifest.decode_manifest(data)


@given(st.binary(max_size=200), st.integers(0, 1 << 40), st.binary(max_size=50))
def test_a_frame_is_found_wherever_it_lies(body: bytes, durable: int, noise: bytes) -> None:
    frame, check = encode_record(99, 5, durable, body)
    assert decode_record(frame + body, 0, 99) == (len(body), 5, durable, check)
    assert isinstance(decode_record(frame + body, 0, 98), str)
    noise = noise.replace(b"c", b"d")  # "c" is how the tag 99 begins
    assert highest_claim(noise + frame + body, 99) == (durable, len(noise) if durable else 0)


@given(st.data())
def test_any_damage_to_a_manifest_is_refused(data: st.DataObject) -> None:
    entries = (SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(2, 6))
    whole = manifest.encode_manifest(Manifest(OWNER.cluster_id, 7, b"boot", entries))
    at = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(at, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=20)) + whole[stop:]
    if damaged != whole:
        with pytest.raises(StorageError):
            manifest.decode_manifest(damaged)


def test_segment_names_sort_as_their_ids_do() -> None:
    names = [segment_name(number) for number in (1, 9, 10, 99, 100, 12345)]
    assert names == sorted(names)
