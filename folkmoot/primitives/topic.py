"""Topic: messages to all who subscribe, in one order, with a retention and durable cursors.

WHAT IT PROMISES. A message that was answered is in the log once; its REVISION is the index of its
entry, and all subscribers get all messages in that order, each once. RETAINED are the newest
`count` and, beyond those, what some cursor has not acknowledged yet; all of it within `bytes`,
HELD_MAX messages and, if configured, an age on log time. Who subscribes with `since=`, falls
behind, or loses its session goes on from where it was as far as they reach. Where they do not, the
reader gets a Resync that names the gap. Nobody who is slow slows anybody else.

A CURSOR is a durable reader with a name: it goes on from what was acknowledged, in whichever
process. AT LEAST ONCE: what was read and not acknowledged comes again. One consumer at a time has a
cursor; others stand by, in order. A cursor holds what it has not acknowledged also while nobody
consumes; one that is forgotten costs up to `bytes` until it is deleted.

The machine behind it is in `topic_machine.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

import anyio
import attrs

from folkmoot.core.errors import (
    FolkmootError,
    GrantLost,
    NotHeld,
    Overloaded,
    ResourceDeleted,
    SessionExpired,
    UsageError,
)
from folkmoot.core.handle import Call
from folkmoot.core.types import Duration, seconds
from folkmoot.primitives._claims import claims_of
from folkmoot.primitives._grant import Holding, Words
from folkmoot.primitives._options import Fence, ReadOptions, WriteOptions, level
from folkmoot.primitives._subscription import BUFFER_MESSAGES, Gap, Subscription
from folkmoot.primitives._values import Codec, CodecName, Values
from folkmoot.primitives._watch import Resync
from folkmoot.primitives.topic_machine import TopicMachine

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

V = TypeVar("V")


@attrs.frozen
class Message(Generic[V]):
    """What was published."""

    value: V
    revision: int
    time: float
    """Log time in seconds at which it was published."""


TopicItem = Message[V] | Resync[Gap]


@attrs.frozen
class CursorDescription:
    """A durable cursor."""

    name: str
    acknowledged: int
    """All messages up to this revision have been dealt with."""
    session: int
    """The consumer's; 0: there is none."""
    client: str
    waiting: int
    """How many stand by."""


@attrs.frozen
class TopicDescription:
    """What an operator wants to know of a topic."""

    newest: int
    """The newest message's revision; 0: there never was one."""
    floor: int
    """The revision of the newest message that is gone; 0: none is."""
    retained: int
    """More than `count_max` while some cursor holds what it has not acknowledged."""
    retained_bytes: int
    count_max: int
    """How many of the newest are retained whoever has acknowledged them."""
    bytes_max: int
    age_max: float | None
    """Seconds of log time."""
    subscribers: int
    """Sessions that subscribe."""
    cursors: tuple[CursorDescription, ...]
    """Those furthest behind first, then by name; LISTED_MAX of them at most."""
    cursor_count: int
    time: float
    """Log time now, in seconds."""


class Topic(Generic[V]):
    """A topic with messages of type V.

    Making one does no I/O. An operation that is cancelled, or runs out of time, may have been sent
    and applied all the same; nothing is ever applied twice.

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
        self._values: Values[V] = Values(
            type, codec, bytes_max=limit, where=f"topic {resource.name!r}"
        )
        self._revision = 0

    @staticmethod
    def configuration(
        *,
        count: int | None = None,
        bytes: int | None = None,  # noqa: A002
        age: Duration | None = None,
    ) -> dict[str, int]:
        """Return what a topic is made with that retains so much (None: the default)."""
        age_ms = None if age is None else round(seconds(age) * 1000)
        fields = {"count": count, "bytes": bytes, "age_ms": age_ms}
        config = {name: value for name, value in fields.items() if value is not None}
        TopicMachine(config)
        return config

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._resource.name

    @property
    def revision(self) -> int:
        """The greatest revision that was published through this object."""
        return self._revision

    async def publish(self, message: V, **options: Unpack[WriteOptions]) -> int:
        """Publish a message to all who subscribe; return its revision."""
        data = self._values.encode("", message)
        revision = int(await self._publish(data, **options))
        self._revision = max(self._revision, revision)
        return revision

    def subscribe(self, *, since: int | None = None, buffer: int = BUFFER_MESSAGES) -> Messages[V]:
        """Return a live reader, to be entered: `async with topic.subscribe() as messages`.

        It yields each Message that is published from then on; with `since`, those above that
        revision first, 0 being all that are retained. Resync, with a Gap as its snapshot, says
        which ones are gone. A reader more than `buffer` behind goes on with the retained messages.
        """
        return Messages(self._resource, self._make, since, buffer)

    def cursor(
        self,
        name: str,
        *,
        since: int | None = None,
        auto_ack: bool = True,
        buffer: int = BUFFER_MESSAGES,
    ) -> Consumer[V]:
        """Return a durable reader: `async with topic.cursor("billing") as messages`.

        Entering waits until this is the cursor's one consumer, and makes the cursor if it is new:
        from now on, or above the revision `since` (0: all that is retained). With `auto_ack`,
        asking for the next message acknowledges those before; else call `message.ack()`.
        """
        if not name:
            raise UsageError(f"{self!r}: a cursor needs a name")
        reader = Subscription(self._resource, self._make, 0, buffer)
        return Consumer(self._resource, name, since, reader, auto_ack)

    async def delete_cursor(self, name: str, *, timeout: Duration | None = None) -> bool:
        """Forget a cursor; False where there is none. Its consumer gets ResourceDeleted.

        What only this cursor held beyond the topic's count goes at once.
        """
        return bool(await self._resource.command("delete_cursor", name, timeout=timeout))

    async def subscribers(self, **options: Unpack[ReadOptions]) -> tuple[tuple[int, str], ...]:
        """Return the sessions that subscribe: id, and name of the client."""
        found = await self._ask("subscribers", **options)
        return tuple((session, client) for session, client in found)

    async def describe(self, **options: Unpack[ReadOptions]) -> TopicDescription:
        """Return what is retained, who subscribes, and how far the cursors are."""
        found = await self._ask("describe", **options)
        count, size_bytes, age_ms = found["retention"]
        return TopicDescription(
            newest=found["head"],
            floor=found["floor"],
            retained=found["retained"],
            retained_bytes=found["retained_bytes"],
            count_max=count,
            bytes_max=size_bytes,
            age_max=None if age_ms is None else age_ms / 1000,
            subscribers=found["subscribers"],
            cursors=tuple(CursorDescription(*fields) for fields in found["cursors"]),
            cursor_count=found["cursor_count"],
            time=found["time"] / 1000,
        )

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"

    def _make(self, revision: int, time_ms: int, data: bytes) -> Message[V]:
        return Message(self._values.decode("", data), revision, time_ms / 1000)

    async def _publish(
        self, data: bytes, *, fence: Fence | None = None, timeout: Duration | None = None
    ) -> Any:
        token = None if fence is None else fence.fence
        return await self._resource.command("publish", data, timeout=timeout, fence=token)

    async def _ask(
        self,
        operation: str,
        *,
        consistency: str = "linearizable",
        at_least: int = 0,
        timeout: Duration | None = None,
    ) -> Any:
        found, _ = await self._resource.query(
            operation, consistency=level(consistency), at_least=at_least, timeout=timeout
        )
        return found


class Messages(Generic[V]):
    """A live reader of a topic. One task reads at a time; cancelling a read loses nothing."""

    def __init__(
        self,
        resource: Resource,
        make: Callable[[int, int, bytes], Message[V]],
        since: int | None,
        buffer: int,
    ) -> None:
        self._reader = Subscription(resource, make, since, buffer)

    @property
    def revision(self) -> int:
        """Everything up to this revision has been read: for `since=` another time."""
        return self._reader.position

    async def __aenter__(self) -> Self:
        await self._reader.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reader.close()

    def close(self) -> None:
        """End it; a task that waits in it finds it exhausted. Does not wait. Idempotent."""
        self._reader.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TopicItem[V]:
        """Return the next message, waiting for it; or a Resync where some are gone.

        Raises DecodeError for a message that is none of this type (reading goes on behind it), and
        ResourceDeleted or ClosedError at the end.
        """
        item = await self._reader.__anext__()
        return Resync(item, item.upto) if isinstance(item, Gap) else item

    def __repr__(self) -> str:
        return repr(self._reader)


@attrs.frozen
class Delivery(Message[V], Generic[V]):
    """A message that a cursor has delivered."""

    _consumer: Consumer[V] = attrs.field(repr=False, eq=False)
    _token: int = attrs.field(repr=False, eq=False)

    async def ack(self) -> None:
        """Acknowledge it, and all before it: they will not come again.

        Raises NotHeld (not applied) where another consumer has the cursor by now.
        """
        await self._consumer.acknowledge(self.revision, self._token)


def _token(answer: list[int]) -> int:
    return answer[0]


_WORDS = Words("cursor", GrantLost, None, _token)


class Consumer(Generic[V]):
    """The reader of a durable cursor. One task reads at a time.

    When the session is lost the cursor is claimed anew, behind those who stand by, and reading goes
    on from what was acknowledged. The code that reads is not cancelled: what it does may happen
    twice, and an acknowledgement that came too late is refused.
    """

    def __init__(
        self,
        resource: Resource,
        name: str,
        since: int | None,
        reader: Subscription[Message[V]],
        auto_ack: bool,
    ) -> None:
        self._resource = resource
        self._name = name
        self._since = since
        self._reader = reader
        self._auto_ack = auto_ack
        self._holding: Holding | None = None
        self._read = 0  # the last one delivered
        self._done = 0  # the last one that may be acknowledged
        self._acknowledged = 0
        self._acknowledgement: Call | None = None

    @property
    def token(self) -> int:
        """The fencing token of being the cursor's consumer."""
        return self._held().token

    @property
    def fence(self) -> tuple[int, int]:
        """(resource id, token): `fence=messages` hands it to a write of the toolkit."""
        return self._held().fence

    async def __aenter__(self) -> Self:
        await self._claim()
        try:
            await self._reader.__aenter__()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery[V] | Resync[Gap]:
        """Return the next message, waiting for it; or a Resync where some are gone.

        Raises as a live reader does, and ResourceDeleted when the cursor was deleted.
        """
        if self._auto_ack:
            self._done = self._read
            if not (self._is_acknowledging() and self._reader.is_ready):
                self._send_acknowledgement()
        while True:
            holding = self._held()
            if holding.end_now() is not None:
                await self._claim()
                continue
            with anyio.CancelScope() as holding.scope:
                item = await self._reader.__anext__()
                holding.scope = None
                self._read = self._reader.position
                if isinstance(item, Gap):
                    return Resync(item, item.upto)
                return Delivery(item.value, item.revision, item.time, self, holding.token)
            holding.scope = None

    async def acknowledge(self, revision: int, token: int | None = None) -> None:
        """Acknowledge all messages up to a revision. Raises NotHeld as `Delivery.ack` does."""
        holding = self._held()
        if token is not None and token != holding.token:
            raise NotHeld(f"{holding.title} was lost before revision {revision} was acknowledged")
        await self._resource.command("acknowledge", self._name, holding.token, revision)
        self._acknowledged = max(self._acknowledged, revision)

    def __repr__(self) -> str:
        return f"<consumer of cursor {self._name!r} of {self._resource.name!r}>"

    def _held(self) -> Holding:
        if self._holding is None:
            raise UsageError(f"{self!r} is not entered: use `async with ... as messages`")
        return self._holding

    async def _claim(self) -> None:
        """Become the consumer, and go on from what was acknowledged."""
        before = self._holding
        if before is not None and before.ending is not None and before.ending.cause == "deleted":
            raise ResourceDeleted(f"{before.title} was deleted")
        claims = claims_of(self._resource)
        while True:
            holding = Holding(self._resource, claims, _WORDS, self._name)
            try:
                await claims.obtain(holding, None, "consume", self._since)
                break
            except GrantLost as error:
                if error.cause == "deleted":
                    raise ResourceDeleted(str(error)) from error
            except SessionExpired:
                pass  # in the next session, again
        self._holding = holding
        token, acknowledged = holding.answer
        at = acknowledged if token else holding.note
        self._acknowledged = self._read = self._done = at
        self._acknowledgement = None
        self._reader.restart(at)

    def _is_acknowledging(self) -> bool:
        return self._acknowledgement is not None and not self._acknowledgement.done

    def _send_acknowledgement(self) -> None:
        """Acknowledge without waiting. While one is under way, a later one may cover it."""
        holding = self._held()
        if self._done <= self._acknowledged or holding.end_now() is not None:
            return
        with suppress(Overloaded):  # the next one covers it
            self._acknowledgement = self._resource.send(
                "acknowledge", self._name, holding.token, self._done
            )
            self._acknowledged = self._done

    async def _leave(self) -> None:
        holding = self._held()
        self._reader.close()
        if holding.counts:
            with suppress(FolkmootError):
                self._send_acknowledgement()
            await holding.give_back()
