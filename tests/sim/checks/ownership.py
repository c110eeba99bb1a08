"""Locks and elections: one holder, rising tokens, nothing owned by the dead, fences that hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.targets import Target
from folkmoot.primitives._seat import Seat
from folkmoot.primitives._subscriptions import Subscriptions
from folkmoot.transport.codec import unpack
from tests.sim.checks import Checker, Done, Step

if TYPE_CHECKING:
    from tests.sim.client import SimClient

FENCES, ENDS, GRANTS = 0, 1, 2
"""What happens in one entry, in this order."""


@attrs.define
class Holding:
    """Who holds a resource, as answers and events tell it."""

    session: int = 0
    request: int = 0
    token: int = 0
    last_token: int = 0


@attrs.define(eq=False, slots=False)
class OneHolder(Checker):
    rule = "invariant 6: at any index at most one session holds; tokens strictly increase"
    holdings: dict[int, Holding] = attrs.field(factory=dict)
    waiting: dict[tuple[int, int], int] = attrs.field(factory=dict)
    """(session, resource) -> claims that wait; only for the counters."""
    ended: set[tuple[int, int, int, int]] = attrs.field(factory=set)
    """(index, resource, session, request) of claims that a command ended."""

    def step(self, step: Step) -> None:
        changes: list[tuple[int, int, int, list[int]]] = []
        resources = step.multiplexer.directory.resources
        for done in step.done:
            if done.resource in self.holdings or done.operation[1] in ("acquire", "campaign"):
                changes += self._by_command(done)
            if len(done.operation) == 4:
                resource, token = done.operation[3]
                changes.append((done.index, FENCES, resource, [token, int(not done.error)]))
        for one in step.applied.ended:
            if one.reason != "unknown":
                changes.append((one.index, ENDS, 0, [one.session_id]))
                self._queued(one.session_id, one.reason)
        for session, batches in step.events.items():
            for index, events in batches:
                for event in events:
                    resource, kind, payload = unpack(event)
                    if resource in resources and resources[resource].type_name != "topic":
                        changes += self._by_event(index, session, resource, kind, payload)
        for index, what, resource, fields in sorted(changes):
            self._change(index, what, resource, fields)
        self._compare(step.multiplexer)

    def _by_command(self, done: Done) -> list[tuple[int, int, int, list[int]]]:
        name, args, value = done.operation[1], done.operation[2], done.value
        if done.error:
            return []
        if name in ("acquire", "campaign"):
            token = value if type(value) is int else (value or [0, 0])[1]
            if token:
                return [(done.index, GRANTS, done.resource, [done.session, args[0], token])]
            if value != [] and args[-1] != 0:
                self._waits(done.session, done.resource, 1)
        elif name == "release":
            return [(done.index, ENDS, done.resource, [done.session, 0, args[0]])]
        elif name == "withdraw" and value:
            self.world.trace.count("claims withdrawn")
            holding = self.holdings[done.resource]
            if not (holding.session == done.session and holding.request == args[0]):
                self._waits(done.session, done.resource, -1)
            return [(done.index, ENDS, done.resource, [done.session, args[0]])]
        return []

    def _by_event(
        self, index: int, session: int, resource: int, kind: str, payload: Any
    ) -> list[tuple[int, int, int, list[int]]]:
        if kind == "grant":
            self.world.trace.count("grants by event")
            self._waits(session, resource, -1)
            return [(index, GRANTS, resource, [session, payload[0], payload[1]])]
        if kind == "timed_out":
            self.world.trace.count("waits timed out")
            self._waits(session, resource, -1)
        return []

    def _waits(self, session: int, resource: int, by: int) -> None:
        self.waiting[session, resource] = self.waiting.get((session, resource), 0) + by

    def _queued(self, session: int, reason: str) -> None:
        for key in [key for key in self.waiting if key[0] == session]:
            if self.waiting.pop(key) > 0 and reason == "expired":
                self.world.trace.count("expired while queued")

    def _change(self, index: int, what: int, resource: int, fields: list[int]) -> None:
        if what == GRANTS:
            self._grant(index, resource, *fields)
        elif what == FENCES:
            self._fence(index, resource, fields[0], bool(fields[1]))
        elif len(fields) == 1:
            for holding in self.holdings.values():
                if holding.session == fields[0]:
                    holding.session = 0
        else:
            holding = self.holdings[resource]
            session, request, *token = fields
            self.ended.add((index, resource, session, request))
            mine = holding.session == session and holding.request == request
            if mine or (token and holding.token == token[0]):
                holding.session = 0

    def _grant(self, index: int, resource: int, session: int, request: int, token: int) -> None:
        self.world.trace.count("grants")
        holding = self.holdings.setdefault(resource, Holding())
        if holding.session:
            self.fail(
                f"resource {resource} is granted to session {session} at {index}, "
                f"while session {holding.session} holds it with token {holding.token}"
            )
        if token <= holding.last_token:
            self.fail(
                f"resource {resource} is granted with token {token} at {index}, "
                f"after token {holding.last_token}"
            )
        holding.session, holding.request = session, request
        holding.token = holding.last_token = token
        if (index, resource, session, request) in self.ended:
            # A deadline granted it before the entry, and the entry was its withdrawal.
            holding.session = 0

    def _compare(self, multiplexer: Multiplexer) -> None:
        """The machine itself must be of the same opinion."""
        resources = multiplexer.directory.resources
        for resource_id, holding in self.holdings.items():
            resource = resources.get(resource_id)
            seat: Seat | None = getattr(resource and resource.machine, "_seat", None)
            if seat is not None:
                token = seat.holder.token if seat.holder is not None else 0
                if token != (holding.token if holding.session else 0):
                    self.fail(f"{resource} has holder {seat.holder}, told was {holding}")

    def _fence(self, index: int, resource: int, token: int, passed: bool) -> None:
        """A fenced write takes effect exactly while the grant that it names is held (I1)."""
        self.world.trace.count("fenced writes" if passed else "fenced writes refused")
        holding = self.holdings.get(resource, Holding())
        held = bool(holding.session) and holding.token == token
        if passed != held:
            self.fail(
                f"a write at {index} fenced with token {token} of resource {resource} "
                f"{'passed' if passed else 'was refused'}, told was {holding}"
            )


@attrs.define(eq=False, slots=False)
class NothingOwnedByTheDead(Checker):
    rule = "H8, I2: what a session owned or waited for is gone in the entry that ends it"

    def step(self, step: Step) -> None:
        if not step.applied.ended and step.batch.last_index % 16:
            return
        alive = step.multiplexer.sessions
        for resource in step.multiplexer.directory.resources.values():
            owners = list(resource.sessions)
            seat: Seat | None = getattr(resource.machine, "_seat", None)
            if seat is not None:
                owners += [claim.session for claim in seat]
            subscriptions: Subscriptions | None = getattr(resource.machine, "_subscriptions", None)
            if subscriptions is not None:
                owners += subscriptions.everybody()
            dead = sorted(owner for owner in set(owners) if alive.get(owner) is None)
            if dead:
                self.fail(f"{resource.describe()} is owned by sessions {dead}, which have ended")


@attrs.define(eq=False, slots=False)
class BelieversExclude(Checker):
    rule = "I1, I3: two clients never believe at one time that they hold the same lock"
    believers: dict[str, dict[str, tuple[SimClient, int]]] = attrs.field(factory=dict)

    def granted(self, client: SimClient, target: Target, token: int) -> None:
        if not client.core.session.owns or client.is_expired():
            return  # told of it together with the end of its session
        believers = self.believers.setdefault(target.name, {})
        for name, (other, other_token) in list(believers.items()):
            if not other.is_alive or other.is_expired():
                del believers[name]
            elif other is not client and self.world.options.uses_leases:
                self.fail(
                    f"{client.name} holds {target.name!r} with token {token}, and {name} counts "
                    f"on its token {other_token} for "
                    f"{other.core.local_deadline - other.clock.now():.3f} s more"
                )
        believers[client.name] = (client, token)

    def given_up(self, client: SimClient, target: Target) -> None:
        self.believers.get(target.name, {}).pop(client.name, None)
