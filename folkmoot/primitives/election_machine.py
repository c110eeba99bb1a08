"""The election's replicated half: who leads, who waits in which order, what each command does.

Pure: no I/O, no clock, no randomness. Driven by the multiplexer; `election.py` is the other half,
and says what a user may rely on.

At any index of the log at most one candidate leads, and each reign has a token above all before it.
When a leader goes, the first candidate in the queue leads from that same entry on. The queue is
ordered by priority, and then first come, first served; a newcomer never deposes the leader.

    commands   campaign(request, value, priority, timeout_ms) -> [candidate, token or 0]
               withdraw(request)     resign(candidate or nil) -> count     proclaim(token, value)
               promote(candidate)    transfer(candidate)    evict(candidate)    (un)subscribe
    queries    leader()   describe()
    events     to the owner of a claim: see `_seat.py`; to subscribers, each about one reign:
               elected LEADER    changed LEADER    vacant [token, cause]
               LEADER: [token, value, since, session, client, candidate]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from folkmoot.core.errors import BadCommand, NotHeld
from folkmoot.core.machine import Context, Machine, QueryContext, command, frees, query
from folkmoot.primitives._seat import Claim, Seat
from folkmoot.primitives._subscriptions import Subscriptions

PRIORITY_MAX = 1 << 31
CANDIDATES_LISTED_MAX = 1000
"""`describe` lists so many candidates, and says how many there are."""


class ElectionMachine(Machine):
    """The replicated state of one election. A candidate's number is the order of its claim.

    - Somebody waits only while somebody leads.
    """

    type_name = "election"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._seat = Seat()
        self._subscriptions = Subscriptions()

    @command
    def campaign(
        self, context: Context, request: int, value: bytes, priority: int, timeout_ms: int | None
    ) -> list[int]:
        """Lead, or wait for it; returns [candidate, token], [candidate, 0] or, not waiting, []."""
        if abs(priority) > PRIORITY_MAX:
            raise BadCommand(f"priority is {priority}: from -{PRIORITY_MAX} to {PRIORITY_MAX}")
        claim = self._seat.claim(context, request, timeout_ms, priority=priority, value=value)
        if claim is None:
            return []
        if claim.token:
            self._announce(context, "elected", claim)
        return [claim.order, claim.token]

    @command
    @frees
    def withdraw(self, context: Context, request: int) -> bool:
        """End the session's claim, waiting or leading; False where there is none (any more)."""
        claim = self._seat.find(context.session, request)
        if claim is None:
            return False
        self._end(context, claim, "resigned")
        return True

    @command
    @frees
    def release(self, context: Context, token: int) -> None:
        """End the reign of the session; the next candidate leads from this entry on."""
        self._end(context, self._held(context, token), "resigned")

    @command
    @frees
    def resign(self, context: Context, candidate: int | None = None) -> int:
        """End one candidacy of the session, or all, and tell whoever waits or leads by it."""
        mine = self._seat.of_session(context.session)
        ended = [claim for claim in mine if candidate is None or claim.order == candidate]
        # Those who wait go first, so that the session does not succeed itself on its way out.
        for claim in sorted(ended, key=lambda claim: claim is self._seat.holder):
            self._eject(context, claim, "resigned")
        return len(ended)

    @command
    def proclaim(self, context: Context, token: int, value: bytes) -> int:
        """Change the leader's value. Returns the revision."""
        holder = self._held(context, token)
        holder.value = value
        self._announce(context, "changed", holder)
        return context.index

    @command
    def promote(self, context: Context, candidate: int) -> bool:
        """Put a waiting candidate at the head of the queue; False where it does not wait."""
        claim = self._waiting(candidate)
        if claim is not None:
            self._seat.promote(claim)
        return claim is not None

    @command
    def transfer(self, context: Context, candidate: int) -> bool:
        """Put a candidate at the head, and ask the leader to end its work and resign.

        The leadership passes with the leader's resignation (or its session), so never before the
        leader's code has ended. Who does not listen can be evicted.
        """
        claim = self._waiting(candidate)
        if claim is None:
            return False
        self._seat.promote(claim)
        holder = self._seat.holder
        assert holder is not None, f"candidate {candidate} waits and nobody leads"
        fields = [holder.request, holder.token, "transferred"]
        context.publish(holder.session, "revoked", fields, keep=True)
        return True

    @command
    @frees
    def evict(self, context: Context, candidate: int) -> bool:
        """End a candidacy, waiting or leading, at once; False where there is none."""
        claim = self._seat.numbered(candidate)
        if claim is not None:
            self._eject(context, claim, "evicted")
        return claim is not None

    @command
    def subscribe(self, context: Context, kind: str, text: str) -> int:
        """Send the session the reigns that begin, change or end after the index returned."""
        self._subscriptions.add(context.session, kind, text)
        return context.index

    @command
    @frees
    def unsubscribe(self, context: Context, kind: str, text: str) -> bool:
        """Stop that; say whether it was so."""
        return bool(self._subscriptions.remove(context.session, kind, text))

    @query
    def leader(self, context: QueryContext) -> list[Any] | None:
        """Return who leads, or None."""
        holder = self._seat.holder
        return None if holder is None else _leader(context, holder)

    @query
    def describe(self, context: QueryContext) -> dict[str, Any]:
        """Say who leads, who waits in which order, and since when."""
        holder, queue = self._seat.holder, self._seat.queue
        return {
            "time": context.time,
            "leader": None if holder is None else _leader(context, holder),
            "waiting": len(queue),
            "candidates": [_candidate(context, claim) for claim in queue[:CANDIDATES_LISTED_MAX]],
        }

    def on_deadline(self, context: Context, key: str) -> None:
        """End the candidacy of somebody whose timeout ran out."""
        self._seat.time_out(context, key)

    def session_ended(self, context: Context, session: int) -> None:
        """Drop the session's candidacies; where one led, the next leads from this entry on."""
        self._subscriptions.drop(session)
        lost = self._seat.drop_session(context, session)
        if lost is not None:
            self._succeed(context, lost, "expired")

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        """Forget that the session watches; its candidacies stay."""
        return bool(self._subscriptions.drop(session))

    def holds_grant(self, token: int) -> bool:
        """Say whether the reign with this token goes on."""
        holder = self._seat.holder
        return holder is not None and holder.token == token

    def idle(self) -> bool:
        """Say whether nobody leads, waits or watches."""
        return not (any(self._seat) or self._subscriptions)

    def snapshot(self) -> list[Any]:
        """Return claims and subscriptions."""
        return [self._seat.snapshot(), self._subscriptions.snapshot()]

    def restore(self, data: list[Any]) -> None:
        """Take what `snapshot` gave. The deadlines are the multiplexer's to restore."""
        seat, subscriptions = data
        self._seat.restore(seat)
        self._subscriptions.restore(subscriptions)

    def _held(self, context: Context, token: int) -> Claim:
        holder = self._seat.holder
        if holder is None or holder.token != token or holder.session != context.session:
            raise NotHeld(f"token {token} does not lead for session {context.session}")
        return holder

    def _waiting(self, candidate: int) -> Claim | None:
        claim = self._seat.numbered(candidate)
        return None if claim is None or claim.token else claim

    def _end(self, context: Context, claim: Claim, cause: str) -> None:
        self._seat.remove(context, claim)
        if claim.token:
            self._succeed(context, claim, cause)

    def _eject(self, context: Context, claim: Claim, cause: str) -> None:
        self._seat.eject(context, claim, cause)
        if claim.token:
            self._succeed(context, claim, cause)

    def _succeed(self, context: Context, before: Claim, cause: str) -> None:
        if self._subscriptions:
            subscribers = self._subscriptions.matching()
            context.publish(subscribers, "vacant", [before.token, cause])
        claim = self._seat.grant_next(context)
        if claim is not None:
            self._announce(context, "elected", claim)

    def _announce(self, context: Context, kind: str, claim: Claim) -> None:
        if self._subscriptions:
            context.publish(self._subscriptions.matching(), kind, _leader(context, claim))


def _leader(context: QueryContext, claim: Claim) -> list[Any]:
    """[token, value, since (log time, ms), session, client's name, candidate]."""
    name = context.client_name(claim.session)
    return [claim.token, claim.value, claim.since, claim.session, name, claim.order]


def _candidate(context: QueryContext, claim: Claim) -> list[Any]:
    """[candidate, value, priority, since (log time, ms), session, client's name]."""
    name = context.client_name(claim.session)
    return [claim.order, claim.value, claim.priority, claim.since, claim.session, name]
