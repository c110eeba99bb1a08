"""When there is room and when there is not, who knows of it, and what is taken meanwhile."""

from __future__ import annotations

import math
from typing import Any

import pytest

from folkmoot.core.batch import COMMANDS_HEADER, Group, Kind
from folkmoot.core.errors import RemoteProtocolError, StorageFull
from folkmoot.core.forwarding import decode_room, encode_room
from folkmoot.core.requests import decode_operations, encode_commands
from folkmoot.core.room import HEARD_FOR_S, LOOK_BYTES, LOOK_S, Room, Shortage, sift
from folkmoot.core.types import NodeId
from folkmoot.transport.frame import FrameReader

LEADER, OTHER = NodeId(1), NodeId(2)
SHORT = Shortage(LEADER, 900, 1000)


def room(reserve_bytes: int = 1000) -> Room:
    return Room(LEADER, reserve_bytes)


# the disk here


def test_a_disk_is_low_below_the_reserve_and_until_it_has_a_quarter_more() -> None:
    here = room()
    states = []
    for free_bytes in (5000, 1000, 999, 1000, 1249, 1250, 1000, 0):
        changed = here.looked(free_bytes, 0.0)
        states.append((here.shortage is not None, changed is not None))
    assert states == [
        (False, False),
        (False, False),
        (True, True),
        (True, False),
        (True, False),
        (False, True),
        (False, False),
        (True, True),
    ]
    assert here.shortage == Shortage(LEADER, 0, 1000)


def test_without_a_reserve_no_disk_is_low() -> None:
    here = room(0)
    assert here.looked(0, 0.0) is None
    assert here.shortage is None


def test_the_disk_is_looked_at_once_a_second_and_after_so_many_bytes() -> None:
    here = room(1 << 30)
    assert here.wants_look(0.0), "nobody knows yet"
    here.looked(5000, 0.0)
    assert not here.wants_look(LOOK_S - 0.01)
    assert here.wants_look(LOOK_S)
    here.wrote(LOOK_BYTES - 1)
    assert not here.wants_look(0.5)
    here.wrote(1)
    assert here.wants_look(0.5)
    here.looked(5000, 0.5)
    assert not here.wants_look(0.5)


def test_a_small_reserve_is_not_written_away_between_two_looks() -> None:
    here = room(8000)
    here.looked(9000, 0.0)
    here.wrote(999)
    assert not here.wants_look(0.0)
    here.wrote(1)
    assert here.wants_look(0.0)


def test_only_a_disk_that_is_low_is_watched_while_nothing_happens() -> None:
    here = room()
    here.looked(5000, 3.0)
    assert here.deadline() == math.inf
    here.looked(10, 3.0)
    assert here.deadline() == 3.0 + LOOK_S


def test_a_change_says_what_it_is_in_words_for_the_log() -> None:
    here = room()
    assert str(here.looked(10, 0.0)) == (
        "the disk is low: 10 bytes are free, the reserve is 1000; "
        "commands are refused while this server leads"
    )
    assert str(here.looked(2000, 1.0)) == (
        "the disk has room again: 2000 bytes are free, the reserve is 1000"
    )


# among the servers


def test_a_leader_that_has_room_says_nothing() -> None:
    here = room()
    here.looked(5000, 0.0)
    here.peer_up()
    assert not here.must_tell(1)


def test_a_leader_tells_of_a_change_and_repeats_while_it_is_low() -> None:
    here = room()
    here.looked(10, 0.0)
    assert here.must_tell(1)
    assert not here.must_tell(1), "not in every turn"
    here.looked(10, 1.0)
    assert here.must_tell(1), "a frame may have been lost"
    here.looked(5000, 2.0)
    assert here.must_tell(1), "there is room again"
    here.looked(5000, 3.0)
    assert not here.must_tell(1)


def test_a_new_leader_and_a_member_that_comes_up_are_reasons_to_tell() -> None:
    here = room()
    here.looked(10, 0.0)
    here.must_tell(1)
    assert here.must_tell(2)
    assert not here.must_tell(2)
    here.peer_up()
    assert here.must_tell(2)


def test_a_follower_knows_what_its_leader_says() -> None:
    there = room()
    there.heard(3, SHORT, 10.0)
    assert there.of_leader(LEADER, 3, 10.0) == SHORT
    there.heard(3, None, 11.0)
    assert there.of_leader(LEADER, 3, 11.0) is None


def test_what_a_leader_said_lapses_so_that_a_lost_all_clear_keeps_nobody_out() -> None:
    there = room()
    there.heard(3, SHORT, 10.0)
    there.heard(3, SHORT, 11.0)
    assert there.of_leader(LEADER, 3, 11.0 + HEARD_FOR_S - 0.01) == SHORT
    assert there.of_leader(LEADER, 3, 11.0 + HEARD_FOR_S) is None


def test_a_leader_repeats_itself_often_enough_to_be_heard_through_losses() -> None:
    assert HEARD_FOR_S >= 4 * LOOK_S


def test_what_an_earlier_leader_said_does_not_hold_for_the_next() -> None:
    there = room()
    there.heard(3, SHORT, 10.0)
    assert there.of_leader(OTHER, 4, 10.0) is None
    assert there.of_leader(None, 4, 10.0) is None, "nobody leads: commands wait"
    assert there.of_leader(LEADER, 4, 10.0) is None, "again it, and it has not looked yet"


def test_a_word_of_an_earlier_term_that_comes_late_changes_nothing() -> None:
    there = room()
    newer = Shortage(OTHER, 5, 1000)
    there.heard(4, newer, 10.0)
    there.heard(3, None, 10.0)
    assert there.of_leader(OTHER, 4, 10.0) == newer


def test_a_word_that_comes_before_its_term_is_known_counts_from_then_on() -> None:
    there = room()
    there.heard(4, SHORT, 10.0)
    assert there.of_leader(OTHER, 3, 10.0) is None
    assert there.of_leader(LEADER, 4, 10.1) == SHORT


@pytest.mark.parametrize("shortage", [None, SHORT])
def test_it_travels_in_a_frame_of_its_own(shortage: Shortage | None) -> None:
    ((_, _, body),) = FrameReader(1 << 10).feed(encode_room(7, shortage))
    assert decode_room(LEADER, body) == (7, shortage)


@pytest.mark.parametrize("body", [b"", bytes(24), bytes(26)])
def test_a_frame_of_another_length_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"ROOM: \d+ bytes, 25 are needed"):
        decode_room(LEADER, body)


# what is taken


def frame(*operations: Any) -> Group:
    payload = encode_commands(7, 5, 3, 99, list(operations))
    return Group(Kind.COMMANDS, len(operations), payload, list(operations))


def is_freeing(operation: list[Any]) -> bool:
    return str(operation[1]) == "free"


FREE, GROW = [3, "free", []], [["n", "map", 1, {}], "grow", [b"x" * 100]]
MARKER = [0, "no_room", [1, 900, 1000]]


def test_a_frame_of_which_everything_frees_is_taken_as_it_is() -> None:
    group = frame(FREE, FREE)
    assert sift(group, SHORT, is_freeing, is_new=True) is group


def test_a_frame_of_which_nothing_frees_is_refused_as_a_whole() -> None:
    assert sift(frame(GROW, GROW), SHORT, is_freeing, is_new=True) is None


@pytest.mark.parametrize(
    ("operations", "is_new", "expected"),
    [
        ([GROW, FREE, GROW], True, [MARKER, FREE, MARKER]),
        ([GROW, FREE], False, [MARKER, FREE]),
        ([GROW, GROW], False, [MARKER, MARKER]),
        ([FREE], False, [FREE]),
    ],
    ids=["mixed", "mixed and perhaps repeated", "perhaps repeated", "freeing and repeated"],
)
def test_what_cannot_be_refused_as_a_whole_keeps_its_sequences(
    operations: list[Any], is_new: bool, expected: list[Any]
) -> None:
    taken = sift(frame(*operations), SHORT, is_freeing, is_new=is_new)
    assert taken is not None
    assert (taken.kind, taken.count, taken.decoded) == (Kind.COMMANDS, len(expected), expected)
    assert COMMANDS_HEADER.unpack_from(taken.payload) == (7, 5, 3, 99)
    assert decode_operations(taken.payload) == expected


def test_a_marker_is_small_whatever_it_stands_for() -> None:
    taken = sift(frame(FREE, *[GROW] * 100), SHORT, is_freeing, is_new=True)
    assert taken is not None
    assert len(taken.payload) < 100 * 32


def test_the_message_names_the_server_its_room_its_reserve_and_what_to_do() -> None:
    text = str(StorageFull(SHORT.message()))
    for part in ("server 1", "900 bytes are free", "reserve is 1000", "storage.reserve_bytes"):
        assert part in text
    assert "free space on that disk" in text
    assert StorageFull.applied == "no"
