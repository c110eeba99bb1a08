"""Typed values: attrs classes, dataclasses and types made of these, as plain data and back.

Pure: no I/O, no clock, no randomness. Imported only where a proxy has a `type=`: it loads cattrs.

The type is the caller's; the data names none, and nothing is ever imported because data says so.
Reading is strict: a field declared int takes no "12", no True and no 1.0. Fields that the data has
and the class has not are passed over, and fields with a default may be missing, so that programs of
two versions can share a map. Dates and times become text, sets lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Set
from enum import Enum
from typing import Any

import attrs
import cattrs
from cattrs.preconf.json import make_converter

from folkmoot.core.errors import UsageError

_PLAIN = (int, float, str, bool, bytes)


class Structure:
    """How values of one type are taken apart and put together.

    Raises UsageError for a type that cannot be.
    """

    __slots__ = ("_converter", "_exact", "_kind")

    def __init__(self, kind: Any, *, raw_bytes: bool) -> None:
        self._kind = kind
        self._exact = isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind))
        self._converter = _converter(raw_bytes)
        try:
            self._converter.get_structure_hook(kind)
            self._converter.get_unstructure_hook(kind)
        except Exception as error:
            raise UsageError(
                f"type={kind!r} cannot be stored: {error}; use an attrs class or a dataclass, "
                "or a codec with encode and decode"
            ) from error

    def take_apart(self, value: Any) -> Any:
        """Return the value as plain data. Raises TypeError for a value of another type."""
        kind = self._kind
        if self._exact and type(value) is not kind:
            # A subclass would pass, and silently lose the fields that it adds.
            raise TypeError(f"exactly {kind.__qualname__} is needed")
        if isinstance(kind, type) and not self._exact:
            _need(kind, value)
        return self._converter.unstructure(value, unstructure_as=kind)

    def put_together(self, data: Any) -> Any:
        """Return the value that plain data describes. Raises ValueError saying what is wrong."""
        try:
            return self._converter.structure(data, self._kind)
        except cattrs.BaseValidationError as error:
            raise ValueError("; ".join(cattrs.transform_error(error))) from error


def _converter(raw_bytes: bool) -> cattrs.Converter:
    converter = make_converter(unstruct_collection_overrides={Set: _in_order})
    for kind in _PLAIN:
        if raw_bytes or kind is not bytes:  # in JSON, cattrs makes text of bytes
            converter.register_structure_hook(kind, _strict)
            converter.register_unstructure_hook(kind, _checked(kind))
    return converter


def _checked(kind: type) -> Callable[[Any], Any]:
    """Make a hook that lets through what `_strict` will take back: or it is stored, and lost."""

    def check(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        _need(kind, value)
        return value

    return check


def _strict(value: Any, kind: Any) -> Any:
    if kind not in _PLAIN:
        return kind(value)  # an enumeration of these, for hooks count for subclasses as well
    _need(kind, value)
    return float(value) if kind is float else value


def _need(kind: type, value: Any) -> None:
    if type(value) is kind or (kind is float and type(value) is int):
        return
    if kind in _PLAIN or not isinstance(value, kind):
        raise TypeError(f"{kind.__qualname__} is needed, not {type(value).__qualname__}")


def _in_order(items: Set[Any]) -> list[Any]:
    # Equal sets become equal bytes, whatever the order in which they hash.
    return sorted(items, key=repr)
