"""What a server takes of a client, and what it refuses."""

from __future__ import annotations

from typing import Any

import attrs

from folkmoot.core.config import LimitsConfig, NodeConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.front import Front
from folkmoot.core.intake import Intake
from folkmoot.core.reading import ReadDesk
from folkmoot.core.requests import FrameType, decode, encode_commands
from folkmoot.transport.frame import FrameReader
from tests.core.test_connection import FakeLink


@attrs.define
class FakeReplica:
    """As much of a server as taking commands needs."""

    config: NodeConfig
    intake: Intake
    reads: ReadDesk = attrs.field(factory=ReadDesk)
    node_id: int = 1


def desk(window: int) -> tuple[Front, ClientConnection, FakeLink]:
    replica: Any = FakeReplica(
        NodeConfig(limits=LimitsConfig(session_window=window)), Intake(1 << 20, 1.0)
    )
    front = Front(replica)
    link = FakeLink()
    connection = ClientConnection(link, front.unflushed, greeted=True, session_id=7)
    replica.intake.attach(7, 1)
    return front, connection, link


def send(front: Front, connection: ClientConnection, first: int, count: int) -> None:
    body = encode_commands(7, first, 0, 0, [[1, "get", []] for _ in range(count)])
    front.frames(connection, [(FrameType.COMMANDS, 0, body)], 0.0)
    front.flush()


def refusals(link: FakeLink) -> list[int]:
    frames = FrameReader(1 << 20).feed(b"".join(link.writes))
    return [decode(k, body)[0] for k, _, body in frames if k == FrameType.REFUSED_COMMANDS]


def test_commands_beyond_the_window_are_refused_from_the_first_of_them() -> None:
    front, connection, link = desk(window=4)
    send(front, connection, 1, 3)
    send(front, connection, 4, 2)
    send(front, connection, 6, 1)  # sent before the client learned of the refusal
    assert refusals(link) == [4]
    assert front.replica.intake.in_flight(7) == 3
    send(front, connection, 4, 1)
    assert front.replica.intake.in_flight(7) == 4


def test_one_frame_is_taken_however_many_commands_it_has() -> None:
    """Reproduces a client that moved for ever (simulator, seed 1247): what it had to send again
    was more than a window, because answered commands stood among the unanswered ones.
    """
    front, connection, link = desk(window=4)
    send(front, connection, 1, 7)
    assert refusals(link) == []
    assert front.replica.intake.in_flight(7) == 7
    send(front, connection, 8, 1)
    assert refusals(link) == [8]
