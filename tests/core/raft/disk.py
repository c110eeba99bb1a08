"""A server's disk in memory: what survives a crash, what does not yet, and prefixes of the log."""

from __future__ import annotations

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.raft import Configuration, HardState, PrefixPoint, Write
from folkmoot.core.types import NodeId

NOWHERE = PrefixPoint(0, 0, 0)


@attrs.frozen
class Prefix:
    """A compacted prefix: where it ends, and the state up to there."""

    configuration: Configuration
    point: PrefixPoint = NOWHERE
    applied: tuple[str, ...] = ()


@attrs.define(eq=False)
class Transfer:
    """A prefix on its way to a follower."""

    deliver_at: float
    sender: NodeId
    receiver: NodeId
    prefix: Prefix


@attrs.define
class Disk:
    """What survives a crash, and the writes that do not yet."""

    hard_state: HardState
    batches: list[Batch]
    prefix: Prefix
    start: PrefixPoint = NOWHERE
    """What stands before the first batch, at or below the end of the prefix."""
    staged: list[Prefix] = attrs.field(factory=list)
    """Prefixes that were transferred and are not yet installed."""
    pending: list[Write] = attrs.field(factory=list)
    delay_s: float | None = 0.0
    """How long a write takes; None: until the test says `durable`."""
    due: list[tuple[float, int]] = attrs.field(factory=list)

    @property
    def last_index(self) -> int:
        return self.batches[-1].last_index if self.batches else self.start.index

    def term_at(self, index: int) -> int | None:
        """The term of a boundary; None where there is none at `index`."""
        if index == self.start.index:
            return self.start.term
        return next((b.term for b in self.batches if b.last_index == index), None)

    def finish(self, number: int) -> None:
        """Make the pending writes up to `number` durable, in order."""
        while self.pending and self.pending[0].number <= number:
            write = self.pending.pop(0)
            if write.hard_state is not None:
                assert write.hard_state.term >= self.hard_state.term
                self.hard_state = write.hard_state
            if write.install is not None:
                self._install(write.install)
            if write.truncate_after is not None:
                assert write.truncate_after >= self.start.index
                self.batches = [b for b in self.batches if b.last_index <= write.truncate_after]
            for batch in write.batches:
                assert batch.first_index == self.last_index + 1
                assert batch.term <= self.hard_state.term, "an entry before its term (bug A2)"
                self.batches.append(batch)
        self.due = [due for due in self.due if due[1] > number]

    def _install(self, point: PrefixPoint) -> None:
        assert point.index > self.prefix.point.index, (point, self.prefix)
        self.prefix = next(prefix for prefix in self.staged if prefix.point == point)
        self.staged = [prefix for prefix in self.staged if prefix.point.index > point.index]
        self.start, self.batches = point, []

    def trim(self, start: PrefixPoint) -> None:
        """Give up the batches up to `start`."""
        self.start = start
        self.batches = [batch for batch in self.batches if batch.first_index > start.index]

    def crash(self) -> None:
        """Lose what is not durable."""
        self.pending, self.due, self.staged = [], [], []
