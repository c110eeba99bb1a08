"""`folkmoot log inspect` and `log verify` on directories that no server has."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from folkmoot.cli import app
from folkmoot.cli.exits import ExitCode
from tests.cli.directories import contents, small_cluster, write_directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "node-1", small_cluster())


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_what_is_there_is_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(directory)
    assert app.run(["log", "inspect", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["node_id"] == 1
    assert found["cluster_id"] == b"cluster-of-tests".hex()
    assert found["log_last_index"] > found["compaction_index"] > 60
    assert found["damage"] == 0
    assert [one["sealed"] for one in found["segments"]][-1] is False
    assert found["segments"][-1]["last_index"] == found["log_last_index"]
    state, *items = found["prefix"]
    assert state["file"].endswith(".state")
    assert state["records"] >= 4
    assert all(0 <= one["dead_share"] <= 1 and one["live"] <= one["entries"] for one in items)
    assert contents(directory) == before, "it only reads"


def test_a_pipe_gets_a_line_for_each_thing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["log", "inspect", str(directory)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    fields = {line[0]: line[1] for line in lines if len(line) == 2}
    assert fields["directory"] == str(directory)
    assert {line[0] for line in lines if len(line) > 2} == {"segment", "prefix"}


def test_entries_are_listed_without_values_unless_asked_for(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["log", "inspect", str(directory), "--entries"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    last = lines[-1]
    assert (last[3], last[4]) == ("commands", "1")
    assert json.loads(last[6]) == ["shelf 'shelf' put/2"]
    index = int(last[0])
    arguments = ["--entries", "--values", "--from", str(index), "--json"]
    assert app.run(["log", "inspect", str(directory), *arguments]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["operations"] == [[["shelf", "shelf", 1, {}], "put", ["late", 2]]]
    assert row["index"] == index


def test_a_healthy_directory_verifies(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(directory)
    assert app.run(["log", "verify", str(directory)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert contents(directory) == before, "it only reads"


def test_all_damage_is_listed_with_file_and_offset(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = next((directory / "prefix").glob("*.state"))
    segment = min((directory / "log").glob("*.seg"))
    damage(state, 200)
    used = len(segment.read_bytes().rstrip(b"\0"))
    damage(segment, used - 60)
    assert app.run(["log", "verify", str(directory)]) == ExitCode.STORAGE
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: (int(row[1]), row[2]) for row in rows}
    assert found == {
        f"prefix/{state.name}": (128, "damage"),
        f"log/{segment.name}": (found[f"log/{segment.name}"][0], "damage"),
    }
    assert 512 < found[f"log/{segment.name}"][0] <= used - 60
    assert app.run(["log", "inspect", str(directory), "--json"]) == ExitCode.STORAGE
    assert json.loads(capsys.readouterr().out)["damage"] == 2
    assert app.run(["log", "inspect", str(directory), "--entries"]) == ExitCode.STORAGE
    captured = capsys.readouterr()
    assert "at offset 128" in captured.err
    assert captured.out, "what verifies is listed all the same"


def test_a_process_that_has_it_is_told_and_not_disturbed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = directory / "LOCK"
    lock.write_text(f"pid {os.getpid()} on {socket.gethostname()} since 2026-01-01T00:00:00Z\n")
    before = contents(directory)
    assert app.run(["log", "verify", str(directory)]) == 0
    assert f"in use by pid {os.getpid()}" in capsys.readouterr().err
    assert contents(directory) == before
    lock.write_text(f"pid {os.getpid()} on another-host since 2026-01-01T00:00:00Z\n")
    assert app.run(["log", "verify", str(directory)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_data_directory_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["log", command, str(tmp_path)]) == ExitCode.USAGE
    assert "is no data directory" in capsys.readouterr().err
    assert app.run(["log", command, str(tmp_path / "none")]) == ExitCode.USAGE
    assert not (tmp_path / "none").exists()
