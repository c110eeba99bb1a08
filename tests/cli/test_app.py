"""The program as a whole: its commands, common options, errors, and how fast it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from folkmoot.cli import app
from folkmoot.cli.options import Command, Options

LAZY = {"rich", "anyio", "asyncio", "msgpack", "folkmoot.core.server", "folkmoot.node", "trio"}


def run_process(
    *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "folkmoot.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=30,
    )


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_table_and_the_commands_agree(name: str) -> None:
    context = click.Context(app.program)
    command = app.program.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.help, f"{name} has no help"


def leaf_commands() -> list[tuple[str, click.Command]]:
    context, found = click.Context(app.program), []
    for name in app.COMMANDS:
        command = app.program.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", inner) for sub, inner in command.commands.items()]
        else:
            found.append((name, command))
    return found


@pytest.mark.parametrize(("name", "command"), leaf_commands(), ids=str)
def test_every_command_takes_the_common_options(name: str, command: click.Command) -> None:
    assert isinstance(command, Command)
    names = {name for parameter in command.params for name in parameter.opts}
    assert {"--url", "--json", "--timeout", "--config", "--debug"} <= names


@pytest.mark.parametrize("arguments", [["--json", "version"], ["version", "--json"]])
def test_common_options_stand_before_or_after_the_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(arguments) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"folkmoot", "python", "platform"}


def test_what_is_typed_last_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Options()
    monkeypatch.setenv("FOLKMOOT_URL", "folkmoot://environment")
    arguments = ["--timeout", "3", "version", "--timeout", "4"]
    app.program.main(arguments, standalone_mode=False, obj=seen)
    assert (seen.url, seen.timeout) == ("folkmoot://environment", 4.0)
    app.program.main(["version", "--url", "folkmoot://typed"], standalone_mode=False, obj=seen)
    assert seen.url == "folkmoot://typed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stauts"], "There is no command 'stauts'. Did you mean 'status'?"),
        (["version", "--jsno"], "No such option"),
        (["version", "--timeout", "0"], "0"),
        (["config", "validate", "missing.toml"], "missing.toml: No such file or directory"),
        (["config", "show", "--set", "raft.heartbeat_s=99"], "between 0.001 and 60"),
    ],
)
def test_wrong_usage_exits_with_2_and_no_traceback(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_error_is_json_on_stderr_where_json_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.run(["config", "validate", "missing.toml", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["exit_code"], error["applied"]) == ("config", 2, "no")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--debug", "config", "validate", "missing.toml"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_config_file_is_shown_with_its_origins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.toml"
    path.write_text('data_dir = "here"\n[raft]\nheartbeat_s = 0.2\n')
    monkeypatch.setenv("FOLKMOOT_RAFT_WINDOW_BATCHES", "7")
    assert app.run(["--config", str(path), "config", "show", "--origin"]) == 0
    out = capsys.readouterr().out
    assert f"heartbeat_s = 0.2  # {path}, raft.heartbeat_s" in out
    assert "window_batches = 7  # environment, FOLKMOOT_RAFT_WINDOW_BATCHES" in out
    assert f'data_dir = "{tmp_path}/here"' in out, "relative to the file, not to where we are"
    assert app.run(["config", "validate", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["completion", shell]) == 0
    assert "_FOLKMOOT_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["get", "--help"]])
def test_starting_imports_no_more_than_it_needs(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom folkmoot.cli.app import run\n"
        f"code = run({arguments!r})\nprint(*sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert LAZY & loaded == set()
    assert len(loaded) < 250, "a quarter of this is Python itself"


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [["--help"], ["version"]])
def test_starting_takes_less_than_150_ms(arguments: list[str]) -> None:
    """In processor time, the least of several: the clock on the wall also measures the others."""

    def used_s() -> float:
        process = subprocess.Popen(
            [sys.executable, "-m", "folkmoot.cli", *arguments], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    least_s = min(used_s() for _ in range(5))
    assert least_s < 0.15, f"folkmoot {' '.join(arguments)} takes {least_s * 1000:.0f} ms"


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m folkmoot.cli config show --origin | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_both_names_and_the_module_run_the_same_program() -> None:
    done = run_process("version", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["folkmoot"]
