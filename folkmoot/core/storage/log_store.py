"""The durable log of one member: hard state, segments and manifest behind one object.

What it is: what consensus calls stable storage (§3.8): the term and vote, and the log of batches,
each durable when `sync` says so; and the compacted prefix beside them. What it is not: no thread,
no event loop, no callback (`writer.StorageWriter` and `core/housekeeping.py` add those), and
nothing of the meaning of a batch beyond its term and indexes.

Who drives it: the writer and the housekeeping of a server; the simulator and tests directly. What
changes the log or MANIFEST (`write`, `sync`, `prepare`, `mark`, `roll`, `install`, `trim`) comes
from one thread at a time. `compact` and the steps of what it returns, `sweep`, `archive`, and all
of `incoming` come from one, which may be another. `read`, `batches` and what says so may come from
any.

The order on the disk, which everything rests on:

    hard state (both slots, synced)  ->  batches (written)  ->  sync of the segment  ->  durable

A term is durable before any byte of its entries is written (bugs A2). A group of writes puts its
last hard state first: nothing of the group has been acknowledged, and the hard state only moves
forward. How the log becomes another one, by one replacement of MANIFEST, is in `segmented_log`.

FAIL-STOP. After any failed write or sync this object is dead: each later call raises the same
error. What the kernel could not write it may have dropped while calling it clean, so that a second
sync would succeed and lie (bugs F2). The server stops; recovery at the next start tells what is
really there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageError
from folkmoot.core.prefix import Frozen
from folkmoot.core.prefix_table import Point
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.compaction import Compaction, merged
from folkmoot.core.storage.counters import Counters
from folkmoot.core.storage.fail_stop import FailStop
from folkmoot.core.storage.files import Files, without_sync
from folkmoot.core.storage.hard_state import HardState
from folkmoot.core.storage.incoming import Incoming
from folkmoot.core.storage.log_reading import read_batches
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.recovery import Identity, Recovered, open_directory
from folkmoot.core.storage.segment import Segment
from folkmoot.core.storage.segmented_log import SegmentedLog
from folkmoot.core.storage.writes import HardStateLike, PointLike, WriteLike
from folkmoot.core.types import NodeId

__all__ = ["HardState", "Identity", "LogStore", "Recovered", "WriteLike"]

_BULK_BYTES = 1 << 20


class LogStore:
    """One member's durable log.

    Invariants:
    - no entry's term is above the durable term of the hard state;
    - the log and the prefix fit together: the log starts at or before the compaction index, which
      is the end of a sealed segment, or the start; what MANIFEST says changes in one step.
    """

    def __init__(self, files: Files, config: StorageConfig, identity: Identity | None) -> None:
        """Use `LogStore.open`."""
        opened = open_directory(files, config, identity)
        self._files = files
        self._config = config
        self._hard_state = opened.hard_state
        self.counters = Counters()
        self._log = SegmentedLog(files, config, opened.manifest, opened.segments, self.counters)
        self._trimmed: list[Segment] = []
        self.prefix = PrefixStore(files, opened.manifest)
        self.incoming = Incoming(files, self.compaction.index)
        self._guard = FailStop()
        self._written_number = 0
        self.recovered = opened.recovered
        self.identity = Identity(
            opened.manifest.cluster_id, NodeId(opened.manifest.node_id), opened.manifest.bootstrap
        )

    @classmethod
    def open(cls, files: Files, config: StorageConfig, identity: Identity | None) -> LogStore:
        """Lock the directory, and create the log (which needs `identity`) or recover it.

        Raises DirectoryLocked, StorageCorrupt (nothing was cut or repaired), StorageError where the
        directory belongs to another cluster or node, StorageFull. The lock is given up then.
        """
        files.lock()
        try:
            return cls(files if config.fsync else without_sync(files), config, identity)
        except BaseException:
            with contextlib.suppress(StorageError):
                files.close()
            raise

    @property
    def hard_state(self) -> HardState:
        """The durable term and vote."""
        return self._hard_state.state

    @property
    def last_index(self) -> int:
        """Index of the last entry that was written, durable or not."""
        return self._log.last_index

    @property
    def last_term(self) -> int:
        """Term of that entry; 0 if there is none."""
        return self._log.active.last_term

    @property
    def durable_index(self) -> int:
        """Highest index that survives a power cut."""
        return self._log.durable_index

    @property
    def start(self) -> Point:
        """What stands before the first entry that the log still has."""
        return self._log.manifest.start

    @property
    def compaction(self) -> Point:
        """Up to where the compacted prefix speaks; index 0 where there is none."""
        return self._log.manifest.compaction

    @property
    def epoch(self) -> int:
        """How often the cluster's state was restored from a backup."""
        return self._log.manifest.epoch

    @property
    def size_bytes(self) -> int:
        """Bytes of the log on the disk, without what is preallocated."""
        return sum(one.end for one in self._log.segments)

    def write(self, writes: Sequence[WriteLike]) -> None:
        """Write a group, in order. Only its hard state is durable when this returns.

        Raises StorageFull or StorageError; nothing of the group is acknowledged then, and this
        object is dead.
        """
        with self._guard:
            states = [one.hard_state for one in writes if one.hard_state is not None]
            if states:
                self._change_hard_state(states)
            for one in writes:
                assert one.number > self._written_number, f"{one.number} {self._written_number}"
                if one.install is not None:
                    self._install_received(one.install)
                if one.truncate_after is not None:
                    self._log.truncate_after(one.truncate_after)
                if one.batches:
                    self._log.append(one.batches, self.hard_state)
                self._written_number = one.number
            self._log.flush()

    def sync(self) -> int:
        """Make everything written durable by at most one fdatasync; return the highest number."""
        with self._guard:
            number = self._written_number
            self._log.sync()
            return number

    def read(self, first_index: int, bytes_max: int) -> list[Batch]:
        """Return batches from the one that holds `first_index`, verified, about `bytes_max`.

        At least one if there is one, none beyond the end. Includes what is written and not yet
        durable. Safe in any thread; what is truncated meanwhile may be missing or still be there.
        """
        with self._guard:
            while True:
                segments = self._log.segments
                try:
                    return read_batches(self._files, segments, first_index, bytes_max)
                except StorageError:
                    # The writer's thread takes files away (cut or trimmed): then look again.
                    if segments is self._log.segments:
                        raise

    def batches(self, first_index: int = 1) -> Iterator[Batch]:
        """Yield every batch from the one that holds `first_index`, verified, in bulk reads."""
        while found := self.read(first_index, _BULK_BYTES):
            yield from found
            first_index = found[-1].last_index + 1

    # -- compaction ----------------------------------------------------------------------------

    def boundary_from(self, index: int) -> int | None:
        """Return the end of the first sealed segment that ends at or behind `index`, if any.

        Safe in any thread. A compaction index is always such a boundary.
        """
        return self._log.boundary_from(index)

    def trim_target(self, keep_bytes: int, keep_bytes_max: int, needed: int | None) -> int | None:
        """Return up to where `trim` may go, or None where that is nowhere.

        At least `keep_bytes` of log stay, and what a follower at `needed` needs (None: there is
        none), but of that no more than `keep_bytes_max`. Safe in any thread.
        """
        return self._log.trim_target(keep_bytes, keep_bytes_max, needed)

    def roll(self) -> None:
        """Seal the active segment where it is, so that the log's end becomes a boundary."""
        with self._guard:
            self._log.roll()

    def compact(self, frozen: Sequence[Frozen]) -> Compaction:
        """Begin a compaction of what was frozen. Its steps may be taken in another thread."""
        one = merged(frozen)
        after = self.compaction.index
        assert after < one.index <= self.durable_index, f"compaction {one.index} after {after}"
        segments = [s for s in self._log.segments[:-1] if after < s.last_index <= one.index]
        boundary = self.boundary_from(one.index)
        assert boundary == one.index, f"compaction to {one.index}, the boundary is {boundary}"
        manifest = self._log.manifest
        owner = manifest.cluster_id, manifest.node_id
        return Compaction(
            self._files, self.prefix, segments, one, after=after, owner=owner, config=self._config
        )

    def install(self, compaction: Compaction) -> None:
        """Make a finished compaction the prefix. The MANIFEST decides; `sweep` removes the rest."""
        after = self.compaction.index
        assert compaction.after == after, f"a compaction behind {compaction.after}, not {after}"
        with self._guard:
            end = next(s for s in self._log.segments if s.last_index == compaction.index)
            self._log.replace_manifest(
                attrs.evolve(
                    self._log.manifest, compaction=end.point, files=tuple(compaction.entries)
                )
            )
            self.prefix.replace(compaction.entries, compaction.items_files)
            self.counters.compactions += 1
            self.incoming.discard_to(compaction.index)

    def archive(self) -> Archive | None:
        """Pin the prefix for somebody who reads it; None where there is none yet."""
        manifest = self._log.manifest
        return Archive(self._files, self.prefix, manifest) if manifest.files else None

    def trim(self, index: int) -> None:
        """Give up the segments that end at or before `index`: the prefix speaks for them."""
        with self._guard:
            self._trimmed += self._log.trim(index)

    def sweep(self) -> None:
        """Remove the files that nobody needs any more. Beside the writer: nobody lists them."""
        with self._guard:
            trimmed, self._trimmed = self._trimmed, []
            for one in trimmed:  # oldest first (bugs F5)
                self._files.unlink(one.name)
            self.prefix.sweep()

    # -- for quiet moments ---------------------------------------------------------------------

    @property
    def wants_prepare(self) -> bool:
        """Say whether `prepare` has something to do: the active segment is half full."""
        active = self._log.active
        return active.end * 2 > active.capacity and not self._log.next.is_ready

    def prepare(self) -> None:
        """Do one step of preallocating the next segment, so that sealing need not wait.

        The file is not listed in MANIFEST until it is used; a crash before leaves one that recovery
        removes.
        """
        with self._guard:
            self._log.next.step()

    @property
    def wants_mark(self) -> bool:
        """Say whether `mark` has something to do."""
        return self._log.wants_mark

    def mark(self) -> None:
        """Note in the log that its last record is durable: nothing follows that would say so.

        For idle moments. Not synced: it costs one small write, and may get lost.
        """
        with self._guard:
            self._log.mark()

    def free_bytes(self) -> int:
        """Return how many bytes are free on the disk. Safe in any thread."""
        return self._files.free_bytes()

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to know, as plain data."""
        return {
            "directory": self._files.describe(""),
            "first_index": self.start.index + 1,
            "last_index": self.last_index,
            "durable_index": self.durable_index,
            "term": self.hard_state.term,
            "voted_for": self.hard_state.voted_for,
            "segments": len(self._log.segments),
            "size_bytes": self.size_bytes,
            "compaction_index": self.compaction.index,
            **self.prefix.status(),
            "failure": str(self._guard.failure or ""),
            "recovered": attrs.asdict(self.recovered),
            "counters": attrs.asdict(self.counters),
        }

    def close(self) -> None:
        """Sync, leave a mark that all is durable, and give the directory up. Does nothing twice."""
        if self._guard.closed:
            return
        try:
            if self._guard.failure is None:
                self.sync()
                if self.wants_mark:
                    self.mark()
                    self._files.sync(self._log.active.name)
        finally:
            self._guard.closed = True
            self._files.close()

    def _change_hard_state(self, states: Sequence[HardStateLike]) -> None:
        """Make the group's last hard state durable, checking that each may follow the other."""
        state = self._hard_state.state
        for one in states:
            assert state.may_become(one.term, one.voted_for), f"{state} cannot become {one}"
            state = HardState(one.term, one.voted_for)
        if state != self._hard_state.state:
            self._hard_state.replace(state)
            self.counters.hard_state_changes += 1

    def _install_received(self, point: PointLike) -> None:
        """Give the log up for the prefix that was received (§5.1). The MANIFEST decides."""
        source, table = self.incoming.source, self.incoming.table
        assert source is not None, f"install of {point} before it was read back"
        assert table is not None, f"install of {point} with nothing received"
        at = Point(point.index, point.term, point.log_time)
        assert table.point == at, f"install of {at}, received was {table.point}"
        assert at.term <= self.hard_state.term, f"install of {at} in {self.hard_state}"
        entries = self.incoming.move(self.prefix)
        self._log.restart(
            attrs.evolve(
                self._log.manifest,
                compaction=at,
                start=at,
                files=tuple(entries),
                epoch=table.epoch,
            )
        )
        self.prefix.replace(entries, source.items_files)
        self.incoming.discard()
