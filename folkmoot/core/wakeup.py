"""How a task waits for what callbacks, other tasks and threads bring: `Wakeup` and `Waiter`.

This is the narrow waist of every loop in the package. It goes around anyio, because the cost of
waiting is paid once per operation on the client and once per turn on the server: a bare future
set and awaited costs 1.4 us, an `anyio.Event` 8 to 14 us, an `anyio.fail_after` 9 to 16 us.

- `Wakeup` is level-triggered and has ONE waiter: the loop that owns the state. Whoever has put
  something into its inbox calls `set`; the loop drains all its inboxes after each `wait`. Many
  sets before the loop runs are one wake-up, which is what makes batches.
- `Waiter` is a one-shot slot for one result: the caller of an operation waits in it, the loop
  completes it.

The lost wake-up, which both must not have:

    1. the loop drains its inbox and finds it empty
    2. a thread appends to the inbox and calls set_from_thread
    3. the loop waits

The set of step 2 is kept, as a flag (here) or as a callback of the event loop, so step 3 returns
at once. For the same reason a cancelled `wait` never takes the flag with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from folkmoot.core.errors import UsageError
from folkmoot.transport.backend import running_backend

T = TypeVar("T")

_CLOCK_GRAIN_S = 0.001
"""uvloop's clock counts milliseconds: a timer that fires this early has fired."""


class Wakeup:
    """Something arrived: a flag that one task waits for.

    - Only the task inside `wait` clears the flag, and only when it returns True.
    - `wait` always lets the event loop turn at least once, so a loop that is never out of work
      starves nobody, and what arrives meanwhile is taken in the same turn.

    Make it inside the event loop that will wait. Raises UsageError where no event loop runs.
    """

    __slots__ = ("_is_set", "_port", "_posted")

    def __init__(self) -> None:
        self._port: _Port = _TrioPort() if running_backend() == "trio" else _AsyncioPort()
        self._is_set = False
        self._posted = False

    def set(self) -> None:
        """Wake the waiter, now or at its next `wait`. Idempotent. Only from the loop's thread."""
        if not self._is_set:
            self._is_set = True
            self._port.unpark()

    def set_from_thread(self) -> None:
        """Do the same from any thread. After the loop has ended it does nothing.

        Calls are joined until the loop has seen one: `_posted` falls BEFORE the flag is raised,
        so whoever finds it up put his input where the coming wake-up will find it.
        """
        if not self._posted:
            self._posted = True
            self._port.post(self._set_posted)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until set, or for `timeout_s` seconds; tell which, and clear the flag.

        Cancelled, it leaves the flag as it is. Raises UsageError for a second waiter.
        """
        if self._is_set or (timeout_s is not None and timeout_s <= 0):
            await self._port.turn()
        else:
            await self._port.park(timeout_s)
        was_set = self._is_set
        self._is_set = False
        return was_set

    def _set_posted(self) -> None:
        self._posted = False
        self.set()


class Waiter(Generic[T]):
    """One result that one task waits for.

    - The first `set_result` or `set_exception` decides; later ones are ignored, and so is one that
      comes after the waiting task was cancelled.
    - A result that is there before `wait` is returned without a turn of the event loop.

    May be made, and completed, anywhere in the thread of the event loop; only `wait` needs a task.
    """

    __slots__ = ("_error", "_parked", "_value", "done")

    done: bool
    """It has its result (or exception). Read it only."""

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._parked: Any = None  # an asyncio.Future, or what looks like one

    def set_result(self, value: T) -> None:
        """Complete with `value`. Only from the loop's thread."""
        if not self.done:
            self.done = True
            self._value = value
            if self._parked is not None and not self._parked.done():
                self._parked.set_result(None)

    def set_exception(self, error: BaseException) -> None:
        """Complete with `error`, which `wait` raises. Only from the loop's thread."""
        if not self.done:
            self.done = True
            self._error = error
            if self._parked is not None and not self._parked.done():
                self._parked.set_result(None)

    async def wait(self) -> T:
        """Return the result or raise the exception.

        Cancelled, it raises the cancellation even when the result came in the same turn; `done`
        tells. Raises UsageError for a second waiter.
        """
        if not self.done:
            if self._parked is not None:
                raise UsageError("a Waiter has one waiter, and another task is waiting already")
            if running_backend() == "asyncio":
                self._parked = asyncio.get_running_loop().create_future()
                try:
                    await self._parked
                finally:
                    self._parked = None
            else:
                self._parked = _TrioSlot()
                try:
                    await self._parked.wait()
                finally:
                    self._parked = None
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set whenever done without an error


class _Port(Protocol):
    """What a Wakeup needs of an event loop."""

    def unpark(self) -> None: ...
    def post(self, callback: Callable[[], None]) -> None: ...
    async def turn(self) -> None: ...
    async def park(self, timeout_s: float | None) -> None: ...


class _AsyncioPort:
    """Park in a bare future.

    ONE timer serves all waits. A loop that waits thousands of times a second with a timeout of a
    tenth of a second would otherwise make and cancel as many timers; here a later deadline leaves
    the timer alone, and a timer that finds the deadline moved goes to sleep again until then.
    """

    __slots__ = ("_deadline", "_future", "_loop", "_timer", "_timer_at")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def unpark(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def post(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def park(self, timeout_s: float | None) -> None:
        if self._future is not None:
            raise UsageError("a Wakeup has one waiter, and another task is waiting already")
        self._deadline = None if timeout_s is None else self._loop.time() + timeout_s
        if self._deadline is not None:
            self._arm(self._deadline)
        self._future = self._loop.create_future()
        try:
            await self._future
        finally:
            self._future = None

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._future is None or self._deadline is None:
            return
        if self._loop.time() + _CLOCK_GRAIN_S >= self._deadline:
            self.unpark()
        else:
            self._arm(self._deadline)


class _TrioSlot:
    """Park the running trio task, with as much of a future's face as Waiter uses."""

    __slots__ = ("_done", "_task", "_trio")

    def __init__(self) -> None:
        self._trio = sys.modules["trio"]
        self._task: Any = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, value: None) -> None:
        self._done = True
        if self._task is not None:
            self._trio.lowlevel.reschedule(self._task)
            self._task = None

    async def wait(self) -> None:
        self._task = self._trio.lowlevel.current_task()

        def abort(_: object) -> Any:
            self._task = None
            return self._trio.lowlevel.Abort.SUCCEEDED

        await self._trio.lowlevel.wait_task_rescheduled(abort)


class _TrioPort:
    """Park through trio's own API; deadlines are cancel scopes, so a mocked clock counts."""

    __slots__ = ("_slot", "_token", "_trio")

    def __init__(self) -> None:
        self._trio = sys.modules["trio"]
        self._token = self._trio.lowlevel.current_trio_token()
        self._slot: _TrioSlot | None = None

    def unpark(self) -> None:
        if self._slot is not None and not self._slot.done():
            self._slot.set_result(None)

    def post(self, callback: Callable[[], None]) -> None:
        # When the loop has ended, nobody waits.
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(callback)

    async def turn(self) -> None:
        await self._trio.lowlevel.checkpoint()

    async def park(self, timeout_s: float | None) -> None:
        if self._slot is not None:
            raise UsageError("a Wakeup has one waiter, and another task is waiting already")
        self._slot = _TrioSlot()
        try:
            if timeout_s is None:
                await self._slot.wait()
            else:
                with self._trio.move_on_after(timeout_s):
                    await self._slot.wait()
        finally:
            self._slot = None
