"""React to changes: feature flags that every process has at hand, and that follow a shared map.

    python examples/react.py                                 in memory: flags are changed, and heard
    FOLKMOOT_URL=folkmoot://a,b,c python examples/react.py            the same against a cluster

and, with FOLKMOOT_URL set, a program that listens until Ctrl-C, while another terminal changes
flags with `folkmoot set flags dark-mode on` and `folkmoot del flags dark-mode`:

    python examples/react.py listen

A watch misses nothing and repeats nothing. Where that cannot be kept (the session was lost, the
reader was too far behind) it says so with a `Resync`: everything, as it is now. The first change of
`watch(initial=True)` is one, too, so the code that handles it is all that is needed to start.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress

import anyio

import folkmoot


class Flags:
    """What this process knows of the flags: to ask costs nothing, and needs no network."""

    def __init__(self) -> None:
        self.revision = 0
        self._values: Mapping[str, str] = {}
        self._changed = anyio.Event()

    def __getitem__(self, name: str) -> bool:
        return self._values.get(name) == "on"

    async def reached(self, revision: int) -> None:
        """Wait until the flags as of `revision`, or later, are known here."""
        while self.revision < revision:
            await self._changed.wait()

    async def follow(self, cluster: folkmoot.Cluster) -> None:
        """Keep in step with the map, for ever."""
        async with cluster.map("flags", str).watch(initial=True) as changes:
            async for change in changes:
                match change:
                    case folkmoot.Resync(snapshot, revision):
                        self._values = dict(snapshot)
                        print(f"revision {revision}: the flags are {self._values}")
                    case folkmoot.Changed(key, value, old, revision):
                        self._values = {**self._values, key: value}
                        print(f"revision {revision}: {key} is {value}, was {old or 'unset'}")
                    case folkmoot.Deleted(key, _, reason, revision):
                        self._values = {k: v for k, v in self._values.items() if k != key}
                        print(f"revision {revision}: {key} was {reason}")
                self.revision = change.revision
                self._changed.set()
                self._changed = anyio.Event()


async def main() -> None:
    async with folkmoot.open() as cluster, anyio.create_task_group() as tasks:
        shared, flags = cluster.map("flags", str), Flags()
        revision = await shared.set("dark-mode", "off")
        tasks.start_soon(flags.follow, cluster)
        await flags.reached(revision)
        await shared.set("dark-mode", "on")
        revision = await shared.set("sale", "on", ttl=0.3)
        await flags.reached(revision)
        print("dark mode is", "on" if flags["dark-mode"] else "off")
        await flags.reached(revision + 1)  # the next change: the sale's time is over
        print("the sale is", "on" if flags["sale"] else "over")
        tasks.cancel_scope.cancel()


async def listen() -> None:
    async with folkmoot.open() as cluster:
        await Flags().follow(cluster)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        anyio.run(listen if sys.argv[1:] == ["listen"] else main)
