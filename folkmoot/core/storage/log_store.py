"""The durable log of one member: hard state, segments and manifest behind one object.

What it is: what consensus calls stable storage (§3.8): the term and vote, and the log of batches,
each durable when `sync` says so. What it is not: no thread, no event loop, no callback
(`writer.StorageWriter` adds those), and nothing of the meaning of a batch beyond its term and
indexes.

Who drives it: `StorageWriter` in a server, the simulator and tests directly. `write`, `sync`,
`prepare` and `mark` come from one thread at a time; `read` and `batches` may come from any.

The order on the disk, which everything rests on:

    hard state (both slots, synced)  ->  batches (written)  ->  sync of the segment  ->  durable

- A term is durable before any byte of its entries is written (bugs A2). A group of writes puts its
  last hard state first: nothing of the group has been acknowledged, and the hard state only moves
  forward.
- SEALING: sync the segment; write and sync the next one's header; replace MANIFEST. That
  replacement is the moment. Before it the old segment is the last one, after it the new one is.
- TRUNCATION is sealing earlier: the segment that holds the last surviving batch is sealed at its
  end, a new one is started behind it, and the MANIFEST that says so drops the segments in between
  in the same step. Then their files are removed, newest first (bugs F5), and what was cut off is
  shorn. Nothing is overwritten, so a crash leaves either the log before the truncation, whole, or
  the log after it. The log before it may thus come back, as it was, if the crash comes before the
  MANIFEST: consensus copes with it as with any message that arrives late, because nothing that
  follows has been acknowledged.

FAIL-STOP. After any failed write or sync this object is dead: each later call raises the same
error. What the kernel could not write it may have dropped while calling it clean, so that a second
sync would succeed and lie (bugs F2). The server stops; recovery at the next start tells what is
really there.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageError
from folkmoot.core.prefix import Frozen
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.compaction import Compaction, merged
from folkmoot.core.storage.counters import Counters
from folkmoot.core.storage.fail_stop import FailStop
from folkmoot.core.storage.files import Files, without_sync
from folkmoot.core.storage.hard_state import HardState
from folkmoot.core.storage.incoming import Incoming
from folkmoot.core.storage.log_reading import read_batches
from folkmoot.core.storage.manifest import Manifest, Point, SegmentEntry, replace_manifest
from folkmoot.core.storage.next_segment import NextSegment
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.recovery import Identity, Recovered, open_directory, start_segment
from folkmoot.core.storage.segment import (
    HEADER_BYTES,
    RECORD_BYTES,
    SUBDIR,
    Segment,
)
from folkmoot.core.storage.writes import HardStateLike, PointLike, WriteLike
from folkmoot.core.types import NodeId

__all__ = ["HardState", "Identity", "LogStore", "Recovered", "WriteLike"]

_BULK_BYTES = 1 << 20


class LogStore:
    """One member's durable log.

    Invariants:
    - `durable_index <= last_index`; what is at or below `durable_index` survives a power cut;
    - indexes have no gap behind the start point, terms never fall, and none is above the durable
      term of the hard state;
    - the last of `_segments` is the active one, all others are sealed and durable in full;
    - `_segments` is replaced, never changed in place, so a reader in another thread keeps a whole
      one.
    """

    def __init__(self, files: Files, config: StorageConfig, identity: Identity | None) -> None:
        """Use `LogStore.open`."""
        opened = open_directory(files, config, identity)
        self._files = files
        self._config = config
        self._manifest = opened.manifest
        self._hard_state = opened.hard_state
        self._segments = opened.segments
        self._trimmed: list[Segment] = []
        self.prefix = PrefixStore(files, opened.manifest)
        self.incoming = Incoming(files)
        highest = max(one.segment_id for one in opened.segments)
        self._next = NextSegment(files, highest + 1, config.segment_bytes)
        self._guard = FailStop()
        self._dirty = False
        self._written_number = 0
        self._durable_number = 0
        self.recovered = opened.recovered
        self.identity = Identity(
            opened.manifest.cluster_id, NodeId(opened.manifest.node_id), opened.manifest.bootstrap
        )
        self.durable_index = self._active.last_index
        """Highest index that survives a power cut."""
        self.counters = Counters()

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
        return self._active.last_index

    @property
    def last_term(self) -> int:
        """Term of that entry; 0 if there is none."""
        return self._active.last_term

    @property
    def start(self) -> Point:
        """What stands before the first entry that the log still has."""
        return self._manifest.start

    @property
    def compaction(self) -> Point:
        """Up to where the compacted prefix speaks; index 0 where there is none."""
        return self._manifest.compaction

    @property
    def epoch(self) -> int:
        """How often the cluster's state was restored from a backup."""
        return self._manifest.epoch

    @property
    def size_bytes(self) -> int:
        """Bytes of the log on the disk, without what is preallocated."""
        return sum(one.end for one in self._segments)

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
                    self._truncate_after(one.truncate_after)
                if one.batches:
                    self._stage(one.batches)
                self._written_number = one.number
            self._flush()

    def sync(self) -> int:
        """Make everything written durable by at most one fdatasync; return the highest number."""
        with self._guard:
            number, index = self._written_number, self._active.last_index
            self._sync_active()
            # Only what was written before this sync, and only because it succeeded (bugs F9).
            self.durable_index = index
            self._durable_number = number
            return number

    def read(self, first_index: int, bytes_max: int) -> list[Batch]:
        """Return batches from the one that holds `first_index`, verified, about `bytes_max`.

        At least one if there is one, none beyond the end. Includes what is written and not yet
        durable. Safe in any thread; what is truncated meanwhile may be missing or still be there.
        """
        with self._guard:
            while True:
                segments = self._segments
                try:
                    return read_batches(self._files, segments, first_index, bytes_max)
                except StorageError:
                    # The writer's thread takes files away (cut or trimmed): then look again.
                    if segments is self._segments:
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
        segments = self._segments[:-1]
        at = bisect_left(segments, index, key=_last_index)
        return segments[at].last_index if at < len(segments) else None

    def trim_target(self, keep_bytes: int, keep_bytes_max: int, needed: int | None) -> int | None:
        """Return up to where `trim` may go, or None where that is nowhere.

        At least `keep_bytes` of log stay, and what a follower at `needed` needs (None: there is
        none), but of that no more than `keep_bytes_max`. Safe in any thread.
        """
        kept_bytes = 0
        for one in reversed(self._segments):
            boundary = one.first_index - 1
            kept_bytes += one.end
            if boundary <= self.start.index:
                return None
            is_enough = kept_bytes >= keep_bytes and (needed is None or boundary <= needed)
            if boundary <= self.compaction.index and (is_enough or kept_bytes >= keep_bytes_max):
                return boundary
        return None

    def roll(self) -> None:
        """Seal the active segment where it is, so that the log's end becomes a boundary."""
        with self._guard:
            if self._active.firsts:
                self._flush()
                old = self._active
                self._seal()
                self._start_segment(self._segments, 0)
                self._shear(old)

    def compact(self, frozen: Sequence[Frozen]) -> Compaction:
        """Begin a compaction of what was frozen. Its steps may be taken in another thread."""
        one = merged(frozen)
        after = self.compaction.index
        assert after < one.index <= self.durable_index, f"compaction {one.index} after {after}"
        segments = [s for s in self._segments[:-1] if after < s.last_index <= one.index]
        boundary = self.boundary_from(one.index)
        assert boundary == one.index, f"compaction to {one.index}, the boundary is {boundary}"
        owner = self._manifest.cluster_id, self._manifest.node_id
        return Compaction(
            self._files, self.prefix, segments, one, after=after, owner=owner, config=self._config
        )

    def install(self, compaction: Compaction) -> None:
        """Make a finished compaction the prefix. The MANIFEST decides; `sweep` removes the rest."""
        after = self.compaction.index
        assert compaction.after == after, f"a compaction behind {compaction.after}, not {after}"
        with self._guard:
            end = next(s for s in self._segments if s.last_index == compaction.index)
            self._replace_manifest(
                attrs.evolve(self._manifest, compaction=end.point, files=tuple(compaction.entries))
            )
            self.prefix.replace(compaction.entries, compaction.items_files)
            self.counters.compactions += 1

    def archive(self) -> Archive | None:
        """Pin the prefix for somebody who reads it; None where there is none yet."""
        manifest = self._manifest
        return Archive(self._files, self.prefix, manifest) if manifest.files else None

    def trim(self, index: int) -> None:
        """Give up the segments that end at or before `index`: the prefix speaks for them."""
        with self._guard:
            assert index <= self.compaction.index, f"trim to {index}, prefix to {self.compaction}"
            dropped = [one for one in self._segments[:-1] if one.last_index <= index]
            if not dropped:
                return
            segments = self._segments[len(dropped) :]
            self._replace_manifest(
                attrs.evolve(
                    self._manifest,
                    start=dropped[-1].point,
                    segments=self._manifest.segments[len(dropped) :],
                )
            )
            self._segments = segments
            self._trimmed += dropped

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
        return self._active.end * 2 > self._active.capacity and not self._next.is_ready

    def prepare(self) -> None:
        """Do one step of preallocating the next segment, so that sealing need not wait.

        The file is not listed in MANIFEST until it is used; a crash before leaves one that recovery
        removes.
        """
        with self._guard:
            self._next.step()

    @property
    def wants_mark(self) -> bool:
        """Say whether `mark` has something to do."""
        active = self._active
        return bool(active.firsts) and not (active.marked or self._dirty)

    def mark(self) -> None:
        """Note in the log that its last record is durable: nothing follows that would say so.

        For idle moments. Not synced: it costs one small write, and may get lost.
        """
        with self._guard:
            if self.wants_mark:
                self._active.mark(self._files)

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
            "segments": len(self._segments),
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
                    self._files.sync(self._active.name)
        finally:
            self._guard.closed = True
            self._files.close()

    @property
    def _active(self) -> Segment:
        return self._segments[-1]

    def _change_hard_state(self, states: Sequence[HardStateLike]) -> None:
        """Make the group's last hard state durable, checking that each may follow the other."""
        state = self._hard_state.state
        for one in states:
            assert state.may_become(one.term, one.voted_for), f"{state} cannot become {one}"
            state = HardState(one.term, one.voted_for)
        if state != self._hard_state.state:
            self._hard_state.replace(state)
            self.counters.hard_state_changes += 1

    def _stage(self, batches: Sequence[Batch]) -> None:
        """Put batches behind the log, for the next flush."""
        active, durable = self._active, self.durable_index
        for batch in batches:
            # A hole here would spread to others later (bugs E8).
            assert batch.first_index == active.last_index + 1, (
                f"batch from {batch.first_index} behind index {active.last_index}"
            )
            assert active.last_term <= batch.term <= self._hard_state.slot.state.term, (
                f"batch of term {batch.term} behind term {active.last_term}, "
                f"the hard state is {self._hard_state.state}"
            )
            if not active.fits(len(batch.data)):
                self._make_room(len(batch.data))
                active, durable = self._active, self.durable_index
            active.stage(batch, durable)

    def _flush(self) -> None:
        """Write what is staged."""
        size_bytes = self._active.flush(self._files)
        if size_bytes:
            self._dirty = True
            self.counters.log_writes += 1
            self.counters.bytes_written += size_bytes

    def _sync_active(self) -> None:
        if self._dirty:
            self._files.sync(self._active.name)
            self.counters.log_syncs += 1
            self._dirty = False

    def _make_room(self, batch_bytes: int) -> None:
        """Seal the active segment and start the next; or enlarge it, if it is empty."""
        self._flush()
        old = self._active
        needed = HEADER_BYTES + RECORD_BYTES + batch_bytes
        if not old.firsts:
            self._files.extend(old.name, needed)
            old.capacity = needed
            return
        self._seal()
        self._start_segment(self._segments, needed)
        self._shear(old)

    def _seal(self) -> None:
        """Make the active segment durable in full, which is what sealed means."""
        self._sync_active()
        self.durable_index = self._active.last_index

    def _start_segment(
        self, keep: Sequence[Segment], needed: int, manifest: Manifest | None = None
    ) -> None:
        """Make `keep`, all sealed, and a new segment the log. The MANIFEST decides.

        `manifest` is what it is to say otherwise: as now, unless given.
        """
        manifest = manifest or self._manifest
        previous = keep[-1] if keep else None
        before = previous.point if previous else manifest.start
        entry = SegmentEntry(self._next.segment_id, before.index + 1)
        allocated = self._next.made_bytes >= 0
        new = Segment(
            entry,
            previous.segment_id if previous else 0,
            previous.chain if previous else 0,
            before.term,
            self._manifest.cluster_id,
            self._manifest.node_id,
            max(self._config.segment_bytes, needed),
        )
        start_segment(self._files, new, allocated=allocated)
        sealed = tuple(one.entry(sealed=True) for one in keep)
        self._replace_manifest(attrs.evolve(manifest, segments=(*sealed, entry)))
        self._segments = [*keep, new]
        self._next.taken()
        self.counters.segments_started += 1

    def _replace_manifest(self, replacement: Manifest) -> None:
        replace_manifest(self._files, replacement)
        self._manifest = replacement

    def _shear(self, sealed: Segment) -> None:
        """Give the space behind a sealed segment's end back, and its handle."""
        self._files.truncate(sealed.name, sealed.end)
        self._files.release(sealed.name)

    def _install_received(self, point: PointLike) -> None:
        """Give the log up for the prefix that was received (§5.1). The MANIFEST decides."""
        self._flush()
        source, table = self.incoming.source, self.incoming.table
        assert source is not None, f"install of {point} before it was read back"
        assert table is not None, f"install of {point} with nothing received"
        at = Point(point.index, point.term, point.log_time)
        assert table.point == at, f"install of {at}, received was {table.point}"
        dropped = self._segments
        entries = self.incoming.move(self.prefix)
        manifest = attrs.evolve(
            self._manifest, compaction=at, start=at, files=tuple(entries), epoch=table.epoch
        )
        self._dirty = False
        self._start_segment((), 0, manifest)
        self.prefix.replace(entries, source.items_files)
        self.incoming.discard()
        for one in reversed(dropped):
            self._files.unlink(one.name)
        self._files.sync_dir(SUBDIR)

    def _truncate_after(self, index: int) -> None:
        """Cut everything above `index`, which must end a batch."""
        self._flush()
        if index >= self.last_index:
            return
        assert index >= self.compaction.index, f"cut at {index}, compacted to {self.compaction}"
        # What is cut may have been acknowledged as durable: never again (bugs B7).
        self.durable_index = min(self.durable_index, index)
        keep = [one for one in self._segments if one.firsts and one.first_index <= index]
        dropped = self._segments[len(keep) :]
        if keep and keep[-1].last_index > index:
            keep[-1] = keep[-1].cut_after(self._files, index)
        assert (keep[-1].last_index if keep else self.start.index) == index, keep
        if self._active not in dropped:
            self._sync_active()
        self._dirty = False
        self._start_segment(keep, 0)
        for one in reversed(dropped):
            self._files.unlink(one.name)
        if dropped:
            self._files.sync_dir(SUBDIR)
        if keep:
            self._shear(keep[-1])
        self.counters.truncations += 1


def _last_index(segment: Segment) -> int:
    return segment.last_index
