"""Which entry owns what of a map, and what of an entry is worth keeping when the log is compacted.

Pure: no I/O, no clock, no randomness. The map's machine retains and supersedes; see `Machine`.

An entry owns items, each with an ordinal:

    set, create, replace    0: the value    1: the expiry, where there is a ttl
    set_many of n keys      0 to n - 1: the values, in order    n to 2n - 1: the expiries
    touch with a ttl        0: the expiry
    subscribe               0: the subscription

The expiry is an item of its own because it may outlive its value, and come back before it:

    1. set k=1 with a ttl, at 5: owns the value (0) and the expiry (1).
    2. set k=2 with ttl=KEEP, at 8: owns a value and supersedes the first; 5 owns the expiry still.
    3. a restore gets the expiry of 5 first: there is no such key until 8 is restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Expiry = tuple[int, int, int]
"""log time (ms), and the owner: index and ordinal."""

FOREVER = 0
"""As a time to live: none."""
SETS = frozenset({"set", "create", "replace"})
"""Commands with (key, value, ttl, ...). One that owns anything has succeeded: it is a plain set."""
KEPT = "kept"
"""What is left of an entry of which only some items live. No command has this name.

Arguments: how many keys there were, ttl, and for each key
[its position, key, value or nil, whether its expiry lives].
"""

_PART_BYTES = 8
"""What a key of KEPT takes beside key and value."""


def trimmed(name: str, args: list[Any], ordinals: Sequence[int]) -> tuple[str, list[Any]]:
    """Leave out of an entry what its items `ordinals` do not need; see `Machine.trim`."""
    if (
        name == KEPT
        or (name in SETS and 0 not in ordinals)
        or (name == "set_many" and _is_wasteful(args[0], ordinals))
    ):
        return KEPT, living(name, args, ordinals)
    return name, args


def _is_wasteful(values: dict[str, bytes], ordinals: Sequence[int]) -> bool:
    """Say whether the values that are dead take more than numbering the others would."""
    live = frozenset(ordinals)
    dead = [item for position, item in enumerate(values.items()) if position not in live]
    return sum(len(key) + len(value) for key, value in dead) > _PART_BYTES * len(values)


def living(name: str, args: list[Any], ordinals: Sequence[int]) -> list[Any]:
    """Return what lives of an entry that sets keys, as the arguments of KEPT."""
    if name == KEPT:
        count, ttl, parts = args
    else:
        items, *rest = args if name == "set_many" else ({args[0]: args[1]}, *args[2:])
        count, ttl = len(items), rest[0] if rest else FOREVER
        parts = [[position, *item, True] for position, item in enumerate(items.items())]
    live = frozenset(ordinals)
    parts = [
        [position, key, value if position in live else None, count + position in live]
        for position, key, value, _ in parts
    ]
    return [count, ttl, [part for part in parts if part[2] is not None or part[3]]]
