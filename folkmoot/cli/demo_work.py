"""The demo's clients at work, and the check of each at the end.

Each workload remembers what was acknowledged to it. Its check compares that with what the cluster
says afterwards: nothing acknowledged may be missing, and nothing may have happened twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

from folkmoot.cli.demo_scene import Scene, Tally
from folkmoot.core.errors import GrantLost, OutcomeUnknown, SessionEnded, Unavailable

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster

PAUSE_S = 0.002
"""Between two operations of one worker: the demo is to show, not to measure."""
REIGN_S = 1.5
"""How long an elected leader stays."""
DELIVERY_TIMEOUT_S = 5.0
"""A message that was acknowledged must have arrived by then."""
KEYS = 100
PREFIX = "demo/"


NOT_APPLIED = (Unavailable, SessionEnded)
"""What says for certain that an operation took no effect: the next one may be tried."""


@attrs.frozen
class Crew:
    """What workloads work with."""

    scene: Scene
    clusters: Sequence[Cluster]
    """One client each, with a session of its own."""
    workers: TaskGroup
    """For tasks that end soon after `scene.working` has become false."""
    listeners: TaskGroup
    """For tasks that go on until they are cancelled, after the check."""


class Workload(Protocol):
    """Some workers with one purpose."""

    tally: Tally

    async def start(self, crew: Crew) -> None:
        """Start the workers and listeners."""
        ...

    async def check(self, scene: Scene, cluster: Cluster) -> str:
        """Compare; return a sentence on what was found, having noted faults in the scene."""
        ...


class Increments:
    """Workers add 1 to one counter. Every acknowledged increment counts, none counts twice."""

    name = PREFIX + "counter"

    def __init__(self) -> None:
        self.tally = Tally("counter")

    async def start(self, crew: Crew) -> None:
        """One worker for each cluster object."""
        for cluster in crew.clusters:
            crew.workers.start_soon(self._add, crew.scene, cluster)

    async def _add(self, scene: Scene, cluster: Cluster) -> None:
        counter = cluster.counter(self.name)
        while scene.working:
            issued = scene.now_s
            try:
                value = await counter.add(1)
                scene.acknowledged(self.tally, issued)
                self.tally.detail = f"value {value:,}"
            except OutcomeUnknown:
                self.tally.unknown += 1
            except NOT_APPLIED:
                pass
            await anyio.sleep(PAUSE_S)

    async def check(self, scene: Scene, cluster: Cluster) -> str:
        """The value must be the acknowledged increments, and at most those in doubt more."""
        value = await cluster.counter(self.name).get()
        done, unknown = self.tally.done, self.tally.unknown
        if not done <= value <= done + unknown:
            scene.fault(f"counter: {done:,} increments were acknowledged, {value:,} counted")
        doubt = f" ({unknown} without an answer)" if unknown else ""
        return f"{done:,} increments acknowledged, {value:,} counted{doubt}"


class Writes:
    """One worker overwrites the keys of a map. Each key must hold what was acknowledged last."""

    name = PREFIX + "map"

    def __init__(self) -> None:
        self.tally = Tally("map")
        self._last: dict[str, int] = {}
        self._doubt: dict[str, set[int]] = {}

    async def start(self, crew: Crew) -> None:
        """One worker alone, so that it knows what must be there."""
        crew.workers.start_soon(self._write, crew.scene, crew.clusters[0])

    async def _write(self, scene: Scene, cluster: Cluster) -> None:
        values = cluster.map(self.name)
        number = 0
        while scene.working:
            number += 1
            key = f"key-{number % KEYS:02d}"
            issued = scene.now_s
            try:
                await values.set(key, number)
                self._last[key] = number
                self._doubt.pop(key, None)
                scene.acknowledged(self.tally, issued)
                self.tally.detail = f"{key} = {number:,}"
            except OutcomeUnknown:
                self.tally.unknown += 1
                self._doubt.setdefault(key, set()).add(number)
            except NOT_APPLIED:
                pass
            await anyio.sleep(PAUSE_S)

    async def check(self, scene: Scene, cluster: Cluster) -> str:
        """Every key holds its last acknowledged value, or a later one that was in doubt."""
        values = cluster.map(self.name)
        for key, expected in sorted(self._last.items()):
            found = await values.get(key)
            if found != expected and found not in self._doubt.get(key, ()):
                scene.fault(f"map: {key} is {found}; {expected} was acknowledged")
        return f"{self.tally.done:,} writes acknowledged, {len(self._last)} keys as last written"


class Holders:
    """Workers take one lock in turn. Tokens only rise, and no two hold it at once."""

    name = PREFIX + "lock"

    def __init__(self) -> None:
        self.tally = Tally("lock")
        self._held: list[tuple[int, float, float]] = []
        """token, from, to"""
        self._lost = 0

    async def start(self, crew: Crew) -> None:
        """One worker for each cluster object: a lock is held by a session."""
        for number, cluster in enumerate(crew.clusters):
            crew.workers.start_soon(self._hold, crew.scene, cluster, f"client {number + 1}")

    async def _hold(self, scene: Scene, cluster: Cluster, who: str) -> None:
        lock = cluster.lock(self.name)
        while scene.working:
            issued = scene.now_s
            try:
                async with lock.hold() as held:
                    since = scene.now_s
                    scene.acknowledged(self.tally, issued)
                    self.tally.detail = f"{who} holds it, token {held.token:,}"
                    try:
                        await anyio.sleep(0.01)
                    finally:
                        self._held.append((held.token, since, scene.now_s))
            except (GrantLost, OutcomeUnknown, *NOT_APPLIED):
                self._lost += 1
            await anyio.sleep(PAUSE_S)

    async def check(self, scene: Scene, cluster: Cluster) -> str:
        """By time of entry: each token is greater than the one before, and no two stays overlap."""
        stays = sorted(self._held, key=lambda stay: stay[1])
        for (token, _, until), (next_token, since, _) in pairwise(stays):
            if next_token <= token:
                scene.fault(f"lock: token {next_token} was granted after token {token}")
            if since < until:
                scene.fault(f"lock: token {next_token} was held before {token} had left")
        lost = f", {self._lost} lost" if self._lost else ""
        return f"{len(stays):,} grants{lost}, tokens only rising, never two holders at once"


class Reigns:
    """Workers stand for election; each leader stays a while and resigns."""

    name = PREFIX + "election"

    def __init__(self) -> None:
        self.tally = Tally("election")
        self._reigns: list[tuple[int, float, float]] = []

    async def start(self, crew: Crew) -> None:
        """One candidate for each cluster object."""
        for number, cluster in enumerate(crew.clusters):
            crew.workers.start_soon(self._stand, crew.scene, cluster, f"client {number + 1}")

    async def _stand(self, scene: Scene, cluster: Cluster, who: str) -> None:
        election = cluster.election(self.name)
        while scene.working:
            issued = scene.now_s
            try:
                async with election.lead(value=who) as term:
                    since = scene.now_s
                    scene.acknowledged(self.tally, issued)
                    self.tally.detail = f"{who} leads, token {term.token:,}"
                    try:
                        await self._reign(scene, since)
                    finally:
                        self._reigns.append((term.token, since, scene.now_s))
            except (GrantLost, OutcomeUnknown, *NOT_APPLIED):
                pass
            await anyio.sleep(PAUSE_S)

    async def _reign(self, scene: Scene, since: float) -> None:
        while scene.now_s < since + REIGN_S and scene.working:  # noqa: ASYNC110 - set elsewhere
            await anyio.sleep(0.05)

    async def check(self, scene: Scene, cluster: Cluster) -> str:
        """As for the lock: tokens only rise, and reigns do not overlap."""
        reigns = sorted(self._reigns, key=lambda reign: reign[1])
        for (token, _, until), (next_token, since, _) in pairwise(reigns):
            if next_token <= token:
                scene.fault(f"election: token {next_token} came after token {token}")
            if since < until:
                scene.fault(f"election: reign {next_token} began before {token} had ended")
        return f"{len(reigns)} reigns, tokens only rising, never two leaders at once"


class Messages:
    """One worker publishes numbers, others receive them: all, once, in order."""

    name = PREFIX + "topic"

    def __init__(self) -> None:
        self.tally = Tally("topic")
        self._published: list[int] = []
        self._doubt: set[int] = set()
        self._received: list[list[int]] = []

    async def start(self, crew: Crew) -> None:
        """The first cluster object publishes, the others receive. Returns once they listen."""
        for cluster in crew.clusters[1:]:
            received: list[int] = []
            self._received.append(received)
            await crew.listeners.start(self._receive, cluster, received)
        crew.workers.start_soon(self._publish, crew.scene, crew.clusters[0])

    async def _publish(self, scene: Scene, cluster: Cluster) -> None:
        topic = cluster.topic(self.name)
        number = 0
        while scene.working:
            number += 1
            issued = scene.now_s
            try:
                await topic.publish(number)
                self._published.append(number)
                scene.acknowledged(self.tally, issued)
            except OutcomeUnknown:
                self.tally.unknown += 1
                self._doubt.add(number)
            except NOT_APPLIED:
                pass
            counts = " and ".join(f"{len(received):,}" for received in self._received)
            self.tally.detail = f"received {counts}"
            await anyio.sleep(PAUSE_S)

    async def _receive(
        self, cluster: Cluster, received: list[int], *, task_status: TaskStatus[None]
    ) -> None:
        from folkmoot.primitives.topic import Message

        async with cluster.topic(self.name).subscribe() as messages:
            task_status.started()
            async for message in messages:
                if isinstance(message, Message):  # a Resync would be seen as missing messages
                    received.append(int(message.value))  # noqa: PERF401

    async def check(self, scene: Scene, cluster: Cluster) -> str:
        """Each subscriber has what was acknowledged, once and in order."""
        with anyio.move_on_after(DELIVERY_TIMEOUT_S):
            while any(self._missing(received) for received in self._received):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        for number, received in enumerate(self._received, start=1):
            if missing := self._missing(received):
                scene.fault(f"topic: subscriber {number} misses {sorted(missing)[:5]}")
            if twice := [value for value, times in Counter(received).items() if times > 1]:
                scene.fault(f"topic: subscriber {number} received twice {sorted(twice)[:5]}")
            if received != sorted(received):
                scene.fault(f"topic: subscriber {number} received out of order")
            if strange := {*received} - {*self._published} - self._doubt:
                scene.fault(f"topic: subscriber {number} received what nobody sent: {strange}")
        each = f"{len(self._received)} subscribers got each once, in order"
        return f"{len(self._published):,} messages acknowledged, {each}"

    def _missing(self, received: list[int]) -> set[int]:
        return {*self._published} - {*received}


def all_workloads() -> list[Workload]:
    """One of each primitive."""
    return [Increments(), Writes(), Holders(), Reigns(), Messages()]
