"""The faulty disk itself: what it promises, and that it does lose what it may."""

from __future__ import annotations

import random

import pytest

from folkmoot.core.errors import DirectoryLocked, StorageError, StorageFull
from folkmoot.core.storage.memory import MemoryFiles, PowerCut


def durable_disk() -> MemoryFiles:
    files = MemoryFiles()
    files.create("a", 10)
    files.write("a", 0, b"durable")
    files.sync("a")
    files.sync_dir()
    return files


def outcomes(files: MemoryFiles, name: str = "a", seeds: int = 300) -> set[bytes | None]:
    """What the file may be after a crash."""
    import copy

    found: set[bytes | None] = set()
    for seed in range(seeds):
        disk = copy.deepcopy(files)
        disk.crash(random.Random(seed))
        found.add(disk.contents().get(name))
    return found


def test_synced_bytes_stay() -> None:
    assert outcomes(durable_disk()) == {b"durable\0\0\0"}


def test_unsynced_writes_are_lost_or_torn_in_any_order() -> None:
    files = durable_disk()
    files.write("a", 0, b"XY")
    files.write("a", 8, b"Z")
    found = outcomes(files)
    assert {b"durable\0\0\0", b"XYrable\0\0\0", b"durable\0Z\0", b"XYrable\0Z\0"} <= found
    assert b"Xurable\0\0\0" in found, "torn within a write"


def test_blocks_of_one_write_reach_the_disk_out_of_order() -> None:
    files = MemoryFiles()
    files.create("a", 1536)
    files.sync("a")
    files.sync_dir()
    files.write("a", 0, b"\1" * 512 + b"\2" * 512 + b"\3" * 512)
    found = outcomes(files)
    assert bytes(1024) + b"\3" * 512 in found
    assert b"\1" * 512 + bytes(512) + b"\3" * 512 in found


def test_an_unsynced_growth_or_cut_may_be_lost() -> None:
    files = durable_disk()
    files.extend("a", 12)
    assert outcomes(files) == {b"durable\0\0\0", b"durable" + bytes(5)}
    files = durable_disk()
    files.truncate("a", 3)
    assert files.contents()["a"] == b"dur"
    assert outcomes(files) == {b"durable\0\0\0", b"dur"}
    files.extend("a", 5)
    assert files.contents()["a"] == b"dur\0\0"


def test_a_new_name_may_be_lost_and_a_removed_one_come_back() -> None:
    files = durable_disk()
    files.create("b")
    files.sync("b")
    assert outcomes(files, "b") == {None, b""}
    files.unlink("a")
    assert outcomes(files) == {None, b"durable\0\0\0"}
    files.sync_dir("log")
    assert outcomes(files, "b") == {None, b""}, "that was another directory"
    files.sync_dir()
    assert outcomes(files, "b") == {b""}
    assert outcomes(files) == {None}


def test_a_rename_is_atomic_and_not_durable() -> None:
    files = durable_disk()
    files.create("new")
    files.write("new", 0, b"newer")
    files.sync("new")
    files.sync_dir()
    files.rename("new", "a")
    assert files.contents() == {"a": b"newer"}
    for seed in range(50):
        files.rename("a", "b")
        files.rename("b", "a")
        files.crash(random.Random(seed), survive=0.0)
        assert files.contents() == {"a": b"durable\0\0\0", "new": b"newer"}
        files.rename("new", "a")


def test_a_killed_process_loses_nothing() -> None:
    files = durable_disk()
    files.write("a", 0, b"XY")
    files.create("b", 3)
    files.crash(random.Random(1), survive=1.0)
    assert files.contents() == {"a": b"XYrable\0\0\0", "b": bytes(3)}


def test_the_power_goes_at_an_operation_and_stays_away() -> None:
    files = durable_disk()
    files.cut_power_at = files.operations + 2
    files.write("a", 0, b"X")
    with pytest.raises(PowerCut, match="sync 'a'"):
        files.sync("a")
    with pytest.raises(PowerCut):
        files.write("a", 0, b"Y")
    with pytest.raises(PowerCut):
        files.read("a")
    files.crash(random.Random(1), survive=0.0)
    assert files.read("a") == b"durable\0\0\0"
    files.write("a", 0, b"Y")


def test_the_nth_call_fails_once() -> None:
    files = durable_disk()
    files.fail("write", 2, StorageError("the second"))
    files.write("a", 0, b"1")
    with pytest.raises(StorageError, match="the second"):
        files.write("a", 0, b"2")
    files.write("a", 0, b"3")
    assert files.read("a", 0, 1) == b"3"


def test_a_full_disk_takes_what_fits() -> None:
    files = durable_disk()
    files.capacity_bytes = 12
    files.write("a", 2, b"RA")
    with pytest.raises(StorageFull, match="10 of 12 bytes used, 5 more needed"):
        files.write("a", 9, b"123456")
    assert files.read("a") == b"duRAble\0\x001"
    with pytest.raises(StorageFull):
        files.create("b", 3)


def test_one_log_at_a_time() -> None:
    files = durable_disk()
    files.lock()
    with pytest.raises(DirectoryLocked):
        files.lock()
    files.close()
    files.lock()
    files.crash(random.Random(1))
    files.lock()


def test_preallocated_space_takes_no_memory() -> None:
    files = MemoryFiles()
    files.create("a", 1 << 40)
    files.write("a", 10, b"x")
    assert files.size("a") == 1 << 40
    assert files.read("a", 8, 5) == b"\0\0x\0\0"
    assert files.read("a", (1 << 40) - 2, 5) == b"\0\0"


def test_a_flipped_bit_stays_and_leaves_the_size_alone() -> None:
    files = durable_disk()
    files.flip_bit("a", 0, 3)
    files.flip_bit("a", 9, 7)
    assert outcomes(files) == {b"lurable\0\0\x80"}


def test_the_same_seed_gives_the_same_crash() -> None:
    def disk(seed: int) -> dict[str, bytes]:
        files = durable_disk()
        for at in range(20):
            files.write("a", at % 7, bytes([at] * (at % 5)))
            files.create(f"f{at}", at)
        files.crash(random.Random(seed))
        return files.contents()

    assert disk(5) == disk(5)
    assert len({repr(disk(seed)) for seed in range(20)}) >= 8
