"""The client's session bookkeeping, rule by rule: commands, answers, resuming, events."""

from __future__ import annotations

from typing import Any

import pytest

from folkmoot.core.config import ClientConfig, LimitsConfig
from folkmoot.core.errors import (
    ClosedError,
    ConditionFailed,
    OutcomeUnknown,
    Overloaded,
    ResourceDeleted,
    SessionExpired,
)
from folkmoot.core.requests import FrameType
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.transport.codec import pack
from tests.core.client_driver import Driver

COMMANDS, RESULTS = FrameType.COMMANDS, FrameType.RESULTS


def config(**limits: Any) -> ClientConfig:
    return ClientConfig(limits=LimitsConfig(**limits))


def names(frame: Any) -> list[str]:
    return [operation[1] for operation in frame[4]]


# commands


def test_all_commands_of_one_turn_travel_in_one_frame() -> None:
    client = Driver().ready()
    target = client.target()
    for name in ("a", "b", "c"):
        client.issue(target, name)
    client.turn()
    by_name = ["n", "counter", 1, {}]
    assert client.sent == [
        (COMMANDS, (7, 1, 0, 0, [[by_name, "a", []], [by_name, "b", []], [by_name, "c", []]]))
    ]


def test_a_command_withdrawn_before_it_was_sent_uses_no_sequence() -> None:
    client = Driver().ready()
    target = client.target()
    first, given_up, last = (client.issue(target, name) for name in "abc")
    assert client.core.pipeline.withdraw(given_up)
    client.turn()
    assert (first.sequence, given_up.sequence, last.sequence) == (1, 0, 2)
    assert names(client.frames(COMMANDS)[0]) == ["a", "c"]


def test_a_command_given_up_after_sending_keeps_its_place() -> None:
    client = Driver().ready()
    command = client.do(client.target())
    assert not client.core.pipeline.withdraw(command)
    assert client.do(client.target()).sequence == 2
    client.results(1, 20, [5, "a", None], [6, "b", None])
    assert command.answered


def test_commands_wait_until_there_is_a_session() -> None:
    client = Driver()
    client.accept()
    command = client.do(client.target())
    assert client.frames(COMMANDS) == []
    client.session()
    assert (command.sequence, len(client.frames(COMMANDS))) == (1, 1)


def test_answers_are_matched_by_sequence_and_acknowledged_by_the_next_frame() -> None:
    client = Driver().ready()
    target = client.target()
    commands = [client.do(target, name) for name in "abc"]
    client.results(1, 21, [5, "A", None], [5, "B", None])
    assert [command.value for command in commands] == ["A", "B", None]
    assert [command.index for command in commands] == [20, 21, 0]
    client.do(target)
    assert client.frames(COMMANDS)[-1][2] == 2, "low water"


def test_the_id_comes_with_the_first_answer_and_is_used_from_then_on() -> None:
    client = Driver().ready()
    target = client.target()
    command = client.do(target)
    client.results(1, 20, [5, 1, "bounds differ"])
    assert (command.value, command.note, target.id) == (1, "bounds differ", 5)
    again = client.do(target)
    assert client.frames(COMMANDS)[-1][4] == [[5, "add", []]]
    client.results(2, 21, 2)
    assert (again.value, again.note) == (2, None)


def test_an_error_is_the_answer_of_its_own_command_only() -> None:
    client = Driver().ready()
    target = client.opened()
    commands = [client.issue(target) for _ in range(3)]
    client.turn()
    client.results(2, 30, 1, None, 3, errors=[[1, "condition_failed", "no", {"version": 4}]])
    assert [command.value for command in commands] == [1, None, 3]
    error = commands[1].error
    assert isinstance(error, ConditionFailed)
    assert error.data == {"version": 4}


def test_bug_g1_a_repeated_answer_completes_nothing_twice() -> None:
    client = Driver().ready()
    target = client.opened()
    client.do(target)
    client.results(2, 30, "x")
    client.results(2, 30, "x")
    client.results(1, 20, [5, None, None], "y")
    assert [command.value for command in client.answers] == ["x"]
    assert client.disconnects == []


@pytest.mark.parametrize(
    ("first", "values"), [(3, ["skips sequence 2"]), (2, ["a", "b", "never sent"])]
)
def test_answers_that_do_not_fit_end_the_connection_not_the_session(
    first: int, values: list[Any]
) -> None:
    client = Driver().ready()
    target = client.opened()
    commands = [client.do(target), client.do(target)]
    client.results(first, 30, *values)
    assert len(client.disconnects) == 1
    assert not any(command.answered for command in commands)
    client.reconnect(sequence=3)
    client.results(2, 30, "a", "b")
    assert [command.value for command in commands] == ["a", "b"]


def test_no_more_than_the_window_is_in_flight() -> None:
    client = Driver(config(session_window=4)).ready()
    target = client.target()
    for _ in range(6):
        client.issue(target)
    client.turn()
    assert [len(frame[4]) for frame in client.frames(COMMANDS)] == [4]
    client.results(1, 20, [5, 1, None])
    assert [len(frame[4]) for frame in client.frames(COMMANDS)] == [4, 1]
    client.results(2, 23, *[[5, 1, None]] * 3)
    assert [len(frame[4]) for frame in client.frames(COMMANDS)] == [4, 1, 1]


def test_no_more_than_the_window_of_bytes_is_in_flight() -> None:
    client = Driver(ClientConfig(window_bytes=4096)).ready()
    target = client.target()
    for _ in range(4):
        client.issue(target, "set", bytes(1800))
    client.turn()
    assert client.core.pipeline.last_sequence == 2
    client.results(1, 20, [5, 1, None])
    assert client.core.pipeline.last_sequence == 3


def test_one_command_larger_than_the_window_of_bytes_goes_alone() -> None:
    client = Driver(ClientConfig(window_bytes=4096)).ready()
    target = client.target()
    client.do(target, "set", bytes(9000))
    client.do(target, "set", b"")
    assert client.core.pipeline.last_sequence == 1
    client.results(1, 20, [5, 1, None])
    assert client.core.pipeline.last_sequence == 2


def test_frames_are_cut_at_about_frame_bytes() -> None:
    client = Driver(ClientConfig(frame_bytes=1024)).ready()
    target = client.target()
    for size in (400, 400, 400, 3000, 10):
        client.issue(target, "set", bytes(size))
    client.turn()
    frames = client.frames(COMMANDS)
    assert [(frame[1], len(frame[4])) for frame in frames] == [(1, 2), (3, 1), (4, 1), (5, 1)]


def test_refused_commands_fail_as_not_applied_and_give_their_sequences_back() -> None:
    client = Driver().ready()
    target = client.opened()
    kept = client.do(target)
    refused = [client.do(target), client.do(target)]
    client.receive(FrameType.REFUSED_COMMANDS, 3, "overloaded", "65 MB wait")
    assert client.answers == refused
    assert all(isinstance(command.error, Overloaded) for command in refused)
    client.results(2, 30, "kept")
    assert kept.value == "kept"
    assert client.do(target).sequence == 3


def test_what_was_sent_on_an_earlier_connection_is_never_called_refused() -> None:
    """The first copy may be in the log: the sequence must not be used for anything else."""
    client = Driver().ready()
    target = client.opened()
    command = client.do(target)
    client.lose()
    client.reconnect(sequence=1)
    fresh = client.do(target)
    client.receive(FrameType.REFUSED_COMMANDS, 2, "overloaded", "full")
    assert [type(answer.error) for answer in client.answers] == [Overloaded]
    assert client.answers == [fresh]
    assert not command.answered
    client.reconnect(sequence=1)
    assert client.frames(COMMANDS)[-1][1] == 2
    client.results(2, 30, "late")
    assert command.value == "late"


# resuming


def test_bug_g9_resuming_repeats_exactly_what_has_no_answer() -> None:
    client = Driver().ready()
    target = client.opened()
    commands = [client.do(target, name) for name in "abcd"]
    client.results(2, 30, "A")
    client.event(31, 0, "e")
    client.lose()
    client.sent.clear()
    client.reconnect(sequence=3)
    assert client.frames(FrameType.RESUME_SESSION) == [(7, b"\1" * 16, 31, 3)]
    assert [(frame[1], names(frame)) for frame in client.frames(COMMANDS)] == [(3, ["b", "c", "d"])]
    client.results(3, 40, "B", "C", "D")
    assert [command.value for command in commands] == ["A", "B", "C", "D"]
    assert client.do(target).sequence == 6


def test_bug_g8_what_is_issued_while_suspended_follows_what_is_repeated() -> None:
    client = Driver().ready()
    target = client.opened()
    client.do(target, "before")
    client.lose()
    client.sent.clear()
    client.do(target, "meanwhile")
    assert client.frames(COMMANDS) == []
    client.reconnect(sequence=1)
    assert [(frame[1], names(frame)) for frame in client.frames(COMMANDS)] == [
        (2, ["before"]),
        (3, ["meanwhile"]),
    ]


def test_a_command_is_repeated_with_the_very_bytes_it_was_sent_with() -> None:
    """By name, although the id is known meanwhile: the answer's shape goes by the first sending."""
    client = Driver().ready()
    target = client.target()
    first, second = client.issue(target, "a"), client.do(target, "b")
    client.results(1, 20, [5, "A", None])
    client.lose()
    client.sent.clear()
    client.reconnect(sequence=2)
    assert client.frames(COMMANDS)[0][4] == [[["n", "counter", 1, {}], "b", []]]
    client.results(2, 21, [5, "B", None])
    assert (first.value, second.value) == ("A", "B")


def test_a_session_that_somebody_else_uses_is_noticed() -> None:
    client = Driver().ready()
    client.lose()
    client.reconnect(sequence=9)
    assert "somebody else" in client.disconnects[-1]


def test_opening_is_repeated_with_the_same_secret() -> None:
    client = Driver()
    client.accept()
    client.lose()
    client.wait_for_attempt()
    client.accept()
    secrets = [fields[0] for fields in client.frames(FrameType.OPEN_SESSION)]
    assert secrets == [b"\1" * 16] * 2


def test_nothing_of_a_connection_counts_once_it_was_given_up() -> None:
    """Reproduces a read that did not see its own session's command.

    The command was refused when it was sent again, and the server answered the read behind it.
    """
    client = Driver().ready()
    target = client.opened()
    command = client.do(target)
    client.lose()
    client.reconnect(sequence=1)
    read = client.read(target, Consistency.SEQUENTIAL)
    client.turn()
    refusal = pack([command.sequence, Overloaded.code, "too many"])
    client.core.received([(FrameType.REFUSED_COMMANDS, 0, refusal)], client.now)
    request_id = client.frames(FrameType.READ)[-1][0]
    answer = pack([request_id, 21, [0], None])
    client.core.received([(FrameType.READ_RESULTS, 0, answer)], client.now)
    client.turn()
    assert not read.answered
    assert not command.answered
    assert client.disconnects


def test_commands_refused_as_malformed_everywhere_do_not_block_the_client_for_ever() -> None:
    client = Driver().ready()
    command = client.do(client.target())
    for _ in range(3):
        client.receive(FrameType.REFUSED, "protocol", "cannot be decoded")
        if not command.answered:
            client.reconnect(sequence=0)
    assert isinstance(command.error, OutcomeUnknown)
    assert "cannot be decoded" in str(command.error)


def test_progress_between_refusals_counts_them_anew() -> None:
    client = Driver().ready()
    target = client.opened()
    for sequence in range(2, 8):
        command = client.do(target)
        client.receive(FrameType.REFUSED, "protocol", "a bad day")
        client.reconnect(sequence=sequence)
        client.results(sequence, 30 + sequence, "fine")
        assert command.value == "fine"


# the session's end


def end(client: Driver, reason: str = "expired", index: int = 50) -> None:
    client.receive(FrameType.SESSION_ENDED, 7, reason, index)


def test_bug_g14_sent_commands_end_unknown_and_unsent_ones_as_not_applied() -> None:
    client = Driver(config(session_window=1)).ready()
    target = client.opened()
    sent, unsent = client.issue(target), client.issue(target)
    client.turn()
    end(client)
    assert (type(sent.error), type(unsent.error)) == (OutcomeUnknown, SessionExpired)
    assert sent.error is not None
    assert sent.error.applied == "maybe"
    client.sent.clear()
    client.session(session_id=60)
    assert client.frames(COMMANDS) == [], "nothing is sent again under the new session"


def test_after_the_end_a_new_session_is_opened_with_a_new_secret() -> None:
    client = Driver().ready()
    end(client)
    assert [fields[0] for fields in client.frames(FrameType.OPEN_SESSION)] == [b"\2" * 16]
    client.session(session_id=60)
    assert client.state_names == ["connected", "expired", "connected"]
    assert [change.session_id for change in client.states] == [7, 7, 60]
    assert client.states[1].index == 50


def test_resources_open_again_by_name_in_the_new_session() -> None:
    client = Driver().ready()
    target = client.opened()
    end(client)
    client.session(session_id=60)
    command = client.do(target)
    assert client.frames(COMMANDS)[-1][4] == [[["n", "counter", 1, {}], "add", []]]
    assert (command.sequence, command.session_id) == (1, 60)


def test_a_command_answered_with_the_sessions_end_ends_the_session() -> None:
    client = Driver().ready()
    target = client.opened()
    command = client.do(target)
    client.results(2, 30, None, errors=[[0, "session_expired", "gone", None]])
    assert isinstance(command.error, SessionExpired)
    assert client.state_names[-1] == "expired"


def test_events_and_answers_of_an_ended_session_are_passed_over() -> None:
    client = Driver().ready()
    target = client.opened()
    command = client.do(target)
    end(client)
    client.results(2, 30, "late")
    client.event(51, 0, "late")
    assert isinstance(command.error, OutcomeUnknown)
    assert client.events == []
    assert client.disconnects == []


# closing


def test_closing_sends_what_was_issued_and_then_closes_the_session() -> None:
    client = Driver().ready()
    target = client.opened()
    command = client.issue(target, "last")
    client.core.close(client.now)
    client.turn()
    assert [kind for kind, _ in client.sent] == [COMMANDS, FrameType.CLOSE_SESSION]
    client.results(2, 30, "done")
    end(client, "closed")
    assert command.value == "done"
    assert client.core.state is ConnectionState.CLOSED


def test_closing_while_suspended_resumes_to_close() -> None:
    client = Driver().ready()
    client.lose()
    client.core.close(client.now)
    client.sent.clear()
    client.reconnect(sequence=0)
    assert client.frames(FrameType.CLOSE_SESSION) == [(7,)]
    end(client, "closed")
    assert client.core.state is ConnectionState.CLOSED
    assert client.core.deadline() == float("inf")


def test_closing_without_a_session_is_immediate() -> None:
    client = Driver()
    waiting = client.do(client.target())
    query = client.read(client.target(), Consistency.LINEARIZABLE)
    client.core.close(client.now)
    client.turn()
    assert client.core.state is ConnectionState.CLOSED
    assert type(waiting.error) is type(query.error) is ClosedError


def test_abandoning_leaves_no_operation_without_an_end() -> None:
    client = Driver(config(session_window=1)).ready()
    target = client.target()
    sent, unsent = client.issue(target), client.issue(target)
    query = client.read(target, Consistency.LINEARIZABLE)
    client.turn()
    client.core.abandon("the test ends", client.now)
    client.turn()
    assert [type(one.error) for one in (sent, unsent, query)] == [
        OutcomeUnknown,
        ClosedError,
        ClosedError,
    ]
    assert client.disconnects == ["the test ends"]


# events


def test_events_are_routed_to_their_target_in_order() -> None:
    client = Driver().ready()
    one, two = client.opened("one", 5), client.opened("two", 6)
    client.event(30, 0, "a", "b", resource=5)
    client.event(31, 30, "c", resource=6)
    assert [(event.target, event.index, event.payload) for event in client.events] == [
        (one, 30, "a"),
        (one, 30, "b"),
        (two, 31, "c"),
    ]


def test_bug_h1_repeated_events_are_dropped() -> None:
    client = Driver().ready()
    client.opened()
    client.event(30, 0, "a")
    client.event(31, 30, "b")
    client.event(30, 0, "a")
    client.event(31, 30, "b")
    assert [event.payload for event in client.events] == ["a", "b"]
    assert client.disconnects == []


def test_bug_h1_a_missing_event_forces_a_resume_from_the_last_one_received() -> None:
    client = Driver().ready()
    client.opened()
    client.event(30, 0, "a")
    client.event(35, 32, "c")
    assert [event.payload for event in client.events] == ["a"]
    assert "missing" in client.disconnects[0]
    client.reconnect(sequence=1)
    assert client.frames(FrameType.RESUME_SESSION)[-1][2] == 30
    client.event(32, 30, "b")
    client.event(35, 32, "c")
    assert [event.payload for event in client.events] == ["a", "b", "c"]


def test_a_chain_that_reaches_further_back_is_accepted() -> None:
    """After the server has dropped events (a resync), a batch may follow one before our last."""
    client = Driver().ready()
    client.opened()
    client.event(30, 0, "a")
    client.event(36, 20, "resync")
    assert [event.payload for event in client.events] == ["a", "resync"]


def test_bug_h2_events_behind_a_lost_answer_are_held_until_it_has_come_again() -> None:
    client = Driver().ready()
    target = client.target()
    acquire = client.do(target, "acquire")
    client.lose()  # with the answer of index 20, and the event of index 30
    client.reconnect(sequence=1)
    client.event(30, 0, "granted")
    assert client.events == [], "its resource is not even known yet"
    client.results(1, 20, [5, 0, None])
    assert (acquire.value, [event.payload for event in client.events]) == (0, ["granted"])


def test_held_events_are_delivered_between_the_answers_they_lie_between() -> None:
    client = Driver().ready()
    target = client.opened()
    client.do(target)
    client.do(target)
    client.lose()
    client.reconnect(sequence=3)
    client.event(32, 0, "between")
    client.event(42, 32, "behind")
    client.results(2, 30, "first")
    assert client.events == [], "the second answer may have index 31"
    client.results(3, 40, "second")
    assert [event.payload for event in client.events] == ["between", "behind"]


def test_answers_that_are_passed_over_do_not_let_held_events_pass() -> None:
    """Reproduces an event that came before the answer it lies behind.

    1. command 1 is answered; another server, cut off by now, has a copy of it under way
    2. 2 is applied at 30; its answer is lost, and so is the event of 35
    3. the client resumes elsewhere, where the copy of 1 is applied at 40: "answered long ago"
    """
    client = Driver().ready()
    target = client.opened()
    call = client.do(target)
    client.lose()
    client.reconnect(sequence=2)
    client.event(35, 0, "behind")
    client.results(1, 40, "again")
    assert client.events == [], "the answer to 2 has index 30"
    client.results(2, 30, "answer")
    assert (call.value, [event.payload for event in client.events]) == ("answer", ["behind"])


def test_held_events_of_an_ended_session_are_dropped() -> None:
    client = Driver().ready()
    target = client.opened()
    client.do(target)
    client.lose()
    client.reconnect(sequence=1)
    client.event(32, 0, "held")
    end(client)
    client.session(session_id=60)
    client.do(target)
    client.results(1, 70, [5, 0, None])
    assert client.events == []


def test_deleted_marks_the_target_for_its_holders() -> None:
    client = Driver().ready()
    target = client.opened()
    client.receive(FrameType.EVENTS, [[30, 0, [pack([5, "deleted", None])]]])
    assert target.deleted
    assert [event.kind for event in client.events] == ["deleted"]


def test_an_answer_that_says_deleted_marks_the_target() -> None:
    client = Driver().ready()
    target = client.opened()
    command = client.do(target)
    client.results(2, 30, None, errors=[[0, "resource_deleted", "gone", None]])
    assert isinstance(command.error, ResourceDeleted)
    assert target.deleted


# letting resources go


def test_a_released_target_is_closed_before_a_new_one_of_its_name_opens_it() -> None:
    client = Driver().ready()
    target = client.opened()
    client.core.traffic.release(target)
    client.issue(client.target(), "again")
    client.turn()
    assert client.frames(COMMANDS)[0][4] == [
        [0, "close", [[5]]],
        [["n", "counter", 1, {}], "again", []],
    ]


def test_a_target_that_somebody_names_anew_already_is_not_closed() -> None:
    client = Driver().ready()
    target = client.opened()
    newer = client.target()
    client.core.traffic.release(target)
    client.do(newer)
    assert [operation[1] for operation in client.frames(COMMANDS)[0][4]] == ["add"]


def test_a_target_that_was_never_opened_is_not_closed() -> None:
    client = Driver().ready()
    client.core.traffic.release(client.target())
    client.turn()
    assert client.frames(COMMANDS) == []


# reads


def test_reads_of_one_turn_share_a_frame_per_consistency() -> None:
    client = Driver().ready()
    target = client.target()
    first = client.read(target, Consistency.LINEARIZABLE)
    lease = client.read(target, Consistency.LEASE)
    second = client.read(target, Consistency.LINEARIZABLE)
    client.turn()
    frames = client.frames(FrameType.READ)
    assert [(frame[1], len(frame[4])) for frame in frames] == [("linearizable", 2), ("lease", 1)]
    client.receive(FrameType.READ_RESULTS, frames[1][0], 12, ["lease"], None)
    client.receive(FrameType.READ_RESULTS, frames[0][0], 11, ["a", "b"], None)
    assert [(one.value, one.index) for one in (first, second, lease)] == [
        ("a", 11),
        ("b", 11),
        ("lease", 12),
    ]


def test_a_sequential_read_names_the_last_command_and_the_highest_index_seen() -> None:
    client = Driver().ready()
    target = client.opened()
    client.event(33, 0, "e")
    client.issue(target)
    client.read(target, Consistency.SEQUENTIAL)
    client.turn()
    kinds = [kind for kind, _ in client.sent]
    assert kinds == [COMMANDS, FrameType.READ]
    assert client.frames(FrameType.READ)[0][2:4] == (33, 2)


def test_a_sequential_read_waits_until_commands_issued_before_it_are_sent() -> None:
    client = Driver(config(session_window=1)).ready()
    target = client.opened()
    client.issue(target, "a")
    client.issue(target, "b")
    client.read(target, Consistency.SEQUENTIAL)
    client.issue(target, "c")
    client.turn()
    assert client.frames(FrameType.READ) == []
    client.results(2, 30, "A")
    assert client.frames(FrameType.READ)[0][3] == 3


def test_withdrawn_commands_do_not_keep_a_sequential_read_waiting() -> None:
    client = Driver(config(session_window=1)).ready()
    target = client.opened()
    client.issue(target, "a")
    given_up = client.issue(target, "b")
    client.read(target, Consistency.SEQUENTIAL)
    client.core.pipeline.withdraw(given_up)
    client.turn()
    assert len(client.frames(FrameType.READ)) == 1


def test_bug_c10_at_least_is_never_below_what_was_seen() -> None:
    client = Driver().ready()
    client.lose()
    client.reconnect(sequence=0)
    client.receive(FrameType.KEPT, 1, 77)
    client.read(client.target(), Consistency.SEQUENTIAL, at_least=50)
    client.read(client.target(), Consistency.SEQUENTIAL, at_least=90)
    client.turn()
    assert sorted(frame[2] for frame in client.frames(FrameType.READ)) == [77, 90]


def test_reads_are_repeated_on_the_next_connection_and_late_answers_ignored() -> None:
    client = Driver().ready()
    query = client.read(client.target(), Consistency.LINEARIZABLE)
    client.turn()
    old_id = client.frames(FrameType.READ)[0][0]
    client.lose()
    client.reconnect(sequence=0)
    client.receive(FrameType.READ_RESULTS, old_id, 11, ["stale"], None)
    assert not query.answered
    new_id = client.frames(FrameType.READ)[-1][0]
    client.receive(FrameType.READ_RESULTS, new_id, 12, ["fresh"], None)
    assert (query.value, len(client.answers)) == ("fresh", 1)


def test_reads_outlive_the_session() -> None:
    client = Driver().ready()
    query = client.read(client.target(), Consistency.LINEARIZABLE)
    client.turn()
    end(client)
    client.session(session_id=60)
    new_id = client.frames(FrameType.READ)[-1][0]
    client.receive(FrameType.READ_RESULTS, new_id, 80, ["fresh"], None)
    assert query.value == "fresh"


def test_a_read_that_outlives_the_session_is_asked_by_name() -> None:
    """Reproduces a read that was answered with ResourceDeleted (simulator, disks that run low): its
    resource was empty, so it was collected with the last session that had it open.
    """
    client = Driver().ready()
    query = client.read(client.opened(), Consistency.LINEARIZABLE)
    client.turn()
    old_id = client.frames(FrameType.READ)[0][0]
    end(client)
    gone = [0, "resource_deleted", "there is no resource 5", None]
    client.receive(FrameType.READ_RESULTS, old_id, 70, [None], [gone])
    assert not query.answered
    client.session(session_id=60)
    new_id, *_, operations = client.frames(FrameType.READ)[-1]
    assert operations == [[["n", "counter", 1, {}], "get", []]]
    client.receive(FrameType.READ_RESULTS, new_id, 80, [0], None)
    assert query.value == 0


def test_no_more_reads_wait_at_the_server_than_it_allows() -> None:
    client = Driver(config(pending_reads_per_client=1)).ready()
    first = client.read(client.target(), Consistency.LINEARIZABLE)
    client.turn()
    client.read(client.target(), Consistency.LINEARIZABLE)
    client.turn()
    assert len(client.frames(FrameType.READ)) == 1
    client.receive(FrameType.READ_RESULTS, 1, 11, ["a"], None)
    assert first.value == "a"
    assert len(client.frames(FrameType.READ)) == 2


def test_an_answer_with_another_number_of_values_ends_the_connection() -> None:
    client = Driver().ready()
    query = client.read(client.target(), Consistency.LINEARIZABLE)
    client.turn()
    client.receive(FrameType.READ_RESULTS, 1, 11, ["a", "b"], None)
    assert len(client.disconnects) == 1
    assert not query.answered
