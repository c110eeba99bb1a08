"""Keys in order, for listing by range: a list cut into short buckets.

Pure: no I/O, no clock, no randomness.

Order is that of Unicode code points, which is also the order of the UTF-8 bytes. A key costs one
search among the buckets' last keys and one move of at most `2 * _BUCKET` pointers, so nothing here
takes time in proportion to all keys, and the first listing of a million keys costs no more than
the tenth. (One sorted list would have to be sorted, or merged anew, before a listing: 30 ms for a
million keys, inside the server's loop.)

A search costs 2 us among a million keys, which is too much where a million keys come at once, at a
restore. `load` sorts them by thousands and pours each run into few large, ROUGH buckets. A rough
bucket is sorted and cut only when somebody comes to look into it. No step takes longer than a few
milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

_BUCKET = 512
_ROUGH_MAX = 16384
_LATE_MAX = 4096
"""Loaded keys that are collected before they are poured into buckets."""


class SortedKeys:
    """A set of strings that can be walked in order from any point.

    - No bucket is empty, and every key of one lies below every key of the next.
    - `_lasts[i]` is the greatest key of `_buckets[i]`.
    - A bucket is sorted, except a rough one: that is one with more than `2 * _BUCKET` keys. It is
      cut before anybody looks for a key in it.
    - `_late` holds what was loaded and is in no bucket yet.
    """

    __slots__ = ("_buckets", "_lasts", "_late")

    def __init__(self) -> None:
        self._buckets: list[list[str]] = []
        self._lasts: list[str] = []
        self._late: list[str] = []

    def load(self, key: str) -> None:
        """Add a key that is not there, as one of very many."""
        late = self._late
        late.append(key)
        if len(late) >= _LATE_MAX:
            self._pour()

    def add(self, key: str) -> None:
        """Add a key that is not there."""
        at = self._find(key)
        lasts = self._lasts
        if not lasts:
            self._buckets.append([key])
            lasts.append(key)
            return
        if at == len(lasts):
            at -= 1
            bucket = self._buckets[at]
            bucket.append(key)
            lasts[at] = key
        else:
            bucket = self._buckets[at]
            insort(bucket, key)
        if len(bucket) > 2 * _BUCKET:
            self._cut(at, _BUCKET)

    def remove(self, key: str) -> None:
        """Remove a key that is there."""
        at = self._find(key)
        bucket = self._buckets[at]
        position = bisect_left(bucket, key)
        assert bucket[position] == key, f"{key!r} is not there, {bucket[position]!r} is"
        del bucket[position]
        if not bucket:
            del self._buckets[at], self._lasts[at]
        else:
            self._lasts[at] = bucket[-1]

    def walk(self, start: str) -> Iterator[str]:
        """Yield the keys from `start` (inclusive) on; nothing else may be called meanwhile."""
        at = self._find(start)
        first = bisect_left(self._buckets[at], start) if at < len(self._buckets) else 0
        while at < len(self._buckets):
            if len(self._buckets[at]) > 2 * _BUCKET:
                self._cut(at, _BUCKET)
            bucket = self._buckets[at]
            for position in range(first, len(bucket)):
                yield bucket[position]
            at, first = at + 1, 0

    def _find(self, key: str) -> int:
        """Return which bucket has the key, or would, and sort it; above all: how many there are."""
        if self._late:
            self._pour()
        at = bisect_left(self._lasts, key)
        if at < len(self._lasts) and len(self._buckets[at]) > 2 * _BUCKET:
            self._cut(at, _BUCKET)
            at = bisect_left(self._lasts, key)
        return at

    def _pour(self) -> None:
        """Put what was loaded into its buckets, from the last to the first."""
        late, self._late = sorted(self._late), []
        if not self._lasts:
            self._buckets.append([])
            self._lasts.append(late[-1])
        self._lasts[-1] = max(self._lasts[-1], late[-1])
        stop = len(late)
        for at in range(len(self._lasts) - 1, -1, -1):
            start = bisect_right(late, self._lasts[at - 1]) if at else 0
            if start == stop:
                continue
            bucket = self._buckets[at]
            bucket += late[start:stop]
            stop = start
            if len(bucket) > _ROUGH_MAX:
                self._cut(at, _ROUGH_MAX // 2)
            elif len(bucket) <= 2 * _BUCKET:
                bucket.sort()

    def _cut(self, at: int, size: int) -> None:
        """Sort a bucket and cut it evenly, into parts of `size` or somewhat more."""
        bucket = self._buckets[at]
        bucket.sort()
        size = -(-len(bucket) // (len(bucket) // size))
        parts = [bucket[start : start + size] for start in range(0, len(bucket), size)]
        self._buckets[at : at + 1] = parts
        self._lasts[at : at + 1] = [part[-1] for part in parts]
