"""The client's bookkeeping against a dumb server, under everything that a network and a cluster do.

The server below is deliberately simple: a list per session of what was applied, of answers, and of
event batches. Hypothesis interleaves the application's and the network's steps: frames are
delivered or lost with their connection, in either direction, at any point; answers are repeated;
connections break; sessions are expired; time passes.

What must hold:
- every command is applied at most once, and a session's in the order in which they were issued;
- a command that has its answer was applied, and the answer is its own;
- one that ended as "not applied" (SessionExpired, withdrawn unsent) was not, and never will be;
- events come once, in order, none missing, and none before the answer of a lower index;
- the client says CONNECTED only for a session that lives, and EXPIRED before the cluster's expiry;
- in the end, with a network that works, everything that was issued has ended.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from folkmoot.core.config import ClientConfig, LimitsConfig
from folkmoot.core.errors import OutcomeUnknown, SessionExpired
from folkmoot.core.event_chain import Event
from folkmoot.core.pipeline import Command
from folkmoot.core.queries import Query
from folkmoot.core.requests import FrameType, encode
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.transport.codec import pack
from folkmoot.transport.frame import FrameReader
from tests.core.client_driver import CLUSTER, Driver

TIMEOUT_S = 3.0
WINDOW = 5


@attrs.define
class ServerSession:
    """A session on the dumb server."""

    id: int
    secret: bytes
    seen_at: float
    sequence: int = 0
    low_water: int = 0
    answers: dict[int, tuple[int, Any]] = attrs.field(factory=dict)
    events: list[tuple[int, int, list[bytes]]] = attrs.field(factory=list)
    last_event: int = 0


class DumbServer:
    """One server that applies whatever it gets at once."""

    def __init__(self) -> None:
        self.index = 10
        self.now = 0.0
        self.sessions: dict[int, ServerSession] = {}
        self.applied: list[tuple[int, int]] = []
        """(session, argument) of every command, in order."""
        self.published: list[tuple[int, int]] = []
        """(session, number) of every event, in order."""
        self.bound: ServerSession | None = None
        self.out: deque[bytes] = deque()

    def say(self, kind: FrameType, *fields: Any) -> None:
        self.out.append(encode(kind, *fields))

    def disconnect(self) -> None:
        self.bound = None
        self.out.clear()

    def take(self, kind: FrameType, fields: Any) -> None:
        match kind:
            case FrameType.HELLO:
                self.say(FrameType.WELCOME, 1, CLUSTER, 1, 1, "a:1")
            case FrameType.OPEN_SESSION:
                self._open(*fields)
            case FrameType.RESUME_SESSION:
                self._resume(*fields)
            case FrameType.COMMANDS:
                self._commands(*fields)
            case FrameType.KEEP_ALIVE:
                self._keep_alive(*fields)
            case FrameType.CLOSE_SESSION:
                self.end(fields[0], "closed")
            case FrameType.READ:
                values = [len(self.applied)] * len(fields[4])
                self.say(FrameType.READ_RESULTS, fields[0], self.index, values, None)

    def _open(self, secret: bytes, timeout_ms: int, name: str) -> None:
        session = next((one for one in self.sessions.values() if one.secret == secret), None)
        if session is None:
            self.index += 1
            session = self.sessions[self.index] = ServerSession(self.index, secret, self.now)
        session.seen_at = self.now
        self.bound = session
        self.say(FrameType.SESSION, session.id, int(TIMEOUT_S * 1000), self.index, session.sequence)

    def _resume(self, session_id: int, secret: bytes, event_index: int, first: int) -> None:
        session = self.sessions.get(session_id)
        if session is None:
            self.say(FrameType.SESSION_ENDED, session_id, "unknown", self.index)
            return
        assert session.secret == secret
        self.bound = session
        self.say(FrameType.SESSION, session_id, int(TIMEOUT_S * 1000), self.index, session.sequence)
        missed = [batch for batch in session.events if batch[0] > event_index]
        if missed:
            self.say(FrameType.EVENTS, missed)

    def _commands(self, session_id: int, first: int, low: int, event: int, ops: list[Any]) -> None:
        session = self.sessions.get(session_id)
        if session is None:
            return
        assert self.bound is session, "commands on a connection that has not resumed"
        session.seen_at = self.now
        self._acknowledge(session, low, event)
        assert session.low_water < first <= session.sequence + 1, "out of order"
        for sequence, operation in enumerate(ops, first):
            if sequence > session.sequence:
                self._apply(session, sequence, operation)
        assert len(session.answers) <= WINDOW, "more answers are kept than the window allows"
        self.answer(session, first, first + len(ops) - 1)

    def answer(self, session: ServerSession, first: int, last: int) -> None:
        """Send answers, each by itself: consecutive sequences may have any indexes."""
        for sequence in range(first, last + 1):
            index, value = session.answers[sequence]
            self.say(FrameType.RESULTS, sequence, index, [value], None)
            for batch in session.events:
                if batch[0] == index:
                    self.say(FrameType.EVENTS, [batch])

    def _apply(self, session: ServerSession, sequence: int, operation: list[Any]) -> None:
        self.index += 1
        session.sequence = sequence
        resource, _, (argument, *_) = operation
        self.applied.append((session.id, argument))
        value = [5, argument, None] if type(resource) is list else argument
        session.answers[sequence] = (self.index, value)
        if argument % 3 == 0:
            self._event(session, argument)

    def publish(self, number: int) -> None:
        """An event that no command of the client's has caused."""
        self.index += 1
        for session in self.sessions.values():
            batch = self._event(session, number)
            if self.bound is session:
                self.say(FrameType.EVENTS, [batch])

    def _event(self, session: ServerSession, number: int) -> tuple[int, int, list[bytes]]:
        batch = (self.index, session.last_event, [pack([5, "tick", number])])
        session.events.append(batch)
        session.last_event = self.index
        self.published.append((session.id, number))
        return batch

    def _acknowledge(self, session: ServerSession, low_water: int, event_index: int) -> None:
        session.low_water = max(session.low_water, low_water)
        session.answers = {s: a for s, a in session.answers.items() if s > session.low_water}
        session.events = [batch for batch in session.events if batch[0] > event_index]

    def _keep_alive(self, session_id: int, low_water: int, event_index: int, number: int) -> None:
        session = self.sessions.get(session_id)
        if session is not None:
            session.seen_at = self.now
            self._acknowledge(session, low_water, event_index)
            self.index += 1
            self.say(FrameType.KEPT, number, self.index)

    def end(self, session_id: int, reason: str) -> None:
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self.index += 1
            if self.bound is session:
                self.say(FrameType.SESSION_ENDED, session_id, reason, self.index)
                self.bound = None

    def expire_silent(self) -> None:
        for session in list(self.sessions.values()):
            if self.now >= session.seen_at + TIMEOUT_S:
                self.end(session.id, "expired")


class SessionMachine(RuleBasedStateMachine):
    """The client, the dumb server, and the two lanes between them."""

    @initialize()
    def begin(self) -> None:
        limits = LimitsConfig(session_window=WINDOW)
        self.client = Driver(ClientConfig(limits=limits, frame_bytes=1024))
        self.server = DumbServer()
        self.server.now = self.client.now
        self.target = self.client.target()
        self.to_server: deque[tuple[FrameType, Any]] = deque()
        self.commands: list[Command] = []
        self.withdrawn: set[int] = set()
        self.queries: list[Query] = []
        self.heard: list[int] = []
        """Events of the present session."""
        self.heard_before: list[tuple[int, list[int]]] = []
        """Of those before it."""
        self.ended: dict[int, int] = {}
        self.number = 0
        self.connected = self.reordered = False
        self.collect()

    # helpers

    def collect(self) -> None:
        """Take what came out of the client since the last time."""
        client = self.client
        if client.disconnects:
            client.disconnects.clear()
            self.break_lanes()
        self.to_server.extend(client.sent)
        client.sent.clear()
        for answer in client.answers:
            self.ended[id(answer)] = self.ended.get(id(answer), 0) + 1
        client.answers.clear()
        for notice in client.notices:
            if isinstance(notice, Event):
                self.check_order(notice)
                self.heard.append(notice.payload)
            elif notice.state is ConnectionState.EXPIRED:
                self.heard_before.append((notice.session_id, self.heard))
                self.heard = []
        client.notices.clear()

    def check_order(self, event: Event) -> None:
        """No event comes before an answer that it lies behind."""
        if self.reordered:
            return
        for command in self.commands:
            if command.session_id == self.client.core.session.id and not command.answered:
                assert self.index_of(command) >= event.index

    def index_of(self, command: Command) -> float:
        """The index at which a command was applied; infinity while it was not."""
        session = self.server.sessions.get(command.session_id)
        found = session.answers.get(command.sequence) if session else None
        return found[0] if found else float("inf")

    def break_lanes(self) -> None:
        self.to_server.clear()
        self.server.disconnect()
        self.connected = self.reordered = False

    def move_to_server(self) -> None:
        kind, fields = self.to_server.popleft()
        self.server.take(kind, fields)

    def move_to_client(self, count: int) -> None:
        frames = []
        for _ in range(min(count, len(self.server.out))):
            frames += FrameReader(1 << 20).feed(self.server.out.popleft())
        self.client.core.received(frames, self.client.now)
        self.client.turn()
        self.collect()

    # steps

    @rule(count=st.integers(1, 4))
    def issue(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            self.commands.append(
                self.client.issue(self.target, "add", self.number, bytes(self.number % 5 * 100))
            )
        self.client.turn()
        self.collect()

    @rule(level=st.sampled_from(list(Consistency)))
    def read(self, level: Consistency) -> None:
        self.queries.append(self.client.read(self.target, level))
        self.client.turn()
        self.collect()

    @precondition(lambda self: self.commands)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        command = data.draw(st.sampled_from(self.commands[-8:]))
        if not command.answered and self.client.core.pipeline.withdraw(command):
            self.withdrawn.add(id(command))

    @precondition(lambda self: not self.connected and self.client.core.connector.address)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.client.core.connected(self.client.now)
        self.client.turn()
        self.collect()

    @precondition(lambda self: self.client.core.connector.address)
    @rule(frames=st.integers(0, 3))
    def cut(self, frames: int) -> None:
        """The connection breaks, after some of what was under way has arrived at the server."""
        for _ in range(min(frames, len(self.to_server))):
            self.move_to_server()
        self.break_lanes()
        self.client.lose()
        self.collect()

    @precondition(lambda self: self.to_server)
    @rule(count=st.integers(1, 4))
    def deliver_to_server(self, count: int) -> None:
        for _ in range(min(count, len(self.to_server))):
            self.move_to_server()

    @precondition(lambda self: self.server.out)
    @rule(count=st.integers(1, 6))
    def deliver_to_client(self, count: int) -> None:
        self.move_to_client(count)

    @precondition(lambda self: self.server.bound and self.server.bound.answers)
    @rule(data=st.data())
    def repeat_an_answer(self, data: st.DataObject) -> None:
        session = self.server.bound
        assert session is not None
        sequence = data.draw(st.sampled_from(sorted(session.answers)))
        index, value = session.answers[sequence]
        self.server.say(FrameType.RESULTS, sequence, index, [value], None)

    @precondition(lambda self: self.server.bound and self.server.bound.events)
    @rule()
    def repeat_events(self) -> None:
        session = self.server.bound
        assert session is not None
        self.server.say(FrameType.EVENTS, session.events)

    @precondition(lambda self: len(self.server.out) > 1)
    @rule()
    def reorder_what_comes(self) -> None:
        """No link does so. Answers and events still come once, if not in one order any more."""
        self.server.out.rotate(1)
        self.reordered = True

    @rule(payload=st.integers(1000, 2000))
    def publish(self, payload: int) -> None:
        self.server.publish(payload)

    @rule(seconds=st.floats(0.01, 1.2))
    def pass_time(self, seconds: float) -> None:
        end = self.client.now + seconds
        while self.client.now < end:
            due = min(self.client.core.deadline(), end)
            self.client.now = self.server.now = max(due, self.client.now + 0.001)
            self.client.turn()
            self.collect()
            self.check_guarded()
            self.server.expire_silent()

    @precondition(lambda self: self.server.sessions)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """An operator ends a session."""
        self.server.end(data.draw(st.sampled_from(sorted(self.server.sessions))), "expired")

    # what must hold

    def check_guarded(self) -> None:
        """Whatever is owned is given up before the cluster may give it to somebody else."""
        core = self.client.core
        session = self.server.sessions.get(core.session.id)
        if core.session.owns and session is not None:
            assert core.local_deadline < session.seen_at + TIMEOUT_S

    @invariant()
    def every_command_is_applied_at_most_once_and_in_order(self) -> None:
        arguments = [argument for _, argument in self.server.applied]
        assert len(set(arguments)) == len(arguments)
        for session_id in {session for session, _ in self.server.applied}:
            mine = [argument for session, argument in self.server.applied if session == session_id]
            assert mine == sorted(mine)

    @invariant()
    def every_end_is_true(self) -> None:
        applied = {argument for _, argument in self.server.applied}
        for number, command in enumerate(self.commands, 1):
            assert self.ended.get(id(command), 0) <= 1
            if id(command) in self.withdrawn:
                assert number not in applied
                assert not command.answered
            elif command.answered and command.error is None:
                assert command.value == number
                assert number in applied
            elif isinstance(command.error, SessionExpired):
                assert number not in applied
            elif command.answered:
                assert isinstance(command.error, OutcomeUnknown), command.error

    @invariant()
    def events_come_once_and_in_order(self) -> None:
        for session_id, heard in [*self.heard_before, (self.client.core.session.id, self.heard)]:
            published = [
                number for session, number in self.server.published if session == session_id
            ]
            # What was published before the client knew the resource is nobody's.
            starts = [at for at, number in enumerate(published) if [number] == heard[:1]]
            runs = [published[at : at + len(heard)] for at in starts]
            assert heard in runs or not heard, f"{heard} is no run of {published}"

    @invariant()
    def connected_means_bound_to_a_session_that_was_alive_lately(self) -> None:
        core = self.client.core
        if core.state is ConnectionState.CONNECTED:
            assert core.bound
            assert self.client.now < core.local_deadline

    @invariant()
    def states_alternate(self) -> None:
        names = self.client.state_names
        assert all(one != other for one, other in pairwise(names))
        by_session: dict[int, list[str]] = {}
        for change in self.client.states:
            by_session.setdefault(change.session_id, []).append(change.state.value)
        for found in by_session.values():
            assert found.count("expired") <= 1
            assert "expired" not in found[:-1], "nothing is heard of a session after its end"

    def teardown(self) -> None:
        """With a network that works, everything that was issued ends."""
        if not hasattr(self, "client"):
            return
        waiting = [c for c in self.commands if not c.answered and id(c) not in self.withdrawn]
        for _ in range(3000):
            if all(one.answered for one in [*waiting, *self.queries]):
                break
            if not self.connected and self.client.core.connector.address:
                self.connect()
            if self.to_server:
                self.move_to_server()
            elif self.server.out:
                self.move_to_client(1)
            else:
                self.pass_time(0.05)
        assert all(one.answered for one in [*waiting, *self.queries]), "something never ended"
        self.every_command_is_applied_at_most_once_and_in_order()
        self.every_end_is_true()
        self.events_come_once_and_in_order()


TestSessionClient = SessionMachine.TestCase
TestSessionClient.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
