"""The log's segments, and MANIFEST, which says what they are.

What it is: appending, sealing, truncating and trimming, as steps on the disk that a crash leaves
either undone or done. What it is not: no fail-stop, no hard state, no numbers of writes: that is
`LogStore`'s, and so is the order in which all of it happens.

- SEALING: sync the segment; write and sync the next one's header; replace MANIFEST. That
  replacement is the moment. Before it the old segment is the last one, after it the new one is.
- TRUNCATION is sealing earlier: the segment that holds the last surviving batch is sealed at its
  end, a new one is started behind it, and the MANIFEST that says so drops the segments in between
  in the same step. Then their files are removed, newest first (bugs F5), and what was cut off is
  shorn. Nothing is overwritten, so a crash leaves either the log before the truncation, whole, or
  the log after it. The log before it may thus come back, as it was, if the crash comes before the
  MANIFEST: consensus copes with it as with any message that arrives late, because nothing that
  follows has been acknowledged.
- TRIMMING drops the oldest segments, once the compacted prefix speaks for them; RESTARTING drops
  all of them for a prefix that goes further. In both MANIFEST alone decides, too.

Who drives it: `LogStore`. Methods that say so are safe in any thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.storage.counters import Counters
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.hard_state import HardState
from folkmoot.core.storage.manifest import Manifest, SegmentEntry, replace_manifest
from folkmoot.core.storage.next_segment import NextSegment
from folkmoot.core.storage.recovery import start_segment
from folkmoot.core.storage.segment import HEADER_BYTES, RECORD_BYTES, SUBDIR, Segment


class SegmentedLog:
    """The segments of one directory.

    Invariants:
    - `durable_index <= last_index`; what is at or below `durable_index` survives a power cut;
    - indexes have no gap behind the start point, and terms never fall;
    - the last of `segments` is the active one, all others are sealed and durable in full;
    - `segments` is replaced, never changed in place, so a reader in another thread keeps a whole
      one; and it is replaced before the file of a segment that is dropped goes;
    - `manifest` is what MANIFEST says, durable.
    """

    def __init__(
        self,
        files: Files,
        config: StorageConfig,
        manifest: Manifest,
        segments: list[Segment],
        counters: Counters,
    ) -> None:
        self.manifest = manifest
        self.segments = segments
        self.durable_index = self.active.last_index
        """Highest index that survives a power cut."""
        self.next = NextSegment(
            files, max(one.segment_id for one in segments) + 1, config.segment_bytes
        )
        self._files = files
        self._config = config
        self._counters = counters
        self._dirty = False

    @property
    def active(self) -> Segment:
        """The segment that is appended to."""
        return self.segments[-1]

    @property
    def last_index(self) -> int:
        """Index of the last entry, durable or not."""
        return self.active.last_index

    # -- appending -----------------------------------------------------------------------------

    def append(self, batches: Sequence[Batch], state: HardState) -> None:
        """Put batches behind the log, for the next flush. `state` is the durable one."""
        active, durable = self.active, self.durable_index
        for batch in batches:
            # A hole here would spread to others later (bugs E8).
            assert batch.first_index == active.last_index + 1, (
                f"batch from {batch.first_index} behind index {active.last_index}"
            )
            assert active.last_term <= batch.term <= state.term, (
                f"batch of term {batch.term} behind term {active.last_term}, "
                f"the hard state is {state}"
            )
            if not active.fits(len(batch.data)):
                self._make_room(len(batch.data))
                active, durable = self.active, self.durable_index
            active.stage(batch, durable)

    def flush(self) -> None:
        """Write what was appended."""
        size_bytes = self.active.flush(self._files)
        if size_bytes:
            self._dirty = True
            self._counters.log_writes += 1
            self._counters.bytes_written += size_bytes

    def sync(self) -> None:
        """Make everything that was flushed durable, by at most one fdatasync."""
        index = self.last_index
        self._sync_active()
        # Only what was written before this sync, and only because it succeeded (bugs F9).
        self.durable_index = index

    @property
    def wants_mark(self) -> bool:
        """Say whether `mark` has something to do."""
        return bool(self.active.firsts) and not (self.active.marked or self._dirty)

    def mark(self) -> None:
        """Note behind the last record that it is durable. The note may get lost."""
        if self.wants_mark:
            self.active.mark(self._files)

    def _sync_active(self) -> None:
        if self._dirty:
            self._files.sync(self.active.name)
            self._counters.log_syncs += 1
            self._dirty = False

    def _make_room(self, batch_bytes: int) -> None:
        """Seal the active segment and start the next; or enlarge it, if it is empty."""
        self.flush()
        needed = HEADER_BYTES + RECORD_BYTES + batch_bytes
        if self.active.firsts:
            self._seal(needed)
        else:
            self._files.extend(self.active.name, needed)
            self.active.capacity = needed

    # -- sealing, truncating, trimming -----------------------------------------------------------

    def roll(self) -> None:
        """Seal the active segment where it is, unless it is empty."""
        if self.active.firsts:
            self.flush()
            self._seal(0)

    def truncate_after(self, index: int) -> None:
        """Cut everything above `index`, which must end a batch."""
        self.flush()
        if index >= self.last_index:
            return
        compaction = self.manifest.compaction
        assert index >= compaction.index, f"cut at {index}, compacted to {compaction}"
        # What is cut may have been acknowledged as durable: never again (bugs B7).
        self.durable_index = min(self.durable_index, index)
        keep = [one for one in self.segments if one.firsts and one.first_index <= index]
        dropped = self.segments[len(keep) :]
        if keep and keep[-1].last_index > index:
            keep[-1] = keep[-1].cut_after(self._files, index)
        end = keep[-1].last_index if keep else self.manifest.start.index
        assert end == index, f"cut at {index}, where the log would end at {end}"
        if self.active not in dropped:
            self._sync_active()
        self._dirty = False
        self._start_segment(self.manifest, keep, 0)
        self._remove(dropped)
        if keep:
            self._shear(keep[-1])
        self._counters.truncations += 1

    def trim(self, index: int) -> list[Segment]:
        """Drop the segments that end at or before `index`. Their files are the caller's now."""
        compaction = self.manifest.compaction
        assert index <= compaction.index, f"trim to {index}, compacted to {compaction}"
        dropped = [one for one in self.segments[:-1] if one.last_index <= index]
        if dropped:
            self.replace_manifest(
                attrs.evolve(
                    self.manifest,
                    start=dropped[-1].point,
                    segments=self.manifest.segments[len(dropped) :],
                )
            )
            self.segments = self.segments[len(dropped) :]
        return dropped

    def restart(self, manifest: Manifest) -> None:
        """Drop everything, and go on behind the start point of `manifest`, which says why."""
        dropped = self.segments
        self._dirty = False
        self._start_segment(manifest, (), 0)
        self.durable_index = manifest.start.index
        self._remove(dropped)

    def replace_manifest(self, replacement: Manifest) -> None:
        """Make MANIFEST say something else."""
        replace_manifest(self._files, replacement)
        self.manifest = replacement

    def _seal(self, needed: int) -> None:
        """Make the active segment durable in full, which is what sealed means; start the next."""
        self._sync_active()
        self.durable_index = self.last_index
        old = self.active
        self._start_segment(self.manifest, self.segments, needed)
        self._shear(old)

    def _start_segment(self, manifest: Manifest, keep: Sequence[Segment], needed: int) -> None:
        """Make `keep`, all sealed, and a new segment the log. `manifest` says all the rest."""
        previous = keep[-1] if keep else None
        before = previous.point if previous else manifest.start
        entry = SegmentEntry(self.next.segment_id, before.index + 1)
        allocated = self.next.made_bytes >= 0
        new = Segment(
            entry,
            previous.segment_id if previous else 0,
            previous.chain if previous else 0,
            before.term,
            manifest.cluster_id,
            manifest.node_id,
            max(self._config.segment_bytes, needed),
        )
        start_segment(self._files, new, allocated=allocated)
        sealed = tuple(one.entry(sealed=True) for one in keep)
        self.replace_manifest(attrs.evolve(manifest, segments=(*sealed, entry)))
        self.segments = [*keep, new]
        self.next.taken()
        self._counters.segments_started += 1

    def _remove(self, dropped: Sequence[Segment]) -> None:
        """Remove the files of segments that were dropped from the log's end, newest first."""
        for one in reversed(dropped):
            self._files.unlink(one.name)
        if dropped:
            self._files.sync_dir(SUBDIR)

    def _shear(self, sealed: Segment) -> None:
        """Give the space behind a sealed segment's end back, and its handle."""
        self._files.truncate(sealed.name, sealed.end)
        self._files.release(sealed.name)

    # -- looking at the segments -----------------------------------------------------------------

    def boundary_from(self, index: int) -> int | None:
        """Return the end of the first sealed segment that ends at or behind `index`, if any.

        Safe in any thread.
        """
        segments = self.segments[:-1]
        at = bisect_left(segments, index, key=_last_index)
        return segments[at].last_index if at < len(segments) else None

    def trim_target(self, keep_bytes: int, keep_bytes_max: int, needed: int | None) -> int | None:
        """Return up to where `trim` may go, or None where that is nowhere.

        At least `keep_bytes` of log stay, and what a follower at `needed` needs (None: there is
        none), but of that no more than `keep_bytes_max`. Safe in any thread.
        """
        manifest, kept_bytes = self.manifest, 0
        for one in reversed(self.segments):
            boundary = one.first_index - 1
            kept_bytes += one.end
            if boundary <= manifest.start.index:
                return None
            is_enough = kept_bytes >= keep_bytes and (needed is None or boundary <= needed)
            if boundary <= manifest.compaction.index and (
                is_enough or kept_bytes >= keep_bytes_max
            ):
                return boundary
        return None


def _last_index(segment: Segment) -> int:
    return segment.last_index
