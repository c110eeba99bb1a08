"""What a map answers with and tells its watches: plain frozen data.

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import attrs

from folkmoot.primitives._subscriptions import KEY, PREFIX, Filter
from folkmoot.primitives._watch import Resync

V = TypeVar("V")


@attrs.frozen
class Entry(Generic[V]):
    """A key's value, and what else is known of it."""

    value: V
    version: int
    """The revision that set it."""
    ttl: float | None
    """Seconds of log time that it has left to live, as of the read; None: it does not expire."""


@attrs.frozen
class MapSnapshot(Generic[V]):
    """What a range of a map held at one revision, in the order of its keys."""

    items: dict[str, V]
    revision: int


@attrs.frozen
class MapDescription:
    """What an operator wants to know of a map."""

    size: int
    expiring: int
    """Keys that have a time to live."""
    watchers: int
    watched_by: tuple[tuple[int, str, int], ...]
    """Of the first watching sessions: id, name of the client, number of its filters."""


@attrs.frozen
class Changed(Generic[V]):
    """A key was set, be it to another value or to the same."""

    key: str
    value: V
    old: V | None
    """What it was before; None where the key was absent."""
    revision: int
    """The index of the entry that set it, which is the key's version now."""


@attrs.frozen
class Deleted(Generic[V]):
    """A key is gone."""

    key: str
    old: V
    reason: Literal["removed", "expired"]
    """By delete, pop or clear; or because its time to live was over."""
    revision: int


MapChange = Changed[V] | Deleted[V] | Resync[dict[str, V]]


@attrs.frozen
class Range:
    """Which keys: those with `prefix`, from `start` (inclusive) to `stop` (exclusive)."""

    prefix: str = ""
    start: str = ""
    stop: str | None = None

    @classmethod
    def of_key(cls, key: str) -> Range:
        """Return the range that is one key."""
        return cls(key, key, key + "\0")

    def __contains__(self, key: str) -> bool:
        below = self.stop is None or key < self.stop
        return below and key >= self.start and key.startswith(self.prefix)

    def filter(self) -> Filter:
        """Return a filter that covers the range, and as little else as is simple to say."""
        return (KEY, self.start) if self == Range.of_key(self.start) else (PREFIX, self.prefix)
