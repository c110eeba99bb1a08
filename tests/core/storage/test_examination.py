"""Looking at a directory: everything that is damaged is found, and nothing is changed."""

from __future__ import annotations

import contextlib
from random import Random

import pytest

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.storage.examination import Examination, examine, size_bytes_of
from folkmoot.core.storage.log_store import HardState, Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.types import NodeId
from tests.core.storage.history import Compactor, small_steps
from tests.core.storage.support import OWNER, SMALL, Write, batches, open_log


def directory(*, is_closed: bool = True) -> MemoryFiles:
    """A prefix of several files, sealed segments that it speaks for and some behind it."""
    files = MemoryFiles()
    store = open_log(files)
    store.write([Write(1, HardState(1, 7))])
    compactor = Compactor(store, Random(5), keys=300)
    compactor.number = 1
    with small_steps():
        for _ in range(2):
            compactor.write(12)
            compactor.compact()
        compactor.write(40)
    if is_closed:
        store.close()
    return files


def seen(files: MemoryFiles) -> Examination:
    *_, last = examine(files)
    return last


def copied(files: MemoryFiles) -> MemoryFiles:
    return MemoryFiles(files.contents())


def test_a_healthy_directory_is_told_as_it_is() -> None:
    files = directory()
    before, operations = files.contents(), files.operations
    found = seen(files)
    assert (files.contents(), files.operations) == (before, operations), "it only reads"
    store = open_log(files)
    assert found.findings == []
    assert found.hard_state == HardState(1, 7)
    assert found.manifest is not None
    assert found.manifest.compaction == store.compaction
    assert [one.entries for one in found.segments][-1] > 0
    last = found.segments[-1].segment
    assert last is not None
    assert last.last_index == store.last_index
    assert [one.is_sealed for one in found.segments] == [True] * (len(found.segments) - 1) + [False]
    source = store.prefix.read_back()
    records = len(list(source.records()))
    assert [found.files[0].records, found.files[0].live] == [records, None]
    live = sum(len(items.indexes) for items in source.items())
    assert sum(one.live or 0 for one in found.files) == live
    assert sum(one.live_bytes or 0 for one in found.files) <= sum(
        one.total_bytes or 0 for one in found.files
    )
    assert [one.entry.last_index for one in found.trimmable][-1] == store.compaction.index
    assert found.read_bytes == size_bytes_of(files)


def test_a_flipped_bit_is_found_wherever_recovery_finds_it() -> None:
    """The examination and recovery agree on what is damage, at every 61st byte of every file."""
    healthy = directory()
    rng = Random(2)
    verdicts = {True: 0, False: 0}
    for name, data in healthy.contents().items():
        used = len(data.rstrip(b"\0"))
        for at in range(rng.randrange(61), used, 61):
            files = copied(healthy)
            files.flip_bit(name, at, rng.randrange(8))
            found = seen(files)
            refused = refuses(files)
            verdicts[refused] += 1
            assert found.is_damaged == refused, f"{name} at {at}: {found.findings}"
            if refused:
                one = found.findings[0]
                assert one.file == name
                assert one.offset <= at
    assert min(verdicts.values()) > 0


def refuses(files: MemoryFiles) -> bool:
    """Whether a server would refuse to start: reading the prefix, too."""
    files = copied(files)
    try:
        store = LogStore.open(files, SMALL, OWNER)
        source = store.prefix.read_back()
        list(source.records())
        list(source.items())
    except StorageError:
        return True
    return False


def test_all_damage_is_listed_not_only_the_first() -> None:
    files = directory()
    contents = files.contents()
    damaged = ["hard_state", *sorted(n for n in contents if n.startswith("prefix/"))]
    damaged += sorted(n for n in contents if n.startswith("log/"))[:2]
    for name in damaged:
        files.flip_bit(name, 700 if name.startswith("log/") else 200 if "/" in name else 40, 3)
    files.flip_bit("hard_state", 4096 + 40, 3)
    found = {one.file for one in seen(files).findings if one.is_damage}
    assert found == set(damaged)


def test_a_missing_file_is_damage_and_the_others_are_still_read() -> None:
    files = directory()
    names = sorted(name for name in files.contents() if "/" in name)
    files.unlink(names[0])
    files.unlink(names[-1])
    found = seen(files)
    assert {one.file for one in found.findings if "cannot open" in one.what} >= {
        names[0],
        names[-1],
    }
    assert any(one.segment is not None for one in found.segments)


def test_without_a_manifest_the_segments_are_read_all_the_same() -> None:
    files = directory()
    whole = seen(files)
    files.flip_bit("MANIFEST", 20)
    found = seen(files)
    assert [one.file for one in found.findings] == ["MANIFEST"]
    assert found.manifest is None
    assert [one.entries for one in found.segments] == [one.entries for one in whole.segments]


def test_a_torn_tail_is_repairable_and_no_damage() -> None:
    files = directory(is_closed=False)
    name = max(name for name in files.contents() if name.startswith("log/"))
    data = files.contents()[name]
    used = len(data.rstrip(b"\0"))
    files.truncate(name, used - 30)
    files.extend(name, len(data))
    found = seen(files)
    (one,) = found.findings
    assert (one.file, one.is_damage, found.is_damaged) == (name, False, False)
    assert "torn tail" in one.what
    torn = open_log(copied(files)).recovered.torn_tail
    assert torn is not None
    assert torn.offset == one.offset


def test_a_slot_that_does_not_verify_is_repairable() -> None:
    files = directory()
    files.flip_bit("hard_state", 30)
    found = seen(files)
    assert [(one.file, one.offset, one.is_damage) for one in found.findings] == [
        ("hard_state", 0, False)
    ]
    assert found.hard_state == HardState(1, 7)


def test_a_hard_state_of_an_earlier_term_is_damage() -> None:
    files = MemoryFiles()
    store = open_log(files)
    store.write([Write(1, HardState(1))])
    early = files.contents()["hard_state"]
    store.write([Write(2, HardState(3), batches=batches(1, 3, 3))])
    store.close()
    found = seen(MemoryFiles({**files.contents(), "hard_state": early}))
    assert ["the log has an entry of term 3" in one.what for one in found.findings] == [True]


def test_another_members_files_are_told() -> None:
    files, other = directory(), MemoryFiles()
    LogStore.open(other, SMALL, Identity(b"cluster-of-tests", NodeId(8), b"")).close()
    mixed = {**files.contents(), "hard_state": other.contents()["hard_state"]}
    first, second = seen(MemoryFiles(mixed)).findings
    assert "node 8" in first.what
    assert "an entry of term 1" in second.what, "and its term is another's, too"


def test_what_a_running_server_replaces_meanwhile_is_no_finding() -> None:
    files = directory()
    steps = examine(files)
    next(steps)
    store = open_log(files)
    compactor = Compactor(store, Random(1))
    compactor.number = 100
    compactor.history.index = store.last_index
    compactor.history.time = 10**9
    compactor.write(5)
    with contextlib.suppress(StorageCorrupt):
        store.trim(store.compaction.index)
        store.sweep()
    *_, found = steps
    assert found.findings == []


@pytest.mark.parametrize("name", ["MANIFEST", "hard_state"])
def test_an_empty_file_is_damage(name: str) -> None:
    files = directory()
    files.unlink(name)
    files.create(name)
    found = seen(files)
    assert found.findings[0].file == name
    assert found.is_damaged
