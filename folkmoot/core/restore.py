"""Making the state anew of a compacted prefix.

Pure: no I/O, no clock, no randomness. The other half of core/freeze.py: what that serialised, and
the live entries that the storage kept (core/prefix.py), become a state that goes on exactly as the
old one would. Nothing is applied here: a live entry is handed to its machine as the items that it
still owns, which publishes nothing, answers nothing and looks at no condition.

The order matters: items go to resources, and sessions have resources open. So resources come first,
each with what is not owed to entries; then sessions; then items, in order of index over all
resources.

`Multiplexer.restoring` drives it, in steps: at a start to the end at once, else a slice per turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from folkmoot.core.deadlines import Deadlines
from folkmoot.core.directory import Directory
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt, UsageError
from folkmoot.core.prefix import ONE, Items, PrefixSource, RecordKind
from folkmoot.core.resource import MachineFault, Resource
from folkmoot.core.sessions import Session, SessionTable
from folkmoot.transport.codec import pack, unpack

CORE_VERSION = 1
"""Of all records: the core's comes first and says it."""


class ItemContext:
    """What `restore_item` sees (see `RestoreContext`)."""

    __slots__ = ("_deadlines", "index", "resource_id", "session", "time")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self.index = 0
        self.time = 0
        self.session = 0
        self.resource_id = 0

    def set_deadline(self, key: str, time: int) -> None:
        """Set the deadline of a key."""
        self._deadlines.set(self.resource_id, key, time)


class Restore:
    """One restore, into a state that is empty.

    - After `run`, `index`, `time` and `epoch` are those of the prefix.
    """

    def __init__(
        self,
        directory: Directory,
        sessions: SessionTable,
        deadlines: Deadlines,
        source: PrefixSource,
    ) -> None:
        self.index = 0
        self.time = 0
        self.epoch = 0
        self._directory = directory
        self._sessions = sessions
        self._deadlines = deadlines
        self._source = source

    def run(self) -> Iterator[int]:
        """Restore all of it; yield after each step how many items there were so far."""
        yield from self.take_records()
        yield from self.take_items()

    def take_records(self) -> Iterator[int]:
        """Restore the core, the resources and the sessions."""
        takes = {
            RecordKind.CORE: self._take_core,
            RecordKind.RESOURCE: self._take_resource,
            RecordKind.SESSION: self._take_session,
        }
        before = (0, 0)
        for kind, number, data in self._source.records():
            where = f"record {number} of kind {kind}"
            if not before < (kind, number) or (not before[0] and kind != RecordKind.CORE):
                raise StorageCorrupt(f"{where} stands behind {before}: the prefix is out of order")
            before = (kind, number)
            try:
                takes[RecordKind(kind)](unpack(data))
            except (RemoteProtocolError, TypeError, ValueError, KeyError) as error:
                text = f"{where}, {len(data)} bytes, is none: {type(error).__name__}: {error}"
                raise StorageCorrupt(text) from error
            yield 0
        if not before[0]:
            raise StorageCorrupt("a prefix without a record of the core")

    def take_items(self) -> Iterator[int]:
        """Hand the live entries to their machines. Items of resources that are gone are dead."""
        count = 0
        for items in self._source.items():
            self._take(items)
            count += len(items.indexes)
            yield count

    def _take_core(self, fields: list[Any]) -> None:
        version, *fields = fields
        if version != CORE_VERSION:
            raise StorageCorrupt(
                f"a prefix with records of version {version}, this program knows {CORE_VERSION}"
            )
        self.index, self.time, self._sessions.floor, self.epoch = fields

    def _take_resource(self, fields: list[Any]) -> None:
        *identity, state, deadlines = fields
        resource = self._directory.revive(*identity)
        if resource.by_entries is not (deadlines is None):
            raise UsageError(
                f"this server cannot serve {resource.describe()}: its machine had another retention"
            )
        if state is not None:
            method = "restore_remainder" if resource.by_entries else "restore"
            data = unpack(state)
            try:
                getattr(resource.machine, method)(data)
            except Exception as error:
                raise _fault(resource, f"{method}()", error) from error
        for key, time in deadlines or ():
            self._deadlines.set(resource.id, key, time)

    def _take_session(self, fields: list[Any]) -> None:
        self._sessions.add(Session.restore(fields, self._directory.resources))

    def _take(self, items: Items) -> None:
        context = ItemContext(self._deadlines)
        resources = self._directory.resources
        ordinals = items.ordinals
        entries = zip(
            *(items.indexes, items.times, items.sessions, items.resources, items.operations),
            strict=True,
        )
        for position, (index, time, session, resource_id, (name, args)) in enumerate(entries):
            resource = resources.get(resource_id)
            if resource is None:
                continue
            context.index = index
            context.time = time
            context.session = session
            context.resource_id = resource_id
            live = ordinals.get(position, ONE) if ordinals else ONE
            try:
                resource.machine.restore_item(context, name, args, live)
            except Exception as error:
                call = f"restore_item({name!r}) at entry {index}"
                raise _fault(resource, call, error) from error


def encode_core(index: int, time: int, floor: int, epoch: int) -> bytes:
    """Make the record of the core."""
    return pack([CORE_VERSION, index, time, floor, epoch])


def _fault(resource: Resource, call: str, error: Exception) -> MachineFault:
    return MachineFault(f"{call} of {resource.describe()} failed: {type(error).__name__}: {error}")
