"""What applications do with a client: a random mixture of everything that the machines offer.

Every step issues one operation or a small burst. Locks and elections are used as their proxies use
them: claim, wait for the grant, hold it for a while (writing with it as a fence), give it back; a
claim is sometimes withdrawn while it waits or as it is granted.

`drain` begins the end of a run: nothing new is begun, what is held is given back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from folkmoot.core.errors import FolkmootError, Overloaded, SessionEnded
from folkmoot.core.event_chain import Event
from folkmoot.core.pipeline import Command
from folkmoot.core.queries import Query
from folkmoot.core.targets import Target
from folkmoot.core.types import Consistency

if TYPE_CHECKING:
    from tests.sim.client import SimClient

COUNTERS = ("hits", "misses")
KEYS = ("a", "b", "c")
OPEN_CALLS_MAX = 24
"""An application waits when so many of its calls have no answer."""


class Call(Command):
    """A command of an application, and what it does with the answer."""

    __slots__ = ("args", "client", "name", "then")

    def __init__(
        self,
        client: SimClient,
        target: Target,
        name: str,
        args: tuple[Any, ...],
        then: Callable[[Call], None] | None = None,
        fence: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(target, name, args, fence)
        self.client = client
        self.name = name
        self.args = args
        self.then = then

    def finished(self) -> None:
        """The answer is here."""
        self.client.application.on_answer(self)


class Ask(Query):
    """A read of an application."""

    __slots__ = ("args", "behind", "client", "floor", "name")

    def __init__(
        self,
        client: SimClient,
        target: Target,
        name: str,
        args: tuple[Any, ...],
        consistency: Consistency,
    ) -> None:
        super().__init__(target, name, args, consistency)
        self.client = client
        self.name = name
        self.args = args
        self.floor = 0
        """The index below which the answer must not lie; the checks' to set."""
        self.behind: Call | None = None
        """The last command that was issued before it."""

    def finished(self) -> None:
        """The answer is here."""
        self.client.application.on_answer(self)


@attrs.define(eq=False)
class Claim:
    """A lock or an election as one application uses it."""

    target: Target
    state: str = "idle"
    """idle, asked, waiting, held, leaving"""
    request: int = 0
    token: int = 0


class Application:
    """The user of one client."""

    def __init__(self, client: SimClient, rng: random.Random) -> None:
        self.client = client
        self.rng = rng
        self.is_draining = False
        self.pending: dict[Call | Ask, None] = {}
        """Calls that have no answer yet."""
        self.last_call: Call | None = None
        make = client.core.targets.make
        self.counters = [make(name, "counter", 1, {}) for name in COUNTERS]
        self.map = make("map", "map", 1, {})
        self.guarded = make("guarded", "map", 1, {})
        self.topic = make("topic", "topic", 1, {"count": 5})
        self.claims = [
            Claim(make("lock", "lock", 1, {})),
            Claim(make("slow lock", "lock", 1, {"lock_delay_ms": 100})),
            Claim(make("election", "election", 1, {})),
        ]
        self._request = 0
        self._written = 0

    def start(self) -> None:
        """Begin to work."""
        self._step_later()

    def drain(self) -> None:
        """Begin nothing new, and give back what is held."""
        self.is_draining = True
        for claim in self.claims:
            if claim.state == "held":
                self._give_back(claim)
        self.client.wake()

    @property
    def is_idle(self) -> bool:
        """Whether every call has ended and nothing is claimed."""
        return not self.pending and all(claim.state == "idle" for claim in self.claims)

    # -- steps ---------------------------------------------------------------------------------

    def _step_later(self) -> None:
        options = self.client.world.options
        mean_s = options.clients * (1 + options.burst) / 2 / options.work_rate
        self.client.world.scheduler.after(self.rng.expovariate(1 / mean_s), self._step)

    def _step(self) -> None:
        client = self.client
        if not client.is_alive or self.is_draining:
            return
        self._step_later()
        if client.is_paused or len(self.pending) >= OPEN_CALLS_MAX:
            return
        options = client.world.options
        for _ in range(self.rng.randint(1, options.burst)):
            if self.rng.random() < options.read_part:
                self._read()
            else:
                self.rng.choices(
                    (self._count, self._write, self._claim, self._publish, self._subscribe),
                    (5, 4, 4, 1, 1),
                )[0]()
        client.wake()

    def _read(self) -> None:
        rng = self.rng
        levels = [Consistency.LINEARIZABLE, Consistency.SEQUENTIAL]
        if self.client.world.options.uses_leases:
            levels.append(Consistency.LEASE)
        consistency = rng.choice(levels)
        if rng.random() < 0.6:
            self._ask(rng.choice(self.counters), "get", (), consistency)
        else:
            self._ask(self.map, "get", (rng.choice(KEYS),), consistency)

    def _count(self) -> None:
        rng = self.rng
        counter = rng.choice(self.counters)
        kind = rng.random()
        if kind < 0.8:
            self._call(counter, "add", (1,))
        elif kind < 0.9:
            self._call(counter, "add", (rng.randint(-3, 5),))
        else:
            self._request += 1
            self._call(counter, "wait_for", (self._request, rng.randint(0, 200), None))

    def _write(self) -> None:
        rng = self.rng
        self._written += 1
        value = f"{self.client.name}.{self.client.life}.{self._written}".encode()
        kind = rng.random()
        if kind < 0.5:
            self._call(self.map, "set", (rng.choice(KEYS), value))
        elif kind < 0.6:
            self._write_many(value)
        elif kind < 0.7:
            self._call(self.map, "delete", (rng.choice(KEYS),))
        elif kind < 0.8:
            self._call(self.map, "create", (rng.choice(KEYS), value))
        else:
            self._call(self.map, "set", ("short", value, rng.randint(50, 1500)))

    def _write_many(self, value: bytes) -> None:
        """Several keys by one command; most die one by one, and some have a time to live."""
        rng = self.rng
        if rng.random() < 0.5:
            self._call(self.map, "set_many", (dict.fromkeys(KEYS[1:], value),))
            return
        padded = value + bytes(self.client.world.options.padding)
        keys = [f"more {rng.randint(0, 30)}" for _ in range(rng.randint(1, 4))]
        ttl = rng.choice((0, -1, rng.randint(50, 5000)))
        self._call(self.map, "set_many", (dict.fromkeys(keys, padded), ttl))

    def _publish(self) -> None:
        self._written += 1
        self._call(self.topic, "publish", (f"{self.client.name} says {self._written}".encode(),))

    def _subscribe(self) -> None:
        target = self.rng.choice([self.map, self.topic, self.claims[0].target, self.counters[0]])
        name = self.rng.choice(("subscribe", "subscribe", "unsubscribe"))
        self._call(target, name, ("prefix", ""))

    # -- claims --------------------------------------------------------------------------------

    def _claim(self) -> None:
        claim = self.rng.choice(self.claims)
        if claim.state == "idle":
            if claim.token and self.rng.random() < 0.2:
                self._fenced_write(claim)  # its time is over, and it does not know
            self._ask_for(claim)
        elif claim.state == "waiting" and self.rng.random() < 0.4:
            self._withdraw(claim)
        elif claim.state == "held":
            self._fenced_write(claim)

    def _ask_for(self, claim: Claim) -> None:
        self._request += 1
        claim.state, claim.request, claim.token = "asked", self._request, 0
        timeout_ms = self.rng.choice((None, None, 0, 200, 1000))
        then = self._then(claim, self._on_claimed)
        if claim.target.type_name == "lock":
            self._call(claim.target, "acquire", (claim.request, timeout_ms), then)
        else:
            args = (claim.request, b"", self.rng.randint(0, 2), timeout_ms)
            self._call(claim.target, "campaign", args, then)

    def _on_claimed(self, claim: Claim, call: Call) -> None:
        value = call.value
        waits = value == 0 or (type(value) is list and len(value) == 2 and value[1] == 0)
        if call.error is not None or value == []:
            claim.state = "idle"
        elif not waits:
            self._granted(claim, value if type(value) is int else value[1])
        elif call.args[-1] == 0:
            claim.state = "idle"
        else:
            claim.state = "waiting"

    def _granted(self, claim: Claim, token: int) -> None:
        claim.state, claim.token = "held", token
        self.client.world.checks.granted(self.client, claim.target, token)
        if self.is_draining:
            self._give_back(claim)
            return
        if self.rng.random() < 0.5:
            self._fenced_write(claim)
        held_s = self.rng.random() * self.client.world.options.hold_s
        self.client.world.scheduler.after(held_s, self._done_with, claim, token)

    def _done_with(self, claim: Claim, token: int) -> None:
        client = self.client
        if not client.is_alive or claim.state != "held" or claim.token != token:
            return
        if client.is_paused:
            client.world.scheduler.after(0.1, self._done_with, claim, token)
            return
        self._give_back(claim)
        client.wake()

    def _give_back(self, claim: Claim) -> None:
        claim.state = "leaving"
        self.client.world.checks.given_up(self.client, claim.target)
        if self.rng.random() < 0.7:
            self._call(claim.target, "release", (claim.token,), self._then(claim, self._left))
        else:
            self._withdraw(claim)

    def _withdraw(self, claim: Claim) -> None:
        claim.state = "leaving"
        self._call(claim.target, "withdraw", (claim.request,), self._then(claim, self._left))

    def _left(self, claim: Claim, call: Call) -> None:
        if isinstance(call.error, Overloaded):  # not taken at all: the claim is still there
            self._withdraw(claim)
            self.client.wake()
        else:
            claim.state = "idle"

    def _then(self, claim: Claim, handle: Callable[[Claim, Call], None]) -> Callable[[Call], None]:
        request = claim.request

        def then(call: Call) -> None:
            if claim.request == request and claim.state != "idle":
                handle(claim, call)

        return then

    def _fenced_write(self, claim: Claim) -> None:
        if claim.target.known:
            self._written += 1
            value = f"{self.client.name}.{self.client.life}.{self._written}".encode()
            fence = (claim.target.id, claim.token)
            self._call(self.guarded, "set", (claim.target.name, value), fence=fence)

    # -- operations ----------------------------------------------------------------------------

    def _call(
        self,
        target: Target,
        name: str,
        args: tuple[Any, ...],
        then: Callable[[Call], None] | None = None,
        fence: tuple[int, int] | None = None,
    ) -> None:
        call = Call(self.client, target, name, args, then, fence)
        self.pending[call] = None
        self.last_call = call
        self.client.core.issue(call)
        abandon = self.client.world.options.abandon
        if then is None and abandon and self.rng.random() < abandon:
            self.client.world.scheduler.after(self.rng.random() * 0.05, self._abandon, call)

    def probe(self) -> None:
        """One command and one read, at the end of a run."""
        self._call(self.counters[0], "add", (1,))
        self._ask(self.counters[0], "get", (), Consistency.LINEARIZABLE)
        self.client.wake()

    def _abandon(self, call: Call) -> None:
        """The caller gives up: the call is taken back if it was not sent, else nobody listens."""
        if call in self.pending and self.client.is_alive:
            self.client.world.trace.count("calls abandoned")
            if self.client.core.pipeline.withdraw(call):
                del self.pending[call]

    def _ask(
        self, target: Target, name: str, args: tuple[Any, ...], consistency: Consistency
    ) -> None:
        ask = Ask(self.client, target, name, args, consistency)
        ask.behind = self.last_call
        self.pending[ask] = None
        self.client.world.checks.asked(self.client, ask)
        self.client.core.read(ask)

    # -- what comes back -----------------------------------------------------------------------

    def on_answer(self, operation: Call | Ask) -> None:
        """A call or a read has ended."""
        world = self.client.world
        assert operation in self.pending, f"{operation.name} was answered twice, or after it ended"
        del self.pending[operation]
        error = operation.error
        code = "ok" if error is None else error.code
        world.trace.add("answer", self.client.name, operation.name, operation.index, code)
        if isinstance(operation, Ask):
            world.checks.read(self.client, operation)
            return
        world.trace.count(f"commands {_outcome(error)}")
        world.trace.count("commands refused", int(isinstance(error, Overloaded)))
        world.checks.answered(self.client, operation)
        if operation.then is not None and not isinstance(error, SessionEnded):
            operation.then(operation)

    def on_event(self, event: Event) -> None:
        """Something was published to this session."""
        world = self.client.world
        world.trace.add("event", self.client.name, event.index, event.kind)
        world.trace.count("events delivered")
        for claim in self.claims:
            if claim.target is not event.target:
                continue
            mine = type(event.payload) is list and event.payload[:1] == [claim.request]
            if event.kind == "grant" and mine and claim.state in ("asked", "waiting"):
                self._granted(claim, event.payload[1])
            elif event.kind == "timed_out" and mine and claim.state in ("asked", "waiting"):
                claim.state = "idle"

    def on_session_lost(self) -> None:
        """Whatever was owned is lost."""
        for claim in self.claims:
            if claim.state == "held":
                self.client.world.checks.given_up(self.client, claim.target)
            claim.state = "idle"

    def on_crash(self) -> None:
        """The client is gone: nobody learns what became of its calls."""
        world = self.client.world
        for operation in self.pending:
            if isinstance(operation, Call):
                world.trace.count("commands unknown")
                world.checks.lost(self.client, operation)
        self.pending.clear()
        self.on_session_lost()


def _outcome(error: FolkmootError | None) -> str:
    if error is None:
        return "ok"
    return {"yes": "failed", "no": "failed", "maybe": "unknown"}[error.applied]
