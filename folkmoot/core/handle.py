"""What a proxy holds of the client: its `Resource`, the `Call`s that it has issued, and who
listens.

Not the proxies themselves (`folkmoot/primitives`), nor the bookkeeping (`core/session_client.py`),
nor the loop that drives it (`core/client.py`). The hot path of an application's operation runs
through here: one object, one bare waiter, no task and no timeout scope (performance: what decides).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

from folkmoot.core.errors import OperationTimeout, OutcomeUnknown, ResourceDeleted, UsageError
from folkmoot.core.pipeline import Command
from folkmoot.core.queries import AdminRequest, Query
from folkmoot.core.targets import Target
from folkmoot.core.types import ConnectionState, Consistency, Duration, seconds
from folkmoot.core.wakeup import Waiter

if TYPE_CHECKING:
    from folkmoot.core.client import Client


class Listener(Protocol):
    """Who hears of a resource. Called from the session's loop, in order; must not block, await or
    raise.
    """

    def on_event(self, index: int, kind: str, payload: Any) -> None:
        """A machine published this to our session. Each event comes once, in log order."""

    def on_state(self, state: ConnectionState, cause: str) -> None:
        """The client changed its state.

        EXPIRED: registrations and grants of the old session are gone. CONNECTED after that: there
        is a new session, under which nothing is registered yet.
        """


class Guard(Protocol):
    """Who guards code that depends on a grant."""

    def on_lost(self, cause: str, index: int) -> None:
        """Everything that the session owned is lost. Called once, from the session's loop; must not
        block or raise.

        `index` is the log index at which the cluster ended the session; 0 where the local deadline
        did it.
        """


class Call(Command):
    """A command that was issued. Await it with `wait`; nobody has to."""

    __slots__ = ("_waiter", "resource")

    def __init__(
        self, resource: Resource, name: str, args: tuple[Any, ...], fence: tuple[int, int] | None
    ) -> None:
        super().__init__(resource.target, name, args, fence)
        self.resource = resource  # keeps the resource open until the answer is there
        self._waiter: Waiter[Any] = Waiter()

    @property
    def done(self) -> bool:
        """Whether `wait` will return (or raise) at once."""
        return self._waiter.done

    async def wait(self, timeout: Duration | None = None) -> Any:
        """Return the answer.

        Cancelled, or out of time, it withdraws the command. Raises OperationTimeout when the time
        ran out before the command was sent: not applied. OutcomeUnknown when it was sent: it may be
        applied. CommandError as the machine answered; SessionExpired (not applied) or
        OutcomeUnknown when the session ended first.
        """
        waiter = self._waiter
        if timeout is not None and not waiter.done:
            self.resource.client.expire_after(self, seconds(timeout))
        try:
            value = await waiter.wait()
        except BaseException:
            if not waiter.done:
                self.withdraw()
            raise
        if self.note is not None:
            self._warn()
        return value

    def abandon(self) -> None:
        """Nobody will wait for the answer. The command goes on all the same, in its place."""
        self._waiter.set_exception(UsageError("this call was abandoned: nobody gets its answer"))

    def withdraw(self) -> bool:
        """Give up: what was not sent never will be. Tell whether that is so."""
        unsent = self.resource.client.core.pipeline.withdraw(self)
        self.abandon()
        return unsent

    def finished(self) -> None:
        """Wake whoever waits."""
        if self.error is None:
            self._waiter.set_result(self.value)
        else:
            self._waiter.set_exception(self.error)

    def run_out(self) -> None:
        """The caller's time has run out."""
        client, where = self.resource.client, f"{self.target!r}"
        if client.core.pipeline.withdraw(self):
            text = f"not sent within the timeout: {where}; {client.describe_connection()}"
            self._waiter.set_exception(OperationTimeout(text))
        else:
            text = f"sent, and not answered within the timeout: {where}; it may have been applied"
            self._waiter.set_exception(OutcomeUnknown(text))

    def _warn(self) -> None:
        """Say once how the resource differs from what was asked for."""
        note, self.note = self.note, None
        if note and self.target.note != note:
            self.target.note = note
            warnings.warn(note, stacklevel=4)


class Question(Query):
    """A read that somebody waits for."""

    __slots__ = ("_client", "waiter")

    def __init__(
        self,
        resource: Resource,
        name: str,
        args: tuple[Any, ...],
        level: Consistency,
        at_least: int,
    ):
        super().__init__(resource.target, name, args, level, at_least)
        self._client = resource.client
        self.waiter: Waiter[None] = Waiter()

    @property
    def done(self) -> bool:
        """Whether somebody has been told."""
        return self.waiter.done

    def finished(self) -> None:
        """Wake whoever waits."""
        if self.error is None:
            self.waiter.set_result(None)
        else:
            self.waiter.set_exception(self.error)

    def run_out(self) -> None:
        """The caller's time has run out."""
        self._client.core.reads.withdraw(self)
        text = (
            f"no answer within the timeout: {self.target!r}; {self._client.describe_connection()}"
        )
        self.waiter.set_exception(OperationTimeout(text))


class AdminCall(AdminRequest):
    """An admin request that somebody waits for."""

    __slots__ = ("_client", "waiter")

    def __init__(self, client: Client, operation: str, arguments: tuple[Any, ...]) -> None:
        super().__init__(operation, arguments)
        self._client = client
        self.waiter: Waiter[Any] = Waiter()

    @property
    def done(self) -> bool:
        """Whether somebody has been told."""
        return self.waiter.done

    def finished(self) -> None:
        """Wake whoever waits."""
        if self.error is None:
            self.waiter.set_result(self.value)
        else:
            self.waiter.set_exception(self.error)

    def run_out(self) -> None:
        """The caller's time has run out."""
        where = self._client.describe_connection()
        if self._client.core.admin.withdraw(self):
            error: Exception = OperationTimeout(
                f"{self.operation!r} was not asked within the timeout; {where}"
            )
        else:
            error = OutcomeUnknown(
                f"{self.operation!r} was not answered within the timeout; {where}"
            )
        self.waiter.set_exception(error)


class Resource:
    """One named resource, as its proxies use it. Made by `Client.resource`, which shares it; does
    no I/O by itself.

    It opens with its first command. After the session was lost it opens again, by name. When the
    last holder lets it go, the directory is told, so that what is idle can be collected.
    """

    __slots__ = ("__weakref__", "client", "listeners", "target")

    def __init__(self, client: Client, target: Target) -> None:
        self.client = client
        self.target = target
        self.listeners: dict[Listener, None] = {}

    @property
    def name(self) -> str:
        """Its name."""
        return self.target.name

    @property
    def type_name(self) -> str:
        """The type of its machine."""
        return self.target.type_name

    @property
    def resource_id(self) -> int:
        """Its id; 0 until the present session has learned it."""
        return self.target.id

    @property
    def session_id(self) -> int:
        """The present session's id; 0 while there is none."""
        return self.client.session_id

    async def command(
        self,
        operation: str,
        *args: Any,
        timeout: Duration | None = None,
        fence: tuple[int, int] | None = None,
    ) -> Any:
        """Issue a command and return its answer. Raises as `Call.wait` and `send` do.

        Without a timeout it waits through changes of leader for as long as the session lives.
        """
        return await self.send(operation, *args, fence=fence).wait(timeout)

    def send(self, operation: str, *args: Any, fence: tuple[int, int] | None = None) -> Call:
        """Issue a command at once; its place in the session's order is decided by this call.

        Raises, with nothing sent: UsageError for arguments that are not plain data, TooLarge,
        ClosedError, ResourceDeleted, and Overloaded when `outbox_max` operations wait to be sent.
        """
        if self.target.deleted:
            raise self._deleted()
        call = Call(self, operation, args, fence)
        self.client.issue(call)
        return call

    async def query(
        self,
        operation: str,
        *args: Any,
        consistency: Consistency = Consistency.LINEARIZABLE,
        at_least: int = 0,
        timeout: Duration | None = None,
    ) -> tuple[Any, int]:
        """Read: return the answer and the log index at which it was evaluated. Changes nothing,
        whatever it raises.

        `at_least` is an index taken from another answer: the read sees at least that state.
        """
        if self.target.deleted:
            raise self._deleted()
        question = Question(self, operation, args, Consistency(consistency), at_least)
        self.client.read(question)
        if timeout is not None:
            self.client.expire_after(question, seconds(timeout))
        try:
            await question.waiter.wait()
        except BaseException:
            if not question.done:
                self.client.core.reads.withdraw(question)
            raise
        return question.value, question.index

    def listen(self, listener: Listener) -> None:
        """Call `listener` from now on. The client holds neither it nor this resource: whoever
        listens must.
        """
        self.listeners[listener] = None

    def unlisten(self, listener: Listener) -> None:
        """Stop calling `listener`; nothing happens where it does not listen."""
        self.listeners.pop(listener, None)

    def __repr__(self) -> str:
        return f"<Resource {self.target!r}>"

    def _deleted(self) -> ResourceDeleted:
        return ResourceDeleted(
            f"{self.type_name} {self.name!r} was deleted: ask the cluster for it again, "
            "which uses or makes a new one"
        )
