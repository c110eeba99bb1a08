"""The compacted prefix as data: what the state freezes at an index, and what it is restored from.

Pure: no I/O, no clock, no randomness. It is the boundary between the replicated state, which knows
what records and entries mean (core/freeze.py makes a `Frozen`, core/multiplexer.py restores from a
`PrefixSource`), and the storage, which keeps both and knows neither (core/storage/compaction.py).

The compacted prefix up to a COMPACTION INDEX S holds two kinds of things, and is a snapshot:

    records   one for the core (log time and the like), one per session, one per resource: what is
              not owed to single entries. A record stands until another replaces it.
    items     what machines owe to single entries: the entries themselves (index, log time, session,
              resource, name, arguments), as long as one of the items that they own lives.

An item is named by (index, ordinal): the entry that owns it, and its number among that entry's
items. WHAT LIVES is decided where entries are applied and nowhere else: an item lives from the
entry that retained it to the one that superseded it. An item may be dropped from the prefix only if
what superseded it has an index at or below S: so liveness is frozen with S, never recomputed later.

    1. set a=1 at 10, set a=2 at 30; S is 20. Judged at 30, entry 10 is dead.
    2. a prefix at 20 without entry 10 has no `a` at all: a state that never existed.
    3. a server restored from it would answer a conditional command at 25 differently.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

ONE: Sequence[int] = (0,)
"""The ordinals of an entry that owns a single item."""


class RecordKind(enum.IntEnum):
    """What a record of the prefix describes. The numbers are on disk."""

    CORE = 1
    """The multiplexer's own; its key is 0."""
    RESOURCE = 2
    """A resource; its key is the resource's id."""
    SESSION = 3
    """A session; its key is the session's id."""
    CONFIGURATION = 4
    """Consensus's own, key 0: the members as of the index. A `PrefixSource` keeps it to itself."""


RecordKey = tuple[int, int]
"""(RecordKind, id)"""


@attrs.define(eq=False)
class Ledger:
    """What entries came to own and what was superseded, since the last freeze.

    Written while entries are applied, one append each, and read by whoever compacts. An item of an
    entry above the last compaction index is live exactly if it is in here and not superseded.
    """

    retained: array[int] = attrs.field(factory=lambda: array("Q"))
    """Entries that own one item each, in order."""
    retained_many: dict[int, int] = attrs.field(factory=dict)
    """Entries that own several items -> how many: the ordinals from 0 on."""
    superseded: array[int] = attrs.field(factory=lambda: array("Q"))
    """Owners of items with ordinal 0 that are superseded, in no order, each at most once."""
    superseded_parts: list[tuple[int, int]] = attrs.field(factory=list)
    """Items with another ordinal that are superseded: (index, ordinal)."""
    named: dict[int, int] = attrs.field(factory=dict)
    """Entries that named their resource and retained something -> the resource's id."""
    deleted: list[int] = attrs.field(factory=list)
    """Resources that were deleted while they may have had items: all of them are dead."""


Trim = Callable[[int, str, list[Any], Sequence[int]], tuple[str, list[Any]]]
"""(resource id, name, arguments, live ordinals) -> what of the entry is worth keeping."""


@attrs.define(eq=False)
class Frozen:
    """The state as of `index`, as far as it differs from the last freeze. Handed over complete."""

    index: int
    """The compaction index S."""
    log_time: int
    ledger: Ledger
    records: dict[RecordKey, bytes | None]
    """Records that are new or changed since the last freeze; None: there is none any more."""
    trim: Trim
    """May be called from another thread."""


@attrs.define(eq=False)
class Items:
    """Live entries in order of index, as parallel lists of equal length."""

    indexes: Sequence[int]
    times: Sequence[int]
    sessions: Sequence[int]
    resources: Sequence[int]
    operations: Sequence[list[Any]]
    """[name, arguments] each."""
    ordinals: Mapping[int, Sequence[int]]
    """Position -> the ordinals that live, rising; for every position that is not in here, ONE."""


class PrefixSource(Protocol):
    """A compacted prefix that is read back. Both raise StorageCorrupt for bytes that do not verify.

    Each step of an iteration is bounded, so that a server can do something else in between.
    """

    def records(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (kind, id, bytes): the core first, then resources, then sessions; ids rise."""
        ...

    def items(self) -> Iterator[Items]:
        """Yield the live entries, in order of index over all. After `records` is exhausted."""
        ...
