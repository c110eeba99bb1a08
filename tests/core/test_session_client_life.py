"""The client's session bookkeeping, rule by rule: signs of life, the local deadline, connections.

Times: the session timeout is 3 s, so a sign of life is due every second, the connection is given up
after a second of silence, and with the drift margin of 0.1 the local deadline is 2.7 s after a
sign.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.config import ClientConfig, LimitsConfig
from folkmoot.core.connector import Connector
from folkmoot.core.errors import ConnectionLost, OutcomeUnknown, SessionExpired
from folkmoot.core.queries import AdminRequest
from folkmoot.core.requests import FrameType
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.transport.codec import pack
from tests.core.client_driver import CLUSTER, Driver

KEEP_ALIVE = FrameType.KEEP_ALIVE


def numbers(client: Driver) -> list[int]:
    return [frame[3] for frame in client.frames(KEEP_ALIVE)]


# signs of life


def test_a_keep_alive_is_sent_every_third_of_the_timeout() -> None:
    client = Driver().ready()
    client.wait(0.99)
    assert numbers(client) == []
    for number in (1, 2, 3):
        client.wait(1.0)
        assert numbers(client)[-1] == number
        client.receive(FrameType.KEPT, number, 20 + number)
    assert client.state_names == ["connected"]


def test_a_keep_alive_acknowledges_answers_and_events() -> None:
    client = Driver().ready()
    client.opened()
    client.event(33, 0, "e")
    client.wait(1.0)
    assert client.frames(KEEP_ALIVE) == [(7, 1, 33, 1)]


def test_commands_are_signs_of_life() -> None:
    client = Driver().ready()
    target = client.target()
    for sequence in range(1, 9):
        client.wait(0.9)
        client.do(target)
        client.results(sequence, 20 + sequence, [5, 1, None] if sequence == 1 else 1)
    assert numbers(client) == []
    assert client.state_names == ["connected"]
    assert client.core.local_deadline == pytest.approx(client.now + 2.7)


def test_many_events_are_acknowledged_before_a_sign_of_life_is_due() -> None:
    client = Driver(ClientConfig(limits=LimitsConfig(session_events_max=16))).ready()
    client.opened()
    client.event(30, 0, "a", "b")
    assert numbers(client) == []
    client.event(31, 30, "c")
    assert client.frames(KEEP_ALIVE) == [(7, 1, 31, 1)]


def test_many_bytes_of_events_are_acknowledged_early_too() -> None:
    client = Driver(ClientConfig(limits=LimitsConfig(session_event_bytes_max=4096))).ready()
    client.opened()
    client.event(30, 0, bytes(600))
    assert len(numbers(client)) == 1


# the local deadline


def test_the_local_deadline_counts_from_sending_not_from_the_acknowledgement() -> None:
    client = Driver().ready()
    opened_at = client.now
    assert client.core.local_deadline == pytest.approx(opened_at + 2.7)
    client.wait(1.0)
    sent_at = client.now
    client.wait(0.5)
    assert client.core.local_deadline == pytest.approx(opened_at + 2.7), "not acknowledged"
    client.receive(FrameType.KEPT, 1, 20)
    assert client.core.local_deadline == pytest.approx(sent_at + 2.7)


def test_an_answer_to_a_repeated_command_counts_from_its_first_sending() -> None:
    client = Driver().ready()
    target = client.opened()
    client.wait(0.5)
    client.do(target)
    sent_at = client.now
    client.lose()
    client.wait(0.5)
    client.reconnect(sequence=2)
    client.results(2, 30, "from the cache, without the log")
    assert client.core.local_deadline == pytest.approx(sent_at + 2.7)


def test_only_frames_that_were_answered_count_as_signs_of_life() -> None:
    client = Driver().ready()
    target = client.opened()
    client.wait(0.3)
    client.do(target)
    first_at = client.now
    client.wait(0.3)
    client.do(target)
    client.results(2, 30, "the first")
    assert client.core.local_deadline == pytest.approx(first_at + 2.7)


def test_an_acknowledgement_of_a_lost_connection_does_not_count() -> None:
    client = Driver().ready()
    client.wait(1.0)
    client.lose()
    client.reconnect(sequence=0)
    before = client.core.local_deadline
    client.receive(FrameType.KEPT, 1, 20)
    assert client.core.local_deadline == before


def test_bug_i3_the_local_deadline_ends_the_session_without_any_network() -> None:
    client = Driver().ready()
    target = client.opened()
    opened_at = client.now
    sent = client.do(target)
    client.lose()
    unsent = client.do(target)
    client.core.connected(client.now)  # somebody accepts, and never says a word
    while client.core.state is not ConnectionState.EXPIRED:
        client.wait(0.01)
        assert client.now < opened_at + 3.0, "the cluster may grant to another by now"
    assert client.now == pytest.approx(opened_at + 2.7, abs=0.02)
    assert (type(sent.error), type(unsent.error)) == (OutcomeUnknown, SessionExpired)
    assert client.core.local_deadline == float("inf")


def expired_while_suspended() -> Driver:
    client = Driver().ready()
    client.lose()
    client.wait(2.7)
    assert client.core.state is ConnectionState.EXPIRED
    client.sent.clear()
    client.wait_for_attempt()
    client.accept()
    return client


def test_a_doomed_session_that_still_lives_is_closed_before_a_new_one_is_opened() -> None:
    client = expired_while_suspended()
    assert [kind for kind, _ in client.sent] == [FrameType.HELLO, FrameType.RESUME_SESSION]
    client.session()
    assert client.frames(FrameType.CLOSE_SESSION) == [(7,)]
    assert client.core.state is ConnectionState.EXPIRED
    command = client.do(client.target())
    client.receive(FrameType.SESSION_ENDED, 7, "closed", 40)
    assert client.sent[-1][0] is FrameType.OPEN_SESSION
    assert client.frames(FrameType.COMMANDS) == []
    client.session(session_id=41)
    assert command.session_id == 41
    assert client.state_names == ["connected", "suspended", "expired", "connected"]


def test_a_doomed_session_that_is_gone_is_followed_by_a_new_one() -> None:
    client = expired_while_suspended()
    client.receive(FrameType.SESSION_ENDED, 7, "unknown", 40)
    assert client.sent[-1][0] is FrameType.OPEN_SESSION
    assert client.state_names.count("expired") == 1


def test_the_deadline_on_a_connection_that_works_closes_the_session_there() -> None:
    client = Driver().ready()
    while client.core.state is not ConnectionState.EXPIRED:
        client.wait(0.5)
        client.receive(FrameType.LEADER, 0, "")  # alive, but nothing is acknowledged
    assert client.frames(FrameType.CLOSE_SESSION) == [(7,)]
    assert client.disconnects == []


def test_a_session_that_was_asked_for_long_ago_is_not_trusted_before_a_sign_of_life() -> None:
    """It may be as old as the first asking: commands may go out, but nobody is told CONNECTED."""
    client = Driver(ClientConfig(connect_timeout_s=60))
    client.accept()
    client.wait(10.0)
    client.session()
    assert client.states == []
    assert client.core.local_deadline == float("inf")
    client.receive(FrameType.KEPT, 1, 20)
    assert client.state_names == ["connected"]
    assert client.core.local_deadline == pytest.approx(client.now + 2.7)


def test_a_turn_at_every_deadline_is_enough_and_none_is_idle() -> None:
    """A client that is left alone asks for few turns, and each of them does something."""
    client = Driver().ready()
    for second in range(1, 31):
        turns = 0
        end = client.now + 1.0
        while client.core.deadline() <= end:
            client.now = client.core.deadline()
            client.turn()
            turns += 1
        client.now = end
        assert turns <= 1
        client.receive(FrameType.KEPT, second, 20)


# states


def test_a_lost_connection_is_suspended_until_the_session_is_resumed() -> None:
    client = Driver().ready()
    client.lose("reset by peer")
    assert (client.state_names, client.states[-1].cause) == (
        ["connected", "suspended"],
        "reset by peer",
    )
    client.reconnect(sequence=0)
    assert client.state_names == ["connected", "suspended", "connected"]
    assert [change.session_id for change in client.states] == [7, 7, 7]


def test_unacknowledged_signs_of_life_suspend_although_the_connection_works() -> None:
    client = Driver().ready()
    for _ in range(5):
        client.wait(0.41)
        client.receive(FrameType.LEADER, 0, "")
    assert client.state_names == ["connected", "suspended"]
    client.receive(FrameType.KEPT, 2, 20)
    assert client.state_names == ["connected", "suspended", "connected"]


def test_a_connection_that_answers_nothing_is_given_up_in_time_to_go_elsewhere() -> None:
    client = Driver(addresses=("a:1", "b:1")).ready()
    first = client.core.connector.address
    client.wait(2.01)
    assert client.disconnects == ["no answer within 1 s"]
    assert client.core.connector.address not in ("", first)
    assert client.core.local_deadline > client.now


def test_a_server_that_never_says_welcome_is_given_up() -> None:
    client = Driver(ClientConfig(connect_timeout_s=0.5), ("a:1", "b:1"))
    client.core.connected(client.now)
    client.wait(0.51)
    assert client.disconnects == ["no answer within 0.5 s"]
    assert len(client.connecting) == 2


def test_a_server_that_talks_but_gives_no_session_is_given_up() -> None:
    client = Driver(ClientConfig(connect_timeout_s=0.5), ("a:1", "b:1"))
    client.accept(leader=0)
    client.wait(0.3)
    client.receive(FrameType.LEADER, 0, "")
    client.wait(0.51)
    assert client.disconnects == ["no answer within 0.5 s"]


# who is at the other end


def test_another_cluster_is_refused_with_both_ids_named() -> None:
    client = Driver(addresses=("a:1", "b:1")).ready()
    client.lose()
    client.wait_for_attempt()
    client.accept(cluster=b"somebody-else's!")
    assert client.frames(FrameType.RESUME_SESSION) == []
    assert CLUSTER.hex() in client.disconnects[-1]
    assert b"somebody-else's!".hex() in client.disconnects[-1]
    assert client.disconnects[-1] in client.core.connector.describe()


def test_the_cluster_that_was_seen_first_is_named_in_the_next_hello() -> None:
    client = Driver().ready()
    client.lose()
    client.reconnect(sequence=0)
    assert client.frames(FrameType.HELLO)[-1][2] == CLUSTER


def test_another_protocol_version_is_refused_with_both_named() -> None:
    client = Driver()
    client.core.connected(client.now)
    client.receive(FrameType.WELCOME, 9, CLUSTER, 1, 1, "a:1")
    assert client.disconnects == ["a:1 speaks protocol version 9, this client 1"]


def test_a_refusal_is_remembered_as_the_cause() -> None:
    client = Driver()
    client.core.connected(client.now)
    client.receive(FrameType.REFUSED, "protocol", "the client speaks version 1, this server 9")
    assert "the client speaks version 1, this server 9" in client.core.connector.describe()


# where to connect


def test_every_address_is_tried_before_any_is_tried_again() -> None:
    client = Driver(addresses=("a:1", "b:1", "c:1"))
    for _ in range(5):
        client.wait_for_attempt()
        client.lose("connection refused")
    assert sorted(client.connecting[:3]) == sorted(client.connecting[3:6]) == ["a:1", "b:1", "c:1"]


def test_bug_k3_rounds_are_spread_by_a_bound_that_doubles() -> None:
    def delays(seed: int) -> list[float]:
        connector = Connector(["a:1"], ClientConfig(), random.Random(seed))
        now, found = 0.0, []
        for _ in range(12):
            assert connector.attempt(now) == "a:1"
            connector.failed("refused", now)
            found.append(connector.deadline() - now)
            now = connector.deadline()
        return found

    runs = [delays(seed) for seed in range(50)]
    assert all(run[0] == 0 for run in runs), "the first repetition is immediate"
    for at, bound in enumerate([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0]):
        column = [run[at + 1] for run in runs]
        assert max(column) <= bound
        assert max(column) - min(column) > bound / 2, "jitter"


def test_after_a_good_connection_the_next_server_is_tried_at_once_and_the_lost_one_last() -> None:
    client = Driver(addresses=("a:1", "b:1", "c:1")).ready()
    lost = client.core.connector.address
    client.wait(1.5)
    client.receive(FrameType.KEPT, 1, 20)
    client.lose()
    assert len(client.connecting) == 2, "no delay"
    client.lose("refused")
    client.lose("refused")
    assert client.connecting[-1] == lost
    assert client.now == 101.5


def test_the_client_moves_to_the_leader_that_welcome_names() -> None:
    client = Driver(addresses=("a:1", "b:1"))
    client.accept(node=1, leader=2, leader_address="lead:1")
    assert client.connecting[-1] == "lead:1"
    assert client.frames(FrameType.OPEN_SESSION) == []
    client.accept(node=2, leader=2, leader_address="lead:1")
    assert len(client.frames(FrameType.OPEN_SESSION)) == 1


def test_the_client_moves_when_the_leader_changes_and_resumes_there() -> None:
    client = Driver().ready()
    command = client.do(client.target())
    client.receive(FrameType.LEADER, 2, "lead:1")
    assert (client.connecting[-1], client.state_names[-1]) == ("lead:1", "suspended")
    client.accept(node=2, leader=2, leader_address="lead:1")
    client.session()
    client.results(1, 20, [5, "once", None])
    assert command.value == "once"


def test_without_prefer_leader_the_client_stays() -> None:
    client = Driver(ClientConfig(prefer_leader=False)).ready(leader=2, leader_address="lead:1")
    client.receive(FrameType.LEADER, 3, "other:1")
    assert client.connecting == ["a:1"]


def test_a_leader_that_cannot_be_reached_is_not_tried_again_at_once() -> None:
    client = Driver()
    client.accept(node=1, leader=2, leader_address="lead:1")
    client.lose("refused")
    client.wait_for_attempt()
    client.accept(node=1, leader=2, leader_address="lead:1")
    assert client.connecting == ["a:1", "lead:1", "a:1"]
    client.session()
    assert client.core.bound, "it works with the one that answers, which forwards"
    client.wait(0.9)
    assert client.connecting[-1] == "a:1"
    client.receive(FrameType.KEPT, 1, 20)
    client.wait(0.2)
    assert client.connecting[-1] == "lead:1", "and tries the leader again later"


def test_the_leader_that_was_just_lost_is_not_believed_in() -> None:
    client = Driver(addresses=("a:1", "b:1")).ready(node=1, leader=1, leader_address="a:1")
    client.lose("reset")
    client.wait_for_attempt()
    client.accept(node=2, leader=1, leader_address="a:1")  # it has not noticed yet
    client.session()
    assert client.core.bound


def test_bug_k5_servers_that_point_at_one_another_do_not_keep_the_client_busy() -> None:
    client = Driver(addresses=("a:1",))
    start = client.now
    for _ in range(20):
        if client.core.connector.address == "a:1":
            client.accept(node=1, leader=2, leader_address="b:1")
        else:
            client.accept(node=2, leader=1, leader_address="a:1")
        if client.core.connector.node_id:
            break
    assert client.now == start
    assert len(client.connecting) <= 5
    client.session()
    assert client.core.bound, "after a few hops it stays where it is"


# admin requests


def test_admin_requests_need_a_connection_but_no_session() -> None:
    client = Driver()
    request = AdminRequest("status", ("all",))
    client.core.ask(request)
    client.accept(leader=0)
    assert client.frames(FrameType.ADMIN) == [(1, "status", ["all"])]
    client.receive(FrameType.ADMIN_RESULT, 1, None, {"node_id": 1})
    assert (request.value, client.admin) == ({"node_id": 1}, [request])


def test_an_admin_error_is_raised_as_its_class() -> None:
    client = Driver().ready()
    request = AdminRequest("transfer", ())
    client.core.ask(request)
    client.turn()
    client.receive(FrameType.ADMIN_RESULT, 1, "connection_lost", "node 3 is away")
    assert isinstance(request.error, ConnectionLost)


def test_an_admin_request_that_was_sent_is_never_sent_twice() -> None:
    client = Driver().ready()
    request = AdminRequest("transfer", ())
    client.core.ask(request)
    client.turn()
    client.lose()
    assert isinstance(request.error, OutcomeUnknown)
    client.reconnect(sequence=0)
    assert len(client.frames(FrameType.ADMIN)) == 1


# whatever comes


@given(
    st.lists(
        st.tuples(
            st.integers(0, 21),
            st.one_of(
                st.binary(max_size=40),
                st.lists(
                    st.one_of(
                        st.integers(-1, 70),
                        st.just(7),
                        st.none(),
                        st.text(max_size=3),
                        st.binary(max_size=3),
                        st.lists(st.integers(0, 9), max_size=4),
                        st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=2),
                    ),
                    max_size=6,
                ).map(pack),
            ),
        ),
        max_size=5,
    )
)
def test_no_bytes_of_a_server_raise_out_of_the_bookkeeping(frames: list[tuple[int, bytes]]) -> None:
    client = Driver().ready()
    target = client.opened()
    client.issue(target)
    query = client.read(target, Consistency.LINEARIZABLE)
    client.core.ask(AdminRequest("status", ()))
    client.turn()
    client.core.received([(kind, 0, body) for kind, body in frames], client.now)
    client.turn()
    client.core.abandon("over", client.now)
    client.turn()
    ended: list[Any] = [one for one in client.answers if one is query]
    assert len(ended) == 1, "and every operation ends exactly once"
