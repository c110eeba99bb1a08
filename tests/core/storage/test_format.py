"""The formats on disk: golden bytes, what a MANIFEST may say, and any bytes at all."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Group, Kind, encode_batch
from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.prefix import Frozen, Ledger, RecordKey
from folkmoot.core.prefix_table import FileKind, Point, PrefixFileEntry
from folkmoot.core.storage import hard_state, manifest
from folkmoot.core.storage.log_store import HardState, LogStore
from folkmoot.core.storage.manifest import Manifest, SegmentEntry
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.recovery import highest_claim
from folkmoot.core.storage.segment import decode_record, encode_record, read_batch, segment_name
from folkmoot.transport.codec import pack
from tests.core.storage.history import contents, trim
from tests.core.storage.support import OWNER, SMALL, Log, batch, batches

GOLDEN = Path(__file__).parents[2] / "golden" / "storage"


def golden_disk() -> dict[str, bytes]:
    """Everything that the log's formats know: two terms, a roll-over, a truncation, a mark."""
    files = MemoryFiles()
    log = Log(files)
    log.commit([batch(1, count=3), *batches(4, 6)], term=1, vote=2)
    log.commit(batches(6, 7, 3), term=3, truncate_after=5)
    log.commit([batch(8, 3)])
    log.store.close()
    return files.contents()


def golden_compacted_disk() -> dict[str, bytes]:
    """Everything that the prefix's formats know: dead entries, and live ones with dead items."""
    files = MemoryFiles()
    log = Log(files, attrs.evolve(SMALL, compaction_dead_share=0.9))
    named = [["a", "map", 1, {}], "set", [["k1"]]]
    many = [1, "many", [["k2", "k3", "k4"]]]
    log.commit(
        [commands(1, 10, 3, named, many, [1, "set", [["k5"]]], [1, "remove", [["k5"]]])], term=1
    )
    ledger = Ledger(array("Q", [1, 3]), {2: 3}, array("Q", [3]), [], {1: 1}, [])
    records: dict[RecordKey, bytes | None] = {
        (3, 3): b"a session",
        (2, 1): b"the map",
        (1, 0): b"the core",
        (4, 0): b"members",
    }
    compacted(log.store, Frozen(4, 10, ledger, records, trim))
    log.commit(
        [commands(5, 1010, 5_000_000_000, *([1, "set", [[key]]] for key in ("k3", "k1", "k6")))]
    )
    ledger = Ledger(array("Q", [5, 6, 7]), {}, array("Q", [1]), [(2, 1)], {}, [])
    compacted(log.store, Frozen(7, 1010, ledger, {(1, 0): b"the core, later", (3, 3): None}, trim))
    log.store.trim(4)
    log.store.sweep()
    log.commit([commands(8, 1011, 3, [1, "set", [["k7"]]])])
    log.store.close()
    return files.contents()


def commands(first: int, time: int, session: int, *operations: list[Any]) -> Batch:
    payload = COMMANDS_HEADER.pack(session, 1, 0, 0) + pack(list(operations))
    return encode_batch(1, first, time, [Group(Kind.COMMANDS, len(operations), payload)])


def compacted(store: LogStore, frozen: Frozen) -> None:
    store.roll()
    compaction = store.compact([frozen])
    for _ in compaction.steps():
        pass
    store.install(compaction)


COMPACTED = (
    [(1, 0, b"the core, later"), (2, 1, b"the map")],
    [
        (2, 10, 3, 1, ["many", [["k2", "k3", "k4"]]], (0, 2)),
        (5, 1010, 5_000_000_000, 1, ["set", [["k3"]]], (0,)),
        (6, 1010, 5_000_000_000, 1, ["set", [["k1"]]], (0,)),
        (7, 1010, 5_000_000_000, 1, ["set", [["k6"]]], (0,)),
    ],
)
DISKS = {"log": golden_disk, "compacted": golden_compacted_disk}
FILES = [(disk, name) for disk, made in DISKS.items() for name in sorted(made())]


def as_text(data: bytes) -> str:
    """Hex, sixteen bytes a line, with runs of zeros left out: to be read in a diff."""
    lines = []
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        if line.strip(b"\0"):
            lines.append(f"{at:06x}  {line.hex(' ')}\n")
    return "".join(lines) + f"{len(data):06x}  end\n"


def as_bytes(path: Path) -> bytes:
    *lines, end = path.read_text().splitlines()
    data = bytearray(int(end.split()[0], 16))
    for line in lines:
        at, _, hexes = line.partition("  ")
        data[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(hexes)
    return bytes(data)


def golden(disk: str) -> dict[str, bytes]:
    """Return the files of a disk as they are kept."""
    root = GOLDEN / disk
    return {
        str(path.relative_to(root).with_suffix("")): as_bytes(path) for path in root.rglob("*.hex")
    }


@pytest.mark.parametrize(("disk", "name"), FILES)
def test_the_format_is_as_it_was(disk: str, name: str, rewrite: bool) -> None:
    """A change here is a change of format: it needs a new version number and a way to read both."""
    path = GOLDEN / disk / f"{name}.hex"
    found = as_text(DISKS[disk]()[name])
    if rewrite:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert set(FILES) == {(disk, name) for disk in DISKS for name in golden(disk)}


def test_the_golden_files_open() -> None:
    log = Log(MemoryFiles(golden("log")))
    assert log.all() == [batch(1, count=3), *batches(4, 5), *batches(6, 8, 3)]
    assert log.store.hard_state == HardState(3, None)
    assert log.store.identity == OWNER
    assert log.store.recovered.torn_tail is None


def test_the_golden_prefix_opens() -> None:
    store = Log(MemoryFiles(golden("compacted"))).store
    assert (store.start, store.compaction) == (Point(4, 1, 10), Point(7, 1, 1010))
    assert [one.first_index for one in store.batches()] == [5, 8]
    source = store.prefix.read_back()
    assert contents(source) == COMPACTED
    assert source.configuration == b"members"


def test_a_manifest_of_version_1_is_read_and_replaced_by_one_of_version_2() -> None:
    """Data directories of 0.1 are opened: they have neither points nor prefix files."""
    old = as_bytes(GOLDEN / "MANIFEST-version-1.hex")
    files = MemoryFiles(golden("log") | {"MANIFEST": old})
    assert manifest.decode_manifest(old) == manifest.decode_manifest(golden("log")["MANIFEST"])
    log = Log(files)
    assert log.store.last_index == 8
    log.store.roll()
    assert files.contents()["MANIFEST"][8] == 2
    assert Log(MemoryFiles(files.contents())).all() == log.all()


STATE = PrefixFileEntry(FileKind.STATE, 9, 1, 20, 500, 1)
ITEMS = PrefixFileEntry(FileKind.ITEMS, 7, 3, 20, 500, 1)
LOG = (SegmentEntry(1, 11, 20, 600, 9), SegmentEntry(2, 21, 30, 600, 9), SegmentEntry(3, 31))


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ((), "no segment"),
        ((SegmentEntry(1, 2),), "does not follow index 0"),
        ((SegmentEntry(1, 1, 5, 600, 9),), "is sealed"),
        ((SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(1, 6)), "listed twice"),
        ((SegmentEntry(1, 1), SegmentEntry(2, 6)), "is not sealed"),
        ((SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(2, 5)), "does not follow index 5"),
        ((SegmentEntry(1, 1, 5, 600, 9), SegmentEntry(2, 7)), "does not follow index 5"),
        ((SegmentEntry(1, 1, 0, 600, 9), SegmentEntry(2, 1)), "is not sealed"),
    ],
)
def test_a_manifest_checks_its_segments(entries: tuple[SegmentEntry, ...], wrong: str) -> None:
    made = Manifest(OWNER.cluster_id, 7, b"", entries)
    assert wrong in made.check()
    with pytest.raises(AssertionError, match=wrong):
        manifest.encode_manifest(made)


@pytest.mark.parametrize(
    ("start", "index", "files", "wrong"),
    [
        (10, 20, (), "no files for index 20"),
        (10, 30, (STATE,), "is not the state of index 30"),
        (10, 20, (ITEMS, STATE), "is not the state of index 20"),
        (10, 25, (attrs.evolve(STATE, last_index=25),), "ends at 25, where no segment does"),
        (10, 5, (attrs.evolve(STATE, last_index=5),), "starts behind 10, the prefix ends at 5"),
        (10, 0, (), "starts behind 10, the prefix ends at 0"),
        (10, 20, (STATE, STATE), "items file"),
        (10, 20, (STATE, attrs.evolve(ITEMS, last_index=21)), "items file"),
        (10, 20, (STATE, attrs.evolve(ITEMS, first_index=0)), "items file"),
        (10, 20, (STATE, attrs.evolve(ITEMS, last_index=2)), "items file"),
        (10, 20, (STATE, ITEMS, attrs.evolve(ITEMS, file_id=8)), "behind index 20"),
        (10, 20, (STATE, attrs.evolve(ITEMS, file_id=9)), "listed twice"),
    ],
)
def test_a_manifest_checks_its_prefix(
    start: int, index: int, files: tuple[PrefixFileEntry, ...], wrong: str
) -> None:
    made = Manifest(OWNER.cluster_id, 7, b"", LOG, Point(index, 1, 0), Point(start, 1, 0), files)
    assert wrong in made.check()
    with pytest.raises(AssertionError):
        manifest.encode_manifest(made)


def test_a_manifest_without_a_prefix_lists_no_prefix_files() -> None:
    made = Manifest(OWNER.cluster_id, 7, b"", (SegmentEntry(1, 1),), files=(STATE,))
    assert "without a prefix" in made.check()


def test_a_manifest_that_is_right_comes_back() -> None:
    for index in (10, 20, 30):
        state, items = attrs.evolve(STATE, last_index=index), attrs.evolve(ITEMS, last_index=9)
        made = Manifest(
            OWNER.cluster_id,
            7,
            b"b",
            LOG,
            Point(index, 2, 5),
            Point(10, 1, 4),
            (state, items),
            3,
            b"a restore's name",
        )
        assert manifest.decode_manifest(manifest.encode_manifest(made)) == made


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
    state = attrs.evolve(STATE, last_index=10)
    made = Manifest(OWNER.cluster_id, 7, b"boot", LOG, Point(10, 2, 3), Point(10, 2, 3), (state,))
    whole = manifest.encode_manifest(made)
    at = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(at, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=20)) + whole[stop:]
    if damaged != whole:
        with pytest.raises(StorageError):
            manifest.decode_manifest(damaged)


def test_segment_names_sort_as_their_ids_do() -> None:
    names = [segment_name(number) for number in (1, 9, 10, 99, 100, 12345)]
    assert names == sorted(names)
