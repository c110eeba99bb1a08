"""What should happen outside: messages, writes, reads, trace. And the gate before the messages.

Pure: no I/O, no clock, no randomness. Not the disk: a `Write` is a wish with a number, and
`durable(number)` is the driver's word that every wish up to that number is on disk.

PERSIST BEFORE YOU SPEAK (§3.8) lives here and nowhere else. A message leaves only when the writes
that it reveals are durable:

    send                every message reveals the term, and a vote request the vote: it waits for
                        the newest write of the hard state
    send_when_stored    an append's reply reveals that entries are stored: it waits for every write
                        so far

A leader's appends take the first road and, since its term was durable before it could win, leave at
once, before its own disk has the entries (§10.2.1). What it may not do is count itself; for that
`durable_index` is asked.

Two appends that a disk confirms together need one reply: the later says more than the earlier.

    1. leader of term 5 appends 8..10; the write has number 4, the reply that says "10" is held
    2. leader of term 6 appends 8..9; write 5 cuts after 7 and appends; the held reply is dropped
    3. durable(5) comes, covering both: were the reply still there, it would claim an index 10 that
       this disk does not hold

The reply of step 1 could not cause harm (whoever counts it needs a majority that voted for the
leader of term 6 as well), but "what is acknowledged is durable at that moment" then holds without
an argument, and can be checked from outside.

An INSTALL puts the compacted prefix in the place of the whole log (§5.1). The disk has the old log
until it is done, and afterwards nothing of it. What both have in common is what was committed and
told, so until then nothing above that counts as durable: neither what is discarded, nor the prefix.
"""

from __future__ import annotations

from collections import deque

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.raft.messages import AppendReply, Message
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.types import NodeId


@attrs.frozen
class HardState:
    """What must survive a crash beside the log: one atomic record (§3.8)."""

    term: int = 0
    voted_for: NodeId | None = None
    """The vote of this very term; cleared only when the term rises."""


@attrs.frozen
class PrefixPoint:
    """Where a compacted prefix ends, and how it goes on: what remains of its last entry (§5.1)."""

    index: int
    term: int
    log_time: int


@attrs.define
class Write:
    """One step of the disk. Writes are done in order of number.

    Within one the order is: hard state, install, cut, append.
    """

    number: int
    hard_state: HardState | None = None
    truncate_after: int | None = None
    batches: list[Batch] = attrs.field(factory=list)
    install: PrefixPoint | None = None
    """Discard the whole log and start behind this point, with the prefix that ends there: all of it
    or nothing. It begins a write of its own."""


@attrs.define
class ReadState:
    """A read may be answered once `index` is applied here (§6.4)."""

    token: int
    index: int


@attrs.define
class LogRead:
    """Batches that `peer` needs and memory no longer has; answer with `Raft.log_read`."""

    peer: NodeId
    first_index: int
    bytes_max: int


@attrs.define
class Ready:
    """Everything that should happen now; true when there is anything to do.

    The order in which a driver handles the parts does not matter for safety, save that writes reach
    the disk in order and `durable` is only told about what is.
    """

    messages: list[tuple[NodeId, Message]]
    writes: list[Write]
    commit_index: int
    """Apply up to here: committed, and durable on this server (bug B9)."""
    advanced: bool
    """`commit_index` rose since the last time."""
    reads: list[ReadState]
    reads_lost: list[int]
    """Tokens of reads that will get no index: leadership moved, or the leader refused."""
    log_reads: list[LogRead]
    trace: list[TraceEvent]

    def __bool__(self) -> bool:
        return bool(
            self.messages
            or self.writes
            or self.advanced
            or self.reads
            or self.reads_lost
            or self.log_reads
            or self.trace
        )


class Effects:
    """Collects the effects of a turn.

    - Writes are numbered 1, 2, 3, ...; a held message leaves when its write's number is durable.
    - `durable_index` is the end of the log's durable part; a cut lowers it at once (bug B7), and so
      does an install.
    - An entry never becomes durable before the term that it belongs to: one ordered queue (bug A2).
    """

    __slots__ = (
        "_durable",
        "_handed",
        "_held",
        "_open",
        "_term_write",
        "_unstored",
        "_written",
        "commit_told",
        "durable_index",
        "log_reads",
        "messages",
        "reads",
        "reads_lost",
        "trace",
        "writes",
    )

    def __init__(self, durable_index: int) -> None:
        self.durable_index = durable_index
        self.commit_told = 0
        self.messages: list[tuple[NodeId, Message]] = []
        self.writes: list[Write] = []
        self.reads: list[ReadState] = []
        self.reads_lost: list[int] = []
        self.log_reads: list[LogRead] = []
        self.trace: list[TraceEvent] = []
        self._open: Write | None = None
        self._written = 0
        """Number of the newest write."""
        self._term_write = 0
        """Number of the newest write of the hard state."""
        self._handed = 0
        """Number of the newest write that the driver has been given."""
        self._durable = 0
        self._held: list[tuple[int, NodeId, Message]] = []
        self._unstored: deque[list[int]] = deque()
        """[write number, end of the log as far as that write settles it], for pending writes."""

    @property
    def is_term_durable(self) -> bool:
        """True when the present term and vote are on disk."""
        return self._term_write <= self._durable

    # -- messages ------------------------------------------------------------------------------

    def send(self, peer: NodeId, message: Message) -> None:
        """Send as soon as the present term and vote are durable."""
        if self._term_write <= self._durable:
            self.messages.append((peer, message))
        else:
            self._held.append((self._term_write, peer, message))

    def send_when_stored(self, peer: NodeId, reply: AppendReply) -> None:
        """Send as soon as everything that was written so far is durable."""
        entry = (self._written, peer, reply)
        if self._written <= self._durable:
            self.messages.append((peer, reply))
        elif self._held and self._is_covered(self._held[-1], entry):
            self._held[-1] = entry
        else:
            self._held.append(entry)

    @staticmethod
    def _is_covered(
        earlier: tuple[int, NodeId, Message], later: tuple[int, NodeId, AppendReply]
    ) -> bool:
        """Return whether both wait for one write and say the same, the later one more of it."""
        message, reply = earlier[2], later[2]
        return (
            earlier[:2] == later[:2]
            and type(message) is AppendReply
            and message.success
            and message.term == reply.term
            and message.match_index <= reply.match_index
        )

    # -- writes --------------------------------------------------------------------------------

    def write_hard_state(self, hard_state: HardState) -> None:
        """Wish for a new term or vote. It stands first in its write."""
        write = self._open
        if write is None or write.install or write.truncate_after is not None or write.batches:
            write = self._begin()
        write.hard_state = hard_state
        self._term_write = write.number

    def write_batch(self, batch: Batch) -> None:
        """Wish for `batch` at the end of the log."""
        write = self._open or self._begin()
        write.batches.append(batch)
        self._settles(batch.last_index)

    def write_truncation(self, index: int) -> None:
        """Wish for the log to end at `index`; the durable prefix is that much shorter at once."""
        write = self._open
        if write is None or write.truncate_after is not None or write.batches:
            write = self._begin()
        write.truncate_after = index
        # §3.8, bug B7: never report as stored what is about to be cut.
        self._disclaim_beyond(index)
        self._settles(index)

    def write_install(self, point: PrefixPoint) -> None:
        """Wish for the log to start anew behind `point`.

        Until that is durable no more than what was told as committed is: on either side of it that
        is the same.
        """
        self._begin().install = point
        # §3.8: neither what is discarded nor what takes its place is stored until it is done.
        self._disclaim_beyond(self.commit_told)
        self._settles(point.index)

    def _disclaim_beyond(self, index: int) -> None:
        """Take back that, or when, anything above `index` is durable, and what would say so."""
        self.durable_index = min(self.durable_index, index)
        for pending in self._unstored:
            pending[1] = min(pending[1], index)
        self._held = [entry for entry in self._held if not _claims_beyond(entry[2], index)]

    def _begin(self) -> Write:
        self._written += 1
        write = self._open = Write(self._written)
        self.writes.append(write)
        return write

    def _settles(self, last_index: int) -> None:
        if self._unstored and self._unstored[-1][0] == self._written:
            self._unstored[-1][1] = last_index
        else:
            self._unstored.append([self._written, last_index])

    def durable(self, number: int) -> None:
        """Believe that every write up to `number` is on disk; release what waited for it."""
        assert self._durable <= number <= self._handed, (
            f"write {number} durable after {self._durable}, of {self._handed} handed out"
        )
        self._durable = number
        while self._unstored and self._unstored[0][0] <= number:
            self.durable_index = self._unstored.popleft()[1]
        if self._held:
            waiting = []
            for entry in self._held:
                if entry[0] <= number:
                    self.messages.append((entry[1], entry[2]))
                else:
                    waiting.append(entry)
            self._held = waiting

    # -- handing over --------------------------------------------------------------------------

    def take(self, commit_index: int) -> Ready:
        """Return everything collected, and start anew."""
        # Bug B9: what is applied is never ahead of the own disk.
        told = min(commit_index, self.durable_index)
        assert told >= self.commit_told, f"{told} to apply after {self.commit_told}"
        ready = Ready(
            self.messages,
            self.writes,
            told,
            told > self.commit_told,
            self.reads,
            self.reads_lost,
            self.log_reads,
            self.trace,
        )
        self.commit_told = told
        self._handed, self._open = self._written, None
        if self.messages:
            self.messages = []
        if self.writes:
            self.writes = []
        if self.reads:
            self.reads = []
        if self.reads_lost:
            self.reads_lost = []
        if self.log_reads:
            self.log_reads = []
        if self.trace:
            self.trace = []
        return ready


def _claims_beyond(message: Message, index: int) -> bool:
    return type(message) is AppendReply and message.success and message.match_index > index
