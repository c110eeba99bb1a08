"""Counter: one integer that many sessions change and wait for.

WHAT IT PROMISES. Each `add` that was answered is in the value exactly once, whatever was lost,
repeated or resumed in between. The value is an integer of 64 bits, or lies within narrower bounds
that are fixed when the counter is made: a change that would leave them raises OutOfBounds and
changes nothing, so `add(-1)` on a counter bounded below by 0 is a correct way to take one of N.

`wait_for` is decided on the servers, in the entry that changes the value: it sees every value that
the counter ever has, also one that is gone again before this client hears of it.

The machine behind it is in `counter_machine.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

import attrs
from anyio.lowlevel import checkpoint

from folkmoot.core.errors import (
    ClosedError,
    CommandError,
    FolkmootError,
    OutcomeUnknown,
    ResourceDeleted,
    SessionExpired,
    StorageFull,
    UsageError,
)
from folkmoot.core.types import ConnectionState, Consistency, Duration
from folkmoot.core.wakeup import Waiter
from folkmoot.primitives._options import Budget, Fence, ReadOptions, WriteOptions, level
from folkmoot.primitives._subscriptions import EVERYTHING
from folkmoot.primitives._watch import BUFFER_EVENTS, Backlog, Event, Resync, Watch, feed_of
from folkmoot.primitives.counter_machine import CounterMachine

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

__all__ = [
    "Counted",
    "Counter",
    "CounterChange",
    "CounterDescription",
    "CounterMachine",
    "Reading",
    "Resync",
]


@attrs.frozen
class Counted:
    """The value was changed."""

    value: int
    old: int
    revision: int


@attrs.frozen
class Reading:
    """A value that the counter had, and the index at which it had it."""

    value: int
    revision: int


@attrs.frozen
class CounterDescription:
    """What an operator wants to know of a counter."""

    value: int
    low: int
    high: int
    waiters: int
    waiting: tuple[tuple[int, str, int | None, int | None, float], ...]
    """The first waiters, in order: session, client's name, at least, at most, seconds since."""
    watchers: int
    watched_by: tuple[tuple[int, str], ...]
    """The first watching sessions: id, name of the client."""


CounterChange = Counted | Resync[int]


class Counter:
    """A replicated integer.

    Making one does no I/O. What changes it leaves the revision in `revision`. An operation that is
    cancelled, or runs out of time, may have been sent and applied all the same; nothing is ever
    applied twice.

    Any operation may raise ResourceDeleted, ResourceTypeError and ClosedError (not applied), and,
    when the session is lost, SessionExpired (not applied) or OutcomeUnknown (perhaps applied).
    """

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._feed = feed_of(resource)
        self._waits = _Waits(self)
        self._revision = 0

    @staticmethod
    def configuration(bounds: tuple[int | None, int | None] | None = None) -> dict[str, int]:
        """Return what a counter with these bounds (None: that of 64 bits) is made with."""
        low, high = bounds or (None, None)
        config = {"low": low, "high": high}
        CounterMachine({name: bound for name, bound in config.items() if bound is not None})
        return {name: bound for name, bound in config.items() if bound is not None}

    @property
    def name(self) -> str:
        """The counter's name."""
        return self._resource.name

    @property
    def revision(self) -> int:
        """The greatest revision of what was changed through this object: for `at_least=`."""
        return self._revision

    async def get(self, **options: Unpack[ReadOptions]) -> int:
        """Return the value."""
        value, _ = await self._ask("get", **options)
        return int(value)

    async def add(self, n: int = 1, **options: Unpack[WriteOptions]) -> int:
        """Add `n`, which may be negative, and return the new value.

        Raises OutOfBounds (not applied) where that would leave the bounds.
        """
        value, revision = await self._do("add", _integer(n), **options)
        self._revision = max(self._revision, revision)
        return int(value)

    async def get_and_add(self, n: int = 1, **options: Unpack[WriteOptions]) -> int:
        """Do as `add` does, and return the value before."""
        return await self.add(n, **options) - n

    async def set(self, value: int, **options: Unpack[WriteOptions]) -> int:
        """Set the value; return the revision. Raises OutOfBounds (not applied)."""
        revision = int(await self._do("set", _integer(value), **options))
        self._revision = max(self._revision, revision)
        return revision

    async def compare_and_set(
        self, expected: int, value: int, **options: Unpack[WriteOptions]
    ) -> bool:
        """Set the value if it is `expected`; say whether it was.

        Raises OutOfBounds (not applied).
        """
        args = _integer(expected), _integer(value)
        revision = await self._do("compare_and_set", *args, **options)
        self._revision = max(self._revision, revision or 0)
        return revision is not None

    async def wait_for(
        self,
        *,
        at_least: int | None = None,
        at_most: int | None = None,
        timeout: Duration | None = None,
    ) -> Reading:
        """Wait for a value in this range; return it, and the revision at which it was reached.

        Cancelled, or out of time, it withdraws; then OperationTimeout is raised. It goes on through
        the loss of a session: then a value that came and went between may be missed. Raises
        OutOfBounds where the counter can never have such a value.
        """
        if at_least is None and at_most is None:
            raise UsageError(f"{self!r}: wait for what? Give at_least= or at_most=")
        low = None if at_least is None else _integer(at_least)
        high = None if at_most is None else _integer(at_most)
        wanted = f"at_least={at_least}, at_most={at_most}"
        with Budget(timeout).limit(f"{self!r} was not within the timeout: {wanted}"):
            reading = None
            while reading is None:
                reading = await self._waits.wait(self._resource, self._feed.number(), low, high)
            return reading

    def watch(self, *, initial: bool = False, buffer: int = BUFFER_EVENTS) -> Watch[CounterChange]:
        """Return a watch of the value, to be entered with `async with`.

        It yields Counted and, where changes were missed, Resync with the value as its snapshot.
        With `initial`, a Resync comes first. A reader that is more than `buffer` changes behind
        gets a Resync in their place. Once the counter is deleted it raises ResourceDeleted.
        """
        if buffer < 1:
            raise UsageError(f"{self!r}: a watch cannot do with a buffer of {buffer}")
        source = _CounterSource(self._resource)
        return Watch(self._resource, source, initial=initial, buffer=buffer)

    async def describe(self) -> CounterDescription:
        """Return what an operator wants to know."""
        found, _ = await self._ask("describe")
        found["waiting"] = tuple((*who, since / 1000) for *who, since in found["waiting"])
        found["watched_by"] = tuple((session, name) for session, name in found["watched_by"])
        return CounterDescription(**found)

    def __repr__(self) -> str:
        return f"<Counter {self.name!r}>"

    async def _do(
        self,
        operation: str,
        *args: Any,
        fence: Fence | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        token = None if fence is None else fence.fence
        return await self._resource.command(operation, *args, timeout=timeout, fence=token)

    async def _ask(
        self,
        operation: str,
        *,
        consistency: str = "linearizable",
        at_least: int = 0,
        timeout: Duration | None = None,
    ) -> tuple[Any, int]:
        return await self._resource.query(
            operation, consistency=level(consistency), at_least=at_least, timeout=timeout
        )


class _CounterSource:
    """What a watch of a counter tells."""

    events: Mapping[str, bool] = {"changed": False}
    filter = EVERYTHING

    def __init__(self, resource: Resource) -> None:
        self._resource = resource

    def change(self, event: Event) -> CounterChange:
        """Return what the reader of the watch gets."""
        value, old = event.payload
        return Counted(value, old, event.index)

    async def present(self, since: int, backlog: Backlog) -> CounterChange:
        """Read the value, at an index >= `since`."""
        value, revision = await self._resource.query(
            "get", consistency=Consistency.SEQUENTIAL, at_least=since
        )
        backlog.take_until(revision)
        return Resync(value, revision)


class _Waits:
    """The `wait_for` calls of one proxy. It listens exactly while there is one.

    A race, and why nothing is lost or left behind:

        1. `wait_for` is sent              the request is known here already
        2. the value is reached            "reached" arrives, perhaps before this task has run
        3. the task is cancelled           `withdraw` is sent, behind the `wait_for`, whatever has
                                           happened to either answer
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._waiters: dict[int, Waiter[Reading | None]] = {}

    async def wait(
        self, resource: Resource, request: int, low: int | None, high: int | None
    ) -> Reading | None:
        """Wait once; None: the session was lost, and the request with it."""
        waiter: Waiter[Reading | None] = Waiter()
        if not self._waiters:
            resource.listen(self)
        self._waiters[request] = waiter
        may_wait = True
        try:
            answer = await resource.command("wait_for", request, low, high)
            found = await waiter.wait() if answer is None else Reading(*answer)
            may_wait = False
            return found
        except (CommandError, StorageFull):
            may_wait = False
            raise
        except (SessionExpired, OutcomeUnknown):
            await checkpoint()
            return None
        finally:
            del self._waiters[request]
            if not self._waiters:
                resource.unlisten(self)
            if may_wait:
                with suppress(FolkmootError):  # without a session, nothing waits
                    resource.send("withdraw", request)

    def on_event(self, index: int, kind: str, payload: Any) -> None:
        """Take the answer to a request, or the end of all."""
        if kind == "reached":
            waiter = self._waiters.get(payload[0])
            if waiter is not None:  # else: withdrawn, or another proxy's
                waiter.set_result(Reading(payload[1], index))
        elif kind == "deleted":
            for waiter in self._waiters.values():
                waiter.set_exception(ResourceDeleted(f"{self._counter!r} was deleted", index))

    def on_state(self, state: ConnectionState, cause: str) -> None:
        """Send all to ask again when the session is lost."""
        for waiter in self._waiters.values():
            if state is ConnectionState.EXPIRED:
                waiter.set_result(None)
            elif state is ConnectionState.CLOSED:
                waiter.set_exception(ClosedError(f"{self._counter!r}: the client was closed"))


def _integer(value: int) -> int:
    if type(value) is not int:
        raise UsageError(f"{value!r} is a {type(value).__name__}: a counter takes int")
    return value
