"""Requests that do not go through the log: reads, and what operators ask of a server.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`.

All reads that were issued in one turn with one consistency and one `at_least` travel in one READ
frame. A read changes nothing, so when the connection is lost it is simply asked again, on the next
one and under the next session if need be.

A SEQUENTIAL read must see what its session did before it (§6.4.1). It therefore waits until every
command that was issued before it has been SENT, and names the last sequence; the server waits until
that one is applied. What was sent between does no harm: it only makes the read newer.
"""

from __future__ import annotations

from typing import Any

from folkmoot.core.errors import FolkmootError, OutcomeUnknown, RemoteProtocolError, from_wire
from folkmoot.core.pipeline import Operation, errors_by_offset
from folkmoot.core.requests import FrameType, encode, pack_operation, read_frame
from folkmoot.core.targets import Target
from folkmoot.core.types import Consistency


class Query(Operation):
    """One read."""

    __slots__ = ("after", "at_least", "consistency", "number")

    def __init__(
        self,
        target: Target,
        name: str,
        args: tuple[Any, ...],
        consistency: Consistency,
        at_least: int = 0,
    ) -> None:
        super().__init__(target, name, args)
        self.consistency = consistency
        self.at_least = at_least
        self.number = 0
        self.after = 0
        """How many commands had been issued before it; counts for sequential reads only."""

    def head(self) -> bytes:
        """What goes before `body`. By name or not, the answer to a read is the bare value."""
        return self.target.head(fenced=False)


class Reads:
    """Reads that wait to be sent, and frames of reads that wait for their answer.

    - A read is queued, or asked, or done.
    """

    def __init__(self, *, pending_max: int, frame_bytes: int) -> None:
        self.pending_max = pending_max
        self.frame_bytes = frame_bytes
        self.queued: dict[int, Query] = {}
        self.asked: dict[int, list[Query]] = {}
        self._issued = 0
        self._request_id = 0

    def issue(self, query: Query, commands_issued: int) -> None:
        """Queue a read behind `commands_issued` commands."""
        self._issued += 1
        query.number = self._issued
        if query.consistency is Consistency.SEQUENTIAL:
            query.after = commands_issued
        self.queued[query.number] = query

    def withdraw(self, query: Query) -> None:
        """Forget a read if it was not sent. The answer to a sent one has nobody to tell."""
        self.queued.pop(query.number, None)

    def take_frames(self, commands_sent: int, last_sequence: int, seen_index: int) -> list[bytes]:
        """Build READ frames of what may be asked now, as far as the limit on frames reaches."""
        room = self.pending_max - len(self.asked)
        if not self.queued or room <= 0:
            return []
        groups: dict[tuple[Consistency, int], list[Query]] = {}
        for query in self.queued.values():
            if query.after <= commands_sent:
                groups.setdefault((query.consistency, query.at_least), []).append(query)
        frames: list[bytes] = []
        for (consistency, at_least), queries in groups.items():
            after = 0
            if consistency is Consistency.SEQUENTIAL:
                after, at_least = last_sequence, max(at_least, seen_index)
            for chunk in self._chunks(queries)[: room - len(frames)]:
                self._request_id += 1
                bodies = [query.head() + query.body for query in chunk]
                frames.append(read_frame(self._request_id, consistency, at_least, after, bodies))
                self.asked[self._request_id] = chunk
                for query in chunk:
                    del self.queued[query.number]
        return frames

    def _chunks(self, queries: list[Query]) -> list[list[Query]]:
        chunks: list[list[Query]] = []
        size_bytes = self.frame_bytes
        for query in queries:
            length = len(query.body) + len(query.target.head(fenced=False))
            if size_bytes + length > self.frame_bytes:
                chunks.append([])
                size_bytes = 0
            size_bytes += length
            chunks[-1].append(query)
        return chunks

    def answer(
        self,
        request_id: int,
        index: int,
        values: list[Any],
        errors: list[Any] | None,
        done: list[Operation],
    ) -> None:
        """Match one READ_RESULTS; reads that are done now are appended to `done`.

        An answer to what is not asked (any more) is passed over. Raises RemoteProtocolError for one
        that does not fit its question.
        """
        queries = self.asked.get(request_id)
        if queries is None:
            return
        if len(values) != len(queries):
            raise RemoteProtocolError(
                f"READ_RESULTS: {len(values)} answers to {len(queries)} reads"
            )
        failed = errors_by_offset(errors, len(values)) if errors else {}
        answered = 0
        try:
            for query, value in zip(queries, values, strict=True):
                error = failed.get(answered)
                if error is None:
                    query.succeed(value, index)
                else:
                    query.fail(error, index)
                answered += 1
        finally:
            done.extend(queries[:answered])
            del queries[:answered]
        del self.asked[request_id]

    def repeat(self) -> None:
        """The connection or the session is lost: what was asked is asked again, before the rest."""
        again = [query for queries in self.asked.values() for query in queries]
        self.asked.clear()
        self.queued = {query.number: query for query in again} | self.queued

    def repeat_behind(self, command_number: int) -> None:
        """Ask again what was asked behind a command that has not been taken yet after all."""
        for request_id, queries in list(self.asked.items()):
            if any(query.after >= command_number for query in queries):
                del self.asked[request_id]
                self.queued |= {query.number: query for query in queries}
        self.queued = dict(sorted(self.queued.items()))

    def end(self) -> list[Query]:
        """The client is closed: return everything that has no answer."""
        self.repeat()
        left = list(self.queued.values())
        self.queued = {}
        return left


class AdminRequest:
    """Something asked of the connected server itself. Needs a connection but no session."""

    __slots__ = ("answered", "arguments", "error", "operation", "request_id", "value")

    def __init__(self, operation: str, arguments: tuple[Any, ...]) -> None:
        self.operation = operation
        self.arguments = arguments
        pack_operation(operation, arguments)  # fails here and now for what cannot be sent
        self.request_id = 0
        self.answered = False
        self.value: Any = None
        self.error: FolkmootError | None = None

    def finished(self) -> None:
        """It has its answer, and the driver has come to it in `Effects.answers`."""


class AdminRequests:
    """Admin requests that wait to be sent, or for their answer. Never sent twice."""

    def __init__(self) -> None:
        self.waiting: dict[int, AdminRequest] = {}
        self.asked: dict[int, AdminRequest] = {}
        self._request_id = 0

    def issue(self, request: AdminRequest) -> None:
        """Queue a request."""
        self._request_id += 1
        request.request_id = self._request_id
        self.waiting[request.request_id] = request

    def withdraw(self, request: AdminRequest) -> bool:
        """Take a request back; tell whether it was not sent."""
        self.asked.pop(request.request_id, None)
        return self.waiting.pop(request.request_id, None) is not None

    def take_frames(self) -> list[bytes]:
        """Build the frames of what waits."""
        frames = [
            encode(FrameType.ADMIN, request.request_id, request.operation, request.arguments)
            for request in self.waiting.values()
        ]
        self.asked |= self.waiting
        self.waiting = {}
        return frames

    def answer(self, request_id: int, code: str | None, result: Any) -> AdminRequest | None:
        """Match one ADMIN_RESULT."""
        request = self.asked.pop(request_id, None)
        if request is not None:
            request.answered = True
            if code is None:
                request.value = result
            else:
                request.error = from_wire(code, str(result))
        return request

    def lost(self) -> list[AdminRequest]:
        """The connection is lost: what was asked ends here, as its outcome is unknown."""
        asked, self.asked = list(self.asked.values()), {}
        for request in asked:
            request.answered = True
            request.error = OutcomeUnknown(
                f"the connection was lost before {request.operation!r} was answered: "
                "it may have been done"
            )
        return asked

    def end(self) -> list[AdminRequest]:
        """The client is closed: return what was never sent."""
        waiting, self.waiting = list(self.waiting.values()), {}
        return waiting
