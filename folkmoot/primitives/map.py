"""Map: keys to values, with versions, times to live and watches.

WHAT IT PROMISES. Every change is one entry of the log, so all clients agree on the order of all
changes. The index of the entry is the change's REVISION; that of the entry that set a key last is
the key's VERSION. Reads are linearizable by default. A change that was answered is never lost.

KEYS are str, in the order of their code points. VALUES go through a codec (`_values.py`) and are
bytes to the servers: "equal" means equal bytes. Too large ones are refused before they are sent.

TIMES TO LIVE count in log time, which stands still while there is no leader: a key never expires
early, and may live longer than said. Expiry is an entry like any other, and watches tell it.

CONDITIONS. `create` and `replace` are tries: they answer None where the map is not as they need it.
`if_version=` is a guard: where the version is another one (0: absent), ConditionFailed is raised,
with the version that there is as its `data`.

LISTING (`keys`, `values`, `items`, `snapshot`) gives the state at ONE revision, also where it takes
many pages. WATCHES miss nothing and repeat nothing; `map_watch.py` says how.

The machine behind it is in `map_machine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from folkmoot.core.errors import ConditionFailed, TooLarge, UsageError
from folkmoot.core.types import Duration
from folkmoot.primitives._options import (
    Budget,
    Fence,
    ReadOptions,
    WriteOptions,
    level,
    time_to_live,
)
from folkmoot.primitives._values import Codec, CodecName, Values
from folkmoot.primitives._watch import BUFFER_EVENTS, Resync, Watch
from folkmoot.primitives.map_machine import ANY, KEEP, PAGE_KEYS_MAX, MapMachine
from folkmoot.primitives.map_types import (
    Changed,
    Deleted,
    Entry,
    MapChange,
    MapDescription,
    MapSnapshot,
    Range,
)
from folkmoot.primitives.map_watch import Found, MapListing, MapSource

if TYPE_CHECKING:
    from folkmoot.core.client import Resource

__all__ = [
    "Changed",
    "Deleted",
    "Entry",
    "Map",
    "MapChange",
    "MapDescription",
    "MapMachine",
    "MapSnapshot",
    "Resync",
]

V = TypeVar("V")
D = TypeVar("D")

MODIFY_ATTEMPTS = 100
"""Of `modify`, before it gives up on a key that others keep changing."""
_FRAME_OVERHEAD_BYTES = 4096


class _Unset(Enum):
    UNSET = 0


_UNSET = _Unset.UNSET


class Map(Generic[V]):
    """A map from str to V.

    Making one does no I/O. Mutations return their revision; where they return something else, it is
    in `revision` as well. An operation that is cancelled, or runs out of time, may have been sent
    and applied all the same; nothing is ever applied twice.

    Any operation may raise ResourceDeleted, ResourceTypeError and ClosedError (not applied), and,
    when the session is lost, SessionExpired (not applied) or OutcomeUnknown (perhaps applied).
    """

    def __init__(
        self,
        resource: Resource,
        type: type[V] | Any = None,
        *,
        codec: CodecName | Codec[V] = "msgpack",
    ) -> None:
        limits = resource.client.config.limits
        self._resource = resource
        self._values: Values[V] = Values(
            type, codec, bytes_max=limits.value_bytes_max, where=f"map {resource.name!r}, key"
        )
        self._key_bytes_max = limits.key_bytes_max
        self._frame_bytes_max = limits.frame_bytes_max - _FRAME_OVERHEAD_BYTES
        self._revision = 0

    @property
    def name(self) -> str:
        """The map's name."""
        return self._resource.name

    @property
    def revision(self) -> int:
        """The greatest revision of what was changed through this object: for `at_least=`."""
        return self._revision

    # Mutations

    async def set(
        self,
        key: str,
        value: V,
        *,
        ttl: Duration | None = None,
        if_version: int | None = None,
        **options: Unpack[WriteOptions],
    ) -> int:
        """Set a key, for `ttl` or for ever; return the revision. Watches hear Changed.

        Raises ConditionFailed (not applied) where `if_version` is not the key's version, 0 being
        that of an absent one.
        """
        wanted = ANY if if_version is None else if_version
        data = self._values.encode(self._key(key), value)
        return await self._change("set", key, data, time_to_live(ttl), wanted, **options)

    async def create(
        self,
        key: str,
        value: V,
        *,
        ttl: Duration | None = None,
        **options: Unpack[WriteOptions],
    ) -> int | None:
        """Set a key that is absent; return the revision, or None where it is there."""
        data = self._values.encode(self._key(key), value)
        return await self._try("create", key, data, time_to_live(ttl), **options)

    async def replace(
        self,
        key: str,
        value: V,
        *,
        if_value: V | _Unset = _UNSET,
        ttl: Duration | None = None,
        **options: Unpack[WriteOptions],
    ) -> int | None:
        """Set a key that is there; return the revision, or None where it is absent.

        With `if_value`, only where it has that value: compare and set. Else it returns None too.
        """
        data = self._values.encode(self._key(key), value)
        wanted = None if if_value is _UNSET else self._values.encode(key, if_value)
        return await self._try("replace", key, data, time_to_live(ttl), wanted, **options)

    async def set_many(
        self,
        values: Mapping[str, V],
        *,
        ttl: Duration | None = None,
        **options: Unpack[WriteOptions],
    ) -> int:
        """Set all of these keys in one entry, all or none; return the revision that they share.

        Raises TooLarge where they do not fit into one frame.
        """
        data = {self._key(key): self._values.encode(key, value) for key, value in values.items()}
        size_bytes = sum(4 * len(key) + len(value) + 10 for key, value in data.items())
        if size_bytes > self._frame_bytes_max:
            raise TooLarge(
                f"{self!r}: {len(data)} values of about {size_bytes} bytes do not fit into one "
                f"frame of {self._frame_bytes_max} bytes: set them in several parts"
            )
        return await self._change("set_many", data, time_to_live(ttl), **options)

    @overload
    async def pop(self, key: str, **options: Unpack[WriteOptions]) -> V | None: ...
    @overload
    async def pop(self, key: str, default: D, **options: Unpack[WriteOptions]) -> V | D: ...
    async def pop(self, key: str, default: Any = None, **options: Unpack[WriteOptions]) -> Any:
        """Remove a key and return what it was, or `default`. Watches hear Deleted.

        Raises DecodeError (applied) where that is nothing that the codec knows.
        """
        revision, data = await self._do("pop", self._key(key), **options)
        self._revision = max(self._revision, revision)
        return default if data is None else self._values.decode(key, data)

    async def delete(
        self, key: str, *, if_version: int | None = None, **options: Unpack[WriteOptions]
    ) -> int | None:
        """Remove a key; return the revision, or None where it is absent. Watches hear Deleted.

        Raises ConditionFailed (not applied) where `if_version` is not the key's version.
        """
        wanted = ANY if if_version is None else if_version
        return await self._try("delete", self._key(key), wanted, **options)

    async def clear(self, **options: Unpack[WriteOptions]) -> int:
        """Remove all keys; return the revision. Watches hear Deleted, or Resync for many."""
        return await self._change("clear", **options)

    async def touch(
        self, key: str, ttl: Duration | None = None, **options: Unpack[WriteOptions]
    ) -> int | None:
        """Give a key a new time to live, or none; return the revision, or None where it is absent.

        The version stays, and watches hear nothing.
        """
        return await self._try("touch", self._key(key), time_to_live(ttl), **options)

    async def modify(
        self,
        key: str,
        function: Callable[[V | None], V],
        *,
        attempts: int = MODIFY_ATTEMPTS,
        fence: Fence | None = None,
        timeout: Duration | None = None,
    ) -> V:
        """Set a key to `function(its value)`, None being that of an absent one; return the result.

        Where somebody else changes the key between, the function is called again, with the new
        value. The time to live stays as it is. Raises ConditionFailed after so many attempts (not
        applied), and whatever the function raises (not applied).
        """
        left = Budget(timeout)
        for _ in range(attempts):
            entry = await self.entry(key, timeout=left.seconds())
            value = function(None if entry is None else entry.value)
            data = self._values.encode(key, value)
            version = 0 if entry is None else entry.version
            try:
                await self._change(
                    "set", key, data, KEEP, version, fence=fence, timeout=left.seconds()
                )
            except ConditionFailed:
                continue
            return value
        raise ConditionFailed(f"{self!r}, key {key!r}: others changed it on {attempts} attempts")

    # Reads

    @overload
    async def get(self, key: str, **options: Unpack[ReadOptions]) -> V | None: ...
    @overload
    async def get(self, key: str, default: D, **options: Unpack[ReadOptions]) -> V | D: ...
    async def get(self, key: str, default: Any = None, **options: Unpack[ReadOptions]) -> Any:
        """Return a key's value, or `default` where it is absent. Raises DecodeError."""
        data, _ = await self._ask("get", self._key(key), **options)
        return default if data is None else self._values.decode(key, data)

    async def entry(self, key: str, **options: Unpack[ReadOptions]) -> Entry[V] | None:
        """Return a key's value with its version and time to live, or None where it is absent."""
        found, _ = await self._ask("entry", self._key(key), **options)
        if found is None:
            return None
        data, version, ttl = found
        return Entry(self._values.decode(key, data), version, None if ttl is None else ttl / 1000)

    async def get_many(self, keys: Iterable[str], **options: Unpack[ReadOptions]) -> dict[str, V]:
        """Return those of these keys that are there, at one revision, in the given order.

        Raises LimitExceeded where their values are more than a page (256 KiB).
        """
        wanted = [self._key(key) for key in keys]
        found, _ = await self._ask("get_many", wanted, **options)
        return {
            key: self._values.decode(key, data)
            for key, data in zip(wanted, found, strict=True)
            if data is not None
        }

    async def contains(self, key: str, **options: Unpack[ReadOptions]) -> bool:
        """Say whether a key is there."""
        found, _ = await self._ask("contains", self._key(key), **options)
        return bool(found)

    async def size(self, **options: Unpack[ReadOptions]) -> int:
        """Return the number of keys."""
        found, _ = await self._ask("size", **options)
        return int(found)

    async def describe(self) -> MapDescription:
        """Return what an operator wants to know."""
        found, _ = await self._ask("describe")
        watched_by = tuple((session, name, count) for session, name, count in found["watched_by"])
        return MapDescription(found["size"], found["expiring"], found["watchers"], watched_by)

    # Listings, at one revision, in the order of the keys

    async def keys(
        self,
        *,
        prefix: str = "",
        start: str = "",
        stop: str | None = None,
        limit: int | None = None,
        **options: Unpack[ReadOptions],
    ) -> list[str]:
        """Return the keys with `prefix`, from `start` on and below `stop`, at most `limit` of them.

        Raises Overloaded where they are many pages that change too fast.
        """
        where = Range(prefix, start, stop)
        found, _ = await self._list(where, limit, with_values=False, **options)
        return list(found)

    async def values(
        self,
        *,
        prefix: str = "",
        start: str = "",
        stop: str | None = None,
        limit: int | None = None,
        **options: Unpack[ReadOptions],
    ) -> list[V]:
        """Return the values of these keys (see `keys`). Raises DecodeError as well."""
        found = await self.snapshot(prefix=prefix, start=start, stop=stop, limit=limit, **options)
        return list(found.items.values())

    async def items(
        self,
        *,
        prefix: str = "",
        start: str = "",
        stop: str | None = None,
        limit: int | None = None,
        **options: Unpack[ReadOptions],
    ) -> list[tuple[str, V]]:
        """Return these keys with their values (see `keys`). Raises DecodeError as well."""
        found = await self.snapshot(prefix=prefix, start=start, stop=stop, limit=limit, **options)
        return list(found.items.items())

    async def snapshot(
        self,
        *,
        prefix: str = "",
        start: str = "",
        stop: str | None = None,
        limit: int | None = None,
        **options: Unpack[ReadOptions],
    ) -> MapSnapshot[V]:
        """Return these keys with their values (see `keys`), and the revision that this is."""
        where = Range(prefix, start, stop)
        found, revision = await self._list(where, limit, with_values=True, **options)
        values = {key: self._values.decode(key, data) for key, data in found.items()}
        return MapSnapshot(values, revision)

    # Watches

    def watch(
        self,
        *,
        key: str | None = None,
        prefix: str | None = None,
        initial: bool = False,
        buffer: int = BUFFER_EVENTS,
    ) -> Watch[MapChange[V]]:
        """Return a watch of all keys, of one, or of a prefix, to be entered with `async with`.

        It yields Changed, Deleted and, where changes were missed, Resync with all there is now.
        With `initial`, a Resync comes first. A reader that is more than `buffer` changes behind
        gets a Resync in their place. Once the map is deleted it raises ResourceDeleted.
        """
        if key is not None and prefix is not None:
            raise UsageError(f"{self!r}: watch a key or a prefix, not both")
        if buffer < 1:
            raise UsageError(f"{self!r}: a watch cannot do with a buffer of {buffer}")
        where = Range(prefix or "") if key is None else Range.of_key(self._key(key))
        source = MapSource(self._resource, where, self._values)
        return Watch(self._resource, source, initial=initial, buffer=buffer)

    def __repr__(self) -> str:
        return f"<Map {self.name!r} of {self._values.name}>"

    async def _do(
        self,
        operation: str,
        *args: Any,
        fence: Fence | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        token = None if fence is None else fence.fence
        return await self._resource.command(operation, *args, timeout=timeout, fence=token)

    async def _try(self, operation: str, *args: Any, **options: Unpack[WriteOptions]) -> int | None:
        revision: int | None = await self._do(operation, *args, **options)
        self._revision = max(self._revision, revision or 0)
        return revision

    async def _change(self, operation: str, *args: Any, **options: Unpack[WriteOptions]) -> int:
        revision = await self._try(operation, *args, **options)
        assert revision is not None, f"{operation} always changes something"
        return revision

    async def _ask(
        self,
        operation: str,
        *args: Any,
        consistency: str = "linearizable",
        at_least: int = 0,
        timeout: Duration | None = None,
    ) -> tuple[Any, int]:
        return await self._resource.query(
            operation, *args, consistency=level(consistency), at_least=at_least, timeout=timeout
        )

    async def _list(
        self, where: Range, limit: int | None, with_values: bool, **options: Unpack[ReadOptions]
    ) -> Found:
        """Read a range: by one query if one page will do, else as a watch reads it."""
        if limit is not None and limit < 1:
            raise UsageError(f"{self!r}: a listing of {limit} keys")
        left = Budget(options.get("timeout"))
        page = (where.prefix, where.start, where.stop, limit or PAGE_KEYS_MAX, with_values)
        (keys, values, more), revision = await self._ask("page", *page, **options)
        if not more or len(keys) == limit:
            return dict(zip(keys, values or repeat(b""), strict=False)), revision
        listing = MapListing(self._resource, where, with_values=with_values, limit=limit)
        with left.limit(f"{self!r} was not listed within the timeout"):
            async with Watch(self._resource, listing, initial=True) as reading:
                return await anext(reading)

    def _key(self, key: str) -> str:
        if type(key) is not str:
            raise UsageError(f"{self!r}: key {key!r} is a {type(key).__name__}, not a str")
        if 4 * len(key) > self._key_bytes_max:  # 4 bytes are the most that a character takes
            size_bytes = len(key.encode(errors="replace"))
            if size_bytes > self._key_bytes_max:
                raise TooLarge(
                    f"{self!r}: key {key[:20]!r}... has {size_bytes} bytes; "
                    f"{self._key_bytes_max} are allowed (key_bytes_max)"
                )
        return key
