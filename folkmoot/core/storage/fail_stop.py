"""Fail-stop: the first error ends everything.

What it is: a guard that every operation of a `LogStore` runs under. What the kernel could not write
it may have dropped while calling it clean, so a second try would succeed and lie (bugs F2): after
the first error nothing is tried again. What it is not: it reports nothing and closes nothing.

Who drives it: `LogStore` only.
"""

from __future__ import annotations

from types import TracebackType

from folkmoot.core.errors import StorageError


class FailStop:
    """Use it as `with guard:` around each operation.

    Invariants:
    - once an error has left it, each later entry raises that error;
    - once closed, each later entry raises StorageError.
    """

    __slots__ = ("closed", "failure")

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        """What ended it."""
        self.closed = False

    def __enter__(self) -> None:
        if self.failure is not None:
            if isinstance(self.failure, StorageError):
                raise self.failure
            raise StorageError(
                f"the log stopped before, at {self.failure!r}; start this server again"
            ) from self.failure
        if self.closed:
            raise StorageError("the log is closed; open it again")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and self.failure is None:
            self.failure = error
