"""`folkmoot snapshot` without servers: from a directory, looked at, restored, and refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from folkmoot.cli import app, snapshot_restore
from folkmoot.cli.exits import ExitCode
from folkmoot.core.errors import StorageFull
from folkmoot.core.storage.backup import BackupWriter
from folkmoot.core.storage.files import DirectoryFiles
from folkmoot.core.storage.log_store import LogStore
from tests.cli.directories import contents, small_cluster, write_directory
from tests.core.members import STORAGE

MEMBER = "1=127.0.0.1:7999,127.0.0.1:7998"
MACHINES = ("--machine", "tests.core.shelf:Shelf", "--machine", "tests.core.shelf:Tally")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "node-1", small_cluster())


@pytest.fixture
def saved(directory: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = directory.parent / "backup"
    assert app.run(["snapshot", "save", str(path), "--data", str(directory)]) == 0
    capsys.readouterr()
    return path


def restore(saved: Path, directory: Path, *more: str) -> int:
    where = ["--data-dir", str(directory), "--member", MEMBER, "--cluster", "new"]
    return app.run(["snapshot", "restore", str(saved), *where, *more])


def test_a_stopped_members_prefix_is_saved_and_what_is_missing_is_told(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory.parent / "backup"
    before = {name: found for name, found in contents(directory).items() if name != "LOCK"}
    assert app.run(["snapshot", "save", str(path), "--data", str(directory)]) == 0
    captured = capsys.readouterr()
    file, index, _ = captured.out.rstrip().split("\t")
    assert file == str(path)
    assert (
        f"the log behind index {index} (3 entries, committed or not) is not in it" in captured.err
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    after = {name: found for name, found in contents(directory).items() if name != "LOCK"}
    assert after == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["backup", "node-1"]


def test_what_is_in_it_is_shown(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["snapshot", "inspect", str(saved), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {one["name"]: one for one in found["resources"]}
    assert by_name["shelf"]["entries"] == 9
    assert (by_name["tally"]["type"], by_name["tally"]["entries"]) == ("tally", 1)
    assert all(one["size_bytes"] > 0 for one in by_name.values())
    assert (found["sessions"], found["epoch"]) == (1, 0)
    assert found["cluster_id"] == b"cluster-of-tests".hex()
    assert found["size_bytes"] == saved.stat().st_size
    assert app.run(["snapshot", "inspect", str(saved)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"index\t{found['index']}" in lines
    assert [line.split("\t")[:3] for line in lines if line.startswith("resource\t")] == [
        ["resource", one["name"], one["type"]] for one in found["resources"]
    ]


def test_a_directory_is_made_of_it_for_its_configuration_only(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = saved.parent / "new"
    assert restore(saved, directory, *MACHINES, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["epoch"], made["resources"], made["sessions_ended"]) == (1, 2, 1)
    assert made["index"] > 1_000_000_000
    assert sorted(one.name for one in directory.iterdir()) == [
        *("LOCK", "MANIFEST", "hard_state", "log", "prefix"),
    ]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    store = LogStore.open(DirectoryFiles(directory), STORAGE, None)
    assert store.identity.cluster_id.hex() == made["cluster_id"] != b"cluster-of-tests".hex()
    store.close()
    assert app.run(["log", "verify", str(directory)]) == 0
    assert not directory.with_name("new.restoring").exists()


def test_it_is_the_same_again_and_another_with_another_bump(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = []
    for number, bump in enumerate((1000, 1000, 2000)):
        directory = saved.parent / f"new-{number}"
        assert restore(saved, directory, *MACHINES, "--json", "--bump", str(bump)) == 0
        ids.append(json.loads(capsys.readouterr().out)["cluster_id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_file_that_is_there_is_replaced_only_by_force(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved.read_bytes()
    data = str(saved.parent / "node-1")
    assert app.run(["snapshot", "save", str(saved), "--data", data]) == ExitCode.USAGE
    assert "--force replaces it" in capsys.readouterr().err
    assert saved.read_bytes() == before
    assert app.run(["snapshot", "save", str(saved), "--data", data, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["save", "{0}/none/file", "--data", "{0}/node-1"], "is no directory"),
        (["save", "{0}", "--data", "{0}/node-1"], "is a directory; name a file"),
        (["save", "{0}/x", "--data", "{0}/none"], "is no data directory: it has no MANIFEST"),
        (["inspect", "{0}/none"], "is no file"),
        (["inspect", "{0}/node-1"], "is no file"),
        (["restore", "{0}/backup"], "no members"),
        (["restore", "{0}/backup", "--member", MEMBER], "no data_dir"),
        (["restore", "{0}/none", "--member", MEMBER, "--data-dir", "{0}/new"], "is no file"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    arguments: list[str], said: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [one.format(saved.parent) for one in arguments]
    assert app.run(["snapshot", *filled]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert said in captured.err
    assert sorted(one.name for one in saved.parent.iterdir()) == ["backup", "node-1"]


def test_a_directory_that_holds_something_is_left_alone(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = saved.parent / "node-1"
    before = contents(member)
    assert restore(saved, member, *MACHINES) == ExitCode.USAGE
    assert "holds a member's data already" in capsys.readouterr().err
    assert contents(member) == before
    other = saved.parent / "other"
    other.mkdir()
    (other / "letter").write_text("mine")
    assert restore(saved, other, *MACHINES) == ExitCode.USAGE
    assert "is not empty, it has letter" in capsys.readouterr().err
    (other / "letter").unlink()
    assert restore(saved, other, *MACHINES) == 0, "an empty one is good"


def test_a_type_that_nobody_serves_is_told_before_anything_is_written(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(saved, saved.parent / "new", *MACHINES[:2]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "'tally'" in error
    assert "--machine" in error
    assert sorted(one.name for one in saved.parent.iterdir()) == ["backup", "node-1"]


@pytest.mark.parametrize("command", ["inspect", "restore"])
@pytest.mark.parametrize("at", [3, 30, 900, -40, -1])
def test_damage_is_told_with_its_offset_and_nothing_is_made(
    command: str, at: int, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(saved.read_bytes())
    data[at] ^= 1
    saved.write_bytes(data)
    if command == "inspect":
        code = app.run(["snapshot", "inspect", str(saved)])
    else:
        code = restore(saved, saved.parent / "new", *MACHINES)
    assert code == ExitCode.STORAGE
    captured = capsys.readouterr()
    assert f"{saved} at offset " in captured.err
    assert captured.out == ""
    assert not (saved.parent / "new").exists()


def test_a_disk_without_room_for_the_file_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DirectoryFiles, "free_bytes", lambda _: 1000)
    path = directory.parent / "backup"
    assert app.run(["snapshot", "save", str(path), "--data", str(directory)]) == ExitCode.STORAGE
    error = capsys.readouterr().err
    assert "and 1000 are free there" in error
    assert "name another place" in error
    assert [one.name for one in path.parent.iterdir()] == ["node-1"]


def test_a_disk_that_fills_up_while_it_is_written_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("no space left on device")

    path = directory.parent / "backup"
    monkeypatch.setattr(BackupWriter, "append", full)
    assert app.run(["snapshot", "save", str(path), "--data", str(directory)]) == ExitCode.STORAGE
    assert f"{path} cannot be written: no space left" in capsys.readouterr().err
    assert [one.name for one in path.parent.iterdir()] == ["node-1"]


def test_a_restore_that_fails_leaves_nothing_and_what_a_crash_left_is_cleared(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = saved.parent / "new"

    def full(*_: object) -> None:
        raise StorageFull("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshot_restore, "write_directory", full)
        assert restore(saved, directory, *MACHINES) == ExitCode.STORAGE
    assert f"{directory} cannot be made" in capsys.readouterr().err
    assert sorted(one.name for one in saved.parent.iterdir()) == ["backup", "node-1"]
    left = saved.parent / "new.restoring"
    (left / "prefix").mkdir(parents=True)
    (left / "prefix" / "0000000003.items").write_bytes(b"half of it")
    (left / "hard_state").touch()
    assert restore(saved, directory, *MACHINES) == 0
    assert not left.exists()
    assert app.run(["log", "verify", str(directory)]) == 0


def test_somebody_elses_directory_in_the_way_is_left_alone(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = saved.parent / "new.restoring"
    left.mkdir()
    (left / "letter").write_text("mine")
    assert restore(saved, saved.parent / "new", *MACHINES) == ExitCode.USAGE
    assert "it holds letter" in capsys.readouterr().err
    assert (left / "letter").read_text() == "mine"


def test_a_member_that_runs_is_not_saved_from_its_directory(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = DirectoryFiles(directory)
    holder.lock()
    path = directory.parent / "backup"
    code = app.run(["snapshot", "save", str(path), "--data", str(directory)])
    holder.close()
    assert code == ExitCode.CANNOT_START
    assert "is held by pid" in capsys.readouterr().err
    assert not path.exists()


def test_a_member_without_a_prefix_has_nothing_to_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from folkmoot.core.storage.log_store import Identity
    from folkmoot.core.types import NodeId

    data = tmp_path / "empty"
    LogStore.open(DirectoryFiles(data), STORAGE, Identity(b"x" * 16, NodeId(1), b"")).close()
    code = app.run(["snapshot", "save", str(tmp_path / "b"), "--data", str(data)])
    assert code == ExitCode.USAGE
    assert "holds no compacted prefix yet" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["empty"]
