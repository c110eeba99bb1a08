"""The rules of sessions, one test each, and the bugs that systems like this have had with them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.applied import Ended, Kept
from folkmoot.core.config import LimitsConfig
from folkmoot.core.sessions import (
    CLIENT_NAME_MAX,
    Session,
    SessionTable,
    encode_keep_alive,
    encode_open,
)
from tests.core.scratch import SMALL, Client, Log, codes, named, session_of

SUM = named("sum")


# -- opening, signs of life, the end --------------------------------------------------------------


def test_a_sessions_id_is_the_index_of_its_entry() -> None:
    log = Log()
    log.tick()
    (opened,) = log.batch(encode_open(b"s", 700, "me")).opened
    assert (opened.session_id, opened.timeout_ms, opened.secret_hash) == (2, 700, b"s")


def test_repeating_a_secret_opens_no_second_session_and_is_a_sign_of_life() -> None:
    log = Log()
    client = log.client(timeout_ms=1000)
    secret = session_of(client).secret_hash
    log.time = 900
    (opened,) = log.batch(encode_open(secret, 5, "another name")).opened
    assert (opened.session_id, opened.timeout_ms) == (client.id, 1000)
    assert len(log.mux.sessions) == 1
    assert log.mux.next_expiry() == 1900


def test_a_secret_is_free_again_when_its_session_has_ended() -> None:
    log = Log()
    client = log.client()
    secret = session_of(client).secret_hash
    client.close()
    (opened,) = log.batch(encode_open(secret, 1000, "")).opened
    assert opened.session_id == 3


def test_no_more_sessions_than_the_limit() -> None:
    log = Log(LimitsConfig(sessions_max=2))
    first = log.client()
    log.client()
    (opened,) = log.batch(encode_open(b"third", 1000, "")).opened
    assert (opened.session_id, opened.refused and opened.refused[0]) == (0, "limit_exceeded")
    first.close()
    assert log.batch(encode_open(b"third", 1000, "")).opened[0].refused is None


def test_a_clients_name_is_bounded() -> None:
    client = Log().client("x" * 1000)
    assert session_of(client).client_name == "x" * CLIENT_NAME_MAX


def test_one_entry_carries_many_keep_alives() -> None:
    log = Log()
    a, b = log.client(), log.client()
    log.time = 800
    applied = log.batch(encode_keep_alive([[b.id, 0, 0, 7], [99, 0, 0, 8], [a.id, 0, 0, 9]]))
    assert applied.kept == [Kept(b.id, 7, 3), Kept(a.id, 9, 3)]
    assert applied.ended == [Ended(99, "unknown", 3)]
    assert log.mux.next_expiry() == 1800


def test_even_a_refused_command_is_a_sign_of_life() -> None:
    log = Log()
    client = log.client(timeout_ms=1000)
    log.time = 900
    assert codes(client.send([SUM, "add", [1]], first=5)) == ["sequence_gap"]
    assert log.mux.next_expiry() == 1900


def test_closing_tells_the_client_and_closing_again_says_unknown() -> None:
    client = Log().client()
    assert client.close().ended == [Ended(client.id, "closed", 2)]
    assert client.close().ended == [Ended(client.id, "unknown", 3)]


def test_a_command_of_an_unknown_session_is_refused_for_every_entry() -> None:
    log = Log()
    results = Client(log, 77).send([SUM, "add", [1]], [SUM, "add", [1]])
    assert codes(results) == ["session_expired", "session_expired"]
    assert (results[0].session_id, results[0].first_sequence, results[0].index) == (77, 1, 2)
    assert log.query(0, "count") == 0


# -- exactly once ---------------------------------------------------------------------------------


def test_bug_g1_a_retry_after_a_lost_reply_is_not_applied_again() -> None:
    client = Log().client()
    for sequence in range(1, 6):
        first = client.send([SUM, "add", [1]], first=sequence)
        again = client.send([SUM, "add", [1]], first=sequence)
        assert again == first
    assert client.log.query(SUM, "get") == 5


def test_bug_g2_a_result_that_is_gone_is_said_to_be_gone() -> None:
    client = Log().client()
    client.do(SUM, "add", 1)
    client.low_water = 1
    client.keep_alive()
    (results,) = client.send([SUM, "add", [1]], first=1)
    assert results.values == [None]
    assert codes([results]) == ["result_expired"]
    assert client.log.query(SUM, "get") == 1


def test_bug_g3_looking_at_the_state_evicts_nothing() -> None:
    client = Log().client(timeout_ms=10)
    client.do(SUM, "add", 1)
    client.do(SUM, "later", "x", 5)
    mux, digest = client.log.mux, client.log.mux.digest()
    for time in range(0, 100, 7):
        mux.due_sessions(time)
        mux.next_expiry()
        mux.next_deadline()
        mux.query(client.id, [SUM, "get", []])
        session_of(client).cached(1)
        session_of(client).events_after(0)
    assert mux.digest() == digest


def test_bug_g4_only_an_entry_ends_a_session_and_by_log_time() -> None:
    log = Log()
    client = log.client(timeout_ms=1000)
    assert log.expire(client.id).ended == []
    log.tick(30_000)
    assert log.mux.due_sessions(log.time) == [client.id]
    assert log.mux.sessions.get(client.id) is not None
    assert log.expire(client.id).ended == [Ended(client.id, "expired", 4)]


def test_bug_g5_a_keep_alive_before_the_expiry_wins_and_after_it_loses() -> None:
    log = Log()
    client = log.client(timeout_ms=1000)
    log.time = 1000
    assert client.keep_alive().kept == [Kept(client.id, 1, 2)]
    assert log.expire(client.id).ended == []
    log.time = 2000
    assert log.expire(client.id).ended == [Ended(client.id, "expired", 4)]
    applied = client.keep_alive()
    assert (applied.kept, applied.ended) == ([], [Ended(client.id, "unknown", 5)])


def test_bug_g6_a_new_leader_gives_all_sessions_their_full_time() -> None:
    log = Log()
    clients = [log.client(timeout_ms=1000 + number) for number in range(200)]
    log.time = 60_000
    log.initialize()
    assert log.mux.due_sessions(60_999) == []
    assert log.mux.next_expiry() == 61_000
    assert log.mux.due_sessions(61_002) == [client.id for client in clients[:3]]
    for client in clients:
        assert log.expire(client.id).ended == []


def test_bug_g7_a_late_command_does_not_expire_its_own_session() -> None:
    log = Log()
    client = log.client(timeout_ms=1000)
    log.time = 99_000
    assert client.do(SUM, "add", 1) == [2, 1, None]
    assert log.expire(client.id).ended == []


@pytest.mark.parametrize("seed", range(20))
def test_bug_g8_reordered_commands_are_applied_in_order(seed: int) -> None:
    generator = random.Random(seed)
    client = Log().client()
    waiting = list(range(1, 9))
    while waiting:
        sequence = generator.choice(waiting)
        (results,) = client.send([SUM, "push", [sequence]], first=sequence)
        if codes([results]) == [None]:
            waiting.remove(sequence)
        else:
            assert results.errors is not None
            assert results.errors[0][1:4:2] == ["sequence_gap", waiting[0]]
    assert client.log.query(SUM, "state")[1] == list(range(1, 9))


def test_bug_g9_another_server_knows_what_comes_next_and_what_was_answered() -> None:
    client = Log().client()
    before = client.send([SUM, "add", [1]], [SUM, "add", [2]])
    client.log.restart()
    assert session_of(client).sequence == 2
    assert session_of(client).cached(1) == before
    assert codes(client.send([SUM, "add", [4]], first=4)) == ["sequence_gap"]
    assert client.send([SUM, "add", [1]], [SUM, "add", [2]], first=1) == before
    assert client.send([SUM, "add", [3]], first=3)[0].values == [[2, 6, None]]


def test_bug_g10_commands_of_an_ended_session_replay_as_they_ran() -> None:
    log = Log()
    a, b = log.client(), log.client()
    for client in (a, b):
        client.do(SUM, "add", 1)
    log.time = 5000
    log.expire(a.id)
    assert codes(a.send([SUM, "add", [1]], [SUM, "add", [1]])) == ["session_expired"] * 2
    b.do(SUM, "add", 1)
    assert log.replay().digest() == log.mux.digest()
    assert log.query(SUM, "get") == 3


def test_bug_g13_answers_that_nobody_acknowledges_are_bounded() -> None:
    client = Log().client()
    for _ in range(1000):
        client.send([SUM, "add", [1]], first=session_of(client).sequence + 1)
    session = session_of(client)
    assert session.sequence == SMALL.session_window == sum(len(r.values) for r in session.results)
    assert codes(client.send([SUM, "add", [1]], first=session.sequence + 1)) == ["overloaded"]
    client.low_water = 3
    answers = client.send(*[[SUM, "add", [1]]] * 4, first=session.sequence + 1)
    assert codes(answers) == [None, None, None, "overloaded"]


def test_large_answers_are_bounded_in_bytes() -> None:
    client = Log(LimitsConfig(session_result_bytes_max=4096)).client()
    big = [SUM, "echo", [b"x" * 100, 15]]
    assert codes(client.send(big, big, big, big)) == [None, None, None, "overloaded"]
    assert codes(client.send(big, first=4)) == ["overloaded"]
    session = session_of(client)
    assert 4096 < session.result_bytes < 4096 + 2 * 1500
    client.log.restart()
    assert session_of(client).result_bytes == session.result_bytes
    client.low_water = 3
    assert codes(client.send(big, first=4)) == [None]
    assert session_of(client).result_bytes < 4096


def test_an_error_takes_room_as_well() -> None:
    client = Log(LimitsConfig(session_result_bytes_max=4096, session_window=1000)).client()
    client.do(SUM, "add", 1)
    refused = codes(client.send(*[[SUM, "no such command" * 4, []]] * 200))
    assert refused.index("overloaded") < 60
    assert refused[refused.index("overloaded") :] == ["overloaded"] * (
        200 - refused.index("overloaded")
    )


def test_a_group_may_repeat_gone_and_kept_and_bring_new() -> None:
    client = Log().client()
    for number in range(1, 5):
        client.do(SUM, "add", number)
    client.low_water = 2
    results = client.send(*[[SUM, "add", [1]]] * 6, first=1)
    assert [(r.first_sequence, r.index, len(r.values)) for r in results] == [
        (1, 7, 2),  # gone: answered at these very entries
        (3, 4, 1),
        (4, 5, 1),
        (5, 11, 2),
    ]
    assert codes(results) == ["result_expired"] * 2 + [None] * 4
    assert client.log.query(SUM, "get") == 12


@pytest.mark.parametrize(("first", "last"), [(f, la) for f in range(1, 8) for la in range(f, 8)])
def test_cached_answers_are_cut_out_at_any_place(first: int, last: int) -> None:
    client = Log().client()
    client.do(SUM, "add", 1)
    client.send([SUM, "add", [1]], [SUM, "add", [0]], [SUM, "add", [1]])
    client.send([SUM, "add", [0]], [SUM, "add", [1]], [SUM, "add", [1]])
    parts = session_of(client).cached(first, last)
    found = []
    for part in parts:
        index = part.index - len(part.values) + 1
        for offset, code in enumerate(codes([part])):
            found.append((part.first_sequence + offset, index + offset, code))
    bad = {3, 5}
    assert found == [
        (sequence, sequence + 1, "condition_failed" if sequence in bad else None)
        for sequence in range(first, last + 1)
    ]


def test_a_machine_that_goes_on_changing_what_it_returned_changes_no_answer() -> None:
    client = Log().client()
    resource = client.open("sum")
    (first,) = client.send([resource, "push", [[1]]], [resource, "push", [{"k": [2]}]])
    assert first.values == [[[1]], [[1], {"k": [2]}]]
    client.do(resource, "push", 3)
    assert session_of(client).cached(2, 3)[0].values == [[[1]], [[1], {"k": [2]}]]
    client.low_water = 4
    flat = client.open("flat")
    (answers,) = client.send([flat, "push", [1]], [flat, "refuse", []], [flat, "push", [2]])
    assert answers.values == [[1], None, [1, 2]]
    assert answers.errors == [[1, "condition_failed", "not with these", [1]]]


def test_a_mark_above_the_truth_counts_as_the_truth() -> None:
    client = Log().client()
    client.do(SUM, "add", 1)
    client.low_water = client.event_index = 1 << 63
    client.keep_alive()
    session = session_of(client)
    assert (session.low_water, session.events.acked) == (1, 0)
    client.do(SUM, "watch")
    client.do(SUM, "add", 1)
    assert len(client.events()) == 1, "the event of the very entry that claims to have it"


def test_a_mark_never_falls() -> None:
    client = Log().client()
    client.do(SUM, "add", 1)
    client.low_water = 1
    client.keep_alive()
    client.low_water = 0
    client.keep_alive()
    assert session_of(client).low_water == 1
    assert codes(client.send([SUM, "add", [1]], first=1)) == ["result_expired"]


# -- expiry against a plain twin ------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "seen", "end", "floor", "pass", "look"]),
            st.integers(0, 9),
            st.integers(1, 30),
        ),
        max_size=60,
    )
)
def test_expiry_agrees_with_a_scan_of_all_sessions(steps: list[tuple[str, int, int]]) -> None:
    table, time = SessionTable(), 0
    for index, (what, which, number) in enumerate(steps, 1):
        sessions = list(table)
        session = sessions[which % len(sessions)] if sessions else None
        if what == "open":
            table.add(Session(index, b"%d" % index, number, "", time, time))
        elif what == "floor":
            table.floor = time
        elif what == "pass":
            time += number
        elif what == "look":
            due = sorted((table.expiry(s), s.id) for s in table if table.expiry(s) <= time + which)
            assert table.due(time + which) == [session_id for _, session_id in due]
            assert table.next_expiry() == min((table.expiry(s) for s in table), default=None)
        elif session is not None and what == "seen":
            session.last_seen = time
        elif session is not None:
            table.remove(session)
        assert len(table._heap) <= 2 * len(table) + 64


def test_the_heap_of_expiries_does_not_grow_with_sessions_that_are_gone() -> None:
    table = SessionTable()
    for index in range(1, 5000):
        session = Session(index, b"%d" % index, 1_000_000, "", 0, 0)
        table.add(session)
        table.remove(session)
    assert len(table._heap) <= 65
