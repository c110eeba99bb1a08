"""One test per sentence of the dissertation about terms, votes and elections (§3.3, §3.4, §3.6.1,
§3.8, §4.2.3, §6.2, §9.6)."""

from __future__ import annotations

import math

import pytest

from folkmoot.core.raft import (
    AppendReply,
    Configuration,
    HardState,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    Role,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches, to

T = 0.5


def vote(
    term: int, last: tuple[int, int] = (0, 0), *, pre: bool = False, transfer: bool = False
) -> VoteRequest:
    return VoteRequest(term, last[0], last[1], pre, transfer)


# -- §3.3 terms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        append(7),
        AppendReply(7, 1, False, 1, 0, 0, 1, 0, False),
        vote(7, transfer=True),
        VoteReply(7, 7, False, False),
        TimeoutNow(7),
        ReadIndexRequest(7, 1),
        ReadIndexReply(7, 1, 1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_3_3_a_larger_term_is_adopted_from_every_message(message: Message) -> None:
    server = Single(term=3, configuration=voters(1))
    server.lead()
    assert server.role() is Role.LEADER
    server.step(2, message)
    assert (server.raft.role, server.raft.term) == (Role.FOLLOWER, 7)
    assert server.writes[-1].hard_state is not None
    assert server.writes[-1].hard_state.term == 7


def test_3_3_a_request_with_a_stale_term_is_rejected() -> None:
    server = Single(term=5)
    assert server.ask(2, append(4), AppendReply).success is False
    assert server.ask(2, append(4), AppendReply).term == 5
    assert server.ask(3, vote(4), VoteReply).granted is False
    assert server.raft.leader is None


def test_3_3_the_term_is_durable_before_it_is_revealed() -> None:
    server = Single()
    server.disk_is_held = True
    assert server.step(2, append(3)) == []
    assert [type(m) for _, m in server.durable()] == [AppendReply]


# -- §3.4 leader election ----------------------------------------------------------------------


def test_3_4_servers_start_as_followers() -> None:
    server = Single(term=4)
    assert (server.raft.role, server.raft.leader) == (Role.FOLLOWER, None)


def test_3_4_a_server_remains_a_follower_while_it_hears_a_leader() -> None:
    server = Single()
    for _ in range(50):
        server.step(2, append(1))
        server.wait(0.4)
        assert server.role() is Role.FOLLOWER


def test_3_4_without_communication_for_an_election_timeout_it_begins_an_election() -> None:
    server = Single()
    server.step(2, append(1))
    assert server.wait(T - 0.001) == []
    server.wait(T)
    assert server.role() is Role.PRE_CANDIDATE
    assert server.raft.leader is None


def test_3_4_a_candidate_increments_its_term_votes_for_itself_and_asks_all_others() -> None:
    server = Single(term=3, configuration=voters(1, 2, 3, 4))
    server.time_out()
    server.step(2, VoteReply(3, 4, True, True))
    asked = server.step(3, VoteReply(3, 4, True, True))
    assert server.role() is Role.CANDIDATE
    assert server.writes[-1].hard_state == HardState(4, NodeId(1))
    assert asked == [(n, VoteRequest(4, 0, 0, False, False)) for n in (2, 3, 4)]


def test_3_4_a_candidate_wins_with_votes_from_a_majority() -> None:
    server = Single(configuration=voters(1, 2, 3, 4, 5))
    server.time_out()
    for peer in (2, 3):
        server.step(peer, VoteReply(0, 1, True, True))
    server.step(2, VoteReply(1, 1, False, True))
    assert server.role() is Role.CANDIDATE
    server.step(3, VoteReply(1, 1, False, True))
    assert server.role() is Role.LEADER


def test_3_4_each_server_votes_for_at_most_one_candidate_in_a_term_first_come() -> None:
    server = Single()
    assert server.ask(2, vote(1), VoteReply).granted
    assert not server.ask(3, vote(1), VoteReply).granted
    assert server.ask(2, vote(1), VoteReply).granted  # the same again, for its reply may be lost
    assert server.ask(3, vote(2), VoteReply).granted


def test_3_4_a_new_leader_sends_to_all_at_once_to_prevent_new_elections() -> None:
    server = Single()
    first = server.lead()
    assert {peer for peer, message in first if message.term == 1} == {2, 3}


def test_3_4_a_candidate_that_hears_a_leader_of_its_term_returns_to_follower() -> None:
    server = Single()
    server.time_out()
    server.step(2, VoteReply(0, 1, True, True))
    assert server.role() is Role.CANDIDATE
    assert server.ask(3, append(1), AppendReply).success
    assert (server.raft.role, server.raft.leader, server.raft.term) == (Role.FOLLOWER, 3, 1)


def test_3_4_a_candidate_that_hears_a_leader_of_an_older_term_remains_candidate() -> None:
    server = Single(term=5)
    server.time_out()
    server.step(2, VoteReply(5, 6, True, True))
    assert not server.ask(3, append(5), AppendReply).success
    assert server.role() is Role.CANDIDATE


def test_3_4_without_a_winner_a_new_election_begins_with_a_new_timeout() -> None:
    server = Single()
    server.time_out()
    server.step(2, VoteReply(0, 1, True, True))
    first = server.raft.deadline() - server.now
    assert T <= first < 2 * T
    asked = server.time_out()
    assert to(2, asked, VoteRequest) == [VoteRequest(2, 0, 0, True, False)]


def test_3_4_timeouts_are_drawn_at_random_from_a_fixed_interval() -> None:
    server = Single()
    drawn = []
    for _ in range(200):
        server.step(2, append(1))
        drawn.append(server.raft.deadline() - server.now)
    assert min(drawn) >= T - 1e-9
    assert max(drawn) < 2 * T
    assert max(drawn) - min(drawn) > 0.9 * T


def test_the_first_election_of_a_fresh_cluster_is_quick_and_only_that() -> None:
    assert Single().raft.deadline() - 10.0 <= 0.15
    assert Single(term=1).raft.deadline() - 10.0 >= T


# -- §3.6.1 election restriction ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "candidate", "granted"),
    [
        ([(1, 3), (3, 1)], (9, 2), False),  # longer, older last term
        ([(1, 3)], (1, 2), True),  # shorter, newer last term
        ([(2, 3)], (2, 2), False),  # same last term, shorter
        ([(2, 3)], (3, 2), True),
        ([(2, 3)], (4, 2), True),
    ],
)
def test_3_6_1_the_log_with_the_later_last_term_or_else_the_longer_is_more_up_to_date(
    own: list[tuple[int, int]], candidate: tuple[int, int], granted: bool
) -> None:
    for pre in (True, False):
        server = Single(term=5, log=batches(*own))
        server.wait(T)
        assert server.ask(2, vote(6, candidate, pre=pre), VoteReply).granted is granted


# -- §3.8 persisted state ----------------------------------------------------------------------


def test_3_8_a_vote_leaves_only_when_it_is_durable() -> None:
    server = Single()
    server.disk_is_held = True
    assert server.step(2, vote(1)) == []
    assert server.durable() == [(2, VoteReply(1, 1, False, True))]


def test_3_8_a_candidate_asks_only_when_its_term_and_own_vote_are_durable() -> None:
    server = Single()
    server.time_out()
    server.disk_is_held = True
    assert server.step(2, VoteReply(0, 1, True, True)) == []
    assert to(3, server.durable(), VoteRequest) == [VoteRequest(1, 0, 0, False, False)]


def test_3_8_the_own_vote_counts_when_it_is_durable() -> None:
    server = Single(configuration=voters(1))
    server.disk_is_held = True
    server.time_out()
    assert server.role() is Role.CANDIDATE
    server.durable()
    assert server.role() is Role.LEADER


# -- §4.2.3 leader stickiness ------------------------------------------------------------------


@pytest.mark.parametrize("pre", [True, False])
def test_4_2_3_a_vote_within_the_minimum_election_timeout_of_a_leader_is_refused(pre: bool) -> None:
    server = Single()
    server.step(2, append(1))
    server.now += T - 0.001
    assert not server.ask(3, vote(9, pre=pre), VoteReply).granted
    assert server.raft.term == 1
    server.now += 0.002
    assert server.ask(3, vote(9, pre=pre), VoteReply).granted


def test_4_2_3_a_leader_refuses_as_well() -> None:
    server = Single()
    server.lead()
    assert not server.ask(3, vote(9, (9, 9)), VoteReply).granted
    assert (server.raft.role, server.raft.term) == (Role.LEADER, 1)


def test_3_10_an_election_that_the_leader_asked_for_passes_over_stickiness() -> None:
    server = Single()
    server.step(2, append(1))
    assert server.ask(3, vote(2, transfer=True), VoteReply).granted


# -- §6.2 check quorum -------------------------------------------------------------------------


def test_6_2_a_leader_that_hears_no_quorum_for_an_election_timeout_steps_down() -> None:
    server = Single()
    server.lead_in_office()
    left = server.now
    while server.role() is Role.LEADER:
        server.time_out()
    assert server.now - left == pytest.approx(T)
    assert (server.raft.term, server.raft.leader) == (1, None)


def test_6_2_it_steps_down_by_itself_exactly_when_the_timeout_of_its_last_quorum_ends() -> None:
    server = Single(configuration=voters(1, 2, 3, 4, 5))
    server.lead_in_office()
    start = server.now
    for at in (0.2, 0.3):
        server.wait(start + at - server.now)
        server.acknowledge(2)
    server.wait(start + 0.45 - server.now)
    server.acknowledge(3)  # with 2 at 0.3 and itself a majority: counts from 0.3
    while server.role() is Role.LEADER:
        server.time_out()
    assert server.now - start == pytest.approx(0.3 + T)


# -- §9.6 pre-vote -----------------------------------------------------------------------------


def test_9_6_a_pre_vote_changes_nothing_that_lasts_on_either_side() -> None:
    asker, voter = Single(term=3), Single(node_id=2, term=3)
    voter.wait(T)
    asked = asker.time_out()
    assert (asker.raft.term, asker.writes) == (3, [])
    (request,) = to(2, asked, VoteRequest)
    assert request == VoteRequest(4, 0, 0, True, False)
    assert voter.ask(1, request, VoteReply) == VoteReply(3, 4, True, True)
    assert (voter.raft.term, voter.writes) == (3, [])


def test_9_6_several_candidates_may_have_the_same_pre_vote() -> None:
    voter = Single()
    assert voter.ask(2, vote(1, pre=True), VoteReply).granted
    assert voter.ask(3, vote(1, pre=True), VoteReply).granted


def test_9_6_the_term_rises_only_when_a_majority_would_grant() -> None:
    server = Single(term=3, configuration=voters(1, 2, 3, 4, 5))
    server.time_out()
    server.step(2, VoteReply(3, 4, True, True))
    assert server.raft.term == 3
    for _ in range(20):
        server.time_out()
    assert (server.raft.term, server.raft.role) == (3, Role.PRE_CANDIDATE)


def test_9_6_refused_by_a_majority_it_becomes_a_follower_again() -> None:
    server = Single(term=3)
    server.time_out()
    server.step(2, VoteReply(3, 4, True, False))
    assert server.role() is Role.PRE_CANDIDATE
    server.step(3, VoteReply(3, 4, True, False))
    assert server.role() is Role.FOLLOWER


def test_9_6_a_pre_candidate_behind_in_terms_learns_the_present_one() -> None:
    voter = Single(node_id=2, term=9)
    voter.wait(T)
    refusal = voter.ask(1, vote(4, pre=True), VoteReply)
    assert (refusal.granted, refusal.term) == (False, 9)
    server = Single(term=3)
    server.time_out()
    server.step(2, refusal)
    assert (server.raft.term, server.raft.role) == (9, Role.FOLLOWER)


# -- restart silence ---------------------------------------------------------------------------


def test_after_a_restart_no_vote_is_given_for_one_minimum_election_timeout() -> None:
    server = Single(term=1)
    assert not server.ask(2, vote(2), VoteReply).granted
    assert server.raft.term == 1
    server.now += T
    assert server.ask(2, vote(2), VoteReply).granted


def test_a_cluster_that_never_had_a_term_and_a_server_that_is_alone_start_at_once() -> None:
    assert Single().ask(2, vote(1), VoteReply).granted
    alone = Single(term=8, configuration=voters(1))
    alone.time_out()
    assert (alone.now, alone.raft.role) == (10.0, Role.LEADER)


# -- who takes part ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "configuration",
    [
        voters(2, 3, learners=[1]),
        Configuration(),
        Configuration(voters=frozenset(map(NodeId, (1, 2, 3))), witnesses=frozenset([NodeId(1)])),
    ],
    ids=["learner", "unknown", "witness"],
)
def test_who_may_not_lead_never_campaigns(configuration: Configuration) -> None:
    server = Single(configuration=configuration)
    assert server.raft.deadline() == math.inf
    assert server.wait(1000.0) == []
    server.step(2, append(1))
    assert server.step(2, TimeoutNow(1)) == []
    assert server.role() is Role.FOLLOWER


def test_4_2_2_a_server_votes_without_asking_its_own_configuration() -> None:
    """§4.1: a vote is given to a candidate, and by a server, that its configuration lacks."""
    assert Single(configuration=voters(2, 3, learners=[1])).ask(4, vote(1), VoteReply).granted


def test_4_3_a_joint_election_needs_a_majority_of_both_halves() -> None:
    both = Configuration(
        voters=frozenset(map(NodeId, (1, 2, 3))), outgoing=frozenset(map(NodeId, (1, 4, 5)))
    )
    server = Single(configuration=both)
    server.time_out()
    server.step(2, VoteReply(0, 1, True, True))
    server.step(3, VoteReply(0, 1, True, True))
    assert server.role() is Role.PRE_CANDIDATE
    server.step(4, VoteReply(0, 1, True, True))
    assert server.role() is Role.CANDIDATE


def test_3_2_election_safety_two_leaders_of_one_term_halt_the_server() -> None:
    server = Single()
    server.step(2, append(1))
    with pytest.raises(AssertionError, match="nodes 3 and 2 both lead term 1"):
        server.step(3, append(1))


def test_the_vote_is_cleared_only_when_the_term_rises() -> None:
    """Not when a leader is learnt, nor when it is lost."""
    server = Single()
    assert server.ask(2, vote(1), VoteReply).granted
    server.step(3, append(1))
    server.wait(2 * T)
    assert not server.ask(3, vote(1), VoteReply).granted


def test_3_4_who_knows_the_leader_of_a_term_votes_for_nobody_else_in_it() -> None:
    server = Single()
    server.step(2, append(1))
    server.now += T
    assert not server.ask(3, vote(1), VoteReply).granted
    assert server.raft.status()["voted_for"] is None


def test_a_follower_resets_its_timer_when_it_votes() -> None:
    server = Single(term=1)
    server.now += 0.99 * (server.raft.deadline() - server.now)
    server.step(2, vote(2))
    assert server.raft.deadline() - server.now >= T


def test_a_cluster_of_seven_elects_one_leader_and_keeps_it() -> None:
    network = Network(7)
    leader = network.run_until_led()
    network.run(20.0)
    assert network.leader == leader
    assert len(network.leaders) == 1
