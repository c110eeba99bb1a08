"""When a server freezes its state for a compaction, and how much of its log it keeps.

Pure: no I/O, no clock, no randomness. `core/replica.py` drives it; the compaction itself is the
storage's, beside the loop.

Each server compacts for itself, at its own index: nothing of it is replicated. The index is where a
segment ends, and the state is frozen exactly when everything up to there, and nothing behind it, is
applied. Then it is serialised, a slice per turn, and handed over.

    idle -> frozen at S, a slice per turn -> with the storage -> the prefix speaks for S -> idle

It begins when enough was applied since the last one (`compaction_log_bytes`, and no less than the
records that every compaction writes anew), or when an index is WANTED that no prefix speaks for
yet, by a backup or because the disk is low: then the segment is sealed where it is, so as not to
wait for it to fill.

THE LOG below S is not needed by this server. It is kept for followers that lag: `log_keep_bytes`
of it always, up to `log_keep_bytes_max` while one that answers needs it, nothing while the disk is
low. One member that is away for a day does not hold it (bugs E10), and one that receives the prefix
finds the log that goes on from it (bugs E7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.jobs import Job, Roll, Sweep, Trim
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import Frozen, Ledger, RecordKind
from folkmoot.core.raft import Configuration, Raft
from folkmoot.transport.codec import pack, unpack

SLICE_BYTES = 64 << 10
"""So many bytes of records are serialised in one turn: about a millisecond."""
TRIM_S = 1.0
"""How often it is looked whether log can be given up."""
RETRY_S = 5.0
"""After a compaction that a full disk ended, the next is tried this much later."""
ROOM_S = 10.0
"""While the disk is low a compaction is begun this often, if anything was applied meanwhile."""


class CompactionPort(Protocol):
    """What compacting needs of the storage."""

    def boundary_from(self, index: int) -> int | None:
        """The end of the first sealed segment that ends at or behind `index`."""

    def trim_target(self, keep_bytes: int, keep_bytes_max: int, needed: int | None) -> int | None:
        """Up to where the log can be given up, if anything of it can."""

    def compact(self, frozen: Frozen, then: Callable[[int | None], None]) -> None:
        """Compact beside the loop; `then` gets the bytes of records, or None if it was given up."""

    def post(self, job: Job, then: Callable[[Any], None]) -> None:
        """Have a job done beside the loop."""


class Compacting:
    """One server's compactions.

    - At most one is under way, from its freeze to the storage's answer.
    - `index` is what the installed prefix speaks for; the log's start is never behind it.
    """

    def __init__(
        self,
        config: StorageConfig,
        raft: Raft,
        multiplexer: Multiplexer,
        storage: CompactionPort,
        index: int,
    ) -> None:
        self.index = index
        self.is_stopped = False
        """No compaction begins: a prefix of another server is about to be installed."""
        self._config = config
        self._raft = raft
        self._multiplexer = multiplexer
        self._storage = storage
        self._applied_bytes = 0
        self._threshold = config.compaction_log_bytes
        self._wanted = 0
        self._is_running = False
        self._is_rolling = False
        self._handed: Frozen | None = None
        """What the storage was given last, without its content: it keeps that until it is done."""
        self._retry_at: float | None = None
        self._trim_at = 0.0
        self._room_at = 0.0
        self._is_making_room = False
        """A compaction was begun since the disk became low."""

    # -- freezing ------------------------------------------------------------------------------

    def applied(self, size_bytes: int) -> None:
        """Note that so many bytes of log were applied."""
        self._applied_bytes += size_bytes

    def want(self, index: int) -> bool:
        """Ask for a prefix that speaks for `index`; say whether there is one already."""
        if self.index >= index:
            return True
        self._wanted = max(self._wanted, index)
        return False

    @property
    def is_short_of_room(self) -> bool:
        """Whether a full disk ended the last compaction, and the next has not begun."""
        return self._retry_at is not None and not self.is_stopped

    @property
    def is_due(self) -> bool:
        """Whether the state is to be frozen at the next boundary."""
        if self._is_running or self.is_stopped:
            return False
        return self._applied_bytes >= self._threshold or self._wanted > self.index

    def look(self) -> None:
        """Freeze the state if it stands at a boundary. Called between two batches."""
        index = self._multiplexer.index
        if index <= self.index or index == self._left_at:
            return
        boundary = self._storage.boundary_from(index)
        if boundary == index:
            self._multiplexer.freeze()
            self._is_running = True
            self._applied_bytes = 0
            self._retry_at = None
        elif boundary is None and self._wanted > self.index and self._may_roll:
            self._is_rolling = True
            self._storage.post(Roll(), self._rolled)

    @property
    def _left_at(self) -> int | None:
        """The index of a compaction that waits for another try: it is frozen already."""
        return None if self._retry_at is None or self._handed is None else self._handed.index

    @property
    def _may_roll(self) -> bool:
        """A new segment is no help to a disk that is full, and could be its end."""
        return not self._is_rolling and self._retry_at is None

    def _rolled(self, _: None) -> None:
        self._is_rolling = False

    @property
    def is_slicing(self) -> bool:
        """Whether there is a slice to do, so that the next turn is due at once."""
        return self._multiplexer.freezing is not None and not self.is_stopped

    def slice(self) -> None:
        """Serialise some of what was frozen; hand it over when all of it is."""
        freeze = self._multiplexer.freezing
        assert freeze is not None, "a slice of nothing"
        if self.is_stopped or not freeze.step(SLICE_BYTES):
            return
        frozen = freeze.result()
        configuration = self._raft.configuration_at(frozen.index)
        frozen.records[RecordKind.CONFIGURATION, 0] = encode_members(configuration)
        self._hand_over(frozen)

    def _hand_over(self, frozen: Frozen) -> None:
        self._handed = attrs.evolve(frozen, ledger=Ledger(), records={})
        self._storage.compact(frozen, lambda records: self._compacted(frozen.index, records))

    def _compacted(self, index: int, records_bytes: int | None) -> None:
        self._is_running = False
        if records_bytes is None:
            self._retry_at = 0.0  # the next `tick` says when
            return
        self.index = index
        self._retry_at = None
        self._threshold = max(self._config.compaction_log_bytes, records_bytes)
        self._trim_at = 0.0

    # -- giving log up -------------------------------------------------------------------------

    def tick(self, now: float, *, low_bytes: int | None, sending: int | None) -> None:
        """Give log up that nobody needs, and have room made where the disk is low.

        `low_bytes` are free if it is (None: it is not), `sending` is what the oldest prefix under
        way speaks for. Cheap when nothing is due.
        """
        if self.is_stopped:
            return
        if low_bytes is None:
            self._is_making_room = False
        elif now >= self._room_at:
            self._room_at = now + ROOM_S
            self._make_room(low_bytes)
        if self._retry_at is not None and now >= self._retry_at:
            self._try_again(now)
        if now < self._trim_at:
            return
        self._trim_at = now + TRIM_S
        start = self._raft.log.start_index
        if start >= self.index:
            return
        config = self._config
        keep, keep_max = config.log_keep_bytes, config.log_keep_bytes_max
        needed = self._raft.reachable_match(now)
        if sending is not None:
            needed = sending if needed is None else min(needed, sending)
        if low_bytes is not None:
            keep = keep_max = 0
        target = self._storage.trim_target(keep, max(keep, keep_max), needed)
        if target is not None and target > start:
            # Consensus first: what it does not know any more it does not read.
            self._raft.compact(target, now)
            self._storage.post(Trim(target), lambda _: None)
            self._storage.post(Sweep(), lambda _: None)

    def _make_room(self, low_bytes: int) -> None:
        """Have what is dead become room: commands are refused, so nothing else fills a segment.

        Once as the disk becomes low, and then whenever more has died. A compaction that was left
        for want of room gives way to one that has less to keep. Only where there is room for the
        segment that the log goes on in meanwhile, twice over: a disk that has none would stop the
        server, which it was to be spared.
        """
        is_worth_it = not self._is_making_room or self._multiplexer.anything_died
        enough = low_bytes >= 2 * self._config.segment_bytes
        if is_worth_it and enough and self._applied_bytes and not self._is_running:
            self._is_making_room = True
            self._retry_at = None
            self.want(self._multiplexer.index)

    def _try_again(self, now: float) -> None:
        """A compaction was left unfinished: have it done, at the same index, without a new segment.

        The storage has kept what was frozen for it.
        """
        if self._retry_at == 0.0:
            self._retry_at = now + RETRY_S
            return
        assert self._handed is not None, "a compaction was left that was never handed over"
        self._retry_at = None
        self._is_running = True
        self._hand_over(self._handed)

    def deadline(self, now: float) -> float:
        """When `tick` must be called even if nothing arrives."""
        if self.is_stopped:
            return math.inf
        due = self._trim_at if self._raft.log.start_index < self.index else math.inf
        return due if self._retry_at is None else min(due, max(self._retry_at, now))

    # -- another server's prefix ---------------------------------------------------------------

    def replaced(self, multiplexer: Multiplexer) -> None:
        """Go on with a state that was restored from another server's prefix."""
        self._multiplexer = multiplexer
        self.index = multiplexer.index
        self.is_stopped = self._is_running = False
        self._retry_at = None
        self._applied_bytes = 0


def encode_members(configuration: Configuration) -> bytes:
    """Make the record of the members."""
    return pack([configuration.index, configuration.encode()])


def decode_members(record: bytes) -> Configuration:
    """Return the members of `encode_members`' record. Raises StorageCorrupt."""
    try:
        index, members = unpack(record)
        return Configuration.decode(members, index)
    except (RemoteProtocolError, TypeError, ValueError) as error:
        raise StorageCorrupt(f"the members in a prefix: {error}") from error
