"""Options that many operations of many primitives have, in the same words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypedDict

import anyio

from folkmoot.core.errors import OperationTimeout, UsageError
from folkmoot.core.types import Consistency, Duration, seconds


class ReadOptions(TypedDict, total=False):
    """How a read is answered. It changes nothing, whatever it raises."""

    consistency: Consistency | str
    """What it promises: "linearizable" (the default), "lease" or "sequential"."""
    at_least: int
    """A revision, perhaps from another process: the answer is not older."""
    timeout: Duration | None
    """How long the caller will wait; then OperationTimeout. None: for as long as it takes."""


class WriteOptions(TypedDict, total=False):
    """How a write is issued."""

    fence: Fence | None
    """A grant: the write is refused with Fenced once that has ended."""
    timeout: Duration | None
    """How long the caller will wait: then OperationTimeout (it was not applied) or OutcomeUnknown
    (it may have been). None: for as long as the session lives."""


class Fence(Protocol):
    """What a write can be fenced with: the grant of a lock, the term of a leader."""

    @property
    def fence(self) -> tuple[int, int]:
        """(resource id, token)."""
        ...


def level(consistency: str) -> Consistency:
    """Return a consistency by its name. Raises UsageError for an unknown one."""
    try:
        return Consistency(consistency)
    except ValueError:
        known = ", ".join(repr(one.value) for one in Consistency)
        raise UsageError(f"consistency={consistency!r}: there are {known}") from None


def time_to_live(ttl: Duration | None) -> int:
    """Return a time to live as machines take it: in milliseconds, 0 for ever."""
    if ttl is None:
        return 0
    milliseconds = seconds(ttl) * 1000
    if not 0 < milliseconds < math.inf:
        raise UsageError(f"ttl={ttl!r}: seconds above zero are needed, or None")
    return max(1, round(milliseconds))


class Budget:
    """One caller's `timeout` that several steps share."""

    __slots__ = ("_deadline",)

    def __init__(self, timeout: Duration | None) -> None:
        self._deadline = None if timeout is None else anyio.current_time() + seconds(timeout)

    def seconds(self) -> float | None:
        """Return what is left of it; None where there is no timeout."""
        return None if self._deadline is None else max(0.0, self._deadline - anyio.current_time())

    @contextmanager
    def limit(self, message: str) -> Iterator[None]:
        """Cancel the body when it has run out; then OperationTimeout is raised."""
        with anyio.move_on_after(self.seconds()) as scope:
            yield
        if scope.cancelled_caught:
            raise OperationTimeout(message)
