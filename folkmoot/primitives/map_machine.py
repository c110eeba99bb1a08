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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from folkmoot.core.errors import BadCommand, ConditionFailed, LimitExceeded
from folkmoot.core.machine import Context, Machine, QueryContext, command, query
from folkmoot.primitives._keys import SortedKeys
from folkmoot.primitives._subscriptions import Subscriptions

FOREVER = 0
"""As a time to live: none. As an expiry: never."""
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

Item = tuple[bytes, int, int]
"""value, version, expiry in log time (or FOREVER)."""


class MapMachine(Machine):
    """Keys to values, each with a version and perhaps a time to live.

    - `_keys` holds exactly the keys of `_items`.
    - A key has a deadline exactly when its item has an expiry, and `_expiring` counts these.
    """

    type_name = "map"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self._items: dict[str, Item] = {}
        self._keys = SortedKeys()
        self._expiring = 0
        self._subscriptions = Subscriptions()

    @command
    def set(
        self, context: Context, key: str, value: bytes, ttl: int = FOREVER, if_version: int = ANY
    ) -> int:
        """Set a key; `if_version` 0 means that it must be absent. Returns the revision."""
        before = self._items.get(key)
        _check_ttl(ttl, KEEP)
        if if_version != ANY:
            _check_version(key, before, if_version)
        self._put(context, key, value, ttl, before)
        return context.index

    @command
    def create(self, context: Context, key: str, value: bytes, ttl: int = FOREVER) -> int | None:
        """Set a key that is absent. Returns the revision, or None where it is there."""
        if key in self._items:
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
        before = self._items.get(key)
        if before is None or (if_value is not None and before[0] != if_value):
            return None
        return self.set(context, key, value, ttl)

    @command
    def set_many(self, context: Context, values: dict, ttl: int = FOREVER) -> int:  # type: ignore[type-arg]
        """Set all of these keys, in order. Returns the revision, which is one for all."""
        _check_ttl(ttl, KEEP)
        for key, value in values.items():
            if type(key) is not str or type(value) is not bytes:
                raise BadCommand(f"set_many: {type(value).__name__} under {type(key).__name__}")
        for key, value in values.items():
            self._put(context, key, value, ttl, self._items.get(key))
        return context.index

    @command
    def touch(self, context: Context, key: str, ttl: int = FOREVER) -> int | None:
        """Give a key a new time to live. Returns the revision, or None where it is absent."""
        _check_ttl(ttl, FOREVER)
        item = self._items.get(key)
        if item is None:
            return None
        self._items[key] = (item[0], item[1], self._schedule(context, key, ttl, item))
        return context.index

    @command
    def delete(self, context: Context, key: str, if_version: int = ANY) -> int | None:
        """Remove a key. Returns the revision, or None where it is absent."""
        item = self._items.get(key)
        if if_version != ANY:
            _check_version(key, item, if_version)
        if item is None:
            return None
        self._remove(context, key, item, "removed")
        return context.index

    @command
    def pop(self, context: Context, key: str) -> list[Any]:
        """Remove a key. Returns [revision, its value], or [revision, None] where it is absent."""
        item = self._items.get(key)
        if item is None:
            return [context.index, None]
        self._remove(context, key, item, "removed")
        return [context.index, item[0]]

    @command
    def clear(self, context: Context) -> int:
        """Remove all keys. Returns the revision."""
        removed, self._items = self._items, {}
        ordered, self._keys = self._keys, SortedKeys()
        if self._expiring:
            for key, item in removed.items():
                if item[2]:
                    context.clear_deadline(key)
            self._expiring = 0
        if removed and self._subscriptions:
            self._publish_clear(context, removed, ordered)
        return context.index

    @command
    def subscribe(self, context: Context, kind: str, text: str) -> int:
        """Send the session what happens to these keys after the index that this returns."""
        self._subscriptions.add(context.session, kind, text)
        return context.index

    @command
    def unsubscribe(self, context: Context, kind: str, text: str) -> bool:
        """Stop that; say whether it was so."""
        return self._subscriptions.remove(context.session, kind, text)

    @query
    def get(self, context: QueryContext, key: str) -> bytes | None:
        """Return a key's value, or None where it is absent."""
        item = self._items.get(key)
        return None if item is None else item[0]

    @query
    def entry(self, context: QueryContext, key: str) -> list[Any] | None:
        """Return [value, version, milliseconds to live or None], or None where it is absent."""
        item = self._items.get(key)
        if item is None:
            return None
        return [item[0], item[1], item[2] - context.time if item[2] else None]

    @query
    def get_many(self, context: QueryContext, keys: list) -> list[Any]:  # type: ignore[type-arg]
        """Return the values of these keys, in their order, None where one is absent."""
        found: list[bytes | None] = []
        size_bytes = 0
        for key in keys:
            if type(key) is not str:
                raise BadCommand(f"get_many: a key is {type(key).__name__}, not str")
            item = self._items.get(key)
            found.append(None if item is None else item[0])
            size_bytes += 0 if item is None else len(item[0])
            if size_bytes > PAGE_BYTES_MAX and len(found) > 1:
                raise LimitExceeded(
                    f"the values of these {len(keys)} keys have more than {PAGE_BYTES_MAX} bytes: "
                    "ask for fewer at once, or list them"
                )
        return found

    @query
    def contains(self, context: QueryContext, key: str) -> bool:
        """Say whether a key is there."""
        return key in self._items

    @query
    def size(self, context: QueryContext) -> int:
        """Return the number of keys."""
        return len(self._items)

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
        items = self._items
        keys: list[str] = []
        size_bytes = 0
        limit = min(limit, PAGE_KEYS_MAX)
        more = False
        for key in self._keys.walk(max(start, prefix)):
            if not key.startswith(prefix) or (stop is not None and key >= stop):
                break
            size_bytes += len(key) + (len(items[key][0]) if values else 0)
            if len(keys) >= limit or (size_bytes > PAGE_BYTES_MAX and keys):
                more = True
                break
            keys.append(key)
        return [keys, [items[key][0] for key in keys] if values else None, more]

    @query
    def describe(self, context: QueryContext) -> dict[str, Any]:
        """Return sizes, and who watches: [session, client's name, number of filters]."""
        watchers = self._subscriptions.everybody()
        return {
            "size": len(self._items),
            "expiring": self._expiring,
            "watchers": len(watchers),
            "watched_by": [
                [one, context.client_name(one), len(self._subscriptions.filters(one))]
                for one in watchers[:WATCHERS_LISTED_MAX]
            ],
        }

    def on_deadline(self, context: Context, key: str) -> None:
        """Remove a key whose time has come."""
        item = self._items[key]
        assert FOREVER < item[2] <= context.time, f"{key!r}: {item[2]} is after {context.time}"
        self._remove(context, key, item, "expired")

    def session_ended(self, context: Context, session: int) -> None:
        """Forget what the session subscribed to."""
        self._subscriptions.drop(session)

    def cut_subscriptions(self, session: int) -> bool:
        """Forget what the session subscribed to."""
        return self._subscriptions.drop(session)

    def idle(self) -> bool:
        """Say whether there is no key and nobody who waits for one."""
        return not self._items and not self._subscriptions

    def snapshot(self) -> Any:
        """Return all keys in order, and the subscriptions."""
        items = self._items
        return [
            [[key, *items[key]] for key in self._keys.walk("")],
            self._subscriptions.snapshot(),
        ]

    def restore(self, data: Any) -> None:
        """Take what `snapshot` gave. The deadlines are the multiplexer's to restore."""
        items, subscriptions = data
        self._items = {key: (value, version, expiry) for key, value, version, expiry in items}
        self._keys = SortedKeys(self._items)
        self._expiring = sum(1 for item in self._items.values() if item[2])
        self._subscriptions.restore(subscriptions)

    def _put(self, context: Context, key: str, value: bytes, ttl: int, before: Item | None) -> None:
        expiry = FOREVER
        if ttl or (before is not None and before[2]):
            expiry = self._schedule(context, key, ttl, before)
        self._items[key] = (value, context.index, expiry)
        if before is None:
            self._keys.add(key)
        if self._subscriptions:
            sessions = self._subscriptions.matching(key)
            if sessions:
                old = None if before is None else before[0]
                context.publish(sessions, "set", [key, value, old])

    def _remove(self, context: Context, key: str, item: Item, kind: str) -> None:
        del self._items[key]
        self._keys.remove(key)
        if item[2]:
            self._expiring -= 1
            context.clear_deadline(key)
        sessions = self._subscriptions.matching(key)
        if sessions:
            context.publish(sessions, kind, [key, item[0]])

    def _schedule(self, context: Context, key: str, ttl: int, before: Item | None) -> int:
        """Set or clear the key's deadline; return its expiry."""
        old = FOREVER if before is None else before[2]
        if ttl == KEEP:
            return old
        expiry = context.time + ttl if ttl else FOREVER
        if expiry:
            context.set_deadline(key, expiry)
        elif old:
            context.clear_deadline(key)
        self._expiring += bool(expiry) - bool(old)
        return expiry

    def _publish_clear(
        self, context: Context, removed: dict[str, Item], ordered: SortedKeys
    ) -> None:
        size_bytes = 0
        if len(removed) <= CLEAR_EVENTS_MAX:
            size_bytes = sum(len(item[0]) for item in removed.values())
        if len(removed) > CLEAR_EVENTS_MAX or size_bytes > CLEAR_BYTES_MAX:
            context.publish(self._subscriptions.everybody(), "cleared")
            return
        for key in ordered.walk(""):
            sessions = self._subscriptions.matching(key)
            if sessions:
                context.publish(sessions, "removed", [key, removed[key][0]])


def _check_ttl(ttl: int, least: int) -> None:
    if not least <= ttl <= TTL_MAX_MS:
        raise BadCommand(f"a time to live of {ttl} ms: at most {TTL_MAX_MS}")


def _check_version(key: str, item: Item | None, if_version: int) -> None:
    version = 0 if item is None else item[1]
    if version != if_version:
        raise ConditionFailed(f"{key!r} has version {version}, not {if_version}", version)
