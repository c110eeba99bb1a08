"""What all transports and links do alike: own, buffer, deliver, report. Internal to this layer.

`BaseTransport` owns the task group, the links and the listeners, and is where a receiver's bug
surfaces. `BaseLink` keeps the send buffer and its limit, passes frames to the receiver, and sees
to it that a link ends exactly once. An implementation adds only how bytes move: `_flush_soon`,
`_begin_close` and `_begin_abort`.

A link's life, the same for all:

    open ── close() ──> closing: flush, say "end", discard what comes until the other side's end
      │                    │            or until close_timeout_s
      │                    v
      └─ end, reset, ──> ended: on_closed, once
         overflow, bug

Why a closing link goes on reading: closing a TCP socket with unread bytes in it makes the kernel
send a reset, and a reset destroys what the other side has received and not yet read; very likely
the frame that says why it was refused.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from folkmoot.core.errors import RemoteProtocolError, UsageError
from folkmoot.transport.frame import Frame, FrameReader
from folkmoot.transport.link import (
    CLOSE_TIMEOUT_S,
    SEND_BUFFER_BYTES_MAX,
    Listener,
    OnLink,
    Receiver,
)
from folkmoot.transport.shelter import Shelter

logger = logging.getLogger("folkmoot.transport")

_EXIT_GRACE_S = 1.0
"""How much longer than its links' own timeout a transport waits for them when it is left."""


class BaseTransport:
    """Owns what runs behind its links.

    - `_links` holds every link that was handed out and not yet reported closed.
    - After `_closing` is set no link and no listener is added.
    """

    def __init__(
        self,
        *,
        send_buffer_bytes_max: int = SEND_BUFFER_BYTES_MAX,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self.send_buffer_bytes_max = send_buffer_bytes_max
        self.close_timeout_s = close_timeout_s
        self._group: TaskGroup | None = None
        self._tasks: Shelter | None = None
        self._links: dict[BaseLink, None] = {}  # in order, which a set would not keep
        self._listeners: dict[Listener, None] = {}
        self._closing = False
        self._failure: BaseException | None = None

    @property
    def can_write_at_once(self) -> bool:
        """Whether links write what is sent before `send` returns, if they are told to."""
        return False

    async def __aenter__(self) -> Self:
        if self._tasks is not None or self._closing:
            raise UsageError("a transport is entered once: make another one")
        self._wake_guard = anyio.Event()
        self._drained = anyio.Event()
        group = anyio.create_task_group()
        await group.__aenter__()
        group.start_soon(self._guard)
        self._group, self._tasks = group, Shelter(group)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._closing = True
        if exc_type is None:
            await self._close_all()
        else:
            for link in list(self._links):
                link.abort("the transport was closed by an error")
        group = self._group
        assert group is not None, "left before it was entered"
        self._running().end()
        group.cancel_scope.cancel()
        self._group = self._tasks = None
        try:
            return await group.__aexit__(exc_type, exc, traceback)
        finally:
            await self._dispose_all()

    async def _close_all(self) -> None:
        """Let links deliver what is buffered, for a bounded time, whoever cancels."""
        with anyio.move_on_after(self.close_timeout_s + _EXIT_GRACE_S, shield=True):
            for listener in list(self._listeners):
                await listener.aclose()
            for link in list(self._links):
                link.close("the transport was closed")
            if self._links:
                await self._drained.wait()

    async def _dispose_all(self) -> None:
        """End the links that have lost the tasks or turns by which they would end."""
        known = self._failure
        with anyio.CancelScope(shield=True):
            for link in list(self._links):
                await link.dispose()
        if self._failure is not known and self._failure is not None:
            raise self._failure  # the guard, which would raise it, is gone

    def fail(self, error: BaseException, doing: str) -> None:
        """Surface a bug: log it, and raise it out of the transport's block."""
        logger.error("a bug while %s; the transport stops", doing, exc_info=error)
        if self._failure is None:
            self._failure = error
            self._wake_guard.set()

    def add(self, link: BaseLink) -> None:
        """Own `link` from now on, until it is reported closed."""
        self._links[link] = None

    def discard(self, link: BaseLink) -> None:
        """Let go of a link that was reported closed."""
        self._links.pop(link, None)
        if self._closing and not self._links:
            self._drained.set()

    def add_listener(self, listener: Listener) -> None:
        """Own `listener` from now on, until it is closed."""
        self._listeners[listener] = None

    def discard_listener(self, listener: Listener) -> None:
        """Let go of a listener that accepts no more."""
        self._listeners.pop(listener, None)

    def accept(self, link: BaseLink, on_link: OnLink, address: str) -> bool:
        """Hand an accepted link to the receiver that `on_link` names; False when that raises."""
        try:
            receiver = on_link(link)
        except Exception as error:  # noqa: BLE001 - it comes out of the transport's block
            link.abort(f"nobody took it: {error!r}")
            self.fail(error, f"{link.remote} was accepted at {address}")
            return False
        link.hand_out(receiver)
        return True

    def _running(self) -> Shelter:
        if self._tasks is None:
            raise UsageError(
                f"{type(self).__name__} is not running: use it inside `async with transport:`"
            )
        return self._tasks

    def _open(self) -> Shelter:
        tasks = self._running()
        if self._closing:
            raise UsageError(f"{type(self).__name__} is closing: it makes no more connections")
        return tasks

    async def _guard(self) -> None:
        try:
            await self._wake_guard.wait()
        finally:
            if self._failure is not None:
                raise self._failure


class BaseLink(abc.ABC):
    """Buffer, limit, delivery and end of a link.

    - `closed` never falls again. No frame is delivered while it is up.
    - `_pending_bytes` is the sum of the lengths in `_pending`, which leave with the next write.
    - `_room` is at most the limit less what earlier writes have left unsent, so that `send`
      needs one comparison.
    """

    identity: str | None = None
    immediate = False
    farewell: Callable[[RemoteProtocolError], bytes] | None = None

    def __init__(self, owner: BaseTransport, remote: str, frame_bytes_max: int) -> None:
        self.remote = remote
        self.closed = False
        self.writes = 0
        self._owner = owner
        self._receiver: Receiver | None = None
        self._reader = FrameReader(frame_bytes_max)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._room = owner.send_buffer_bytes_max
        self._reason = ""

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.unsent_bytes} bytes unsent"
        return f"<{type(self).__name__} {self.remote}, {state}>"

    @property
    def frame_bytes_max(self) -> int:
        """Largest frame accepted, from the next one on."""
        return self._reader.frame_bytes_max

    @frame_bytes_max.setter
    def frame_bytes_max(self, value: int) -> None:
        self._reader.frame_bytes_max = value

    @property
    def unsent_bytes(self) -> int:
        """Bytes sent that the operating system has not taken yet."""
        return self._pending_bytes + self._written_unsent_bytes()

    def hand_out(self, receiver: Receiver) -> None:
        """Give the link to its receiver; from here on it will be told of the end."""
        self._receiver = receiver
        self._owner.add(self)

    def send(self, data: bytes) -> None:
        """Buffer `data` for this turn's write (see Link.send)."""
        if self.closed:
            return
        if not self._pending:
            self._flush_soon()
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > self._room:
            self._check_room()

    def close(self, reason: str = "") -> None:
        """Deliver what is buffered, then close (see Link.close)."""
        if not self.closed:
            self.closed = True
            self._reason = reason or "closed by this side"
            self._begin_close()

    def abort(self, reason: str) -> None:
        """Close without delivering what is buffered."""
        if not self.closed:
            self.closed = True
            self._reason = reason
        self._pending.clear()
        self._pending_bytes = 0
        self._begin_abort()

    async def dispose(self) -> None:
        """End at once; called when nothing runs any more that would do it."""
        self._ended("the transport was closed")

    def _check_room(self) -> None:
        limit = self._owner.send_buffer_bytes_max
        unsent_bytes = self.unsent_bytes
        if unsent_bytes > limit:
            self.abort(
                f"{self.remote} does not read: {unsent_bytes} bytes unsent, the limit is {limit}"
            )
        else:
            self._room = limit - self._written_unsent_bytes()

    def _take_pending(self) -> bytes:
        """Join what was sent; the caller writes it as one."""
        pending = self._pending
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        self._pending_bytes = 0
        self.writes += 1
        return data

    def _deliver(self, data: bytes) -> None:
        """Pass on the frames of one receive. Does not raise."""
        if self.closed or self._receiver is None:
            return
        try:
            frames = self._reader.feed(data)
            while frames:
                self._receiver.on_frames(self, frames)
                frames = self._held_back()
        except RemoteProtocolError as error:
            if self.farewell is not None:
                self.send(self.farewell(error))
            self.close(str(error))
        except Exception as error:  # noqa: BLE001 - it comes out of the transport's block
            self.abort(f"its receiver failed: {error!r}")
            self._owner.fail(error, f"{self.remote}'s frames were received")

    def _held_back(self) -> list[Frame]:
        """Frames of the same receive that were too large before the receiver saw the others."""
        return self._reader.feed(b"") if self._reader.blocked and not self.closed else []

    def _peer_ended(self) -> None:
        """The other side sends no more: close, with a word on what it left half said."""
        kept = self._reader.kept_bytes
        inside = f" inside a frame, of which {kept} bytes came" if kept else ""
        self.close(f"closed by the other side{inside}")

    def _ended(self, reason: str) -> None:
        """Report the end, once: an earlier reason stands. Does not raise."""
        self.closed = True
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        try:
            receiver.on_closed(self, self._reason or reason)
        except Exception as error:  # noqa: BLE001 - it comes out of the transport's block
            self._owner.fail(error, f"the end of {self.remote} was reported")
        finally:
            self._owner.discard(self)

    @abc.abstractmethod
    def _written_unsent_bytes(self) -> int:
        """Bytes of earlier writes that the operating system has not taken."""

    @abc.abstractmethod
    def _flush_soon(self) -> None:
        """See to it that `_pending` is written in the next turn of the event loop."""

    @abc.abstractmethod
    def _begin_close(self) -> None:
        """Deliver what is pending, then end; by `close_timeout_s` in any case. Never calls back."""

    @abc.abstractmethod
    def _begin_abort(self) -> None:
        """End as soon as possible, also while closing. Never calls back."""
