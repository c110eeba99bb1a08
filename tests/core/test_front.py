"""What a server takes of a client, and what it refuses."""

from __future__ import annotations

from typing import Any

import attrs

from folkmoot.core.batch import Group
from folkmoot.core.config import LimitsConfig, NodeConfig
from folkmoot.core.connection import ClientConnection
from folkmoot.core.front import Front
from folkmoot.core.intake import Intake
from folkmoot.core.reading import ReadDesk
from folkmoot.core.requests import FrameType, decode, encode_commands
from folkmoot.core.room import Shortage
from folkmoot.transport.frame import FrameReader
from tests.core.test_connection import FakeLink


@attrs.define
class FakeReplica:
    """As much of a server as taking commands needs."""

    config: NodeConfig
    intake: Intake
    reads: ReadDesk = attrs.field(factory=ReadDesk)
    node_id: int = 1
    short: Shortage | None = None

    def shortage(self, now: float) -> Shortage | None:
        return self.short

    @property
    def multiplexer(self) -> FakeReplica:
        return self

    @property
    def directory(self) -> FakeReplica:
        return self

    def is_freeing(self, operation: list[Any]) -> bool:
        return str(operation[1]).startswith("free")


def desk(window: int) -> tuple[Front, ClientConnection, FakeLink]:
    replica: Any = FakeReplica(
        NodeConfig(limits=LimitsConfig(session_window=window)), Intake(1 << 20, 1.0)
    )
    front = Front(replica)
    link = FakeLink()
    connection = ClientConnection(link, front.unflushed, greeted=True, session_id=7)
    replica.intake.attach(7, 1)
    return front, connection, link


def send(
    front: Front,
    connection: ClientConnection,
    first: int,
    count: int,
    *names: str,
    low_water: int = 0,
) -> None:
    operations = [[1, name, []] for name in names or ["get"] * count]
    body = encode_commands(7, first, low_water, 0, operations)
    front.frames(connection, [(FrameType.COMMANDS, 0, body)], 0.0)
    front.flush()


def refused(link: FakeLink) -> list[list[Any]]:
    frames = FrameReader(1 << 20).feed(b"".join(link.writes))
    return [decode(k, body) for k, _, body in frames if k == FrameType.REFUSED_COMMANDS]


def refusals(link: FakeLink) -> list[int]:
    return [fields[0] for fields in refused(link)]


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


# while the leader's disk is low


def short_desk() -> tuple[Front, ClientConnection, FakeLink]:
    front, connection, link = desk(window=100)
    replica: Any = front.replica
    replica.short = Shortage(2, 900, 1000)
    return front, connection, link


def taken(front: Front) -> list[list[str]]:
    """Names of the operations that wait for the log, frame by frame."""
    groups: list[Group] = front.replica.intake.fresh
    return [[operation[1] for operation in group.decoded] for group in groups]


def test_commands_that_free_nothing_are_refused_and_use_no_sequence() -> None:
    front, connection, link = short_desk()
    for _ in range(3):  # a client that tries again and again
        send(front, connection, 1, 2, "set", "set")
    assert [fields[:2] for fields in refused(link)] == [[1, "storage_full"]] * 3
    assert "900 bytes are free on the disk of server 2" in refused(link)[0][2]
    assert taken(front) == []
    assert front.replica.intake.expected(7) == 1


def test_commands_that_free_are_taken_and_those_beside_them_are_marked() -> None:
    front, connection, link = short_desk()
    send(front, connection, 1, 1, "free")
    send(front, connection, 2, 3, "set", "free", "set")
    assert taken(front) == [["free"], ["no_room", "free", "no_room"]]
    assert refused(link) == []
    assert front.replica.intake.expected(7) == 5


def test_what_was_sent_behind_a_refused_frame_may_come_again() -> None:
    front, connection, link = short_desk()
    send(front, connection, 1, 1, "set")
    send(front, connection, 2, 1, "free")  # the client has not heard yet
    assert taken(front) == []
    send(front, connection, 1, 1, "free")
    assert taken(front) == [["free"]]
    assert refusals(link) == [1]


def test_when_there_is_room_again_the_next_frame_is_taken() -> None:
    front, connection, _ = short_desk()
    send(front, connection, 1, 1, "set")
    replica: Any = front.replica
    replica.short = None
    send(front, connection, 1, 1, "set")
    assert taken(front) == [["set"]]


def test_what_may_be_in_the_log_already_is_never_refused() -> None:
    """A session was resumed here from sequence 4 on: what it sends first, it may have sent before.

    Once it was answered something here, it sends only what is new.
    """
    front, connection, link = short_desk()
    connection.resumed_at = 4
    front.replica.intake.attach(7, 4)
    send(front, connection, 4, 2, "set", "set", low_water=3)
    assert taken(front) == [["no_room", "no_room"]]
    send(front, connection, 6, 1, "set", low_water=3)
    assert taken(front)[1:] == [["no_room"]], "no answer has reached the client yet"
    send(front, connection, 7, 1, "set", low_water=4)
    assert refusals(link) == [7]
