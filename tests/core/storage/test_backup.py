"""A backup's file: what went in comes out, and no cut, no flipped bit and no crash goes unseen."""

import contextlib
import random
import re
import struct
import zlib
from pathlib import Path
from random import Random

import pytest

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt, StorageError, StorageFull
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.backup import Backup, BackupResource, BackupWriter, Description
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from folkmoot.transport.codec import pack
from tests.core.storage.history import Compactor, Contents, History, contents, equal, small_steps
from tests.core.storage.support import Write, open_log
from tests.core.storage.test_format import as_text

RESOURCES = (BackupResource(3, "a", "map", 1, 7, 900), BackupResource(9, "b", "lock", 1, 0, 20))
NAME, PARTIAL = "backup", "backup.partial"


class SmallHistory(History):
    """One whose records are small, as each byte of the file is a case of its own."""

    def record(self) -> None:
        self.records[2, 5] = self.changed[2, 5] = self.rng.randbytes(20)


def archived(seed: int = 3) -> tuple[Archive, Contents]:
    """A prefix of several items files, of several blocks each."""
    files = MemoryFiles()
    store = open_log(files)
    store.write([Write(1, HardState(1, None))])
    compactor = Compactor(store, Random(seed))
    compactor.history = SmallHistory(compactor.history.rng, keys=4000)
    compactor.number = 1
    with small_steps():
        for _ in range(3):
            compactor.write(6)
            compactor.compact()
    archive = store.archive()
    assert archive is not None
    assert len(archive.table.files) > 2, "a state file and several of items"
    return archive, compactor.history.expected()


def write(files: MemoryFiles, archive: Archive) -> None:
    writer = BackupWriter(files, PARTIAL, archive.encoded)
    for number, one in enumerate(archive.table.files):
        for offset in range(0, one.entry.end, 333):
            writer.append(number, archive.read(number, offset, 333))
    writer.finish(NAME, "2026-01-02T03:04:05Z", "a test", 4, RESOURCES)


@pytest.fixture(scope="module")
def saved() -> tuple[bytes, Archive, Contents]:
    archive, expected = archived()
    files = MemoryFiles()
    write(files, archive)
    return files.contents()[NAME], archive, expected


def read(data: bytes) -> Backup:
    """Open and verify."""
    backup = Backup.open(MemoryFiles({NAME: data}), NAME)
    for _ in backup.verify():
        pass
    return backup


def test_what_went_in_comes_out(saved: tuple[bytes, Archive, Contents]) -> None:
    data, archive, expected = saved
    backup = read(data)
    assert (backup.table, backup.id, backup.size_bytes) == (archive.table, archive.id, len(data))
    found = backup.description()
    assert (found.made_at, found.made_by) == ("2026-01-02T03:04:05Z", "a test")
    assert (found.sessions, found.resources, found.entries) == (4, RESOURCES, 7)
    assert equal(contents(backup.source()), expected)
    for number, one in enumerate(archive.table.files):
        assert b"".join(backup.read_file(number)) == archive.read(number, 0, one.entry.end)


def test_what_was_written_is_read_back_before_it_has_a_name() -> None:
    archive, expected = archived()
    files = MemoryFiles()
    writer = BackupWriter(files, PARTIAL, archive.encoded)
    for number, one in enumerate(archive.table.files):
        writer.append(number, archive.read(number, 0, one.entry.end))
    assert equal(contents(writer.source()), expected)
    assert files.list() == [PARTIAL]


def test_a_backup_cut_short_anywhere_is_found_out(saved: tuple[bytes, Archive, Contents]) -> None:
    data, _, _ = saved
    for size_bytes in range(len(data)):
        with pytest.raises(StorageCorrupt, match=r"memory:backup at offset \d+"):
            read(data[:size_bytes])
    with pytest.raises(StorageCorrupt, match="more behind its end"):
        read(data + b"\0")


def test_a_flipped_bit_anywhere_is_found_out_and_placed(
    saved: tuple[bytes, Archive, Contents],
) -> None:
    data, archive, _ = saved
    first = len(data) - len(data[struct.calcsize("<8sIII") + len(archive.encoded) :])
    rng = Random(1)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises(StorageCorrupt) as caught:
            read(bytes(damaged))
        place = re.search(r"memory:backup at offset (\d+)", str(caught.value))
        assert place is not None
        if first <= at < first + archive.table.size_bytes:  # in a file: at most a block before
            assert 0 <= at - int(place[1]) < 2000, f"{at}: {caught.value}"
            assert "file" in str(caught.value)


def test_another_version_is_refused_by_its_number(saved: tuple[bytes, Archive, Contents]) -> None:
    data, _, _ = saved
    head = data[:8] + struct.pack("<I", 2) + data[12:16]
    with pytest.raises(StorageError, match="format version 2, this program knows 1"):
        read(head + struct.pack("<I", zlib.crc32(head)) + data[20:])


@pytest.mark.parametrize("data", [b"", b"F", b"PK\x03\x04" + bytes(99), b"FMMANIFE" + bytes(99)])
def test_what_is_no_backup_is_told_so(data: bytes) -> None:
    with pytest.raises(StorageCorrupt, match="this is no backup"):
        read(data)


def test_a_table_that_is_none_is_refused_before_anything_is_written() -> None:
    files = MemoryFiles()
    with pytest.raises(RemoteProtocolError):
        BackupWriter(files, PARTIAL, b"\x93\x01\x02\x03")
    assert files.list() == []


@pytest.mark.parametrize("fields", [[1], ["", "", 0, [], [7]], ["", "", 0, [[1]], []], 7])
def test_a_description_of_other_fields_is_refused(fields: object) -> None:
    with pytest.raises(ValueError, match="description"):
        Description.decode(pack(fields))


def test_a_power_cut_leaves_a_whole_backup_or_none() -> None:
    archive, _ = archived()
    rng = random.Random(5)
    files = MemoryFiles()
    write(files, archive)
    seen = set()
    for number in range(1, files.operations + 2):
        for survive in (0.0, 0.5, 1.0):
            disk = MemoryFiles()
            disk.cut_power_at = number
            with contextlib.suppress(PowerCut):
                write(disk, archive)
            disk.crash(rng, survive)
            seen.add(NAME in disk.list())
            if NAME in disk.list():
                read(disk.contents()[NAME])
    assert seen == {False, True}


def test_a_backup_that_is_there_stays_until_another_is_whole() -> None:
    archive, _ = archived()
    files = MemoryFiles({NAME: b"older"})
    files.fail("sync")
    with pytest.raises(StorageError):
        write(files, archive)
    assert files.contents()[NAME] == b"older"


def test_a_full_disk_is_told() -> None:
    archive, _ = archived()
    files = MemoryFiles()
    files.capacity_bytes = archive.table.size_bytes // 2
    with pytest.raises(StorageFull):
        write(files, archive)
    assert files.list() == [PARTIAL]


def test_a_backup_of_version_1_is_read(rewrite: bool) -> None:
    """It was written once and is kept: whatever changes, backups of this version are readable."""
    path = Path(__file__).parents[2] / "golden" / "backup" / "version-1.hex"
    if rewrite:
        archive, _ = archived(seed=11)
        files = MemoryFiles()
        write(files, archive)
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_text(files.contents()[NAME]))
    backup = read(from_text(path.read_text()))
    assert backup.description().resources == RESOURCES
    records, entries = contents(backup.source())
    assert (len(records), len(entries), entries[0][0]) == (2, 26, 29)


def from_text(text: str) -> bytes:
    *lines, end = text.splitlines()
    data = bytearray(int(end.split()[0], 16))
    for line in lines:
        at, _, hexes = line.partition("  ")
        data[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(hexes)
    return bytes(data)
