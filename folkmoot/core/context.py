"""The context that machines see, and the bookkeeping of the entry that is being applied.

Pure: no I/O, no clock, no randomness. One object serves all entries of a server: the multiplexer
moves it from entry to entry. Machines see of it what `Context` in core/machine.py says; the rest is
the multiplexer's and the directory's.

What an entry does to others than its own resource and session is only noted while it runs, and
settled when its command is done: a session whose events overflow (a machine may be walking over its
subscribers just then), a resource that has lost its last session. So no machine is ever called
while another one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from folkmoot.core.config import LimitsConfig
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.errors import UsageError
from folkmoot.core.events import KEPT, PendingEvents
from folkmoot.core.freeze import Changes
from folkmoot.core.resource import MachineFault, Resource
from folkmoot.core.sessions import SessionTable
from folkmoot.transport.codec import pack

_NONE_MAY = 1 << 64
"""As `EntryContext.retained`: an index that no entry has."""


class ReadContext:
    """What a query sees."""

    __slots__ = ("_sessions", "index", "session", "time")

    def __init__(self, sessions: SessionTable) -> None:
        self.index = 0
        self.time = 0
        self.session = 0
        self._sessions = sessions

    def client_name(self, session: int) -> str:
        """Return the name of the session's client; empty for a session that is gone."""
        found = self._sessions.get(session)
        return "" if found is None else found.client_name


class EntryContext(ReadContext):
    """What a command, a deadline and the end of a session see.

    - `resource` is the one whose machine is being called; deadlines and events are booked to it.
      It has been touched before (see core/freeze.py).
    - `effect` is the index of the last entry whose COMMAND published, superseded or touched a
      deadline: a command that raises a CommandError must not have done so, nor retained.
    - `retained` is the index of the last entry that came to own items; beyond all indexes while a
      machine is called that is not executing a command.
    - Between entries `unsettled` is False, and `overflowed` and `bereft` are empty.
    """

    __slots__ = (
        "_bytes_max",
        "_changes",
        "_count_max",
        "_deadlines",
        "_retained_items",
        "_superseded_items",
        "bereft",
        "dirty",
        "effect",
        "overflowed",
        "resource",
        "retained",
        "unsettled",
    )

    def __init__(
        self,
        sessions: SessionTable,
        deadlines: Deadlines,
        changes: Changes,
        limits: LimitsConfig,
    ) -> None:
        super().__init__(sessions)
        self.resource: Resource
        self.effect = 0
        self.retained = 0
        self.unsettled = False
        self.overflowed: dict[int, set[int]] = {}
        """Sessions over their bounds, and the resources whose events were discarded since."""
        self.bereft: set[int] = set()
        """Resources that may have no session and nothing to keep any more."""
        self.dirty: dict[int, None] = {}
        """Sessions with new events in this batch."""
        self._deadlines = deadlines
        self._changes = changes
        self.begin_period()
        self._count_max = limits.session_events_max
        self._bytes_max = limits.session_event_bytes_max

    def begin_period(self) -> None:
        """Book retained and superseded items to the ledger of the period that has begun."""
        ledger = self._changes.ledger
        self._retained_items = ledger.retained
        self._superseded_items = ledger.superseded

    def publish(
        self, sessions: int | Iterable[int], kind: str, payload: Any = None, *, keep: bool = False
    ) -> None:
        """Publish one event to one or several sessions (see `Context.publish`)."""
        index = self.effect = self.index
        targets = (sessions,) if isinstance(sessions, int) else sessions
        if isinstance(targets, (set, frozenset)):
            targets = sorted(targets)
        event = b""
        resource_id = self.resource.id
        source = KEPT if keep else resource_id
        changes = self._changes
        for session_id in targets:
            session = self._sessions.get(session_id)
            if session is None:
                continue
            if not event:
                event = pack((resource_id, kind, payload))
            if source and session_id in self.overflowed:
                self.overflowed[session_id].add(source)
                continue
            if session.touched < changes.period:
                changes.touch_session(session)
            events = session.events
            events.add(index, event, source)
            self.dirty[session_id] = None
            if self.over_bounds(events):
                self.overflowed.setdefault(session_id, set())
                self.unsettled = True

    def set_deadline(self, key: str, time: int) -> None:
        """Set or move the deadline of a key (see `Context.set_deadline`)."""
        self.effect = self.index
        self._deadlines.set(self.resource.id, key, time)

    def clear_deadline(self, key: str) -> None:
        """Forget the deadline of a key."""
        self.effect = self.index
        self._deadlines.clear(self.resource.id, key)

    def retain(self, count: int = 1) -> None:
        """Say that this entry owns items (see `Context.retain`)."""
        index = self.index
        if count != 1 or self.retained >= index or not self.resource.by_entries:
            self._retain_many(count)
            return
        self.retained = index
        self._retained_items.append(index)

    def supersede(self, index: int, ordinal: int = 0) -> None:
        """Say that an item is gone (see `Context.supersede`)."""
        self.effect = self.index
        if ordinal:
            self._changes.ledger.superseded_parts.append((index, ordinal))
        else:
            self._superseded_items.append(index)

    def supersede_all(self, indexes: Iterable[int]) -> None:
        """Say that the only items of these entries are gone."""
        self.effect = self.index
        self._superseded_items.extend(indexes)

    def name_retained(self) -> None:
        """Note what resource the entry named, if it owns items: it does not say the id."""
        if self.retained == self.index:
            self._changes.ledger.named[self.index] = self.resource.id

    def publish_for(self, resource: Resource, sessions: int | Iterable[int], kind: str) -> None:
        """Publish a kept event about a resource that does not come from its machine."""
        self.resource = resource
        self.publish(sessions, kind, keep=True)

    def lose(self, resource: Resource, session_id: int) -> None:
        """Tell a machine that it has lost a session. The marks are the caller's to remove."""
        self.call_aside(resource, resource.machine.session_ended, session_id)
        self.note_bereft(resource)

    def call_aside(
        self, resource: Resource, method: Callable[[EntryContext, Any], Any], argument: Any
    ) -> Any:
        """Call a method of a resource's machine that is no command. Raises MachineFault."""
        self._changes.touch_resource(resource)
        self.resource = resource
        before = self.session, self.retained
        self.session, self.retained = 0, _NONE_MAY
        try:
            answer = method(self, argument)
        except Exception as error:
            call = f"{method.__name__}({argument!r})"
            raise fault(self.index, resource.describe(), call, error) from error
        self.session, self.retained = before
        return answer

    def over_bounds(self, events: PendingEvents) -> bool:
        """Whether a session's pending events pass one of their two bounds."""
        return events.count > self._count_max or events.size_bytes > self._bytes_max

    def note_bereft(self, resource: Resource) -> None:
        """Look at the end of the entry whether the resource is to be collected."""
        self.bereft.add(resource.id)
        self.unsettled = True

    def _retain_many(self, count: int) -> None:
        """Retain several items, or say why that may not be."""
        if self.retained == _NONE_MAY:
            raise UsageError("retain() outside of a command")
        if self.retained == self.index:
            raise UsageError("retain() twice in one entry")
        if not self.resource.by_entries:
            raise UsageError("retain() by a machine whose retention is STATE")
        if count < 1:
            raise UsageError(f"retain({count}): an entry owns one item at least, or says nothing")
        self.retained = self.index
        self._changes.ledger.retained_many[self.index] = count


def fault(index: int, where: str, operation: str, error: BaseException | str) -> MachineFault:
    """Describe what a machine did that no machine may."""
    what = error if isinstance(error, str) else f"raised {type(error).__name__}: {error}"
    return MachineFault(f"entry {index}: {operation!r} of {where} {what}")
