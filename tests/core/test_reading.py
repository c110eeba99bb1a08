"""Reads wait for their moment and leave in order (§6.4)."""

from __future__ import annotations

from folkmoot.core.reading import Read, ReadDesk


def read(
    request_id: int, at_least: int = 0, after_sequence: int = 0, connection: object = "c"
) -> Read:
    return Read(connection, request_id, at_least, 7, after_sequence, [])


def due(desk: ReadDesk, applied: int, sequence: int = 0) -> list[int]:
    return [one.request_id for one in desk.due(applied, lambda session_id: sequence)]


def test_reads_of_one_turn_share_a_round_and_wait_for_its_index() -> None:
    desk = ReadDesk()
    desk.unconfirmed += [read(1), read(2)]
    token = desk.begin_round()
    assert token is not None
    desk.unconfirmed.append(read(3))
    desk.confirmed(token, 10)
    assert due(desk, 9) == []
    assert due(desk, 10) == [1, 2]
    assert desk.waiting() == 1, "a read that arrived after the round began needs another"


def test_a_lost_round_is_begun_again() -> None:
    desk = ReadDesk()
    desk.unconfirmed.append(read(1))
    token = desk.begin_round()
    assert token is not None
    desk.lost(token)
    again = desk.begin_round()
    assert again is not None
    assert again != token
    desk.confirmed(token, 5)
    assert due(desk, 100) == [], "an answer to the lost round confirms nothing (bugs C3)"
    desk.confirmed(again, 5)
    assert due(desk, 5) == [1]


def test_a_sequential_read_waits_for_its_own_session() -> None:
    desk = ReadDesk()
    desk.add_confirmed(read(1, at_least=5, after_sequence=3))
    assert due(desk, 4, sequence=3) == []
    assert due(desk, 5, sequence=2) == []
    assert due(desk, 5, sequence=3) == [1]
    assert desk.waiting() == 0


def test_a_read_names_the_least_index_itself() -> None:
    desk = ReadDesk()
    desk.unconfirmed.append(read(1, at_least=50))
    token = desk.begin_round()
    assert token is not None
    desk.confirmed(token, 10)
    assert due(desk, 49) == []
    assert due(desk, 50) == [1]


def test_a_client_that_left_leaves_nothing_behind() -> None:
    desk = ReadDesk()
    for step in range(3):
        desk.unconfirmed.append(read(step, connection="gone"))
        if step == 0:
            desk.begin_round()
        elif step == 1:
            token = desk.begin_round()
            assert token is not None
            desk.confirmed(token, 99)
    desk.unconfirmed.append(read(9, connection="stays"))
    desk.forget("gone")
    assert desk.waiting() == 1


def test_no_read_waits_for_commands_that_were_refused() -> None:
    """Reproduces a sequential read that had no answer until its client used its sequence again."""
    desk = ReadDesk()
    desk.add_confirmed(read(1, after_sequence=9))
    desk.add_confirmed(read(2, after_sequence=9, connection="other"))
    assert due(desk, 5, sequence=4) == []
    desk.add_confirmed(read(3, at_least=6, after_sequence=7))
    desk.refused("c", 5)
    assert due(desk, 5, sequence=4) == [1]
    assert due(desk, 6, sequence=4) == [3]
    assert due(desk, 6, sequence=9) == [2]
