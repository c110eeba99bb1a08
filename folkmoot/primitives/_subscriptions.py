"""Who wants to hear of which keys: an index from filters to subscribers.

Pure: no I/O, no clock, no randomness.

The same index stands on both sides. A machine keeps SESSIONS in it, as a part of its replicated
state: an event goes once to each session with a filter that fits, however many fit. A client's
feed keeps its WATCHES in it, and hands out to them what arrived once.

A machine whose retention is ENTRIES gives each filter its OWNER, the index of the entry that set
it, and is handed it back when the filter goes. For all others it is 0, and means nothing.

A filter is a pair of `KEY` and a key, or `PREFIX` and a prefix; the prefix "" is everything, which
is all that resources without keys need.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from folkmoot.core.errors import BadCommand, LimitExceeded

KEY = "key"
PREFIX = "prefix"
FILTERS_MAX = 10_000
"""Filters of one subscriber on one resource; a further one is answered with LimitExceeded."""

Filter = tuple[str, str]
EVERYTHING: Filter = (PREFIX, "")


class Subscriptions:
    """Subscribers (numbers: session ids, or a client's watches) and the filters that they set.

    - The subscribers of a filter stand in rising order, so that the order of publishing depends on
      the state alone, also after a restore.
    - `_lengths` counts the prefixes of each length: a key is looked up once per length.
    """

    __slots__ = ("_filters", "_keys", "_lengths", "_prefixes")

    def __init__(self) -> None:
        self._filters: dict[int, dict[Filter, int]] = {}  # subscriber -> filter -> owner
        self._keys: dict[str, list[int]] = {}
        self._prefixes: dict[str, list[int]] = {}
        self._lengths: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._filters)

    def add(self, subscriber: int, kind: str, text: str, owner: int = 0) -> bool:
        """Add a filter; say whether it is new. Nothing changes where it is set already.

        Raises BadCommand for an unknown kind and LimitExceeded for one filter too many.
        """
        table = self._table(kind)
        filters = self._filters.get(subscriber, {})
        if (kind, text) in filters:
            return False
        if len(filters) >= FILTERS_MAX:
            raise LimitExceeded(
                f"session {subscriber} watches {len(filters)} keys and prefixes of this resource "
                "one by one: watch a common prefix instead"
            )
        filters[kind, text] = owner
        self._filters[subscriber] = filters
        subscribers = table.setdefault(text, [])
        if kind == PREFIX and not subscribers:
            self._lengths[len(text)] = self._lengths.get(len(text), 0) + 1
        insort(subscribers, subscriber)
        return True

    def remove(self, subscriber: int, kind: str, text: str) -> list[int]:
        """Remove a filter; return its owner, or nothing where it is not set.

        Raises BadCommand for an unknown kind.
        """
        table = self._table(kind)
        filters = self._filters.get(subscriber, {})
        if (kind, text) not in filters:
            return []
        owner = filters.pop((kind, text))
        if not filters:
            del self._filters[subscriber]
        subscribers = table[text]
        del subscribers[bisect_left(subscribers, subscriber)]
        if not subscribers:
            del table[text]
            if kind == PREFIX:
                self._forget_length(len(text))
        return [owner]

    def drop(self, subscriber: int) -> list[int]:
        """Remove all filters of a subscriber; return their owners, one per filter."""
        filters = self.filters(subscriber)
        return [owner for where in filters for owner in self.remove(subscriber, *where)]

    def matching(self, key: str = "") -> Sequence[int]:
        """Return the subscribers of `key`, each once and in rising order. Not to be changed."""
        found: Sequence[int] = self._keys.get(key, ())
        merged = False
        for length in self._lengths:
            more = self._prefixes.get(key[:length]) if length <= len(key) else None
            if more is not None:
                merged = merged or bool(found)
                found = [*found, *more] if found else more
        return sorted(set(found)) if merged else found

    def has(self, kind: str, text: str) -> bool:
        """Say whether anybody has set this filter. Raises BadCommand for an unknown kind."""
        return text in self._table(kind)

    def everybody(self) -> list[int]:
        """Return all subscribers in rising order."""
        return sorted(self._filters)

    def filters(self, subscriber: int) -> list[Filter]:
        """Return what a subscriber has set, sorted."""
        return sorted(self._filters.get(subscriber, ()))

    def snapshot(self) -> Any:
        """Return all of it as plain data: [subscriber, [kind, text, owner], ...], rising.

        An owner of 0 is left out.
        """
        return [
            [
                subscriber,
                *(
                    [*where, owner] if owner else [*where]
                    for where, owner in sorted(self._filters[subscriber].items())
                ),
            ]
            for subscriber in self.everybody()
        ]

    def restore(self, data: Any) -> None:
        """Take what `snapshot` gave."""
        for subscriber, *filters in data:
            for where in filters:
                self.add(subscriber, *where)

    def _table(self, kind: str) -> dict[str, list[int]]:
        if kind == KEY:
            return self._keys
        if kind == PREFIX:
            return self._prefixes
        raise BadCommand(f"there is no filter by {kind!r}, only by {KEY!r} and {PREFIX!r}")

    def _forget_length(self, length: int) -> None:
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]
