"""Records that verify one by one and still do not belong where they lie."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest

from folkmoot.core.batch import Batch
from folkmoot.core.errors import StorageCorrupt
from folkmoot.core.storage.manifest import SegmentEntry
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.segment import Segment, encode_record, read_batch
from tests.core.storage.support import OWNER, Log, batch, batches

SEGMENT = "log/0000000001.seg"


def with_record(one: Batch | bytes, *, durable: int = 0) -> MemoryFiles:
    """A log of indexes 1 to 3 of term 2, and behind it, well chained and framed, `one`."""
    files = MemoryFiles()
    log = Log(files)
    log.commit(batches(1, 3, 2), term=2)
    active = log.store._log.active
    data = one if isinstance(one, bytes) else one.data
    frame, _ = encode_record(active.tag, active.chain, durable, data)
    files.write(SEGMENT, active.end, frame + data)
    files.kill()
    return files


def test_a_record_that_belongs_is_taken() -> None:
    assert Log(with_record(batch(4, 2), durable=3)).all() == batches(1, 4, 2)


@pytest.mark.parametrize(
    ("one", "durable", "why"),
    [
        (batch(4, 1), 0, "index 4 term 1 after index 3 term 2"),
        (batch(5, 2), 0, "index 5 term 2 after index 3 term 2"),
        (batch(3, 2), 0, "index 3 term 2 after index 3 term 2"),
        (batch(4, 2).data + b"more", 0, "a batch of 72 bytes in a record of 76"),
        (b"not a batch at all", 0, "a header has 40"),
    ],
)
def test_a_record_that_does_not_belong_is_cut(one: Batch | bytes, durable: int, why: str) -> None:
    log = Log(with_record(one, durable=durable))
    assert log.all() == batches(1, 3, 2)
    assert log.store.recovered.torn_tail is not None
    assert why in log.store.recovered.torn_tail.why


def test_a_record_that_vouches_for_itself_is_refused() -> None:
    with pytest.raises(StorageCorrupt, match="index 4 claims that 4 was durable before it"):
        Log(with_record(batch(4, 2), durable=4))


def test_a_segment_of_another_owner_is_refused() -> None:
    files = MemoryFiles()
    Log(files).store.close()
    for cluster_id, node_id in ((b"another-cluster!", 7), (OWNER.cluster_id, 8)):
        foreign = Segment(SegmentEntry(1, 1), 0, 0, 0, cluster_id, node_id, 4096)
        contents = files.contents() | {SEGMENT: foreign.header.ljust(4096, b"\0")}
        owner = f"cluster {cluster_id.hex()} node {node_id}"
        with pytest.raises(StorageCorrupt, match=f"{SEGMENT} at offset 0: it is of {owner}"):
            Log(MemoryFiles(contents))


def test_the_chain_is_checked_whenever_records_are_read() -> None:
    disks = []
    for size_bytes in (20, 21):
        files = MemoryFiles()
        log = Log(files)
        log.commit([batch(1), batch(2, size_bytes=size_bytes), batch(3)], term=1)
        disks.append((files, log))
    (mine, log), (other, foreign) = disks
    third, theirs = log.store._log.active.offsets[2], foreign.store._log.active.offsets[2]
    mine.write(SEGMENT, third, other.read(SEGMENT, theirs, foreign.store._log.active.end - theirs))
    with pytest.raises(StorageCorrupt, match=f"{SEGMENT} at offset {third}: chained to"):
        log.all()


def test_a_batch_is_not_read_beyond_what_is_there() -> None:
    data = bytes(24) + batch(1).data
    assert read_batch(data, 0, len(batch(1).data)) == batch(1)
    assert "are left" in str(read_batch(data, 0, len(batch(1).data) + 1))
    short = bytearray(batch(1).data)
    short[12:16] = struct.pack("<I", 0)
    short[4:8] = struct.pack("<I", crc32(short[8:]))
    assert "0 entries" in str(read_batch(bytes(24) + short, 0, len(short)))
