"""The network: how long frames take, which ways are blocked, and streams that stall and break.

A STREAM is one direction of a connection, as TCP gives it: bytes come in order, late, or not at
all. While its way is blocked it stalls, and goes on when the block is lifted (with everything that
is old by then, which is the hard part for consensus). When the connection breaks, what was under
way is lost from some point on.

A DATAGRAM is lost, repeated and overtaken for itself. No real link of ours does that; consensus
must stand it all the same.

A way is a pair of names, (from, to): "1", "2", ... for servers, "c0", "c1", ... for clients.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable

from tests.sim.options import Options
from tests.sim.scheduler import Scheduler
from tests.sim.trace import Trace

Way = tuple[str, str]


class Network:
    """All ways between all names."""

    def __init__(
        self, options: Options, scheduler: Scheduler, trace: Trace, rng: random.Random
    ) -> None:
        self.options = options
        self.scheduler = scheduler
        self.trace = trace
        self.rng = rng
        self.calm = False
        """No drops, repeats or long delays any more."""
        self._blocks: dict[int, frozenset[Way]] = {}
        self._blocked: set[Way] = set()
        self._number = 0
        self._stalled: dict[Stream, None] = {}

    def delay(self) -> float:
        """How long the next frame takes."""
        options, rng = self.options, self.rng
        if options.tail and not self.calm and rng.random() < options.tail:
            return rng.random() ** 2 * options.tail_s
        return options.latency_s * (0.5 + rng.random())

    def is_open(self, sender: str, receiver: str) -> bool:
        """Whether frames get through."""
        return (sender, receiver) not in self._blocked

    def block(self, ways: Iterable[Way]) -> int:
        """Block these ways; return the number to `unblock` by."""
        self._number += 1
        self._blocks[self._number] = frozenset(ways)
        self._refresh()
        return self._number

    def unblock(self, number: int) -> None:
        """Lift one block, if it is not lifted yet."""
        if self._blocks.pop(number, None) is not None:
            self._refresh()

    def heal(self) -> None:
        """Lift all blocks."""
        self._blocks.clear()
        self._refresh()

    def stall(self, stream: Stream) -> None:
        """Remember a stream that is to go on once its way is open."""
        self._stalled[stream] = None

    def _refresh(self) -> None:
        self._blocked = {way for ways in self._blocks.values() for way in ways}
        stalled, self._stalled = self._stalled, {}
        for stream in stalled:
            if self.is_open(stream.sender, stream.receiver):
                self.trace.count("stalled streams resumed")
                stream.resume()
            else:
                self._stalled[stream] = None

    def datagram(
        self, sender: str, receiver: str, data: bytes, deliver: Callable[[bytes], None]
    ) -> None:
        """Send something that may be lost, repeated and overtaken."""
        options, rng = self.options, self.rng
        copies = 1
        if not self.calm:
            if rng.random() < options.drop:
                self.trace.count("frames dropped")
                return
            if rng.random() < options.repeat:
                self.trace.count("frames repeated")
                copies = 2
        for copy in range(copies):
            late = rng.random() * 2 * options.tail_s if copy else 0.0
            self.scheduler.after(self.delay() + late, self._arrive, sender, receiver, data, deliver)

    def _arrive(
        self, sender: str, receiver: str, data: bytes, deliver: Callable[[bytes], None]
    ) -> None:
        if self.is_open(sender, receiver):
            deliver(data)


class Stream:
    """One direction of one connection.

    - What is delivered is a prefix of what was sent, in order; then perhaps the end.
    - One event is scheduled at most, for the oldest piece.
    """

    __slots__ = (
        "_deliver",
        "_flight",
        "_network",
        "_scheduled",
        "is_over",
        "receiver",
        "sender",
    )

    def __init__(
        self,
        network: Network,
        sender: str,
        receiver: str,
        deliver: Callable[[Stream, bytes | None], None],
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.is_over = False
        """Nothing more is taken."""
        self._network = network
        self._deliver = deliver
        self._flight: deque[tuple[float, bytes | None]] = deque()
        self._scheduled = False

    def send(self, data: bytes) -> None:
        """Send bytes behind all that was sent before."""
        if not self.is_over:
            self._put(data)

    def end(self) -> None:
        """Close behind what was sent: the receiver is told (None)."""
        if not self.is_over:
            self._put(None)
            self.is_over = True

    def breaks(self) -> None:
        """Lose what is under way from some point on, and then tell the receiver."""
        keep = self._network.rng.randint(0, len(self._flight))
        while len(self._flight) > keep:
            self._flight.pop()
        self.is_over = False
        self.end()

    def drop(self) -> None:
        """The receiver is gone: nothing arrives any more."""
        self._flight.clear()
        self.is_over = True

    def resume(self) -> None:
        """Go on after the way was blocked."""
        self._schedule(self._network.scheduler.now + self._network.delay())

    def _put(self, data: bytes | None) -> None:
        network = self._network
        when = network.scheduler.now + network.delay()
        if self._flight:
            when = max(when, self._flight[-1][0])
        self._flight.append((when, data))
        self._schedule(when)

    def _schedule(self, when: float) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._network.scheduler.at(when, self._arrive)

    def _arrive(self) -> None:
        self._scheduled = False
        network, flight = self._network, self._flight
        if not flight:
            return
        if not network.is_open(self.sender, self.receiver):
            network.stall(self)
            return
        while flight and flight[0][0] <= network.scheduler.now:
            self._deliver(self, flight.popleft()[1])
        if flight:
            self._schedule(flight[0][0])
