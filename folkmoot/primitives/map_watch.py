"""What a watch of a map tells, and how a map is read at one revision.

The client's half, for `map.py`; driven by `_watch.py`. No clock, no randomness, and no I/O but what
the resource does.

READING PAGES AT ONE REVISION. A map is read page by page, in the order of its keys, while others go
on changing it. After each page, what has been read is exactly what the map held below the boundary
(the first key that has not been read) at the index of that page:

    - a page that was read at r brings its own keys as they were at r;
    - of what happened up to r, changes below the old boundary are folded in, in log order. Changes
      within the page are part of it, and those beyond it will be part of a later page, which is
      read at r or later.

So after the last page it is the whole range, at the index of that page.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

from folkmoot.core.types import Consistency
from folkmoot.primitives._values import Values
from folkmoot.primitives._watch import Backlog, Event, Resync
from folkmoot.primitives.map_machine import PAGE_KEYS_MAX
from folkmoot.primitives.map_types import Changed, Deleted, MapChange, Range

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

V = TypeVar("V")


class MapSource(Generic[V]):
    """A range of a map, for its watches: what an event means, and what the range holds now."""

    events: Mapping[str, bool] = {"set": True, "removed": True, "expired": True, "cleared": False}

    def __init__(self, resource: Resource, where: Range, values: Values[V]) -> None:
        self.filter = where.filter()
        self._resource = resource
        self._where = where
        self._values = values

    def change(self, event: Event) -> MapChange[V]:
        """Return what the reader of a watch gets. Raises DecodeError."""
        if event.kind == "cleared":
            return Resync({}, event.index)
        key, old = event.payload[0], event.payload[-1]
        was = None if old is None else self._values.decode(key, old)
        if event.kind == "set":
            value = self._values.decode(key, event.payload[1])
            return Changed(key, value, was, event.index)
        reason: Literal["removed", "expired"] = "expired" if event.kind == "expired" else "removed"
        return Deleted(key, cast("V", was), reason, event.index)

    async def present(self, since: int, backlog: Backlog) -> MapChange[V]:
        """Read the range at one index >= `since`. Raises DecodeError."""
        found, revision = await read_range(self._resource, self._where, since, backlog)
        values = {key: self._values.decode(key, value) for key, value in found.items()}
        return Resync(values, revision)


class MapListing:
    """A range of a map, to be read once: with or without values, not beyond `limit` keys."""

    events = MapSource.events

    def __init__(
        self, resource: Resource, where: Range, *, with_values: bool, limit: int | None
    ) -> None:
        self.filter = where.filter()
        self._resource = resource
        self._where = where
        self._with_values = with_values
        self._limit = limit

    def change(self, event: Event) -> Found:
        """Never called: a listing is over once the state has been read."""
        raise NotImplementedError(f"a listing was asked what {event} means")

    async def present(self, since: int, backlog: Backlog) -> Found:
        """Read the range at one index >= `since`."""
        return await read_range(
            self._resource, self._where, since, backlog, self._with_values, self._limit
        )


Found = tuple[dict[str, bytes], int]
"""Keys in order with their values (b"" where they were not asked for), and the index of that."""


async def read_range(
    resource: Resource,
    where: Range,
    since: int,
    backlog: Backlog,
    with_values: bool = True,
    limit: int | None = None,
) -> Found:
    """Read a range at one index >= `since`, as the module's docstring explains."""
    found: dict[str, bytes] = {}
    boundary = where.start
    more = True
    while more and (limit is None or len(found) < limit):
        # Behind `since`, which this session has seen, any server will do, and none needs a round.
        (keys, values, more), since = await resource.query(
            "page",
            *(where.prefix, boundary, where.stop, limit or PAGE_KEYS_MAX, with_values),
            consistency=Consistency.SEQUENTIAL,
            at_least=since,
        )
        _fold(found, where, boundary, backlog.take_until(since))
        found.update(zip(keys, values or repeat(b""), strict=False))
        if more:
            boundary = keys[-1] + "\0"
    return dict(sorted(found.items())[:limit]), since


def _fold(found: dict[str, bytes], where: Range, boundary: str, events: list[Event]) -> None:
    """Bring what was read, which is all below `boundary`, forward over these events."""
    for event in events:
        if event.kind == "cleared":
            found.clear()
            continue
        key = event.payload[0]
        if key < boundary and key in where:
            if event.kind == "set":
                found[key] = event.payload[1]
            else:
                found.pop(key, None)
