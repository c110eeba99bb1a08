"""Values: how what a user stores becomes bytes, and bytes what he stored.

Pure: no I/O, no clock, no randomness. Only clients do this: to the servers a value is opaque bytes.

A codec is chosen when a proxy is made, and the same one has to be chosen wherever a resource is
used; the bytes do not say how they were made, and name no classes:

    nothing given       plain data, as msgpack: None, bool, int, float, str, bytes, list, dict
    type=User           an attrs class or a dataclass, or any type made of these, as the msgpack
                        data of its fields: through cattrs, which is imported only then
    codec="bytes"       bytes, as they are
    codec="json"        what the json module takes, as UTF-8
    codec=object        anything with `encode(value) -> bytes` and `decode(bytes) -> value`

With type= and codec="json" the data of the fields goes into JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from folkmoot.core.errors import FolkmootError, RemoteProtocolError, TooLarge, UsageError
from folkmoot.transport.codec import pack, unpack

V = TypeVar("V")

CodecName = Literal["msgpack", "bytes", "json"]


class Codec(Protocol[V]):
    """Turns values into bytes and back. What either raises is reported with its cause."""

    def encode(self, value: V, /) -> bytes:
        """Return the value's bytes."""
        ...

    def decode(self, data: bytes, /) -> V:
        """Return the value that these bytes were made of."""
        ...


class DecodeError(FolkmootError):
    """The bytes that are stored are not what this proxy's codec makes.

    A read changed nothing; a command that was to answer with the value has been applied.
    """

    code = "decode"
    applied = "yes"
    hint = "is the resource written with another type= or codec= elsewhere?"


class Values(Generic[V]):
    """A codec as a proxy uses it: with a limit on the size, and errors that say where.

    `where` is the resource, and what its values stand under: `map 'users', key`. Values of
    resources without keys stand under "".
    """

    __slots__ = ("_decode", "_encode", "_limit", "_where", "name")

    def __init__(
        self,
        type: Any = None,
        codec: CodecName | Codec[V] = "msgpack",
        *,
        bytes_max: int,
        where: str = "value",
    ) -> None:
        self.name, self._encode, self._decode = _functions(type, codec)
        self._limit = bytes_max
        self._where = where

    def encode(self, key: str, value: V) -> bytes:
        """Return the value's bytes. Raises UsageError, or TooLarge, saying where."""
        try:
            data = self._encode(value)
        except Exception as error:
            what = f"a value of type {type(value).__name__} is none for codec {self.name}"
            raise UsageError(f"{self._at(key)}: {what}: {error}") from error
        if type(data) is not bytes:
            made = type(data).__name__
            raise UsageError(f"{self._at(key)}: codec {self.name} encodes into {made}, not bytes")
        if len(data) > self._limit:
            raise TooLarge(
                f"{self._at(key)}: a value of {len(data)} bytes; "
                f"{self._limit} are allowed (value_bytes_max)"
            )
        return data

    def decode(self, key: str, data: bytes) -> V:
        """Return the value of these bytes. Raises DecodeError saying where, and the codec."""
        try:
            return cast("V", self._decode(data))
        except Exception as error:
            what = f"{len(data)} bytes are no value of codec {self.name}"
            raise DecodeError(f"{self._at(key)}: {what}: {error}") from error

    def _at(self, key: str) -> str:
        return f"{self._where} {key!r}" if key else self._where

    def __repr__(self) -> str:
        return f"<values of {self.name}>"


_Functions = tuple[str, Callable[[Any], bytes], Callable[[bytes], Any]]


def _functions(kind: Any, codec: Any) -> _Functions:
    """Return the codec's name, and how it encodes and decodes."""
    if codec == "bytes":
        if kind not in (None, bytes):
            raise UsageError(f'codec="bytes" stores bytes, not {_type_name(kind)}')
        return "bytes", _same_bytes, _same_bytes
    if codec == "msgpack":
        name, encode, decode = "msgpack", pack, _from_msgpack
    elif codec == "json":
        name, encode, decode = "json", _to_json, _from_json
    elif callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None)):
        if kind is not None:
            raise UsageError("give either type= or a codec of your own, not both")
        return type(codec).__name__, codec.encode, codec.decode
    else:
        raise UsageError(
            f'codec={codec!r}: "msgpack", "json", "bytes" or an object with encode and decode'
        )
    if kind is None:
        return name, encode, decode
    return _structured(kind, name, encode, decode)


def _structured(
    kind: Any, name: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> _Functions:
    from folkmoot.primitives._structures import Structure  # cattrs takes 0.1 s to import

    structure = Structure(kind, raw_bytes=name == "msgpack")

    def encode_structure(value: Any) -> bytes:
        return encode(structure.take_apart(value))

    def decode_structure(data: bytes) -> Any:
        return structure.put_together(decode(data))

    return f"{name} of {_type_name(kind)}", encode_structure, decode_structure


def _type_name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def _same_bytes(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError("bytes are needed")
    return value


def _from_msgpack(data: bytes) -> Any:
    try:
        return unpack(data)
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from error


def _to_json(value: Any) -> bytes:
    # Sorted keys: equal values are equal bytes, which replace(if_value=) compares.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    return text.encode()


def _from_json(data: bytes) -> Any:
    return json.loads(data)
