"""The lock's replicated half: who holds it, who waits, and what each command does.

Pure: no I/O, no clock, no randomness. Driven by the multiplexer; `lock.py` is the other half, and
says what a user may rely on.

At any index of the log at most one claim holds. A claim ends by release, by withdrawal, by an
operator's force, or with its session; in that same entry the next in the queue is granted, so a
hand-off is one entry. Tokens strictly increase.

    commands   acquire(request, timeout_ms) -> token, or 0 where it waits     withdraw(request)
               release(token)     break_lock(token or nil) -> token, or 0     (un)subscribe
    queries    describe()
    events     to the owner of a claim: see `_seat.py`; to subscribers, each about one holder:
               granted [token, session, client, since]    released [token]    lost [token, cause]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from folkmoot.core.errors import ConfigError, NotHeld
from folkmoot.core.machine import Context, Machine, QueryContext, command, frees, query
from folkmoot.primitives._seat import Claim, Seat
from folkmoot.primitives._subscriptions import Subscriptions

LOCK_DELAY_MAX_MS = 24 * 3600 * 1000
WAITERS_LISTED_MAX = 1000
"""`describe` lists so many waiters, and says how many there are."""
_DELAY = "delay"


class LockMachine(Machine):
    """The replicated state of one lock.

    - Somebody waits only while somebody holds, or while the delay after a lost holder runs.
    """

    type_name = "lock"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Take `lock_delay_ms`: after a holder was lost, the next grant waits so long."""
        unknown = sorted(set(config) - {"lock_delay_ms"})
        if unknown:
            raise ConfigError(f"a lock is configured by lock_delay_ms, not by {unknown}")
        delay = config.get("lock_delay_ms", 0)
        if type(delay) is not int or not 0 <= delay <= LOCK_DELAY_MAX_MS:
            raise ConfigError(f"lock_delay_ms is {delay!r}, not from 0 to {LOCK_DELAY_MAX_MS}")
        self._delay_ms: int = delay
        self._delayed_until: int | None = None
        self._seat = Seat()
        self._subscriptions = Subscriptions()

    @command
    def acquire(self, context: Context, request: int, timeout_ms: int | None) -> int:
        """Take the lock (returns the token) or wait for it (returns 0; a timeout of 0: do not)."""
        free = self._delayed_until is None
        claim = self._seat.claim(context, request, timeout_ms, free=free)
        if claim is None or not claim.token:
            return 0
        self._announce(context, claim)
        return claim.token

    @command
    @frees
    def withdraw(self, context: Context, request: int) -> bool:
        """End the session's claim, waiting or holding; False where there is none (any more)."""
        claim = self._seat.find(context.session, request)
        if claim is None:
            return False
        self._end(context, claim)
        return True

    @command
    @frees
    def release(self, context: Context, token: int) -> None:
        """Give the lock back; the next is granted in this entry."""
        holder = self._seat.holder
        if holder is None or holder.token != token or holder.session != context.session:
            raise NotHeld(f"token {token} does not hold the lock for session {context.session}")
        self._end(context, holder)

    @command
    @frees
    def break_lock(self, context: Context, token: int | None = None) -> int:
        """Take the lock from its holder (`token`: only from that one), and end a delay."""
        holder = self._seat.holder
        if token is not None and (holder is None or holder.token != token):
            raise NotHeld(f"token {token} does not hold the lock")
        if self._delayed_until is not None:
            self._delayed_until = None
            context.clear_deadline(_DELAY)
        if holder is not None:
            self._seat.eject(context, holder, "released")
            self._tell(context, "lost", [holder.token, "released"])
        self._grant_next(context)
        return 0 if holder is None else holder.token

    @command
    def subscribe(self, context: Context, kind: str, text: str) -> int:
        """Send the session what happens to the lock after the index that this returns."""
        self._subscriptions.add(context.session, kind, text)
        return context.index

    @command
    @frees
    def unsubscribe(self, context: Context, kind: str, text: str) -> bool:
        """Stop that; say whether it was so."""
        return bool(self._subscriptions.remove(context.session, kind, text))

    @query
    def describe(self, context: QueryContext) -> dict[str, Any]:
        """Say who holds, who waits in which order, and since when."""
        holder, queue = self._seat.holder, self._seat.queue
        return {
            "time": context.time,
            "holder": None if holder is None else _fields(context, holder),
            "waiting": len(queue),
            "waiters": [_fields(context, claim) for claim in queue[:WAITERS_LISTED_MAX]],
            "lock_delay_ms": self._delay_ms,
            "delayed_until": self._delayed_until,
        }

    def on_deadline(self, context: Context, key: str) -> None:
        """End the delay after a lost holder, or the waiting of somebody whose timeout ran out."""
        if key == _DELAY:
            self._delayed_until = None
            self._grant_next(context)
        else:
            self._seat.time_out(context, key)

    def session_ended(self, context: Context, session: int) -> None:
        """Drop the session's claims; where one held, grant to the next or begin the delay."""
        self._subscriptions.drop(session)
        lost = self._seat.drop_session(context, session)
        if lost is None:
            return
        self._tell(context, "lost", [lost.token, "expired"])
        if self._delay_ms:
            self._delayed_until = context.time + self._delay_ms
            context.set_deadline(_DELAY, self._delayed_until)
        else:
            self._grant_next(context)

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        """Forget that the session watches; its claims stay."""
        return bool(self._subscriptions.drop(session))

    def holds_grant(self, token: int) -> bool:
        """Say whether this token holds the lock."""
        holder = self._seat.holder
        return holder is not None and holder.token == token

    def idle(self) -> bool:
        """Say whether nobody holds, waits or watches, and no delay runs."""
        return not (any(self._seat) or self._subscriptions or self._delayed_until is not None)

    def snapshot(self) -> list[Any]:
        """Return delay, claims and subscriptions."""
        return [self._delayed_until, self._seat.snapshot(), self._subscriptions.snapshot()]

    def restore(self, data: list[Any]) -> None:
        """Take what `snapshot` gave. The deadlines are the multiplexer's to restore."""
        self._delayed_until, seat, subscriptions = data
        self._seat.restore(seat)
        self._subscriptions.restore(subscriptions)

    def _end(self, context: Context, claim: Claim) -> None:
        self._seat.remove(context, claim)
        if claim.token:
            self._tell(context, "released", [claim.token])
            self._grant_next(context)

    def _grant_next(self, context: Context) -> None:
        claim = self._seat.grant_next(context)
        if claim is not None:
            self._announce(context, claim)

    def _announce(self, context: Context, claim: Claim) -> None:
        if self._subscriptions:
            self._tell(context, "granted", _fields(context, claim))

    def _tell(self, context: Context, kind: str, payload: list[Any]) -> None:
        if self._subscriptions:
            context.publish(self._subscriptions.matching(), kind, payload)


def _fields(context: QueryContext, claim: Claim) -> list[Any]:
    """[token (0: waits), session, client's name, since (log time, ms)]."""
    return [claim.token, claim.session, context.client_name(claim.session), claim.since]
