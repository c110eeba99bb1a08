"""How far a long piece of work is: a bar on a terminal, else a line now and then, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from folkmoot.cli.options import Options
from folkmoot.cli.output import size
from folkmoot.core import progress as core

T = TypeVar("T")
SAY_S = 2.0
"""Without a terminal, one line in so much time at most."""


class Progress:
    """Told how much is done, it tells the user. With --json it tells nothing."""

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "bytes",
        file: IO[str] | None = None,
        is_quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._unit = unit
        self._total = total
        self._file = file or sys.stderr
        self._is_quiet = is_quiet
        self._clock = clock
        self._said_at = clock()
        self._bar: Any = None
        if not is_quiet and self._file.isatty() and total:
            self._bar = _bar(self._file, unit)
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()

    def update(self, done: int) -> None:
        """So much is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif not self._is_quiet and self._clock() - self._said_at >= SAY_S:
            self._said_at = self._clock()
            of = f" of {self._amount(self._total)}" if self._total else ""
            print(f"{self._what}: {self._amount(done)}{of}", file=self._file, flush=True)

    def finish(self, steps: Generator[int, None, T]) -> T:
        """Take all steps of what yields how much is done; return its result."""
        while True:
            try:
                self.update(next(steps))
            except StopIteration as end:
                result: T = end.value
                return result

    def close(self) -> None:
        """It is over, whether done or not."""
        if self._bar is not None:
            self._bar.stop()

    def _amount(self, done: int) -> str:
        return size(done) if self._unit == "bytes" else f"{done:,} {self._unit}"


class Bars:
    """One bar after another, for whatever a server says that takes long."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._what = ""
        self._bar: Progress | None = None

    def show(self, found: core.Progress | None) -> None:
        """This takes long now, and is so far; None: nothing does."""
        what = found.what if found is not None else ""
        if what != self._what:
            self.close()
            self._what = what
        if found is None or not found.total:
            return  # nobody knows of how much yet
        if self._bar is None:
            self._bar = Progress(what, found.total, unit=found.unit, file=self._file)
        self._bar.update(found.done)

    def close(self) -> None:
        """Nothing takes long any more."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress(options: Options, what: str, total: int, unit: str = "bytes") -> Iterator[Progress]:
    """Tell how far the block is."""
    found = Progress(what, total, unit=unit, is_quiet=options.json)
    try:
        yield found
    finally:
        found.close()


def _bar(file: IO[str], unit: str) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    amounts = (DownloadColumn(binary_units=True), TransferSpeedColumn())
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        *(amounts if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))),
        TimeRemainingColumn(),
        console=Console(file=file, highlight=False),
        transient=True,
    )
