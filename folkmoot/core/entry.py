"""What happens around an entry: deadlines before it, and afterwards what it left to settle.

Pure: no I/O, no clock, no randomness. Shared by all kinds of entries; the multiplexer drives it.

    enter(index)    fire the deadlines that are due
    ...             the entry itself
    leave()         cut or expire sessions whose events overflowed; collect what nobody needs

Settling comes last because a machine that publishes may be walking over its own subscribers: nobody
calls it back before it is done. It ends: a session is cut, and is then within its bounds or ends,
and sessions are finite.
"""

from __future__ import annotations

from folkmoot.core.applied import Applied, Ended
from folkmoot.core.context import EntryContext
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.directory import Directory
from folkmoot.core.freeze import Changes
from folkmoot.core.sessions import Session, SessionTable


class EntryFrame:
    """The entry that is being applied.

    - Deadlines fire once per entry. What they set, even if it is due at once, waits for the next
      entry.
    - After `leave` no session is over its bounds, and `context` has nothing to settle.
    """

    def __init__(
        self,
        context: EntryContext,
        sessions: SessionTable,
        directory: Directory,
        deadlines: Deadlines,
        changes: Changes,
    ) -> None:
        self.context = context
        self.applied = Applied()
        self._sessions = sessions
        self._directory = directory
        self._deadlines = deadlines
        self._changes = changes
        self._fired = 0

    def begin(self, time: int) -> Applied:
        """Start a batch with this log time; return what its entries will be noted in."""
        self.context.time = time
        self.applied = Applied()
        self.context.dirty = self.applied.dirty
        return self.applied

    def enter(self, index: int) -> None:
        """Come to an entry and fire what is due. May be called again for the same entry."""
        context = self.context
        context.index = index
        if self._deadlines.earliest > context.time or self._fired == index:
            return
        assert index > self._fired, f"entry {index} after deadlines fired at {self._fired}"
        self._fired = index
        for due in self._deadlines.take_due(context.time):
            resource = self._directory.resources[due[1]]
            self._changes.touch_resource(resource)
            if self._deadlines.claim(due):
                context.call_aside(resource, resource.machine.on_deadline, due[2])
                if not resource.sessions:
                    context.note_bereft(resource)
        context.effect = 0  # these were no command's

    def leave(self) -> None:
        """Settle what the entry left."""
        context = self.context
        while context.overflowed:
            self._cut(min(context.overflowed))
        if context.bereft:
            self._directory.collect(context.bereft, context.index)
            context.bereft.clear()
        context.unsettled = False

    def skip(self, first: int, last: int) -> None:
        """Pass over the entries `first` to `last`, which do nothing (more) themselves."""
        for index in range(first, last + 1):
            if self._deadlines.earliest <= self.context.time:
                self.enter(index)
            elif not self.context.unsettled:
                return  # nothing can come up any more: only entries set deadlines
            if self.context.unsettled:
                self.leave()

    def end(self, session: Session, reason: str) -> None:
        """End a session, and tell every machine that it has open, in order of resource id."""
        context = self.context
        self._changes.remove_session(session)
        self._sessions.remove(session)
        context.dirty.pop(session.id, None)
        context.overflowed.pop(session.id, None)
        for resource_id in sorted(session.opened):
            context.lose(session.opened[resource_id], session.id)
        for resource in session.opened.values():
            resource.sessions.remove(session.id)
        self.applied.ended.append(Ended(session.id, reason, context.index))

    def _cut(self, session_id: int) -> None:
        """Drop what may be dropped of a session's events, and tell it what to look at anew."""
        context = self.context
        sources = context.overflowed.pop(session_id)
        session = self._sessions.get(session_id)
        assert session is not None, f"session {session_id} overflowed and is gone"
        self._changes.touch_session(session)
        sources |= session.events.drop()
        for resource_id in sorted(session.opened):
            resource = session.opened[resource_id]
            if context.call_aside(resource, resource.machine.cut_subscriptions, session_id):
                sources.add(resource_id)
        for resource_id in sorted(sources):
            source = self._directory.resources.get(resource_id)
            if source is not None:
                context.publish_for(source, session_id, "resync")
        if context.over_bounds(session.events):
            self.end(session, "expired")
