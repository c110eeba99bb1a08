"""`folkmoot lock NAME -- CMD` and `folkmoot elect NAME -- CMD`: a command under a grant.

The command is ended before anybody else can have the grant, as far as a process that may be paused
at any moment can know: the client's local deadline lies `grace` (and a margin for drifting clocks)
before the moment at which the cluster may pass the grant on, so there is time for SIGTERM first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster
    from folkmoot.core.config import ClientConfig

DRIFT_MARGIN = 0.1
"""Part of the session's timeout that is kept for clock drift and scheduling, besides the grace."""
GRACE_SHARE_MAX = 0.4
"""The grace may take no more of the session's timeout than this."""

_seconds = click.FloatRange(min=0, min_open=True)
_command = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
_session_timeout = click.option(
    "--session-timeout",
    type=_seconds,
    default=10.0,
    metavar="SECONDS",
    help="Out of contact for this long, it passes on.  [default 10]",
)
_grace = click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=2.0,
    metavar="SECONDS",
    help="From SIGTERM to SIGKILL when it is lost.  [default 2]",
)
_timeout = click.option(
    "--timeout",
    "wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up when it is not granted by then.  [default: wait for ever]",
)


@click.command(cls=Command)
@_timeout
@_session_timeout
@_grace
@click.argument("name")
@_command
@click.pass_obj
def lock(
    options: Options,
    wait: float | None,
    session_timeout: float,
    grace: float,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run a command while holding the lock NAME; exit as the command does.

    \b
    folkmoot lock nightly -- ./report.sh
    folkmoot lock nightly --timeout 5 -- ./report.sh --all

    The command finds the fencing token in FOLKMOOT_TOKEN and the lock's name in FOLKMOOT_LOCK. It
    is a process group of its own: signals are passed on to it, and it is ended when the lock is
    lost.

    \b
    75   not granted in time; the command did not run
    79   lost while the command ran; the command was ended
    126  the command cannot be executed        127  it was not found
    """

    async def guarded(cluster: Cluster, run: Run) -> int:
        async with cluster.lock(name).hold(timeout=wait) as held:
            code = await run({"FOLKMOOT_LOCK": name, "FOLKMOOT_TOKEN": str(held.token)})
        return code  # noqa: RET504 - the context might have swallowed an error

    return _run(options, command, session_timeout, grace, guarded)


@click.command(cls=Command)
@_timeout
@click.option("--value", default="", metavar="TEXT", help="What others read of the leader.")
@click.option("--once", is_flag=True, help="Exit with 79 when deposed, rather than run again.")
@_session_timeout
@_grace
@click.argument("name")
@_command
@click.pass_obj
def elect(
    options: Options,
    wait: float | None,
    value: str,
    once: bool,
    session_timeout: float,
    grace: float,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run a command while being the leader of the election NAME.

    \b
    folkmoot elect scheduler -- ./scheduler

    When deposed the command is ended, and run again once elected again. When it ends by itself the
    leadership is given up and its exit code returned. The command finds the fencing token in
    FOLKMOOT_TOKEN and the election's name in FOLKMOOT_ELECTION.
    """

    async def guarded(cluster: Cluster, run: Run) -> int:
        from folkmoot.core.errors import LeadershipLost

        while True:
            try:
                async with cluster.election(name).lead(value=value, timeout=wait) as term:
                    return await run({"FOLKMOOT_ELECTION": name, "FOLKMOOT_TOKEN": str(term.token)})
            except LeadershipLost as lost:
                if once:
                    raise
                click.echo(f"folkmoot: {lost}; running again when elected again", err=True)

    return _run(options, command, session_timeout, grace, guarded)


Run = Callable[[dict[str, str]], Awaitable[int]]
"""Runs the command, with these variables in its environment, to its end."""


def client_config(base: ClientConfig, session_timeout_s: float, grace_s: float) -> ClientConfig:
    """Make the local deadline lie so early that the grace still fits in before the cluster's.

    Raises ConfigError when the grace is too large a part of the session's timeout.
    """
    import attrs

    from folkmoot.core.errors import ConfigError

    share = grace_s / session_timeout_s
    if share > GRACE_SHARE_MAX:
        raise ConfigError(
            f"--grace {grace_s:g} does not fit into --session-timeout {session_timeout_s:g}: "
            f"it must be at most {GRACE_SHARE_MAX * session_timeout_s:g}"
        )
    return attrs.evolve(
        base, session_timeout_s=session_timeout_s, drift_margin=DRIFT_MARGIN + share
    )


def _run(
    options: Options,
    command: tuple[str, ...],
    session_timeout_s: float,
    grace_s: float,
    guarded: Callable[[Cluster, Run], Awaitable[int]],
) -> int:
    import anyio

    from folkmoot.cli import child

    if trouble := child.find(command):
        why = "is not executable" if trouble == ExitCode.NOT_EXECUTABLE else "was not found"
        click.echo(f"folkmoot: {command[0]} {why}", err=True)
        return trouble
    config = client_config(options.load().client, session_timeout_s, grace_s)

    async def main() -> int:
        from folkmoot.cli.connect import connected

        stopped: list[int] = []

        def stop(number: int) -> None:
            stopped.append(number)
            tasks.cancel_scope.cancel()

        code = 0
        signals = child.Signals(stop)
        async with anyio.create_task_group() as tasks:
            await tasks.start(signals.run)
            async with connected(options, config) as cluster:
                code = await guarded(
                    cluster,
                    lambda variables: child.run_guarded(command, variables, grace_s, signals),
                )
            tasks.cancel_scope.cancel()
        return 128 + stopped[0] if stopped else code

    return anyio.run(main)
