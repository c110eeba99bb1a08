"""Tasks that go on while the body they serve is being cancelled.

A context manager that owns tasks enters a task group around its body, so whoever cancels the body
cancels those tasks in the same moment. But leaving in order still needs them: a client closes its
session over a link, a node hands its leadership over. In a shelter they run until their owner ends
them; the body itself is not shielded from anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup


class Shelter:
    """A way to start tasks of `group` that only `end` cancels.

    - Whoever enters the group calls `end` before the group is left, or leaving it never ends.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._scopes: set[anyio.CancelScope] = set()
        self._ended = False

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Start a task."""
        self._group.start_soon(self.run, function, *args)

    async def run(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Run `function` in the calling task, sheltered."""
        with anyio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            try:
                if not self._ended:
                    await function(*args)
            finally:
                self._scopes.discard(scope)

    def end(self) -> None:
        """Cancel every task; one started later does nothing."""
        self._ended = True
        for scope in tuple(self._scopes):
            scope.cancel()
