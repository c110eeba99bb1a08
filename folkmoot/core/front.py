"""The front desk of a server: what each frame of a client means.

Pure: no I/O, no clock, no randomness. Driven by `core/replica.py`.

One handler per frame type, found in a table. A frame that is malformed, or that does not fit the
state of its connection, raises RemoteProtocolError: that connection gets a REFUSED with the reason
and closes, the server lives.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from folkmoot.core.admin import answer
from folkmoot.core.batch import COMMANDS_HEADER, Group, Kind
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import (
    FolkmootError,
    Overloaded,
    RemoteProtocolError,
    StorageFull,
)
from folkmoot.core.reading import Read, evaluate
from folkmoot.core.requests import (
    PROTOCOL_VERSION,
    SECRET_BYTES,
    FrameType,
    check_operation,
    decode,
    decode_operations,
    error_fields,
)
from folkmoot.core.room import sift
from folkmoot.core.sessions import Ended, Kept, Opened, Results, encode_close, encode_open
from folkmoot.core.types import Consistency

if TYPE_CHECKING:
    from folkmoot.core.replica import Replica

_CONSISTENCIES = {level.value: level for level in Consistency}


class Front:
    """All client connections of one server.

    - `by_session` holds the connection on which a session was last opened or resumed; an older one
      is closed.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.connections: dict[ClientConnection, None] = {}
        """In the order in which they came, so that nothing depends on where objects lie."""
        self.by_session: dict[int, ClientConnection] = {}
        self._opening: dict[bytes, ClientConnection] = {}
        self._touched: dict[int, None] = {}
        self.unflushed: list[ClientConnection] = []
        self._handlers: dict[int, Callable[[ClientConnection, bytes, float], None]] = {
            FrameType.COMMANDS: self._commands,
            FrameType.READ: self._read,
            FrameType.KEEP_ALIVE: self._keep_alive,
            FrameType.HELLO: self._hello,
            FrameType.OPEN_SESSION: self._open_session,
            FrameType.RESUME_SESSION: self._resume_session,
            FrameType.CLOSE_SESSION: self._close_session,
            FrameType.ADMIN: self._admin,
        }

    # frames in

    def frames(
        self, connection: ClientConnection, frames: list[tuple[int, int, bytes]], now: float
    ) -> None:
        """Take a client's frames in order; a wrong one closes the connection with the reason."""
        try:
            for frame_type, _, body in frames:
                handler = self._handlers.get(frame_type)
                if handler is None:
                    raise RemoteProtocolError(
                        f"frame type {frame_type} from a client; "
                        f"protocol version {PROTOCOL_VERSION} has no such"
                    )
                if not connection.greeted and frame_type != FrameType.HELLO:
                    raise RemoteProtocolError(f"{FrameType(frame_type).name} before HELLO")
                handler(connection, body, now)
        except FolkmootError as error:
            self.refuse(connection, error)

    def refuse(self, connection: ClientConnection, error: FolkmootError) -> None:
        """Say why, and close."""
        connection.send(FrameType.REFUSED, error.code, Exception.__str__(error))
        connection.flush()
        connection.link.close(str(error))
        self.closed(connection)

    def closed(self, connection: ClientConnection) -> None:
        """A connection is gone.

        Its session lives on until it is resumed, closed or silent for too long.
        """
        self.connections.pop(connection, None)
        self.replica.reads.forget(connection)
        self.replica.backups.forget(connection)
        if connection.opening:
            self._opening.pop(connection.opening, None)
            self.replica.intake.opens.pop(connection.opening, None)
        if self.by_session.get(connection.session_id) is connection:
            del self.by_session[connection.session_id]
            self.replica.intake.detach(connection.session_id)

    def _hello(self, connection: ClientConnection, body: bytes, now: float) -> None:
        version, role, cluster_id, _, _ = decode(FrameType.HELLO, body)
        replica = self.replica
        if version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"the client speaks protocol version {version}, this server {PROTOCOL_VERSION}"
            )
        if role != "client":
            raise RemoteProtocolError(
                f"role {role!r} on the listener for clients; members connect to the peer address"
            )
        if cluster_id and cluster_id != replica.cluster_id:
            raise RemoteProtocolError(
                f"the client belongs to cluster {cluster_id.hex()}, "
                f"this server to {replica.cluster_id.hex()}"
            )
        if connection.greeted:
            raise RemoteProtocolError("a second HELLO")
        connection.greeted = True
        connection.link.frame_bytes_max = replica.config.limits.frame_bytes_max
        leader, address = replica.leader_fields()
        connection.send(
            FrameType.WELCOME,
            PROTOCOL_VERSION,
            replica.cluster_id,
            replica.node_id,
            leader,
            address,
        )

    def _open_session(self, connection: ClientConnection, body: bytes, now: float) -> None:
        secret, timeout_ms, name = decode(FrameType.OPEN_SESSION, body)
        _check_secret(secret)
        if connection.session_id or connection.opening:
            raise RemoteProtocolError("OPEN_SESSION on a connection that has a session")
        limits = self.replica.config.limits
        low, high = (
            int(limits.session_timeout_min_s * 1000),
            int(limits.session_timeout_max_s * 1000),
        )
        secret_hash = hash_secret(secret)
        connection.opening = secret_hash
        self._opening[secret_hash] = connection
        group = encode_open(secret_hash, min(max(timeout_ms, low), high), name)
        self.replica.intake.add_open(secret_hash, group)

    def _resume_session(self, connection: ClientConnection, body: bytes, now: float) -> None:
        """Take a session over.

        This server may lag behind the one that opened it, so it first reads the log's end.
        """
        session_id, secret, event_index, first_sequence = decode(FrameType.RESUME_SESSION, body)
        _check_secret(secret)
        if connection.session_id or connection.opening:
            raise RemoteProtocolError("RESUME_SESSION on a connection that has a session")
        resume = (session_id, hash_secret(secret), event_index, first_sequence)
        self.replica.reads.unconfirmed.append(Read(connection, 0, 0, 0, 0, [], resume))

    def _resume(self, connection: ClientConnection, resume: tuple[int, bytes, int, int]) -> None:
        session_id, secret_hash, event_index, first_sequence = resume
        replica = self.replica
        session = replica.multiplexer.sessions.get(session_id)
        if session is None or not hmac.compare_digest(session.secret_hash, secret_hash):
            connection.send(
                FrameType.SESSION_ENDED, session_id, "unknown", replica.multiplexer.index
            )
            return
        self._attach(connection, session_id)
        replica.intake.attach(session_id, min(first_sequence, session.sequence + 1))
        connection.event_index, connection.resumed_at = event_index, first_sequence
        connection.send(
            FrameType.SESSION,
            session_id,
            session.timeout_ms,
            replica.multiplexer.index,
            session.sequence,
        )
        self.touched(session_id)

    def _attach(self, connection: ClientConnection, session_id: int) -> None:
        older = self.by_session.pop(session_id, None)
        if older is not None and older is not connection:
            older.link.close("the session was resumed on another connection")
            self.closed(older)
        connection.session_id = session_id
        connection.opening = b""
        self.by_session[session_id] = connection

    def _session_of(self, connection: ClientConnection, session_id: int, frame: str) -> None:
        if session_id != connection.session_id or session_id == 0:
            raise RemoteProtocolError(
                f"{frame} for session {session_id}; "
                f"this connection has session {connection.session_id or 'none'}"
            )

    def _commands(self, connection: ClientConnection, body: bytes, now: float) -> None:
        operations = decode_operations(body)
        session_id, first, low_water, _ = COMMANDS_HEADER.unpack_from(body)
        if session_id != connection.session_id and session_id in self._ended_here(connection):
            return
        self._session_of(connection, session_id, "COMMANDS")
        intake = self.replica.intake
        expected = intake.expected(session_id)
        if first > expected:
            if connection.refused_from and first > connection.refused_from:
                return  # sent before the client learned that an earlier frame was refused
            raise RemoteProtocolError(f"COMMANDS from sequence {first}, expected {expected}")
        if first < expected:
            raise RemoteProtocolError(f"COMMANDS from sequence {first} again, expected {expected}")
        replica, count = self.replica, len(operations)
        window = replica.config.limits.session_window
        overload = intake.overload(session_id, count, len(body), window)
        if overload is not None:
            why = f"server {replica.node_id}: {overload}"
            self._refuse_commands(connection, first, Overloaded.code, why)
            return
        group = Group(Kind.COMMANDS, count, body, operations)
        shortage = replica.shortage(now)
        if shortage is not None:
            is_freeing = replica.multiplexer.directory.is_freeing
            is_new = low_water >= connection.resumed_at
            taken = sift(group, shortage, is_freeing, is_new=is_new)
            if taken is None:
                self._refuse_commands(connection, first, StorageFull.code, shortage.message())
                return
            group = taken
        connection.refused_from = 0
        intake.add_commands(session_id, group, now)

    def _refuse_commands(
        self, connection: ClientConnection, first: int, code: str, why: str
    ) -> None:
        """Take nothing from sequence `first` on, until it comes again."""
        connection.refused_from = first
        self.replica.reads.refused(connection, first)
        connection.send(FrameType.REFUSED_COMMANDS, first, code, why)

    def _ended_here(self, connection: ClientConnection) -> tuple[int, ...]:
        """The session that ended while this connection's frames for it were under way."""
        return (connection.ended_session,) if connection.ended_session else ()

    def _keep_alive(self, connection: ClientConnection, body: bytes, now: float) -> None:
        fields = decode(FrameType.KEEP_ALIVE, body)
        if fields[0] in self._ended_here(connection):
            return
        self._session_of(connection, fields[0], "KEEP_ALIVE")
        self.replica.intake.keep_alives[fields[0]] = fields

    def _close_session(self, connection: ClientConnection, body: bytes, now: float) -> None:
        (session_id,) = decode(FrameType.CLOSE_SESSION, body)
        if session_id in self._ended_here(connection):
            return
        self._session_of(connection, session_id, "CLOSE_SESSION")
        self.replica.intake.add_close(session_id, encode_close(session_id))

    def _read(self, connection: ClientConnection, body: bytes, now: float) -> None:
        request_id, level_name, at_least, after_sequence, operations = decode(FrameType.READ, body)
        level = _CONSISTENCIES.get(level_name)
        if level is None:
            raise RemoteProtocolError(
                f"READ with consistency {level_name!r}; known are {sorted(_CONSISTENCIES)}"
            )
        for operation in operations:
            check_operation(operation)
        replica = self.replica
        if connection.reads_waiting >= replica.config.limits.pending_reads_per_client:
            error = Overloaded(f"{connection.reads_waiting} reads of this connection wait already")
            errors = [[at, *error_fields(error)] for at in range(len(operations))]
            connection.send(FrameType.READ_RESULTS, request_id, 0, [None] * len(operations), errors)
            return
        if connection.refused_from:  # sent before the client learned of it
            after_sequence = min(after_sequence, connection.refused_from - 1)
        read = Read(
            connection, request_id, at_least, connection.session_id, after_sequence, operations
        )
        connection.reads_waiting += 1
        if level is Consistency.SEQUENTIAL:
            replica.reads.add_confirmed(read)
        elif (
            level is Consistency.LEASE
            and replica.multiplexer.index >= at_least
            and replica.raft.lease_valid(now)
        ):
            replica.reads.leased.append(read)
        else:
            read.after_sequence = 0
            replica.reads.unconfirmed.append(read)

    def _admin(self, connection: ClientConnection, body: bytes, now: float) -> None:
        answer(self.replica, connection, decode(FrameType.ADMIN, body), now)

    # answers out

    def touched(self, session_id: int) -> None:
        """The session has results or events that may have to leave in this turn."""
        self._touched[session_id] = None

    def answered(self, results: Results, due: int) -> None:
        """Tell the client, from sequence `due` on: what lies before these results is kept."""
        if due < results.first_sequence:
            session = self.replica.multiplexer.sessions.get(results.session_id)
            if session is None:
                return  # it ended in the same batch, which the client is told
            earlier = session.cached(due, results.first_sequence - 1)
            self.by_session[results.session_id].results.extend(earlier)
        self.by_session[results.session_id].results.append(results)
        self.touched(results.session_id)

    def session_opened(self, opened: Opened) -> None:
        """Tell the client that waits for it, if it is still here."""
        connection = self._opening.pop(opened.secret_hash, None)
        if connection is None:
            return
        connection.opening = b""
        if opened.refused is not None:
            connection.send(FrameType.REFUSED, opened.refused[0], opened.refused[1])
            connection.flush()
            connection.link.close(opened.refused[1])
            self.closed(connection)
            return
        session = self.replica.multiplexer.sessions.get(opened.session_id)
        assert session is not None, f"session {opened.session_id} was opened and is not there"
        self._attach(connection, opened.session_id)
        self.replica.intake.attach(opened.session_id, session.sequence + 1)
        connection.send(
            FrameType.SESSION,
            opened.session_id,
            opened.timeout_ms,
            self.replica.multiplexer.index,
            session.sequence,
        )

    def kept(self, kept: Kept) -> None:
        """Tell the client that its sign of life is in the log."""
        connection = self.by_session.get(kept.session_id)
        if connection is not None:
            connection.send(FrameType.KEPT, kept.number, kept.index)

    def session_ended(self, ended: Ended) -> None:
        """Tell the client, after the last answers; its connection may open another session."""
        self._touched.pop(ended.session_id, None)
        connection = self.by_session.pop(ended.session_id, None)
        self.replica.intake.detach(ended.session_id)
        if connection is not None:
            connection.deliver(())
            connection.session_id = 0
            connection.ended_session = ended.session_id
            connection.event_index = connection.resumed_at = 0
            connection.send(FrameType.SESSION_ENDED, ended.session_id, ended.reason, ended.index)

    def answer(self) -> None:
        """End a turn: results and events, then reads, then one write per connection.

        A resumed session's events come of the reads, so there is a second look at the events.
        """
        if self._touched:
            self.deliver()
        if self.replica.reads.are_near:
            self.serve_reads()
            if self._touched:
                self.deliver()
        if self.unflushed:
            self.flush()

    def flush(self) -> None:
        """Everything of this turn leaves, with one write per connection."""
        unflushed, self.unflushed[:] = list(self.unflushed), []
        for connection in unflushed:
            connection.flush()

    def deliver(self) -> None:
        """Put this turn's results and events into the connections' output, in log order."""
        touched, self._touched = self._touched, {}
        sessions = self.replica.multiplexer.sessions
        for session_id in touched:
            connection = self.by_session.get(session_id)
            session = sessions.get(session_id)
            if connection is not None and session is not None:
                connection.deliver(session.events_after(connection.event_index))

    # reads

    def serve_reads(self) -> None:
        """Answer every read whose moment has come, from the state as it is now."""
        replica = self.replica
        multiplexer = replica.multiplexer

        def sequence_of(session_id: int) -> int:
            session = multiplexer.sessions.get(session_id)
            return session.sequence if session is not None else 1 << 62

        for read in replica.reads.due(multiplexer.index, sequence_of):
            if read.resume is not None:
                self._resume(read.connection, read.resume)
            else:
                self._answer(read, *evaluate(read, multiplexer.query))
        leased, replica.reads.leased = replica.reads.leased, []
        for read in leased:
            # Evaluate first, look at the lease after: a pause between the two cannot hide (bugs:
            # etcd #20418).
            values, errors = evaluate(read, multiplexer.query)
            if replica.raft.lease_valid(replica.clock()):
                self._answer(read, values, errors)
            else:
                replica.reads.unconfirmed.append(read)

    def _answer(self, read: Read, values: list[Any], errors: list[Any] | None) -> None:
        read.connection.reads_waiting -= 1
        read.connection.send(
            FrameType.READ_RESULTS, read.request_id, self.replica.multiplexer.index, values, errors
        )


def hash_secret(secret: bytes) -> bytes:
    """What the log keeps of a session's secret: enough to compare, not enough to resume."""
    return hashlib.sha256(secret).digest()


def _check_secret(secret: bytes) -> None:
    if len(secret) != SECRET_BYTES:
        raise RemoteProtocolError(f"a session's secret has {SECRET_BYTES} bytes, got {len(secret)}")
