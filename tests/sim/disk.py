"""A member's disk: the real LogStore on a disk in memory, one group of writes after another.

The order of a group is the product's: it is written, then synced, then consensus is told. Crashes
happen between any two of these, and at any operation inside. What is done beside the log is in
housekeeping.py. The disk itself outlives the member's lives; the LogStore is made anew in each.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageCorrupt, StorageError, StorageFull
from folkmoot.core.jobs import Job
from folkmoot.core.prefix import Frozen
from folkmoot.core.raft import Write
from folkmoot.core.storage.log_store import Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from folkmoot.core.storage.stored_prefix import StoredPrefix
from tests.sim.housekeeping import SimHousekeeping, Then

if TYPE_CHECKING:
    from tests.sim.member import Member


class SimDisk:
    """What survives a member's crash, and the port through which its replica writes."""

    def __init__(self, member: Member, rng: random.Random) -> None:
        self.member = member
        self.rng = rng
        self.files = MemoryFiles()
        self.store: LogStore
        self.housekeeping: SimHousekeeping
        self.slow_s = 0.0
        """How much longer a sync takes at the moment."""
        self.is_busy = False
        """A group is written, and not synced yet."""
        self._queue: list[Write] = []

    def open(self, config: StorageConfig, identity: Identity) -> bool:
        """Recover; False if a fault came in between. Raises StorageCorrupt, which is never right:
        nothing here damages what was durable.
        """
        self._queue, self.is_busy = [], False
        self.housekeeping = SimHousekeeping(self, random.Random(self.rng.random()))
        with self._faults() as whole:
            self.store = LogStore.open(self.files, config, identity)
            whole.append(True)
        if whole and self.store.recovered.torn_tail is not None:
            self.member.world.trace.count("torn tails cut")
        return bool(whole)

    def close(self) -> None:
        """Close, as a graceful stop does; a fault may come in between."""
        with self._faults():
            self.store.sync()
            self.is_busy = False
            self.housekeeping.close()
            self.store.close()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[list[bool]]:
        """While no replica runs, a fault only ends what is under way."""
        trace = self.member.world.trace
        try:
            yield []
        except StorageCorrupt:
            raise
        except (PowerCut, StorageError) as error:
            trace.add("fault", self.member.name, type(error).__name__)
            trace.count("faults in recovery or closing")
            if isinstance(error, PowerCut):
                self.files.crash(self.rng)
            else:
                self.files.kill()

    def calm(self) -> None:
        """No faults from now on."""
        self.slow_s = 0.0
        self.files.cut_power_at = self.files.capacity_bytes = None
        self.files._failures.clear()

    def cut_power_soon(self, operations_max: int) -> None:
        """Let the power go at one of the next operations."""
        self.files.cut_power_at = self.files.operations + self.rng.randint(1, operations_max)

    def limit(self, free_bytes: int | None) -> None:
        """Leave so much of the disk free; None: it has no end."""
        self.files.capacity_bytes = None
        if free_bytes is not None:
            used_bytes = sum(map(self.files.size, self.files.contents()))
            self.files.capacity_bytes = used_bytes + free_bytes

    # the replica's port

    def submit(self, writes: Sequence[Write]) -> None:
        """Take the next writes; they are done after this turn."""
        self._queue.extend(writes)

    def read(self, first_index: int, bytes_max: int) -> list[Batch]:
        """Read batches back."""
        self.member.world.trace.count("log reads")
        return self.store.read(first_index, bytes_max)

    def boundary_from(self, index: int) -> int | None:
        """The end of the first sealed segment that ends at or behind `index`."""
        return self.store.boundary_from(index)

    def trim_target(self, keep_bytes: int, keep_bytes_max: int, needed: int | None) -> int | None:
        """Up to where the log can be given up."""
        return self.store.trim_target(keep_bytes, keep_bytes_max, needed)

    def compact(self, frozen: Frozen, then: Then) -> None:
        """Compact beside the loop."""
        self.housekeeping.compact(frozen, then)

    def received(self) -> StoredPrefix:
        """The complete prefix that was received."""
        return self.store.incoming.read_back()

    def stop_compaction(self, then: Then) -> None:
        """Leave a compaction unfinished."""
        self.housekeeping.stop_compaction(then)

    def post(self, job: Job, then: Then) -> None:
        """Have a job done beside the loop."""
        self.housekeeping.post(job, then)

    def free_bytes(self) -> int:
        """Bytes that are free on its disk."""
        return self.store.free_bytes()

    def status(self) -> dict[str, Any]:
        """Plain data for operators."""
        return self.store.status()

    # what the world does

    def work(self) -> None:
        """Write the next group if the disk is idle; the sync comes later, or at once if inline."""
        if self.is_busy or not self._queue:
            return
        member, world = self.member, self.member.world
        group, self._queue = self._queue, []
        self.is_busy = True
        installs = any(write.install is not None for write in group)
        if installs and member.strike == "inside an install":
            member.strike = ""
            self.cut_power_soon(12)
        try:
            self.store.write(group)
        except (PowerCut, StorageError) as error:
            self.failed(error)
            return
        for write in group:
            world.checks.written(member, write)
        if member.strikes("before a sync"):
            return
        if world.options.inline_sync and not self.slow_s:
            self._sync(member.life)
        else:
            delay = world.options.sync_s * (0.5 + self.rng.random()) + self.slow_s
            world.scheduler.after(delay, self._sync, member.life)

    def _sync(self, life: int) -> None:
        member = self.member
        if life != member.life or not member.is_up:
            return
        if member.is_paused:
            member.after_pause.append(lambda: self._sync(life))
            return
        try:
            number = self.store.sync()
        except (PowerCut, StorageError) as error:
            self.failed(error)
            return
        self.is_busy = False
        self.housekeeping.writer_is_idle()
        member.world.checks.synced(member)
        member.world.trace.add("synced", member.name, number, self.store.durable_index)
        if not member.strikes("after a sync"):
            member.on_durable(number)

    def failed(self, error: Exception) -> None:
        """Fail-stop: the member ends here. A power cut takes what was not synced."""
        if isinstance(error, PowerCut):
            self.member.world.trace.count("crashes inside a disk operation")
            self.member.crash(power_cut=True)
        elif isinstance(error, StorageFull) or "injected" in str(error):
            self.member.world.trace.count("disks failed")
            self.member.crash(power_cut=False)
        else:
            raise error
