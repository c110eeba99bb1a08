"""A replicated machine of one's own: a token bucket, which limits how often many processes act.

    python examples/own_machine.py

A machine is a plain class. Methods marked `@command` are reached only through the log and change
the state, on every server alike; methods marked `@query` read it. It takes the road that the
built-in primitives take: the servers are told its class, the client asks for it by name, and around
that a proxy of a few lines gives it types.

Time is `context.time`, log time in milliseconds: no machine looks at a clock of its own, or the
servers would disagree. It stands still while there is no leader.

The server here is embedded in this process and keeps its log in a directory, so FOLKMOOT_URL does
not matter: servers that run elsewhere would have to be told the class as well, with
`Node(config, machines=[TokenBucket])`.
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import anyio

import folkmoot


class TokenBucket(folkmoot.Machine):
    """Holds up to `burst` tokens and gets `per_second` new ones each second; full at the start.

    All is integers, in thousandths of a token, so that every server computes the same.
    """

    type_name = "example.token_bucket"

    def __init__(self, config: Mapping[str, Any]) -> None:
        match config:
            case {"per_second": int(per_second), "burst": int(burst)} if min(per_second, burst) > 0:
                self._per_second, self._full = per_second, burst * 1000
            case _:
                raise folkmoot.ConfigError(f"per_second and burst above 0 are needed: {config}")
        self._level = self._full
        self._filled_at = 0

    @folkmoot.command
    def take(self, context: folkmoot.Context, tokens: int) -> int:
        """Take tokens and return 0; or take none, and return in how many ms to try again."""
        if not 0 < tokens * 1000 <= self._full:  # before anything has changed
            raise folkmoot.LimitExceeded(f"{tokens} tokens: 1 to {self._full // 1000} can be taken")
        self._level, self._filled_at = self._level_at(context.time), context.time
        missing = tokens * 1000 - self._level
        if missing > 0:
            return -(-missing // self._per_second)  # rounded up
        self._level -= tokens * 1000
        return 0

    @folkmoot.query
    def level(self, context: folkmoot.QueryContext) -> int:
        """Return how many whole tokens there are."""
        return self._level_at(context.time) // 1000

    def snapshot(self) -> list[int]:
        """Return all of the state; the configuration is kept for us."""
        return [self._level, self._filled_at]

    def restore(self, data: list[int]) -> None:
        """Take it back."""
        self._level, self._filled_at = data

    def _level_at(self, time: int) -> int:
        return min(self._full, self._level + (time - self._filled_at) * self._per_second)


class RateLimiter:
    """The proxy: what an application sees."""

    def __init__(self, cluster: folkmoot.Cluster, name: str, *, per_second: int, burst: int):
        config = {"per_second": per_second, "burst": burst}
        self._bucket = cluster.resource(TokenBucket, name, config)

    async def try_take(self, tokens: int = 1, *, timeout: float | None = None) -> float:
        """Take tokens and return 0.0; or take none, and return in how many seconds to try again."""
        wait_ms: int = await self._bucket.command("take", tokens, timeout=timeout)
        return wait_ms / 1000

    async def take(self, tokens: int = 1) -> None:
        """Take tokens, as soon as there are enough."""
        while True:
            wait = await self.try_take(tokens)
            if not wait:
                return
            await anyio.sleep(wait)

    async def level(self) -> int:
        """Return how many tokens there were at the last entry of the log."""
        level, _ = await self._bucket.query("level")
        return int(level)


async def send_mails(limiter: RateLimiter, name: str) -> None:
    for number in range(4):
        await limiter.take()
        print(f"{name} sends mail {number}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with folkmoot.open(directory, machines=[TokenBucket]) as cluster:
            limiter = RateLimiter(cluster, "mails", per_second=20, burst=3)
            started = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_mails, limiter, "worker-1")
                tasks.start_soon(send_mails, limiter, "worker-2")
            print(f"8 mails took {anyio.current_time() - started:.2f} s")
            try:
                await limiter.try_take(100)
            except folkmoot.LimitExceeded as error:
                print(f"refused: {error}")
        # The state is in the log: another server, or this one at its next start, goes on with it.
        async with folkmoot.open(directory, machines=[TokenBucket]) as cluster:
            limiter = RateLimiter(cluster, "mails", per_second=20, burst=3)
            print(f"after a restart there are {await limiter.level()} tokens, not 3")


if __name__ == "__main__":
    anyio.run(main)
