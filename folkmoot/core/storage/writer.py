"""The storage's one thread: everything that waits becomes one write and one sync.

What it is: the place where a durable log meets a server that must not wait for it. What it is not:
no event loop and no policy. When to sync inline is the server's decision; it finds here what it
needs for it.

Who drives it: the server's loop, from ITS one thread: it calls `submit`, `submit_read`,
`write_inline` and `close`. The callbacks are called FROM THE WORKER'S THREAD, so they must only
hand over and wake.

GROUP COMMIT is natural: while one sync runs, writes gather; the next sync takes them all. Nothing
waits for a timer. INLINE (performance.md's "adaptive sync"): when nothing is under way, handing a
write to another thread and being woken by it costs more than a fast sync itself.

A failure ends the thread: `on_error` is called once, and every later call raises the same error.
Nothing that was submitted and not reported durable may be acknowledged then, whatever became of it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.errors import StorageError
from folkmoot.core.storage.log_store import LogStore, WriteLike

_EWMA_WEIGHT = 1 / 8
_IDLE_S = 1.0
"""After this long without a write the log gets a mark that all of it is durable."""


@attrs.frozen
class _Read:
    first_index: int
    bytes_max: int
    callback: Callable[[list[Batch]], None]


class _Token:
    """A job without content: wake up and look around, or stop."""


_WAKE = _Token()
_STOP = _Token()
_Job = Sequence[WriteLike] | _Read | _Token


class StorageWriter:
    """One worker thread around a LogStore.

    Invariants:
    - the store is written by one thread at a time: whoever holds `_lock`;
    - writes become durable in the order in which they were handed in;
    - `on_durable(number, elapsed_s)` comes once per group, with rising numbers; never for a write
      that was done inline.
    """

    def __init__(
        self,
        store: LogStore,
        on_durable: Callable[[int, float], None],
        on_error: Callable[[BaseException], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        idle_s: float = _IDLE_S,
    ) -> None:
        """Start the thread."""
        self._store = store
        self._on_durable = on_durable
        self._on_error = on_error
        self._clock = clock
        self._idle_s = idle_s
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._reads: list[_Read] = []
        self._lock = threading.Lock()
        self._submitted = 0  # changed by the server's thread only
        self._finished = 0  # changed by the worker only
        self._watching = False  # the worker will look around by itself before long
        self._woken = False  # it was told to look around at once
        self._failure: BaseException | None = None
        self._closed = False
        self.sync_ewma_s = 0.0
        """Exponentially weighted time of one write with its sync; 0 before the first."""
        self.groups = 0
        self.writes = 0
        """Writes and the groups that they were synced in, inline ones among them."""
        self._thread = threading.Thread(target=self._run, name="folkmoot-storage", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Say whether nothing is under way, so that `write_inline` does not wait."""
        return self._submitted == self._finished and not self._lock.locked()

    def submit(self, writes: Sequence[WriteLike]) -> None:
        """Hand writes to the worker; `on_durable` tells when they are durable."""
        self._check_alive()
        self._submitted += 1
        self._jobs.put(writes)

    def submit_read(
        self, first_index: int, bytes_max: int, callback: Callable[[list[Batch]], None]
    ) -> None:
        """Let the worker read (see `LogStore.read`). `callback(batches)` comes from its thread."""
        self._check_alive()
        self._submitted += 1
        self._jobs.put(_Read(first_index, bytes_max, callback))

    def write_inline(self, writes: Sequence[WriteLike]) -> int:
        """Write and sync here and now; return the highest durable number.

        Nothing may be under way: it would be overtaken.
        """
        self._check_alive()
        waiting = self._submitted - self._finished
        assert waiting == 0, f"{waiting} jobs wait: an inline write would overtake them"
        try:
            with self._lock:
                number = self._commit(writes)
        except BaseException as error:
            self._failure = error
            raise
        if not self._woken and (self._store.wants_prepare or not self._watching):
            self._woken = True
            self._jobs.put(_WAKE)
        return number

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Keep everybody from writing, so that the caller's thread may change the store."""
        with self._lock:
            yield

    def close(self) -> None:
        """Finish everything that was submitted, then end the thread. The store stays open."""
        if not self._closed:
            self._closed = True
            self._jobs.put(_STOP)
        self._thread.join()

    def _check_alive(self) -> None:
        if self._failure is not None:
            if isinstance(self._failure, StorageError):
                raise self._failure
            raise StorageError(f"the storage stopped: {self._failure!r}") from self._failure
        if self._closed:
            raise StorageError("the storage's worker was closed")

    def _commit(self, writes: Sequence[WriteLike]) -> int:
        started_s = self._clock()
        self._store.write(writes)
        number = self._store.sync()
        elapsed_s = self._clock() - started_s
        if self.sync_ewma_s:
            elapsed_s = self.sync_ewma_s + (elapsed_s - self.sync_ewma_s) * _EWMA_WEIGHT
        self.sync_ewma_s = elapsed_s
        self.groups += 1
        self.writes += len(writes)
        return number

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - the server must hear of whatever ended us
            self._failure = error
            self._on_error(error)

    def _turn(self) -> bool:
        """Take everything that waits: one group of writes first, then at most one read."""
        jobs = self._gather()
        groups = [job for job in jobs if not isinstance(job, _Read | _Token)]
        self._reads += [job for job in jobs if isinstance(job, _Read)]
        if groups:
            started_s = self._clock()
            with self._lock:
                number = self._commit([write for group in groups for write in group])
            # Finished before it is said: who hears it may write inline at once.
            self._finished += len(groups)
            self._on_durable(number, self._clock() - started_s)
        if self._reads:
            read = self._reads.pop(0)
            batches = self._store.read(read.first_index, read.bytes_max)
            self._finished += 1
            read.callback(batches)
        if _STOP in jobs:
            for read in self._reads:
                read.callback(self._store.read(read.first_index, read.bytes_max))
            return False
        if self._store.wants_prepare:
            with self._lock:
                self._store.prepare()
        return True

    def _gather(self) -> list[_Job]:
        """Wait for a job, unless there is something to do, and take all that wait."""
        jobs: list[_Job] = []
        if not (self._reads or self._store.wants_prepare):
            first = self._wait()
            if first is not None:
                jobs.append(first)
        while True:
            try:
                jobs.append(self._jobs.get_nowait())
            except queue.Empty:
                self._woken = False
                return jobs

    def _wait(self) -> _Job | None:
        """Wait for a job; after a quiet while, mark the log and then wait without waking up."""
        while True:
            self._watching = self._store.wants_mark
            seen = self.groups
            try:
                return self._jobs.get(timeout=self._idle_s if self._watching else None)
            except queue.Empty:
                with self._lock:
                    if seen == self.groups and self._store.wants_mark:
                        self._store.mark()
                    if self._store.wants_prepare:
                        return None
