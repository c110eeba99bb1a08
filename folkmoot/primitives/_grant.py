"""A grant in the client: holding it, giving it back, and code that ends before it can pass on.

The machine's half is `_seat.py`; how a grant is asked for, and hears of its end, is `_claims.py`.

    asked --> held --release--> released
      |         +--lost, or the session is over--> ended: check and `async with` raise
      +--> ended: asking raises

`Grant` is what users hold; `Holding` behind it keeps the state and hears what becomes of it.

GUARDED CODE. `async with grant` runs its body in a cancel scope, which is cancelled when the grant
ends. Where the session is the reason that happens at the client's conservative local deadline,
which lies before the moment at which the cluster may grant to another session. What notices
cancellation late (a thread, a loop without await) has to ask `check`, which looks at the clock
itself: after a pause of the whole process it is right before any task has run.

    1. the process is paused, and its session expires
    2. it goes on; the body runs before the client's loop does
    3. the body asks `check`, or ends: the local deadline has passed, so both raise

A body that ends by itself releases. That waits for the cluster's answer, shielded from
cancellation, but never beyond the session's local deadline. A release that cannot be delivered by
then comes true through the session's end, a little later; it raises nothing, as the body was
guarded to its end, and the grant's repr says so.

A REVOKED grant (a leadership that is transferred) ends in the same way for its body, but is still
held for the cluster until it is given back, which is done when the body has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import attrs

from folkmoot.core.clock import loop_clock
from folkmoot.core.errors import (
    ClosedError,
    CommandError,
    GrantLost,
    NotHeld,
    OperationTimeout,
    OutcomeUnknown,
    Overloaded,
    SessionClosed,
    SessionEnded,
    Unavailable,
    UsageError,
)
from folkmoot.core.handle import Call, Resource

if TYPE_CHECKING:
    from folkmoot.primitives._claims import Claims


RETRY_S = 0.05
"""Pause before something is given back again that an overloaded server would not take."""


@attrs.frozen
class Words:
    """What one primitive calls its grants, what it raises, and where an answer has the token."""

    name: str
    """As in "the lock 'nightly' was lost"."""
    lost: type[GrantLost]
    timeout: type[OperationTimeout] | None
    """None: the machine knows no timeout."""
    token: Callable[[Any], int]
    """Reads the token, or 0, from the answer to the command that claims."""


@attrs.frozen
class Ending:
    """Why a grant is not held any more: a word, and the log index that ended it, if known."""

    cause: str
    index: int = 0


class Insistent(Call):
    """A command that gives something back: issued again where the cluster would not take it.

    It ends when it is applied, or with the session, and either way the thing is given back. So
    nobody needs to wait for it, and nobody can withdraw it.
    """

    __slots__ = ("_again",)

    def __init__(self, resource: Resource, name: str, *args: Any) -> None:
        super().__init__(resource, name, args, None)
        self._again = (name, args)

    def issue(self) -> Self:
        """Issue it behind everything issued so far."""
        client = self.resource.client
        try:
            client.issue(self)
        except Overloaded:
            client.core.issue(self)  # it leaves with those that wait to be sent
        except ClosedError as error:
            self._waiter.set_exception(SessionClosed(str(error)))
        return self

    def finished(self) -> None:
        """Wake whoever waits, unless it was certainly not applied: then try again, a bit later."""
        if isinstance(self.error, Unavailable):
            self.resource.client.expire_after(self, RETRY_S)
        else:
            super().finished()

    def run_out(self) -> None:
        """It is time to try again, if that is still the session that it is about."""
        if self.resource.client.session_id != self.session_id:
            super().finished()
            return
        name, args = self._again
        again = Insistent(self.resource, name, *args)
        again._waiter = self._waiter
        again.issue()

    def withdraw(self) -> bool:
        """Do nothing: it has to arrive."""
        return False


class Holding:
    """One claim of this client: asked for, perhaps held, and then over. The client's Guard.

    - `token` is 0 until it is granted, and never changes afterwards.
    - `ending` is set at most once; not by the end of the session once the release was sent.
    - `counts` from the grant until the release is sent or the cluster has ended it.
    - `scope` is the guarded body's, while there is one.
    """

    def __init__(self, resource: Resource, claims: Claims, words: Words, seat: str = "") -> None:
        self.resource = resource
        self.words = words
        self.seat = seat
        """Which of a resource's seats it is about, where there are several."""
        self.request = claims.number()
        self.token = 0
        self.fence = (0, 0)
        self.answer: Any = None
        """The answer to the command that claimed."""
        self.note: Any = None
        """What came along with a grant by event."""
        self.ending: Ending | None = None
        self.counts = False
        self.raised: GrantLost | None = None
        """What the guarded body's statement has raised."""
        self.released: Call | None = None
        self.is_delivered = True
        self.scope: anyio.CancelScope | None = None
        self._shield: anyio.CancelScope | None = None
        self._claims = claims
        self._clock = loop_clock()

    @property
    def title(self) -> str:
        seat = f"{self.seat!r} of " if self.seat else ""
        return f"the {self.words.name} {seat}{self.resource.name!r}"

    def error(self, ending: Ending) -> GrantLost:
        """What is raised for a grant that has ended so."""
        where = f" at index {ending.index}" if ending.index else ""
        text = f"{self.title} with token {self.token} was lost{where}: {ending.cause}"
        return self.words.lost(text, cause=ending.cause, index=ending.index)

    def end_now(self) -> Ending | None:
        """Why it has ended; also where the client's loop has not come to notice it yet."""
        ending = self.ending
        if ending is not None or self.released is not None:
            return ending
        late = self.counts and self._clock() >= self.resource.client.local_deadline
        # Between the two looks the loop (of another thread) may have noted a more precise cause.
        return self.ending or (Ending("expired") if late else None)

    def check(self) -> None:
        """Raise unless it is held."""
        ending = self.end_now()
        if ending is not None:
            raise self.error(ending)
        if self.released is not None:
            raise NotHeld(f"{self.title} was released")

    async def give_back(self) -> None:
        """Release, and wait for the answer or the end of the session, shielded."""
        self.counts = False
        self.released = call = self._send_release()
        try:
            with anyio.CancelScope(shield=True) as self._shield:
                await call.wait()
            self.is_delivered = not self._shield.cancelled_caught
        except (SessionEnded, OutcomeUnknown, Unavailable):
            self.is_delivered = False
        except CommandError as error:
            # Where the cluster says why, that event came before this answer.
            self.ending = self.ending or Ending(error.code)
        finally:
            self.forget()

    # Told by Claims, and by the client as its Guard: synchronously, from the session's loop.

    def take(self, token: int, session_id: int) -> None:
        """It is granted: held, if the session under which it was asked for goes on."""
        self.token = token
        self.fence = (self.resource.resource_id, token)
        self.counts = True
        self.resource.client.add_guard(self, session_id)

    def on_lost(self, cause: str, index: int) -> None:
        """The session is over."""
        if self.released is None:
            self.lose(Ending(cause, index))
        elif self._shield is not None:
            self._shield.cancel()

    def lose(self, ending: Ending) -> None:
        """The cluster has ended it, or is certain to: nothing is left to release."""
        self.counts = False
        self._end(ending)
        self.forget()

    def revoke(self, ending: Ending) -> None:
        """It is to be given back, once its body has ended."""
        self._end(ending)
        if self.scope is None and self.counts:
            self.counts = False
            self.released = self._send_release()
            self.forget()

    def forget(self) -> None:
        """Nothing more can happen to it."""
        self.resource.client.remove_guard(self)
        self._claims.remove(self)

    def send_claim(self, operation: str, *args: Any) -> Call:
        """Ask for it."""
        return self.resource.send(operation, *self._seat_args(), self.request, *args)

    def send_withdraw(self) -> Call:
        """End the claim, whether it waits or is granted by now."""
        return Insistent(self.resource, "withdraw", *self._seat_args(), self.request).issue()

    def _send_release(self) -> Call:
        if self.seat:
            return self.send_withdraw()
        return Insistent(self.resource, "release", self.token).issue()

    def _seat_args(self) -> tuple[str, ...]:
        return (self.seat,) if self.seat else ()

    def _end(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
        if self.scope is not None:
            self.scope.cancel()


class Grant:
    """What was granted, with a fencing token. `async with grant` guards its body."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every grant of this resource before."""
        return self._holding.token

    @property
    def fence(self) -> tuple[int, int]:
        """(resource id, token): `fence=grant` hands it to a write of the toolkit."""
        return self._holding.fence

    @property
    def held(self) -> bool:
        """Whether it is held, as `check` tells."""
        return self._holding.released is None and self._holding.end_now() is None

    def is_of(self, resource: Resource) -> bool:
        """Whether this resource has granted it."""
        return self._holding.resource is resource

    def is_over_by(self, error: BaseException) -> bool:
        """Whether `error` is what `async with` raised for the loss of this very grant."""
        return error is self._holding.raised

    def check(self) -> None:
        """Raise unless the grant is held. Cheap; may be called from any thread.

        Raises LockLost or LeadershipLost with the cause if it was lost, NotHeld if it was released.
        """
        self._holding.check()

    async def release(self) -> None:
        """Give it back; the next in the queue has it from that same entry on. Idempotent.

        It has been sent when this returns or raises, cancelled or not. The answer is waited for,
        shielded, but not beyond the session, whose end would release as well. Raises NotHeld,
        naming the cause, if the grant was lost before.
        """
        holding = self._holding
        if holding.released is not None:
            return
        ending = holding.end_now()
        if holding.counts and ending is None:
            await holding.give_back()
            ending = holding.ending
        if ending is not None:
            raise NotHeld(str(holding.error(ending)))

    async def __aenter__(self) -> Self:
        holding = self._holding
        if holding.scope is not None:
            raise UsageError(f"{holding.title}: this grant guards a body already")
        holding.check()
        holding.scope = anyio.CancelScope()
        holding.scope.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:  # `bool` would tell type checkers that errors of the body may be swallowed
        holding = self._holding
        assert holding.scope is not None, f"{self!r} is left and was not entered"
        scope, holding.scope = holding.scope, None
        rest = _leave(scope, kind, error, trace)
        if holding.released is None:
            holding.ending = holding.end_now()
        if holding.counts:
            await holding.give_back()
        if holding.ending is not None:
            lost = holding.raised = holding.error(holding.ending)
            if rest is None or isinstance(rest, Exception):
                raise lost from rest
            rest.add_note(f"Also: {lost}")  # a cancellation from outside, or an exit, goes on
        if rest is not None and rest is not error:
            raise rest
        return rest is None

    def __repr__(self) -> str:
        holding = self._holding
        if holding.ending is not None:
            state = f"lost: {holding.ending.cause}"
        elif holding.released is not None:
            state = "released" if holding.is_delivered else "released with its session"
        else:
            state = "held"
        return f"<{type(self).__name__} of {holding.title}, token {self.token}, {state}>"


G = TypeVar("G", bound=Grant)


class Guarded(Generic[G]):
    """`async with` something that is obtained on entering: once, by one task."""

    def __init__(self, obtain: Callable[[], Awaitable[G]], title: str) -> None:
        self._obtain: Callable[[], Awaitable[G]] | None = obtain
        self._title = title
        self._grant: G | None = None

    async def __aenter__(self) -> G:
        obtain, self._obtain = self._obtain, None
        if obtain is None:
            raise UsageError(f"{self._title} was entered before: make a new one")
        self._grant = await obtain()
        return await self._grant.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._grant is not None, f"{self._title} is left and was not entered"
        return await self._grant.__aexit__(kind, error, trace)


def _leave(
    scope: anyio.CancelScope,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> BaseException | None:
    """Leave the body's cancel scope; return what is left of the error that came out of it."""
    try:
        absorbed = scope.__exit__(kind, error, trace)
    except BaseException as rest:  # noqa: BLE001  # a group without the scope's own cancellation
        return rest
    return None if absorbed else error
