"""Watches: how a program reads what happens to a resource, missing nothing, in bounded memory.

This is the client's side, the same for every primitive. It does no I/O of its own and has no task:
the session's loop hands in events through `Feed`, and all else happens in the reader's own task,
inside `__anext__`.

    resource --events--> Feed --what fits its filter--> Watch (a bounded buffer) --> async for

- FEED: one per resource and client. The servers send an event once per session, however many of its
  watches want it; the feed hands it to each of them. 100 watches of one key are one event on the
  wire.
- WATCH: one reader. It is complete from `revision` on. Whenever that cannot be kept (the session
  was lost, the servers cut a session that did not read, the buffer overflowed), the watch is CUT:
  the reader's next change is a `Resync` with the present state, and then it goes on from there. An
  overflow cuts that one watch, and never slows another.
- SOURCE: what a primitive adds: which events are its watches', what change an event is to the user,
  and how the present state is read.

THE CUT AT ONE REVISION. The first state of a watch (`initial=True`), that of a Resync, and the
listing of a map that is longer than one page are made alike:

    1. subscribe; the answer's revision is s, and all changes after s come as events
    2. read the state, in pages if need be, each read at some index r >= s
    3. the events up to r have arrived before that answer (core/requests.py), so the watch's buffer
       holds all that happened in (s, r]: fold them into the pages that were read before, and drop
       those that this page has seen; what is left in the buffer comes after r, and is for the
       reader
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary

import attrs
from anyio.lowlevel import checkpoint

from folkmoot.core.errors import (
    ClosedError,
    FolkmootError,
    OutcomeUnknown,
    Overloaded,
    ResourceDeleted,
    SessionExpired,
    StorageFull,
    UsageError,
)
from folkmoot.core.types import ConnectionState
from folkmoot.core.wakeup import Waiter
from folkmoot.primitives._subscriptions import EVERYTHING, Filter, Subscriptions

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

C = TypeVar("C")
S = TypeVar("S")
C_co = TypeVar("C_co", covariant=True)

BUFFER_EVENTS = 1024
BUFFER_BYTES = 16 << 20
"""What a watch holds for a reader that is behind; beyond either it is cut."""
_READING_EVENTS = 65_536
"""Instead of the former while the state is being read: a large map takes a while."""
_CUTS_MAX = 8
"""Cuts in one reading of the state; then the reader is told that he cannot keep up."""


@attrs.frozen
class Resync(Generic[S]):
    """The whole present state: changes before it may have been missed, none after it is."""

    snapshot: S
    revision: int
    """The state is that at this index; the changes that follow have greater revisions."""


@attrs.frozen
class Event:
    """One event as it arrived."""

    index: int
    kind: str
    payload: Any
    size_bytes: int = 0
    """Of the keys and values in it."""


class Backlog(Protocol):
    """What arrived while the state is being read."""

    def take_until(self, index: int) -> list[Event]:
        """Take what happened up to `index`, in order. All of it has arrived."""
        ...


class Source(Protocol[C_co]):
    """What one primitive adds to a watch."""

    events: Mapping[str, bool]
    """The kinds of events that are for watches, and whether their payload begins with a key."""
    filter: Filter

    def change(self, event: Event) -> C_co:
        """Return what the reader gets for an event. Whatever it raises, the reader gets instead."""
        ...

    async def present(self, since: int, backlog: Backlog) -> C_co:
        """Read the state at an index >= `since` and return it as a Resync; take what it covers."""
        ...


class _Cut(Exception):
    """The backlog has a hole: read the state anew."""


class Feed:
    """Hands one resource's events to this client's watches of it.

    It listens to the resource exactly while there are watches.
    """

    def __init__(self) -> None:
        self._watches: dict[int, Watch[Any]] = {}
        self._filters = Subscriptions()
        self._numbers = count(1)

    def number(self) -> int:
        """Return a number that this client has not used on the resource: to name a request."""
        return next(self._numbers)

    def join(self, watch: Watch[Any], resource: Resource) -> int:
        """Add a watch; return its number."""
        number = self.number()
        if not self._watches:
            resource.listen(self)
        self._watches[number] = watch
        self._filters.add(number, *watch.source.filter)
        return number

    def leave(self, number: int, resource: Resource) -> bool:
        """Remove a watch; say whether it was the last with its filter."""
        kind, text = self._watches.pop(number).source.filter
        self._filters.drop(number)
        if not self._watches:
            resource.unlisten(self)
        return not self._filters.has(kind, text)

    def on_event(self, index: int, kind: str, payload: Any) -> None:
        """Hand an event to the watches that it is for."""
        if kind == "resync":
            for watch in self._all():
                watch.cut()
        elif kind == "deleted":
            for watch in self._all():
                watch.end(ResourceDeleted(f"{watch} has ended: the resource was deleted", index))
        else:
            event = Event(index, kind, payload, _size_bytes(payload))
            for watch in self._addressees(event):
                watch.take(event)

    def on_state(self, state: ConnectionState, cause: str) -> None:
        """Cut all watches when the session is lost, and end them when the client is closed."""
        for watch in self._all():
            if state is ConnectionState.EXPIRED:
                watch.cut()
            elif state is ConnectionState.CLOSED:
                watch.end(ClosedError(f"{watch} has ended: the client is closed"))

    def _all(self) -> list[Watch[Any]]:
        return list(self._watches.values())

    def _addressees(self, event: Event) -> list[Watch[Any]]:
        watches = self._all()
        has_key = watches[0].source.events.get(event.kind) if watches else None
        if has_key is None:  # an event that is not for watches
            return []
        if not has_key:
            return watches
        return [self._watches[one] for one in self._filters.matching(event.payload[0])]


_FEEDS: WeakKeyDictionary[Resource, Feed] = WeakKeyDictionary()


def feed_of(resource: Resource) -> Feed:
    """Return the one feed of a resource: all proxies of its name in a client share it."""
    feed = _FEEDS.get(resource)
    if feed is None:
        feed = _FEEDS[resource] = Feed()
    return feed


class Watch(Generic[C]):
    """An asynchronous iterator over what happens to a resource, to be entered with `async with`.

        async with flags.watch() as changes:
            async for change in changes: ...

    One task reads at a time. Cancelling a read loses nothing: the next one goes on where it was.

    - The buffer holds the changes after `revision` that the reader has not taken, in log order; it
      is empty, and stays empty, while the watch is cut.
    - A cut is mended by the reader's next read. An end is final; what is buffered is read first.
    """

    def __init__(
        self, resource: Resource, source: Source[C], *, initial: bool = False, buffer: int = 0
    ) -> None:
        self.source = source
        self.revision = 0
        """The reader gets every change after this index. 0 until the watch is entered."""
        self._resource = resource
        self._feed = feed_of(resource)
        self._number = 0
        self._initial = initial
        self._first: C | None = None
        self._buffer: deque[Event] = deque()
        self._buffer_max = buffer or BUFFER_EVENTS
        self._room = self._buffer_max
        self._size_bytes = 0
        self._is_cut = False
        self._end: FolkmootError | None = None
        self._is_open = False
        self._waiter: Waiter[None] | None = None
        self._is_reading = False

    async def __aenter__(self) -> Self:
        if self._number:
            raise UsageError(f"{self!r} was entered before: make a new one")
        self._number = self._feed.join(self, self._resource)
        self._is_open = True
        try:
            if self._initial:
                self._first = await self._read_state()
            else:
                with suppress(_Cut):
                    await self._begin()
        except BaseException as error:
            if isinstance(error, StorageFull) and not self.revision:
                self.end(error)  # it was refused, so there is nothing to undo
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the watch; a task that waits in it finds it exhausted. Does not wait. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._buffer.clear()
        is_last = self._feed.leave(self._number, self._resource)
        if is_last and self._end is None:
            with suppress(FolkmootError):  # a session that is gone subscribes to nothing
                self._resource.send("unsubscribe", *self.source.filter)
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> C:
        """Return the next change, waiting for it.

        Raises ResourceDeleted or ClosedError once what came before has been read, and Overloaded
        where changes come faster than the state can be read; reading again tries that again.
        """
        if not self._number:
            raise UsageError(f"{self!r} is not entered: use `async with ... as changes`")
        if self._is_reading:
            raise UsageError(f"another task is reading from {self!r}: give it a watch of its own")
        self._is_reading = True
        try:
            return self._pop() if self._buffer and self._first is None else await self._next()
        finally:
            self._is_reading = False

    def _pop(self) -> C:
        event = self._buffer.popleft()
        self._size_bytes -= event.size_bytes
        return self.source.change(event)

    async def _next(self) -> C:
        while self._is_open:
            if self._first is not None:
                first, self._first = self._first, None
                return first
            if self._buffer:
                return self._pop()
            if self._end is not None:
                raise self._end
            if self._is_cut:
                return await self._read_state()
            self._waiter = Waiter()
            await self._waiter.wait()
        raise StopAsyncIteration

    # Called by the feed, from the session's loop:

    def take(self, event: Event) -> None:
        """Buffer an event; cut the watch where there is no room."""
        if self._is_cut or self._end is not None:
            return
        self._size_bytes += event.size_bytes
        self._buffer.append(event)
        if len(self._buffer) > self._room or self._size_bytes > BUFFER_BYTES:
            self.cut()
        self._wake()

    def cut(self) -> None:
        """Forget what is buffered: the next read begins with the present state."""
        if self._end is None:
            self._is_cut = True
            self._first = None
            self._buffer.clear()
            self._size_bytes = 0
            self._wake()

    def end(self, error: FolkmootError) -> None:
        """End it with an error, behind what is buffered."""
        if self._end is None:
            self._end = error
            self._wake()

    # In the reader's task:

    async def _begin(self) -> None:
        """Subscribe; from then on nothing is missed."""
        while True:
            self._is_cut = False
            with suppress(SessionExpired, OutcomeUnknown):
                self.revision = await self._resource.command("subscribe", *self.source.filter)
                break
            # The session was lost on the way. The client opens another one; in that, again.
            await checkpoint()
        self.take_until(self.revision)  # of an older watch with this filter

    async def _read_state(self) -> C:
        """Subscribe and read the present state, until that succeeds without a hole."""
        self._room = _READING_EVENTS
        try:
            for _ in range(_CUTS_MAX):
                with suppress(_Cut):
                    await self._begin()
                    present = await self.source.present(self.revision, self)
                    self.take_until(self.revision)
                    return present
                if self._end is not None:
                    raise self._end
        except BaseException:
            self.cut()
            raise
        finally:
            self._room = self._buffer_max
        self.cut()
        raise Overloaded(f"{self!r}: changes come faster than the state can be read")

    def take_until(self, index: int) -> list[Event]:
        """Take what happened up to `index` out of the buffer (see Backlog)."""
        if self._is_cut:
            raise _Cut
        taken = []
        while self._buffer and self._buffer[0].index <= index:
            event = self._buffer.popleft()
            self._size_bytes -= event.size_bytes
            taken.append(event)
        self.revision = max(self.revision, index)
        return taken

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    def __repr__(self) -> str:
        kind, text = self.source.filter
        where = "" if self.source.filter == EVERYTHING else f" {kind}={text!r}"
        state = "open" if self._is_open else "closed" if self._number else "not entered"
        return f"<watch of {self._resource.type_name} {self._resource.name!r}{where}: {state}>"


def _size_bytes(payload: Any) -> int:
    if type(payload) is not list:
        return 0
    return sum([len(part) for part in payload if type(part) in (bytes, str)])
