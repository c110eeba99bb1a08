"""Election: one leader among many candidates, by priority and then first come, first served.

WHAT IT PROMISES. At any index of the log at most one candidate leads, and each reign has a fencing
token above all before it. A reign ends by resignation, by an operator's eviction, or with its
session, and in that same entry the first candidate in the queue leads. Candidacies are part of the
replicated state: listed in order, and withdrawn by cancellation, by timeout (on log time), or with
their session. A newcomer of higher priority passes those who wait and never deposes the leader.

GUARDED CODE. What runs "while leader" (`lead`, `run`) is cancelled before the cluster can elect a
candidate of another session; then LeadershipLost is raised. A transfer is orderly as well: the
leader's code is cancelled first, and the leadership passes when it has ended. Only an eviction does
not wait, which is what it is for.

WHAT IT DOES NOT. What a leader has sent elsewhere may arrive after its reign. Pass the token on;
this toolkit's own writes take `fence=term`.

The machine behind it is in `election_machine.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

import anyio
import attrs

from folkmoot.core.errors import (
    ElectionTimeout,
    FolkmootError,
    LeadershipLost,
    NotHeld,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
    UsageError,
)
from folkmoot.core.types import Consistency, Duration
from folkmoot.primitives._claims import claims_of
from folkmoot.primitives._grant import Grant, Guarded, Holding, Words
from folkmoot.primitives._options import ReadOptions, level
from folkmoot.primitives._subscriptions import EVERYTHING
from folkmoot.primitives._values import Codec, CodecName, Values
from folkmoot.primitives._watch import BUFFER_EVENTS, Backlog, Event, Resync, Watch

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

V = TypeVar("V")
R = TypeVar("R")

_RETRY_S = 0.5
"""Pause of `run` where the cluster is overloaded."""


@attrs.frozen
class Leader(Generic[V]):
    """Who leads, or led."""

    token: int
    """The reign's fencing token."""
    value: V | None
    """What it proclaims of itself; None: nothing."""
    since: float
    """Log time in seconds at which the reign began."""
    session: int
    client: str
    """The name of the session's client."""
    number: int
    """Its number as a candidate."""


@attrs.frozen
class Candidate(Generic[V]):
    """Who waits to lead."""

    number: int
    """Names the candidacy: for promote, transfer_to, evict and resign."""
    value: V | None
    priority: int
    since: float
    """Log time in seconds."""
    session: int
    client: str


@attrs.frozen
class ElectionDescription(Generic[V]):
    """What an operator wants to know of an election."""

    leader: Leader[V] | None
    candidates: tuple[Candidate[V], ...]
    """Who waits, in order: the first CANDIDATES_LISTED_MAX of them."""
    waiting: int
    """How many wait."""
    time: float
    """Log time now, in seconds."""


@attrs.frozen
class Elected(Generic[V]):
    """A reign began."""

    leader: Leader[V]
    revision: int


@attrs.frozen
class Proclaimed(Generic[V]):
    """The leader changed its value."""

    leader: Leader[V]
    revision: int


@attrs.frozen
class Vacant:
    """A reign ended. If somebody waits, the next one begins in the same entry."""

    token: int
    cause: str
    """"resigned", "evicted" or "expired"."""
    revision: int


ElectionChange = Elected[V] | Proclaimed[V] | Vacant | Resync[Leader[V] | None]


def _token(answer: list[int]) -> int:
    return answer[1] if answer else 0


_WORDS = Words("leadership of", LeadershipLost, ElectionTimeout, _token)


class Term(Grant, Generic[V]):
    """A reign: `token`, `fence`, `check()`, `proclaim(value)`, `resign()`."""

    def __init__(self, holding: Holding, values: Values[V]) -> None:
        super().__init__(holding)
        self._values = values

    @property
    def number(self) -> int:
        """The leader's number as a candidate."""
        return int(self._holding.answer[0])

    async def proclaim(self, value: V | None, *, timeout: Duration | None = None) -> int:
        """Change what the leader says of itself; return the revision. Watches hear Proclaimed.

        Raises NotHeld (not applied) once the reign has ended.
        """
        data = _encode(self._values, value)
        command = self._holding.resource.command
        return int(await command("proclaim", self.token, data, timeout=timeout))

    async def resign(self) -> None:
        """End the reign now, as `release` does: the rest of the body is not guarded any more."""
        await self.release()


class Election(Generic[V]):
    """An election that candidates in any process take part in.

    Making one does no I/O, and one object serves any number of tasks. A candidate's value is what
    others see of it: an address, say. None, and no bytes at all, mean that it says nothing.

    Any operation may raise ResourceDeleted, ResourceTypeError and ClosedError (not applied), and,
    when the session is lost, SessionExpired (not applied) or OutcomeUnknown (perhaps applied).
    """

    def __init__(
        self,
        resource: Resource,
        type: type[V] | Any = None,
        *,
        codec: CodecName | Codec[V] = "msgpack",
    ) -> None:
        limit = resource.client.config.limits.value_bytes_max
        self._resource = resource
        self._claims = claims_of(resource)
        self._values: Values[V] = Values(
            type, codec, bytes_max=limit, where=f"election {resource.name!r}"
        )

    @property
    def name(self) -> str:
        """The election's name."""
        return self._resource.name

    def lead(
        self, *, value: V | None = None, priority: int = 0, timeout: Duration | None = None
    ) -> Guarded[Term[V]]:
        """Lead around a body: `async with election.lead(value="me") as term`.

        Entering waits until elected, at most for `timeout` (0: does not wait). The body is
        cancelled when the leadership is lost, and LeadershipLost is raised in any case. A body that
        ends by itself, or by an error of its own, resigns.

        Cancelled, the candidacy is withdrawn, and a reign that began meanwhile is over. Entering
        raises ElectionTimeout (withdrawn), LeadershipLost where the candidacy was evicted,
        UsageError where this task leads or waits already, and SessionExpired (withdrawn).
        """
        return Guarded(lambda: self._campaign(value, priority, timeout), f"{self!r}.lead()")

    async def run(
        self,
        function: Callable[[Term[V]], Awaitable[R]],
        *,
        value: V | None = None,
        priority: int = 0,
    ) -> R:
        """Campaign for ever, and call `function(term)` whenever elected; return what it returns.

        Deposed, the call is cancelled, and the campaign goes on at the end of the queue: also after
        `resign`, an eviction, and the loss of a session. What the function raises ends it, unless
        that is the loss of the leadership or of what was going on at that moment.
        """
        while True:
            term: Term[V] | None = None
            try:
                async with self.lead(value=value, priority=priority) as term:
                    return await function(term)
            except (LeadershipLost, SessionExpired, OutcomeUnknown) as error:
                if term is None:
                    continue  # evicted, or the session was lost, while it waited
                if term.is_over_by(error) and _is_of_the_loss(error.__cause__):
                    continue
                raise
            except Unavailable:
                if term is not None:
                    raise
            await anyio.sleep(_RETRY_S)

    async def leader(self, **options: Unpack[ReadOptions]) -> Leader[V] | None:
        """Return who leads, or None."""
        found, _ = await _ask(self._resource, "leader", **options)
        return None if found is None else _leader(self._values, found)

    async def candidates(self, **options: Unpack[ReadOptions]) -> tuple[Candidate[V], ...]:
        """Return who waits to lead, in order."""
        return (await self.describe(**options)).candidates

    async def describe(self, **options: Unpack[ReadOptions]) -> ElectionDescription[V]:
        """Return who leads, who waits in which order, and since when."""
        found, _ = await _ask(self._resource, "describe", **options)
        leader, values = found["leader"], self._values
        return ElectionDescription(
            leader=None if leader is None else _leader(values, leader),
            candidates=tuple(_candidate(values, fields) for fields in found["candidates"]),
            waiting=found["waiting"],
            time=found["time"] / 1000,
        )

    async def resign(
        self,
        candidate: Candidate[V] | Leader[V] | int | None = None,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """End a candidacy of this client, leading or waiting, or all; return how many.

        Its task gets LeadershipLost with the cause "resigned". Watches hear Vacant.
        """
        number = None if candidate is None else _number(candidate)
        return int(await self._resource.command("resign", number, timeout=timeout))

    async def proclaim(self, value: V | None, *, timeout: Duration | None = None) -> int:
        """Change the value of the leader, who is of this client; return the revision.

        Watches hear Proclaimed. Raises NotHeld (not applied) where no task of this client leads.
        """
        holding = self._claims.held()
        if holding is None:
            raise NotHeld(f"no task of this client leads {self!r}")
        return await Term(holding, self._values).proclaim(value, timeout=timeout)

    async def promote(
        self, candidate: Candidate[V] | int, *, timeout: Duration | None = None
    ) -> bool:
        """Put a candidate at the head of the queue; False where it does not wait (any more)."""
        return await self._order("promote", candidate, timeout)

    async def transfer_to(
        self, candidate: Candidate[V] | int, *, timeout: Duration | None = None
    ) -> bool:
        """Put a candidate at the head and ask the leader to go; False where it does not wait.

        The leader's body is cancelled, and when it has ended the candidate leads: so not yet when
        this returns, and never at the same time. A leader that does not end can be evicted.
        """
        return await self._order("transfer", candidate, timeout)

    async def evict(
        self, candidate: Candidate[V] | Leader[V] | int, *, timeout: Duration | None = None
    ) -> bool:
        """End a candidacy, leading or waiting, at once; False where there is none.

        A leader's body is cancelled when the event arrives, so for a moment two may run; only the
        token tells them apart. Watches hear Vacant.
        """
        return await self._order("evict", candidate, timeout)

    def watch(
        self, *, initial: bool = False, buffer: int = BUFFER_EVENTS
    ) -> Watch[ElectionChange[V]]:
        """Return a watch of the reigns, in order, to be entered with `async with`.

        It yields Elected, Proclaimed and Vacant and, where some were missed, Resync with the
        present Leader (or None) as its snapshot. With `initial`, a Resync comes first. Once the
        election is deleted it raises ResourceDeleted.
        """
        if buffer < 1:
            raise UsageError(f"{self!r}: a watch cannot do with a buffer of {buffer}")
        source = _ElectionSource(self._resource, self._values)
        return Watch(self._resource, source, initial=initial, buffer=buffer)

    def __repr__(self) -> str:
        return f"<Election {self.name!r}>"

    async def _campaign(self, value: V | None, priority: int, timeout: Duration | None) -> Term[V]:
        data = _encode(self._values, value)
        holding = Holding(self._resource, self._claims, _WORDS)
        await self._claims.obtain(holding, timeout, "campaign", data, priority)
        return Term(holding, self._values)

    async def _order(
        self, what: str, candidate: Candidate[V] | Leader[V] | int, timeout: Duration | None
    ) -> bool:
        return bool(await self._resource.command(what, _number(candidate), timeout=timeout))


def _is_of_the_loss(error: BaseException | None) -> bool:
    """Whether what came out of a cancelled function only says that the session was lost."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_of_the_loss(part) for part in error.exceptions)
    return error is None or (isinstance(error, FolkmootError) and not isinstance(error, UsageError))


def _number(candidate: Any) -> int:
    return candidate if isinstance(candidate, int) else int(candidate.number)


def _encode(values: Values[V], value: V | None) -> bytes:
    return b"" if value is None else values.encode("", value)


def _decode(values: Values[V], data: bytes) -> V | None:
    return values.decode("", data) if data else None


def _leader(values: Values[V], fields: list[Any]) -> Leader[V]:
    token, value, since, session, client, number = fields
    return Leader(token, _decode(values, value), since / 1000, session, client, number)


def _candidate(values: Values[V], fields: list[Any]) -> Candidate[V]:
    number, value, priority, since, session, client = fields
    return Candidate(number, _decode(values, value), priority, since / 1000, session, client)


async def _ask(
    resource: Resource,
    operation: str,
    *,
    consistency: str = "linearizable",
    at_least: int = 0,
    timeout: Duration | None = None,
) -> tuple[Any, int]:
    return await resource.query(
        operation, consistency=level(consistency), at_least=at_least, timeout=timeout
    )


class _ElectionSource(Generic[V]):
    """What a watch of an election is made of."""

    events: Mapping[str, bool] = {"elected": False, "changed": False, "vacant": False}
    filter = EVERYTHING

    def __init__(self, resource: Resource, values: Values[V]) -> None:
        self._resource = resource
        self._values = values

    def change(self, event: Event) -> ElectionChange[V]:
        """Return what the reader of the watch gets. Raises DecodeError."""
        if event.kind == "vacant":
            token, cause = event.payload
            return Vacant(token, cause, event.index)
        kind = Elected if event.kind == "elected" else Proclaimed
        return kind(_leader(self._values, event.payload), event.index)

    async def present(self, since: int, backlog: Backlog) -> ElectionChange[V]:
        """Read who leads, at an index >= `since`. Raises DecodeError."""
        found, index = await _ask(
            self._resource, "leader", consistency=Consistency.SEQUENTIAL, at_least=since
        )
        backlog.take_until(index)
        return Resync(None if found is None else _leader(self._values, found), index)
