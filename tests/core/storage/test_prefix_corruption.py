"""Rot in a prefix: whatever is damaged is found and named, and never taken for something else."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt, StorageError
from folkmoot.core.prefix import Frozen, Ledger
from folkmoot.core.prefix_table import ArchiveTable, FileKind, Point, PrefixFileEntry
from folkmoot.core.storage import manifest
from folkmoot.core.storage.compaction import Compaction
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.prefix_blocks import (
    CRC_FROM,
    ItemsBlock,
    decode_block,
    decode_items,
    decode_records,
    encode_items,
    encode_records,
)
from folkmoot.core.storage.prefix_file import HEADER_BYTES, PrefixFileWriter, file_name
from folkmoot.core.storage.stored_prefix import ItemsFile, StoredPrefix
from folkmoot.transport.codec import pack
from tests.core.storage.history import Contents, contents, equal
from tests.core.storage.support import OWNER, open_log
from tests.core.storage.test_format import COMPACTED, golden_compacted_disk
from tests.core.storage.transfers import Source, receive

DISK = golden_compacted_disk()
NAMES = sorted(name for name in DISK if name.startswith("prefix/"))
STATE = next(name for name in NAMES if name.endswith(".state"))
ITEMS = [name for name in NAMES if name.endswith(".items")]


def read(files: MemoryFiles) -> Contents:
    """Open a disk and read its prefix back."""
    return contents(open_log(files).prefix.read_back())


def refused(disk: Mapping[str, bytes], name: str) -> StorageCorrupt:
    with pytest.raises(StorageCorrupt) as caught:
        read(MemoryFiles(disk))
    assert name in str(caught.value), f"{name} is not named in: {caught.value}"
    return caught.value


def changed(name: str, data: bytes) -> dict[str, bytes]:
    return DISK | {name: data}


def test_the_disk_of_these_tests_is_whole() -> None:
    assert read(MemoryFiles(DISK)) == COMPACTED
    assert len(ITEMS) == 2


@pytest.mark.parametrize("name", [*NAMES, manifest.NAME])
def test_a_flipped_bit_at_every_byte(name: str) -> None:
    for offset in range(len(DISK[name])):
        files = MemoryFiles(DISK)
        files.flip_bit(name, offset, offset % 8)
        refused(files.contents(), name)


@pytest.mark.parametrize("name", [*NAMES, manifest.NAME])
def test_cut_short_at_every_byte(name: str) -> None:
    for size_bytes in range(len(DISK[name])):
        refused(changed(name, DISK[name][:size_bytes]), name)


@pytest.mark.parametrize("name", [*NAMES, manifest.NAME])
def test_an_appended_byte(name: str) -> None:
    for more in (b"\0", b"\1", DISK[name]):
        refused(changed(name, DISK[name] + more), name)


@pytest.mark.parametrize("name", NAMES)
def test_any_other_file_in_its_place(name: str) -> None:
    for other in NAMES:
        if other != name:
            refused(changed(name, DISK[other]), name)
    refused(changed(name, bytes(len(DISK[name]))), name)
    refused(changed(name, b""), name)


def test_the_same_file_of_another_history() -> None:
    """Same name, same owner, same kind and indexes, and every checksum right but MANIFEST's."""
    block = ItemsBlock(array("Q", [5]), [0], array("Q", [3]), array("Q", [1]), [b"\x90"], {})
    for name, kind, first_index, made in (
        (ITEMS[1], FileKind.ITEMS, 5, encode_items(block)),
        (STATE, FileKind.STATE, 1, encode_records([(1, 0, b"another state of the core")])),
    ):
        files = MemoryFiles()
        number = int(name[-16:-6])
        writer = PrefixFileWriter(files, kind, number, first_index, (OWNER.cluster_id, 7))
        writer.append(made)
        writer.close(7)
        refused(changed(name, files.contents()[name]), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_found_before_anything_is_removed(name: str) -> None:
    disk = {other: data for other, data in DISK.items() if other != name}
    files = MemoryFiles(disk | {"prefix/0000000099.items": b"left over"})
    with pytest.raises(StorageCorrupt, match=f"{name} at offset 0: the file is missing"):
        open_log(files)
    assert "prefix/0000000099.items" in files.contents()


def test_files_too_many_are_removed_and_said() -> None:
    more = {"prefix/0000000099.items": DISK[ITEMS[0]], "prefix/0000000001.state": b"x"}
    files = MemoryFiles(DISK | more)
    store = open_log(files)
    assert contents(store.prefix.read_back()) == COMPACTED
    assert store.recovered.repaired == tuple(
        f"{name} removed: MANIFEST does not list it" for name in sorted(more)
    )
    assert set(files.contents()) == set(DISK)


@pytest.mark.parametrize("name", NAMES)
def test_a_compaction_never_carries_damage_over(name: str) -> None:
    """What it copies it verifies; what it leaves alone stays as it is, and is found by a reader."""
    copied = 0
    for offset in range(HEADER_BYTES, len(DISK[name]), 3):
        files = MemoryFiles(DISK)
        store = open_log(files)
        source = store.prefix.read_back()
        assert contents(source) == COMPACTED
        store.prefix.loaded(source)
        store.roll()
        files.flip_bit(name, offset, offset % 8)
        ledger = Ledger(superseded=array("Q", [5, 7]))
        frozen = Frozen(8, 1011, ledger, {(2, 1): b"new"}, lambda *_: ("", []))
        compaction = store.compact([frozen])
        error = failure_of(compaction)
        if error is None:
            store.install(compaction)
            store.sweep()
            assert name in files.contents(), "copied, and not found damaged"
            refused(files.contents(), name)
        else:
            assert name in str(error)
            copied += 1
    assert copied, "nothing of it was copied"


def failure_of(compaction: Compaction) -> StorageCorrupt | None:
    try:
        for _ in compaction.steps():
            pass
    except StorageCorrupt as error:
        return error
    return None


# -- damage that every checksum covers ---------------------------------------------------------


class Made:
    """A prefix of one items file and a state file, written as anybody could write them."""

    def __init__(self, liveness: bytes, *blocks: ItemsBlock, key: int = 1) -> None:
        self.files = MemoryFiles()
        writer = PrefixFileWriter(self.files, FileKind.ITEMS, 1, 1, (OWNER.cluster_id, 7))
        for block in blocks:
            writer.append(encode_items(block))
        items = writer.close(20)
        writer = PrefixFileWriter(self.files, FileKind.STATE, 2, 1, (OWNER.cluster_id, 7))
        writer.append(encode_records([(1, 0, b"core"), (5, key, liveness)]))
        self.entries = [writer.close(20), items]

    def read(self) -> Contents:
        return contents(StoredPrefix(self.files, self.entries))


def block_of(*indexes: int, parts: dict[int, bytes] | None = None) -> ItemsBlock:
    count = len(indexes)
    operation = pack([1, "set", [["k"]]])
    numbers = array("Q", [1] * count)
    return ItemsBlock(
        array("Q", indexes), [0] * count, numbers, numbers, [operation] * count, parts or {}
    )


def lives(*alive: int, parts: object = ()) -> bytes:
    return pack([zlib.compress(bytes(alive)), parts])


def test_what_is_made_well_is_read() -> None:
    made = Made(
        lives(1, 0, 1, parts=[[2, b"\0\1"]]), block_of(3, 4), block_of(9, parts={0: b"\1\1"})
    )
    assert [entry[0] for entry in made.read()[1]] == [3, 9]
    assert made.read()[1][1][5] == (1,)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Made(lives(1, 1), block_of(3)), "1 entries"),
        (Made(lives(1), block_of(3, 4)), "more entries than the 1 known"),
        (Made(lives(1, 2), block_of(3, 4)), "neither 0 nor 1"),
        (Made(lives(1), block_of(3), key=2), "liveness of an items file from 2"),
        (Made(b"", block_of(3)), "liveness of the file from 1"),
        (Made(pack([1, 2]), block_of(3)), "liveness of the file from 1"),
        (Made(pack([b"x", []]), block_of(3)), "liveness of the file from 1"),
        (Made(pack([zlib.compress(b"\1") + b"x", []]), block_of(3)), "are not those of at most"),
        (Made(pack([zlib.compress(b"\1")[:-1], []]), block_of(3)), "are not those of at most"),
        (Made(lives(1, parts=[[0, 1 << 40]]), block_of(3)), "ordinals of position 0"),
        (Made(lives(1, parts=[[0, b"\0"]]), block_of(3)), "ordinals of position 0"),
        (Made(lives(1, parts=[[1, b"\1"]]), block_of(3)), "ordinals of 1 behind -1"),
        (Made(lives(1, parts=[[0, b"\1"]]), block_of(3)), "0 of several"),
        (Made(lives(1), block_of(3, parts={0: b"\1\1"})), "lives of"),
        (Made(lives(1, parts=[[0, b"\1"]]), block_of(3, parts={0: b"\1\1"})), "lives of"),
        (Made(lives(1, parts=[[0, b"\1\1"]]), block_of(3, parts={0: b"\1\0"})), "lives of"),
        (Made(lives(1, 1), block_of(3), block_of(3)), "entries behind index 3"),
        (Made(lives(1), block_of(21)), "an entry of index 21"),
    ],
)
def test_what_does_not_add_up_is_refused(made: Made, why: str) -> None:
    with pytest.raises(StorageCorrupt, match=why):
        made.read()


def test_records_out_of_order_are_refused() -> None:
    for records in ([(2, 5, b""), (2, 5, b"")], [(2, 5, b""), (1, 0, b"")]):
        files = MemoryFiles()
        writer = PrefixFileWriter(files, FileKind.STATE, 2, 1, (OWNER.cluster_id, 7))
        writer.append(encode_records(records))
        with pytest.raises(StorageCorrupt, match=r"record .* behind"):
            contents(StoredPrefix(files, [writer.close(20)]))


def test_a_small_record_does_not_expand_without_limit() -> None:
    """A few kilobytes of zlib may claim gigabytes: no more is made of them than the file holds."""
    bomb = zlib.compress(bytes(64 << 20), 9)
    entry = PrefixFileEntry(FileKind.ITEMS, 1, 1, 9, 1 << 10, 1)
    one = ItemsFile(entry)
    with pytest.raises(ValueError, match="are not those of at most 32 entries"):
        one.restore_liveness(pack([bomb, []]))
    assert len(one.alive) == 0


def test_a_header_of_another_kind_or_version_is_refused() -> None:
    name = file_name(FileKind.ITEMS, int(ITEMS[0][-16:-6]))
    for at, value, error, why in (
        (12, 9, StorageCorrupt, "a file of kind 9"),
        (8, 2, StorageError, "format version 2, this program knows 1; use"),
    ):
        data = bytearray(DISK[name])
        data[at] = value
        data[124:128] = zlib.crc32(data[:124]).to_bytes(4, "little")
        with pytest.raises(error, match=why):
            read(MemoryFiles(changed(name, bytes(data))))


# -- any bytes at all --------------------------------------------------------------------------

RECORDS = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, (1 << 64) - 1), st.binary(max_size=20))
)
MASKS = st.binary(min_size=1, max_size=3).map(lambda mask: b"\1" + bytes(len(mask)))


@st.composite
def blocks(draw: st.DrawFn) -> ItemsBlock:
    count = draw(st.integers(1, 6))
    numbers = st.integers(0, (1 << 64) - 1)
    base = draw(st.integers(0, (1 << 64) - 100))
    offsets = sorted(draw(st.sets(st.integers(0, 99), min_size=count, max_size=count)))
    return ItemsBlock(
        array("Q", [base + offset for offset in offsets]),
        sorted(draw(st.lists(st.integers(0, 1 << 31), min_size=count, max_size=count))),
        array("Q", draw(st.lists(numbers, min_size=count, max_size=count))),
        array("Q", draw(st.lists(numbers, min_size=count, max_size=count))),
        draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count)),
        draw(st.dictionaries(st.integers(0, count - 1), MASKS)),
    )


def body_of(data: bytes) -> tuple[int, bytes]:
    found = decode_block(data, len(data))
    assert not isinstance(found, str), found
    return found[1], found[2]


@given(blocks())
def test_entries_come_back(block: ItemsBlock) -> None:
    count, body = body_of(encode_items(block))
    found = decode_items(body, count)
    assert attrs.astuple(found, recurse=False) == attrs.astuple(block, recurse=False)


@given(RECORDS)
def test_records_come_back(records: list[tuple[int, int, bytes]]) -> None:
    count, body = body_of(encode_records(records))
    assert decode_records(body, count) == records


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes that were a body once, for the most part."""
    data = draw(st.one_of(blocks().map(encode_items), RECORDS.map(encode_records)))
    body = body_of(data)[1]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 4)) :]
    return body


COUNTS = st.one_of(st.integers(0, 10), st.integers(0, (1 << 32) - 1))


@given(st.one_of(st.binary(max_size=300), damaged()), COUNTS)
def test_any_body_is_decoded_or_refused(body: bytes, count: int) -> None:
    """Only ValueError comes out, and nothing is made that the bytes are not there for."""
    for decode in (decode_items, decode_records):
        try:
            found = decode(body, count)
        except ValueError:
            continue
        assert len(found) == count <= len(body)


@given(st.binary(max_size=100), st.integers(0, 100))
def test_any_block_is_decoded_or_refused(data: bytes, size_bytes: int) -> None:
    assert isinstance(decode_block(data, size_bytes), str)
    assert CRC_FROM == 8


TABLE = Source.made(3).archive.table
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, (1 << 64) - 1)
    | st.text(max_size=3)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=20,
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A table with some field replaced, at any depth."""
    point = list(attrs.astuple(TABLE.point))
    fields = [TABLE.cluster_id, TABLE.epoch, point, [one.encode() for one in TABLE.files]]
    where: list[object] = fields
    while True:
        at = draw(st.integers(0, len(where) - 1))
        inner = where[at]
        if isinstance(inner, list) and inner and draw(st.booleans()):
            where = inner
            continue
        where[at] = draw(st.one_of(PLAIN, st.sampled_from([0, 1, (1 << 32), (1 << 64) - 1])))
        return pack(fields)


@given(st.one_of(st.binary(max_size=200), PLAIN.map(pack), tables()))
def test_any_table_is_decoded_or_refused(data: bytes) -> None:
    """What is decoded could be listed by a MANIFEST, and its files be named."""
    try:
        table = ArchiveTable.decode(data)
    except RemoteProtocolError:
        return
    entries = tuple(
        attrs.evolve(one.entry, file_id=at) for at, one in enumerate(table.files, start=1)
    )
    segments = (manifest.SegmentEntry(1, table.point.index + 1),)
    made = manifest.Manifest(
        OWNER.cluster_id, 7, b"", segments, table.point, table.point, entries, table.epoch
    )
    if table.point.index < (1 << 64) - 1:
        assert manifest.decode_manifest(manifest.encode_manifest(made)) == made
    assert len({one.identity for one in table.files}) == len(table.files)


@pytest.mark.parametrize(
    "change",
    [
        {"files": ()},
        {"files": (), "point": Point()},
        {"files": TABLE.files[1:]},
        {"files": TABLE.files * 2},
        {"files": (TABLE.files[0], TABLE.files[1], TABLE.files[1])},
        {"point": Point(TABLE.point.index + 1, 1, 0)},
        {"cluster_id": b"short"},
        {"epoch": -1},
    ],
)
def test_a_table_that_no_manifest_could_list_is_refused(change: dict[str, Any]) -> None:
    store = open_log(MemoryFiles())
    with pytest.raises(RemoteProtocolError, match="prefix's table"):
        store.incoming.begin(attrs.evolve(TABLE, **change).encode())
    assert (store.incoming.table, store.incoming.have) == (None, [])


@given(st.data())
def test_any_bytes_in_place_of_files_are_refused_when_they_are_read(data: st.DataObject) -> None:
    """A sender that lies, or a wire that does: nothing is installed, nothing else is raised."""
    source = Source.made(3)
    store = open_log(MemoryFiles())
    receive(store.incoming, source, 1 << 20)
    names = [f"incoming/{name}" for name in disk_of(store).list("incoming") if name != "TABLE"]
    name = data.draw(st.sampled_from(names), label="file")
    size_bytes = disk_of(store).size(name)
    at = data.draw(st.integers(0, size_bytes - 1), label="at")
    more = data.draw(st.binary(min_size=1, max_size=min(40, size_bytes - at)), label="bytes")
    before = disk_of(store).read(name, at, len(more))
    disk_of(store).write(name, at, more)
    if more == before:
        assert equal(contents(store.incoming.read_back()), source.expected)
        return
    found = store.incoming.read_back()
    with pytest.raises(StorageCorrupt) as caught:
        contents(found)
    assert name in str(caught.value)
    assert not found.is_read
    with pytest.raises(AssertionError, match="before all of it was read back"):
        store.incoming.move(store.prefix)


def disk_of(store: LogStore) -> MemoryFiles:
    assert isinstance(store._files, MemoryFiles)
    return store._files
