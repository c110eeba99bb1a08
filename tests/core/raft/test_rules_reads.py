"""Reads (§6.4), leases (§6.4.1) and leadership transfer (§3.10), sentence by sentence."""

from __future__ import annotations

import json

import pytest

from folkmoot.core.config import RaftConfig
from folkmoot.core.errors import NotLeader, Overloaded, Unavailable, UsageError
from folkmoot.core.raft import (
    Append,
    AppendReply,
    Configuration,
    ReadIndexReply,
    ReadIndexRequest,
    Role,
    TimeoutNow,
    VoteRequest,
)
from folkmoot.core.raft.trace import TransferChanged
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches, to

T = 0.5
LEASE = T * 0.9 / 1.1


def in_office(**options: object) -> Single:
    server = Single(**options)  # type: ignore[arg-type]
    server.lead_in_office()
    return server


def read(server: Single, *tokens: int) -> list[tuple[int, object]]:
    for token in tokens:
        server.raft.read_index(token, server.now)
    return list(server.turn())


def questions(sent: list[tuple[int, object]]) -> list[int]:
    return [m.question for _, m in sent if isinstance(m, ReadIndexRequest)]


# -- §6.4 on the leader ------------------------------------------------------------------------


def test_6_4_a_read_waits_for_a_round_of_heartbeats_to_a_majority() -> None:
    server = in_office(configuration=voters(1, 2, 3, 4, 5))
    sent = read(server, 7)
    assert {peer for peer, _ in sent} == {2, 3, 4, 5}
    server.acknowledge(2)
    assert server.reads == {}
    server.acknowledge(3)
    assert server.reads == {7: server.raft.commit_index}


def test_6_4_the_read_index_is_the_commit_index_of_the_moment_when_the_round_starts() -> None:
    server = in_office()
    read(server, 1)
    server.propose("a")
    server.turn()
    server.acknowledge(2)
    assert server.reads == {1: 1}
    assert server.raft.commit_index == 2


def test_6_4_the_round_starts_after_the_read_arrived() -> None:
    server = in_office()
    server.wait(0.1)
    before = server.newest_round
    read(server, 1)
    server.acknowledge(2, round_number=before)
    assert server.reads == {}
    server.acknowledge(2)
    assert server.reads == {1: 1}


def test_6_4_the_round_starts_after_the_read_arrived_even_beside_another() -> None:
    server = in_office()
    read(server, 1)
    before = server.newest_round
    read(server, 2)
    server.acknowledge(2, round_number=before)
    assert server.reads == {1: 1}
    server.acknowledge(2)
    assert server.reads == {1: 1, 2: 1}


def test_6_4_reads_that_wait_share_one_round() -> None:
    server = in_office()
    before = server.newest_round
    sent = read(server, *range(100))
    assert len(sent) == 2
    assert server.newest_round == before + 1
    server.acknowledge(3)
    assert server.reads == dict.fromkeys(range(100), 1)


def test_6_4_a_later_round_confirms_the_earlier_ones() -> None:
    server = in_office()
    read(server, 1)
    read(server, 2)
    server.acknowledge(2)
    assert server.reads == {1: 1, 2: 1}


def test_6_4_a_server_that_is_a_quorum_by_itself_answers_at_once() -> None:
    server = in_office(configuration=voters(1, learners=[2]))
    read(server, 5)
    assert server.reads == {5: 1}


def test_6_4_a_leader_that_steps_down_loses_its_reads() -> None:
    server = in_office()
    read(server, 1, 2)
    server.step(2, append(9))
    assert server.reads == {1: None, 2: None}


def test_reads_are_bounded() -> None:
    server = in_office(config=RaftConfig(pending_reads_max=3))
    read(server, 1, 2, 3)
    with pytest.raises(Overloaded, match="pending_reads_max"):
        read(server, 4)
    server.acknowledge(2)
    read(server, 5)
    read(server, 6, 7)
    refused = server.step(3, ReadIndexRequest(1, 8))
    assert to(3, refused, ReadIndexReply) == [ReadIndexReply(1, 8, 0)]


# -- §6.4 on a follower ------------------------------------------------------------------------


def test_6_4_a_follower_asks_the_leader_for_a_read_index() -> None:
    server = Single()
    server.step(2, append(1))
    (asked,) = questions(read(server, 4, 5))
    server.step(2, ReadIndexReply(1, asked, 9))
    assert server.reads == {4: 9, 5: 9}


def test_6_4_a_leader_answers_a_follower_and_lets_it_learn_the_commit() -> None:
    server = in_office()
    server.propose("a")
    server.turn()
    server.acknowledge(3)
    assert server.raft.commit_index == 2
    server.step(2, ReadIndexRequest(1, 4))
    sent = server.acknowledge(3)
    assert to(2, sent, ReadIndexReply) == [ReadIndexReply(1, 4, 2)]


def test_6_4_a_follower_whose_leader_is_unknown_loses_the_read_at_once() -> None:
    server = Single()
    read(server, 4)
    assert server.reads == {4: None}


def test_bug_k5_who_is_asked_and_does_not_lead_refuses() -> None:
    server = Single()
    server.step(2, append(1))
    assert server.step(3, ReadIndexRequest(1, 4)) == [(3, ReadIndexReply(1, 4, 0))]


def test_bug_c3_an_answer_to_a_question_of_an_earlier_life_is_void() -> None:
    """The second trace of reads.py: the same term, leader and token, after a restart."""
    lives = [Single(term=1, seed=seed) for seed in (1, 2)]
    asked = []
    for server in lives:
        server.step(2, append(1))
        asked += questions(read(server, 1))
    lives[1].step(2, ReadIndexReply(1, asked[0], 10))
    assert lives[1].reads == {}
    lives[1].step(2, ReadIndexReply(1, asked[1], 11))
    assert lives[1].reads == {1: 11}


def test_reads_that_are_forwarded_are_bounded() -> None:
    server = Single(config=RaftConfig(pending_reads_max=2))
    server.step(2, append(1))
    read(server, 1, 2)
    with pytest.raises(Overloaded, match="pending_reads_max"):
        read(server, 3)


def test_a_read_that_the_leader_refuses_is_lost() -> None:
    server = Single()
    server.step(2, append(1))
    (asked,) = questions(read(server, 4))
    server.step(2, ReadIndexReply(1, asked + 1, 0))
    assert server.reads == {}
    server.step(2, ReadIndexReply(1, asked, 0))
    assert server.reads == {4: None}


def test_a_read_without_an_answer_is_lost_after_an_election_timeout() -> None:
    server = Single()
    server.step(2, append(1))
    (question,) = questions(read(server, 4))
    asked = server.now
    server.now += 0.3
    server.step(2, append(1))
    assert server.raft.deadline() == pytest.approx(asked + T)
    server.time_out()
    assert server.reads == {4: None}
    server.step(2, ReadIndexReply(1, question, 9))
    assert server.reads == {4: None}


def test_a_read_on_any_server_of_a_cluster_sees_what_was_applied() -> None:
    network = Network(3)
    leader = network.run_until_led()
    network.propose(leader, "x")
    network.run(0.05)
    newest = max(network.committed)
    for node_id in network.nodes:
        network.read(node_id, node_id)
    network.run(0.05)
    assert all(n.reads == {int(n.node_id): newest} for n in network.nodes.values())
    assert all(n.raft.commit_index == newest for n in network.nodes.values())


# -- §6.4.1 leases -----------------------------------------------------------------------------


def test_6_4_1_a_lease_starts_with_the_first_acknowledged_round_and_ends() -> None:
    server = in_office()
    start = server.now
    assert server.raft.lease_valid(start)
    assert server.raft.lease_valid(start + LEASE - 0.001)
    assert not server.raft.lease_valid(start + LEASE)


def test_6_4_1_each_acknowledged_round_extends_it() -> None:
    server = in_office()
    server.wait(0.1)
    sent = server.now
    server.now += 0.2
    server.acknowledge(2)
    assert server.raft.lease_valid(sent + LEASE - 0.001)
    assert not server.raft.lease_valid(sent + LEASE)


def test_6_4_1_no_lease_before_initialize_is_applied() -> None:
    server = Single()
    server.lead()
    server.raft.step(NodeId(2), _stored(server, 1), server.now)
    assert not server.raft.lease_valid(server.now), "committed, not yet applied"
    server.turn()
    assert server.raft.lease_valid(server.now)


def _stored(server: Single, index: int) -> AppendReply:
    return AppendReply(server.raft.term, server.newest_round, True, 0, index, index, 0, 0, False)


def test_6_4_1_no_lease_while_others_may_have_applied_more_than_this_server() -> None:
    """A follower may have answered a client from an entry that this disk does not have yet."""
    server = in_office()
    server.disk_is_held = True
    server.propose("a")
    server.turn()
    server.acknowledge(2)
    server.acknowledge(3)
    assert server.raft.commit_index == 2
    assert not server.raft.lease_valid(server.now)
    server.durable()
    assert server.raft.lease_valid(server.now)


def test_6_4_1_a_follower_has_no_lease() -> None:
    server = Single()
    server.step(2, append(1))
    assert not server.raft.lease_valid(server.now)


def test_6_4_1_a_server_alone_always_has_one() -> None:
    server = in_office(configuration=voters(1))
    assert server.raft.lease_valid(server.now + 1e6)


def test_bug_c5_the_lease_ends_before_the_fastest_follower_may_vote() -> None:
    for drift in (0.0, 0.1, 0.5):
        server = in_office(config=RaftConfig(clock_drift=drift))
        lease = T * (1 - drift) / (1 + drift)
        start = server.now
        assert not server.raft.lease_valid(start + lease)
        assert lease / (1 - drift) <= T / (1 + drift) + 1e-12, "slow leader, fast follower"


# -- §3.10 leadership transfer -----------------------------------------------------------------


def transfer(server: Single, target: int | None) -> list[tuple[int, object]]:
    server.raft.transfer_leadership(None if target is None else NodeId(target), server.now)
    return list(server.turn())


def stages(server: Single) -> list[str]:
    return [e.stage for e in server.trace if isinstance(e, TransferChanged)]


def test_3_10_a_target_that_is_up_to_date_is_told_at_once() -> None:
    server = in_office()
    assert to(2, transfer(server, 2), TimeoutNow) == [TimeoutNow(1)]  # type: ignore[arg-type]


def test_3_10_the_leader_stops_accepting_and_first_brings_the_target_up_to_date() -> None:
    server = in_office()
    server.propose("a")
    server.turn()
    assert transfer(server, 2) == []
    with pytest.raises(Unavailable, match="transferred to node 2"):
        server.propose("b")
    assert to(2, server.acknowledge(2), TimeoutNow) == [TimeoutNow(1)]


def test_3_10_the_target_campaigns_at_once_without_a_pre_vote() -> None:
    server = Single()
    server.step(2, append(1, (0, 0), (1, 1)))
    asked = server.step(2, TimeoutNow(1))
    assert (server.role(), server.raft.term) == (Role.CANDIDATE, 2)
    assert to(3, asked, VoteRequest) == [VoteRequest(2, 1, 1, False, True)]


def test_3_10_only_the_leader_may_ask_for_it() -> None:
    server = Single()
    server.step(2, append(1))
    assert server.step(3, TimeoutNow(1)) == []
    assert server.role() is Role.FOLLOWER


def test_3_10_it_is_given_up_after_an_election_timeout_and_proposals_are_accepted_again() -> None:
    server = in_office()
    server.propose("a")
    server.turn()
    transfer(server, 2)
    for _ in range(6):
        server.wait(0.1)
        server.acknowledge(3)
    assert stages(server) == ["started", "given up"]
    server.propose("b")


def test_3_10_the_target_is_told_again_with_each_heartbeat() -> None:
    server = in_office()
    transfer(server, 2)
    assert to(2, server.wait(0.1), TimeoutNow) == [TimeoutNow(1)]


def test_3_10_without_a_target_the_voter_that_is_furthest_along_is_chosen() -> None:
    server = in_office(configuration=voters(1, 2, 3, learners=[4]))
    server.propose("a")
    server.turn()
    server.acknowledge(4)
    server.acknowledge(3)
    assert [peer for peer, _ in transfer(server, None)] == [3]


@pytest.mark.parametrize("target", [4, 5, 9])
def test_3_10_who_cannot_lead_is_no_target(target: int) -> None:
    configuration = Configuration(
        voters=frozenset(map(NodeId, (1, 2, 5))),
        learners=frozenset([NodeId(4)]),
        witnesses=frozenset([NodeId(5)]),
    )
    server = in_office(configuration=configuration)
    with pytest.raises(UsageError, match=f"node {target} cannot lead"):
        transfer(server, target)


def test_3_10_one_transfer_at_a_time() -> None:
    server = in_office()
    transfer(server, 2)
    assert transfer(server, 2) == []
    assert transfer(server, None) == []
    with pytest.raises(Unavailable, match="transferred to node 2"):
        transfer(server, 3)


def test_3_10_transfer_needs_a_leader_and_a_follower() -> None:
    with pytest.raises(NotLeader):
        transfer(Single(), 2)
    with pytest.raises(Unavailable, match="no other voter"):
        transfer(in_office(configuration=voters(1)), None)
    assert transfer(in_office(), 1) == [], "already there"


def test_3_10_the_cluster_goes_on_under_the_target() -> None:
    network = Network(5)
    leader = network.run_until_led()
    network.propose(leader, "before")
    target = next(n for n in network.nodes if n != leader)
    network[leader].transfer_leadership(NodeId(target), network.now)
    network.turn(leader)
    started = network.now
    network.run(2.0, lambda: network[target].is_leader_ready)
    assert network.leader == target
    assert network.now - started < 0.05
    network.propose(target, "after")
    network.run(0.5)
    assert all(n.applied == ["before", "after"] for n in network.nodes.values())


def test_status_is_plain_data() -> None:
    server = in_office(log=batches((1, 1)), term=1)
    server.propose("a")
    server.turn()
    status = server.raft.status()
    assert json.loads(json.dumps(status))["progress"]["2"]["inflight_batches"] == 1
    assert status["role"] == "leader"
    assert isinstance(to(2, server.wait(0.1), Append)[0], Append)
