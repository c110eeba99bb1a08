"""Bugs that others have had: replication and commitment (B), configurations in the log (D)."""

from __future__ import annotations

import random

import pytest

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft import Append, AppendReply, HardState, Role
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import (
    Single,
    append,
    batches,
    configuration_batch,
    to,
)


def test_bug_b1_figure_8_an_old_entry_is_not_committed_by_counting_copies() -> None:
    """S1 led term 2, S5 term 3; S1, in term 4, brings its entry 2 to a majority; then S5 wins."""
    shared = batches((1, 1))
    old, other = batches((2, 1), after=1), batches((3, 1), after=1)
    network = Network(
        5,
        logs={1: shared + old, 2: shared + old, 3: shared, 4: shared, 5: shared + other},
        hard_states=dict.fromkeys(range(1, 6), HardState(3)),
    )
    network.now += 1.0
    network.partition([1, 2, 3])
    network.hold_disk(1)
    network.elect_with_held_disk(1)
    # (c): the old entry reaches S3, the entry of term 4 does not.
    first = to(3, [(e.receiver, e.message) for e in network.take(1, 3)], Append)
    assert [b.term for b in first[0].batches] == [4]
    network.take(1, 2)
    network.send(1, 3, Append(4, 1, 1, 0, first[0].round, old))
    network.send(1, 2, Append(4, 2, 2, 0, first[0].round, []))
    network.deliver(3, 1)
    network.deliver(2, 1)
    assert network[3].log.term_at(2) == 2
    assert network[1].commit_index < 2, "a majority holds it, and yet"
    # (d): S1 crashes; S5 wins with S3 and S4 and replaces entry 2 everywhere.
    network.crash(1)
    network.wire = []
    network.partition([3, 4, 5])
    network.now += 2.0
    network.elect(5)
    network.run(1.0)
    assert network[3].log.term_at(2) == 3


def test_bug_b2_a_new_leader_without_writes_commits_and_reads() -> None:
    network = Network(3)
    first = network.run_until_led()
    network.propose(first, "a")
    network.settle()
    network.crash(first)
    leader = network.run_until_led()
    network.read(leader, 1)
    network.run(0.1)
    assert (network.nodes[leader].reads[1] or 0) >= 2


def test_bug_b3_a_heartbeat_commits_only_what_it_verified() -> None:
    server = Single(term=1, log=batches((1, 3), (1, 2)))
    reply = server.ask(2, append(2, (3, 1), commit=5), AppendReply)
    assert server.raft.commit_index == 3
    assert reply.match_index == 3


def test_bug_b4_a_late_shorter_append_deletes_nothing() -> None:
    server = Single()
    server.step(2, append(1, (0, 0), (1, 1), (1, 1), (1, 1)))
    reply = server.ask(2, append(1, (0, 0), (1, 1)), AppendReply)
    assert (server.raft.last_index, reply.match_index) == (3, 1)
    assert all(w.truncate_after is None for w in server.writes)


def test_bug_b5_a_conflict_at_or_below_the_commit_index_halts() -> None:
    for forged in (
        append(3, (0, 0), (2, 2)),
        append(3, (2, 2)),
        append(3, (2, 2), (3, 1)),
    ):
        server = Single()
        server.step(2, append(1, (0, 0), (1, 2), commit=2))
        server.now += 1.0
        with pytest.raises(AssertionError, match="at committed"):
            server.step(3, forged)
        assert server.raft.last_index == 2


def test_bug_b5_a_batch_across_the_commit_index_is_refused() -> None:
    server = Single()
    server.step(2, append(1, (0, 0), (1, 2), commit=2))
    with pytest.raises(RemoteProtocolError, match="ends elsewhere"):
        server.step(2, append(1, (0, 0), (1, 3)))


def test_bug_b6_an_append_from_below_the_prefix_is_no_conflict() -> None:
    server = Single(log=batches((3, 2), after=9), term=3, start=(9, 3))
    stale = batches((1, 4), (2, 1), (3, 4), (3, 2), (3, 1))
    reply = server.ask(2, Append(3, 0, 0, 12, 1, stale), AppendReply)
    assert (reply.success, reply.match_index, server.raft.last_index) == (True, 12, 12)
    assert [b.first_index for w in server.writes for b in w.batches] == [12]
    assert server.ask(2, append(3, (5, 2)), AppendReply).success


def test_bug_b7_an_append_is_acknowledged_only_when_durable() -> None:
    server = Single(term=1)
    server.disk_is_held = True
    assert server.step(2, append(1, (0, 0), (1, 2))) == []
    assert server.ask(2, append(1, (2, 1)), AppendReply).match_index == 0, "a heartbeat meanwhile"
    (reply,) = to(2, server.durable(), AppendReply)
    assert reply.match_index == 2
    assert server.ask(2, append(1, (2, 1)), AppendReply).match_index == 2


def test_bug_b7_a_truncation_lowers_the_durable_mark_and_drops_what_claimed_more() -> None:
    server = Single(term=1, log=batches((1, 1)))
    server.disk_is_held = True
    server.step(2, append(1, (1, 1), (1, 2), (1, 2)))
    server.step(3, append(2, (1, 1), (2, 1)))
    assert server.raft.durable_index == 1
    replies = to(2, server.durable(), AppendReply)
    assert replies == [], "the disk holds 1..2 now: nothing may claim 5"
    assert server.raft.durable_index == 2


def test_bug_b7_a_durable_tail_is_not_reported_after_it_was_cut() -> None:
    server = Single(term=1, log=batches((1, 1), (1, 4)))
    assert server.raft.durable_index == 5
    server.disk_is_held = True
    server.step(3, append(2, (1, 1), (2, 1), (2, 1)))
    assert server.raft.durable_index == 1
    server.durable(1)
    assert server.raft.durable_index in (1, 3)


def test_bug_b7_replies_of_one_sync_become_one() -> None:
    server = Single(term=1)
    server.raft.step(NodeId(2), append(1, (0, 0), (1, 1)), server.now)
    server.raft.step(NodeId(2), append(1, (1, 1), (1, 1)), server.now)
    assert [m.match_index for m in to(2, server.turn(), AppendReply)] == [2]


def test_bug_b8_a_leader_does_not_count_itself_before_its_own_sync() -> None:
    network = Network(3)
    network.elect(1)
    network.run(0.2)
    network.hold_disk(1)
    network.partition([1, 2])
    batch = network.propose(1, "a")
    network.settle()
    assert network[1].commit_index < batch.last_index, "one of three disks has it"
    network.durable(1)
    assert network[1].commit_index == batch.last_index


def test_bug_b9_nothing_is_applied_before_the_own_disk_has_it() -> None:
    server = Single(term=1)
    server.disk_is_held = True
    server.step(2, append(1, (0, 0), (1, 2), commit=2))
    assert (server.raft.commit_index, server.last.commit_index) == (2, 0)
    server.durable()
    assert server.last.commit_index == 2


def test_bug_b10_shuffled_replies_never_lower_a_match() -> None:
    for seed in range(30):
        server = Single()
        server.lead_in_office()
        for _ in range(6):
            server.propose("x")
            server.turn()
        replies = [
            AppendReply(1, 1, True, index - 1, index, index, 0, 0, False) for index in range(2, 8)
        ]
        replies += [AppendReply(1, 1, False, index, 0, 1, 2, 0, False) for index in range(2, 7)]
        random.Random(seed).shuffle(replies)
        match = 1
        for reply in replies:
            server.step(2, reply)
            progress = server.raft.status()["progress"][2]
            assert match <= progress["match_index"] < progress["next_index"]
            match = progress["match_index"]
        assert match == 7


def test_bug_b10_a_refusal_is_believed_only_for_the_present_probe() -> None:
    server = Single()
    server.lead_in_office()
    for _ in range(5):
        server.propose("x")
        server.turn()
    (resent,) = to(2, server.refuse(2, 3, 2), Append)
    assert resent.prev_index == 1
    assert server.refuse(2, 5, 2) == []
    assert server.refuse(2, 6, 2) == []


def test_bug_b11_repeated_replies_trigger_nothing() -> None:
    server = Single()
    server.lead_in_office()
    server.propose("x")
    server.turn()
    server.acknowledge(2)
    for _ in range(100):
        assert server.acknowledge(2) == []
    assert server.refuse(2, 1, 1) == []


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_bug_b11_duplication_does_not_amplify(loss: float) -> None:
    """A tenth of all messages is repeated: the rate stays below three times the plain one."""

    def messages(repeat: float) -> int:
        rng = random.Random(1)
        network = Network(3)
        leader = network.run_until_led()
        network.fate = lambda e: (
            [] if rng.random() < loss else [e, e] if rng.random() < repeat else [e]
        )
        for i in range(200):
            if network.leader is not None:
                network.propose(network.leader, f"x{i}")
            network.run(0.05)
        assert leader
        return sum(network.sent.values())

    assert messages(0.1) < 1.5 * messages(0.0)


def test_bug_b14_a_reply_from_an_earlier_membership_is_dropped() -> None:
    server = Single()
    server.lead_in_office()
    leader = server.raft._leader
    assert leader is not None
    progress = leader._replication.progress[NodeId(2)]
    progress.first_round = server.newest_round + 1  # as for a peer that was added again just now
    server.propose("x")
    server.turn()
    server.acknowledge(2)
    assert progress.match_index == 1
    server.wait(0.1)
    server.acknowledge(2)
    assert progress.match_index == 2


def test_bug_b14_a_stranger_moves_nothing() -> None:
    server = Single()
    server.lead_in_office()
    server.propose("x")
    server.turn()
    assert server.acknowledge(9) == []
    assert server.raft.commit_index == 1


def test_bug_b15_a_deposed_leader_says_so_at_once() -> None:
    """What was proposed ends as unknown: the server sees the role change in the same turn."""
    server = Single()
    server.lead_in_office()
    for _ in range(100):
        server.propose("x")
    server.turn()
    server.step(2, append(2))
    assert server.role() is Role.FOLLOWER
    assert any(str(e) == "RoleChanged role=follower term=2" for e in server.trace)


# -- D: configurations in the log --------------------------------------------------------------


def test_bug_d3_a_configuration_takes_effect_when_appended_and_is_rolled_back_when_cut() -> None:
    server = Single(term=1)
    new = voters(1, 2, 3, 4)
    server.step(2, Append(1, 0, 0, 0, 1, [configuration_batch(new, 1, 1)]))
    assert server.raft.configuration.voters == new.voters
    assert server.raft.configuration.index == 1
    server.step(3, append(2, (0, 0), (2, 1)))
    assert server.raft.configuration == voters(1, 2, 3)


def test_bug_d3_the_one_before_comes_back_not_the_first() -> None:
    server = Single(term=1)
    held = [configuration_batch(voters(1, 2, 3, n), 1, i) for i, n in ((1, 4), (2, 5))]
    server.step(2, Append(1, 0, 0, 1, 1, held))
    assert server.raft.configuration.voters == {1, 2, 3, 5}
    server.step(3, append(2, (1, 1), (2, 1)))
    assert server.raft.configuration.voters == {1, 2, 3, 4}


def test_bug_d4_a_restart_finds_the_configuration_in_the_log() -> None:
    log = [*batches((1, 1)), configuration_batch(voters(1, 2, 7), 1, 2), *batches((1, 1), after=2)]
    assert Single(term=1, log=log).raft.configuration.voters == {1, 2, 7}


def test_a_malformed_configuration_is_refused_before_it_is_stored() -> None:
    from folkmoot.core.batch import FLAG_CONFIGURATION, Group, Kind, encode_batch

    for group in (Group(Kind.CONFIGURATION, 1, b"\xc1"), Group(Kind.COMMANDS, 1, b"")):
        server = Single(term=1)
        bad = encode_batch(1, 1, 0, [group], FLAG_CONFIGURATION)
        with pytest.raises(RemoteProtocolError):
            server.step(2, Append(1, 0, 0, 0, 1, [bad]))
        assert server.raft.last_index == 0
