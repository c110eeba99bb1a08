"""A command under a grant: its exit code, its signals, and its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from folkmoot.cli.child import Signals, find, run_guarded
from folkmoot.cli.exits import ExitCode

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


def nobody(number: int) -> None:
    raise AssertionError(f"signal {number} with no command to pass it on to")


async def run(script: str, *, grace_s: float = 5.0) -> int:
    return await run_guarded(["sh", "-c", script], {"TOLD": "7"}, grace_s, Signals(nobody))


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - of other processes
            await anyio.sleep(0.01)


async def wait_for(path: Path) -> str:
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text().strip()  # noqa: ASYNC240


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("exit $TOLD", 7)]
)
async def test_its_exit_code_is_ours(script: str, code: int) -> None:
    assert await run(script) == code


async def test_a_command_that_cannot_run_is_told_as_a_shell_does(tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    plain.touch()
    broken.write_bytes(b"\x00\x01")
    broken.chmod(0o700)
    assert find(["no-such-command"]) == ExitCode.NOT_FOUND
    assert find([str(plain)]) == ExitCode.NOT_EXECUTABLE
    assert find(["sh"]) is None
    code = await run_guarded([str(broken)], {}, 1.0, Signals(nobody))
    assert code == ExitCode.NOT_EXECUTABLE


async def test_cancelled_it_is_asked_to_end_and_has_time_for_it(tmp_path: Path) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    script = f"trap 'echo yes > {ended}; exit 0' TERM; echo > {ready}; sleep 60 & wait"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, script)
        await wait_for(ready)
        tasks.cancel_scope.cancel()
    assert ended.read_text() == "yes\n"


async def test_one_that_does_not_end_is_killed_after_the_grace_with_its_children(
    tmp_path: Path,
) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 60 & echo $$ $! > {pids}; while :; do sleep 60; done"

    async def stubborn() -> None:
        await run(script, grace_s=0.3)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stubborn)
        found = [int(pid) for pid in (await wait_for(pids)).split()]
        begun = time.monotonic()
        tasks.cancel_scope.cancel()
    assert 0.25 <= time.monotonic() - begun < 5
    await until(lambda: all(is_gone(pid) for pid in found))


async def test_signals_are_passed_on(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'exit 42' USR1; echo > {ready}; while :; do sleep 0.05; done"
    signals = Signals(nobody)
    codes = []
    async with anyio.create_task_group() as tasks:
        await tasks.start(signals.run)

        async def guarded() -> None:
            codes.append(await run_guarded(["sh", "-c", script], {}, 5.0, signals))
            tasks.cancel_scope.cancel()

        tasks.start_soon(guarded)
        await wait_for(ready)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert codes == [42]
    assert signals.deliver is nobody, "whoever had them before has them again"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_when_we_are_killed_it_does_not_run_on_unguarded(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    guard = subprocess.Popen(  # noqa: ASYNC220
        [
            sys.executable,
            "-c",
            "import anyio\n"
            "from folkmoot.cli.child import Signals, run_guarded\n"
            f"command = ['sh', '-c', 'echo $$ > {pid_file}; exec sleep 60']\n"
            "anyio.run(run_guarded, command, {}, 5.0, Signals(print))",
        ]
    )
    try:
        pid = int(await wait_for(pid_file))
        assert not is_gone(pid)
    finally:
        guard.kill()
        guard.wait()
    await until(lambda: is_gone(pid))
