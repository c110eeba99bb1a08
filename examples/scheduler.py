"""Exactly one scheduler among many workers: an election, and code that runs only while elected.

    python examples/scheduler.py                             three workers in memory, for a moment
    FOLKMOOT_URL=folkmoot://a,b,c python examples/scheduler.py        the same against a cluster

and, in several terminals, with FOLKMOOT_URL set, one worker each, until Ctrl-C or worse:

    python examples/scheduler.py NAME

`run` campaigns for ever. Whenever this worker is elected it calls the function; when the leadership
is lost, it cancels the call and campaigns again. So the function needs no look at the clock and no
"am I still the leader?" in its loop. What it writes takes `fence=term`, and is refused once the
term has ended, even where this process has not noticed yet.
"""

import sys
from contextlib import suppress

import anyio

import folkmoot
from folkmoot.primitives.election import Elected, Term


async def worker(cluster: folkmoot.Cluster, name: str) -> None:
    ticks = cluster.counter("ticks")

    async def scheduler(term: Term[str]) -> None:
        print(f"{name} schedules now; fencing token {term.token}")
        try:
            while True:
                number = await ticks.add(1, fence=term)
                print(f"  tick {number} by {name}")
                await anyio.sleep(0.1)
        finally:
            print(f"{name} has stopped")  # before anybody else starts

    await cluster.election("scheduler", str).run(scheduler, value=name)


async def three_workers() -> None:
    """Run three of them, and let the leadership pass on, twice."""
    async with folkmoot.open() as cluster, anyio.create_task_group() as tasks:
        election = cluster.election("scheduler", str)
        async with election.watch() as changes:
            for name in ("worker-1", "worker-2", "worker-3"):
                tasks.start_soon(worker, cluster, name)
            reigns = 0
            async for change in changes:
                if not isinstance(change, Elected):
                    continue
                reigns += 1
                if reigns == 3:
                    break
                await anyio.sleep(0.25)
                waiting = await election.candidates()
                await election.transfer_to(waiting[0])
        await anyio.sleep(0.25)
        tasks.cancel_scope.cancel()


async def one_worker(name: str) -> None:
    async with folkmoot.open(name=name) as cluster:
        await worker(cluster, name)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with suppress(KeyboardInterrupt):
            anyio.run(one_worker, sys.argv[1])
    else:
        anyio.run(three_workers)
