"""Bugs that others have had: reads, leases, clocks (C)."""

from __future__ import annotations

from folkmoot.core.raft import (
    Append,
    HardState,
    ReadIndexReply,
    ReadIndexRequest,
    Role,
    VoteRequest,
)
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches

T = 0.5
LEASE = T * 0.9 / 1.1


def test_bug_c1_no_read_index_before_the_own_term_has_committed() -> None:
    """The new leader's commit index lags behind what its predecessor acknowledged."""
    server = Single(term=1, log=batches((1, 1), (1, 1)))
    server.lead()
    server.raft.read_index(1, server.now)
    server.turn()
    server.wait(0.1)
    server.acknowledge(2, 2)
    server.acknowledge(3, 2)
    assert server.reads == {}
    server.acknowledge(2, 3)
    server.acknowledge(3, 3)
    assert server.reads == {1: 3}


def test_bug_c3_an_answer_from_before_a_leader_change_is_void() -> None:
    network = Network(3)
    network.elect(1)
    network.run(0.2)
    network.read(3, 1)
    network.deliver(3, 1)
    network.deliver(1, 2)
    network.deliver(2, 1)
    (late,) = [e for e in network.take(1, 3) if isinstance(e.message, ReadIndexReply)]
    network.partition([2, 3])
    network.now += 2.0
    network.elect(2)
    network.propose(2, "newer")
    network.settle()
    network.deliver_one(late)
    assert network.nodes[3].reads == {1: None}


def test_bug_c3_a_leader_change_in_the_same_turn_voids_what_was_read_before() -> None:
    server = Single()
    server.step(2, append(1))
    server.raft.read_index(1, server.now)
    (asked,) = [m for _, m in server.turn() if isinstance(m, ReadIndexRequest)]
    server.now += T
    server.step(3, VoteRequest(2, 0, 0, False, False))
    server.step(2, ReadIndexReply(1, asked.question, 5))
    assert server.reads == {1: None}


def test_bug_c4_a_lease_counts_from_the_sending_of_the_heartbeat() -> None:
    """200 ms for each acknowledgement; then the leader is cut off while the others elect."""
    network = Network(3)
    network.elect(1)
    network.run(1.0)
    network.latency = lambda sender, receiver: 0.2 if receiver == 1 else 0.001
    network.run(1.0)
    heartbeats = network.sent["Append"]
    network.run(1.0, lambda: network.sent["Append"] > heartbeats)
    network.run(0.002)
    network.cut = {(1, 2), (1, 3)}  # the next are lost, the last ones' acknowledgements still come
    network.run(T)
    network.time_out(2)
    network.run(0.02)
    assert network[2].is_leader_ready
    assert network[1].role is Role.LEADER, "it does not know yet"
    assert not network[1].lease_valid(network.now)


def test_bug_c4_on_one_server_by_the_clock() -> None:
    server = Single()
    server.lead_in_office()
    server.wait(0.1)
    sent = server.now
    server.now += 0.2
    server.acknowledge(2)
    assert server.raft.lease_valid(sent + LEASE - 0.001)
    assert not server.raft.lease_valid(sent + LEASE + 0.001)


def test_bug_c4_an_old_round_does_not_extend_a_lease() -> None:
    server = Single()
    server.lead_in_office()
    first, start = server.newest_round, server.now
    for _ in range(4):
        server.wait(0.1)
    server.acknowledge(2, round_number=first)
    server.acknowledge(3, round_number=first)
    assert not server.raft.lease_valid(start + LEASE)


def test_bug_c6_the_lease_is_checked_after_the_read() -> None:
    """SIGSTOP between the two: the check that comes last says no."""
    server = Single()
    server.lead_in_office()
    value = server.raft.commit_index
    server.now += 60.0
    assert not server.raft.lease_valid(server.now)
    assert value == 1


def test_bug_c7_a_restarted_follower_keeps_the_promise_it_forgot() -> None:
    """The leader holds a lease by F's acknowledgement; F restarts within 5 ms; the third asks F."""
    network = Network(3)
    network.elect(1)
    network.run(1.0)
    network.partition([1, 2])
    network.run(1.2)
    network.crash(2)
    network.now += 0.005
    network.restart(2)
    network.partition([2, 3])
    while network[1].role is Role.LEADER and network[1].lease_valid(network.now):
        assert network.leader == 1
        network.run(0.01)
    assert len(network.leaders) == 1
    network.run(3.0)
    assert network.leader in (2, 3)


def test_bug_c8_a_clock_that_stands_still_is_the_drivers_fault_but_never_runs_back() -> None:
    """Time given backwards does not bring a lease back."""
    server = Single()
    server.lead_in_office()
    start = server.now
    assert not server.raft.lease_valid(start + 10.0)
    assert not server.raft.lease_valid(start)


def test_bug_c11_learners_confirm_no_reads_and_hold_up_no_lease() -> None:
    server = Single(configuration=voters(1, 2, 3, learners=[4, 5]))
    server.lead_in_office()
    server.wait(0.1)
    server.raft.read_index(1, server.now)
    server.turn()
    server.acknowledge(4)
    server.acknowledge(5)
    assert server.reads == {}
    server.now += LEASE
    assert not server.raft.lease_valid(server.now)


def test_a_restart_with_a_term_is_silent_even_to_its_own_old_leader() -> None:
    network = Network(3, hard_states={n: HardState(3) for n in (1, 2, 3)})
    network.send(2, 1, VoteRequest(4, 0, 0, True, False))
    network.send(2, 1, VoteRequest(4, 0, 0, False, False))
    assert network[1].term == 3
    assert NodeId(1) in network.nodes


def test_a_refusal_of_an_old_append_answers_no_round_of_the_new_term() -> None:
    """The trace of Follower.refuse_old_term, whole: found by seed 1026 of the random faults.

    Node 3 was asked in term 1 and refuses in term 2, which the asker by then leads.
    """
    network = Network(3)
    network.elect(1)
    for _ in range(8):
        network.read(1, 0)
    late = network.take(1, 3)[-1]
    network.settle()
    network.crash(1)
    network.restart(1)
    network.partition([1, 3])
    network.now += 2.0
    network.elect(1)
    network.settle()
    network.partition([1, 2], [3])
    assert isinstance(late.message, Append)
    leader = network[1]._leader
    assert leader is not None
    while leader.newest_round < late.message.round - 1:
        network.read(1, 0)
    network.read(1, 7)
    assert leader.newest_round == late.message.round
    network.take()
    network.heal()
    network.deliver_one(late)
    network.deliver(3, 1)
    assert network[1].role is Role.LEADER
    assert 7 not in network.nodes[1].reads, "node 3 has never been asked about it"
