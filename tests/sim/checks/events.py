"""Events: each exactly once, in log order, and in the right place among the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from folkmoot.core.event_chain import Event
from folkmoot.transport.codec import unpack
from tests.sim.checks import Checker, Step

if TYPE_CHECKING:
    from tests.sim.application import Call
    from tests.sim.client import SimClient


Published = tuple[int, str, Any]
"""index, kind, payload"""
KEPT = frozenset({"grant", "timed_out", "ended", "revoked", "reached"})
"""Events that are never dropped."""


@attrs.define(eq=False, slots=False)
class EventsOnceInOrder(Checker):
    rule = "invariant 3, H1, H3: a session sees each event exactly once, in log order, none missing"
    published: dict[int, list[Published]] = attrs.field(factory=dict)
    """Session -> everything that was published to it."""
    delivered: dict[int, int] = attrs.field(factory=dict)
    """Session -> how many of them have been delivered."""
    cut_index: dict[int, int] = attrs.field(factory=dict)
    """Session -> below this index, whatever may be dropped may have been (see core/events.py)."""
    answered_index: dict[int, int] = attrs.field(factory=dict)
    """Session -> the highest index of an answer to a command of it."""

    def step(self, step: Step) -> None:
        for session, batches in step.events.items():
            stream = self.published.setdefault(session, [])
            for index, events in batches:
                for event in events:
                    _, kind, payload = unpack(event)
                    stream.append((index, kind, payload))
                    if kind == "resync":
                        self.world.trace.count("resyncs")
                        self.cut_index[session] = index

    def event(self, client: SimClient, event: Event) -> None:
        session = client.session_id
        stream = self.published.get(session, [])
        got = (event.index, event.kind, event.payload)
        at = self._next(session, stream, got)
        self.delivered[session] = at + 1
        expected = stream[at] if at < len(stream) else None
        if got != expected:
            self.fail(
                f"session {session} of {client.name} was told {got} as its event {at}; "
                f"published was {expected}"
            )

    def _next(self, session: int, stream: list[Published], got: Published | None = None) -> int:
        """The position of the next event to be delivered, if not past one that is `got`."""
        at, cut_index = self.delivered.get(session, 0), self.cut_index.get(session, 0)
        while at < len(stream) and stream[at] != got:
            index, kind, _ = stream[at]
            if index >= cut_index or kind in KEPT or kind == "resync":
                break
            at += 1
        return at

    def answered(self, client: SimClient, call: Call) -> None:
        if call.error is None or call.error.applied == "yes":
            session = call.session_id
            self.answered_index[session] = max(self.answered_index.get(session, 0), call.index)

    def client_turned(self, client: SimClient) -> None:
        """Answers of index i come behind all events below i, and before all above."""
        session = client.core.session.id
        stream = self.published.get(session)
        if stream is None:
            return
        at = self._next(session, stream)
        answered = self.answered_index.get(session, 0)
        if at < len(stream) and stream[at][0] < answered:
            self.fail(
                f"session {session} of {client.name} has an answer of index {answered} "
                f"and not the event of index {stream[at][0]}"
            )
        at = self.delivered.get(session, 0)
        if at and client.core.pipeline.in_flight:
            first = client.core.pipeline.in_flight[0]
            answers = self.world.exactly_once.answers
            known = answers.get((session, first.sequence))
            if known is not None and known[0] < stream[at - 1][0]:
                self.fail(
                    f"session {session} of {client.name} has the event of index "
                    f"{stream[at - 1][0]} and not the answer of index {known[0]}"
                )
