"""A member's housekeeping: compactions, step by step, and small jobs between the steps.

It mirrors core/housekeeping.py, with events of the scheduler in the place of the thread: a job is
done, or a step taken, some time after the one before. Writes and syncs of the log, crashes and
pauses come in between. What needs the writer to stand still waits until a group that was written is
synced, too: the real thread waits for the writer's lock.

One object is one life: after a crash nothing of it is left, and the files decide.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from folkmoot.core.errors import StorageError, StorageFull
from folkmoot.core.jobs import BeginReceiving, Job, ReadArchive, Receive, Sweep, Trim
from folkmoot.core.prefix import Frozen
from folkmoot.core.storage.compaction import Compaction, merged
from folkmoot.core.storage.incoming import SUBDIR
from folkmoot.core.storage.memory import PowerCut

if TYPE_CHECKING:
    from tests.sim.disk import SimDisk

Then = Callable[[Any], None]
STOP = "stop"
"""Asks for the present compaction to be left."""


class SimHousekeeping:
    """What the thread of one life would do."""

    def __init__(self, disk: SimDisk, rng: random.Random) -> None:
        self.compaction: Compaction | None = None
        self._disk = disk
        self._rng = rng
        self._jobs: deque[tuple[Job | Frozen | str, Then]] = deque()
        self._done: deque[tuple[Then, Any]] = deque()
        self._frozen: list[Frozen] = []
        self._steps: Iterator[int] = iter(())
        self._compacted: Then = lambda _: None
        self._phase = "steps"
        """steps, install, sweep"""
        self._rotten: set[bytes] = set()
        self._is_scheduled = False
        self._is_waiting = False
        """For the writer."""

    # -- the replica's port --------------------------------------------------------------------

    def post(self, job: Job, then: Then) -> None:
        """Have a job done."""
        self._put(job, then)

    def compact(self, frozen: Frozen, then: Then) -> None:
        """Have the log compacted."""
        self._put(frozen, then)

    def stop_compaction(self, then: Then) -> None:
        """Leave a compaction unfinished."""
        self._put(STOP, then)

    def take_done(self) -> None:
        """Hand out the answers that have come."""
        while self._done:
            then, answer = self._done.popleft()
            then(answer)

    @property
    def is_answered(self) -> bool:
        """Whether there are answers to hand out."""
        return bool(self._done)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do, and all answers are handed out."""
        return not (self._jobs or self._done or self.compaction)

    # -- the world's side ----------------------------------------------------------------------

    def writer_is_idle(self) -> None:
        """A sync has ended: whoever waited for the writer may be next."""
        if self._is_waiting:
            self._is_waiting = False
            self._schedule(self._rng.choice((0.0, self._delay_s())))

    def close(self) -> None:
        """Do what was posted, and leave a compaction unfinished."""
        if self._phase == "sweep" and self.compaction is not None:
            self._sweep(self.compaction)
        while self._jobs:
            self._do_next()
        self._give_up()

    # -- events --------------------------------------------------------------------------------

    def _put(self, job: Job | Frozen | str, then: Then) -> None:
        self._jobs.append((job, then))
        self._go_on()

    def _delay_s(self) -> float:
        return self._disk.member.world.options.step_s * 2 * self._rng.random()

    def _go_on(self) -> None:
        if (self._jobs or self.compaction is not None) and not self._is_waiting:
            self._schedule(self._delay_s() + self._disk.slow_s / 4)

    def _schedule(self, delay_s: float) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._disk.member.world.scheduler.after(delay_s, self._on_time)

    def _on_time(self) -> None:
        member = self._disk.member
        if self._disk.housekeeping is not self or not member.is_up:
            return
        if member.is_paused:
            member.after_pause.append(self._on_time)
            return
        self._is_scheduled = False
        try:
            self._do_next()
        except (PowerCut, StorageError) as error:
            self._disk.failed(error)
        if member.is_up:
            self._go_on()

    def _do_next(self) -> None:
        """A job if there is one, else a step. Between an install and its sweep no job is taken."""
        if not self._jobs or (self.compaction is not None and self._phase == "sweep"):
            self._step()
            return
        job, then = self._jobs[0]
        if isinstance(job, Frozen):
            self._begin(job, then)
        elif isinstance(job, str):
            self._give_up()
            self._finish(then, None)
        elif job.exclusive and self._disk.is_busy:
            self._is_waiting = True
            return
        else:
            answer = job.run(self._disk.store)
            self._finish(then, answer)
            self._tell(job, answer)
        self._jobs.popleft()

    def _finish(self, then: Then, answer: Any) -> None:
        self._done.append((then, answer))
        self._disk.member.wake()

    def _tell(self, job: Job, answer: Any) -> None:
        member = self._disk.member
        trace = member.world.trace
        trace.add("job", member.name, type(job).__name__)
        if isinstance(job, Trim):
            trace.count("logs trimmed")
        elif isinstance(job, Sweep):
            member.world.checks.swept(member)
        elif isinstance(job, BeginReceiving):
            trace.count("transfers begun")
            trace.count("transfers resumed", int(isinstance(answer, list) and any(answer)))
        elif isinstance(job, Receive):
            self._rot(job)
            self._crash("while receiving")
        elif isinstance(job, ReadArchive):
            self._crash("while sending")

    def _crash(self, point: str) -> None:
        """Crash amid a transfer, now and then: that is too rare to be hit by chance."""
        member = self._disk.member
        options, is_healing = member.world.options, member.world.is_healing
        part = options.transfer_crash
        if part and not is_healing and self._rng.random() < part:
            member.strike = point
            member.strikes(point)

    def _rot(self, job: Receive) -> None:
        """Flip a bit of what has just been received, once for one archive: it is verified yet."""
        incoming, files = self._disk.store.incoming, self._disk.files
        rot = self._disk.member.world.options.rot
        if rot and self._rng.random() < rot and incoming.table and incoming.id not in self._rotten:
            self._rotten.add(incoming.id)
            one = incoming.table.files[job.file_number]
            where = f"{SUBDIR}/{one.origin}-{one.entry.file_id:010d}-"
            for name in files.contents():
                if name.startswith(where):
                    files.flip_bit(name, job.offset + self._rng.randrange(len(job.data)))

    # -- compaction ----------------------------------------------------------------------------

    def _begin(self, frozen: Frozen, then: Then) -> None:
        store = self._disk.store
        assert self.compaction is None, f"a compaction to {frozen.index} during another"
        installed = store.compaction.index
        useful = [one for one in (*self._frozen, frozen) if one.index > installed]
        assert useful, f"frozen at {frozen.index}, the prefix speaks for {installed}"
        self._frozen = [merged(useful)]
        self.compaction = store.compact(self._frozen)
        self._steps = self.compaction.steps()
        self._compacted, self._phase = then, "steps"
        self._trace("compaction begins", frozen.index)

    def _step(self) -> None:
        compaction, member = self.compaction, self._disk.member
        if compaction is None:
            return
        if member.strike == "inside a step":
            member.strike = ""
            member.disk.cut_power_soon(3)
        try:
            if self._phase == "steps":
                if next(self._steps, None) is None:
                    self._phase = "install"
            elif self._phase == "sweep":
                self._sweep(compaction)
            elif self._disk.is_busy:
                self._is_waiting = True
            else:
                self._install(compaction)
        except StorageFull:
            self._give_up()
        member.strikes("between steps")

    def _install(self, compaction: Compaction) -> None:
        self._disk.store.install(compaction)
        self._frozen.clear()
        self._count(compaction)
        self._trace("compacted", compaction.index)
        self._phase = "sweep"

    def _sweep(self, compaction: Compaction) -> None:
        store = self._disk.store
        self.compaction = None
        store.sweep()
        self._disk.member.world.checks.swept(self._disk.member)
        self._finish(self._compacted, store.prefix.state_bytes)

    def _give_up(self) -> None:
        compaction, self.compaction = self.compaction, None
        if compaction is None:
            return
        self._trace("compaction given up", compaction.index)
        self._disk.member.world.trace.count("compactions given up")
        compaction.give_up()
        self._disk.store.sweep()
        self._disk.member.world.checks.swept(self._disk.member)
        self._finish(self._compacted, None)

    def _count(self, compaction: Compaction) -> None:
        count = self._disk.member.world.trace.count
        count("compactions installed")
        count("items files rewritten", compaction.rewritten)
        count("prefixes of several items files", int(len(compaction.items_files) > 1))

    def _trace(self, what: str, index: int) -> None:
        self._disk.member.world.trace.add(what, self._disk.member.name, index)
