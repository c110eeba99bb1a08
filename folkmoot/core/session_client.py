"""The client's side of a session: what is sent, what comes back, how long grants may be trusted.

Pure: no I/O, no clock, no randomness. Time is an argument (seconds, monotonic), randomness is
injected. Driven by `core/client.py`, and by the simulator. The words on the wire:
`core/requests.py`.

Who drives it puts inputs in, at any time and in any number, and then takes everything that shall
happen as one `Effects`:

    start, issue, read, ask, close, abandon           what the application wants
    connected, received, disconnected                 what the network brings
    tick                                              time has passed: see `deadline`
      -> effects(now)                                 bytes, connections, answers, notices

It keeps the session's life. Its parts know the rest: `connector` where to connect, `signs` the
local deadline, `traffic` the commands, reads and events, `admin` what operators ask.

A SESSION outlives connections. It is opened once and resumed on each new connection; what has no
answer is then sent again under its old sequences, and the server applies each at most once (§6.3).

    opening -> live -> ended by the cluster                          -> opening, a new secret
                 |
                 +---> local deadline: doomed -> resume, close, gone -> opening, a new secret

At the local deadline the session is over for the application, whatever the cluster says later. It
is then DOOMED: it is closed before a new one is used, so that nothing is half owned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from folkmoot.core.config import ClientConfig
from folkmoot.core.connector import NEVER, Connector
from folkmoot.core.effects import Effects, Session, StateChange
from folkmoot.core.errors import (
    ClosedError,
    RemoteProtocolError,
    SessionExpired,
    from_wire,
)
from folkmoot.core.liveness import Patience, SignsOfLife
from folkmoot.core.pipeline import Command
from folkmoot.core.queries import AdminRequest, AdminRequests, Query
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, decode, encode
from folkmoot.core.traffic import Traffic, finish
from folkmoot.core.types import ConnectionState
from folkmoot.transport.frame import Frame

_REFUSALS_MAX = 3
"""So often the same commands may be refused as malformed; then the session is given up with them.
"""


class SessionClient:
    """One client: its connection, its present session, and everything that has no answer.

    - `bound`: the present connection carries the session. Only then commands and reads go out.
    - An operation that was issued comes exactly once in `Effects.answers`, unless withdrawn unsent.
    - `state` is CONNECTED only while `bound` and before the local deadline.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        config: ClientConfig,
        rng: Random,
        new_secret: Callable[[], bytes],
        name: str = "",
    ) -> None:
        self.config = config
        self.name = name
        self.state = ConnectionState.SUSPENDED
        self.session = Session(b"")
        self.bound = False
        self.connector = Connector(addresses, config, rng)
        self.traffic = Traffic(config)
        self.pipeline = self.traffic.pipeline
        self.reads = self.traffic.reads
        self.targets = self.traffic.targets
        self.admin = AdminRequests()
        self.signs = SignsOfLife(config.drift_margin, config.limits)
        self._new_secret = new_secret
        self._effects = Effects()
        self._patience = Patience()
        self._running = self._greeted = self._closing = self._hurried = False
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

    def start(self) -> None:
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

    def close(self, now: float, *, hurried: bool = False) -> None:
        """End the session: `state` becomes CLOSED when the server says so, or there is none.

        `hurried`: do not connect again for it.
        """
        if self._closing or self.state is ConnectionState.CLOSED:
            return
        self._closing, self._hurried = True, hurried
        if self.session.id == 0 or self.session.doomed:
            self.abandon("closed by the client", now)
        elif self.bound:
            self._close_session(now)

    def abandon(self, cause: str, now: float) -> None:
        """Stop at once. A session that could not be closed ends by itself, after its timeout."""
        if self.state is ConnectionState.CLOSED:
            return
        error = ClosedError("the client was closed before this was sent")
        self.traffic.session_ended(error, cause, self._effects)
        for query in self.reads.end():
            finish(query, ClosedError("the client was closed before this was read"), self._effects)
        if self.connector.address:
            self._disconnect(cause)
            self.connector.failed(cause, now)
        self._effects.admin.extend(self.admin.end())
        self._running = False
        self._change(ConnectionState.CLOSED, cause)

    # what the network brings

    def connected(self, now: float) -> None:
        """The attempt at `connector.address` has succeeded."""
        self._patience.limit_s = self.config.connect_timeout_s
        cluster_id = self.connector.cluster_id
        self._ask(now, FrameType.HELLO, PROTOCOL_VERSION, "client", cluster_id, 0, self.name)

    def disconnected(self, reason: str, now: float) -> None:
        """The attempt has failed, or the connection is lost."""
        if self.connector.address:
            self._connection_gone()
            self.connector.failed(reason, now)
            self._suspend(reason)

    def received(self, frames: Sequence[Frame], now: float) -> None:
        """Take the frames of one receive. What does not fit ends the connection only."""
        if not self.connector.address:
            return  # they were behind those that ended it: what they answer is asked again
        self._patience.heard()
        try:
            for frame_type, _, body in frames:
                handler = self._handlers.get(frame_type)
                if handler is None:
                    raise RemoteProtocolError(f"frame type {frame_type} is not for a client")
                handler(now, decode(frame_type, body))
                if not self.connector.address:
                    return  # the handler has dropped the connection that these frames came from
        except RemoteProtocolError as error:
            self._drop(str(error), now)
        else:
            if not self.bound:
                self._patience.owe(now)  # the session

    def tick(self, now: float) -> None:
        """Do what is due by now."""
        if not self._running:
            return
        if self.session.owns and now >= self.signs.local_deadline:
            self._doom("no sign of life was acknowledged until the local deadline", now)
        if self._hurried and not self.bound:
            self.abandon("closed by the client without a connection", now)
        if now >= self._patience.ends_at:
            self._drop(f"no answer within {self._patience.limit_s:g} s", now)
        if self.state is ConnectionState.CONNECTED and now >= self.signs.doubtful_at:
            self._suspend("signs of life are not acknowledged")
        if self._greeted and not self._closing and self.connector.should_move(now):
            reason = f"moving to the leader at {self.connector.leader_address}"
            self._disconnect(reason)
            self.connector.move(now)
            self._suspend(reason)

    @property
    def local_deadline(self) -> float:
        """When all that the session owns must be taken as lost; infinity while it owns nothing."""
        return self.signs.local_deadline if self.session.owns else NEVER

    def deadline(self) -> float:
        """When `tick` and `effects` must be called next even if nothing happens."""
        if not self._running:
            return NEVER
        due = min(self.local_deadline, self.connector.deadline(), self._patience.ends_at)
        if self.bound and not self._closing:
            due = min(due, self.signs.due_at)
        if self.state is ConnectionState.CONNECTED:
            due = min(due, self.signs.doubtful_at)
        return due

    def effects(self, now: float) -> Effects:
        """Take everything that shall happen now; builds the frames of what was issued."""
        if self._running:
            address = self.connector.attempt(now)
            if address is not None:
                self._effects.connect = address
            if self._greeted and self.admin.waiting:
                self._effects.send.extend(self.admin.take_frames())
            if self.bound and not self._closing:
                self._send_waiting(now)
        effects, self._effects = self._effects, Effects()
        return effects

    # sending

    def _send_waiting(self, now: float) -> None:
        """Send the commands and reads that were issued, and a sign of life where one is due."""
        traffic, send = self.traffic, self._effects.send
        if self.pipeline.outbox:
            frames = traffic.take_commands(self.session.id, now)
            if frames:
                send.extend(frames)
                self.signs.sent(now)
                self._patience.owe(now)
        if self.signs.is_due(now):
            number = self.signs.number_keep_alive(now)
            marks = (self.pipeline.low_water, traffic.events.last)
            self._ask(now, FrameType.KEEP_ALIVE, self.session.id, *marks, number)
        if self.reads.queued:
            send.extend(traffic.take_reads())

    def _close_session(self, now: float) -> None:
        self._send_waiting(now)
        self._ask(now, FrameType.CLOSE_SESSION, self.session.id)

    def _ask(self, now: float, frame_type: FrameType, *fields: Any) -> None:
        """Send what the other end must answer soon."""
        self._effects.send.append(encode(frame_type, *fields))
        self._patience.owe(now)

    # the connection

    def _on_welcome(self, now: float, fields: list[Any]) -> None:
        if self._greeted:
            raise RemoteProtocolError("a second WELCOME")
        self.connector.welcomed(*fields)
        self._greeted = True
        if not self.connector.should_move(now):
            self._begin_session(now)

    def _begin_session(self, now: float) -> None:
        """Open the session on this connection, or resume it."""
        session = self.session
        if session.id == 0:
            if session.asked_at is None:
                session.asked_at = now
            timeout_ms = max(1, round(self.config.session_timeout_s * 1000))
            self._ask(now, FrameType.OPEN_SESSION, session.secret, timeout_ms, self.name)
            return
        if not session.doomed:
            self._patience.limit_s = self.signs.timeout_s / 3
        first = self.pipeline.low_water + 1
        fields = (session.id, session.secret, self.traffic.events.last, first)
        self._ask(now, FrameType.RESUME_SESSION, *fields)

    def _on_leader(self, now: float, fields: list[Any]) -> None:
        self.connector.told_leader(*fields)

    def _on_refused(self, now: float, fields: list[Any]) -> None:
        error = from_wire(*fields)
        if self.bound and isinstance(error, RemoteProtocolError) and self.pipeline.in_flight:
            self._refusals += 1
            if self._refusals >= _REFUSALS_MAX:
                self._doom(f"its commands are refused everywhere: {error}", now)
        self._drop(f"refused: {error}", now)

    def _on_admin_result(self, now: float, fields: list[Any]) -> None:
        request = self.admin.answer(*fields)
        if request is not None:
            self._effects.admin.append(request)

    def _drop(self, reason: str, now: float) -> None:
        """Give the connection up as bad; the session goes on with the next one."""
        if self.connector.address:
            self._disconnect(reason)
            self.connector.failed(reason, now)
            self._suspend(reason)

    def _disconnect(self, reason: str) -> None:
        self._effects.disconnect = reason
        if not self._closing:
            self._effects.send.clear()
        self._connection_gone()

    def _connection_gone(self) -> None:
        self.bound = self._greeted = False
        self._patience.heard()
        self.signs.forget()
        self.reads.repeat()
        self._effects.admin.extend(self.admin.lost())

    # the session

    def _on_session(self, now: float, fields: list[Any]) -> None:
        session_id, timeout_ms, index, sequence = fields
        session, last = self.session, self.pipeline.last_sequence
        if self.bound or session.id not in (0, session_id):
            raise RemoteProtocolError(f"SESSION {session_id}, which was not asked for")
        if session.doomed:
            self._ask(now, FrameType.CLOSE_SESSION, session.id)
            return
        if sequence > last:
            raise RemoteProtocolError(
                f"session {session_id} is at sequence {sequence}, {last} was sent last: "
                "somebody else uses it"
            )
        self.bound = True
        self.connector.ready(now)
        self.traffic.saw(index)
        self._patience.limit_s = timeout_ms / 3000
        if session.id == 0:
            session.id = session_id
            self.signs.begin(
                timeout_ms / 1000, now if session.asked_at is None else session.asked_at
            )
        else:
            self.signs.resume(timeout_ms / 1000)
            self._effects.send.extend(self.traffic.resume(session.id))
        self._look_alive(now)
        if self._closing:
            self._close_session(now)

    def _on_session_ended(self, now: float, fields: list[Any]) -> None:
        session_id, reason, index = fields
        session = self.session
        if session_id == 0 or session_id != session.id:
            return
        if self._closing:
            self.abandon("closed by the client", now)
            return
        if not session.doomed:
            self._expire(f"the cluster ended the session: {reason}", index)
        self.bound = False
        self._new_session()
        self._begin_session(now)

    def _new_session(self) -> None:
        self.session = Session(self._new_secret())
        self.signs.forget()
        self._refusals = 0

    def _doom(self, cause: str, now: float) -> None:
        """The session is over for the application; the cluster is told as soon as it can be."""
        self._expire(cause, 0)
        self.session.doomed = True
        if self._closing:
            self.abandon(cause, now)
        elif self.bound:
            self.bound = False
            self._ask(now, FrameType.CLOSE_SESSION, self.session.id)

    def _expire(self, cause: str, index: int) -> None:
        """Everything that the session owned is lost, and what it was doing has ended."""
        self._change(ConnectionState.EXPIRED, cause, index)
        text = f"session {self.session.id} ended before this was sent: {cause}"
        self.traffic.session_ended(SessionExpired(text), cause, self._effects)

    def _look_alive(self, now: float) -> None:
        """Say CONNECTED if the session is bound and was alive lately."""
        session = self.session
        connected = self.state is ConnectionState.CONNECTED
        if self.bound and not connected and now < self.signs.doubtful_at:
            session.announced = True
            cause = f"session {session.id} at {self.connector.address}"
            self._change(ConnectionState.CONNECTED, cause)

    def _suspend(self, cause: str) -> None:
        if self.state is ConnectionState.CONNECTED:
            self._change(ConnectionState.SUSPENDED, cause)

    def _change(self, state: ConnectionState, cause: str, index: int = 0) -> None:
        self.state = state
        self._effects.notices.append(StateChange(state, cause, self.session.id, index))

    # answers and events

    def _on_kept(self, now: float, fields: list[Any]) -> None:
        if self.bound:
            number, index = fields
            self.traffic.saw(index)
            self.signs.kept(number)
            self._look_alive(now)

    def _on_results(self, now: float, fields: list[Any]) -> None:
        if not self.bound:
            return  # of a session that is over
        gone = self.traffic.results(fields, self._effects)
        self._refusals = 0
        sent_at = self.pipeline.acknowledged_at()
        if sent_at is not None:
            self.signs.acknowledged(sent_at)
            self._look_alive(now)
        if gone is not None:
            self._on_session_ended(now, [self.session.id, str(gone), fields[1]])

    def _on_refused_commands(self, now: float, fields: list[Any]) -> None:
        first, code, message = fields
        if not self.bound:
            return
        self.signs.refused()
        if self.traffic.refused(first, code, message, self._effects):
            # Those may be in the log from before: they keep their sequences, and come again.
            self._drop(f"refused what was sent again: {message}", now)

    def _on_read_results(self, now: float, fields: list[Any]) -> None:
        self.traffic.read_results(fields, self._effects)

    def _on_events(self, now: float, fields: list[Any]) -> None:
        if self.bound:
            self.signs.received_events(*self.traffic.take_events(fields[0], self._effects))
