"""The client's side of a session: what is sent, what comes back, and how long grants may be trusted.

Pure: no I/O, no clock, no randomness. Time is an argument (seconds, monotonic), randomness is injected.
Driven by `core/client.py`, and by the simulator. Protocol: docs/internals, `core/requests.py`.

Who drives it puts inputs in, at any time and in any number, and then takes everything that shall
happen as one `Effects`:

    start, issue, read, ask, withdraw, close          what the application wants
    connected, received, disconnected                 what the network brings
    tick                                              time has passed: see `deadline`
      -> effects(now)                                 bytes to send, where to connect, answers, notices

A SESSION outlives connections. It is opened once, resumed on each new connection, and what has no answer
is sent again, under its old sequences: the server applies each at most once (§6.3).

    opening -> live -> (ended by the server)                       -> opening, with a new secret
                 |
                 +--> (local deadline) doomed: resume, close, gone -> opening, with a new secret

THE LOCAL DEADLINE is the send time of the last ACKNOWLEDGED sign of life, plus the timeout, less the drift
margin. The cluster counts the same silence from a moment that lies later, so it lets nobody else have
what this session holds before that deadline has passed here. At the deadline the session is over for the
application, whatever the cluster says later: it is DOOMED, and closed before a new one is used, so
that nothing is half owned.

THE ORDER OF DELIVERY is that of the wire, but for one moment: after a resume the server sends the events that
were missed at once, while answers come only when their commands have arrived again. Events that lie
behind an answer that is still missing are HELD until it has come.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from folkmoot.core.config import ClientConfig
from folkmoot.core.connector import NEVER, Connector
from folkmoot.core.errors import (
    ClosedError,
    FolkmootError,
    OutcomeUnknown,
    RemoteProtocolError,
    SessionEnded,
    SessionExpired,
    from_wire,
)
from folkmoot.core.pipeline import Command, Operation, Pipeline, Target, directory_target
from folkmoot.core.queries import AdminRequest, AdminRequests, Query, Reads
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, decode, encode
from folkmoot.core.types import ConnectionState
from folkmoot.transport.codec import unpack
from folkmoot.transport.frame import Frame

DELETED = "deleted"
"""The directory's last event about a resource; it has no payload."""
_REFUSALS_MAX = 3
"""So often the same commands may be refused as malformed before the session is given up with them."""


@attrs.frozen
class StateChange:
    """The client has entered `state`. `session_id` is that of the session it is about; 0: none yet."""

    state: ConnectionState
    cause: str
    session_id: int
    index: int = 0
    """The log index that ended the session, where it is known."""


@attrs.frozen
class Event:
    """What a machine has published to this session."""

    target: Target
    index: int
    kind: str
    payload: Any


@attrs.define
class Effects:
    """What shall happen now, in this order of fields."""

    send: list[bytes] = attrs.field(factory=list)
    """Frames for the present connection."""
    disconnect: str | None = None
    """Drop the present connection (or attempt), for this reason."""
    connect: str | None = None
    """Start an attempt at this address; `connected` or `disconnected` tells what became of it."""
    answers: list[Operation] = attrs.field(factory=list)
    """Commands and reads that are done."""
    admin: list[AdminRequest] = attrs.field(factory=list)
    """Admin requests that are done."""
    notices: list[StateChange | Event] = attrs.field(factory=list)
    """In the order in which they happened."""


@attrs.define
class Session:
    """One session, from its first OPEN_SESSION to its end."""

    secret: bytes
    asked_at: float = 0.0
    """When it was first asked for; later askings may find it open since then."""
    id: int = 0
    timeout_s: float = 0.0
    alive_at: float = 0.0
    """Send time of the last acknowledged sign of life."""
    event_index: int = 0
    """Index of the last event batch received: the chain's end."""
    announced: bool = False
    """The application knows of it, so may own something through it."""
    doomed: bool = False
    """Its local deadline has passed: it is closed as soon as a server can be told."""


class SessionClient:
    """One client: its connection, its present session, and everything that has no answer.

    - `bound`: the present connection carries the session; only then commands and reads go out.
    - An operation that was issued ends exactly once, in `Effects.answers`, unless it was withdrawn.
    - `state` is CONNECTED only while `bound` and before the local deadline.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        config: ClientConfig,
        rng: random.Random,
        new_secret: Callable[[], bytes],
        name: str = "",
    ) -> None:
        limits = config.limits
        self.config = config
        self.name = name
        self.state = ConnectionState.SUSPENDED
        self.session = Session(b"")
        self.bound = False
        self.seen_index = 0
        """Highest index that any answer, event or sign of life came with."""
        self.connector = Connector(addresses, config, rng)
        frame_bytes = min(config.frame_bytes, limits.frame_bytes_max)
        self.pipeline = Pipeline(
            window=limits.session_window, window_bytes=config.window_bytes, frame_bytes=frame_bytes
        )
        self.reads = Reads(pending_max=limits.pending_reads_per_client, frame_bytes=frame_bytes)
        self.admin = AdminRequests()
        self.directory = directory_target()
        self._new_secret = new_secret
        self._effects = Effects()
        self._by_id: dict[int, Target] = {}
        self._targets: dict[tuple[str, str], Target] = {}
        self._running = self._greeted = self._closing = False
        self._keep_alives: deque[tuple[int, float]] = deque()
        self._keep_alive_number = 0
        self._signed_at = 0.0  # when the last sign of life was sent on this connection
        self._asked_at: float | None = None  # since when the other end owes us something
        self._patience_s = config.connect_timeout_s
        self._unacknowledged = [0, 0]  # events, bytes
        self._held: deque[tuple[int, list[Any]]] = deque()
        self._hold_until = 0  # sequence that was in flight at the last resume
        self._refusals = 0
        self._handlers: dict[int, Callable[[float, list[Any]], None]] = {
            FrameType.RESULTS: self._on_results,
            FrameType.EVENTS: self._on_events,
            FrameType.READ_RESULTS: self._on_read_results,
            FrameType.KEPT: self._on_kept,
            FrameType.WELCOME: self._on_welcome,
            FrameType.SESSION: self._on_session,
            FrameType.SESSION_ENDED: self._on_session_ended,
            FrameType.LEADER: self._on_leader,
            FrameType.REFUSED: self._on_refused,
            FrameType.REFUSED_COMMANDS: self._on_refused_commands,
            FrameType.ADMIN_RESULT: self._on_admin_result,
        }

    # what the application wants

    def start(self, now: float) -> None:
        """Begin to connect."""
        self._running = True
        self._new_session()

    def issue(self, command: Command) -> None:
        """Send a command as soon as its turn comes."""
        self.pipeline.issue(command)

    def read(self, query: Query) -> None:
        """Ask a query as soon as there is a session."""
        self.reads.issue(query, self.pipeline.issued)

    def ask(self, request: AdminRequest) -> None:
        """Ask the connected server as soon as there is one."""
        self.admin.issue(request)

    def target(self, name: str, type_name: str, version: int, config: Mapping[str, Any]) -> Target:
        """Make a target. Who holds the resource already, under an older one, loses it with that."""
        target = Target(name, type_name, version, config)
        self._targets[name, type_name] = target
        return target

    def release(self, target: Target) -> None:
        """Nobody holds this target any more: leave its resource, so that it can be collected.

        The directory hears of it behind everything issued so far, and before whatever a new target of
        the same name does; so the new one opens the resource again. If there is a new target already, the
        resource is not left at all.
        """
        key = (target.name, target.type_name)
        if self._targets.get(key) is not target:
            return  # somebody holds it again
        del self._targets[key]
        if self._by_id.get(target.id) is target:
            del self._by_id[target.id]
        if target.known and not target.deleted:
            self.issue(Command(self.directory, "close", ([target.id],)))

    def close(self, now: float) -> None:
        """End the session. `state` becomes CLOSED once the server has said so, or there is none."""
        if self._closing or self.state is ConnectionState.CLOSED:
            return
        self._closing = True
        if self.session.id == 0 or self.session.doomed:
            self.abandon("closed by the client", now)
        elif self.bound:
            self._send(self._take_frames(now))
            self._ask(FrameType.CLOSE_SESSION, now, self.session.id)

    def abandon(self, cause: str, now: float) -> None:
        """Stop at once. A session that could not be closed ends by itself after its timeout."""
        if self.state is ConnectionState.CLOSED:
            return
        self._end_commands(
            ClosedError(f"the client was closed before this was sent: {cause}"), cause
        )
        for query in self.reads.end():
            self._finish(query, ClosedError("the client was closed before this read was answered"))
        self._effects.admin.extend(self.admin.lost())
        for request in self.admin.end():
            request.answered, request.error = (
                True,
                ClosedError("the client was closed before this was sent"),
            )
            self._effects.admin.append(request)
        if self.connector.address:
            self._effects.disconnect = cause
            self._connection_gone()
            self.connector.failed(cause, now)
        self._running = False
        self._change(ConnectionState.CLOSED, cause)

    # what the network brings

    def connected(self, now: float) -> None:
        """The attempt at `connector.address` has succeeded."""
        self._ask(
            FrameType.HELLO,
            now,
            PROTOCOL_VERSION,
            "client",
            self.connector.cluster_id,
            0,
            self.name,
        )
        self._patience_s = self.config.connect_timeout_s

    def disconnected(self, reason: str, now: float) -> None:
        """The attempt has failed, or the connection is lost."""
        if self.connector.address:
            self._connection_gone()
            self.connector.failed(reason, now)
            self._suspend(reason)

    def received(self, frames: Sequence[Frame], now: float) -> None:
        """Take the frames of one receive. What does not fit drops the connection, not the session."""
        self._asked_at = None
        try:
            for frame_type, _, body in frames:
                handler = self._handlers.get(frame_type)
                if handler is None:
                    raise RemoteProtocolError(f"frame type {frame_type} is not for a client")
                handler(now, decode(frame_type, body))
                if not self.connector.address:
                    return  # the handler has dropped the connection these frames came from
            if not self.bound:
                self._asked_at = now  # it has yet to answer about the session
        except RemoteProtocolError as error:
            self._drop(str(error), now)

    def tick(self, now: float) -> None:
        """Do what is due by now."""
        session = self.session
        if not self._running:
            return
        if self._owned() and now >= self.local_deadline:
            self._doom("no sign of life was acknowledged until the local deadline", 0, now)
        if self._asked_at is not None and now >= self._asked_at + self._patience_s:
            self._drop(f"no answer within {self._patience_s:g} s", now)
        if (
            self.state is ConnectionState.CONNECTED
            and now >= session.alive_at + session.timeout_s * 2 / 3
        ):
            self._suspend("signs of life are not acknowledged")
        if self._greeted and not self._closing and self.connector.should_move(now):
            address = self.connector.leader_address
            self._drop_link(f"moving to the leader at {address}")
            self.connector.move(now)
            self._suspend(f"moving to the leader at {address}")

    @property
    def local_deadline(self) -> float:
        """When everything that the session owns must be taken as lost; infinity while it owns nothing."""
        session = self.session
        if not self._owned():
            return NEVER
        return session.alive_at + session.timeout_s * (1.0 - self.config.drift_margin)

    def deadline(self) -> float:
        """When `tick` and `effects` must be called next even if nothing happens."""
        if not self._running:
            return NEVER
        due = min(self.local_deadline, self.connector.deadline())
        if self._asked_at is not None:
            due = min(due, self._asked_at + self._patience_s)
        if self.bound:
            due = min(due, self._signed_at + self.session.timeout_s / 3)
        if self.state is ConnectionState.CONNECTED:
            due = min(due, self.session.alive_at + self.session.timeout_s * 2 / 3)
        return due

    def effects(self, now: float) -> Effects:
        """Take everything that shall happen now; builds the frames of what was issued."""
        if self._running:
            address = self.connector.attempt(now)
            if address is not None:
                self._effects.connect = address
            if self._greeted and self.admin.waiting:
                self._send(self.admin.take_frames())
            if self.bound and not self._closing:
                self._send(self._take_frames(now))
        effects, self._effects = self._effects, Effects()
        return effects

    # sending

    def _take_frames(self, now: float) -> list[bytes]:
        session, pipeline = self.session, self.pipeline
        frames = (
            pipeline.take_frames(session.id, session.event_index, now) if pipeline.outbox else []
        )
        if frames:
            self._signed(now)
        elif now >= self._signed_at + session.timeout_s / 3 or self._many_unacknowledged():
            frames = [self._keep_alive(now)]
        if self.reads.queued:
            frames += self.reads.take_frames(pipeline.sent, pipeline.last_sequence, self.seen_index)
        return frames

    def _keep_alive(self, now: float) -> bytes:
        self._keep_alive_number += 1
        self._keep_alives.append((self._keep_alive_number, now))
        self._signed(now)
        return encode(
            FrameType.KEEP_ALIVE,
            self.session.id,
            self.pipeline.low_water,
            self.session.event_index,
            self._keep_alive_number,
        )

    def _signed(self, now: float) -> None:
        """A sign of life goes out, and with it the acknowledgement of all events so far."""
        self._signed_at = now
        self._unacknowledged = [0, 0]
        if self._asked_at is None:
            self._asked_at = now

    def _many_unacknowledged(self) -> bool:
        limits = self.config.limits
        events, size_bytes = self._unacknowledged
        return (
            events > limits.session_events_max // 8
            or size_bytes > limits.session_event_bytes_max // 8
        )

    def _send(self, frames: list[bytes]) -> None:
        self._effects.send.extend(frames)

    def _ask(self, frame_type: FrameType, now: float, *fields: Any) -> None:
        """Send what the other end must answer soon."""
        self._effects.send.append(encode(frame_type, *fields))
        if self._asked_at is None:
            self._asked_at = now

    # receiving: the connection

    def _on_welcome(self, now: float, fields: list[Any]) -> None:
        if self._greeted:
            raise RemoteProtocolError("a second WELCOME")
        self.connector.welcomed(*fields)
        self._greeted = True
        if not self.connector.should_move(now):
            self._begin_session(now)

    def _begin_session(self, now: float) -> None:
        session = self.session
        if session.id:
            if not session.doomed:
                self._patience_s = max(session.timeout_s / 3, 0.001)
            first = self.pipeline.low_water + 1
            self._ask(
                FrameType.RESUME_SESSION,
                now,
                session.id,
                session.secret,
                session.event_index,
                first,
            )
        else:
            session.asked_at = session.asked_at or now
            timeout_ms = max(1, round(self.config.session_timeout_s * 1000))
            self._ask(FrameType.OPEN_SESSION, now, session.secret, timeout_ms, self.name)

    def _on_leader(self, now: float, fields: list[Any]) -> None:
        self.connector.told_leader(*fields)

    def _on_refused(self, now: float, fields: list[Any]) -> None:
        error = from_wire(fields[0], fields[1])
        if self.bound and isinstance(error, RemoteProtocolError) and self.pipeline.in_flight:
            self._refusals += 1
            if self._refusals >= _REFUSALS_MAX:
                self._doom(f"its commands are refused by every server: {error}", 0, now)
        self._drop(f"refused: {error}", now)

    def _drop(self, reason: str, now: float) -> None:
        """Give the connection up; the session goes on with the next one."""
        if self.connector.address:
            self._drop_link(reason)
            self.connector.failed(reason, now)
            self._suspend(reason)

    def _drop_link(self, reason: str) -> None:
        self._effects.disconnect = reason
        self._effects.send.clear()
        self._connection_gone()

    def _connection_gone(self) -> None:
        self.bound = self._greeted = False
        self._asked_at = None
        self._keep_alives.clear()
        self.reads.repeat()
        self._effects.admin.extend(self.admin.lost())

    # receiving: the session

    def _on_session(self, now: float, fields: list[Any]) -> None:
        session_id, timeout_ms, index, sequence = fields
        session = self.session
        if self.bound or (session.id and session_id != session.id):
            raise RemoteProtocolError(f"SESSION {session_id}, which was not asked for")
        if session.doomed:
            self._ask(FrameType.CLOSE_SESSION, now, session.id)
            return
        if sequence > self.pipeline.last_sequence:
            raise RemoteProtocolError(
                f"session {session_id} is at sequence {sequence}, beyond {self.pipeline.last_sequence}: "
                "somebody else uses it"
            )
        self.bound = True
        self.seen_index = max(self.seen_index, index)
        self.connector.ready(now)
        session.timeout_s = timeout_ms / 1000
        self._patience_s = max(session.timeout_s / 3, 0.001)
        if session.id == 0:
            session.id = session_id
            session.alive_at = self._signed_at = session.asked_at
        else:
            self._signed_at = -NEVER  # a sign of life is due at once
            self._hold_until = self.pipeline.last_sequence
            self._send(self.pipeline.repeat_frames(session.id, session.event_index))
        self._alive(session.alive_at, now)
        if self._closing:
            self._send(self._take_frames(now))
            self._ask(FrameType.CLOSE_SESSION, now, session.id)

    def _on_session_ended(self, now: float, fields: list[Any]) -> None:
        session_id, reason, index = fields
        session = self.session
        if session_id != session.id or session_id == 0:
            return
        if self._closing:
            self.abandon("closed by the client", now)
            return
        if not session.doomed:
            self._expire(f"the cluster ended the session: {reason}", index)
        self.bound = False
        self._new_session()
        self._begin_session(now)

    def _owned(self) -> bool:
        """Whether there is a session that may own something."""
        return self.session.announced and not self.session.doomed

    def _doom(self, cause: str, index: int, now: float) -> None:
        """The session is over for the application; the cluster is told as soon as it can be."""
        self._expire(cause, index)
        self.session.doomed = True
        if self._closing:
            self.abandon(cause, now)
        elif self.bound:
            self.bound = False
            self._ask(FrameType.CLOSE_SESSION, now, self.session.id)

    def _expire(self, cause: str, index: int) -> None:
        """Everything that the session owned is lost, and what it was doing has ended."""
        self._change(ConnectionState.EXPIRED, cause, index)
        self._end_commands(
            SessionExpired(f"session {self.session.id} ended before this was sent: {cause}"), cause
        )

    def _end_commands(self, unsent_error: FolkmootError, cause: str) -> None:
        sent, unsent = self.pipeline.end()
        for command in sent:
            self._finish(
                command,
                OutcomeUnknown(
                    f"command {command.sequence} of session {command.session_id} on {command.target!r} was sent "
                    f"and has no answer: it may have been applied ({cause})"
                ),
            )
        for command in unsent:
            self._finish(command, type(unsent_error)(*unsent_error.args))
        for target in self._by_id.values():
            target.forget()
        self._by_id.clear()
        self._held.clear()
        self._hold_until = 0
        self._refusals = 0

    def _new_session(self) -> None:
        self.session = Session(self._new_secret())
        self._unacknowledged = [0, 0]
        self._keep_alives.clear()
        self.reads.repeat()
        self.reads.new_session()

    def _alive(self, at: float, now: float) -> None:
        """A sign of life that was sent at `at` has been acknowledged."""
        session = self.session
        session.alive_at = max(session.alive_at, at)
        fresh = now < session.alive_at + session.timeout_s * 2 / 3
        if self.bound and fresh and self.state is not ConnectionState.CONNECTED:
            session.announced = True
            self._change(
                ConnectionState.CONNECTED, f"session {session.id} at {self.connector.address}"
            )

    def _suspend(self, cause: str) -> None:
        if self.state is ConnectionState.CONNECTED:
            self._change(ConnectionState.SUSPENDED, cause)

    def _change(self, state: ConnectionState, cause: str, index: int = 0) -> None:
        self.state = state
        self._effects.notices.append(StateChange(state, cause, self.session.id, index))

    # receiving: answers and events

    def _on_kept(self, now: float, fields: list[Any]) -> None:
        number, index = fields
        self.seen_index = max(self.seen_index, index)
        while self._keep_alives and self._keep_alives[0][0] <= number:
            at = self._keep_alives.popleft()[1]
            if self.bound:
                self._alive(at, now)

    def _on_results(self, now: float, fields: list[Any]) -> None:
        first, index, values, errors = fields
        if not self.bound:
            return  # of a session that has ended here
        pipeline = self.pipeline
        begin = len(self._effects.answers)
        try:
            pipeline.answer(first, index, values, errors, self._effects.answers)
        finally:
            for operation in self._effects.answers[begin:]:
                if operation.by_name and operation.target.known:
                    self._by_id[operation.target.id] = operation.target
        self._refusals = 0
        self.seen_index = max(self.seen_index, index)
        at = pipeline.acknowledged_at()
        if at is not None:
            self._alive(at, now)
        if self._held:
            self._release_held(index)
        if errors and any(
            isinstance(operation.error, SessionEnded) for operation in self._effects.answers[begin:]
        ):
            self._on_session_ended(now, [self.session.id, "expired", index])

    def _on_refused_commands(self, now: float, fields: list[Any]) -> None:
        first, code, message = fields
        if not self.bound:
            return
        freed, repeat = self.pipeline.refused(first)
        for command in freed:
            self._finish(command, from_wire(code, message))
        if repeat:
            # These were sent before, so they may be in the log: they keep their place and come again.
            self._drop(f"refused what was sent again: {message}", now)

    def _on_read_results(self, now: float, fields: list[Any]) -> None:
        request_id, index, values, errors = fields
        self.reads.answer(request_id, index, values, errors, self._effects.answers)
        self.seen_index = max(self.seen_index, index)

    def _on_admin_result(self, now: float, fields: list[Any]) -> None:
        request = self.admin.answer(*fields)
        if request is not None:
            self._effects.admin.append(request)

    def _on_events(self, now: float, fields: list[Any]) -> None:
        if not self.bound:
            return
        for batch in fields[0]:
            if type(batch) is not list or tuple(map(type, batch)) != (int, int, list):
                raise RemoteProtocolError("EVENTS: a batch is [index, previous index, events]")
            index, previous, events = batch
            session = self.session
            if index <= session.event_index:
                continue  # sent again, as we had not acknowledged it (bugs: H1)
            if previous > session.event_index:
                raise RemoteProtocolError(
                    f"EVENTS: the batch of index {index} follows {previous}, the last one received is "
                    f"{session.event_index}: events are missing"
                )
            decoded = [_decode_event(data) for data in events]
            session.event_index = index
            self.seen_index = max(self.seen_index, index)
            self._unacknowledged[0] += len(events)
            self._unacknowledged[1] += sum(map(len, events))
            if self.pipeline.low_water < self._hold_until:
                self._held.append((index, decoded))
            else:
                self._publish(index, decoded)

    def _publish(self, index: int, events: list[Any]) -> None:
        for resource_id, kind, payload in events:
            target = self._by_id.get(resource_id)
            if target is not None:
                if kind == DELETED and payload is None:
                    target.deleted = True
                self._effects.notices.append(Event(target, index, kind, payload))

    def _release_held(self, answered_index: int) -> None:
        """Deliver held events that lie behind no missing answer."""
        all_answered = self.pipeline.low_water >= self._hold_until
        while self._held and (all_answered or self._held[0][0] <= answered_index):
            self._publish(*self._held.popleft())

    def _finish(self, operation: Operation, error: FolkmootError) -> None:
        operation.fail(error)
        self._effects.answers.append(operation)


def _decode_event(data: Any) -> list[Any]:
    event = unpack(data) if type(data) is bytes else None
    if (
        type(event) is not list
        or len(event) != 3
        or type(event[0]) is not int
        or type(event[1]) is not str
    ):
        raise RemoteProtocolError("an event is [resource id, kind, payload]")
    return event
