"""`folkmoot server`: one member of a cluster as a process of its own.

It logs plain lines to standard error, stops gracefully on SIGTERM and SIGINT (a second one stops it
at once), and where it cannot start or go on it says why in one sentence and exits as
`folkmoot/cli/exits.py` lists.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from folkmoot.cli.collector import collect_rarely, set_aside
from folkmoot.cli.exits import CannotStart, ExitCode, leaves
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from folkmoot.core.config import NodeConfig
    from folkmoot.core.machine import Machine
    from folkmoot.node import Node

log = logging.getLogger("folkmoot.server")

WATCH_INTERVAL_S = 0.25
"""How often the server looks at its own role, to log when it changes."""
DRAW_INTERVAL_S = 0.1
"""How often a bar on a terminal is brought up to date."""

_MEMBER_OPTIONS = (
    click.option("--node-id", type=int, metavar="N", help="Which of the members this server is."),
    click.option("--cluster", metavar="NAME", help="The cluster's name, equal on all members."),
    click.option("--data-dir", metavar="DIR", help="Where the log is kept."),
    click.option(
        "--member",
        "members",
        multiple=True,
        metavar="N=HOST:PEERPORT,HOST:CLIENTPORT",
        help="A first member, itself included; once for each, the same list on all.",
    ),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any setting, as in a file.",
    ),
    click.option(
        "--machine",
        "machines",
        multiple=True,
        metavar="MODULE:CLASS",
        help="A state machine of your own, beside the built-in ones; the same on all members.",
    ),
)


def member_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that describe one member, as `server` and `snapshot restore` take them."""
    for option in reversed(_MEMBER_OPTIONS):
        command = option(command)
    return command


@click.command(cls=Command)
@member_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="How much is logged.  [default info]",
)
@click.option("--stop-with-stdin", is_flag=True, hidden=True)
@click.pass_obj
def server(
    options: Options,
    node_id: int | None,
    cluster: str | None,
    data_dir: str | None,
    members: tuple[str, ...],
    assignments: tuple[str, ...],
    machines: tuple[str, ...],
    log_level: str,
    stop_with_stdin: bool,
) -> int:
    """Run one server, from the file of --config, the environment and flags.

    \b
    folkmoot server --config node-1.toml
    folkmoot server --node-id 1 --data-dir data-1 \\
        --member 1=10.0.0.1:7410,10.0.0.1:7400 \\
        --member 2=10.0.0.2:7410,10.0.0.2:7400 \\
        --member 3=10.0.0.3:7410,10.0.0.3:7400

    SIGTERM and Ctrl-C stop it gracefully: it hands leadership over, finishes and flushes.
    """
    config = member_config(options, node_id, cluster, data_dir, members, assignments)
    kinds = [load_machine(text) for text in machines]
    start_logging(log_level)
    if stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()

    import anyio

    return anyio.run(
        serve, config, kinds, backend="asyncio", backend_options={"use_uvloop": has_uvloop()}
    )


def member_config(
    options: Options,
    node_id: int | None,
    cluster: str | None,
    data_dir: str | None,
    members: Sequence[str],
    assignments: Sequence[str],
) -> NodeConfig:
    """Put flags above environment and file. Raises ConfigError, also for what makes no server."""
    from folkmoot.cli import config_file

    flags = {"node_id": node_id, "cluster": cluster, "data_dir": data_dir}
    given = config_file.from_assignments(assignments, "--set")
    given |= config_file.from_flags(
        {**flags, "members": tuple(config_file.parse_member(text) for text in members)}
    )
    config = options.load(given).node
    check(config)
    return config


def load_machine(text: str) -> type[Machine]:
    """Find the class that "package.module:Class" names. Raises UsageError saying what is wrong."""
    from importlib import import_module

    from folkmoot.core.errors import UsageError
    from folkmoot.core.machine import Machine

    module_name, _, class_name = text.partition(":")
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--machine {text}: {error}; write package.module:Class") from error
    if not (isinstance(found, type) and issubclass(found, Machine)):
        raise UsageError(f"--machine {text}: {found!r} is no folkmoot.Machine")
    return found


def check(config: NodeConfig) -> None:
    """Refuse what is allowed for an embedded node, but makes no sense for a server."""
    from folkmoot.core.errors import ConfigError

    if not config.members:
        raise ConfigError(
            "no members: give --config FILE, or --member for each server, this one included"
        )
    if config.data_dir is None:
        raise ConfigError(
            "no data_dir: give --data-dir DIR; a server that forgets its votes and its log "
            "when it restarts could lose what the cluster has acknowledged"
        )


def has_uvloop() -> bool:
    """Whether the faster event loop is installed."""
    from importlib.util import find_spec

    return find_spec("uvloop") is not None


class _ErrorOutput:
    """Standard error as it is at the moment: a bar takes its place, and lines go above it."""

    def write(self, text: str) -> int:
        """Write it there."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Let it be seen."""
        sys.stderr.flush()


def start_logging(level: str) -> None:
    """Log plain lines to standard error."""
    logging.basicConfig(
        stream=cast("TextIO", _ErrorOutput()),
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
    )


def _stop_with_stdin() -> None:
    """Stop when standard input ends: whoever started this server is gone."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(config: NodeConfig, machines: Sequence[type[Machine]] = ()) -> int:
    """Run the node until it is told to stop or has to. Raises what stopped it."""
    import anyio

    from folkmoot.core.errors import ConfigError
    from folkmoot.node import Node

    collect_rarely()
    node = Node(config, machines=machines)
    try:
        async with _shown(node), node, anyio.create_task_group() as tasks:
            set_aside()
            _log_start(node)
            tasks.start_soon(_log_changes, node)
            tasks.start_soon(_stop_on_signal, node)
            await node.wait_stopped()
            tasks.cancel_scope.cancel()
    except (ConfigError, BaseExceptionGroup) as error:
        # The configuration itself was good: what is wrong is this machine, as an address in use.
        for leaf in leaves(error):
            if isinstance(leaf, ConfigError):
                raise CannotStart(str(leaf)) from error
        raise
    log.info("stopped")
    return ExitCode.OK


@asynccontextmanager
async def _shown(node: Node) -> AsyncIterator[None]:
    """On a terminal, draw a bar while the node restores its state or receives it."""
    import anyio

    if not sys.stderr.isatty():
        yield  # the log says it
        return
    logging.getLogger("folkmoot.progress").disabled = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_draw, node)
        yield
        tasks.cancel_scope.cancel()


async def _draw(node: Node) -> None:
    import anyio

    from folkmoot.cli.progress import Bars

    bars = Bars()
    try:
        while True:
            bars.show(node.progress)
            await anyio.sleep(DRAW_INTERVAL_S)
    finally:
        bars.close()


async def _stop_on_signal(node: Node) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        stopping = False
        async with anyio.create_task_group() as tasks:
            async for number in signals:
                if stopping:
                    log.warning("%s again: stopping at once", signal.Signals(number).name)
                    logging.shutdown()
                    os._exit(128 + number)
                stopping = True
                log.info("%s: stopping", signal.Signals(number).name)
                tasks.start_soon(node.stop)


def _log_start(node: Node) -> None:
    config = node.config
    status = node.status()
    log.info("node %d of cluster %r, process %d", config.node_id, config.cluster, os.getpid())
    log.info("clients at %s, members at %s", node.client_address, node.peer_address or "-")
    log.info(
        "data in %s: term %d, last index %d", config.data_dir, status["term"], status["last_index"]
    )


async def _log_changes(node: Node) -> None:
    """Log when the role, the term or the leader changes."""
    import anyio

    before: dict[str, Any] = {}
    while True:
        status = node.status()
        now = {key: status[key] for key in ("role", "term", "leader")}
        if now != before:
            log.info("%s", _standing(**now))
            before = now
        await anyio.sleep(WATCH_INTERVAL_S)


def _standing(role: str, term: int, leader: int | None) -> str:
    if role == "leader":
        return f"leading in term {term}"
    if leader:
        return f"{role} in term {term}, led by node {leader}"
    return f"{role} in term {term}, no leader known"
