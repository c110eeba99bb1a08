"""The client's session while the servers refuse commands with StorageFull."""

from __future__ import annotations

from typing import Any

from folkmoot.core.errors import StorageFull
from folkmoot.core.requests import FrameType
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.transport.codec import pack
from tests.core.client_driver import Driver

COMMANDS, READ, KEEP_ALIVE = FrameType.COMMANDS, FrameType.READ, FrameType.KEEP_ALIVE


def refuse(client: Driver, first: int) -> None:
    client.receive(FrameType.REFUSED_COMMANDS, first, "storage_full", "900 bytes are free")


def sent(client: Driver) -> list[tuple[int, list[str]]]:
    """(first sequence, names) of the frames of commands since the last call."""
    found: list[Any] = client.frames(COMMANDS)
    client.sent.clear()
    return [(frame[1], [operation[1] for operation in frame[4]]) for frame in found]


def test_a_refused_command_raises_storage_full_and_the_session_goes_on() -> None:
    client = Driver().ready()
    target = client.opened()
    command = client.do(target, "set")
    refuse(client, 2)
    assert type(command.error) is StorageFull
    assert (str(command.error), command.error.applied) == ("900 bytes are free", "no")
    assert client.core.state is ConnectionState.CONNECTED
    later = client.do(target, "set")
    assert later.sequence == 2
    client.results(2, 30, "there is room")
    assert later.value == "there is room"


def test_what_was_sent_behind_a_refused_frame_is_sent_again_in_its_place() -> None:
    """A release behind a refused write must not be lost: the server did not even look at it."""
    client = Driver().ready()
    target = client.opened()
    refused = [client.issue(target, "set"), client.issue(target, "set")]
    client.turn()
    release, delete = client.do(target, "release"), client.do(target, "delete")
    client.sent.clear()
    waits = client.issue(target, "subscribe")
    refuse(client, 2)
    assert client.answers == refused
    assert sent(client) == [(2, ["release", "delete", "subscribe"])]
    assert [one.sequence for one in (release, delete, waits)] == [2, 3, 4]
    client.results(2, 30, "released", 1)
    assert (release.value, delete.value, waits.answered) == ("released", 1, False)


def test_each_frame_gets_its_own_refusal() -> None:
    client = Driver().ready()
    target = client.opened()
    first, second = client.do(target, "set"), client.do(target, "set")
    client.sent.clear()
    refuse(client, 2)
    assert (first.answered, second.answered) == (True, False)
    assert sent(client) == [(2, ["set"])]
    refuse(client, 2)
    assert type(second.error) is StorageFull
    assert sent(client) == []


def test_what_is_sent_again_names_its_resource_anew() -> None:
    """By name at first; by id the second time, as the id has become known."""
    client = Driver().ready()
    target = client.target()
    opens = client.do(target, "set")
    client.do(client.target("other"), "set")
    behind = client.do(target, "delete")
    client.results(1, 20, [5, 1, None])
    assert opens.value == 1
    client.sent.clear()
    refuse(client, 2)
    ((_, (_, first, _, _, operations)),) = client.sent
    assert (first, operations) == (2, [[5, "delete", []]])
    client.results(2, 21, True)
    assert behind.value is True


def test_what_is_to_be_sent_again_can_still_be_withdrawn_unsent() -> None:
    client = Driver().ready()
    target = client.opened()
    client.do(target, "set")
    behind = client.do(target, "set")
    frame = (FrameType.REFUSED_COMMANDS, 0, pack((2, "storage_full", "full")))
    client.core.received([frame], client.now)
    assert behind.sequence == 0
    assert client.core.pipeline.withdraw(behind)
    client.sent.clear()
    client.turn()
    assert sent(client) == []


def test_a_sequential_read_sees_what_was_issued_before_it_and_is_sent_again() -> None:
    client = Driver().ready()
    target = client.opened()
    client.do(target, "set")
    client.do(target, "delete")
    behind = client.read(target, Consistency.SEQUENTIAL)
    beside = client.read(target, Consistency.LINEARIZABLE)
    client.turn()
    assert len(client.frames(READ)) == 2
    client.sent.clear()
    refuse(client, 2)
    assert [kind for kind, _ in client.sent] == [COMMANDS, READ], "only the one behind the delete"
    assert client.frames(READ)[0][3] == 2, "it names the delete's sequence"
    client.receive(FrameType.READ_RESULTS, 1, 30, ["of before the delete"], None)
    assert not behind.answered
    client.receive(FrameType.READ_RESULTS, 2, 30, ["x"], None)
    client.receive(FrameType.READ_RESULTS, 3, 31, ["gone"], None)
    assert (behind.value, beside.value) == ("gone", "x")


def test_a_client_whose_commands_are_refused_all_the_time_keeps_its_session() -> None:
    """Reproduces a session that expired: each refused command counted as a sign of life that had
    been sent, so no keep-alive ever was.
    """
    client = Driver().ready()
    target = client.opened()
    client.sent.clear()
    number = 0
    for _ in range(600):  # 60 s of a session whose timeout is 3 s
        command = client.do(target, "set")
        refuse(client, command.sequence)
        for fields in client.frames(KEEP_ALIVE):
            number += 1
            client.receive(FrameType.KEPT, fields[3], 30)
        client.sent.clear()
        client.wait(0.1)
    assert client.core.state is ConnectionState.CONNECTED
    assert 50 <= number <= 70, "one in a third of the timeout"
