"""How a client reads a topic: messages as they come, and the retained ones where it fell behind.

    events (live) --> buffer --+
                               +--> async for
    pages of `read` -----------+

POSITION is the revision of the last message that the reader got; the next is the first one above
it. While the reader keeps up, messages come from the buffer, which the events fill. It is BEHIND at
the beginning (if it asked for old messages), after the buffer overflowed, and after a session or
the server's half of the subscription was lost. Then it reads pages above its position:

    1. subscribe, unless that still stands; from index s on messages come as events
    2. read a page above the position, at an index r >= s; events up to r have arrived before it
    3. a page that ends below the newest message at r: read the next one, after that one
    4. it has caught up: whatever is in the buffer at or below the position is passed over, and if
       the buffer overflowed meanwhile it is behind again

So a message is lost to a reader only when the RETENTION has passed its position; then it gets a
Resync that says from where to where. One session has one subscription, however many read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import attrs
from anyio.lowlevel import checkpoint

from folkmoot.core.errors import (
    ClosedError,
    FolkmootError,
    OutcomeUnknown,
    ResourceDeleted,
    SessionExpired,
    StorageFull,
    UsageError,
)
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.core.wakeup import Waiter
from folkmoot.primitives._subscriptions import EVERYTHING

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

M = TypeVar("M")

BUFFER_MESSAGES = 1024
BUFFER_BYTES = 16 << 20
"""What is held for a reader that is behind; beyond either he reads from the retained messages."""
PAGE_MESSAGES = 256
"""Messages that are read at once."""


@attrs.frozen
class Gap:
    """Messages with revisions above `after` and up to `upto` are gone: retention has passed."""

    after: int
    upto: int


Raw = tuple[int, int, bytes]
"""revision, log time (ms), message."""

_OPEN: WeakKeyDictionary[Resource, WeakSet[Subscription[Any]]] = WeakKeyDictionary()
"""Who reads which topic: the last one to leave ends the session's subscription."""


class Subscription(Generic[M]):
    """A reader of a topic, to be entered with `async with`. One task reads at a time.

    Cancelling a read loses nothing: the next one goes on where it was.

    - `_buffer` holds messages in order, some at or below the position; with `_page` empty and not
      behind, nothing is missing between the position and the first of them, or after the last.
    - Cut: the session's subscription is gone, and nothing is known of what came since.
    """

    def __init__(
        self,
        resource: Resource,
        make: Callable[[int, int, bytes], M],
        since: int | None,
        buffer: int,
    ) -> None:
        if buffer < 1 or (since is not None and since < 0):
            raise UsageError(f"topic {resource.name!r}: buffer={buffer}, since={since}: below zero")
        self._resource = resource
        self._make = make
        self._position = since
        self._page: deque[Raw] = deque()
        self._buffer: deque[Raw] = deque()
        self._buffer_max = buffer
        self._size_bytes = 0
        self._is_behind = since is not None
        self._is_cut = True
        self._is_open = self._was_entered = self._is_reading = False
        self._since = 0
        self._end: FolkmootError | None = None
        self._waiter: Waiter[None] | None = None

    @property
    def position(self) -> int:
        """The revision of the last message that was read, or from which on reading began."""
        return self._position or 0

    @property
    def is_ready(self) -> bool:
        """Whether the next message is there, without asking the cluster or waiting."""
        if self._page:
            return True
        if self._is_cut or self._is_behind or not self._buffer:
            return False
        return self._buffer[-1][0] > self.position

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise UsageError(f"{self!r} was entered before: make a new one")
        self._was_entered = self._is_open = True
        _OPEN.setdefault(self._resource, WeakSet()).add(self)
        self._resource.listen(self)
        try:
            await self._begin()
        except BaseException as error:
            if isinstance(error, StorageFull):
                self._finish(error)  # it was refused, so there is nothing to undo
            self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; a task that waits in it finds it exhausted. Does not wait. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._drop_buffer()
        self._resource.unlisten(self)
        others = _OPEN[self._resource]
        others.discard(self)
        if not others and self._end is None:
            with suppress(FolkmootError):  # a session that is gone subscribes to nothing
                self._resource.send("unsubscribe", *EVERYTHING).abandon()
        self._wake()

    def restart(self, since: int) -> None:
        """Go on above another revision."""
        self._position = since
        self._is_behind = True
        self._page.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M | Gap:
        """Return the next message, waiting for it, or the gap before it.

        Raises ResourceDeleted or ClosedError once what came before has been read.
        """
        if not self._was_entered:
            raise UsageError(f"{self!r} is not entered: use `async with ... as messages`")
        if self._is_reading:
            raise UsageError(f"another task is reading from {self!r}: give it one of its own")
        self._is_reading = True
        try:
            return await self._next()
        finally:
            self._is_reading = False

    async def _next(self) -> M | Gap:
        while self._is_open:
            if self._page:
                return self._deliver(self._page.popleft())
            if self._end is None and (self._is_cut or self._is_behind):
                gap = await self._catch_up()
                if gap is not None:
                    return gap
            elif self._buffer:
                raw = self._buffer.popleft()
                self._size_bytes -= len(raw[2])
                if raw[0] > self.position:
                    return self._deliver(raw)
            elif self._end is not None:
                raise self._end
            else:
                self._waiter = Waiter()
                await self._waiter.wait()
        raise StopAsyncIteration

    def _deliver(self, raw: Raw) -> M:
        self._position = raw[0]
        return self._make(*raw)

    async def _catch_up(self) -> Gap | None:
        """Read the next page of what is retained above the position; tell of what is not."""
        if self._is_cut:
            await self._begin()
        position = self.position
        self._is_behind = False  # until the buffer overflows, from here on
        try:
            (floor, head, page), _ = await self._resource.query(
                "read",
                position,
                PAGE_MESSAGES,
                consistency=Consistency.SEQUENTIAL,
                at_least=self._since,
            )
        except BaseException:
            self._is_behind = True
            raise
        self._page.extend(page)
        if (page[-1][0] if page else floor) < head and head > position:
            self._is_behind = True
        if floor <= position:
            return None
        self._position = floor
        return Gap(position, floor) if position else None  # 0 asked for what there is

    async def _begin(self) -> None:
        """Subscribe: all messages after that come as events."""
        while self._is_cut:
            self._is_cut = False
            try:
                self._since = await self._resource.command("subscribe", *EVERYTHING)
            except (SessionExpired, OutcomeUnknown):
                # The session was lost on the way. The client opens another; in that, again.
                self._is_cut = True
                await checkpoint()
            except BaseException:
                self._is_cut = True
                raise
        if self._position is None:
            self._position = self._since

    # The resource's Listener: called from the session's loop.

    def on_event(self, index: int, kind: str, payload: Any) -> None:
        """Take a message; or note that the subscription, or the topic, is gone."""
        if kind == "message":
            self._take(payload)
        elif kind == "resync":
            self._cut()
        elif kind == "deleted":
            self._finish(ResourceDeleted(f"{self!r} has ended: the topic was deleted", index))

    def on_state(self, state: ConnectionState, cause: str) -> None:
        """Subscribe anew when the session is lost; end when the client is closed."""
        if state is ConnectionState.EXPIRED:
            self._cut()
        elif state is ConnectionState.CLOSED:
            self._finish(ClosedError(f"{self!r} has ended: the client is closed"))

    def _take(self, raw: Any) -> None:
        if self._is_cut or self._end is not None:
            return
        size_bytes = self._size_bytes + len(raw[2])
        if len(self._buffer) >= self._buffer_max or size_bytes > BUFFER_BYTES:
            self._drop_buffer()
            self._is_behind = True
        else:
            self._buffer.append(raw)
            self._size_bytes = size_bytes
        self._wake()

    def _cut(self) -> None:
        self._drop_buffer()
        self._is_cut = True
        self._wake()

    def _finish(self, error: FolkmootError) -> None:
        if self._end is None:
            self._end = error
            self._wake()

    def _drop_buffer(self) -> None:
        self._buffer.clear()
        self._size_bytes = 0

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed" if self._was_entered else "not entered"
        return f"<subscription to {self._resource.name!r}, read up to {self.position}, {state}>"
