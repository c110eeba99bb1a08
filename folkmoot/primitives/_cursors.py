"""The durable cursors of a topic, and how far the slowest of them is.

Pure: no I/O, no clock, no randomness. Driven by the topic's machine, which says who may move one.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator
from heapq import heapify, heappop, heappush, heapreplace

import attrs

from folkmoot.primitives._seat import Seat


@attrs.define(eq=False)
class Cursor:
    """A durable position: everything up to `acknowledged` has been dealt with."""

    acknowledged: int
    """A revision; it never falls."""
    seat: Seat
    is_deleted: bool = False


class Cursors:
    """Cursors by name, in order of creation.

    - Each has an entry in the heap: (a position that it has reached or passed, number, cursor). So
      an acknowledgement touches no heap; its entry is brought up to date when it comes to the top,
      once per acknowledgement at most.
    - At most half of the heap are entries of cursors that were deleted.
    - The heap follows from the cursors: it is no state, and servers may differ in it.
    """

    __slots__ = ("_by_name", "_heap", "_numbered")

    def __init__(self) -> None:
        self._by_name: dict[str, Cursor] = {}
        self._heap: list[tuple[int, int, Cursor]] = []
        self._numbered = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Cursor]:
        return iter(self._by_name.values())

    def items(self) -> ItemsView[str, Cursor]:
        return self._by_name.items()

    def get(self, name: str) -> Cursor | None:
        return self._by_name.get(name)

    def add(self, name: str, cursor: Cursor) -> None:
        """Take a new cursor, whose name is free."""
        assert name not in self._by_name, f"there is a cursor {name!r} already"
        self._by_name[name] = cursor
        self._numbered += 1
        heappush(self._heap, (cursor.acknowledged, self._numbered, cursor))

    def delete(self, name: str) -> Cursor | None:
        """Forget a cursor and return it; None where there is none."""
        cursor = self._by_name.pop(name, None)
        if cursor is not None:
            cursor.is_deleted = True
            if len(self._heap) > 2 * len(self._by_name):
                self._heap = [entry for entry in self._heap if not entry[2].is_deleted]
                heapify(self._heap)
        return cursor

    def lowest(self) -> int | None:
        """Return what all cursors have acknowledged; None where there is none."""
        heap = self._heap
        while heap:
            position, number, cursor = heap[0]
            if cursor.is_deleted:
                heappop(heap)
            elif position < cursor.acknowledged:
                heapreplace(heap, (cursor.acknowledged, number, cursor))
            else:
                return position
        return None
