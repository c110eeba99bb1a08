"""The counter's replicated half: one integer within bounds, and who waits for it.

Pure: no I/O, no clock, no randomness. Driven by the multiplexer; `counter.py` is the other half,
and says what a user may rely on.

    commands   add(n) -> [value, revision]     set(value) -> revision
               compare_and_set(expected, value) -> revision, or nil where it was another value
               wait_for(request, at least, at most) -> [value, revision], or nil where it waits
               withdraw(request)     (un)subscribe
    queries    get()   describe()
    events     changed [value, old value]     to whoever subscribed, also for its own changes
               reached [request, value]       to the session that waited; never dropped

A request is a number that the client chose, so that it can withdraw before it has an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from folkmoot.core.errors import BadCommand, ConfigError, LimitExceeded, OutOfBounds
from folkmoot.core.machine import Context, Machine, QueryContext, command, frees, query
from folkmoot.primitives._subscriptions import Subscriptions

INT_MIN = -(1 << 63)
INT_MAX = (1 << 63) - 1
WAITERS_MAX = 65_536
"""Per counter; a further one is answered with LimitExceeded."""
LISTED_MAX = 1000
"""`describe` lists so many waiters and watchers, and says how many there are."""


@attrs.frozen
class _Waiting:
    session: int
    request: int
    at_least: int
    at_most: int
    since: int
    """Log time, milliseconds."""


class CounterMachine(Machine):
    """One integer within bounds, and who waits for it to lie in which range.

    - low <= value <= high, always.
    - No waiter is satisfied by the present value: it leaves in the entry that satisfies it.
    - At no value in `_calm` is any waiter satisfied, so most changes look at none of them. It is
      derived from the rest, and may be narrower than it could be.
    """

    type_name = "counter"

    def __init__(self, config: Mapping[str, Any]) -> None:
        unknown = sorted(set(config) - {"low", "high"})
        if unknown:
            raise ConfigError(f"a counter's configuration has low and high, not {unknown}")
        self._low = config.get("low", INT_MIN)
        self._high = config.get("high", INT_MAX)
        if type(self._low) is not int or type(self._high) is not int:
            raise ConfigError(f"bounds ({self._low!r}, {self._high!r}): integers are needed")
        if not INT_MIN <= self._low <= self._high <= INT_MAX:
            raise ConfigError(
                f"bounds ({self._low}, {self._high}): the lower one comes first, in 64 bits"
            )
        self._initial = self._value = min(max(0, self._low), self._high)
        self._waiters: dict[tuple[int, int], _Waiting] = {}
        self._calm = (INT_MIN, INT_MAX)
        self._subscriptions = Subscriptions()

    @command
    def add(self, context: Context, n: int) -> list[int]:
        """Add `n`. Returns [new value, revision]."""
        self._change(context, self._value + n)
        return [self._value, context.index]

    @command
    def set(self, context: Context, value: int) -> int:
        """Set the value. Returns the revision."""
        self._change(context, value)
        return context.index

    @command
    def compare_and_set(self, context: Context, expected: int, value: int) -> int | None:
        """Set the value if it is `expected`. Returns the revision, or None where it is not."""
        if self._value != expected:
            return None
        self._change(context, value)
        return context.index

    @command
    def wait_for(
        self, context: Context, request: int, at_least: int | None, at_most: int | None
    ) -> list[int] | None:
        """Wait for a value between the two. Returns [value, revision] where it is so now.

        Else it returns None, and "reached" follows, unless `withdraw` names the request first.
        """
        low = self._low if at_least is None else at_least
        high = self._high if at_most is None else at_most
        if max(low, self._low) > min(high, self._high):
            raise OutOfBounds(
                f"no value lies between {low} and {high} and within {self._low} to {self._high}"
            )
        if (context.session, request) in self._waiters:
            raise BadCommand(f"request {request} of session {context.session} is waiting already")
        if low <= self._value <= high:
            return [self._value, context.index]
        if len(self._waiters) >= WAITERS_MAX:
            raise LimitExceeded(f"{WAITERS_MAX} wait for this counter already: try again later")
        waiter = _Waiting(context.session, request, low, high, context.time)
        self._waiters[context.session, request] = waiter
        self._narrow(waiter)
        return None

    @command
    @frees
    def withdraw(self, context: Context, request: int) -> bool:
        """Take back a `wait_for`; say whether it was still waiting."""
        return self._waiters.pop((context.session, request), None) is not None

    @command
    def subscribe(self, context: Context, kind: str, text: str) -> int:
        """Send the session what changes after the index that this returns."""
        self._subscriptions.add(context.session, kind, text)
        return context.index

    @command
    @frees
    def unsubscribe(self, context: Context, kind: str, text: str) -> bool:
        """Stop that; say whether it was so."""
        return bool(self._subscriptions.remove(context.session, kind, text))

    @query
    def get(self, context: QueryContext) -> int:
        """Return the value."""
        return self._value

    @query
    def describe(self, context: QueryContext) -> dict[str, Any]:
        """Return the value, its bounds, who waits for it, in order, and who watches it.

        A waiter is [session, client's name, at least, at most, milliseconds since].
        """
        name = context.client_name
        waiters = list(self._waiters.values())
        watchers = self._subscriptions.everybody()
        return {
            "value": self._value,
            "low": self._low,
            "high": self._high,
            "waiters": len(waiters),
            "waiting": [
                [
                    waiter.session,
                    name(waiter.session),
                    None if waiter.at_least == self._low else waiter.at_least,
                    None if waiter.at_most == self._high else waiter.at_most,
                    context.time - waiter.since,
                ]
                for waiter in waiters[:LISTED_MAX]
            ],
            "watchers": len(watchers),
            "watched_by": [[one, name(one)] for one in watchers[:LISTED_MAX]],
        }

    def session_ended(self, context: Context, session: int) -> None:
        """Forget what the session waited for and subscribed to."""
        self._subscriptions.drop(session)
        for key in [key for key in self._waiters if key[0] == session]:
            del self._waiters[key]

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        """Forget what the session subscribed to; what it waits for stays."""
        return bool(self._subscriptions.drop(session))

    def idle(self) -> bool:
        """Say whether the counter stands where it began and nobody waits for it."""
        return self._value == self._initial and not self._waiters and not self._subscriptions

    def snapshot(self) -> Any:
        """Return the value, the waiters in their order, and the subscriptions."""
        waiters = [list(attrs.astuple(waiter)) for waiter in self._waiters.values()]
        return [self._value, waiters, self._subscriptions.snapshot()]

    def restore(self, data: Any) -> None:
        """Take what `snapshot` gave."""
        self._value, waiters, subscriptions = data
        for fields in waiters:
            waiter = _Waiting(*fields)
            self._waiters[waiter.session, waiter.request] = waiter
            self._narrow(waiter)
        self._subscriptions.restore(subscriptions)

    def _change(self, context: Context, value: int) -> None:
        if not self._low <= value <= self._high:
            raise OutOfBounds(
                f"{value} is not within {self._low} to {self._high}: it stays {self._value}",
                self._value,
            )
        old, self._value = self._value, value
        if value == old:
            return
        if self._subscriptions:
            context.publish(self._subscriptions.matching(), "changed", [value, old])
        if not self._calm[0] <= value <= self._calm[1]:
            self._wake(context)

    def _wake(self, context: Context) -> None:
        """Answer all waiters that the value satisfies, in the order in which they came."""
        value = self._value
        waiters, self._waiters = self._waiters, {}
        self._calm = (INT_MIN, INT_MAX)
        for key, waiter in waiters.items():
            if waiter.at_least <= value <= waiter.at_most:
                context.publish(waiter.session, "reached", [waiter.request, value], keep=True)
            else:
                self._waiters[key] = waiter
                self._narrow(waiter)

    def _narrow(self, waiter: _Waiting) -> None:
        low, high = self._calm
        if waiter.at_least > self._value:
            self._calm = (low, min(high, waiter.at_least - 1))
        else:
            assert waiter.at_most < self._value, f"{waiter} is satisfied by {self._value}"
            self._calm = (max(low, waiter.at_most + 1), high)
