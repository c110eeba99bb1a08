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

from collections.abc import Iterable
from typing import Any

from folkmoot.core.config import LimitsConfig
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.events import KEPT, PendingEvents
from folkmoot.core.resource import MachineFault, Resource
from folkmoot.core.sessions import SessionTable
from folkmoot.transport.codec import pack


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

    - `resource_id` is the resource whose machine is being called; deadlines and events are booked
      to it.
    - `effect` is the index of the last entry whose COMMAND published or touched a deadline: a
      command that raises a CommandError must not have done so.
    - Between entries `unsettled` is False, and `overflowed` and `bereft` are empty.
    """

    __slots__ = (
        "_bytes_max",
        "_count_max",
        "_deadlines",
        "bereft",
        "dirty",
        "effect",
        "overflowed",
        "resource_id",
        "unsettled",
    )

    def __init__(self, sessions: SessionTable, deadlines: Deadlines, limits: LimitsConfig) -> None:
        super().__init__(sessions)
        self.resource_id = 0
        self.effect = 0
        self.unsettled = False
        self.overflowed: dict[int, set[int]] = {}
        """Sessions over their bounds, and the resources whose events were discarded since."""
        self.bereft: set[int] = set()
        """Resources that may have no session and nothing to keep any more."""
        self.dirty: dict[int, None] = {}
        """Sessions with new events in this batch."""
        self._deadlines = deadlines
        self._count_max = limits.session_events_max
        self._bytes_max = limits.session_event_bytes_max

    def publish(
        self, sessions: int | Iterable[int], kind: str, payload: Any = None, *, keep: bool = False
    ) -> None:
        """Publish one event to one or several sessions (see `Context.publish`)."""
        index = self.effect = self.index
        targets = (sessions,) if isinstance(sessions, int) else sessions
        if isinstance(targets, (set, frozenset)):
            targets = sorted(targets)
        event = b""
        source = KEPT if keep else self.resource_id
        for session_id in targets:
            session = self._sessions.get(session_id)
            if session is None:
                continue
            if not event:
                event = pack((self.resource_id, kind, payload))
            if source and session_id in self.overflowed:
                self.overflowed[session_id].add(source)
                continue
            events = session.events
            events.add(index, event, source)
            self.dirty[session_id] = None
            if self.over_bounds(events):
                self.overflowed.setdefault(session_id, set())
                self.unsettled = True

    def set_deadline(self, key: str, time: int) -> None:
        """Set or move the deadline of a key (see `Context.set_deadline`)."""
        self.effect = self.index
        self._deadlines.set(self.resource_id, key, time)

    def clear_deadline(self, key: str) -> None:
        """Forget the deadline of a key."""
        self.effect = self.index
        self._deadlines.clear(self.resource_id, key)

    def publish_for(self, resource_id: int, sessions: int | Iterable[int], kind: str) -> None:
        """Publish a kept event about a resource that does not come from its machine."""
        before, self.resource_id = self.resource_id, resource_id
        self.publish(sessions, kind, keep=True)
        self.resource_id = before

    def lose(self, resource: Resource, session_id: int) -> None:
        """Tell a machine that it has lost a session. The marks are the caller's to remove."""
        before = self.resource_id, self.session
        self.resource_id, self.session = resource.id, 0
        try:
            resource.machine.session_ended(self, session_id)
        except Exception as error:
            raise fault(self.index, resource.describe(), "session_ended", error) from error
        self.resource_id, self.session = before
        self.note_bereft(resource)

    def over_bounds(self, events: PendingEvents) -> bool:
        """Whether a session's pending events pass one of their two bounds."""
        return events.count > self._count_max or events.size_bytes > self._bytes_max

    def note_bereft(self, resource: Resource) -> None:
        """Look at the end of the entry whether the resource is to be collected."""
        self.bereft.add(resource.id)
        self.unsettled = True


def fault(index: int, where: str, operation: str, error: BaseException | str) -> MachineFault:
    """Describe what a machine did that no machine may."""
    what = error if isinstance(error, str) else f"raised {type(error).__name__}: {error}"
    return MachineFault(f"entry {index}: {operation!r} of {where} {what}")
