"""One seat, which one claim holds while others wait in order: the heart of Lock and Election.

Pure: no I/O, no clock, no randomness. It lives inside a machine and is the ONLY place that grants:
whoever holds is `holder`, nothing else says so, and nobody infers it from what he reads.

A CLAIM is made by one command and known by (session, request), where the request is a number that
the client chose, so that it can withdraw before it has heard of anything. It waits in the queue, by
rank, or it holds the seat and has a token. Its owner hears, in the log's order and never dropped:

    grant      [request, token, note]    the claim has waited and now holds the seat
    timed_out  [request]                 the claim has waited as long as it wanted to, and is gone
    ended      [request, token, cause]   somebody else ended the claim (token 0: it was waiting)
    revoked    [request, token, cause]   the holder is asked to give the seat up; it still holds

A claim that is granted by its own entry hears so in that entry's answer and not as an event.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

import attrs

from folkmoot.core.errors import BadCommand, LimitExceeded
from folkmoot.core.machine import Context

WAITERS_MAX = 100_000
"""Waiting claims of one seat; a further one is refused with LimitExceeded."""


class Tokens:
    """Draws fencing tokens: the entry's index, or the last one + 1, so that they only rise."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0

    def draw(self, index: int) -> int:
        self.last = max(index, self.last + 1)
        return self.last


@attrs.define(eq=False)
class Claim:
    """One who waits for the seat or holds it."""

    order: int
    """Names the claim and ranks equals: the index of its entry, or the last order + 1."""
    session: int
    request: int
    since: int
    """Log time (ms) since which it waits, or, once it holds, since which it holds."""
    until: int | None = None
    """Log time (ms) until which it waits; None: for ever."""
    priority: int = 0
    promoted: int = 0
    """Above zero once somebody has put it at the head; ranks before any priority."""
    token: int = 0
    """The fencing token; 0 while it waits."""
    value: bytes = b""

    def rank(self) -> tuple[int, int, int]:
        return -self.promoted, -self.priority, self.order


class Seat:
    """The holder, the queue, and the numbers that only rise.

    Several seats of one resource share their `tokens`.

    - At most one claim holds; it is not in the queue, and only its token is not 0.
    - The queue is sorted by rank; no two claims share (session, request).
    - Orders and tokens strictly increase. A token is the granting entry's index, or, where one
      entry grants twice, the last token + 1.
    - Each claim's session lives, as long as `drop_session` runs in the entry that ends the session.
    """

    __slots__ = ("_claims", "holder", "last_order", "queue", "tokens")

    def __init__(self, tokens: Tokens | None = None) -> None:
        self.tokens = tokens if tokens is not None else Tokens()
        self.holder: Claim | None = None
        self.queue: list[Claim] = []
        self.last_order = 0
        self._claims: dict[int, dict[int, Claim]] = {}  # session -> request -> claim

    def __iter__(self) -> Iterator[Claim]:
        """Go through the holder, if there is one, and then those who wait, in order."""
        if self.holder is not None:
            yield self.holder
        yield from self.queue

    def find(self, session: int, request: int) -> Claim | None:
        return self._claims.get(session, {}).get(request)

    def of_session(self, session: int) -> list[Claim]:
        """All claims of a session, in the order in which they were made."""
        return sorted(self._claims.get(session, {}).values(), key=lambda claim: claim.order)

    def numbered(self, order: int) -> Claim | None:
        """Find a claim by its order. Costs a pass over the queue: for operators' commands."""
        return next((claim for claim in self if claim.order == order), None)

    def check(self, context: Context, request: int, timeout_ms: int | None) -> None:
        """Raise CommandError unless the calling session may make this claim."""
        if request < 1 or (timeout_ms is not None and timeout_ms < 0):
            raise BadCommand(f"request {request}, timeout {timeout_ms} ms: out of range")
        if self.find(context.session, request) is not None:
            raise BadCommand(f"session {context.session} has made request {request} already")
        if len(self.queue) >= WAITERS_MAX and timeout_ms != 0:
            raise LimitExceeded(f"{WAITERS_MAX} claims wait already: try again later")

    def claim(
        self,
        context: Context,
        request: int,
        timeout_ms: int | None,
        *,
        free: bool = True,
        priority: int = 0,
        value: bytes = b"",
    ) -> Claim | None:
        """Make a claim of the calling session: it holds (has a token) or waits.

        None where it would not wait. `free=False` keeps an empty seat empty for now. Raises
        CommandError, and then nothing has changed.
        """
        self.check(context, request, timeout_ms)
        free = free and self.holder is None and not self.queue
        if not free and timeout_ms == 0:
            return None
        self.last_order = max(context.index, self.last_order + 1)
        claim = Claim(
            self.last_order, context.session, request, context.time, None, priority, value=value
        )
        self._claims.setdefault(claim.session, {})[request] = claim
        if free:
            self._seat(context, claim)
        else:
            bisect.insort(self.queue, claim, key=Claim.rank)
            if timeout_ms is not None:
                claim.until = context.time + timeout_ms
                context.set_deadline(_deadline_key(claim), claim.until)
        return claim

    def grant_next(self, context: Context, note: Any = None) -> Claim | None:
        """Give a seat that is empty to the first in the queue, and tell its owner."""
        if self.holder is not None or not self.queue:
            return None
        claim = self.queue.pop(0)
        self._forget_deadline(context, claim)
        self._seat(context, claim)
        context.publish(claim.session, "grant", [claim.request, claim.token, note], keep=True)
        return claim

    def remove(self, context: Context, claim: Claim) -> None:
        """End a claim, waiting or holding. Grants nothing: `grant_next` comes next."""
        if claim is self.holder:
            self.holder = None
        else:
            place = bisect.bisect_left(self.queue, claim.rank(), key=Claim.rank)
            assert self.queue[place] is claim, f"claim {claim.order} is not at place {place}"
            del self.queue[place]
            self._forget_deadline(context, claim)
        mine = self._claims[claim.session]
        del mine[claim.request]
        if not mine:
            del self._claims[claim.session]

    def eject(self, context: Context, claim: Claim, cause: str) -> None:
        """Remove a claim against its owner's will, and tell the owner."""
        self.remove(context, claim)
        context.publish(claim.session, "ended", [claim.request, claim.token, cause], keep=True)

    def promote(self, claim: Claim) -> None:
        """Put a waiting claim at the head: before all others, and before whoever comes later."""
        self.queue.remove(claim)
        claim.promoted = (self.queue[0].promoted if self.queue else 0) + 1
        self.queue.insert(0, claim)

    def drop_session(self, context: Context, session: int) -> Claim | None:
        """End all claims of a session that has ended; return the one that held, if one did."""
        held = None
        for claim in self.of_session(session):
            if claim is self.holder:
                held = claim
            self.remove(context, claim)
        return held

    def time_out(self, context: Context, key: str) -> None:
        """End the waiting claim whose deadline this is, and tell its owner."""
        session, request = map(int, key.removeprefix(_DEADLINE).split("."))
        claim = self._claims[session][request]
        assert claim is not self.holder, f"claim {claim.order} holds and has a deadline"
        self.remove(context, claim)
        context.publish(session, "timed_out", [request], keep=True)

    def snapshot(self) -> list[Any]:
        claims = [list(attrs.astuple(claim)) for claim in self]
        return [self.last_order, self.tokens.last, claims]

    def restore(self, data: list[Any]) -> None:
        self.last_order, self.tokens.last, claims = data
        for fields in claims:
            claim = Claim(*fields)
            self._claims.setdefault(claim.session, {})[claim.request] = claim
            if claim.token:
                assert self.holder is None, f"tokens {claim.token} and {self.holder} both hold"
                self.holder = claim
            else:
                self.queue.append(claim)

    def _seat(self, context: Context, claim: Claim) -> None:
        assert self.holder is None, f"claim {claim.order} is granted while {self.holder} holds"
        claim.token = self.tokens.draw(context.index)
        claim.since, claim.until = context.time, None
        self.holder = claim

    def _forget_deadline(self, context: Context, claim: Claim) -> None:
        if claim.until is not None:
            context.clear_deadline(_deadline_key(claim))


_DEADLINE = "wait:"


def _deadline_key(claim: Claim) -> str:
    return f"{_DEADLINE}{claim.session}.{claim.request}"
