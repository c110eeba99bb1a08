"""`folkmoot demo`: three servers and their clients; the leader is killed, and nothing is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from rich.live import Live

    from folkmoot.cli.demo_scene import Scene
    from folkmoot.cli.demo_work import Workload
    from folkmoot.cli.output import Output
    from folkmoot.cli.processes import LocalCluster
    from folkmoot.cluster import Cluster

STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLIENTS = 3
BEFORE_KILL_S = 5.0
AFTER_KILL_S = 5.0
AFTER_RESTART_S = 3.0
RECOVERY_TIMEOUT_S = 20.0
READY_TIMEOUT_S = 30.0
LOOK_INTERVAL_S = 0.25
PROGRESS_INTERVAL_S = 2.0
REDRAW_INTERVAL_S = 0.1
FINISH_TIMEOUT_S = 10.0
CAUGHT_UP_LAG = 50
"""Entries: while clients write, a follower is always a few behind."""


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Half as long.")
@click.pass_obj
def demo(options: Options, quick: bool) -> int:
    """Watch three servers agree, lose their leader, and lose nothing else.

    Starts three real servers on this machine, in a temporary directory, and clients that count,
    write a map, take a lock, elect a leader and publish. Then it kills the leading server with
    SIGKILL, and at the end compares all that was acknowledged with what is there. Takes about 20
    seconds; exits with 0 only if nothing was lost, nothing was done twice and no lock had two
    holders.
    """
    import anyio

    from folkmoot.cli.processes import local_cluster

    with local_cluster(nodes=3, port=0) as cluster:
        return anyio.run(run, options.out, cluster, 0.5 if quick else 1.0)


async def run(out: Output, cluster: LocalCluster, pace: float) -> int:
    """Play the demo; return the exit code."""
    import anyio

    from folkmoot.cli.demo_scene import Scene
    from folkmoot.cli.demo_view import summary

    scene = Scene()
    interrupted = False
    with anyio.open_signal_receiver(*STOPPED_BY) as signals:
        try:
            async with anyio.create_task_group() as tasks:

                async def stop_on_signal() -> None:
                    nonlocal interrupted
                    async for _ in signals:
                        interrupted = True
                        tasks.cancel_scope.cancel()

                tasks.start_soon(stop_on_signal)
                async with shown(scene, out):
                    await play(scene, cluster, pace)
                tasks.cancel_scope.cancel()
        finally:
            await cluster.stop()
    if interrupted:
        return ExitCode.INTERRUPTED
    cluster.keep = bool(scene.faults)
    summary(scene, out, cluster)
    return ExitCode.REFUSED if scene.faults else ExitCode.OK


async def play(scene: Scene, cluster: LocalCluster, pace: float) -> None:
    """The story, from start to the final check."""
    import anyio

    from folkmoot.cli.demo_work import Crew, all_workloads

    scene.say("starting 3 servers, each a process of its own")
    cluster.start()
    leader = await cluster.wait_ready(READY_TIMEOUT_S)
    scene.say(f"ready: node {leader} leads", "green")
    workloads = all_workloads()
    scene.tallies = {workload.tally.title: workload.tally for workload in workloads}
    async with contextlib.AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(_client(cluster, i)) for i in range(CLIENTS)]
        listeners = await stack.enter_async_context(anyio.create_task_group())
        listeners.start_soon(_look, scene, cluster)
        scene.phase = "clients at work"
        async with anyio.create_task_group() as workers:
            crew = Crew(scene, clusters, workers, listeners)
            for workload in workloads:
                await workload.start(crew)
            scene.say(f"{CLIENTS} clients count, write, lock, elect and publish")
            await anyio.sleep(BEFORE_KILL_S * pace)
            await _kill_leader(scene, cluster)
            await anyio.sleep(AFTER_KILL_S * pace)
            await _restart(scene, cluster)
            await anyio.sleep(AFTER_RESTART_S * pace)
            scene.working, scene.ended_at_s = False, scene.now_s
            workers.cancel_scope.deadline = anyio.current_time() + FINISH_TIMEOUT_S
        if workers.cancel_scope.cancelled_caught:
            scene.fault(f"a client was still waiting {FINISH_TIMEOUT_S:g} s after the end")
        await _check(scene, workloads, clusters[0])
        listeners.cancel_scope.cancel()


def _client(cluster: LocalCluster, number: int) -> Cluster:
    import folkmoot
    from folkmoot.core.config import ClientConfig

    return folkmoot.open(cluster.url, config=ClientConfig(name=f"demo client {number + 1}"))


async def _kill_leader(scene: Scene, cluster: LocalCluster) -> None:
    """SIGKILL the leader, and wait until a write that was issued after it is acknowledged."""
    import anyio

    from folkmoot.cli.members import look

    view = await look(cluster.addresses, timeout_s=2.0)
    node_id = view.leader.node_id if view.leader else cluster.servers[0].node_id
    server = cluster.server(node_id)
    scene.phase = "the leader is killed"
    scene.killed_node = node_id
    scene.say(f"kill -9 {server.pid}: node {node_id}, the leader, is gone", "bold red")
    scene.killed_at_s = scene.now_s
    server.kill()
    with anyio.move_on_after(RECOVERY_TIMEOUT_S):
        while scene.recovered_at_s is None:  # noqa: ASYNC110 - set from many places
            await anyio.sleep(0.01)
        scene.phase = "recovered: two servers are a majority"
        return
    scene.fault(f"no write was acknowledged within {RECOVERY_TIMEOUT_S:g} s after the kill")


async def _restart(scene: Scene, cluster: LocalCluster) -> None:
    """Start the killed server again, and wait until it has caught up."""
    import anyio

    server = cluster.server(scene.killed_node)
    scene.phase = "the killed server comes back"
    scene.say(f"starting node {server.node_id} again, with the data it had")
    server.start()
    with anyio.move_on_after(RECOVERY_TIMEOUT_S):
        while not _has_caught_up(scene, server.node_id):  # noqa: ASYNC110 - set by _look
            await anyio.sleep(0.05)
        scene.say(f"node {server.node_id} is back and has caught up", "green")
        scene.phase = "whole again"
        return
    scene.fault(f"node {server.node_id} has not caught up; {server.last_words()}")


def _has_caught_up(scene: Scene, node_id: int) -> bool:
    members = scene.view.members if scene.view else ()
    found = next((member for member in members if member.node_id == node_id), None)
    if found is None or found.status is None or found.lag is None:
        return False
    return found.lag < CAUGHT_UP_LAG


async def _look(scene: Scene, cluster: LocalCluster) -> None:
    """Keep the view of the members fresh, and tell of new leaders."""
    import anyio

    from folkmoot.cli.members import look
    from folkmoot.core.errors import Unavailable

    told: tuple[int, int] | None = None
    while True:
        with contextlib.suppress(Unavailable):
            scene.view = view = await look(cluster.addresses, timeout_s=1.0)
            now = (view.leader.node_id, int(view.best["term"])) if view.leader else told
            if told is not None and now is not None and now != told:
                scene.say(f"node {now[0]} leads in term {now[1]}", "green")
            told = now
        await anyio.sleep(LOOK_INTERVAL_S)


async def _check(scene: Scene, workloads: Sequence[Workload], cluster: Cluster) -> None:
    """Compare all that was acknowledged with what is there."""
    scene.phase = "checking what was acknowledged against what is there"
    scene.say("clients stopped; checking")
    for workload in workloads:
        faults = len(scene.faults)
        workload.tally.verdict = await workload.check(scene, cluster)
        workload.tally.good = len(scene.faults) == faults
    scene.phase = "FAILED" if scene.faults else "done: nothing was lost"


@contextlib.asynccontextmanager
async def shown(scene: Scene, out: Output) -> AsyncIterator[None]:
    """Show the scene while the block runs: redrawn on a terminal, lines in a pipe."""
    import anyio

    from folkmoot.cli import demo_view

    async with anyio.create_task_group() as tasks:
        if not out.is_terminal:
            demo_view.tell_lines(scene, out)
            tasks.start_soon(_progress_lines, scene, out)
            yield
        else:
            from rich.live import Live

            console = out.console()
            with Live(console=console, auto_refresh=False, transient=True) as live:
                tasks.start_soon(_redraw, scene, live)
                yield
            # What stays is not bound to the height of the terminal.
            console.print(demo_view.live(scene))
        tasks.cancel_scope.cancel()


async def _progress_lines(scene: Scene, out: Output) -> None:
    import anyio

    from folkmoot.cli.demo_view import progress_line

    while True:
        await anyio.sleep(PROGRESS_INTERVAL_S)
        if scene.tallies and not out.as_json:
            out.line(progress_line(scene))


async def _redraw(scene: Scene, live: Live) -> None:
    import anyio

    from folkmoot.cli import demo_view

    while True:
        live.update(demo_view.live(scene, live.console.height), refresh=True)
        await anyio.sleep(REDRAW_INTERVAL_S)
