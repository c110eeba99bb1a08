"""Freezing the state at an index while it goes on changing.

Pure: no I/O, no clock, no randomness. It decides which records a compacted prefix needs (see
core/prefix.py) and serialises them. It is not the storage, which writes them, nor does it say when
to freeze: that is the server's loop. The multiplexer drives it.

A PERIOD lies between two freezes. What has a record, a session or a resource, is TOUCHED before it
changes: the first time in a period it is noted as changed, which costs one comparison every other
time. A freeze makes all that was noted PENDING and begins a new period; that takes no longer for a
million sessions than for one. Pending records are then serialised a slice at a time, and whatever
is touched while it is pending is serialised first. So the records are those of the index of the
freeze, however long the slices take, and no entry pays for more than what it changes itself.

    1. freeze at 20; session 7 had changed, and is pending.
    2. entry 21 is a command of session 7: it is serialised as of 20, then noted as changed.
    3. the slices go on with the rest. The next freeze has session 7 again.
"""

from __future__ import annotations

from typing import Any

from folkmoot.core.deadlines import Deadlines
from folkmoot.core.prefix import Frozen, Ledger, RecordKey, RecordKind, Trim
from folkmoot.core.resource import Resource
from folkmoot.core.sessions import Session
from folkmoot.transport.codec import pack

_RECORD_BYTES = 64
"""What a record counts for beside its bytes, so that a slice also ends among tiny ones."""


class Changes:
    """What has changed since the last freeze.

    - Whatever has `touched` == `period` is in `_changed`, as is what came to be in this period.
    - Whatever is touched for the first time in a period is not pending any more.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self.period = 1
        self.ledger = Ledger()
        """The items of this period."""
        self.freezing: Freeze | None = None
        """The freeze whose records are being serialised."""
        self._deadlines = deadlines
        self._frozen_index = 0
        self._changed: dict[RecordKey, Session | Resource | None] = {}
        """None: there was a record at the last freeze, and what it described is gone."""

    def touch_session(self, session: Session) -> None:
        """Note that a session is about to change."""
        if session.touched < self.period:
            session.touched = self.period
            self._note((RecordKind.SESSION, session.id), session)

    def touch_resource(self, resource: Resource) -> None:
        """Note that a resource's machine, or a deadline of it, is about to change."""
        if resource.touched < self.period:
            resource.touched = self.period
            self._note((RecordKind.RESOURCE, resource.id), resource)

    def add_session(self, session: Session) -> None:
        """Note a new session."""
        session.touched = self.period
        self._changed[RecordKind.SESSION, session.id] = session

    def add_resource(self, resource: Resource) -> None:
        """Note a new resource."""
        resource.touched = max(resource.touched, self.period)
        self._changed[RecordKind.RESOURCE, resource.id] = resource

    def remove_session(self, session: Session) -> None:
        """Note that a session is about to end."""
        self._remove((RecordKind.SESSION, session.id))

    def remove_resource(self, resource: Resource) -> None:
        """Note that a resource is about to go, with all deadlines."""
        self._remove((RecordKind.RESOURCE, resource.id))

    def freeze(self, index: int, log_time: int, core: bytes, trim: Trim) -> Freeze:
        """Begin a new period behind the entry `index`. O(1)."""
        assert self.freezing is None, (
            f"a freeze at {index} while that at {self._frozen_index} is under way"
        )
        records: dict[RecordKey, bytes | None] = {(RecordKind.CORE, 0): core}
        frozen = Frozen(index, log_time, self.ledger, records, trim)
        self.freezing = Freeze(self, frozen, self._changed, self._deadlines)
        self.begin(index)
        return self.freezing

    def begin(self, index: int) -> None:
        """Count everything as unchanged since the entry `index`."""
        self.period += 1
        self.ledger = Ledger()
        self._changed = {}
        self._frozen_index = index

    def _note(self, key: RecordKey, thing: Session | Resource) -> None:
        self._changed[key] = thing
        if self.freezing is not None:
            self.freezing.keep(key)

    def _remove(self, key: RecordKey) -> None:
        if self.freezing is not None:
            self.freezing.keep(key)
        if key[1] > self._frozen_index:  # an id is the index at which it came to be
            del self._changed[key]
        else:
            self._changed[key] = None


class Freeze:
    """A freeze whose records are being serialised.

    - What is in `_pending` has not changed since the index of the freeze.
    """

    def __init__(
        self,
        changes: Changes,
        frozen: Frozen,
        pending: dict[RecordKey, Session | Resource | None],
        deadlines: Deadlines,
    ) -> None:
        self.index = frozen.index
        self._changes = changes
        self._frozen = frozen
        self._pending = pending
        self._deadlines = deadlines

    def step(self, bytes_max: int) -> bool:
        """Serialise about so many bytes of records, one at least; say whether all are done.

        Raises MachineFault where a machine cannot say what it is.
        """
        while self._pending and bytes_max > 0:
            bytes_max -= self._take(*self._pending.popitem())
        return not self._pending

    def keep(self, key: RecordKey) -> None:
        """Serialise what is about to change, if it is pending."""
        if key in self._pending:
            self._take(key, self._pending.pop(key))

    def result(self) -> Frozen:
        """End the freeze, and return what it made."""
        assert not self._pending, f"{len(self._pending)} records of {self.index} are pending"
        assert self._changes.freezing is self, f"the freeze at {self.index} has ended"
        self._changes.freezing = None
        return self._frozen

    def _take(self, key: RecordKey, thing: Session | Resource | None) -> int:
        """Serialise one record; return what it counts for."""
        record = None if thing is None else record_of(thing, self._deadlines)
        self._frozen.records[key] = record
        return _RECORD_BYTES + (0 if record is None else len(record))


def record_of(thing: Session | Resource, deadlines: Deadlines) -> bytes:
    """Serialise a session or a resource. Raises MachineFault."""
    if isinstance(thing, Session):
        return pack(thing.snapshot())
    return pack([*thing.identity(), *_state(thing, deadlines)])


def _state(resource: Resource, deadlines: Deadlines) -> list[Any]:
    """What of a resource is not owed to entries: [packed state or None, deadlines or None]."""
    if not resource.by_entries:
        return [resource.pack_state("snapshot"), deadlines.of(resource.id)]
    return [resource.pack_state("remainder") if resource.machine.has_record else None, None]
