"""The log as consensus sees it: which index has which term, where batches end, recent bytes.

Pure: no I/O, no clock, no randomness. Not the storage: nothing here is durable, and old batches are
known only by their last index, term and log time. The core writes through this view and the server
reads from it what it applies; whatever is not in memory, the storage has.

A batch is never split or joined, so every index that consensus compares, acknowledges, commits or
cuts at is the last index of a batch: a BOUNDARY. Where the log starts is one, too.

    gone                      known by number                 in memory
    .................... | [=====][==][=====][===][=====] ... [==][====][=]
             start_index ^   ^ first_index            cached batches   last_index ^

What is gone is in the compacted prefix, which may reach further than `start_index`: batches that it
holds already stay in the log for followers that lag (core/storage says how long).

Source: §3.5 (log matching); §5.1 (what remains of what is gone: its last index and term).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from folkmoot.core.batch import FLAG_CONFIGURATION, Batch

CACHE_BYTES = 32 << 20


class LogView:
    """Boundaries, terms and log times of the whole log behind its start; bytes of its end.

    - Indexes above `start_index` are contiguous (bug E8); terms and log times never fall.
    - Cached batches are a suffix of the log, and everything that is not yet applied here is among
      them, except after a restart: so a server rarely reads what it just wrote.
    - `term_at` is known from `start_index` on: the last entry before the log stays comparable.
    """

    __slots__ = (
        "_cache",
        "_cache_bytes",
        "_cache_first",
        "_cache_limit",
        "_ends",
        "_keep_after",
        "_run_starts",
        "_run_terms",
        "_times",
        "configuration_batches",
        "last_index",
        "last_term",
        "start_index",
        "start_log_time",
        "start_term",
    )

    start_index: int
    """What stands before the first entry that the log still has: index, term, log time in ms."""
    start_term: int
    start_log_time: int
    last_index: int
    last_term: int
    configuration_batches: list[Batch]
    """The batches in the log that hold a configuration, in order. Few, and kept in memory."""
    _ends: array[int]
    """Last index of each batch; the position in here is the batch's POSITION."""
    _times: array[int]
    _run_starts: list[int]
    """First index of each run of equal terms."""
    _run_terms: list[int]
    _cache: dict[int, Batch]
    """Last index -> batch, for every position from `_cache_first` on."""
    _cache_first: int
    _cache_bytes: int
    _keep_after: int

    def __init__(
        self,
        *,
        start_index: int = 0,
        start_term: int = 0,
        start_log_time: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._cache_limit = cache_bytes
        self.reset(start_index, start_term, start_log_time)

    @classmethod
    def recovered(
        cls,
        start_index: int,
        start_term: int,
        batches: Iterable[Batch],
        *,
        start_log_time: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> LogView:
        """Build the view of what storage holds: the batches behind `start_index`, in order."""
        log = cls(
            start_index=start_index,
            start_term=start_term,
            start_log_time=start_log_time,
            cache_bytes=cache_bytes,
        )
        for batch in batches:
            log._keep_after = batch.last_index
            log.append(batch)
        log._keep_after = start_index
        return log

    @property
    def first_index(self) -> int:
        """The first index that the log can still give away as an entry."""
        return self.start_index + 1

    @property
    def last_log_time(self) -> int:
        """The log time of the last batch, in milliseconds."""
        return self._times[-1] if self._times else self.start_log_time

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
        self._cache[batch.last_index] = batch
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
        for end in self._ends[max(count, self._cache_first) :]:
            self._cache_bytes -= len(self._cache.pop(end).data)
        self._cache_first = min(self._cache_first, count)
        del self._ends[count:]
        del self._times[count:]
        runs = bisect_right(self._run_starts, index)
        del self._run_starts[runs:]
        del self._run_terms[runs:]
        while self.configuration_batches and self.configuration_batches[-1].last_index > index:
            self.configuration_batches.pop()
        self.last_index = index
        self.last_term = self._run_terms[-1] if self._run_terms else self.start_term

    def compact_to(self, index: int) -> None:
        """Forget every batch up to `index`, a boundary. Costs in proportion to what goes."""
        assert self.is_boundary(index), f"start at {index}, which is no boundary of the log"
        count = bisect_right(self._ends, index)
        for end in self._ends[self._cache_first : count]:
            self._cache_bytes -= len(self._cache.pop(end).data)
        self._cache_first = max(self._cache_first, count)
        self.start_term, self.start_log_time = self.term_at(index), self.log_time_at(index)
        runs = bisect_right(self._run_starts, index)
        if runs and self._last_of_run(runs - 1) > index:
            runs -= 1
            self._run_starts[runs] = index + 1  # what stays of a run that reaches over `index`
        del self._run_starts[:runs]
        del self._run_terms[:runs]
        kept = [batch for batch in self.configuration_batches if batch.last_index > index]
        self.configuration_batches = kept
        self.start_index = index
        if 2 * count >= len(self._ends):
            self._remove_gone(count)

    def _remove_gone(self, count: int) -> None:
        """Move what stays to the front of the arrays, once it is no more than what is gone.

        Until then the ends of what is gone stay before the others. They lie below every index that
        is looked up, so nothing that is found depends on them.
        """
        del self._ends[:count]
        del self._times[:count]
        self._cache_first -= count

    def reset(self, index: int, term: int, log_time: int) -> None:
        """Forget everything: the log is empty, and starts behind `index`."""
        self.start_index = self.last_index = index
        self.start_term = self.last_term = term
        self.start_log_time = log_time
        self.configuration_batches = []
        self._ends, self._times = array("Q"), array("Q")
        self._run_starts, self._run_terms = [], []
        self._cache, self._cache_first, self._cache_bytes = {}, 0, 0
        self._keep_after = index

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
            end = self._ends[self._cache_first]
            if end > self._keep_after:
                return
            self._cache_bytes -= len(self._cache.pop(end).data)
            self._cache_first += 1

    # -- terms and boundaries ------------------------------------------------------------------

    def term_at(self, index: int) -> int:
        """Return the term of `index`, which lies between start_index and last_index."""
        assert self.start_index <= index <= self.last_index, (
            f"term of {index} asked of a log {self.start_index}..{self.last_index}"
        )
        if index == self.start_index:
            return self.start_term
        if index >= self._run_starts[-1]:
            return self.last_term
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def is_boundary(self, index: int) -> bool:
        """Return whether a batch ends at `index`, or the log starts behind it."""
        if index in (self.last_index, self.start_index):
            return True
        if not self.start_index < index < self.last_index:
            return False
        return self._ends[bisect_left(self._ends, index)] == index

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
        """Return the last index known to have `term`, be it `start_index`; 0 when none is."""
        run = bisect_left(self._run_terms, term)
        if run == len(self._run_terms) or self._run_terms[run] != term:
            return self.start_index if term == self.start_term else 0
        return self._last_of_run(run)

    def _last_of_run(self, run: int) -> int:
        if run + 1 < len(self._run_starts):
            return self._run_starts[run + 1] - 1
        return self.last_index

    def log_time_at(self, index: int) -> int:
        """Return the log time of the batch that holds `index`, or of what the log starts behind."""
        if index <= self.start_index:
            return self.start_log_time
        return self._times[bisect_left(self._ends, index)]

    # -- bytes ---------------------------------------------------------------------------------

    def batches_from(self, index: int, bytes_max: int, count_max: int) -> list[Batch] | None:
        """Return batches from `index` on, which starts one; None when they are not in memory.

        At least one batch comes, however large it is; more come only within both limits.
        """
        position = bisect_left(self._ends, index)
        if position < self._cache_first:
            return None
        cache = self._cache
        first = cache[self._ends[position]]
        assert first.first_index == index, f"{index} is inside batch {first.first_index}"
        found = [first]
        size_bytes = len(first.data)
        for end in self._ends[position + 1 : position + count_max]:
            batch = cache[end]
            size_bytes += len(batch.data)
            if size_bytes > bytes_max:
                break
            found.append(batch)
        return found

    def get(self, index: int) -> Batch | None:
        """Return the batch that holds `index`; None when it is not in memory (ask the storage)."""
        if not self.first_index <= index <= self.last_index:
            return None
        return self._cache.get(self._ends[bisect_left(self._ends, index)])

    def slice(self, first: int, last: int) -> list[Batch] | None:
        """Return the batches that hold first..last; None when one of them is not in memory."""
        assert self.first_index <= first <= last <= self.last_index, (
            f"{first}..{last} asked of a log {self.first_index}..{self.last_index}"
        )
        start = bisect_left(self._ends, first)
        if start < self._cache_first:
            return None
        cache = self._cache
        return [cache[end] for end in self._ends[start : bisect_left(self._ends, last) + 1]]

    def _first_of(self, position: int) -> int:
        return self._ends[position - 1] + 1 if position else self.first_index
