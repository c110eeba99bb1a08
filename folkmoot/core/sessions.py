"""The replicated session table: who is a client, what it was answered, and how long it is silent.

Pure: no I/O, no clock, no randomness. All of it is replicated state, changed only by entries of the
log, in the multiplexer (dissertation §6.3). It is not the client's bookkeeping
(core/session_client.py) nor a server's connections (core/front.py).

EXACTLY ONCE. A session numbers its commands 1, 2, 3, ... `sequence` is the last one applied. What
is above it is applied when it is exactly the next; what is at or below it was applied before and
gets the answer that was kept. Answers are kept until the client says, by its low-water mark, that
it has all of them up to there. A mark above `sequence` claims answers that never were; it counts as
`sequence`.

EXPIRY. A session's silence counts from its last sign of life or from the last Initialize entry,
whichever is later: nobody expires because of an election. A server finds out who is due with a heap
of one item per session, whose time is never later than the true one; a sign of life is one
assignment and does not touch it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs

from folkmoot.core.applied import Ended, Kept, Opened, Results
from folkmoot.core.batch import Group, Kind
from folkmoot.core.errors import RemoteProtocolError, ResultExpired
from folkmoot.core.events import PendingEvents
from folkmoot.core.requests import error_fields
from folkmoot.core.resource import Resource
from folkmoot.transport.codec import pack, unpack

__all__ = [
    "Ended",
    "Kept",
    "Opened",
    "Results",
    "Session",
    "SessionTable",
    "decode_keep_alive",
    "decode_open",
    "decode_restored",
    "decode_session_id",
    "encode_close",
    "encode_expire",
    "encode_keep_alive",
    "encode_open",
    "encode_restored",
]

CLIENT_NAME_MAX = 256
"""Characters of a client's name that are kept."""
_SMALL = 64


@attrs.define(eq=False)
class Session:
    """One client's session.

    - `low_water` <= `sequence`; the answers to all sequences between are kept, in order and without
      a gap.
    - `ended` is set in the entry that ends it; it is then in no table and on no resource.
    - Whoever changes one touches it first (see core/freeze.py).
    """

    id: int
    secret_hash: bytes = attrs.field(repr=False)
    timeout_ms: int
    client_name: str
    opened_at: int
    """Log time (ms), as is `last_seen`."""
    last_seen: int
    """The last sign of life: a command (even a refused one) or a keep-alive."""
    sequence: int = 0
    low_water: int = 0
    result_bytes: int = 0
    ended: bool = False
    touched: int = attrs.field(default=0, init=False, repr=False)
    """The period (see core/freeze.py) in which it changed last."""
    results: deque[Results] = attrs.field(factory=deque, repr=False)
    events: PendingEvents = attrs.field(factory=PendingEvents, repr=False)
    opened: dict[int, Resource] = attrs.field(factory=dict, repr=False)

    def acknowledge(self, low_water: int, event_index: int, index: int) -> None:
        """Take the marks that the entry `index` carries. Marks above the truth count as the truth.

        Events of this very entry are not acknowledged: the client cannot have them yet.
        """
        self.events.acknowledge(min(event_index, index - 1))
        low_water = min(low_water, self.sequence)
        if low_water > self.low_water:
            self.low_water = low_water
            results = self.results
            while results and results[0].last_sequence <= low_water:
                self.result_bytes -= results.popleft().size_bytes

    def keep(self, results: Results) -> None:
        """Keep the answers to the commands that were applied just now."""
        assert results.first_sequence == self.sequence + 1, (
            f"session {self.id}: answers from {results.first_sequence} after {self.sequence}"
        )
        self.sequence = results.last_sequence
        self.results.append(results)
        self.result_bytes += results.size_bytes

    def cached(
        self, first_sequence: int, last_sequence: int | None = None, index: int = 0
    ) -> list[Results]:
        """Answer commands that were applied before, from `first_sequence` up to `last_sequence`.

        Each answer comes with the index of its own entry. What was acknowledged is gone and
        answered with ResultExpired, never with a null; `index` is that of the entry which repeats
        `first_sequence`.
        """
        last = self.sequence if last_sequence is None else min(last_sequence, self.sequence)
        found: list[Results] = []
        if first_sequence <= self.low_water:
            gone = min(self.low_water, last)
            found.append(self._gone(first_sequence, gone, index + gone - first_sequence))
            first_sequence = gone + 1
        results = self.results
        at = bisect_right(results, first_sequence, key=_first_sequence) - 1
        while first_sequence <= last:
            part = results[at].part(first_sequence, last)
            found.append(part)
            first_sequence += len(part.values)
            at += 1
        return found

    def events_after(self, event_index: int) -> list[tuple[int, int, list[bytes]]]:
        """Return the pending event batches above `event_index`, each as EVENTS has it."""
        return self.events.after(event_index)

    def snapshot(self) -> list[Any]:
        """Return the whole session as plain data."""
        return [
            *(
                self.id,
                self.secret_hash,
                self.timeout_ms,
                self.client_name,
                self.opened_at,
                self.last_seen,
            ),
            *(self.sequence, self.low_water),
            [
                pack([r.first_sequence, r.index, r.values, r.errors, r.size_bytes])
                for r in self.results
            ],
            self.events.snapshot(),
            sorted(self.opened),
        ]

    @classmethod
    def restore(cls, data: list[Any], resources: dict[int, Resource]) -> Session:
        """Make the session that `snapshot` described, with the resources open that it had open."""
        *fields, results, events, opened = data
        session = cls(*fields)
        for record in results:
            first, index, values, errors, size_bytes = unpack(record)
            session.results.append(Results(session.id, first, index, values, errors, size_bytes))
            session.result_bytes += size_bytes
        session.events.restore(events)
        for resource_id in opened:
            resource = resources[resource_id]
            session.opened[resource_id] = resource
            resource.sessions.add(session.id)
        return session

    def _gone(self, first: int, last: int, index: int) -> Results:
        fields = error_fields(
            ResultExpired(
                f"session {self.id}: the answers up to {self.low_water} were acknowledged "
                "and are gone"
            )
        )
        count = last - first + 1
        errors = [[offset, *fields] for offset in range(count)]
        return Results(self.id, first, index, [None] * count, errors)


def _first_sequence(results: Results) -> int:
    return results.first_sequence


class SessionTable:
    """All living sessions, by id and by secret.

    - Ids rise in the order of opening, so walking the table is walking it by id.
    - `_heap` has one item per session, whose time is at or before the session's expiry, beside
      remains of sessions that have ended; those never outnumber the living by more than a few.
    """

    def __init__(self) -> None:
        self.floor = 0
        """Log time of the last Initialize: silence counts from there at the earliest."""
        self._sessions: dict[int, Session] = {}
        self._by_secret: dict[bytes, Session] = {}
        self._heap: list[tuple[int, int]] = []
        self.get = self._sessions.get
        """Return the living session with this id, or None."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def by_secret(self, secret_hash: bytes) -> Session | None:
        """Return the living session that was opened with this secret, or None."""
        return self._by_secret.get(secret_hash)

    def add(self, session: Session) -> None:
        """Add a new session."""
        assert session.secret_hash not in self._by_secret, (
            f"session {session.id}: its secret is in use"
        )
        self._sessions[session.id] = session
        self._by_secret[session.secret_hash] = session
        heapq.heappush(self._heap, (self.expiry(session), session.id))

    def remove(self, session: Session) -> None:
        """Take a session out, as it ends."""
        del self._sessions[session.id]
        del self._by_secret[session.secret_hash]
        session.ended = True
        if len(self._heap) > 2 * len(self._sessions) + _SMALL:
            self._heap = [(self.expiry(living), living.id) for living in self]
            heapq.heapify(self._heap)

    def expiry(self, session: Session) -> int:
        """Return the log time at which the session will have been silent for its timeout."""
        return max(session.last_seen, self.floor) + session.timeout_ms

    def next_expiry(self) -> int | None:
        """Return the earliest expiry of all. Amortised O(log n) per sign of life."""
        heap = self._heap
        while heap:
            time, session_id = heap[0]
            session = self._sessions.get(session_id)
            if session is None:
                heapq.heappop(heap)
                continue
            expiry = self.expiry(session)
            if expiry == time:
                return expiry
            assert expiry > time, (
                f"session {session_id} expires at {expiry}, the heap has it later, at {time}"
            )
            heapq.heapreplace(heap, (expiry, session_id))
        return None

    def due(self, time: int) -> list[int]:
        """Return the ids of the sessions that expire at or before `time`, longest due first."""
        found: list[tuple[int, int]] = []
        expiry = self.next_expiry()
        while expiry is not None and expiry <= time:
            found.append(heapq.heappop(self._heap))
            expiry = self.next_expiry()
        for item in found:  # they live on until an EXPIRE_SESSION entry says otherwise
            heapq.heappush(self._heap, item)
        return [session_id for _, session_id in found]


# The payloads of the entries that are about sessions. Each decoder raises RemoteProtocolError,
# nothing else.


def encode_open(secret_hash: bytes, timeout_ms: int, client_name: str) -> Group:
    """Make the entry that opens a session. The secret itself never enters the log."""
    return Group(Kind.OPEN_SESSION, 1, pack([secret_hash, timeout_ms, client_name]))


def decode_open(payload: bytes) -> tuple[bytes, int, str]:
    """Return (secret hash, timeout in ms, client name). A name that is too long is cut."""
    fields = unpack(payload)
    if type(fields) is not list or [*map(type, fields)] != [bytes, int, str] or fields[1] < 1:
        raise RemoteProtocolError(
            "OPEN_SESSION is [secret hash, timeout of at least 1 ms, client name]"
        )
    return fields[0], fields[1], fields[2][:CLIENT_NAME_MAX]


def encode_keep_alive(items: list[list[int]]) -> Group:
    """Make one entry of many keep-alives: [session id, low water, event index, number] each."""
    return Group(Kind.KEEP_ALIVE, 1, pack(items))


def decode_keep_alive(payload: bytes) -> list[list[int]]:
    """Return [[session id, low water, event index, number], ...]."""
    items = unpack(payload)
    if type(items) is not list:
        raise RemoteProtocolError("KEEP_ALIVE is a list")
    for item in items:
        if type(item) is not list or [*map(type, item)] != [int] * 4 or min(item) < 0:
            raise RemoteProtocolError(
                "a keep-alive is [session id, low water, event index, number]"
            )
    return items


def encode_expire(session_id: int) -> Group:
    """Make the entry that ends a session, if it is still silent when this is applied."""
    return Group(Kind.EXPIRE_SESSION, 1, pack([session_id]))


def encode_close(session_id: int) -> Group:
    """Make the entry that ends a session at its client's wish."""
    return Group(Kind.CLOSE_SESSION, 1, pack([session_id]))


def decode_session_id(payload: bytes) -> int:
    """Return the session id that EXPIRE_SESSION and CLOSE_SESSION name."""
    fields = unpack(payload)
    if type(fields) is not list or len(fields) != 1 or type(fields[0]) is not int:
        raise RemoteProtocolError("EXPIRE_SESSION and CLOSE_SESSION are [session id]")
    return fields[0]


def encode_restored(epoch: int) -> Group:
    """Make the entry with which a cluster begins that was made from a backup."""
    return Group(Kind.RESTORED, 1, pack([epoch]))


def decode_restored(payload: bytes) -> int:
    """Return the epoch that begins."""
    fields = unpack(payload)
    if type(fields) is not list or [*map(type, fields)] != [int] or fields[0] < 0:
        raise RemoteProtocolError("RESTORED is [epoch]")
    return int(fields[0])
