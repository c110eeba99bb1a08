"""What every member's log and disk hold, and what is committed: the books that checkers share.

A log is known by its boundaries: the last index of each batch, its term, and a CHAIN, a checksum of
the batch and of the chain before it. Equal chains at an index mean equal logs up to there.

The ledger stands first among the checkers, so that all others find it up to date.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import attrs

from folkmoot.core.batch import BATCH_HEADER, Batch
from folkmoot.core.raft import Ready, Role, TraceEvent, VoteRequest, Write
from folkmoot.core.raft.trace import (
    Committed,
    QuorumLost,
    RoleChanged,
    Truncated,
    VoteAnswered,
)
from tests.sim.checks import Checker

if TYPE_CHECKING:
    from tests.sim.member import Member


class Book:
    """One log: boundary -> (term, chain). It goes on knowing what is trimmed in this life."""

    __slots__ = ("ends", "entries", "start")

    def __init__(
        self, batches: list[Batch], start: int = 0, entry: tuple[int, int] = (0, 0)
    ) -> None:
        self.restart(start, entry)
        for batch in batches:
            self.append(batch)

    def restart(self, start: int, entry: tuple[int, int]) -> None:
        """Forget everything: the log starts behind a boundary."""
        self.start = start
        self.ends: list[int] = []
        self.entries: dict[int, tuple[int, int]] = {start: entry}

    @property
    def last_index(self) -> int:
        """The end of the log."""
        return self.ends[-1] if self.ends else self.start

    def append(self, batch: Batch) -> int:
        """Add a batch; return the chain there."""
        _, before = self.entries[self.last_index]
        # The header holds a checksum of all the rest.
        chain = zlib.crc32(batch.data[: BATCH_HEADER.size], before)
        self.ends.append(batch.last_index)
        self.entries[batch.last_index] = (batch.term, chain)
        return chain

    def take(self, write: Write, committed: dict[int, tuple[int, int]]) -> None:
        """Do what a write says."""
        if write.install is not None:
            self.restart(write.install.index, committed[write.install.index])
        if write.truncate_after is not None:
            self.cut(write.truncate_after)
        for batch in write.batches:
            self.append(batch)

    def cut(self, index: int) -> None:
        """End the log at an index."""
        ends = self.ends
        while ends and ends[-1] > index:
            del self.entries[ends.pop()]


class Disk:
    """What a member's disk holds: what was written, and how much of that survives."""

    __slots__ = ("book", "durable_index", "term", "voted_for")

    def __init__(self) -> None:
        self.book = Book([])
        self.durable_index = 0
        self.term = 0
        self.voted_for: int | None = None


@attrs.define(eq=False, slots=False)
class Ledger(Checker):
    """Keeps the books. It checks nothing but that a disk keeps what was durable."""

    rule = (
        "what was synced is still there after a crash; what is there was written; only what is "
        "committed replaces a log"
    )

    logs: dict[str, Book] = attrs.field(factory=dict)
    disks: dict[str, Disk] = attrs.field(factory=dict)
    installs: dict[str, int] = attrs.field(factory=dict)
    """Where the last prefix ends that a server's consensus wanted to be installed."""
    campaigns: dict[str, bool] = attrs.field(factory=dict)
    """Who campaigned last because the old leader asked for it."""

    def booted(self, member: Member, batches: list[Batch]) -> None:
        if member.life == 1:
            self.disks[member.name] = Disk()
        store, disk = member.disk.store, self.disks[member.name]
        start = store.start.index
        entry = self.world.safety.entries.get(start, (0, 0))
        if disk.book.entries.get(start) != entry:
            if start != self.installs.get(member.name):
                self.fail(f"the log of server {member.name} starts behind {start}: it had none")
            disk.book.restart(start, entry)  # it crashed when that had just been done
            disk.durable_index = start
        book, index = Book(batches, start, entry), disk.durable_index
        if book.entries.get(index) != disk.book.entries[index]:
            self.fail(f"server {member.name} lost what was durable up to {index}")
        for end, found in book.entries.items():
            if end > index and disk.book.entries.get(end, found) != found:
                self.fail(f"server {member.name} found at {end} what it has not written")
        state = store.hard_state
        if (state.term, state.voted_for) != (disk.term, disk.voted_for) and state.term < disk.term:
            self.fail(f"server {member.name} found {state}, term {disk.term} was durable")
        disk.book, disk.durable_index = Book(batches, start, entry), book.last_index
        disk.term, disk.voted_for = state.term, state.voted_for
        self.logs[member.name] = book

    def installing(self, member: Member, index: int, term: int) -> None:
        entry = self.world.safety.entries.get(index)
        if entry is None or entry[0] != term:
            self.fail(
                f"server {member.name} installs a prefix up to {index} of term {term}; "
                f"committed there is {entry}"
            )
        self.installs[member.name] = index
        self.logs[member.name].restart(index, entry)

    def ready(self, member: Member, ready: Ready) -> None:
        book = self.logs[member.name]
        for write in ready.writes:
            book.take(write, self.world.safety.entries)
        for _, message in ready.messages:
            if isinstance(message, VoteRequest) and not message.pre:
                self.campaigns[member.name] = message.transfer
        for event in ready.trace:
            if type(event) is not Committed:
                self.world.trace.add("raft", member.name, str(event))
                self._count(member, event)
        if ready.reads_lost:
            self.world.trace.count("reads lost", len(ready.reads_lost))

    def _count(self, member: Member, event: TraceEvent) -> None:
        count = self.world.trace.count
        if isinstance(event, Truncated):
            count("truncations")
        elif isinstance(event, QuorumLost):
            count("quorum lost")
        elif isinstance(event, VoteAnswered):
            if event.pre and not event.granted:
                count("pre-votes lost")
        elif isinstance(event, RoleChanged) and event.role == Role.LEADER:
            count("elections")
            if self.campaigns.get(member.name):
                count("transfers won")

    def written(self, member: Member, write: Write) -> None:
        disk = self.disks[member.name]
        if write.hard_state is not None:
            disk.term, disk.voted_for = write.hard_state.term, write.hard_state.voted_for
        disk.book.take(write, self.world.safety.entries)
        disk.durable_index = min(disk.durable_index, disk.book.last_index)
        if write.install is not None:
            disk.durable_index = write.install.index
        if write.truncate_after is not None:
            disk.durable_index = min(disk.durable_index, write.truncate_after)

    def synced(self, member: Member) -> None:
        disk = self.disks[member.name]
        disk.durable_index = disk.book.last_index
