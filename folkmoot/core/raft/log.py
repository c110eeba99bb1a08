"""The log as consensus sees it: which index has which term, where batches end, recent bytes.

Pure: no I/O, no clock, no randomness. Not the storage: nothing here is durable, and old batches are
known only by their last index, term and log time. The core writes through this view and the server
reads from it what it applies; whatever is not in memory, the storage has.

A batch is never split or joined, so every index that consensus compares, acknowledges, commits or
cuts at is the last index of a batch: a BOUNDARY. The end of the compacted prefix is one, too.

    compacted prefix          known by number                 in memory
    .................... | [=====][==][=====][===][=====] ... [==][====][=]
        compaction_index ^   ^ first_index            cached batches   last_index ^

Source: §3.5 (log matching); §5.1 (what remains of a compacted prefix: its last index and term).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from folkmoot.core.batch import FLAG_CONFIGURATION, Batch

CACHE_BYTES = 32 << 20


class LogView:
    """Boundaries, terms and log times of the whole log above the prefix; bytes of its end.

    - Indexes above `compaction_index` are contiguous; terms and log times never fall.
    - Cached batches are a suffix of the log, and everything that is not yet applied here is among
      them, except after a restart: so a server rarely reads what it just wrote.
    - `term_at` is known from `compaction_index` on: the last entry before the log stays comparable.
    """

    __slots__ = (
        "_cache",
        "_cache_bytes",
        "_cache_first",
        "_cache_limit",
        "_compaction_log_time",
        "_ends",
        "_keep_after",
        "_run_starts",
        "_run_terms",
        "_times",
        "compaction_index",
        "compaction_term",
        "configuration_batches",
        "last_index",
        "last_term",
    )

    def __init__(
        self,
        *,
        compaction_index: int = 0,
        compaction_term: int = 0,
        compaction_log_time: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.compaction_index = compaction_index
        self.compaction_term = compaction_term
        self.last_index = compaction_index
        self.last_term = compaction_term
        self.configuration_batches: list[Batch] = []
        """The batches in the log that hold a configuration, in order. Few, and kept in memory."""
        self._compaction_log_time = compaction_log_time
        self._ends = array("Q")
        """Last index of each batch; the position in here is the batch's POSITION."""
        self._times = array("Q")
        self._run_starts: list[int] = []
        """First index of each run of equal terms."""
        self._run_terms: list[int] = []
        self._cache: dict[int, Batch] = {}
        """Position -> batch, for every position from `_cache_first` on."""
        self._cache_first = 0
        self._cache_bytes = 0
        self._cache_limit = cache_bytes
        self._keep_after = compaction_index

    @classmethod
    def recovered(
        cls,
        compaction_index: int,
        compaction_term: int,
        batches: Iterable[Batch],
        *,
        compaction_log_time: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> LogView:
        """Build the view of what storage holds: the batches above the prefix, in order."""
        log = cls(
            compaction_index=compaction_index,
            compaction_term=compaction_term,
            compaction_log_time=compaction_log_time,
            cache_bytes=cache_bytes,
        )
        for batch in batches:
            log._keep_after = batch.last_index
            log.append(batch)
        log._keep_after = compaction_index
        return log

    @property
    def first_index(self) -> int:
        """The first index that the log can still give away as an entry."""
        return self.compaction_index + 1

    @property
    def last_log_time(self) -> int:
        """The log time of the last batch, in milliseconds."""
        return self._times[-1] if self._times else self._compaction_log_time

    # -- writing -------------------------------------------------------------------------------

    def append(self, batch: Batch) -> None:
        """Add the next batch."""
        last = self.last_index
        assert batch.first_index == last + 1, f"batch from {batch.first_index} after index {last}"
        assert batch.term >= self.last_term, f"term {batch.term} after term {self.last_term}"
        assert batch.log_time >= self.last_log_time, (
            f"log time {batch.log_time} after {self.last_log_time}"
        )
        if batch.term != self.last_term or not self._run_terms:
            self._run_starts.append(batch.first_index)
            self._run_terms.append(batch.term)
            self.last_term = batch.term
        self._cache[len(self._ends)] = batch
        self._cache_bytes += len(batch.data)
        self._ends.append(batch.last_index)
        self._times.append(batch.log_time)
        self.last_index = batch.last_index
        if batch.flags & FLAG_CONFIGURATION:
            self.configuration_batches.append(batch)
        if self._cache_bytes > self._cache_limit:
            self._evict()

    def truncate_after(self, index: int) -> None:
        """Forget every batch after `index`, which must be a boundary."""
        assert self.is_boundary(index), f"cut at {index}, which is inside a batch"
        count = bisect_right(self._ends, index)
        for position in range(max(count, self._cache_first), len(self._ends)):
            self._cache_bytes -= len(self._cache.pop(position).data)
        self._cache_first = min(self._cache_first, count)
        del self._ends[count:]
        del self._times[count:]
        runs = bisect_right(self._run_starts, index)
        del self._run_starts[runs:]
        del self._run_terms[runs:]
        while self.configuration_batches and self.configuration_batches[-1].last_index > index:
            self.configuration_batches.pop()
        self.last_index = index
        self.last_term = self._run_terms[-1] if self._run_terms else self.compaction_term

    def applied(self, index: int) -> None:
        """Let go of the bytes up to `index` when the cache is full."""
        self._keep_after = index

    def limit_cache(self, cache_bytes: int) -> None:
        """Set how many bytes of batches are kept in memory."""
        self._cache_limit = cache_bytes
        self._evict()

    def _evict(self) -> None:
        """Drop the oldest cached batches that are applied, down to the limit."""
        while self._cache_bytes > self._cache_limit:
            batch = self._cache.get(self._cache_first)
            if batch is None or batch.last_index > self._keep_after:
                return
            del self._cache[self._cache_first]
            self._cache_first += 1
            self._cache_bytes -= len(batch.data)

    # -- terms and boundaries ------------------------------------------------------------------

    def term_at(self, index: int) -> int:
        """Return the term of `index`, which lies between compaction_index and last_index."""
        assert self.compaction_index <= index <= self.last_index, (
            f"term of {index} asked of a log {self.compaction_index}..{self.last_index}"
        )
        if index == self.compaction_index:
            return self.compaction_term
        if index >= self._run_starts[-1]:
            return self.last_term
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def is_boundary(self, index: int) -> bool:
        """Return whether a batch, or the compacted prefix, ends at `index`."""
        if index in (self.last_index, self.compaction_index):
            return True
        position = bisect_left(self._ends, index)
        return position < len(self._ends) and self._ends[position] == index

    def batch_first(self, index: int) -> int:
        """Return the first index of the batch that holds `index`."""
        return self._first_of(bisect_left(self._ends, index))

    def batch_last(self, index: int) -> int:
        """Return the last index of the batch that holds `index`."""
        return self._ends[bisect_left(self._ends, index)]

    def first_of_term_at(self, index: int) -> int:
        """Return the first index of the run of equal terms that `index` belongs to (§3.5)."""
        assert self.first_index <= index <= self.last_index, (
            f"run of {index} asked of a log {self.first_index}..{self.last_index}"
        )
        return self._run_starts[bisect_right(self._run_starts, index) - 1]

    def last_of_term(self, term: int) -> int:
        """Return the last index that has `term`, or 0 when the log above the prefix has none."""
        run = bisect_left(self._run_terms, term)
        if run == len(self._run_terms) or self._run_terms[run] != term:
            return 0
        if run + 1 < len(self._run_starts):
            return self._run_starts[run + 1] - 1
        return self.last_index

    def log_time_at(self, index: int) -> int:
        """Return the log time of the batch that holds `index`, or of the prefix's end."""
        if index <= self.compaction_index:
            return self._compaction_log_time
        return self._times[bisect_left(self._ends, index)]

    # -- bytes ---------------------------------------------------------------------------------

    def batches_from(self, index: int, bytes_max: int, count_max: int) -> list[Batch] | None:
        """Return batches from `index` on, which starts one; None when it is not in memory.

        At least one batch comes, however large it is; more come only within both limits.
        """
        position = bisect_left(self._ends, index)
        first = self._cache.get(position)
        if first is None:
            return None
        assert first.first_index == index, f"{index} is inside batch {first.first_index}"
        found = [first]
        size_bytes = len(first.data)
        for later in range(position + 1, min(position + count_max, len(self._ends))):
            batch = self._cache[later]
            size_bytes += len(batch.data)
            if size_bytes > bytes_max:
                break
            found.append(batch)
        return found

    def get(self, index: int) -> Batch | None:
        """Return the batch that holds `index`; None when it is not in memory (ask the storage)."""
        if not self.first_index <= index <= self.last_index:
            return None
        return self._cache.get(bisect_left(self._ends, index))

    def slice(self, first: int, last: int) -> list[Batch] | None:
        """Return the batches that hold first..last; None when one of them is not in memory."""
        assert self.first_index <= first <= last <= self.last_index, (
            f"{first}..{last} asked of a log {self.first_index}..{self.last_index}"
        )
        start = bisect_left(self._ends, first)
        if start < self._cache_first:
            return None
        cache = self._cache
        return [cache[i] for i in range(start, bisect_left(self._ends, last) + 1)]

    def _first_of(self, position: int) -> int:
        return self._ends[position - 1] + 1 if position else self.first_index
