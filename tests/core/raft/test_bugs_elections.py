"""Bugs that others have had: elections, terms, votes (A); each test is the recipe against it."""

from __future__ import annotations

import pytest

from folkmoot.core.config import RaftConfig
from folkmoot.core.raft import HardState, Role, TimeoutNow, VoteReply, VoteRequest, Write
from folkmoot.core.types import NodeId
from tests.core.raft.disk import Disk, Prefix
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches, to

T = 0.5


def test_bug_a1_no_second_vote_in_a_term_after_a_restart() -> None:
    """N1 votes for A, crashes right after the send, restarts; B asks in the same term."""
    network = Network(3)
    network.send(2, 1, VoteRequest(5, 0, 0, False, False))
    assert network.take(1, 2)[-1].message == VoteReply(5, 5, False, True)
    network.crash(1)
    network.restart(1)
    network.now += T
    network.send(3, 1, VoteRequest(5, 0, 0, False, False))
    assert network.take(1, 3)[-1].message == VoteReply(5, 5, False, False)


def test_bug_a1_a_vote_that_was_lost_with_the_disk_was_never_spoken() -> None:
    network = Network(3)
    network.hold_disk(1)
    network.send(2, 1, VoteRequest(5, 0, 0, False, False))
    assert network.take(1, 2) == []
    network.crash(1)
    network.restart(1)
    assert network[1].term == 0


def test_bug_a2_an_entry_never_becomes_durable_before_its_term() -> None:
    """The writes of one turn, cut off at any point: the log never ends above the durable term."""
    server = Single(term=1, log=batches((1, 2)))
    server.disk_is_held = True
    server.step(2, append(1, (2, 1), (1, 1)))
    server.step(3, append(5, (2, 1), (5, 2)))
    server.step(3, append(5, (4, 5), (5, 1)))
    assert [w.number for w in server.writes] == list(range(1, len(server.writes) + 1))
    for stop in range(len(server.writes) + 1):
        disk = Disk(
            HardState(1), batches((1, 2)), Prefix(voters(1, 2, 3)), pending=list(server.writes)
        )
        disk.finish(stop)  # asserts it for every entry
    writes: list[Write] = [w for w in server.writes if w.hard_state is not None]
    assert all(b.term <= 1 for w in server.writes if w.number < writes[0].number for b in w.batches)


def test_bug_a3_repeated_late_and_foreign_votes_do_not_count() -> None:
    server = Single(configuration=voters(1, 2, 3, 4, 5))
    server.time_out()
    for _ in range(5):
        server.step(2, VoteReply(0, 1, True, True))
    assert server.role() is Role.PRE_CANDIDATE
    server.step(9, VoteReply(0, 1, True, True))
    server.step(3, VoteReply(0, 1, False, True))
    assert server.role() is Role.PRE_CANDIDATE
    server.step(3, VoteReply(0, 1, True, True))
    assert server.role() is Role.CANDIDATE
    for _ in range(5):
        server.step(2, VoteReply(1, 1, False, True))
    server.step(4, VoteReply(1, 1, True, True))  # a pre-vote, late
    server.step(5, VoteReply(0, 0, False, True))  # of another term
    assert server.role() is Role.CANDIDATE
    server.step(4, VoteReply(1, 1, False, True))
    assert server.role() is Role.LEADER


def test_bug_a4_the_longer_log_with_the_older_last_term_loses() -> None:
    network = Network(
        3,
        logs={1: batches(*[(1, 1)] * 9), 2: batches((1, 1), (2, 1)), 3: batches((1, 1), (2, 1))},
        hard_states=dict.fromkeys((1, 2, 3), HardState(2)),
    )
    assert not network.wins(1)
    network.elect(2)
    network.run(1.0)
    assert network.nodes[1].disk.batches == network.nodes[2].disk.batches


def test_bug_a5_a_candidate_follows_the_leader_of_its_own_term() -> None:
    for campaign in ([], [VoteReply(0, 1, True, True)]):
        server = Single()
        server.time_out()
        for reply in campaign:
            server.step(2, reply)
        assert server.role() is not Role.FOLLOWER
        server.step(3, append(1))
        assert (server.role(), server.raft.leader) == (Role.FOLLOWER, 3)


def test_bug_a6_a_success_of_an_older_term_moves_nothing() -> None:
    server = Single()
    server.lead_in_office()
    server.propose("a")
    server.turn()
    server.step(2, append(2))
    server.time_out()
    for pre in (True, False):
        server.step(3, VoteReply(2, 3, pre, True))
    assert (server.role(), server.raft.term) == (Role.LEADER, 3)
    from folkmoot.core.raft import AppendReply

    server.step(2, AppendReply(1, 1, True, 2, 2, 2, 0, 0, False))
    assert server.raft.commit_index == 1
    assert server.raft.status()["progress"][2]["match_index"] == 0


def test_bug_a7_a_server_back_from_a_partition_deposes_nobody() -> None:
    network = Network(5)
    leader = network.run_until_led()
    lone = next(n for n in network.nodes if n != leader)
    network.partition([n for n in network.nodes if n != lone])
    network.run(60 * 2 * T)
    term = network[leader].term
    assert network[lone].term == term
    network.heal()
    network.run(5.0)
    assert (network.leader, network[leader].term) == (leader, term)


GRAPHS = {
    # Cloudflare, 2020: the switch between 1 and 2 is gone, 3 sees both.
    "three, one link lost": (3, [(1, 3), (2, 3)]),
    # 1, 2 and 3 see one another, 4 sees only 2, 5 sees only 3.
    "five, two hang on": (5, [(1, 2), (1, 3), (2, 3), (2, 4), (3, 5)]),
    # Only 3 sees a quorum.
    "five, one in the middle": (5, [(1, 3), (2, 3), (4, 3), (5, 3)]),
}


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_bug_a8_a_partial_partition_gets_one_stable_leader(graph: str, seed: int) -> None:
    count, links = GRAPHS[graph]
    network = Network(count, seed=seed)
    first = network.run_until_led()
    before = len(network.leaders)
    network.run(0.2)
    network.only_links(*links)
    network.run(10 * T)
    leader = network.leader
    if 2 * (1 + sum(first in link for link in links)) > count:
        assert (leader, len(network.leaders)) == (first, before), "it has a quorum, let it lead"
    assert leader is not None
    terms = len(network.leaders)
    network.run(100 * T)
    assert (network.leader, len(network.leaders)) == (leader, terms)
    network.propose(leader, "works")
    network.run(1.0)
    assert "works" in network.nodes[leader].applied


def test_bug_a9_a_server_stuck_at_a_higher_term_gets_back_in() -> None:
    """Node 1's term was raised by hand; it can neither win (its log is behind) nor follow."""
    network = Network(3)
    network.elect(2)
    network.propose(2, "a")
    network.settle()
    network.crash(1)
    network.nodes[1].disk.hard_state = HardState(40)
    network.propose(2, "b")
    network.run(1.0)
    network.restart(1)
    network.run(10 * T)
    leader = network.run_until_led()
    assert network[leader].term > 40
    network.propose(leader, "c")
    network.run(1.0)
    assert all(node.applied == ["a", "b", "c"] for node in network.nodes.values())


def test_bug_a10_a_leader_without_a_quorum_stops_believing() -> None:
    network = Network(5)
    leader = network.run_until_led()
    friend = next(n for n in network.nodes if n != leader)
    network.run(0.3)
    network.partition([leader, friend], [n for n in network.nodes if n not in (leader, friend)])
    network.read(leader, 1)
    network.run(T + 0.11)
    assert network[leader].role is not Role.LEADER
    assert network.nodes[leader].reads == {1: None}
    assert network.run_until_led() not in (leader, friend)


def test_bug_a11_a_removed_server_that_never_learnt_it_disturbs_nobody() -> None:
    network = Network(4)
    network.partition([1, 2, 3])
    leader = network.run_until_led()
    for node_id in (1, 2, 3):
        network[node_id]._state.configuration = voters(1, 2, 3)
    network.cut = {(n, 4) for n in (1, 2, 3)}  # nobody speaks to 4, but 4 speaks
    term = network[leader].term
    network.run(30 * T)
    assert (network.leader, network[leader].term) == (leader, term)


def test_bug_a12_equal_seeds_still_elect_someone() -> None:
    network = Network(3)
    for node in network.nodes.values():
        node.raft._state.rng.seed(1)
        node.raft._election.reset_timer()
    network.latency = lambda a, b: 0.01
    network.run_until_led(20 * T)


@pytest.mark.parametrize("seed", range(5))
def test_bug_a12_a_disk_slower_than_the_timeout_does_not_prevent_elections(seed: int) -> None:
    """200 ms for each fsync, 150 ms of election timeout."""
    config = RaftConfig(heartbeat_s=0.03, election_timeout_s=0.15)
    network = Network(3, config=config, seed=seed)
    for node in network.nodes.values():
        node.disk.delay_s = 0.2
    leader = network.run_until_led(10.0)
    term = network[leader].term
    network.run(5.0)
    assert (network.leader, network[leader].term) == (leader, term)


def test_bug_a13_a_single_voter_elects_itself_at_each_start_in_a_new_term() -> None:
    network = Network(1)
    for start in range(1, 51):
        assert network.run_until_led(0.1) == 1
        assert network[1].term == start
        network.propose(1, f"x{start}")
        network.crash(1)
        network.restart(1)
    network.run_until_led(0.1)
    assert network.nodes[1].applied == [f"x{i}" for i in range(1, 51)]


def test_bug_a14_a_transfer_to_a_dead_target_ends_and_work_goes_on() -> None:
    network = Network(3)
    leader = network.run_until_led()
    target = next(n for n in network.nodes if n != leader)
    network.crash(target)
    network[leader].transfer_leadership(NodeId(target), network.now)
    network.turn(leader)
    network.run(T + 0.01)
    network.propose(leader, "on")
    network.run(0.5)
    assert network.nodes[leader].applied == ["on"]


def test_bug_a14_no_lease_during_a_transfer_nor_after_a_timeout_now_has_left() -> None:
    server = Single()
    server.lead_in_office()
    assert server.raft.lease_valid(server.now)
    server.propose("a")
    server.turn()
    server.acknowledge(3)
    server.raft.transfer_leadership(NodeId(2), server.now)
    assert not server.raft.lease_valid(server.now)
    for _ in range(6):
        server.wait(0.1)
        server.acknowledge(3)
    assert server.raft.lease_valid(server.now), "given up before anybody was told: nothing is lost"
    server.acknowledge(2)
    server.raft.transfer_leadership(NodeId(2), server.now)
    assert to(2, server.turn(), TimeoutNow)
    for _ in range(6):
        server.wait(0.1)
        server.acknowledge(3)
    server.propose("b")
    server.turn()
    server.acknowledge(3)
    assert not server.raft.lease_valid(server.now), "the TimeoutNow may still arrive"


def test_bug_a14_a_late_timeout_now_finds_no_lease() -> None:
    """The trace of transfer.py, whole."""
    network = Network(3)
    network.elect(1)
    network.run(0.2)
    network[1].transfer_leadership(NodeId(2), network.now)
    network.turn(1)
    (late,) = [e for e in network.take(1, 2) if isinstance(e.message, TimeoutNow)]
    network.cut = {(1, 2)}
    network.run(T)
    network.heal()
    network.run(0.15)
    assert network[1].role is Role.LEADER
    network.partition([2, 3])
    network.deliver_one(late)
    network.run(0.1)
    assert network[2].role is Role.LEADER
    network.propose(2, "newer")
    network.run(0.05)
    assert network[1].role is Role.LEADER
    assert not network[1].lease_valid(network.now)
