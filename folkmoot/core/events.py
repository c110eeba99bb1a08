"""A session's events that its client has not acknowledged.

Pure: no I/O, no clock, no randomness. Part of the replicated session (protocol: session events), so
any server can take the client over. What machines publish to a session at one index is one EVENT
BATCH; batches are chained: each names the one before it.

THE CHAIN. `previous` of a batch is an index above which, up to the batch itself, there is nothing
that the client still needs. A client that has received everything up to `last` takes a batch with
`previous <= last < index`, has seen one with `index <= last`, and has missed something where
`previous > last`. Usually `previous` is exactly the batch before. It lies further back only after
events were dropped (see `drop`), for nobody knows which of them had reached the client before.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs

KEPT = 0
"""The source of an event that is never dropped."""


@attrs.define(eq=False)
class EventBatch:
    """All events for one session at one index."""

    index: int
    previous: int
    events: list[bytes]
    sources: list[int]
    """Beside each event: the resource that published it, or KEPT."""


class PendingEvents:
    """The event batches that a session has not acknowledged, oldest first.

    - Indexes rise, each `previous` is below its index and not below the index of the batch before
      it.
    - `acked` <= `last`; every pending batch has `acked` < index <= `last`.
    - `count` and `size_bytes` are those of the pending events.
    """

    __slots__ = ("_batches", "acked", "count", "last", "size_bytes")

    def __init__(self) -> None:
        self._batches: deque[EventBatch] = deque()
        self.acked = 0
        self.last = 0
        """Index of the newest batch: what the next one names as its previous."""
        self.count = 0
        self.size_bytes = 0

    def add(self, index: int, event: bytes, source: int) -> None:
        """Add one encoded event of the entry `index`, droppable unless `source` is KEPT."""
        self.count += 1
        self.size_bytes += len(event)
        if self.last == index and self._batches:
            batch = self._batches[-1]
            batch.events.append(event)
            batch.sources.append(source)
            return
        assert index > self.last, f"an event of index {index} after one of index {self.last}"
        self._batches.append(EventBatch(index, self.last, [event], [source]))
        self.last = index

    def acknowledge(self, event_index: int) -> None:
        """Forget all up to `event_index`. Above what was published it counts as all of that."""
        event_index = min(event_index, self.last)
        if event_index <= self.acked:
            return
        self.acked = event_index
        batches = self._batches
        while batches and batches[0].index <= event_index:
            batch = batches.popleft()
            self.count -= len(batch.events)
            self.size_bytes -= sum(map(len, batch.events))

    def after(self, event_index: int) -> list[tuple[int, int, list[bytes]]]:
        """Return the pending batches above `event_index` as (index, previous index, events).
        O(their number).
        """
        found: list[tuple[int, int, list[bytes]]] = []
        for batch in reversed(self._batches):
            if batch.index <= event_index:
                break
            found.append((batch.index, batch.previous, batch.events))
        found.reverse()
        return found

    def drop(self) -> set[int]:
        """Drop every event that may be dropped, and return the resources that they came from.

        The chain is closed over the gaps.
        """
        dropped: set[int] = set()
        remaining: deque[EventBatch] = deque()
        self.count = self.size_bytes = 0
        self.last = self.acked
        for batch in self._batches:
            dropped.update(batch.sources)
            events = [
                event
                for event, source in zip(batch.events, batch.sources, strict=True)
                if source == KEPT
            ]
            if events:
                remaining.append(EventBatch(batch.index, self.last, events, [KEPT] * len(events)))
                self.last = batch.index
                self.count += len(events)
                self.size_bytes += sum(map(len, events))
        self._batches = remaining
        dropped.discard(KEPT)
        return dropped

    def snapshot(self) -> list[Any]:
        """Return plain data: [acked, last, [[index, previous, events, sources], ...]]."""
        batches = [[b.index, b.previous, b.events, b.sources] for b in self._batches]
        return [self.acked, self.last, batches]

    def restore(self, data: list[Any]) -> None:
        """Take what `snapshot` gave. Called once, on an empty object."""
        self.acked, self.last, batches = data
        for fields in batches:
            batch = EventBatch(*fields)
            self._batches.append(batch)
            self.count += len(batch.events)
            self.size_bytes += sum(map(len, batch.events))
