"""A member's disk: the real LogStore on a disk in memory, one group of writes after another.

The order of a group is the product's: it is written, then synced, then consensus is told. Crashes
happen between any two of these, and at any operation inside. The disk itself outlives the member's
lives; the LogStore is made anew in each.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.raft import Write
from folkmoot.core.storage.log_store import Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles, PowerCut

if TYPE_CHECKING:
    from tests.sim.member import Member


class SimDisk:
    """What survives a member's crash, and the port through which its replica writes."""

    def __init__(self, member: Member, rng: random.Random) -> None:
        self.member = member
        self.rng = rng
        self.files = MemoryFiles()
        self.store: LogStore
        self.slow_s = 0.0
        """How much longer a sync takes at the moment."""
        self._queue: list[Write] = []
        self._busy = False

    def open(self, config: StorageConfig, identity: Identity) -> bool:
        """Recover; False if a fault came in between. Raises StorageCorrupt, which is never right:
        nothing here damages what was durable.
        """
        self._queue, self._busy = [], False
        with self._faults() as whole:
            self.store = LogStore.open(self.files, config, identity)
            whole.append(True)
        if whole and self.store.recovered.torn_tail is not None:
            self.member.world.trace.count("torn tails cut")
        return bool(whole)

    def close(self) -> None:
        """Close, as a graceful stop does; a fault may come in between."""
        with self._faults():
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

    def free_bytes(self) -> int:
        """Bytes that are free on its disk."""
        return self.store.free_bytes()

    def status(self) -> dict[str, Any]:
        """Plain data for operators."""
        return self.store.status()

    # what the world does

    def work(self) -> None:
        """Write the next group if the disk is idle; the sync comes later, or at once if inline."""
        if self._busy or not self._queue:
            return
        member, world = self.member, self.member.world
        group, self._queue = self._queue, []
        self._busy = True
        try:
            self.store.write(group)
        except (PowerCut, StorageError) as error:
            self._failed(error)
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
            self._failed(error)
            return
        self._busy = False
        member.world.checks.synced(member)
        member.world.trace.add("synced", member.name, number, self.store.durable_index)
        if not member.strikes("after a sync"):
            member.on_durable(number)

    def _failed(self, error: Exception) -> None:
        """Fail-stop: the member ends here. A power cut takes what was not synced."""
        if isinstance(error, PowerCut):
            self.member.world.trace.count("crashes inside a disk operation")
            self.member.crash(power_cut=True)
        else:
            self.member.world.trace.count("disks failed")
            self.member.crash(power_cut=False)
