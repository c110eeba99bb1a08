"""Lock: one holder at a time, first come, first served, with a fencing token.

WHAT IT PROMISES. At any index of the log at most one grant holds. It ends by release, by an
operator's force, or with its session, and in that same entry the next in the queue has it: a
hand-off is one entry. Waiting is part of the replicated state, so a wait has a place, is listed,
and is withdrawn by cancellation, by its timeout (on log time), or with its session.

GUARDED CODE. The body of `async with` is cancelled before the cluster can grant the lock to another
session; then LockLost is raised. So it either held throughout or raises.

WHAT IT DOES NOT. Without its fencing token a lock is ADVISORY: a process can be paused between its
last look at the lock and its write elsewhere, and what it has sent cannot be called back. Pass the
token on, and let the receiver refuse smaller ones. This toolkit's own writes do so for
`fence=grant`. Threads, and loops that never await, have to ask `held.check()`.

The machine behind it is in `lock_machine.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

import anyio
import attrs

from folkmoot.core.errors import LockLost, LockTimeout, UsageError, WouldBlock
from folkmoot.core.types import Consistency, Duration, seconds
from folkmoot.primitives._claims import claims_of
from folkmoot.primitives._grant import Grant, Guarded, Holding, Words
from folkmoot.primitives._options import ReadOptions, level
from folkmoot.primitives._subscriptions import EVERYTHING
from folkmoot.primitives._watch import BUFFER_EVENTS, Backlog, Event, Resync, Watch
from folkmoot.primitives.lock_machine import LockMachine

if TYPE_CHECKING:
    from folkmoot.core.client import Resource


@attrs.frozen
class LockParty:
    """Who holds a lock, or waits for it."""

    session: int
    client: str
    """The name of the session's client."""
    since: float
    """Log time in seconds since which it holds, or waits."""
    token: int = 0
    """The holder's fencing token; 0: it waits."""


@attrs.frozen
class LockDescription:
    """What an operator wants to know of a lock."""

    holder: LockParty | None
    waiters: tuple[LockParty, ...]
    """In order, the first WAITERS_LISTED_MAX of them."""
    waiting: int
    """How many wait."""
    lock_delay: float
    """Seconds."""
    delayed: float
    """Seconds of log time left of the delay after a lost holder; 0: none runs."""
    time: float
    """Log time now, in seconds."""


@attrs.frozen
class Granted:
    """Somebody has the lock."""

    token: int
    session: int
    client: str
    since: float
    """Log time in seconds."""
    revision: int


@attrs.frozen
class Released:
    """The holder has given the lock back."""

    token: int
    revision: int


@attrs.frozen
class Lost:
    """The lock was taken from its holder."""

    token: int
    cause: Literal["expired", "released"]
    """The holder's session ended; or an operator broke the lock."""
    revision: int


LockChange = Granted | Released | Lost | Resync[LockDescription]

_WORDS = Words("lock", LockLost, LockTimeout, int)


class LockGrant(Grant):
    """A lock that is held: `token`, `fence`, `check()`, `release()`, or `async with`."""


class Lock:
    """A fair lock that one task at a time holds, in all processes that use its name.

    Making one does no I/O, and one object serves any number of tasks. The grant is what is owned:
    several tasks of one client wait for each other as those of different clients do.

    Any operation may raise ResourceDeleted, ResourceTypeError and ClosedError (not applied), and,
    when the session is lost, SessionExpired (nothing is held) or OutcomeUnknown.
    """

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._claims = claims_of(resource)
        self._entered: dict[int, list[Guarded[LockGrant]]] = {}

    @staticmethod
    def configuration(lock_delay: Duration | None = None) -> dict[str, int]:
        """Return what a lock is made with whose next grant waits so long after a lost holder."""
        if lock_delay is None:
            return {}
        config = {"lock_delay_ms": round(seconds(lock_delay) * 1000)}
        LockMachine(config)
        return config

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._resource.name

    def hold(self, *, timeout: Duration | None = None) -> Guarded[LockGrant]:
        """Hold the lock around a body: `async with lock.hold(timeout=5) as held`.

        Entering raises as `acquire` does. When the lock is lost the body is cancelled, before
        anybody else can have it by the end of the session, and LockLost is raised in any case.
        A body that ends by itself, or by an error of its own, releases.
        """
        return Guarded(lambda: self.acquire(timeout=timeout), f"{self!r}.hold()")

    async def acquire(self, *, timeout: Duration | None = None) -> LockGrant:
        """Wait for the lock, at most for `timeout`; return the grant. Watches hear Granted.

        Prefer `hold`: nothing is guarded until the grant is entered with `async with`, and a grant
        that is forgotten is held until the session ends. A `timeout` of 0 does not wait.

        Cancelled, the wait is withdrawn, and the lock given back if it was granted meanwhile.
        Raises LockTimeout (not held, withdrawn), UsageError where this task has the lock already or
        waits for it, SessionExpired (not held), and LimitExceeded where too many wait.
        """
        holding = Holding(self._resource, self._claims, _WORDS)
        await self._claims.obtain(holding, timeout, "acquire")
        return LockGrant(holding)

    async def acquire_nowait(self) -> LockGrant:
        """Take the lock if it is free; return the grant. Raises WouldBlock where it is not."""
        try:
            return await self.acquire(timeout=0)
        except LockTimeout as error:
            raise WouldBlock(f"the lock {self.name!r} is not free") from error

    async def release(self, grant: LockGrant) -> None:
        """Give a grant back, as `grant.release()` does."""
        if not grant.is_of(self._resource):
            raise UsageError(f"{grant!r} is not of {self!r}")
        await grant.release()

    async def break_lock(
        self, *, token: int | None = None, timeout: Duration | None = None
    ) -> int | None:
        """Take the lock from its holder: for operators. Return the token broken, None if none.

        The next in the queue is granted in the same entry, and the holder is told: its body is
        cancelled when the event arrives, so for a moment two bodies may run. Only the token tells
        them apart. With `token`, NotHeld (not applied) is raised where that is not the holder's.
        A delay after a lost holder ends as well. Watches hear Lost.
        """
        broken = await self._resource.command("break_lock", token, timeout=timeout)
        return broken or None

    def watch(self, *, initial: bool = False, buffer: int = BUFFER_EVENTS) -> Watch[LockChange]:
        """Return a watch of who holds the lock, to be entered with `async with`.

        It yields Granted, Released and Lost and, where some were missed, Resync with a description
        as its snapshot. With `initial`, a Resync comes first. Once the lock is deleted it raises
        ResourceDeleted.
        """
        if buffer < 1:
            raise UsageError(f"{self!r}: a watch cannot do with a buffer of {buffer}")
        return Watch(self._resource, _LockSource(self._resource), initial=initial, buffer=buffer)

    async def describe(self, **options: Unpack[ReadOptions]) -> LockDescription:
        """Return who holds the lock, who waits for it in which order, and since when."""
        description, _ = await _describe(self._resource, **options)
        return description

    async def __aenter__(self) -> LockGrant:
        guarded = self.hold()
        grant = await guarded.__aenter__()
        self._entered.setdefault(anyio.get_current_task().id, []).append(guarded)
        return grant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        task = anyio.get_current_task().id
        mine = self._entered.get(task)
        if not mine:
            raise UsageError(f"{self!r} is left by a task that did not enter it") from error
        guarded = mine.pop()
        if not mine:
            del self._entered[task]
        return await guarded.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}>"


async def _describe(
    resource: Resource,
    *,
    consistency: str = "linearizable",
    at_least: int = 0,
    timeout: Duration | None = None,
) -> tuple[LockDescription, int]:
    found, index = await resource.query(
        "describe", consistency=level(consistency), at_least=at_least, timeout=timeout
    )
    now, holder, until = found["time"], found["holder"], found["delayed_until"]
    description = LockDescription(
        holder=None if holder is None else _party(holder),
        waiters=tuple(_party(fields) for fields in found["waiters"]),
        waiting=found["waiting"],
        lock_delay=found["lock_delay_ms"] / 1000,
        delayed=0.0 if until is None else max(0, until - now) / 1000,
        time=now / 1000,
    )
    return description, index


def _party(fields: list[Any]) -> LockParty:
    token, session, client, since = fields
    return LockParty(session, client, since / 1000, token)


class _LockSource:
    """What a watch of a lock is made of."""

    events: Mapping[str, bool] = {"granted": False, "released": False, "lost": False}
    filter = EVERYTHING

    def __init__(self, resource: Resource) -> None:
        self._resource = resource

    def change(self, event: Event) -> LockChange:
        payload = event.payload
        if event.kind == "granted":
            token, session, client, since = payload
            return Granted(token, session, client, since / 1000, event.index)
        if event.kind == "released":
            return Released(payload[0], event.index)
        return Lost(payload[0], payload[1], event.index)

    async def present(self, since: int, backlog: Backlog) -> LockChange:
        description, index = await _describe(
            self._resource, consistency=Consistency.SEQUENTIAL, at_least=since
        )
        backlog.take_until(index)
        return Resync(description, index)
