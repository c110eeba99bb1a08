"""The codec: plain data to bytes and back. The one typed module around msgpack.

Pure: no I/O, no clock, no randomness.

Plain data is None, bool, int (64 bits), float (no NaN), str, bytes, list (a tuple becomes one) and
dict with keys of str or bytes; nested at most `DEPTH_MAX` deep. What `pack` makes, `unpack` takes.

`unpack` is the gate that a stranger's bytes come through, so it promises three things: nothing but
`RemoteProtocolError` comes out of it, equal bytes give equal values in every process (no NaN, no
duplicate keys, no extension types, no invalid UTF-8), and it takes less than 80 times the bytes it
was given (and 48 KiB). The last is the hard one. msgpack allocates a list when it reads its header,
before the elements: a thousand nested headers, five bytes each and each announcing a million
elements, ask for eight gigabytes, and no max_array_len stops them.

So the bytes are parsed twice, both times in C. The first time builds nothing (`Unpacker.skip`): it
finds out that all that is announced is there, and how deep it goes. That parser has a stack of
fixed size, and refuses what overflows it; we fill that stack with opened lists until exactly
`DEPTH_MAX` levels are left, and put the bytes behind them. Only then comes `unpackb`. On a frame
of 64 small operations this adds half of a bare `unpackb`; a walk over the decoded lists in Python
would add 1.5, and could not bound the memory. Short data takes a shorter road, where filling the
stack would be most of the cost.
"""

from __future__ import annotations

import re
from typing import Any, Never

import msgpack

from folkmoot.core.errors import RemoteProtocolError, UsageError

DEPTH_MAX = 8
"""How deep data may nest: 1 is 0 deep, [] and [1] are 1 deep, [[]] is 2 deep."""

_LEAVES = frozenset({type(None), bool, int, str, bytes})

_LIST_OF_ONE = b"\x91"
_NIL = b"\xc0"
_LIST_HEADERS = bytes((*range(0x90, 0xA0), 0xDC, 0xDD))
_CONTAINER_HEADERS = bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))
_NOT_CONTAINERS = bytes(sorted(set(range(256)) - set(_CONTAINER_HEADERS)))

_SHORT_BYTES_MAX = 512
_ANNOUNCED_MAX = 6 << 10
"""Elements that short data may announce without being parsed first: 48 KiB of list slots."""

# A NaN has all bits of its exponent set. These may also match inside a str or bytes, and match
# infinities: they only say that it is worth looking at the value. A single literal byte in front
# lets the search run at the speed of memchr.
_NAN_64 = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_NAN_32 = re.compile(rb"\xca[\x7f\xff][\x80-\xff]")


def pack(value: Any) -> bytes:
    """Encode plain data.

    Raises UsageError for anything else, and for data that `unpack` would refuse.
    """
    try:
        data: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"this {type(value).__name__} cannot be encoded: {error}; only None, bool, int of 64 "
            "bits, float, str, bytes, list, tuple and dict can"
        ) from error
    headers = _container_headers(data)
    if (
        headers is None
        or len(headers) > DEPTH_MAX
        or headers.strip(_LIST_HEADERS)
        or _may_hold_nan(data)
    ):
        try:
            unpack(data)
        except RemoteProtocolError as error:
            raise UsageError(f"this {type(value).__name__} cannot be encoded: {error}") from None
    return data


def unpack(data: bytes) -> Any:
    """Decode the one value that `data` is; lists come as list, never as tuple.

    Raises RemoteProtocolError, and nothing else, for bytes that are anything but plain data.
    """
    size_bytes = len(data)
    headers = _container_headers(data)
    try:
        if headers is None:
            _scan(data)
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            object_pairs_hook=_unique_keys,
            ext_hook=_refuse_extension,
            max_str_len=size_bytes,
            max_bin_len=size_bytes,
            max_array_len=size_bytes,
            max_map_len=size_bytes,
            max_ext_len=0,
        )
    except ValueError as error:  # every error of msgpack's that bytes can cause is one
        raise RemoteProtocolError(f"malformed data of {size_bytes} bytes: {_why(error)}") from error
    may_be_deep = len(headers) > DEPTH_MAX if headers is not None else not _FILLER
    if may_be_deep or _may_hold_nan(data):
        _check(value)
    return value


def _scan(data: bytes) -> None:
    """Parse without building anything. Raises ValueError when too deep, too short or wrong."""
    total_bytes = len(_FILLER) + len(data)
    parser = msgpack.Unpacker(read_size=total_bytes, max_buffer_size=total_bytes)
    parser.feed(_FILLER)
    parser.feed(data)
    try:
        parser.skip()
    except msgpack.StackError:
        raise ValueError(f"nested more than {DEPTH_MAX} deep") from None
    except msgpack.OutOfData:
        raise ValueError("it ends before what it announces") from None


def _container_headers(data: bytes) -> bytes | None:
    """Return those bytes of short `data` that may be headers of containers; None: parse it first.

    Bytes inside of a str or bytes count as well. Each header announces at most as many elements
    as there are bytes, and nesting takes a header per level, so few headers bound both.
    """
    if len(data) > _SHORT_BYTES_MAX:
        return None
    headers = data.translate(None, _NOT_CONTAINERS)
    return headers if len(headers) * len(data) <= _ANNOUNCED_MAX else None


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a map of {len(pairs)} pairs has {len(found)} different keys")
    return found


def _refuse_extension(code: int, data: bytes) -> Never:
    raise ValueError(f"extension type {code} is not plain data")


def _may_hold_nan(data: bytes) -> bool:
    """Tell whether any bytes look like a NaN, as the value's own or as part of a str or bytes."""
    return (0xCB in data and _NAN_64.search(data) is not None) or (
        0xCA in data and _NAN_32.search(data) is not None
    )


def _check(value: Any) -> None:
    """Walk through `value` in Python, level by level: depth and NaN. Exact, and slow."""
    level = [value]
    for depth in range(DEPTH_MAX + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, float) and item != item:
                raise RemoteProtocolError("a float is NaN, which equals nothing, not even itself")
            if isinstance(item, (list, dict)):
                if depth == DEPTH_MAX:
                    raise RemoteProtocolError(f"nested more than {DEPTH_MAX} deep")
                elements = item.values() if isinstance(item, dict) else item
                inner += [element for element in elements if type(element) not in _LEAVES]
        level = inner


def _why(error: ValueError) -> str:
    return str(error) or "a byte is no msgpack"


def _stack_size() -> int:
    """Find out how deep msgpack's C parser can go; 0 when it has no such limit or is not in C."""
    if not msgpack.Unpacker.__module__.endswith("_cmsgpack"):
        return 0
    low, high = 1, 1 << 14  # low levels can be parsed, high ones cannot
    while high - low > 1:
        depth = (low + high) // 2
        parser = msgpack.Unpacker()
        parser.feed(_LIST_OF_ONE * depth + _NIL)
        try:
            parser.skip()
        except msgpack.StackError:
            high = depth
        else:
            low = depth
    return low if high < 1 << 14 else 0


_FILLER = _LIST_OF_ONE * max(0, _stack_size() - DEPTH_MAX)
"""Opened lists that leave `DEPTH_MAX` levels of the parser's stack; empty: depth is walked."""
