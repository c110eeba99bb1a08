"""One test per sentence of the dissertation about compacted logs and the transfer of their prefix.

§5.1, figure 5.3 (InstallSnapshot); how a leader tells who needs it, and how much of its log is of
use to others. Where others have stumbled is in test_bugs_compaction.py.
"""

from __future__ import annotations

import pytest

from folkmoot.core.config import RaftConfig
from folkmoot.core.raft import Append, AppendReply, PrefixPoint, Role
from folkmoot.core.raft.trace import Compacted, Installed, ProgressChanged
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches, configuration_batch, to


def leader(entries: int = 9) -> Single:
    """Leads term 1 with `entries` entries in single batches, all applied, all acknowledged."""
    server = Single()
    server.lead_in_office()
    for _ in range(entries - 1):
        server.propose("x")
    server.turn()
    for peer in (2, 3):
        server.acknowledge(peer)
    return server


def follower(last: int = 5, commit: int = 0) -> Single:
    """Follows node 2 in term 1, with `last` entries in single batches."""
    server = Single(term=1)
    server.step(2, append(1, (0, 0), *[(1, 1)] * last, commit=commit))
    return server


def state_of(server: Single, peer: int) -> str:
    return str(server.raft.status()["progress"][peer]["state"])


# -- §5.1 the log lets go of its start ---------------------------------------------------------


def test_5_1_index_and_term_of_the_last_discarded_entry_are_kept() -> None:
    server = leader()
    server.compact(9)
    assert server.trace[-1] == Compacted(9, 1)
    assert (server.raft.log.first_index, server.raft.log.last_term) == (10, 1)
    server.propose("y")
    sent = to(2, server.turn(), Append)
    assert [(m.prev_index, m.prev_term) for m in sent] == [(9, 1)]


def test_5_1_a_server_discards_only_what_it_has_applied() -> None:
    server = follower(5, commit=3)
    for index in (4, 5):
        with pytest.raises(AssertionError, match="applied is 3"):
            server.raft.compact(index, server.now)
    server.compact(3)
    assert [server.raft.log.get(i) is None for i in (3, 4)] == [True, False]


def test_5_1_discarding_less_than_before_does_nothing() -> None:
    """An install, or a trim that was overtaken, may have moved the start on already."""
    server = leader()
    server.compact(7)
    noted = len(server.trace)
    server.compact(7)
    server.compact(3)
    assert (server.raft.log.start_index, len(server.trace)) == (7, noted)


def test_5_1_a_restarted_server_knows_that_its_prefix_is_committed() -> None:
    log = batches(*[(2, 1)] * 6, after=4)
    server = Single(term=2, log=log, start=(4, 2), committed=8)
    assert (server.raft.commit_index, server.raft.durable_index) == (8, 10)
    assert server.last.commit_index == 8
    assert not server.last.advanced
    status = server.raft.status()
    assert (status["applied_index"], status["first_index"]) == (8, 5)
    with pytest.raises(AssertionError, match="at committed 7"):
        server.step(2, append(3, (7, 1)))


def test_5_1_without_a_prefix_a_server_starts_where_its_log_does() -> None:
    assert Single(term=2, start=(4, 2), log=batches((2, 1), after=4)).raft.commit_index == 4


def test_a_prefix_that_ends_outside_the_log_is_a_mistake() -> None:
    for committed in (2, 5):
        with pytest.raises(AssertionError, match="no boundary"):
            Single(term=1, log=batches((1, 3), (1, 1)), committed=committed)


# -- §5.1 who needs the prefix -----------------------------------------------------------------


def test_5_1_a_follower_that_needs_a_discarded_entry_needs_the_prefix() -> None:
    """Reported once, and kept in contact: each heartbeat asks where the log starts."""
    server = Single(log=batches((2, 1), after=9), term=2, start=(9, 2))
    server.lead()
    assert server.raft.followers_below_log() == []
    server.refuse(2, 10, 4)
    changes = [e for e in server.trace if isinstance(e, ProgressChanged)]
    assert [(e.peer, e.state) for e in changes] == [(2, "prefix")]
    assert server.raft.followers_below_log() == [2]
    (probe,) = to(2, server.wait(0.1), Append)
    assert (probe.prev_index, probe.prev_term, list(probe.batches)) == (9, 2, [])
    server.refuse(2, 9, 4)
    server.acknowledge(2, 0)
    assert len([e for e in server.trace if isinstance(e, ProgressChanged)]) == 1
    sent = to(2, server.acknowledge(2, 9), Append)
    assert [b.first_index for m in sent for b in m.batches] == [10, 11]
    assert server.raft.followers_below_log() == []


def test_who_is_not_heard_from_needs_nothing_yet() -> None:
    server = Single(log=batches((2, 1), after=9), term=2, start=(9, 2))
    server.lead()
    server.refuse(2, 10, 4)
    for _ in range(6):
        server.acknowledge(3)
        server.wait(0.1)
    assert server.raft.followers_below_log() == []
    server.refuse(2, 9, 4)
    assert server.raft.followers_below_log() == [2]


def test_nobody_but_a_leader_knows_who_needs_the_prefix() -> None:
    server = follower()
    assert server.raft.followers_below_log() == []
    assert server.raft.reachable_match(server.now) is None


@pytest.mark.parametrize(("last", "state"), [(5, "prefix"), (6, "pipeline"), (7, "pipeline")])
def test_bug_e5_followers_around_the_start_of_the_log(last: int, state: str) -> None:
    server = Single(log=batches(*[(2, 1)] * 4, after=6), term=2, start=(6, 2))
    server.lead()
    sent = to(2, server.refuse(2, 10, last + 1), Append)
    if state == "pipeline":
        assert [m.prev_index for m in sent] == [last]
        server.acknowledge(2, last)
    assert state_of(server, 2) == state


def test_a_conflict_in_the_term_of_the_last_discarded_entry_is_asked_at_the_start() -> None:
    """§3.5: just behind the own last entry of that term, which is the one before the log."""
    server = Single(log=batches((6, 1), (6, 1), (6, 1), after=10), term=6, start=(10, 5))
    server.lead()
    (probe,) = to(2, server.refuse(2, 13, 8, 5), Append)
    assert (probe.prev_index, probe.prev_term) == (10, 5)


# -- a log that starts later while followers are on their way ----------------------------------


def test_5_1_a_follower_that_is_being_probed_below_the_new_start_needs_the_prefix() -> None:
    server = Single(term=1, log=batches(*[(1, 1)] * 9))
    server.lead()
    (probe,) = to(2, server.refuse(2, 9, 3), Append)
    assert probe.prev_index == 2
    server.acknowledge(3)
    server.compact(5)
    assert state_of(server, 2) == "prefix"
    assert server.refuse(2, 2, 1) == [], "the probe's own answer, late"
    assert state_of(server, 2) == "prefix"


def test_5_1_a_late_success_below_the_start_leads_nowhere() -> None:
    server = Single(term=1, log=batches(*[(1, 1)] * 9))
    server.lead()
    server.refuse(2, 9, 3)
    server.acknowledge(3)
    server.compact(5)
    server.acknowledge(2, 2)
    assert state_of(server, 2) == "prefix"
    (probe,) = to(2, server.wait(0.1), Append)
    assert probe.prev_index == 5


def test_a_log_read_under_way_for_what_is_gone_is_ignored() -> None:
    old = batches(*[(1, 1)] * 8)
    server = Single(log=old, term=1, config=RaftConfig(cache_bytes=4096))
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.acknowledge(3)
    server.refuse(2, 8, 3)
    assert [(r.peer, r.first_index) for r in server.last.log_reads] == [(2, 3)]
    server.raft.compact(6, server.now)
    server.raft.log_read(NodeId(2), old[2:5])
    assert to(2, server.turn(), Append) == []
    assert state_of(server, 2) == "prefix"


def test_batches_read_back_that_are_gone_meanwhile_are_not_sent() -> None:
    old = batches(*[(1, 1)] * 8)
    server = Single(log=old, term=1, config=RaftConfig(cache_bytes=4096))
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.acknowledge(3)
    server.refuse(2, 8, 3)
    server.raft.log_read(NodeId(2), old[2:5])
    server.raft.compact(3, server.now)
    assert to(2, server.turn(), Append) == []
    assert state_of(server, 2) == "prefix"


def test_a_pipeline_goes_on_where_only_what_is_in_flight_is_gone() -> None:
    """What node 2 has not acknowledged may be gone; what it is to get next is not."""
    server = leader()
    server.propose("y")
    server.propose("z")
    server.turn()
    server.acknowledge(3)
    server.compact(10)
    assert state_of(server, 2) == "pipeline"
    server.acknowledge(2, 9)  # below the start: late, and welcome
    assert server.raft.status()["progress"][2]["match_index"] == 9
    server.acknowledge(2, 11)
    assert server.raft.status()["progress"][2]["match_index"] == 11


def test_a_pipeline_whose_next_entry_is_gone_needs_the_prefix() -> None:
    server = Single(config=RaftConfig(window_batches=1))
    server.lead_in_office()
    for _ in range(5):
        server.propose("x")
        server.turn()
        server.acknowledge(3)
    assert server.raft.status()["progress"][2]["next_index"] == 3
    server.compact(3)
    assert state_of(server, 2) == "prefix"
    assert server.raft.status()["progress"][2]["next_index"] == 3


def test_a_silent_pipeline_is_probed_where_the_log_starts() -> None:
    """It may have got what it could not acknowledge: ask, before the prefix is transferred."""
    server = leader()
    server.propose("y")
    server.propose("z")
    server.turn()
    server.acknowledge(3)
    server.compact(11)
    for _ in range(5):
        server.acknowledge(3)
        server.wait(0.1)
    server.acknowledge(3)
    sent = server.wait(0.1)
    assert state_of(server, 2) == "probe"
    assert [m.prev_index for m in to(2, sent, Append)] == [11]
    server.acknowledge(2, 10)
    assert state_of(server, 2) == "probe", "a late success, below the start"
    server.acknowledge(2, 11)
    assert state_of(server, 2) == "pipeline"


# -- figure 5.3 the receiver's side ------------------------------------------------------------


def test_5_1_the_prefix_replaces_the_whole_log() -> None:
    server = follower(5, commit=2)
    server.install(20, 1, log_time=70)
    log = server.raft.log
    assert (log.start_index, log.last_index, log.last_term, log.last_log_time) == (20, 20, 1, 70)
    assert (server.raft.commit_index, server.last.commit_index) == (20, 20)
    assert server.trace[-1] == Installed(20, 1, 5)
    assert server.writes[-1].install == PrefixPoint(20, 1, 70)
    assert server.writes[-1].batches == []
    held = batches((1, 2), after=20, time=70)
    reply = server.ask(2, append(1, (20, 1), holding=held), AppendReply)
    assert (reply.success, reply.match_index) == (True, 22)


def test_figure_5_3_a_log_that_holds_the_last_entry_of_the_prefix_is_retained() -> None:
    server = follower(5, commit=2)
    assert not server.raft.may_install(4, 1)
    assert not server.raft.may_install(5, 1)
    assert server.raft.may_install(6, 1)


def test_figure_5_3_a_log_that_holds_another_entry_there_is_discarded() -> None:
    server = Single(term=2, log=batches((1, 1), *[(2, 1)] * 8))
    server.step(2, append(4, (1, 1)))
    assert not server.raft.may_install(5, 2)
    assert server.raft.may_install(5, 3)
    server.install(5, 3)
    assert (server.raft.last_index, server.raft.log.last_term) == (5, 3)
    assert server.raft.log.last_of_term(2) == 0


def test_figure_5_3_a_prefix_comes_from_the_leader_of_this_term() -> None:
    server = Single(term=3)
    assert not server.raft.may_install(5, 2), "nobody leads"
    server.step(2, append(3))
    assert server.raft.may_install(5, 2)
    assert not server.raft.may_install(5, 4), "nothing is committed in a term to come"
    alone = Single(configuration=voters(1))
    alone.lead()
    assert not alone.raft.may_install(50, 1), "it leads itself"
    with pytest.raises(AssertionError, match="install of 50"):
        alone.install(50, 1)


def test_figure_5_3_the_configuration_comes_with_the_prefix() -> None:
    server = follower(5)
    server.install(20, 1, configuration=voters(1, 2, 3, 4, index=17))
    assert server.raft.configuration == voters(1, 2, 3, 4, index=17)
    assert "ConfigurationChanged index=17" in str(server.trace[-1])


def test_an_install_begins_a_write_and_a_hard_state_after_it_another() -> None:
    server = follower(3)
    server.raft.step(NodeId(2), append(1, (3, 1), (1, 1)), server.now)
    server.raft.install(20, 1, 0, voters(1, 2, 3), server.now)
    server.raft.step(NodeId(2), append(1, (20, 1), (1, 1)), server.now)
    server.raft.step(NodeId(3), append(2, (21, 1)), server.now)
    before = len(server.writes)
    server.turn()
    kinds = [
        (w.hard_state and w.hard_state.term, w.install and w.install.index, len(w.batches))
        for w in server.writes[before:]
    ]
    assert kinds == [(None, None, 1), (None, 20, 1), (2, None, 0)]


@pytest.mark.parametrize("start", [3, 8, 10])
def test_5_1_an_installed_follower_is_pipelined_to_at_its_next_answer(start: int) -> None:
    """The leader's log may start at, or well below, the end of the prefix that it sent."""
    network = Network(3)
    network.elect(1)
    network.partition([1, 3])
    for i in range(9):
        network.propose(1, f"x{i}")
    network.settle()
    network.compact(1, start)
    for i in range(2):
        network.propose(1, f"y{i}")
    network.settle()
    network.heal()
    network.now += 0.1
    network.tick(1)
    network.settle()
    assert network[1].followers_below_log() == [2]
    assert network.install(2, network.nodes[1].disk.prefix)
    assert network[2].log.start_index == 10
    network.now += 0.1
    network.tick(1)
    network.deliver(1, 2)
    answers = [(e.receiver, e.message) for e in network.wire if e.sender == 2]
    (reply,) = to(1, answers, AppendReply)
    assert (reply.success, reply.prev_index, reply.match_index) == (True, start, 10)
    network.settle()
    assert network[1].status()["progress"][2]["state"] == "pipeline"
    assert network.nodes[2].applied == network.nodes[1].applied
    assert len(network.nodes[2].disk.batches) == 2, "nothing is sent that the prefix holds"


# -- how much of the log is of use to others ---------------------------------------------------


def test_the_lowest_match_within_reach_says_what_others_still_need() -> None:
    server = leader()
    assert server.raft.reachable_match(server.now) == 9
    server.propose("y")
    server.turn()
    server.acknowledge(3)
    assert server.raft.reachable_match(server.now) == 9
    assert server.raft.reachable_match(server.now + 0.5) is None
    for _ in range(6):
        server.wait(0.1)
        server.acknowledge(3)
    assert server.raft.reachable_match(server.now) == 10, "node 2 is out of reach"


def test_a_new_leader_knows_of_nobody_what_he_has() -> None:
    server = Single(term=1, log=batches((1, 5)))
    server.lead()
    assert server.raft.reachable_match(server.now) == 0


def test_the_configuration_at_an_index_is_the_last_one_up_to_there() -> None:
    log = [
        *batches((1, 1)),
        configuration_batch(voters(1, 2, 7), 1, 2),
        *batches((1, 2), after=2),
        configuration_batch(voters(1, 2, 9), 1, 5),
    ]
    server = Single(term=1, log=log)
    found = [server.raft.configuration_at(index).index for index in (0, 1, 2, 4, 5)]
    assert found == [0, 0, 2, 2, 5]
    with pytest.raises(AssertionError, match="configuration at 3"):
        server.raft.configuration_at(3)
    assert server.role() is Role.FOLLOWER
