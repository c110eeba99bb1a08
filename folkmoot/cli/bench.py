"""`folkmoot bench`: how fast is the cluster that --url names, roughly and quickly.

One process, one event loop, plain writes and reads of a map. The full comparison, with peers and
settings kept equal, is `make bench` of the project.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs
import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster

MAP = "folkmoot-bench"
KEYS = 1000

COLUMNS = {
    "workload": "workload",
    "operations": "operations",
    "per_second": "per second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "errors": "errors",
}


@click.command(cls=Command)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=600),
    default=3.0,
    metavar="SECONDS",
    help="For each workload.  [default 3]",
)
@click.option(
    "--tasks",
    type=click.IntRange(1, 10_000),
    default=64,
    metavar="N",
    help="Operations under way at once.  [default 64]",
)
@click.option(
    "--bytes",
    "size_bytes",
    type=click.IntRange(0, 100_000),
    default=100,
    metavar="N",
    help="Size of a value.  [default 100]",
)
@click.pass_obj
def bench(options: Options, seconds: float, tasks: int, size_bytes: int) -> int:
    """Measure the cluster quickly: writes and reads per second, and how long one takes.

    Reads are linearizable. It writes 1000 keys of a map of its own, "folkmoot-bench", and deletes
    it again.
    """
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        values = cluster.map(MAP, codec="bytes")
        content = bytes(size_bytes)
        workloads: list[tuple[str, int, Callable[[int], Awaitable[Any]]]] = [
            ("write, one at a time", 1, lambda i: values.set(f"key-{i % KEYS}", content)),
            (f"write, {tasks} at once", tasks, lambda i: values.set(f"key-{i % KEYS}", content)),
            ("read, one at a time", 1, lambda i: values.get(f"key-{i % KEYS}")),
            (f"read, {tasks} at once", tasks, lambda i: values.get(f"key-{i % KEYS}")),
        ]
        rows = []
        try:
            with progress(options, len(workloads) * seconds) as advance:
                for name, count, operation in workloads:
                    run = await measure(operation, count, seconds, advance)
                    rows.append({"workload": name, **run.row()})
        finally:
            await cluster.delete(MAP)
        options.out.table(rows, COLUMNS, right=set(COLUMNS) - {"workload"})
        return ExitCode.REFUSED if any(row["errors"] for row in rows) else ExitCode.OK

    return with_cluster(options, use)


@attrs.define
class Run:
    """What one workload gave."""

    elapsed_s: float = 0.0
    latencies_s: list[float] = attrs.field(factory=list)
    errors: int = 0

    def row(self) -> dict[str, Any]:
        """The stable shape in tables and JSON."""
        found = sorted(self.latencies_s)
        return {
            "operations": len(found),
            "per_second": round(len(found) / self.elapsed_s) if self.elapsed_s else 0,
            "p50_ms": percentile_ms(found, 0.50),
            "p99_ms": percentile_ms(found, 0.99),
            "errors": self.errors,
        }


def percentile_ms(ordered_s: list[float], part: float) -> float | None:
    """The latency that `part` of all stay at or below (nearest rank), in milliseconds."""
    if not ordered_s:
        return None
    rank = max(0, math.ceil(part * len(ordered_s)) - 1)
    return round(ordered_s[rank] * 1000, 3)


async def measure(
    operation: Callable[[int], Awaitable[Any]],
    tasks: int,
    seconds: float,
    advance: Callable[[float], None],
) -> Run:
    """Run `operation` in so many tasks for so long. What fails is counted, not timed."""
    import anyio

    from folkmoot.core.errors import FolkmootError

    run = Run()
    begun = anyio.current_time()
    until = begun + seconds
    number = 0

    async def worker() -> None:
        nonlocal number
        while (issued := anyio.current_time()) < until:
            number += 1
            try:
                await operation(number)
                run.latencies_s.append(anyio.current_time() - issued)
            except FolkmootError:
                run.errors += 1

    async def show() -> None:
        last = begun
        while True:
            await anyio.sleep(0.1)
            now = min(anyio.current_time(), until)
            advance(now - last)
            last = now

    async with anyio.create_task_group() as group:
        group.start_soon(show)
        async with anyio.create_task_group() as workers:
            for _ in range(tasks):
                workers.start_soon(worker)
        group.cancel_scope.cancel()
    run.elapsed_s = anyio.current_time() - begun
    return run


def progress(options: Options, total_s: float) -> Any:
    """A progress bar on a terminal, on standard error; elsewhere nothing."""
    import contextlib
    import sys

    @contextlib.contextmanager
    def bar() -> Any:
        if options.json or not (sys.stderr.isatty() and options.out.is_terminal):
            yield lambda seconds: None
            return
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True, no_color=not options.out.use_colour)
        with Progress(console=console, transient=True) as shown:
            task = shown.add_task("measuring", total=total_s)
            yield lambda seconds: shown.advance(task, seconds)

    return bar()
