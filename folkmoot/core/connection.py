"""One client's connection on a server: its state, and the order in which results and events leave.

Pure: no I/O, no clock, no randomness. Driven by `core/replica.py`.

THE ORDER ON THE WIRE IS THE ORDER OF DELIVERY. An event of index i leaves before the result of any
command with an index above i, and after the result of its own entry; a read's answer leaves after
all events up to the index that it was read at. Results and events of one turn are therefore merged
by index here, and leave in one write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import attrs

from folkmoot.core.requests import FrameType, encode
from folkmoot.core.sessions import Results

EventBatch = tuple[int, int, Sequence[bytes]]
"""(index, previous index, events)."""


class Link(Protocol):
    """What a connection needs of `transport/link.py`."""

    frame_bytes_max: int

    def send(self, data: bytes) -> None:
        """Buffer; never blocks."""

    def close(self, reason: str = "") -> None:
        """Flush, then close."""


@attrs.define(eq=False)
class ClientConnection:
    """What a server knows of one client's connection.

    - `session_id` is 0 until SESSION was sent; one session is on at most one connection of a
      server.
    - `event_index` is the last event index that was sent on this connection; it only rises.
    """

    link: Link
    unflushed: list[ClientConnection] = attrs.field(repr=False)
    """The server's list of connections with output; this one is in it while `out` is not empty."""
    greeted: bool = False
    session_id: int = 0
    event_index: int = 0
    opening: bytes = b""
    """Secret hash of the session that this connection is opening."""
    reads_waiting: int = 0
    refused_from: int = 0
    """First sequence of commands that were refused and have not come again (0: none)."""
    resumed_at: int = 0
    """First unanswered sequence when a session was resumed here (0: it was not). A frame whose low
    water lies below it was made before anything was answered here: it may be a repetition.
    """
    ended_session: int = 0
    """The session that ended last on this connection: frames for it may still be under way."""
    results: list[Results] = attrs.field(factory=list)
    """Results of this turn that have not left."""
    out: list[bytes] = attrs.field(factory=list)
    """Frames of this turn that have not left."""

    def send(self, frame_type: FrameType, *fields: Any) -> None:
        """Queue one frame for the end of the turn."""
        if not self.out:
            self.unflushed.append(self)
        self.out.append(encode(frame_type, *fields))

    def deliver(self, batches: Sequence[EventBatch]) -> None:
        """Queue this turn's results with the session's new event batches, in log order."""
        results, self.results = self.results, []
        if not self.out and (results or batches):
            self.unflushed.append(self)
        if batches:
            assert batches[0][0] > self.event_index, (
                f"event {batches[0][0]} again after {self.event_index}"
            )
            self.event_index = batches[-1][0]
            self.out.extend(_merged(results, batches))
        else:
            for result in results:
                self.out.append(_frame(result))

    def flush(self) -> None:
        """One write for everything of this turn."""
        if self.out:
            out, self.out = self.out, []
            self.link.send(out[0] if len(out) == 1 else b"".join(out))


def _frame(results: Results) -> bytes:
    return encode(
        FrameType.RESULTS, results.first_sequence, results.index, results.values, results.errors
    )


def _merged(results: Sequence[Results], batches: Sequence[EventBatch]) -> Iterator[bytes]:
    """Frames of results and events such that an event leaves before any result of a higher index,
    and not before its own.
    """
    at, end = 0, len(batches)
    for result in results:
        first = result.index - len(result.values) + 1
        before = at
        while at < end and batches[at][0] < first:
            at += 1
        if at > before:
            yield encode(FrameType.EVENTS, batches[before:at])
        rest = result
        while at < end and batches[at][0] < result.index:
            cut = result.first_sequence + batches[at][0] - first
            yield _frame(rest.part(rest.first_sequence, cut))
            rest = rest.part(cut + 1, result.last_sequence)
            yield encode(FrameType.EVENTS, batches[at : at + 1])
            at += 1
        yield _frame(rest)
    if at < end:
        yield encode(FrameType.EVENTS, batches[at:])
