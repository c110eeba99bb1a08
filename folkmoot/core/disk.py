"""Who writes the log: the loop itself while the disk is quick and idle, else the storage's worker
thread.

Handing a write to another thread and being woken by it costs as much as a quick sync itself, so
while syncs have lately been quick and nothing else waits, the loop does them in its own turn
(core/server.py says when). Under load, or on a slow disk, the worker does them and the loop goes
on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.housekeeping import Housekeeping
from folkmoot.core.raft import Write
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.writer import StorageWriter
from folkmoot.core.wakeup import Wakeup


class DiskDriver:
    """Where the replica's writes go: inline while the disk is quick and idle, else to the worker
    thread.

    - Writes keep their order: nothing is done inline while the worker has any.
    """

    def __init__(self, store: LogStore, wakeup: Wakeup, config: StorageConfig) -> None:
        self.store = store
        self.inline: list[Write] = []
        self.failure: BaseException | None = None
        self.done: deque[int] = deque()
        self._inline_max_s = config.inline_sync_max_s
        self._wakeup = wakeup
        self._writer = StorageWriter(store, on_durable=self._on_durable, on_error=self._on_error)
        self._housekeeping = Housekeeping(
            store, self._writer, config, wakeup.set_from_thread, self._on_error
        )
        self.boundary_from = store.boundary_from
        self.trim_target = store.trim_target
        self.post = self._housekeeping.post
        self.compact = self._housekeeping.compact
        self.received = store.incoming.read_back
        self.stop_compaction = self._housekeeping.stop_compaction
        self.crowded = False
        """Whether the loop has other work waiting, so that a sync of its own would hold it up."""

    def submit(self, writes: Sequence[Write]) -> None:
        """Take the next writes; they are done by `sync_inline` or by the worker."""
        quick = self._writer.sync_ewma_s <= self._inline_max_s
        if quick and not self.crowded and self._writer.idle and not self.done:
            self.inline.extend(writes)
        else:
            self._writer.submit([*self.inline, *writes])
            self.inline.clear()

    def sync_inline(self) -> int:
        """Write and sync what was kept for here; the number that is durable now."""
        writes, self.inline = self.inline, []
        return self._writer.write_inline(writes)

    def read(self, first_index: int, bytes_max: int) -> list[Batch]:
        """Batches from the one that holds `first_index`, about `bytes_max` bytes of them."""
        return self.store.read(first_index, bytes_max)

    def free_bytes(self) -> int:
        """Bytes that are free on its disk."""
        return self.store.free_bytes()

    def status(self) -> dict[str, Any]:
        """What an operator wants to know of the disk."""
        return {
            **self.store.status(),
            "compacting": self._housekeeping.is_compacting,
            "sync_ewma_ms": round(self._writer.sync_ewma_s * 1000, 3),
        }

    def take_done(self) -> int | None:
        """The highest number that the worker has made durable since the last call.

        What was posted beside the log and is done now, is answered on the way.
        """
        self._housekeeping.take_done()
        number = None
        while self.done:
            number = self.done.popleft()
        return number

    def close(self) -> None:
        """Finish what was submitted, and close the log. A compaction is left unfinished."""
        self._housekeeping.close()
        self._writer.close()
        self.store.close()

    def _on_durable(self, number: int, elapsed_s: float) -> None:
        self.done.append(number)
        self._wakeup.set_from_thread()

    def _on_error(self, error: BaseException) -> None:
        if self.failure is None:  # what comes after it follows from it
            self.failure = error
        self._wakeup.set_from_thread()
