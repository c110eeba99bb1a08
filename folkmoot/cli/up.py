"""`folkmoot up`: a cluster of real server processes on this machine, for development.

All of them end with it, however it ends. What happens is told in lines: who leads, who is gone,
what the servers warn of.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cli.members import ClusterView
    from folkmoot.cli.output import Output
    from folkmoot.cli.processes import LocalCluster

READY_TIMEOUT_S = 30.0
WATCH_INTERVAL_S = 0.3


@click.command(cls=Command)
@click.option("--nodes", type=click.IntRange(1, 9), metavar="N", help="How many.  [default 3]")
@click.option(
    "--port",
    type=click.IntRange(0, 65_000),
    metavar="PORT",
    help="The first node's port for clients; 0: any free ones.  [default 7400]",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Keep the data here, and go on with what is there.  [default: a temporary directory]",
)
@click.option("--verbose", is_flag=True, help="Show all that the servers log.")
@click.pass_obj
def up(
    options: Options, nodes: int | None, port: int | None, data: str | None, verbose: bool
) -> int:
    """Run a development cluster on this machine until Ctrl-C.

    Each node is a real server process. Kill one (`kill -9 PID`) and see what happens; its
    configuration file starts it again. With --data the cluster can be stopped and taken up again.
    """
    import anyio

    from folkmoot.cli.processes import local_cluster

    with local_cluster(nodes=nodes, port=port, data=data) as cluster:
        teller = Teller(options.out, cluster, verbose=verbose)
        return anyio.run(run, cluster, teller)


async def run(cluster: LocalCluster, teller: Teller) -> int:
    """Start the servers, tell what happens, and stop them on SIGINT, SIGTERM or SIGHUP."""
    import anyio

    stopped = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    code = ExitCode.OK
    with anyio.open_signal_receiver(*stopped) as signals:
        try:
            async with anyio.create_task_group() as tasks:

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()

                tasks.start_soon(stop_on_signal)
                cluster.start()
                leader = await cluster.wait_ready(READY_TIMEOUT_S)
                teller.ready(leader)
                await teller.follow()
                teller.say("all servers are gone")
                code = ExitCode.UNAVAILABLE
                tasks.cancel_scope.cancel()
        finally:
            teller.say("stopping")
            await cluster.stop()
    return code


class Teller:
    """Says in lines what happens to a local cluster."""

    def __init__(self, out: Output, cluster: LocalCluster, *, verbose: bool) -> None:
        self.out = out
        self.cluster = cluster
        self.verbose = verbose
        self._leader: tuple[int, int] | None = None
        self._gone: set[int] = set()
        """Whose process, started here, has ended."""
        self._down: set[int] = set()
        """Who did not answer when last asked."""

    def say(self, text: str, *, style: str = "", **data: object) -> None:
        """Tell one thing, with the time."""
        at = time.strftime("%H:%M:%S")
        if self.out.as_json:
            self.out.event({"time": at, "event": text, **data}, ())
        elif self.out.use_colour:
            self.out.line(f"{click.style(at, dim=True)}  {click.style(text, fg=style or None)}")
        else:
            self.out.line(f"{at}  {text}")

    def ready(self, leader: int) -> None:
        """Say where the cluster is and what to try."""
        cluster = self.cluster
        if self.out.as_json:
            pids = {str(server.node_id): server.pid for server in cluster.servers}
            self.say("ready", url=cluster.url, directory=str(cluster.directory), pids=pids)
            return
        bold = self.out.use_colour
        lines = [f"{len(cluster.servers)} servers are up, in {cluster.directory}", ""]
        lines += [
            f"  node {one.node_id}  pid {one.pid:<7} clients at {one.member.client_address}"
            for one in cluster.servers
        ]
        url = f"FOLKMOOT_URL={cluster.url}"
        default = cluster.addresses[0].endswith(":7400")
        lines += ["", "Give clients this address:", "", f"  {_bold(f'export {url}', bold)}", ""]
        lines += [
            "Then try, in another terminal" + (" (here also without it):" if default else ":"),
            "",
        ]
        lines += [
            "  folkmoot set greetings me hello     and   folkmoot get greetings me",
            "  folkmoot counter visits add         and   folkmoot watch greetings",
            "  folkmoot lock nightly -- sleep 30   and   folkmoot inspect nightly",
            "  folkmoot status --watch             and   "
            f"kill -9 {cluster.server(leader).pid}   (the leader)",
            "",
            "Ctrl-C stops all of them"
            + ("." if "folkmoot-" not in cluster.directory.name else " and removes their data."),
            "",
        ]
        for line in lines:
            self.out.line(line)

    async def follow(self) -> None:
        """Tell what happens, until no server is left."""
        import anyio

        from folkmoot.cli.members import look
        from folkmoot.core.errors import Unavailable

        while any(server.running for server in self.cluster.servers):
            self._tell_logs()
            self._tell_gone()
            with contextlib.suppress(Unavailable):
                self._tell_changes(await look(self.cluster.addresses, timeout_s=1.0))
            await anyio.sleep(WATCH_INTERVAL_S)
        self._tell_gone()

    def _tell_logs(self) -> None:
        for server in self.cluster.servers:
            for line in server.new_lines():
                words = line.split(maxsplit=3)  # date, time, level, text
                level, text = (words[2], words[3]) if len(words) == 4 else ("ERROR", line)
                serious = level in ("WARNING", "ERROR", "CRITICAL")
                if self.verbose or serious:
                    self.say(f"node {server.node_id}: {text}", style="yellow" if serious else "")

    def _tell_gone(self) -> None:
        for server in self.cluster.servers:
            if not server.running and server.node_id not in self._gone:
                self._gone.add(server.node_id)
                self.say(server.last_words(), style="red", node_id=server.node_id)
                self.say(
                    f"start it again:  folkmoot server --config {server.config_path}",
                    node_id=server.node_id,
                )

    def _tell_changes(self, view: ClusterView) -> None:
        for member in view.members:
            if member.status is None:
                self._down.add(member.node_id)
            elif member.node_id in self._down:
                self._down.discard(member.node_id)
                self.say(f"node {member.node_id} is back", style="green", node_id=member.node_id)
        now = (view.leader.node_id, int(view.best["term"])) if view.leader else None
        if now != self._leader:
            self._leader = now
            if now is None:
                self.say("no leader: the cluster takes no writes", style="yellow")
            else:
                self.say(f"node {now[0]} leads in term {now[1]}", style="green", leader=now[0])


def _bold(text: str, on: bool) -> str:
    return click.style(text, bold=True) if on else text
