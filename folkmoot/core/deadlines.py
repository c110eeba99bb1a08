"""The deadlines that machines have set, earliest first.

Pure: no I/O, no clock, no randomness. Log time comes in as a number; nothing here knows a timer.
The multiplexer fires what is due before it applies an entry, and a server asks for the earliest to
know when a Tick is due.

A binary heap with lazy deletion. `_times` is the truth; the heap holds (time, resource id, key) for
each deadline in it and, beside those, remains of deadlines that were moved or cleared. Remains are
thrown away when they come to the top, and all at once when they outnumber the living.
"""

from __future__ import annotations

import heapq
from typing import Any

TIME_MAX = (1 << 63) - 1
"""Log times end here, in some 292 million years: a later deadline is set to this one."""
NEVER = 1 << 63
_SMALL = 64

Due = tuple[int, int, str]
"""(time in ms, resource id, key): also the order in which deadlines fire."""


class Deadlines:
    """One deadline per (resource, key).

    - Each deadline in `_times` has its item in the heap, except between `take_due` and `claim`.
    - The heap has at most twice as many items as there are deadlines, and a few.
    - `earliest` is never later than the earliest deadline: above it nothing is due. Costs one
      comparison.
    """

    __slots__ = ("_count", "_heap", "_times", "earliest")

    def __init__(self) -> None:
        self.earliest = NEVER
        self._heap: list[Due] = []
        self._times: dict[int, dict[str, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def set(self, resource_id: int, key: str, time: int) -> None:
        """Set or move the deadline of a key. A time out of range is brought into it."""
        if type(time) is not int or type(key) is not str:
            raise TypeError(
                f"deadline {key!r} at {time!r}: a key is a str, a time an int of milliseconds"
            )
        time = min(max(time, 0), TIME_MAX)
        times = self._times.get(resource_id)
        if times is None:
            times = self._times[resource_id] = {}
        before = times.get(key)
        if before == time:
            return
        if before is None:
            self._count += 1
        times[key] = time
        heapq.heappush(self._heap, (time, resource_id, key))
        if time < self.earliest:
            self.earliest = time
        self._sweep()

    def clear(self, resource_id: int, key: str) -> None:
        """Forget the deadline of a key, if it has one."""
        times = self._times.get(resource_id)
        if times is None or times.pop(key, None) is None:
            return
        if not times:
            del self._times[resource_id]
        self._count -= 1
        self._sweep()

    def drop(self, resource_id: int) -> None:
        """Forget all deadlines of a resource."""
        times = self._times.pop(resource_id, None)
        if times is not None:
            self._count -= len(times)
            self._sweep()

    def next(self) -> int | None:
        """Return the earliest deadline (ms of log time). Amortised O(log n)."""
        heap = self._heap
        while heap and not self._lives(heap[0]):
            heapq.heappop(heap)
        self.earliest = heap[0][0] if heap else NEVER
        return heap[0][0] if heap else None

    def take_due(self, time: int) -> list[Due]:
        """Take what is due at log time `time` out of the heap, in order, to be claimed one by one.

        What is set while these fire, even if it is due at once, waits for the next entry: a machine
        that always sets its deadline anew cannot keep the entry from ending.
        """
        heap = self._heap
        due: list[Due] = []
        while heap and heap[0][0] <= time:
            item = heapq.heappop(heap)
            # Set, cleared and set again to the same time: one deadline with two items, next to each
            # other.
            if self._lives(item) and (not due or due[-1] != item):
                due.append(item)
        self.earliest = heap[0][0] if heap else NEVER
        return due

    def claim(self, item: Due) -> bool:
        """Remove the deadline and say True, unless it was moved or cleared since `take_due`."""
        if not self._lives(item):
            return False
        self.clear(item[1], item[2])
        return True

    def snapshot(self) -> list[Any]:
        """All deadlines as [time, resource id, key], in the order in which they fire."""
        return sorted(
            [time, resource_id, key]
            for resource_id, times in self._times.items()
            for key, time in times.items()
        )

    def of(self, resource_id: int) -> list[Any]:
        """A resource's deadlines as [key, time], in order of key."""
        return [[key, time] for key, time in sorted(self._times.get(resource_id, {}).items())]

    def _lives(self, item: Due) -> bool:
        times = self._times.get(item[1])
        return times is not None and times.get(item[2]) == item[0]

    def _sweep(self) -> None:
        """Build the heap anew once more than half of it is remains: amortised O(1) per change."""
        if len(self._heap) <= 2 * self._count + _SMALL:
            return
        self._heap = [
            (time, resource_id, key)
            for resource_id, times in self._times.items()
            for key, time in times.items()
        ]
        heapq.heapify(self._heap)
        self.earliest = self._heap[0][0] if self._heap else NEVER
