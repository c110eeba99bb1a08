"""A client: one session on one connection, one loop, and every resource that is held through it.

The thin impure shell around `core/session_client.py`, which decides everything. This module adds an
event loop, a transport, the callers' waiters, and the sweeping of their timeouts.

ONE LOOP owns the state: it takes what the link has brought, lets time pass, and performs the
effects, once per turn. What tasks of the application issue during one turn of the event loop
therefore leaves in one frame. Those tasks put their operations in by plain calls between two turns;
nobody awaits while anything is half-changed, so cancelling a task can leave nothing behind (bugs:
K8).

Only from the event loop and the process that entered the client: anything else is a UsageError at
once.
"""

from __future__ import annotations

import logging
import random
import secrets
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from folkmoot.core.attachment import Attachment, Inbox
from folkmoot.core.clock import loop_clock
from folkmoot.core.config import ClientConfig
from folkmoot.core.connector import NEVER
from folkmoot.core.effects import Effects, StateChange
from folkmoot.core.errors import (
    ClosedError,
    FolkmootError,
    Overloaded,
    TooLarge,
    UsageError,
)
from folkmoot.core.event_chain import Event
from folkmoot.core.handle import AdminCall, Call, Guard, Listener, Question, Resource
from folkmoot.core.home import Home, default_name
from folkmoot.core.observers import Ready, StateChanges
from folkmoot.core.pipeline import Operation
from folkmoot.core.requests import SECRET_BYTES
from folkmoot.core.session_client import SessionClient
from folkmoot.core.targets import Target, check_name
from folkmoot.core.timeouts import Pending, Timeouts
from folkmoot.core.types import ConnectionState, Duration, seconds
from folkmoot.core.wakeup import Waiter, Wakeup
from folkmoot.transport.link import Transport

__all__ = ["Call", "Client", "Guard", "Listener", "Resource", "StateChange", "StateChanges"]

logger = logging.getLogger("folkmoot.client")

CLOSE_TIMEOUT_S = 1.0
"""How long leaving a client waits for the cluster to close its session, which else ends by itself
later.
"""
_NAME_CHARACTERS_MAX = 256
_FRAME_OVERHEAD_BYTES = 64


class Client:
    """One session on one connection.

    - `state` and `session_id` change only between two turns of the application's tasks.
    - A guard that was added hears `on_lost` exactly once, unless it was removed before.
    """

    def __init__(
        self,
        addresses: Sequence[str] = (),
        transport: Transport | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        self.config = config or ClientConfig()
        self._transport = transport
        self.core = SessionClient(
            addresses,
            self.config,
            random.Random(),
            lambda: secrets.token_bytes(SECRET_BYTES),
            (self.config.name or default_name())[:_NAME_CHARACTERS_MAX],
        )
        self._resources: weakref.WeakValueDictionary[tuple[str, str], Resource] = (
            weakref.WeakValueDictionary()
        )
        self._dropped: deque[Target] = deque()
        self._guards: dict[Guard, None] = {}
        self._observers: set[StateChanges] = set()
        self._ready: set[Ready] = set()
        self._timeouts = Timeouts()
        self._inbox: Inbox = deque()
        self._attachment: Attachment | None = None
        self._tasks: TaskGroup | None = None
        self._to_connect: tuple[str, Attachment] | None = None
        self._due = NEVER
        self._failure: Exception | None = None
        self._running = False
        self._was_entered = False
        self._directory = Resource(self, self.core.targets.directory)

    # entering and leaving

    def use(self, addresses: Sequence[str], transport: Transport) -> None:
        """Say where to connect, and how, before the client is entered."""
        self.core.connector.addresses = list(dict.fromkeys(addresses))
        self._transport = transport

    async def __aenter__(self) -> Self:
        """Start to connect. Does not wait for the network."""
        if self._was_entered:
            raise UsageError("a client is entered once: make another one")
        if self._transport is None or not self.core.connector.addresses:
            raise UsageError("a client needs a transport and at least one address")
        self._was_entered = True
        self._home = Home()
        self._now = loop_clock()
        self._wakeup = Wakeup()
        self._closed: Waiter[None] = Waiter()
        self._loop_scope = anyio.CancelScope(shield=True)
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks
        self._running = True
        tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Send what was issued, close the session, for a bounded time, and stop."""
        assert self._tasks is not None, "left before it was entered"
        if self._running:
            self._running = False
            hurried = exc is not None and not isinstance(exc, Exception)
            self.core.close(self._now(), hurried=hurried)
            self._wakeup.set()
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._closed.wait()
        self._loop_scope.cancel()
        self._tasks.cancel_scope.cancel()
        try:
            if exc is None or isinstance(exc, Exception):
                await self._tasks.__aexit__(None, None, None)  # or it would come out in a group
                return None
            return await self._tasks.__aexit__(exc_type, exc, traceback)
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # the loop's own: a bug, or a listener's
                raise group.exceptions[0] from None
            raise

    # what applications see

    @property
    def state(self) -> ConnectionState:
        """What is known of the session."""
        return self.core.state

    @property
    def session_id(self) -> int:
        """The session's id; 0 while there is none that may own anything."""
        session = self.core.session
        return 0 if session.doomed else session.id

    @property
    def local_deadline(self) -> float:
        """When everything that the session owns must be taken as lost, on `anyio.current_time`'s
        clock.

        It moves on with every acknowledged sign of life; infinity while there is no session.
        """
        return self.core.local_deadline

    @property
    def directory(self) -> Resource:
        """The directory of all resources."""
        return self._directory

    def resource(
        self,
        name: str,
        type_name: str,
        type_version: int = 1,
        config: Mapping[str, Any] | None = None,
    ) -> Resource:
        """Return the resource of that name and type; no I/O. It is shared while anybody holds it.

        Raises UsageError for a name that is empty or no text, TooLarge for one that is too long.
        """
        check_name(name, self.config.limits.name_bytes_max)
        config = dict(config or {})
        known = self._resources.get((name, type_name))
        if known is not None and not known.target.deleted:
            held = (known.target.type_version, known.target.config)
            if held != (type_version, config):
                text = f"{type_name} {name!r} is held here with version and configuration {held}"
                warnings.warn(f"{text}; {(type_version, config)} is passed over", stacklevel=3)
            return known
        target = self.core.targets.make(name, type_name, type_version, config)
        resource = Resource(self, target)
        target.owner = weakref.ref(resource)
        self._resources[name, type_name] = resource
        weakref.finalize(resource, self._dropped.append, target).atexit = False
        return resource

    async def wait_ready(self, timeout: Duration | None = None) -> None:
        """Wait until there is a session. Raises OperationTimeout naming the addresses and what went
        wrong.
        """
        self._check()
        if self.state is ConnectionState.CONNECTED:
            return
        ready = Ready(self.describe_connection)
        self._ready.add(ready)
        try:
            if timeout is not None:
                self.expire_after(ready, seconds(timeout))
            await ready.waiter.wait()
        finally:
            self._ready.discard(ready)

    def states(self) -> StateChanges:
        """Observe changes of state: `async with client.states() as changes: async for change in
        changes`.
        """
        return StateChanges(self._observers, lambda: self.state is ConnectionState.CLOSED)

    async def admin(self, operation: str, *args: Any, timeout: Duration | None = None) -> Any:
        """Ask the connected server itself, as operators do; needs no session and no leader.

        Raises OperationTimeout (was not asked) or OutcomeUnknown (no answer came).
        """
        self._check()
        call = AdminCall(self, operation, args)
        self.core.ask(call)
        self._wakeup.set()
        if timeout is not None:
            self.expire_after(call, seconds(timeout))
        try:
            return await call.waiter.wait()
        except BaseException:
            if not call.done:
                self.core.admin.withdraw(call)
            raise

    def add_guard(self, guard: Guard, session_id: int = 0) -> None:
        """Tell `guard` when everything that the session owns is lost.

        `session_id` is that of the session under which it was granted (see `Call.session_id`): if
        that has ended already, the guard hears so at once, from within this call.
        """
        if self.state is ConnectionState.CLOSED:
            guard.on_lost("closed", 0)
        elif session_id not in (0, self.session_id):
            guard.on_lost("expired", 0)
        else:
            self._guards[guard] = None

    def remove_guard(self, guard: Guard) -> None:
        """Do not tell `guard` any more; nothing happens where it was told already."""
        self._guards.pop(guard, None)

    def describe_connection(self) -> str:
        """Where the client is connected, or has tried to, and what went wrong there."""
        return self.core.connector.describe()

    def __repr__(self) -> str:
        where = self.describe_connection()
        return f"<Client {self.state.value}, session {self.session_id or 'none'}, {where}>"

    # what resources and calls use

    def issue(self, call: Call) -> None:
        """Queue a command. Raises as `Resource.send` says."""
        core = self.core
        self._check()
        self._check_room(call, len(core.pipeline.outbox))
        core.issue(call)
        self._wakeup.set()

    def read(self, question: Question) -> None:
        """Queue a read."""
        core = self.core
        self._check()
        self._check_room(question, len(core.reads.queued))
        core.read(question)
        self._wakeup.set()

    def expire_after(self, pending: Pending, timeout_s: float) -> None:
        """Call `pending.run_out()` after so long, unless it is done by then."""
        if self._timeouts.add(self._now() + timeout_s, pending):
            self._wakeup.set()

    def _check(self) -> None:
        if not self._running:
            if self._was_entered:
                raise ClosedError("this client is closed: nothing was sent")
            raise UsageError("this client is not running yet: use it inside `async with`")
        self._home.check()

    def _check_room(self, operation: Operation, waiting: int) -> None:
        config = self.config
        if waiting >= config.outbox_max:
            raise Overloaded(
                f"{waiting} operations of this client wait to be sent, as many as outbox_max "
                f"allows; it is {self.state.value}"
            )
        size_bytes = len(operation.body) + len(operation.target.head(fenced=operation.fenced))
        if size_bytes > config.limits.frame_bytes_max - _FRAME_OVERHEAD_BYTES:
            raise TooLarge(
                f"an operation on {operation.target!r} has {size_bytes} bytes; "
                f"a frame may have {config.limits.frame_bytes_max} (frame_bytes_max)"
            )

    # the loop

    async def _run(self) -> None:
        """Turn until closed. Shielded: a cancelled body still needs the session to be closed."""
        core = self.core
        core.start()
        try:
            with self._loop_scope:
                while True:
                    now = self._turn()
                    if core.state is ConnectionState.CLOSED:
                        break
                    self._start_connecting()
                    self._due = due = self._next_due()
                    await self._wakeup.wait(None if due == NEVER else max(due - now, 0.0))
                    if self._failure is not None:
                        raise self._failure
        finally:
            self._running = False
            core.abandon("the client was left", self._now())
            self._perform(core.effects(self._now()))
            self._closed.set_result(None)

    def _start_connecting(self) -> None:
        """Start the attempt that was asked for. By the loop: a link's callback is no task, and may
        start none (under asyncio.run, anyio does not know there which event loop runs).
        """
        if self._to_connect is not None and self._tasks is not None:
            to_connect, self._to_connect = self._to_connect, None
            self._tasks.start_soon(self._connect, *to_connect)

    def _next_due(self) -> float:
        return min(self.core.deadline(), self._timeouts.due)

    def _take_inbox(self) -> None:
        """Take a turn now, as a link has brought something: one task switch less than by waking.

        What fails here is not the link's fault: it comes out of the loop.
        """
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - raised in the loop
            self._failure = error
        is_over = self._failure is not None or self.core.state is ConnectionState.CLOSED
        if is_over or self._next_due() < self._due:
            self._wakeup.set()

    def _turn(self) -> float:
        """Take what has arrived, let time pass, and do what follows from both."""
        core = self.core
        now = self._now()
        while self._dropped:
            core.traffic.release(self._dropped.popleft())
        while self._inbox:
            attachment, frames, text = self._inbox.popleft()
            if attachment is not self._attachment:
                continue  # of a connection that has been given up
            if frames is None:
                self._attachment = None
                core.disconnected(text, now)
            elif text:
                core.connected(now)
            else:
                core.received(frames, now)
        core.tick(now)
        self._timeouts.run(now)
        self._perform(core.effects(now))
        return now

    def _perform(self, effects: Effects) -> None:
        attachment = self._attachment
        if effects.send and attachment is not None and attachment.link is not None:
            for data in effects.send:
                attachment.link.send(data)
        if effects.disconnect is not None and attachment is not None:
            attachment.drop(effects.disconnect)
            self._attachment = None
        if effects.connect is not None:
            self._attachment = Attachment(self._inbox, self._take_inbox)
            self._to_connect = (effects.connect, self._attachment)
            self._wakeup.set()
        for operation in effects.answers:
            operation.finished()
        for request in effects.admin:
            request.finished()
        for notice in effects.notices:
            if isinstance(notice, Event):
                self._publish(notice)
            else:
                self._announce(notice)

    def _publish(self, event: Event) -> None:
        owner = event.target.owner
        resource: Resource | None = owner() if owner is not None else None
        if resource is not None:
            for listener in tuple(resource.listeners):
                listener.on_event(event.index, event.kind, event.payload)

    def _announce(self, change: StateChange) -> None:
        state, cause = change.state, change.cause
        level = logging.WARNING if state is ConnectionState.EXPIRED else logging.INFO
        logger.log(level, "session %s is %s: %s", change.session_id or "none", state.value, cause)
        if state in (ConnectionState.EXPIRED, ConnectionState.CLOSED):
            guards, self._guards = self._guards, {}
            for guard in guards:
                guard.on_lost(state.value, change.index)
        for resource in list(self._resources.values()):
            for listener in tuple(resource.listeners):
                listener.on_state(state, cause)
        for observer in tuple(self._observers):
            observer.add(change)
        for ready in tuple(self._ready):
            ready.announce(state)

    async def _connect(self, address: str, attachment: Attachment) -> None:
        assert self._transport is not None, "connecting without a transport"
        try:
            with anyio.fail_after(self.config.connect_timeout_s), attachment.attempt():
                attachment.link = await self._transport.connect(
                    address, attachment, frame_bytes_max=self.config.limits.send_buffer_bytes_max
                )
        except TimeoutError:
            attachment.on_closed(None, f"no connection within {self.config.connect_timeout_s:g} s")
        except FolkmootError as error:
            attachment.on_closed(None, str(error))
        else:
            attachment.opened()
