"""Bugs that others have had: logs that start late, and prefixes that replace them (A, B, D, E)."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft import Append, AppendReply, Role, VoteRequest
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches, configuration_batch, to


def follower(last: int = 5, commit: int = 0, term: int = 1) -> Single:
    """Follows node 2, with `last` entries of term 1 in single batches."""
    server = Single(term=1)
    server.step(2, append(term, (0, 0), *[(1, 1)] * last, commit=commit))
    return server


# -- A: elections ------------------------------------------------------------------------------


def test_bug_a15_an_install_begins_no_candidacy_and_touches_no_vote() -> None:
    server = Single(term=4, voted_for=2)
    server.step(2, append(4))
    before = server.raft.deadline()
    server.disk_is_held = True
    assert server.install(20, 3) == []
    assert server.raft.deadline() == before
    for _ in range(20):  # the disk is slow; the leader is not
        server.wait(0.1)
        server.step(2, append(4, (20, 3)))
    assert (server.role(), server.raft.term) == (Role.FOLLOWER, 4)
    assert server.raft.status()["voted_for"] == 2
    assert all(write.hard_state is None for write in server.writes)


def test_bug_a15_when_the_leader_dies_meanwhile_an_election_comes_as_ever() -> None:
    """It asks for votes with the log that it will have: the term is durable only after that."""
    server = follower()
    server.disk_is_held = True
    server.install(20, 1)
    (question, *_) = to(3, server.time_out(), VoteRequest)
    assert (question.pre, question.last_index, question.last_term) == (True, 20, 1)


# -- B: replication ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 18, 19, 20, 21])
def test_bug_b6_an_append_from_before_the_install_is_no_conflict(first: int) -> None:
    server = follower()
    server.install(20, 1)
    held = batches(*[(1, 1)] * 4, after=first - 1)
    reply = server.ask(2, Append(1, first - 1, int(first > 1), 0, 1, held), AppendReply)
    assert (reply.success, reply.match_index) == (True, max(20, first + 3))
    assert [b.first_index for b in server.writes[-1].batches] == list(range(21, first + 4))
    assert all(write.truncate_after is None for write in server.writes)


def test_bug_b6_a_batch_across_the_end_of_the_prefix_is_refused() -> None:
    server = follower()
    server.install(20, 1)
    with pytest.raises(RemoteProtocolError, match="ends elsewhere"):
        server.step(2, append(1, (18, 1), (1, 4)))


def test_bug_b7_an_install_claims_nothing_before_it_is_durable() -> None:
    server = Single(term=1, log=batches(*[(1, 1)] * 8))
    server.step(2, append(2, (8, 1), commit=3))
    assert (server.raft.durable_index, server.last.commit_index) == (8, 3)
    server.disk_is_held = True
    server.install(20, 2)
    assert server.raft.durable_index == 3, "of the old log what is committed, of the new nothing"
    assert server.last.commit_index == 3
    assert server.ask(2, append(2, (20, 2), commit=20), AppendReply).match_index == 3
    assert to(2, server.step(2, append(2, (20, 2), (2, 1))), AppendReply) == []
    (reply,) = to(2, server.durable(), AppendReply)
    assert (reply.match_index, server.raft.durable_index) == (21, 21)


def test_bug_b7_an_install_takes_back_what_waits_to_be_claimed() -> None:
    """The leader of term 3 has other entries than the one of term 2 whose append is not stored."""
    server = Single(term=2)
    server.step(2, append(2, (0, 0), (2, 1), commit=1))
    server.disk_is_held = True
    server.step(2, append(2, (1, 2), (2, 1), (2, 1)))
    stored = server.writes[-1].number
    server.step(3, append(3, (1, 2)))
    server.install(20, 3)
    assert to(2, server.durable(stored), AppendReply) == []
    assert server.raft.durable_index == 1, "3 is on the disk, and about to go"
    server.durable()
    assert server.raft.durable_index == 20


def test_bug_b11_a_follower_in_prefix_on_which_clients_wait_is_not_flooded() -> None:
    """Reproduces an append after every refusal: each told of a commit that it could not verify."""
    server = Single(log=batches((2, 1), after=9), term=2, start=(9, 2))
    server.lead()
    server.acknowledge(3)
    server.refuse(2, 10, 4)
    refusal = AppendReply(server.raft.term, 1, False, 9, 0, 3, 4, 0, True)
    assert len(to(2, server.step(2, refusal), Append)) <= 1
    for _ in range(10):
        assert server.step(2, refusal) == []
    server.propose("x")
    server.acknowledge(3)
    assert to(2, server.step(2, refusal), Append) == []


def test_bug_b14_a_stale_reply_does_not_end_the_need_for_a_prefix() -> None:
    server = Single(log=batches((2, 1), after=9), term=2, start=(9, 2))
    server.lead()
    server.refuse(2, 10, 4)
    leader = server.raft._leader
    assert leader is not None
    progress = leader._replication.progress[NodeId(2)]
    progress.first_round = server.newest_round + 1  # as for a peer that was added again just now
    server.acknowledge(2, 10)
    assert server.raft.followers_below_log() == [2]
    server.wait(0.1)
    server.acknowledge(2, 10)
    assert server.raft.followers_below_log() == []


def test_a_late_answer_below_the_start_is_no_offence() -> None:
    """Reproduces a link that was closed over a match "inside a batch" that is merely gone."""
    server = Single()
    server.lead_in_office()
    for _ in range(5):
        server.propose("x", "y")
    server.turn()
    server.acknowledge(3)
    server.compact(9)
    server.acknowledge(2, 5)
    progress = server.raft.status()["progress"][2]
    assert (progress["state"], progress["match_index"]) == ("pipeline", 5)


def test_a_late_refusal_below_the_start_asks_for_no_prefix() -> None:
    """It names what was missing when it was said; the follower has stored that since (bug B10)."""
    server = Single()
    server.lead_in_office()
    for _ in range(8):
        server.propose("x")
    server.turn()
    server.acknowledge(3)
    server.acknowledge(2, 6)
    server.compact(5)
    assert [m.prev_index for m in to(2, server.refuse(2, 8, 3), Append)] == [6]
    assert server.raft.followers_below_log() == []


# -- D: configurations -------------------------------------------------------------------------


def test_bug_d4_a_configuration_that_leaves_the_log_stays_in_force() -> None:
    server = Single(term=1)
    held = [
        configuration_batch(voters(1, 2, 3, 4), 1, 1),
        configuration_batch(voters(1, 2, 3, 5), 1, 2),
        *batches((1, 1), after=2),
    ]
    server.step(2, Append(1, 0, 0, 3, 1, held))
    server.compact(1)
    assert server.raft.configuration_at(1).voters == {1, 2, 3, 4}
    server.compact(3)
    assert server.raft.configuration_at(3).voters == {1, 2, 3, 5}
    new = configuration_batch(voters(1, 2, 3, 6), 1, 4)
    server.step(2, Append(1, 3, 1, 3, 1, [new]))
    assert server.raft.configuration.voters == {1, 2, 3, 6}
    # Bug D3: cut again, and the one that is no longer in the log is back.
    server.step(3, append(2, (3, 1), (2, 1)))
    assert server.raft.configuration == voters(1, 2, 3, 5, index=2)


def test_bug_d3_a_configuration_above_an_installed_prefix_is_rolled_back_to_the_prefixs() -> None:
    server = follower()
    server.install(20, 1, configuration=voters(1, 2, 3, 4, index=17))
    server.step(2, Append(1, 20, 1, 20, 1, [configuration_batch(voters(1, 2), 1, 21)]))
    assert server.raft.configuration.voters == {1, 2}
    server.step(3, append(2, (20, 1), (2, 1)))
    assert server.raft.configuration == voters(1, 2, 3, 4, index=17)


def test_bug_d4_a_discarded_configuration_is_not_in_force_after_an_install() -> None:
    server = Single(
        term=1, log=[configuration_batch(voters(1, 2, 7), 1, 1), *batches((1, 1), after=1)]
    )
    server.step(2, append(2, (2, 1)))
    server.install(20, 2, configuration=voters(1, 2, 3, index=12))
    assert server.raft.configuration == voters(1, 2, 3, index=12)


def test_bug_d4_the_configuration_of_a_prefix_holds_where_the_log_starts_earlier() -> None:
    """It is in the log as well, or older than the log: either way it is the one in force."""
    base = voters(1, 2, 7, index=6)
    log = [*batches((1, 1), after=4), configuration_batch(voters(1, 2, 7), 1, 6)]
    both = Single(term=1, log=log, start=(4, 1), committed=6, configuration=base)
    assert both.raft.configuration == base
    older = Single(term=1, log=batches((1, 2), after=6), start=(6, 1), configuration=base)
    assert older.raft.configuration == base


# -- E: installs and starts --------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations([10, 20, 30])))
@pytest.mark.parametrize("held", [False, True])
def test_bug_e3_installs_in_any_order_never_go_back(order: list[int], held: bool) -> None:
    """With an append behind each; the disk finishes at once, or all in the end."""
    server = follower(2)
    server.disk_is_held = held
    newest = 2
    for index in order:
        if server.raft.may_install(index, 1):
            server.install(index, 1)
            newest = index + 1
            server.step(2, append(1, (index, 1), (1, 1), commit=index))
        assert server.raft.last_index == newest
        assert server.raft.commit_index == newest - 1
    assert newest == 31
    if held:
        assert server.raft.durable_index <= 2
        server.durable()
    assert (server.raft.durable_index, server.last.commit_index) == (31, 30)


def test_bug_e3_each_of_two_installs_is_applied_when_it_is_durable_itself() -> None:
    server = follower(2)
    server.disk_is_held = True
    server.install(10, 1)
    first = server.writes[-1].number
    server.install(20, 1)
    server.durable(first)
    assert server.last.commit_index == 0, "10 is on the disk, and about to go"
    server.durable()
    assert server.last.commit_index == 20


def test_bug_e3_an_install_at_or_below_the_commit_index_is_refused() -> None:
    """Also one whose last entry is gone from the log, so that it cannot be compared any more."""
    server = follower(8, commit=6)
    for compacted in (False, True):
        if compacted:
            server.compact(6)
        for index in (2, 5, 6):
            assert not server.raft.may_install(index, 1)
            with contextlib.suppress(AssertionError):
                server.install(index, 1)
        assert (server.raft.last_index, server.raft.commit_index) == (8, 6)


def test_bug_e3_what_conflicts_with_an_installed_prefix_does_not_survive_it() -> None:
    """Entries of a deposed leader up to beyond the prefix's end: the leader never had them."""
    server = Single(term=2, log=[*batches((1, 1)), *batches(*[(2, 1)] * 8, after=1)])
    server.step(2, append(4, (1, 1)))
    server.install(5, 3)
    assert server.raft.last_index == 5
    reply = server.ask(2, append(4, (6, 2)), AppendReply)
    assert (reply.success, reply.conflict_index) == (False, 6)


def test_bug_e5_what_is_not_applied_is_never_compacted() -> None:
    """Bug B9's gap: committed, and not yet applied. A prefix made of the state would lack it."""
    server = Single(term=1)
    server.disk_is_held = True
    server.step(2, append(1, (0, 0), *[(1, 1)] * 5, commit=5))
    with contextlib.suppress(AssertionError):
        server.raft.compact(5, server.now)
    server.durable()
    assert server.raft.log.slice(1, 5) is not None


def test_bug_e8_a_follower_that_dies_in_catching_up_leads_with_a_log_without_holes() -> None:
    """It is installed, gets a part of what follows, crashes, comes back, and is elected."""
    network = Network(3)
    network.elect(1)
    network.partition([1, 3])
    for i in range(5):
        network.propose(1, f"x{i}")
        network.settle()
    network.compact(1)
    network.compact(3, 2)
    network.heal()
    network.propose(1, "y")
    network.settle()
    assert network.install(2, network.nodes[1].disk.prefix)
    network.now += 0.1
    network.tick(1)
    network.settle()
    network.hold_disk(2)
    network.propose(1, "lost")
    network.deliver(1, 2)
    network.crash(2)
    network.crash(1)
    network.wire = []
    network.restart(2)
    network.release_disk(2)
    assert [batch.first_index for batch in network.nodes[2].disk.batches] == [7]
    network.now += 1.0
    network.elect(2)
    network.propose(2, "z")
    network.run(1.0)
    network.restart(1)
    network.run(1.0)
    assert [node.applied[-2:] for node in network.nodes.values()] == [["y", "z"]] * 3
    network.check_logs()
