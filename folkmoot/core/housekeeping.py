"""The thread beside the loop: it compacts, step by step, and does small jobs in between.

What it is: the driver of `storage/compaction.py` and `core/jobs.py` on a real server. What it is
not: the writer of the log (`storage/writer.py`), whose lock it takes for the moments in which
MANIFEST changes.

A compaction must not compete with the loop. Its steps hold the interpreter for about a millisecond,
and after each this thread sleeps so long that it takes no more than `compaction_duty` of a core and
writes no more than `compaction_bytes_per_s`; where the log grows faster than it is compacted, it
sleeps less.

A full disk ends a compaction and nothing else: what was frozen goes into the next one. Every other
failure of the disk stops the server, as it does for the log.

Who drives it: `core/disk.py`, from the loop's thread. Answers come back through `take_done`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageFull
from folkmoot.core.jobs import Job
from folkmoot.core.prefix import Frozen
from folkmoot.core.storage.compaction import Compaction, merged
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.writer import StorageWriter

Then = Callable[[Any], None]
_STEP_S = 0.001
"""Steps are taken until so much time of this thread is used; then it sleeps."""


class _Stop:
    """Asks for the present compaction to be left."""


_STOP = _Stop()


_Posted = tuple[Job | Frozen | _Stop | None, Then]


class Pace:
    """How long to sleep after some work, so that the bounds are kept."""

    def __init__(self, config: StorageConfig, log_bytes: int) -> None:
        """`log_bytes` of log are to be compacted: many of them are a reason to hurry."""
        urgency = max(1.0, log_bytes / (2 * config.compaction_log_bytes))
        self.duty = min(1.0, config.compaction_duty * urgency)
        self.bytes_per_s = config.compaction_bytes_per_s * urgency
        self._written = 0

    def pause_s(self, worked_s: float, written: int) -> float:
        """Return how long to sleep after so much work, with `written` bytes in all so far."""
        fresh, self._written = written - self._written, written
        return max(worked_s * (1.0 / self.duty - 1.0), fresh / self.bytes_per_s)


class Housekeeping:
    """One thread.

    - Jobs are done in order, and between two steps of a compaction.
    - There is at most one compaction; what was frozen for it, and for those that were given up
      before, is in `_frozen` until it is installed.
    """

    def __init__(
        self,
        store: LogStore,
        writer: StorageWriter,
        config: StorageConfig,
        wake: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Start the thread. `wake` and `on_error` are called from it."""
        self._store = store
        self._writer = writer
        self._config = config
        self._wake = wake
        self._on_error = on_error
        self._jobs: queue.SimpleQueue[_Posted] = queue.SimpleQueue()
        self._done: deque[tuple[Then, Any]] = deque()
        self._frozen: list[Frozen] = []
        self._compaction: Compaction | None = None
        self._steps: Iterator[int] = iter(())
        self._compacted: Then = lambda _: None
        self._pace = Pace(config, 0)
        self._step_at = 0.0
        self._thread = threading.Thread(target=self._run, name="folkmoot-housekeeping", daemon=True)
        self._thread.start()

    @property
    def is_compacting(self) -> bool:
        """Whether a compaction is under way."""
        return self._compaction is not None

    def post(self, job: Job, then: Then) -> None:
        """Have a job done; `then(answer)` is called by `take_done`."""
        self._jobs.put((job, then))

    def compact(self, frozen: Frozen, then: Then) -> None:
        """Have the log compacted. `then` gets the bytes of the prefix's records, or None if the
        disk was too full for it, or it was stopped.
        """
        self._jobs.put((frozen, then))

    def stop_compaction(self, then: Then) -> None:
        """Leave a compaction unfinished; what was frozen for it stays, in case there is another."""
        self._jobs.put((_STOP, then))

    def take_done(self) -> None:
        """Hand out the answers that have come. Called by the loop."""
        while self._done:
            then, answer = self._done.popleft()
            then(answer)

    def close(self) -> None:
        """End after the present step or job; what is left undone is done after the next start."""
        self._jobs.put((None, lambda _: None))
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._give_up()
        except BaseException as error:  # noqa: BLE001 - the server must hear of whatever ended us
            self._on_error(error)

    def _turn(self) -> bool:
        timeout_s = None
        if self._compaction is not None:
            timeout_s = max(self._step_at - time.monotonic(), 0.0)
        try:
            job, then = self._jobs.get(timeout=timeout_s)
        except queue.Empty:
            self._work()
            return True
        if job is None:
            return False
        if isinstance(job, Frozen):
            self._begin(job, then)
        elif isinstance(job, _Stop):
            self._give_up()
            self._finish(then, None)
        else:
            self._finish(then, self._do(job))
        return True

    def _do(self, job: Job) -> Any:
        if not job.exclusive:
            return job.run(self._store)
        with self._writer.standing_still():
            return job.run(self._store)

    def _finish(self, then: Then, answer: Any) -> None:
        self._done.append((then, answer))
        self._wake()

    # -- compaction ----------------------------------------------------------------------------

    def _begin(self, frozen: Frozen, then: Then) -> None:
        assert self._compaction is None, f"a compaction to {frozen.index} during another"
        # What was frozen before another server's prefix was installed is of no use any more.
        installed = self._store.compaction.index
        useful = [one for one in (*self._frozen, frozen) if one.index > installed]
        assert useful, f"frozen at {frozen.index}, the prefix speaks for {installed}"
        self._frozen = [merged(useful)]
        self._compaction = self._store.compact(self._frozen)
        self._steps = self._compaction.steps()
        self._compacted = then
        self._pace = Pace(self._config, self._compaction.log_bytes)
        self._step_at = time.monotonic()

    def _work(self) -> None:
        """Take a few steps, then say until when to sleep."""
        begun_s = worked_s = time.thread_time()
        try:
            self._check_room()
            for written in self._steps:
                worked_s = time.thread_time()
                if worked_s - begun_s >= _STEP_S:
                    pause_s = self._pace.pause_s(worked_s - begun_s, written)
                    self._step_at = time.monotonic() + pause_s
                    return
            self._install()
        except StorageFull:
            self._give_up()

    def _check_room(self) -> None:
        """Leave the last of the disk to the log: a write of its own that fails stops the server."""
        free_bytes, needed = self._store.free_bytes(), 2 * self._config.segment_bytes
        if free_bytes < needed:
            raise StorageFull(f"{free_bytes} bytes are free, the log may need {needed}")

    def _install(self) -> None:
        assert self._compaction is not None, "nothing to install"
        with self._writer.standing_still():
            self._store.install(self._compaction)
        self._compaction = None
        self._frozen.clear()
        self._store.sweep()
        self._finish(self._compacted, self._store.prefix.state_bytes)

    def _give_up(self) -> None:
        compaction, self._compaction = self._compaction, None
        if compaction is not None:
            compaction.give_up()
            self._store.sweep()
            self._finish(self._compacted, None)
