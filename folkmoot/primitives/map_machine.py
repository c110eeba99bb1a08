"""The map's replicated half: what is stored, what each command does, what is published.

Pure: no I/O, no clock, no randomness. Driven by the multiplexer; `map.py` is the other half, and
says what a user may rely on.

Values are bytes that nobody here looks into. Keys are str, in the order of their code points. The
VERSION of a key is the index of the entry that set it last; the REVISION that a change answers
with is its own index. Times to live count in log time, as deadlines under the key's own name, and
the multiplexer handles deadlines before the commands and reads of the same moment: whoever reads
never finds what has expired.

Events, to each session that subscribed to the key (its own changes included):

    set       [key, value, old value or nil]
    removed   [key, old value]
    expired   [key, old value]
    cleared   nil          `clear` of more than CLEAR_EVENTS_MAX keys, or CLEAR_BYTES_MAX of values

Which entry owns which key's value and expiry is said in `_map_items.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from folkmoot.core.errors import BadCommand, ConditionFailed, LimitExceeded
from folkmoot.core.machine import (
    Context,
    Machine,
    QueryContext,
    RestoreContext,
    Retention,
    command,
    frees,
    query,
)
from folkmoot.primitives._keys import SortedKeys
from folkmoot.primitives._map_items import FOREVER, SETS, Expiry, living, trimmed
from folkmoot.primitives._subscriptions import Subscriptions

KEEP = -1
"""As a time to live: what the key has now."""
TTL_MAX_MS = 1 << 50
"""So that log time and a time to live always add up to less than 64 bits."""
ANY = -1
"""As a version that is asked for: no matter."""

PAGE_KEYS_MAX = 4096
"""Keys in one page of a listing; the client asks for the next."""
PAGE_BYTES_MAX = 256 << 10
"""Bytes of keys and values in one page (at least one key comes in any case)."""
CLEAR_EVENTS_MAX = 1000
CLEAR_BYTES_MAX = 256 << 10
"""Beyond either, a clear is told as one event, which watches turn into a Resync."""
WATCHERS_LISTED_MAX = 1000
"""`describe` lists so many, and says how many there are."""


class MapMachine(Machine):
    """Keys to values, each with a version and perhaps a time to live.

    - `_keys`, `_values` and `_versions` hold the same keys.
    - `_expiries` holds keys of those (in a restore also such as are still to come), and exactly
      these have a deadline, at that time.
    - A value's owner is (version, ordinal). `_ordinals` holds the ordinals that are not 0.

    A value and its version lie in two dicts, not in a tuple in one: dicts of bytes and of numbers
    are nothing to Python's cycle collector, while a tuple per key is looked at by it. That was a
    pause of 40 ms in the loop for a few hundred thousand keys.
    """

    type_name = "map"
    retention = Retention.ENTRIES

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._values: dict[str, bytes] = {}
        self._versions: dict[str, int] = {}
        self._keys = SortedKeys()
        self._ordinals: dict[str, int] = {}
        self._expiries: dict[str, Expiry] = {}
        self._subscriptions = Subscriptions()

    @command
    def set(
        self, context: Context, key: str, value: bytes, ttl: int = FOREVER, if_version: int = ANY
    ) -> int:
        """Set a key; `if_version` 0 means that it must be absent. Returns the revision."""
        before = self._values.get(key)
        _check_ttl(ttl, KEEP)
        if if_version != ANY:
            self._check_version(key, if_version)
        if ttl > 0:
            context.retain(2)
            self._limit(context, key, ttl, 1)
        else:
            context.retain()
            if ttl == FOREVER and key in self._expiries:
                self._limit(context, key, FOREVER)
        self._put(context, key, value, before)
        return context.index

    @command
    def create(self, context: Context, key: str, value: bytes, ttl: int = FOREVER) -> int | None:
        """Set a key that is absent. Returns the revision, or None where it is there."""
        if key in self._values:
            return None
        return self.set(context, key, value, ttl)

    @command
    def replace(
        self,
        context: Context,
        key: str,
        value: bytes,
        ttl: int = FOREVER,
        if_value: bytes | None = None,
    ) -> int | None:
        """Set a key that is there (with this value). Returns the revision, or None."""
        before = self._values.get(key)
        if before is None or (if_value is not None and before != if_value):
            return None
        return self.set(context, key, value, ttl)

    @command
    def set_many(self, context: Context, values: dict, ttl: int = FOREVER) -> int:  # type: ignore[type-arg]
        """Set all of these keys, in order. Returns the revision, which is one for all."""
        _check_ttl(ttl, KEEP)
        for key, value in values.items():
            if type(key) is not str or type(value) is not bytes:
                raise BadCommand(f"set_many: {type(value).__name__} under {type(key).__name__}")
        count = len(values)
        if count:
            context.retain(2 * count if ttl > 0 else count)
        for ordinal, (key, value) in enumerate(values.items()):
            if ttl != KEEP:
                self._limit(context, key, ttl, count + ordinal)
            self._put(context, key, value, self._values.get(key), ordinal)
        return context.index

    @command
    def touch(self, context: Context, key: str, ttl: int = FOREVER) -> int | None:
        """Give a key a new time to live. Returns the revision, or None where it is absent."""
        _check_ttl(ttl, FOREVER)
        if key not in self._values:
            return None
        if ttl:
            context.retain()
        self._limit(context, key, ttl)
        return context.index

    @command
    @frees
    def delete(self, context: Context, key: str, if_version: int = ANY) -> int | None:
        """Remove a key. Returns the revision, or None where it is absent."""
        if if_version != ANY:
            self._check_version(key, if_version)
        if key not in self._values:
            return None
        self._remove(context, key, "removed")
        return context.index

    @command
    @frees
    def pop(self, context: Context, key: str) -> list[Any]:
        """Remove a key. Returns [revision, its value], or [revision, None] where it is absent."""
        value = self._values.get(key)
        if value is not None:
            self._remove(context, key, "removed")
        return [context.index, value]

    @command
    @frees
    def clear(self, context: Context) -> int:
        """Remove all keys. Returns the revision."""
        removed, self._values = self._values, {}
        ordered, self._keys = self._keys, SortedKeys()
        self._supersede_all(context)
        if removed and self._subscriptions:
            self._publish_clear(context, removed, ordered)
        return context.index

    @command
    def subscribe(self, context: Context, kind: str, text: str) -> int:
        """Send the session what happens to these keys after the index that this returns."""
        if self._subscriptions.add(context.session, kind, text, context.index):
            context.retain()
        return context.index

    @command
    @frees
    def unsubscribe(self, context: Context, kind: str, text: str) -> bool:
        """Stop that; say whether it was so."""
        gone = self._subscriptions.remove(context.session, kind, text)
        context.supersede_all(gone)
        return bool(gone)

    @query
    def get(self, context: QueryContext, key: str) -> bytes | None:
        """Return a key's value, or None where it is absent."""
        return self._values.get(key)

    @query
    def entry(self, context: QueryContext, key: str) -> list[Any] | None:
        """Return [value, version, milliseconds to live or None], or None where it is absent."""
        value = self._values.get(key)
        if value is None:
            return None
        expiry = self._expiries.get(key)
        to_live = None if expiry is None else expiry[0] - context.time
        return [value, self._versions[key], to_live]

    @query
    def get_many(self, context: QueryContext, keys: list) -> list[Any]:  # type: ignore[type-arg]
        """Return the values of these keys, in their order, None where one is absent."""
        found: list[bytes | None] = []
        size_bytes = 0
        for key in keys:
            if type(key) is not str:
                raise BadCommand(f"get_many: a key is {type(key).__name__}, not str")
            value = self._values.get(key)
            found.append(value)
            size_bytes += 0 if value is None else len(value)
            if size_bytes > PAGE_BYTES_MAX and len(found) > 1:
                raise LimitExceeded(
                    f"the values of these {len(keys)} keys have more than {PAGE_BYTES_MAX} bytes: "
                    "ask for fewer at once, or list them"
                )
        return found

    @query
    def contains(self, context: QueryContext, key: str) -> bool:
        """Say whether a key is there."""
        return key in self._values

    @query
    def size(self, context: QueryContext) -> int:
        """Return the number of keys."""
        return len(self._values)

    @query
    def page(
        self,
        context: QueryContext,
        prefix: str,
        start: str,
        stop: str | None,
        limit: int,
        values: bool,
    ) -> list[Any]:
        """Return [keys, their values or None, whether there are more], in order.

        From `start` (inclusive) to `stop` (exclusive), of those with the prefix.
        """
        stored = self._values
        keys: list[str] = []
        size_bytes = 0
        limit = min(limit, PAGE_KEYS_MAX)
        more = False
        for key in self._keys.walk(max(start, prefix)):
            if not key.startswith(prefix) or (stop is not None and key >= stop):
                break
            size_bytes += len(key) + (len(stored[key]) if values else 0)
            if len(keys) >= limit or (size_bytes > PAGE_BYTES_MAX and keys):
                more = True
                break
            keys.append(key)
        return [keys, [stored[key] for key in keys] if values else None, more]

    @query
    def describe(self, context: QueryContext) -> dict[str, Any]:
        """Return sizes, and who watches: [session, client's name, number of filters]."""
        watchers = self._subscriptions.everybody()
        return {
            "size": len(self._values),
            "expiring": len(self._expiries),
            "watchers": len(watchers),
            "watched_by": [
                [one, context.client_name(one), len(self._subscriptions.filters(one))]
                for one in watchers[:WATCHERS_LISTED_MAX]
            ],
        }

    def on_deadline(self, context: Context, key: str) -> None:
        """Remove a key whose time has come."""
        time = self._expiries[key][0]
        assert time <= context.time, f"{key!r}: {time} is after {context.time}"
        self._remove(context, key, "expired")

    def session_ended(self, context: Context, session: int) -> None:
        """Forget what the session subscribed to."""
        context.supersede_all(self._subscriptions.drop(session))

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        """Forget what the session subscribed to."""
        gone = self._subscriptions.drop(session)
        context.supersede_all(gone)
        return bool(gone)

    def idle(self) -> bool:
        """Say whether there is no key and nobody who waits for one."""
        return not self._values and not self._subscriptions

    def snapshot(self) -> Any:
        """Return all keys in order, and the subscriptions.

        A key is [key, value, version, ordinal], and with an expiry log time, index and ordinal.
        """
        values, versions = self._values, self._versions
        ordinals, expiries = self._ordinals, self._expiries
        return [
            [
                [key, values[key], versions[key], ordinals.get(key, 0), *expiries.get(key, ())]
                for key in self._keys.walk("")
            ],
            self._subscriptions.snapshot(),
        ]

    def restore_item(
        self, context: RestoreContext, name: str, args: list[Any], ordinals: Sequence[int]
    ) -> None:
        """Take back values, expiries or a subscription."""
        if name in SETS:
            for ordinal in ordinals:
                if ordinal:
                    self._restore_expiry(context, args[0], args[2], ordinal)
                else:
                    self._restore_value(context, args[0], args[1])
        elif name == "touch":
            self._restore_expiry(context, args[0], args[1], 0)
        elif name == "subscribe":
            kind, text = args
            self._subscriptions.add(context.session, kind, text, context.index)
        else:
            count, ttl, parts = living(name, args, ordinals)
            for position, key, value, expires in parts:
                if value is not None:
                    self._restore_value(context, key, value)
                    if position:
                        self._ordinals[key] = position
                if expires:
                    self._restore_expiry(context, key, ttl, count + position)

    @classmethod
    def trim(cls, name: str, args: list[Any], ordinals: Sequence[int]) -> tuple[str, list[Any]]:
        """Leave out values that are superseded, and keys of which nothing lives."""
        return trimmed(name, args, ordinals)

    def _check_version(self, key: str, if_version: int) -> None:
        version = self._versions.get(key, 0)
        if version != if_version:
            raise ConditionFailed(f"{key!r} has version {version}, not {if_version}", version)

    def _put(
        self, context: Context, key: str, value: bytes, before: bytes | None, ordinal: int = 0
    ) -> None:
        if before is None:
            self._keys.add(key)
        else:
            context.supersede(
                self._versions[key], self._ordinals.pop(key, 0) if self._ordinals else 0
            )
        self._values[key] = value
        self._versions[key] = context.index
        if ordinal:
            self._ordinals[key] = ordinal
        if self._subscriptions:
            sessions = self._subscriptions.matching(key)
            if sessions:
                context.publish(sessions, "set", [key, value, before])

    def _remove(self, context: Context, key: str, kind: str) -> None:
        value = self._values.pop(key)
        self._keys.remove(key)
        context.supersede(self._versions.pop(key), self._ordinals.pop(key, 0))
        self._limit(context, key, FOREVER)
        sessions = self._subscriptions.matching(key)
        if sessions:
            context.publish(sessions, kind, [key, value])

    def _limit(self, context: Context, key: str, ttl: int, ordinal: int = 0) -> None:
        """Set the key's expiry, which this entry owns as `ordinal`, or end the one that it has."""
        before = self._expiries.pop(key, None)
        if before is not None:
            context.supersede(before[1], before[2])
        if ttl:
            time = context.time + ttl
            self._expiries[key] = (time, context.index, ordinal)
            context.set_deadline(key, time)
        elif before is not None:
            context.clear_deadline(key)

    def _restore_value(self, context: RestoreContext, key: str, value: bytes) -> None:
        self._values[key] = value
        self._versions[key] = context.index
        self._keys.load(key)

    def _restore_expiry(self, context: RestoreContext, key: str, ttl: int, ordinal: int) -> None:
        time = context.time + ttl
        self._expiries[key] = (time, context.index, ordinal)
        context.set_deadline(key, time)

    def _supersede_all(self, context: Context) -> None:
        """Supersede all values and expiries."""
        versions, self._versions = self._versions, {}
        ordinals, self._ordinals = self._ordinals, {}
        expiries, self._expiries = self._expiries, {}
        for key, ordinal in ordinals.items():
            context.supersede(versions.pop(key), ordinal)
        context.supersede_all(versions.values())
        for key, (_, index, ordinal) in expiries.items():
            context.supersede(index, ordinal)
            context.clear_deadline(key)

    def _publish_clear(
        self, context: Context, removed: dict[str, bytes], ordered: SortedKeys
    ) -> None:
        size_bytes = 0
        if len(removed) <= CLEAR_EVENTS_MAX:
            size_bytes = sum(map(len, removed.values()))
        if len(removed) > CLEAR_EVENTS_MAX or size_bytes > CLEAR_BYTES_MAX:
            context.publish(self._subscriptions.everybody(), "cleared")
            return
        for key in ordered.walk(""):
            sessions = self._subscriptions.matching(key)
            if sessions:
                context.publish(sessions, "removed", [key, removed[key]])


def _check_ttl(ttl: int, least: int) -> None:
    if not least <= ttl <= TTL_MAX_MS:
        raise BadCommand(f"a time to live of {ttl} ms: at most {TTL_MAX_MS}")
