"""A server without consensus, for testing clients and proxies: one Multiplexer behind real links.

Every frame of commands becomes a batch and is applied at once, as if it had been committed. It may
listen at several addresses; they are then "members" of one cluster that share the state, one of
them (or none) called the leader. Log time follows the event loop's clock, so a mocked clock counts.

Knobs, all of them plain calls: `cut`, `silence` and `speak`, `hold` and `release`, `lead`,
`end_session`, `refuse_commands`, `stop_listening`, `advance`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from folkmoot.core.batch import COMMANDS_HEADER, Group, Kind, encode_batch
from folkmoot.core.config import LimitsConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import CommandError, FolkmootError, RemoteProtocolError
from folkmoot.core.machine import Machine, Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.requests import (
    PROTOCOL_VERSION,
    FrameType,
    decode,
    decode_operations,
    error_fields,
)
from folkmoot.core.sessions import encode_close, encode_expire, encode_keep_alive, encode_open
from folkmoot.core.wakeup import Wakeup
from folkmoot.primitives import BUILTIN_MACHINES
from folkmoot.transport.frame import Frame
from folkmoot.transport.link import Link, Listener, Transport

CLUSTER_ID = b"standalone-test!"


class Member:
    """One address of the standalone server."""

    def __init__(self, server: Standalone, node_id: int) -> None:
        self.server = server
        self.node_id = node_id
        self.address = ""
        self.listener: Listener | None = None
        self.accepted = 0

    def on_link(self, link: Link) -> _Receiver:
        self.accepted += 1
        return _Receiver(self, link)


class _Receiver:
    """What one link brings."""

    def __init__(self, member: Member, link: Link) -> None:
        self.member = member
        self.server = member.server
        self.connection = ClientConnection(link, self.server.unflushed)
        self.deaf = False
        self.server.receivers.add(self)

    def on_frames(self, link: Link, frames: list[Frame]) -> None:
        server = self.server
        if server.deaf or self.deaf:
            return
        for frame_type, _, body in frames:
            server.received.append(FrameType(frame_type))
            try:
                server.take(self, frame_type, body)
            except FolkmootError as error:
                self.connection.send(FrameType.REFUSED, error.code, str(error))
                server.flush()
                link.close(str(error))
                return
        server.flush()
        server.wakeup.set()

    def on_closed(self, link: Link, reason: str) -> None:
        self.server.receivers.discard(self)


class Standalone:
    """The server; `async with Standalone(transport) as server` listens and keeps log time going."""

    def __init__(
        self,
        transport: Transport,
        addresses: Sequence[str] = ("127.0.0.1:0",),
        *,
        machines: Iterable[type[Machine]] = BUILTIN_MACHINES,
        limits: LimitsConfig | None = None,
        cluster_id: bytes = CLUSTER_ID,
        protocol_version: int = PROTOCOL_VERSION,
    ) -> None:
        self.transport = transport
        self.cluster_id = cluster_id
        self.protocol_version = protocol_version
        self.limits = limits or LimitsConfig()
        self.multiplexer = Multiplexer(Registry.of(machines), self.limits)
        self.members = [Member(self, number) for number in range(1, len(addresses) + 1)]
        self.leader = 1
        self.receivers: set[_Receiver] = set()
        self.unflushed: list[ClientConnection] = []
        self.received: list[FrameType] = []
        self.deaf = False
        """Nothing that arrives is looked at."""
        self.mute = False
        """Nothing is sent: what would be is lost, as is what it would have been good for."""
        self.refusing = False
        """Commands are refused with Overloaded, as by a server whose pending bytes are at their
        limit.
        """
        self._held: list[tuple[ClientConnection, bytes]] | None = None
        self._addresses = addresses
        self._skew_ms = 0
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self.wakeup = Wakeup()
        self._started_at = anyio.current_time()
        for member, address in zip(self.members, self._addresses, strict=True):
            member.listener = await self.transport.listen(
                address, member.on_link, frame_bytes_max=self.limits.frame_bytes_max
            )
            member.address = member.listener.address
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_time)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        result = await self._tasks.__aexit__(exc_type, exc, traceback)
        with anyio.CancelScope(shield=True):
            for member in self.members:
                await self.stop_listening(member.node_id)
            self.cut("the test is over")
        return result

    @property
    def addresses(self) -> list[str]:
        return [member.address for member in self.members]

    @property
    def now_ms(self) -> int:
        return int((anyio.current_time() - self._started_at) * 1000) + self._skew_ms

    def has_applied(self, index: int) -> bool:
        """Whether there are so many entries."""
        return self.multiplexer.index >= index

    # knobs

    def cut(self, reason: str = "cut by the test") -> None:
        """End every connection."""
        for receiver in list(self.receivers):
            receiver.connection.link.close(reason)

    def lead(self, node_id: int) -> None:
        """Say that another member leads (0: none)."""
        self.leader = node_id
        for receiver in self.receivers:
            if receiver.connection.greeted:
                receiver.connection.send(FrameType.LEADER, *self.leader_fields())
        self.flush()

    def hold(self) -> None:
        """Keep back what would be sent, until `release`."""
        self._held = []

    def release(self) -> None:
        """Send what was kept back."""
        held, self._held = self._held or [], None
        for connection, data in held:
            connection.link.send(data)

    def end_session(self, session_id: int, reason: str = "expired") -> None:
        """End a session as the log would: by expiry of a silent one, or closed by an operator."""
        if reason == "expired":
            session = self.multiplexer.sessions.get(session_id)
            assert session is not None
            self._skew_ms += max(0, session.last_seen + session.timeout_ms - self.now_ms)
            self.apply([encode_expire(session_id)])
        else:
            self.apply([encode_close(session_id)])
        self.flush()

    def advance(self, milliseconds: int) -> None:
        """Let log time leap, and everything that is due by then happen."""
        self._skew_ms += milliseconds
        self._catch_up()
        self.flush()

    async def stop_listening(self, node_id: int) -> None:
        """Take no more connections at this member."""
        listener, self.members[node_id - 1].listener = self.members[node_id - 1].listener, None
        if listener is not None:
            await listener.aclose()

    # the server

    async def _keep_time(self) -> None:
        while True:
            self._catch_up()
            self.flush()
            dues = (self.multiplexer.next_deadline(), self.multiplexer.next_expiry())
            due = min((at for at in dues if at is not None), default=None)
            await self.wakeup.wait(None if due is None else max(0.001, (due - self.now_ms) / 1000))

    def _catch_up(self) -> None:
        now = self.now_ms
        for session_id in self.multiplexer.due_sessions(now):
            self.apply([encode_expire(session_id)])
        due = self.multiplexer.next_deadline()
        if due is not None and due <= now:
            self.apply([Group(Kind.TICK, 1, b"")])

    def leader_fields(self) -> tuple[int, str]:
        return (self.leader, self.members[self.leader - 1].address) if self.leader else (0, "")

    def take(self, receiver: _Receiver, frame_type: int, body: bytes) -> None:
        """Handle one frame, and apply what it brings at once."""
        connection = receiver.connection
        match frame_type:
            case FrameType.COMMANDS:
                self._commands(connection, body)
            case FrameType.READ:
                self._read(connection, body)
            case FrameType.KEEP_ALIVE:
                self.apply([encode_keep_alive([decode(frame_type, body)])])
            case FrameType.HELLO:
                self._hello(receiver, body)
            case FrameType.OPEN_SESSION:
                secret, timeout_ms, name = decode(frame_type, body)
                connection.opening = _hash(secret)
                self.apply([encode_open(connection.opening, timeout_ms, name)])
            case FrameType.RESUME_SESSION:
                self._resume(connection, *decode(frame_type, body))
            case FrameType.CLOSE_SESSION:
                self.apply([encode_close(decode(frame_type, body)[0])])
            case FrameType.ADMIN:
                request_id, operation, arguments = decode(frame_type, body)
                answer = {"node_id": receiver.member.node_id, "asked": [operation, arguments]}
                connection.send(FrameType.ADMIN_RESULT, request_id, None, answer)
            case _:
                raise RemoteProtocolError(f"frame type {frame_type} from a client")

    def _hello(self, receiver: _Receiver, body: bytes) -> None:
        version, _, _, _, _ = decode(FrameType.HELLO, body)
        if version != self.protocol_version:
            raise RemoteProtocolError(
                f"the client speaks {version}, this server {self.protocol_version}"
            )
        receiver.connection.greeted = True
        receiver.connection.send(
            FrameType.WELCOME,
            version,
            self.cluster_id,
            receiver.member.node_id,
            *self.leader_fields(),
        )

    def _resume(
        self,
        connection: ClientConnection,
        session_id: int,
        secret: bytes,
        event_index: int,
        first: int,
    ) -> None:
        session = self.multiplexer.sessions.get(session_id)
        if session is None or session.secret_hash != _hash(secret):
            index = self.multiplexer.index
            connection.send(FrameType.SESSION_ENDED, session_id, "unknown", index)
            return
        for other in self.receivers:
            if other.connection.session_id == session_id:
                other.connection.session_id = 0
                other.connection.link.close("the session was resumed on another connection")
        connection.session_id = session_id
        connection.event_index = event_index
        connection.send(
            FrameType.SESSION,
            session_id,
            session.timeout_ms,
            self.multiplexer.index,
            session.sequence,
        )
        connection.deliver(session.events_after(event_index))

    def _commands(self, connection: ClientConnection, body: bytes) -> None:
        session_id, first, _, _ = COMMANDS_HEADER.unpack_from(body)
        operations = decode_operations(body)
        if session_id != connection.session_id:
            if session_id == connection.ended_session:
                return
            raise RemoteProtocolError(
                f"COMMANDS of session {session_id} on {connection.session_id}"
            )
        if self.refusing or (connection.refused_from and first > connection.refused_from):
            if not connection.refused_from:
                connection.refused_from = first
                connection.send(
                    FrameType.REFUSED_COMMANDS, first, "overloaded", "refused by the test"
                )
            return
        connection.refused_from = 0
        self.apply([Group(Kind.COMMANDS, len(operations), body, operations)])

    def _read(self, connection: ClientConnection, body: bytes) -> None:
        request_id, _, _, _, operations = decode(FrameType.READ, body)
        values: list[Any] = []
        errors: list[Any] = []
        for operation in operations:
            try:
                values.append(self.multiplexer.query(connection.session_id, operation))
            except CommandError as error:
                errors.append([len(values), *error_fields(error)])
                values.append(None)
        connection.send(
            FrameType.READ_RESULTS, request_id, self.multiplexer.index, values, errors or None
        )

    def apply(self, groups: list[Group]) -> None:
        """Apply one batch, and queue what the connected clients hear of it."""
        multiplexer = self.multiplexer
        log_time = max(self.now_ms, multiplexer.time)
        applied = multiplexer.apply(encode_batch(1, multiplexer.index + 1, log_time, groups))
        by_session = {r.connection.session_id: r.connection for r in self.receivers}
        by_session.pop(0, None)
        for results in applied.results:
            if results.session_id in by_session:
                by_session[results.session_id].results.append(results)
        for session_id, connection in by_session.items():
            session = multiplexer.sessions.get(session_id)
            if session is not None:
                connection.deliver(session.events_after(connection.event_index))
        for opened in applied.opened:
            for receiver in self.receivers:
                if receiver.connection.opening == opened.secret_hash:
                    self._opened(receiver.connection, opened)
        for kept in applied.kept:
            if kept.session_id in by_session:
                by_session[kept.session_id].send(FrameType.KEPT, kept.number, kept.index)
        for ended in applied.ended:
            ending = by_session.get(ended.session_id)
            if ending is not None:
                ending.deliver(())
                ending.session_id, ending.ended_session = 0, ended.session_id
                ending.event_index = 0
                ending.send(FrameType.SESSION_ENDED, ended.session_id, ended.reason, ended.index)

    def _opened(self, connection: ClientConnection, opened: Any) -> None:
        connection.opening = b""
        if opened.refused is not None:
            connection.send(FrameType.REFUSED, opened.refused[0], opened.refused[1])
            self.flush()
            connection.link.close(opened.refused[1])
            return
        connection.session_id = opened.session_id
        connection.event_index = 0
        connection.send(
            FrameType.SESSION, opened.session_id, opened.timeout_ms, self.multiplexer.index, 0
        )

    def flush(self) -> None:
        """One write per connection: sent, kept back, or lost, as the knobs are."""
        unflushed, self.unflushed[:] = list(self.unflushed), []
        for connection in unflushed:
            data = b"".join(connection.out)
            connection.out.clear()
            if self.mute:
                continue
            if self._held is not None:
                self._held.append((connection, data))
            else:
                connection.link.send(data)


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
