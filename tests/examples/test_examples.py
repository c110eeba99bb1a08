"""Every example runs: in memory on both backends, and the README's three on real servers too.

They are run as a reader runs them, as `__main__`, and judged by what they print.
"""

import functools
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from folkmoot.cli.processes import local_cluster, plan

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "charge_once": [
        r"worker-\d charged 2025-001",
        r"worker-\d charged 2025-002",
        r"worker-\d charged 2025-003",
        r"the bank refused: token \d+ for 2025-001, \d+ was here",
        r"the map refused: the grant has ended",
        r"3 receipts",
    ],
    "scheduler": [
        r"worker-\d schedules now; fencing token \d+",
        r"  tick 1 by worker-\d",
        r"worker-\d has stopped",
    ],
    "react": [
        r"revision \d+: the flags are {'dark-mode': 'off'}",
        r"revision \d+: dark-mode is on, was off",
        r"revision \d+: sale is on, was unset",
        r"revision \d+: sale was expired",
        r"dark mode is on",
        r"the sale is over",
    ],
    "own_machine": [
        r"worker-1 sends mail 3",
        r"worker-2 sends mail 3",
        r"refused: 100 tokens: 1 to 3 can be taken",
        r"after a restart there are [012] tokens, not 3",
    ],
    "embedded_member": [
        r"member 3 is up, start number [123]",
        r"member [123] leads, and leaves",
        r"the other two go on: done",
    ],
}
"""Per example: lines that it must print, in any order."""


def check(name: str, output: str) -> None:
    lines = output.splitlines()
    for pattern in PRINTS[name]:
        found = [line for line in lines if re.fullmatch(pattern, line)]
        assert found, f"no line like {pattern!r} in\n{output}"
    if name == "charge_once":
        charged = re.findall(r"charged (\S+)", output)
        assert len(charged) == len(set(charged)), output
    if name == "scheduler":
        check_one_at_a_time(lines)


def check_one_at_a_time(lines: list[str]) -> None:
    """Three reigns with rising tokens, none before the one before has stopped, and no tick lost."""
    leader, tokens, ticks = "", [0], 0
    for line in lines:
        if found := re.fullmatch(r"(\S+) schedules now; fencing token (\d+)", line):
            assert not leader, f"{found[1]} leads, {leader} has not stopped"
            leader = found[1]
            tokens.append(int(found[2]))
        elif found := re.fullmatch(r"(\S+) has stopped", line):
            assert found[1] == leader
            leader = ""
        elif found := re.fullmatch(r"  tick (\d+) by (\S+)", line):
            ticks += 1
            assert (int(found[1]), found[2]) == (ticks, leader)
    assert tokens == sorted(set(tokens))
    assert (leader, len(tokens)) == ("", 4)


def test_no_example_goes_untested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == PRINTS.keys()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", sorted(PRINTS))
def test_it_runs_in_this_process(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FOLKMOOT_URL", raising=False)
    monkeypatch.setattr(sys, "argv", [name])
    path = str(EXAMPLES / f"{name}.py")
    if name == "embedded_member":  # on ports that are free, whatever else runs here
        main = runpy.run_path(path)["three_members"]
        anyio.run(main, tuple(plan(3, 0)), backend=backend)
    else:
        monkeypatch.setattr(anyio, "run", functools.partial(anyio.run, backend=backend))
        runpy.run_path(path, run_name="__main__")
    check(name, capsys.readouterr().out)


def run_as_process(name: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "FOLKMOOT_URL": url},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_the_readmes_three_run_against_real_servers() -> None:
    with local_cluster(nodes=3, port=0) as servers:
        servers.start()
        anyio.run(servers.wait_ready, 20)
        for name in ("charge_once", "scheduler", "react"):
            check(name, run_as_process(name, servers.url))
        again = run_as_process("charge_once", servers.url)
        assert "charged" not in again, "the map remembers what the process does not"
        assert "3 receipts" in again
        anyio.run(servers.stop)


@contextmanager
def lines_of(url: str, *command: str) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A program that runs on, and what it prints, line by line."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", *command],
        env={**os.environ, "FOLKMOOT_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, iter(process.stdout)
    finally:
        process.kill()
        process.communicate()


def wait_for(lines: Iterator[str], pattern: str) -> re.Match[str]:
    """Read on to the first line that fits; pytest-timeout bounds it."""
    seen = []
    for line in lines:
        seen.append(line)
        if found := re.fullmatch(pattern, line.rstrip("\n")):
            return found
    raise AssertionError(f"it ended without {pattern!r}:\n" + "".join(seen))


@pytest.mark.e2e
def test_what_runs_until_ctrl_c() -> None:
    """The scheduler passes to another process when one is killed; the flags follow the CLI."""
    scheduler, react = str(EXAMPLES / "scheduler.py"), str(EXAMPLES / "react.py")
    with local_cluster(nodes=3, port=0) as servers:
        servers.start()
        anyio.run(servers.wait_ready, 20)
        url = servers.url
        with (
            lines_of(url, scheduler, "alpha") as (alpha, alphas),
            lines_of(url, react, "listen") as (listener, flags),
        ):
            wait_for(alphas, r"  tick 3 by alpha")
            wait_for(flags, r"revision \d+: the flags are {}")
            with lines_of(url, "-m", "folkmoot", "set", "flags", "dark-mode", "on"):
                wait_for(flags, r"revision \d+: dark-mode is on, was unset")
            listener.send_signal(signal.SIGINT)
            assert listener.wait() == 0, "Ctrl-C ends it in order"
            with lines_of(url, scheduler, "beta") as (_, betas):
                alpha.kill()
                last = max(int(n) for n in re.findall(r"tick (\d+)", "".join(alphas)))
                found = wait_for(betas, r"  tick (\d+) by beta")
                assert int(found[1]) - last in (1, 2), "at most the one that was under way"
        anyio.run(servers.stop)
