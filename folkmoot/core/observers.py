"""Those who wait for the state of a client to change: `states()` and `wait_ready()`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Self

from folkmoot.core.effects import StateChange
from folkmoot.core.errors import ClosedError, OperationTimeout, UsageError
from folkmoot.core.types import ConnectionState
from folkmoot.core.wakeup import Waiter

STATES_MAX = 256
"""State changes kept for one observer that does not look; then the oldest are forgotten."""


class Ready:
    """Somebody waits for a session."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self.waiter: Waiter[None] = Waiter()
        self._describe = describe

    @property
    def done(self) -> bool:
        """Whether somebody has been told."""
        return self.waiter.done

    def run_out(self) -> None:
        """The caller's time has run out."""
        text = f"no session within the timeout; {self._describe()}"
        self.waiter.set_exception(OperationTimeout(text))

    def announce(self, state: ConnectionState) -> None:
        """Take note of a new state."""
        if state is ConnectionState.CONNECTED:
            self.waiter.set_result(None)
        elif state is ConnectionState.CLOSED:
            self.waiter.set_exception(ClosedError("the client was closed before it had a session"))


class StateChanges:
    """Changes of state, in order, from the moment of entering on.

    One that does not look keeps the newest STATES_MAX changes. Ends when the client is closed.
    """

    def __init__(self, observers: set[StateChanges], is_over: Callable[[], bool]) -> None:
        self._observers = observers
        self._is_over = is_over
        self._changes: deque[StateChange] = deque(maxlen=STATES_MAX)
        self._waiter: Waiter[None] | None = None

    async def __aenter__(self) -> Self:
        self._observers.add(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._observers.discard(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StateChange:
        if self not in self._observers:
            raise UsageError("states() is observed inside `async with`")
        while not self._changes:
            if self._is_over():
                raise StopAsyncIteration
            self._waiter = Waiter()
            await self._waiter.wait()
        return self._changes.popleft()

    def add(self, change: StateChange) -> None:
        """Take a change."""
        self._changes.append(change)
        if self._waiter is not None:
            self._waiter.set_result(None)
