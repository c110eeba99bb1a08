"""What a server's own clients wait for: routed once, routed again when the way has changed."""

from __future__ import annotations

from folkmoot.core.batch import Group, Kind
from folkmoot.core.intake import Intake


def commands(count: int = 1) -> Group:
    return Group(Kind.COMMANDS, count, b"x" * 10)


def opened() -> Intake:
    intake = Intake(bytes_max=1000, retry_s=1.0)
    intake.attach(7, 1)
    return intake


def test_what_arrived_is_routed_once() -> None:
    intake = opened()
    group = commands()
    assert intake.take("leader 1", 0.0) == []
    intake.add_commands(7, group, 0.0)
    assert intake.take("leader 1", 0.1) == [group]
    assert intake.take("leader 1", 0.2) == []


def test_without_a_way_everything_is_kept_and_leaves_in_order_when_there_is_one() -> None:
    intake = opened()
    first, second = commands(2), commands(3)
    intake.add_commands(7, first, 0.0)
    assert intake.take(None, 0.0) == []
    intake.add_commands(7, second, 0.1)
    assert intake.take("leader 1", 0.2) == [first, second]
    assert intake.expected(7) == 6
    assert intake.in_flight(7) == 5


def test_another_leader_gets_everything_that_is_unanswered() -> None:
    intake = opened()
    first, second = commands(2), commands(1)
    intake.add_commands(7, first, 0.0)
    intake.add_commands(7, second, 0.0)
    intake.take("leader 1", 0.0)
    assert intake.answered(7, 1, 2, 0.1)
    assert intake.take("leader 2", 0.2) == [second]
    assert intake.in_flight(7) == 1


def test_silence_is_answered_by_routing_again() -> None:
    intake = opened()
    group = commands()
    intake.take("leader 1", 0.0)
    intake.add_commands(7, group, 0.0)
    intake.take("leader 1", 0.0)
    due = intake.retry_at()
    assert due is not None
    assert intake.take("leader 1", due - 0.01) == []
    assert intake.take("leader 1", max(due, 1.0)) == [group]


def test_a_gap_in_the_log_is_routed_again_soon() -> None:
    intake = opened()
    group = commands()
    intake.take("leader 1", 0.0)
    intake.add_commands(7, group, 0.0)
    intake.take("leader 1", 0.0)
    intake.route_again(7, 0.01)
    due = intake.retry_at()
    assert due is not None
    assert due < 0.2
    assert intake.take("leader 1", due) == [group]


def test_answers_make_room_and_a_session_that_left_takes_its_commands_along() -> None:
    intake = opened()
    for _ in range(100):
        assert intake.has_room(10)
        intake.add_commands(7, commands(), 0.0)
    assert not intake.has_room(10)
    intake.answered(7, 1, 50, 0.0)
    assert intake.has_room(10)
    intake.detach(7)
    assert intake.size_bytes == 0
    assert intake.answered(7, 51, 1, 0.0) == 0, "nobody here waits for it any more"
    assert intake.retry_at() is None


def test_openings_and_closings_are_routed_again_too() -> None:
    intake = opened()
    opening, closing = Group(Kind.OPEN_SESSION, 1, b"o"), Group(Kind.CLOSE_SESSION, 1, b"c")
    intake.add_open(b"hash", opening)
    intake.add_close(7, closing)
    assert intake.take("leader 1", 0.0) == [opening, closing]
    assert intake.take("leader 2", 0.1) == [opening, closing]
    intake.opens.pop(b"hash")
    intake.detach(7)
    assert intake.take("leader 3", 0.2) == []


def test_only_the_newest_keep_alive_of_a_turn_is_kept() -> None:
    intake = opened()
    intake.keep_alives[7] = [7, 0, 0, 1]
    intake.keep_alives[7] = [7, 5, 2, 2]
    assert intake.take_keep_alives() == [[7, 5, 2, 2]]
    assert intake.take_keep_alives() == []


def test_without_a_way_there_is_nothing_to_be_reminded_of() -> None:
    """Reproduces a server that turned without end while it knew no leader and a client waited."""
    intake = opened()
    intake.add_open(b"hash", Group(Kind.OPEN_SESSION, 1, b"o"))
    assert intake.take(None, 5.0) == []
    assert intake.retry_at() is None
    assert len(intake.take("leader 1", 6.0)) == 1
    assert intake.retry_at() == 7.0


def test_a_move_in_the_midst_of_commands_asks_for_the_answers_that_it_left_behind() -> None:
    """Reproduces clients that were told of sequence 12 while 10 was unanswered, and hung up."""
    intake = Intake(bytes_max=1000, retry_s=1.0)
    intake.attach(7, 10)
    assert intake.answered(7, 12, 1, 0.0) == 10, "10 and 11 were applied before the session came"
    assert intake.answered(7, 13, 2, 0.0) == 13
    intake.add_commands(7, commands(3), 0.1)
    assert intake.answered(7, 10, 3, 0.2) == 10, "again, and the client passes it over"
    assert not intake.size_bytes
