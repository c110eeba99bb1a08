"""What this server's own clients have asked for and the log has not answered yet.

Pure: no I/O, no clock, no randomness. Driven by `core/replica.py`.

Every command, session opening and session closing of a local client stays OUTSTANDING here, in
order, until this server has applied it itself. It is routed once: proposed where this server leads,
else forwarded to the leader. When the route changes (a new term, another leader, a peer link that
came back), or when no answer came for `retry_s`, everything outstanding is routed again. That is
safe because sessions are exactly-once: what is applied twice takes effect once (§6.3).

    1. S forwards a client's commands 5..7 to leader L, which crashes before it sends them on.
    2. M is elected. S sees the new term and forwards 5..7 again, in order.
    3. Had L replicated them before it crashed, M has them already; the second copy is a duplicate
       at apply.

- Per session the outstanding commands are contiguous: `first` of the next follows the last of the
  one before.
- A group leaves here only when it was applied here, when its session ended, or when its client went
  away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import attrs

from folkmoot.core.batch import Group


@attrs.define
class Outstanding:
    """The unanswered commands of one local session, oldest first."""

    next_sequence: int
    due_sequence: int
    """The first sequence whose answer this connection has not been sent."""
    groups: deque[tuple[int, Group]] = attrs.field(factory=deque)
    """(first sequence, group)."""
    since: float = 0.0
    """When the oldest was routed, or the last answer came; valid while there is one."""


@attrs.define
class Intake:
    """Everything outstanding on this server."""

    bytes_max: int
    retry_s: float
    size_bytes: int = 0
    sessions: dict[int, Outstanding] = attrs.field(factory=dict)
    opens: dict[bytes, Group] = attrs.field(factory=dict)
    """Secret hash -> group, until the session is open."""
    closes: dict[int, Group] = attrs.field(factory=dict)
    fresh: list[Group] = attrs.field(factory=list)
    """Not routed yet: what arrived in this turn."""
    keep_alives: dict[int, list[int]] = attrs.field(factory=dict)
    """Session id -> the newest keep-alive of this turn. Never repeated.

    The client sends another.
    """
    _route: object = None
    _check_at: float = 0.0

    def attach(self, session_id: int, next_sequence: int) -> None:
        """Start taking commands of a session that has just been opened or resumed here."""
        self.detach(session_id)
        self.sessions[session_id] = Outstanding(next_sequence, next_sequence)

    def detach(self, session_id: int) -> None:
        """Forget what a session has outstanding: it went elsewhere, or ended."""
        gone = self.sessions.pop(session_id, None)
        if gone is not None:
            self.size_bytes -= sum(len(group.payload) for _, group in gone.groups)
        self.closes.pop(session_id, None)

    def expected(self, session_id: int) -> int:
        """The sequence that the session's next frame must begin with."""
        return self.sessions[session_id].next_sequence

    def in_flight(self, session_id: int) -> int:
        """How many of the session's commands are unanswered."""
        session = self.sessions[session_id]
        return session.next_sequence - session.groups[0][0] if session.groups else 0

    def route_again(self, session_id: int, now: float) -> None:
        """The log did not take a session's commands in order.

        Route what is outstanding once more, soon.
        """
        session = self.sessions.get(session_id)
        if session is not None:
            session.since = now - self.retry_s
            self._check_at = min(self._check_at, now + self.retry_s / 16)

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many more bytes may wait."""
        return self.size_bytes + size_bytes <= self.bytes_max

    def overload(self, session_id: int, count: int, size_bytes: int, window: int) -> str | None:
        """Say which limit keeps a session's next frame out; None: it may be taken.

        One frame is taken however many commands it has: what a client sends again after a move may
        hold more than its window, the answered ones among the others.
        """
        in_flight = self.in_flight(session_id)
        is_beyond = in_flight > 0 and in_flight + count > window
        if not is_beyond and self.has_room(size_bytes):
            return None
        return (
            f"{self.size_bytes} bytes of commands wait, {in_flight} of them this session's "
            f"(limits: {self.bytes_max} bytes, {window} commands a session)"
        )

    def add_commands(self, session_id: int, group: Group, now: float) -> None:
        """Take the next commands of a session."""
        session = self.sessions[session_id]
        if not session.groups:
            session.since = now
        session.groups.append((session.next_sequence, group))
        session.next_sequence += group.count
        self.size_bytes += len(group.payload)
        self.fresh.append(group)

    def answered(self, session_id: int, first_sequence: int, count: int, now: float) -> int:
        """Commands were applied here; return from which sequence on the session's client is to be
        told, 0 where nobody here waits.

        That may lie before them, where the session has moved here in the midst of its commands:

            1. the client sends 10..12 to S, which proposes 10..11 and then 12, and moves to T
            2. T has applied 10..11, takes the session over, and then applies 12
            3. to the client an answer to 12 alone would be one too early; it has not heard of 10
        """
        session = self.sessions.get(session_id)
        if session is None:
            return 0
        end = first_sequence + count
        due = min(session.due_sequence, first_sequence)
        session.due_sequence = max(session.due_sequence, end)
        groups = session.groups
        while groups and groups[0][0] + groups[0][1].count <= end:
            self.size_bytes -= len(groups.popleft()[1].payload)
            session.since = now
        return due

    def add_open(self, secret_hash: bytes, group: Group) -> None:
        """Take an opening; whoever waits for it is known by the hash."""
        self.opens[secret_hash] = group
        self.fresh.append(group)

    def add_close(self, session_id: int, group: Group) -> None:
        """Take a closing."""
        self.closes[session_id] = group
        self.fresh.append(group)

    def take(self, route: object, now: float) -> list[Group]:
        """Groups to route now, in order: what arrived in this turn, and whatever has to be routed
        again.

        `route` is anything that changes when groups routed before may have been lost; None when
        there is no way now.
        """
        fresh, self.fresh = self.fresh, []
        if route is None:
            self._route = None
            return []
        if route != self._route:
            self._route = route
            self._check_at = now + self.retry_s
            return list(self._unanswered(now, older_than_s=0.0))
        if now >= self._check_at:
            self._check_at = now + self.retry_s
            return [*self._unanswered(now, older_than_s=self.retry_s), *fresh]
        return fresh

    def take_keep_alives(self) -> list[list[int]]:
        """The keep-alives of this turn, at most one a session."""
        keep_alives, self.keep_alives = self.keep_alives, {}
        return list(keep_alives.values())

    def retry_at(self) -> float | None:
        """When `take` must be called again even if nothing arrives; None: nothing to route, or no
        way to route it.
        """
        if self._route is None:
            return None  # or the loop would spin until there is a leader
        return self._check_at if self.size_bytes or self.opens or self.closes else None

    def _unanswered(self, now: float, *, older_than_s: float) -> Iterator[Group]:
        yield from self.opens.values()
        for session in self.sessions.values():
            if session.groups and now - session.since >= older_than_s:
                session.since = now
                for _, group in session.groups:
                    yield group
        yield from self.closes.values()
