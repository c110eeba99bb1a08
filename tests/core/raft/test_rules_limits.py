"""What surrounds replication: limits, refusals, log time, learners, joint configurations."""

from __future__ import annotations

import pytest

from folkmoot.core.batch import Batch
from folkmoot.core.config import RaftConfig
from folkmoot.core.errors import NotLeader, Overloaded, RemoteProtocolError
from folkmoot.core.raft import Append, AppendReply, Configuration, Role
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, command, voters
from tests.core.raft.single import Single, append, batches, to

T = 0.5


def in_office(**options: object) -> Single:
    server = Single(**options)  # type: ignore[arg-type]
    server.lead_in_office()
    return server


# -- limits and refusals -----------------------------------------------------------------------


def test_proposals_are_refused_where_nobody_leads() -> None:
    server = Single()
    with pytest.raises(NotLeader, match="no leader is known"):
        server.propose("x")
    server.step(2, append(1))
    with pytest.raises(NotLeader, match="node 2 does"):
        server.propose("x")


def test_proposals_are_refused_beyond_the_uncommitted_bytes() -> None:
    server = in_office(config=RaftConfig(uncommitted_bytes_max=1 << 16))
    for _ in range(63):
        server.propose("x" * 1000)
    with pytest.raises(Overloaded, match="uncommitted_bytes_max"):
        server.propose("x" * 1000)
    server.turn()
    server.acknowledge(2)
    server.acknowledge(3)
    server.propose("x")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Append(5, 2, 1, 0, 1, batches((1, 1), after=3)), "batch from 4 after index 2"),
        (Append(5, 2, 3, 0, 1, batches((2, 1), after=2)), "batch of term 2 after term 3"),
        (Append(5, 2, 1, 0, 1, batches((6, 1), after=2)), "batch of term 6"),
        (Append(5, 2, 6, 0, 1, []), "after an entry of term 6"),
        (Append(5, 1, 1, 0, 1, []), "inside a batch"),
        (Append(5, 2, 1, 0, 1, batches((1, 1), after=2, time=3)), "log time 3 at 3 after 4"),
        (Append(5, 0, 0, 0, 1, batches((1, 1))), "ends elsewhere"),
        (
            Append(5, 2, 1, 0, 1, [*batches((1, 1), after=2, time=9), *batches((1, 1), after=3)]),
            "log time 0 after 9",
        ),
    ],
)
def test_bug_b12_an_append_that_no_leader_sends_is_refused_and_changes_nothing(
    message: Append, why: str
) -> None:
    server = Single(log=batches((1, 2), time=4), term=3)
    before = server.raft.status()
    with pytest.raises(RemoteProtocolError, match=why):
        server.step(2, message)
    assert server.turn() == []
    assert server.raft.status() == before


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (AppendReply(1, 99, True, 1, 1, 1, 0, 0, False), "round 99 of"),
        (AppendReply(1, 1, True, 1, 9, 9, 0, 0, False), "match index 9"),
        (AppendReply(1, 1, False, 0, 0, 0, 1, 0, False), "refuses the empty log"),
        (AppendReply(1, 1, False, 1, 0, 0, 0, 0, False), "refuses the empty log"),
    ],
)
def test_a_reply_that_no_follower_sends_is_refused(reply: AppendReply, why: str) -> None:
    server = in_office()
    with pytest.raises(RemoteProtocolError, match=why):
        server.step(2, reply)


def test_a_match_inside_a_batch_is_refused() -> None:
    server = in_office()
    server.propose("a", "b", "c")
    server.turn()
    with pytest.raises(RemoteProtocolError, match="inside a batch"):
        server.acknowledge(2, 3)


# -- log time ----------------------------------------------------------------------------------


def test_log_time_goes_on_from_the_log_with_the_leaders_own_clock() -> None:
    server = Single(log=batches((1, 1), time=70_000), term=1)
    server.lead()
    started = server.raft.log_time
    assert started == 70_000, "it stood still while nobody led"
    server.now += 1.25
    assert server.raft.leader_time(server.now) == 71_250
    assert server.propose("x").log_time == 71_250
    assert server.raft.log_time == 71_250


def test_log_time_never_falls_over_elections() -> None:
    network = Network(3, seed=3)
    times: list[int] = []
    for _ in range(4):
        leader = network.run_until_led()
        network.run(0.7)
        times.append(network.propose(leader, "x").log_time)
        network.settle()
        network.crash(leader)
        network.run(3.0)
        network.restart(leader)
    assert times == sorted(times)
    assert times[-1] < network.now * 1000


# -- learners and joint configurations ---------------------------------------------------------


def test_4_2_1_a_learner_gets_everything_and_counts_for_nothing() -> None:
    server = in_office(configuration=voters(1, 2, 3, learners=[4, 5]))
    server.propose("a")
    sent = server.turn()
    assert to(4, sent, Append)[0].batches
    server.acknowledge(4)
    server.acknowledge(5)
    assert server.raft.commit_index == 1
    server.acknowledge(2)
    assert server.raft.commit_index == 2


def test_4_3_a_joint_commit_needs_a_majority_of_both_halves() -> None:
    both = Configuration(
        voters=frozenset(map(NodeId, (1, 2, 3))), outgoing=frozenset(map(NodeId, (1, 4, 5)))
    )
    server = in_office(configuration=both)
    server.propose("a")
    server.turn()
    server.acknowledge(2)
    server.acknowledge(3)
    assert server.raft.commit_index == 1
    server.acknowledge(4)
    assert server.raft.commit_index == 2


def test_a_batch_is_the_same_bytes_on_every_disk() -> None:
    network = Network(3)
    leader = network.run_until_led()
    made: Batch = network.propose(leader, "one", "two")
    network.run(0.5)
    assert all(made in node.disk.batches for node in network.nodes.values())
    assert network[leader].role is Role.LEADER
    assert command("one").count == 1
