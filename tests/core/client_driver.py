"""Drives a SessionClient by hand: virtual time, decoded frames, and a short word for each input."""

from __future__ import annotations

import random
from typing import Any

from folkmoot.core.batch import COMMANDS_HEADER
from folkmoot.core.config import ClientConfig
from folkmoot.core.effects import StateChange
from folkmoot.core.event_chain import Event
from folkmoot.core.pipeline import Command, Operation
from folkmoot.core.queries import AdminRequest, Query
from folkmoot.core.requests import FrameType, decode, decode_operations
from folkmoot.core.session_client import SessionClient
from folkmoot.core.targets import Target
from folkmoot.core.types import Consistency
from folkmoot.transport.codec import pack
from folkmoot.transport.frame import FrameReader

CLUSTER = b"cluster-of-tests"
Sent = tuple[FrameType, Any]


def decode_sent(data: bytes) -> list[Sent]:
    """Frames as (type, fields); COMMANDS as (session, first, low water, event index, [...])."""
    found: list[Sent] = []
    for frame_type, _, body in FrameReader(1 << 26).feed(data):
        kind = FrameType(frame_type)
        if kind is FrameType.COMMANDS:
            header = COMMANDS_HEADER.unpack_from(body)
            found.append((kind, (*header, decode_operations(body))))
        else:
            found.append((kind, tuple(decode(kind, body))))
    return found


class Driver:
    """One client without a network.

    Every input is followed by a turn; what came out is in `sent`, `answers`, `states` and `events`.
    """

    def __init__(
        self, config: ClientConfig | None = None, addresses: tuple[str, ...] = ("a:1",)
    ) -> None:
        self.now = 100.0
        secrets = iter(range(1, 256))
        self.core = SessionClient(
            addresses,
            config or ClientConfig(),
            random.Random(1),
            lambda: bytes([next(secrets)]) * 16,
            "tester",
        )
        self.connecting: list[str] = []
        self.disconnects: list[str] = []
        self.sent: list[Sent] = []
        self.answers: list[Operation] = []
        self.admin: list[AdminRequest] = []
        self.states: list[StateChange] = []
        self.events: list[Event] = []
        self.notices: list[StateChange | Event] = []
        self.core.start()
        self.turn()

    # inputs

    def turn(self) -> None:
        self.core.tick(self.now)
        effects = self.core.effects(self.now)
        for data in effects.send:
            self.sent.extend(decode_sent(data))
        if effects.disconnect is not None:
            self.disconnects.append(effects.disconnect)
        if effects.connect is not None:
            self.connecting.append(effects.connect)
        self.answers.extend(effects.answers)
        self.admin.extend(effects.admin)
        self.notices.extend(effects.notices)
        for notice in effects.notices:
            if isinstance(notice, Event):
                self.events.append(notice)
            else:
                self.states.append(notice)

    def wait(self, seconds: float) -> None:
        """Let time pass, with a turn at every deadline on the way."""
        end = self.now + seconds
        while (due := self.core.deadline()) <= end:
            self.now = max(due, self.now + 1e-9)
            self.turn()
        self.now = end
        self.turn()

    def wait_for_attempt(self) -> str:
        """Let time pass until the client is about to connect somewhere."""
        for _ in range(1000):
            if self.core.connector.address:
                return self.connecting[-1]
            self.now = max(self.core.deadline(), self.now + 1e-9)
            self.turn()
        raise AssertionError("the client does not try to connect")

    def receive(self, kind: FrameType, *fields: Any) -> None:
        self.core.received([(kind, 0, pack(fields))], self.now)
        self.turn()

    def lose(self, reason: str = "reset") -> None:
        self.core.disconnected(reason, self.now)
        self.turn()

    def accept(
        self, node: int = 1, leader: int = 1, leader_address: str = "", cluster: bytes = CLUSTER
    ) -> None:
        """The attempt succeeds, and the server says WELCOME."""
        self.core.connected(self.now)
        self.turn()
        self.receive(FrameType.WELCOME, 1, cluster, node, leader, leader_address)

    def session(self, session_id: int = 7, sequence: int = 0, timeout_ms: int = 3000) -> None:
        self.receive(FrameType.SESSION, session_id, timeout_ms, 10, sequence)

    def ready(self, **welcome: Any) -> Driver:
        """Connect and open a session; forget what was sent for that."""
        self.accept(**welcome)
        self.session()
        self.sent.clear()
        return self

    def reconnect(self, sequence: int) -> None:
        """Connect again and resume."""
        self.wait_for_attempt()
        self.accept()
        self.session(sequence=sequence)

    def target(self, name: str = "n") -> Target:
        return self.core.targets.make(name, "counter", 1, {})

    def issue(self, target: Target, name: str = "add", *args: Any) -> Command:
        command = Command(target, name, args)
        self.core.issue(command)
        return command

    def do(self, target: Target, name: str = "add", *args: Any) -> Command:
        """Issue a command in a turn of its own."""
        command = self.issue(target, name, *args)
        self.turn()
        return command

    def read(self, target: Target, level: Consistency, at_least: int = 0) -> Query:
        query = Query(target, "get", (), level, at_least)
        self.core.read(query)
        return query

    def results(self, first: int, index: int, *values: Any, errors: Any = None) -> None:
        self.receive(FrameType.RESULTS, first, index, list(values), errors)

    def event(self, index: int, previous: int, *payloads: Any, resource: int = 5) -> None:
        packed = [pack([resource, "tick", payload]) for payload in payloads]
        self.receive(FrameType.EVENTS, [[index, previous, packed]])

    def opened(self, name: str = "n", resource: int = 5) -> Target:
        """A target whose id is known, by a first command."""
        target = self.target(name)
        command = self.do(target)
        self.results(command.sequence, 20, [resource, None, None])
        self.sent.clear()
        self.answers.clear()
        return target

    # outputs

    def frames(self, kind: FrameType) -> list[Any]:
        return [fields for found, fields in self.sent if found is kind]

    @property
    def state_names(self) -> list[str]:
        return [change.state.value for change in self.states]
