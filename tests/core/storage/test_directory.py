"""The real disk: modes, handles, errors of the operating system, and one process per directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import DirectoryLocked, StorageError, StorageFull
from folkmoot.core.storage.files import DirectoryFiles
from tests.core.storage.support import OWNER, Log, batches, open_log

HOLDER = """
import sys
from folkmoot.core.storage.files import DirectoryFiles
DirectoryFiles(sys.argv[1]).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_bug_f10_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    open_log(DirectoryFiles(tmp_path)).close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(DirectoryLocked) as caught:
            open_log(DirectoryFiles(tmp_path))
        said = str(caught.value)
        assert f"{tmp_path} is held by pid {holder.pid} on {os.uname().nodename} since 20" in said
        holder.kill()
        holder.wait()
    # The lock goes with the process, however it ends.
    open_log(DirectoryFiles(tmp_path)).close()


def test_bug_f10_the_same_process_cannot_open_it_twice_either(tmp_path: Path) -> None:
    store = open_log(DirectoryFiles(tmp_path))
    with pytest.raises(DirectoryLocked, match=f"held by pid {os.getpid()} "):
        open_log(DirectoryFiles(tmp_path))
    store.close()
    open_log(DirectoryFiles(tmp_path)).close()


def test_a_refused_opening_gives_the_lock_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="an identity is needed"):
        open_log(DirectoryFiles(tmp_path), identity=None)
    open_log(DirectoryFiles(tmp_path)).close()


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    log = Log(DirectoryFiles(tmp_path / "data"))
    log.commit(batches(1, 60, size_bytes=200), term=1)
    log.store.close()
    found = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "data").rglob("*")}
    assert {mode for path, mode in found.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in found.items() if path.is_dir()} == {0o700}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    names = {path.name for path in found if path.is_file()}
    assert {"LOCK", "MANIFEST", "hard_state", "0000000001.seg"} <= names


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = handles()
    log = Log(DirectoryFiles(tmp_path))
    for index in range(1, 200):
        log.commit(batches(index, index, size_bytes=200), term=1)
    log.commit(truncate_after=100)
    assert handles() <= before + 4, "one per sealed segment?"
    log.store.close()
    assert handles() == before


def test_a_segment_is_really_allocated(tmp_path: Path) -> None:
    store = open_log(DirectoryFiles(tmp_path), StorageConfig(segment_bytes=1 << 20))
    allocated = (tmp_path / "log" / "0000000001.seg").stat().st_blocks * 512
    assert allocated >= 1 << 20
    store.close()


def test_a_path_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"data directory {tmp_path}/file: File exists"):
        DirectoryFiles(tmp_path / "file")


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    log = Log(DirectoryFiles(tmp_path))
    log.commit(batches(1, 3), term=1)
    log.store.close()
    assert Log(DirectoryFiles(tmp_path)).all() == batches(1, 3)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_error_of_the_system_names_the_file_and_the_offset(tmp_path: Path) -> None:
    files = DirectoryFiles(tmp_path)
    for call in (
        lambda: files.read("nothing", 7),
        lambda: files.write("nothing", 7, b"x"),
        lambda: files.sync("nothing"),
        lambda: files.size("nothing"),
        lambda: files.truncate("nothing", 1),
        lambda: files.unlink("nothing"),
        lambda: files.rename("nothing", "else"),
        lambda: files.sync_dir("nothing"),
    ):
        with pytest.raises(StorageError, match=f"{tmp_path}/nothing.*No such file"):
            call()
    files.create("one")
    files.release("one")
    with pytest.raises(StorageError, match=f"cannot create {tmp_path}/one: File exists"):
        files.create("one")
    assert files.list("nothing") == []
    files.close()


@pytest.mark.faults
def test_bug_f6_a_full_disk_for_real(tmp_path: Path) -> None:
    """A file system of one MiB: the write that does not fit is short first, then refused."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        log = Log(DirectoryFiles(tmp_path / "data"))
        log.commit(batches(1, 3), term=1)
        with pytest.raises(StorageFull, match=f"at offset .* of {tmp_path}/data/log/.*free space"):
            log.commit(batches(4, 9, size_bytes=400_000))
        with pytest.raises(StorageFull):
            log.store.sync()
        log.store.close()
        log = Log(DirectoryFiles(tmp_path / "data"))
        assert log.all()[:3] == batches(1, 3)
        assert log.store.identity == OWNER
        log.store.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
