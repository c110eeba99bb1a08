"""A command that runs only while a grant is held: one process group, ended with the grant.

- It gets the terminal, if there is one, so that it can ask and Ctrl-C reaches it.
- Signals that come to us are passed on to it.
- When the grant is lost, SIGTERM goes to its whole group, and SIGKILL `grace_s` later.
- On Linux it is killed by the kernel should we be killed: it never runs on unguarded.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from folkmoot.cli.exits import ExitCode

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_PR_SET_PDEATHSIG = 1


def find(command: Sequence[str]) -> ExitCode | None:
    """Say, as a shell does, why a command cannot be run, before anything is locked."""
    if shutil.which(command[0]):
        return None
    return ExitCode.NOT_EXECUTABLE if os.path.exists(command[0]) else ExitCode.NOT_FOUND


class Signals:
    """Hands each signal that comes to us to whoever is to have it now. Run as a task."""

    def __init__(self, first: Callable[[int], None]) -> None:
        self.deliver = first

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hand signals on until cancelled."""
        with anyio.open_signal_receiver(*PASSED_ON) as signals:
            task_status.started()
            async for number in signals:
                self.deliver(number)


async def run_guarded(
    command: Sequence[str], variables: Mapping[str, str], grace_s: float, signals: Signals
) -> int:
    """Run `command` to its end; return its exit code, 128 + n if signal n ended it.

    Cancelled, it first ends the command: SIGTERM to its group, SIGKILL after `grace_s`.
    """
    before = signals.deliver
    with _terminal_for_child() as hand_over:
        try:
            process = _start(command, variables)
        except OSError as error:
            print(f"folkmoot: {command[0]}: {error.strerror}", file=sys.stderr)
            return ExitCode.NOT_EXECUTABLE
        hand_over(process.pid)
        signals.deliver = lambda number: _signal_group(process, number)
        try:
            await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _end(process, grace_s)
            raise
        finally:
            signals.deliver = before
    status = process.returncode
    assert status is not None, "the command has ended"
    return status if status >= 0 else 128 - status


def _start(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    on_linux = sys.platform == "linux"
    return subprocess.Popen(  # noqa: S603 - it is what the user asked for
        list(command),
        env={**os.environ, **variables},
        process_group=0,
        preexec_fn=_die_with_parent() if on_linux else None,  # noqa: PLW1509 - see there
    )


def _die_with_parent() -> Callable[[], object]:
    # Between fork and exec only prctl is called: it is looked up before the fork, takes no lock and
    # makes no object that other threads could have held.
    prctl = ctypes.CDLL(None, use_errno=False).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM (and SIGCONT, for a stopped one cannot obey), wait, SIGKILL: to the whole group."""
    _signal_group(process, signal.SIGTERM)
    _signal_group(process, signal.SIGCONT)
    with anyio.move_on_after(grace_s):
        while _group_alive(process):  # noqa: ASYNC110 - a process group has no event
            await anyio.sleep(0.01)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _terminal_for_child() -> Iterator[Callable[[int], None]]:
    """Give the terminal to the child's process group for the block, and take it back after it.

    Ctrl-Z is ignored meanwhile: a stopped command would go on holding what it cannot work with.
    """
    try:
        ours = os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        ours = False
    if not ours:
        yield lambda pid: None
        return

    def hand_over(pid: int) -> None:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, pid)
            os.killpg(pid, signal.SIGCONT)  # it may have read too early and been stopped for it

    before = [
        (number, signal.signal(number, signal.SIG_IGN))
        for number in (signal.SIGTSTP, signal.SIGTTOU)
    ]
    try:
        yield hand_over
    finally:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, os.getpgrp())
        for number, handler in before:
            signal.signal(number, handler)
