"""One test per sentence of the dissertation about the log and its commitment.

§3.5 to §3.7, §10.2.1; windows and pace. Limits and learners are in test_rules_limits.py.
"""

from __future__ import annotations

import pytest

from folkmoot.core.batch import Kind
from folkmoot.core.config import RaftConfig
from folkmoot.core.raft import Append, AppendReply, HardState
from folkmoot.core.raft.trace import ProgressChanged
from folkmoot.core.types import NodeId
from tests.core.raft.network import Network, voters
from tests.core.raft.single import Single, append, batches, to

T = 0.5


def in_office(**options: object) -> Single:
    server = Single(**options)  # type: ignore[arg-type]
    server.lead_in_office()
    return server


# -- §3.5 log replication ----------------------------------------------------------------------


def test_3_5_a_leader_appends_and_sends_to_all_others_in_parallel() -> None:
    server = in_office()
    batch = server.propose("a", "b")
    sent = server.turn()
    for peer in (2, 3):
        assert [m.batches for m in to(peer, sent, Append)] == [[batch]]
    assert (batch.first_index, batch.last_index, batch.term) == (2, 3, 1)


def test_3_5_all_that_is_proposed_in_one_turn_leaves_as_one_append_per_follower() -> None:
    server = in_office()
    made = [server.propose(f"x{i}") for i in range(20)]
    sent = server.turn()
    assert len(sent) == 2
    assert to(2, sent, Append)[0].batches == made


def test_3_5_an_entry_is_committed_once_a_majority_has_it() -> None:
    server = in_office(configuration=voters(1, 2, 3, 4, 5))
    server.propose("a")
    server.turn()
    server.acknowledge(2)
    assert server.raft.commit_index == 1
    server.acknowledge(3)
    assert server.raft.commit_index == 2


def test_3_5_a_leader_retries_indefinitely_until_all_store_all() -> None:
    network = Network(3)
    leader = network.run_until_led()
    slow = next(n for n in network.nodes if n != leader)
    network.partition([n for n in network.nodes if n != slow])
    for i in range(30):
        network.propose(leader, f"x{i}")
    network.run(5.0)
    network.heal()
    network.run(2.0)
    assert network.nodes[slow].applied == [f"x{i}" for i in range(30)]


def test_3_5_later_appends_and_heartbeats_tell_the_commit_index() -> None:
    server = in_office()
    server.propose("a")
    server.turn()
    server.acknowledge(2)
    server.propose("b")
    assert [m.commit_index for m in to(3, server.turn(), Append)] == [2]
    server.acknowledge(2)
    assert [m.commit_index for m in to(3, server.wait(0.1), Append)] == [3]


def test_3_5_a_follower_refuses_an_append_whose_predecessor_it_does_not_have() -> None:
    server = Single(log=batches((1, 2)), term=1)
    reply = server.ask(2, append(1, (5, 1), (1, 1)), AppendReply)
    assert (reply.success, reply.conflict_index, reply.conflict_term) == (False, 3, 0)
    assert server.raft.last_index == 2


def test_3_5_a_conflict_names_its_term_and_the_first_index_of_it() -> None:
    server = Single(log=batches((1, 2), (2, 1), (2, 3)), term=3)
    reply = server.ask(2, append(3, (6, 3)), AppendReply)
    assert (reply.success, reply.conflict_index, reply.conflict_term) == (False, 3, 2)


def test_3_5_a_leader_forces_followers_logs_to_duplicate_its_own() -> None:
    server = Single(log=batches((1, 2), (2, 1), (2, 3)), term=2)
    server.step(2, append(3, (2, 1), (3, 2)))
    assert server.raft.last_index == 4
    assert server.writes[-1].truncate_after == 2
    assert [b.term for b in server.writes[-1].batches] == [3]


def test_3_5_a_leader_skips_a_whole_conflicting_term_in_one_round_trip() -> None:
    """Figure 3.6 (f): terms 2 and 3 on the follower only; two probes, not nine."""
    server = Single(log=batches((1, 3), (4, 2), (5, 2), (6, 3)), term=6)
    first = to(2, server.lead(), Append)
    assert first[0].prev_index == 10
    sent = to(2, server.refuse(2, 10, 7, 3), Append)
    assert sent[0].prev_index == 5  # where a batch ends, not past 6
    sent = to(2, server.refuse(2, 5, 4, 2), Append)
    assert (sent[0].prev_index, sent[0].prev_term) == (3, 1)


def test_3_5_a_term_that_the_leader_has_as_well_is_not_skipped() -> None:
    server = Single(log=batches((1, 2), (2, 2), (3, 2)), term=3)
    server.lead()
    sent = to(2, server.refuse(2, 6, 2, 2), Append)
    assert (sent[0].prev_index, sent[0].prev_term) == (4, 2)


@pytest.mark.parametrize(
    "follower_terms",
    [
        "111445566",  # (a): misses one
        "1114",  # (b)
        "11144556666",  # (c): one too many
        "111445566677",  # (d)
        "1114444",  # (e)
        "11122233333",  # (f)
    ],
    ids="abcdef",
)
def test_3_5_figure_3_6_every_follower_is_brought_into_line(
    follower_terms: str,
) -> None:
    mine, theirs = (
        batches(*[(int(term), 1) for term in terms]) for terms in ("1114455666", follower_terms)
    )
    network = Network(
        3,
        logs={1: mine, 2: theirs, 3: mine},
        hard_states={n: HardState(8) for n in (1, 2, 3)},
    )
    network.elect(1)
    network.run(1.0)
    assert network.nodes[2].disk.batches == network.nodes[1].disk.batches
    network.check_logs()


# -- §3.6 safety -------------------------------------------------------------------------------


def test_3_6_2_an_entry_of_an_earlier_term_is_committed_only_through_one_of_the_own() -> None:
    server = Single(term=1, log=batches((1, 4)), configuration=voters(1, 2, 3))
    server.lead()
    server.acknowledge(2, 4)
    assert server.raft.commit_index == 0
    server.acknowledge(2, 5)
    assert server.raft.commit_index == 5


def test_6_4_a_leader_starts_its_term_with_an_entry_of_its_own() -> None:
    server = Single(term=4, log=batches((4, 2)))
    (first,) = to(2, server.lead(), Append)
    (batch,) = first.batches
    assert (batch.term, batch.first_index, batch.groups[0].kind) == (5, 3, Kind.INITIALIZE)
    assert not server.raft.is_leader_ready
    server.acknowledge(2)
    assert server.raft.is_leader_ready


def test_3_2_leader_append_only() -> None:
    network = Network(3)
    leader = network.run_until_led()
    for i in range(20):
        network.propose(leader, f"x{i}")
        network.run(0.05)
    assert all(w.truncate_after is None for w in network.nodes[leader].disk.pending)


def test_3_7_appends_are_idempotent() -> None:
    server = Single(term=1)
    message = append(1, (0, 0), (1, 2), (1, 3), commit=2)
    first = server.ask(2, message, AppendReply)
    writes = len(server.writes)
    again = server.ask(2, message, AppendReply)
    assert (again.success, again.match_index) == (True, first.match_index) == (True, 5)
    assert len(server.writes) == writes


# -- §10.2.1 writing in parallel ---------------------------------------------------------------


def test_10_2_1_appends_leave_before_the_leaders_own_disk_has_them() -> None:
    server = in_office()
    server.disk_is_held = True
    server.propose("a")
    assert len(server.turn()) == 2


def test_10_2_1_an_entry_may_commit_before_the_leaders_own_disk_has_it() -> None:
    server = in_office()
    server.disk_is_held = True
    server.propose("a")
    server.turn()
    server.acknowledge(2)
    assert server.raft.commit_index == 1
    server.acknowledge(3)
    assert server.raft.commit_index == 2
    assert server.last.commit_index == 1, "not applied before it is durable here (bug B9)"
    server.durable()
    assert server.last.commit_index == 2


# -- commit updates ----------------------------------------------------------------------------


def test_a_commit_is_told_at_once_only_to_followers_on_which_clients_wait() -> None:
    server = in_office()
    server.propose("a")
    server.turn()
    sent = server.acknowledge(2, wants_commit=True)
    assert [m.commit_index for m in to(2, sent, Append)] == [2]
    assert to(3, sent, Append) == []
    server.propose("b")
    server.turn()
    assert to(2, server.acknowledge(3), Append)[0].commit_index == 3


def test_a_follower_says_in_its_replies_that_clients_wait_on_it() -> None:
    server = Single()
    server.raft.set_commit_interest(True)
    assert server.ask(2, append(1), AppendReply).wants_commit
    server.raft.set_commit_interest(False)
    assert not server.ask(2, append(1), AppendReply).wants_commit


# -- windows and pace --------------------------------------------------------------------------


def test_the_window_bounds_the_batches_in_flight() -> None:
    server = in_office(config=RaftConfig(window_batches=3))
    for i in range(10):
        server.propose(f"x{i}")
    sent = to(2, server.turn(), Append)
    assert sum(len(m.batches) for m in sent) == 3
    sent = to(2, server.acknowledge(2, 4), Append)
    assert [b.last_index for m in sent for b in m.batches] == [5, 6, 7]


def test_the_window_bounds_the_bytes_in_flight() -> None:
    server = in_office(config=RaftConfig(window_bytes=4096))
    for _ in range(10):
        server.propose("y" * 1500)
    sent = to(2, server.turn(), Append)
    assert 2 <= sum(len(m.batches) for m in sent) <= 3


def test_an_append_is_split_at_its_limit() -> None:
    server = in_office(config=RaftConfig(append_bytes_max=1024))
    for _ in range(10):
        server.propose("y" * 300)
    sent = to(2, server.turn(), Append)
    assert [len(m.batches) for m in sent] == [2, 2, 2, 2, 2]
    assert [m.prev_index for m in sent] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("size", [1023, 1024, 1025, 65535, 65536, 65537])
def test_bug_b13_a_batch_beyond_every_limit_travels_alone(size: int) -> None:
    config = RaftConfig(append_bytes_max=1024, window_bytes=4096)
    network = Network(3, config=config)
    leader = network.run_until_led()
    network.propose(leader, "z" * size)
    network.propose(leader, "after")
    network.run(0.5)
    assert all(n.applied == ["z" * size, "after"] for n in network.nodes.values())


def test_a_probe_is_sent_once_and_then_paced_by_the_heartbeat() -> None:
    server = Single(log=batches((1, 5)), term=1)
    server.lead()
    server.propose("a")
    assert to(2, server.turn(), Append) == []
    (probe,) = to(2, server.wait(0.1), Append)
    assert (probe.prev_index, list(probe.batches)) == (5, [])


def test_a_pipeline_without_replies_for_an_election_timeout_becomes_a_probe() -> None:
    server = in_office()
    server.propose("a")
    server.turn()
    for _ in range(6):
        server.wait(0.1)
        server.acknowledge(3)
    changes = [e for e in server.trace if isinstance(e, ProgressChanged)]
    assert (changes[-1].peer, changes[-1].state, changes[-1].next_index) == (2, "probe", 2)
    assert server.raft.status()["progress"][2]["state"] == "probe"
    server.acknowledge(2, 1)
    assert server.raft.status()["progress"][2]["state"] == "pipeline"


def test_old_batches_are_asked_from_storage_and_sent_when_read() -> None:
    old = batches(*[(1, 1)] * 8)
    server = Single(log=old, term=1, config=RaftConfig(cache_bytes=4096))
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.raft.step(NodeId(2), AppendReply(2, 1, False, 8, 0, 2, 3, 0, False), server.now)
    ready = server.raft.ready()
    assert [(r.peer, r.first_index) for r in ready.log_reads] == [(2, 3)]
    assert to(2, server.wait(0.1), Append)[0].batches == []
    server.raft.log_read(NodeId(2), old[2:5])
    assert server.turn() == []  # the heartbeat was this probe's turn
    sent = to(2, server.acknowledge(2, 2), Append)
    assert sent == []
    assert [(r.peer, r.first_index) for r in server.last.log_reads] == [(2, 3)]
    server.raft.log_read(NodeId(2), old[2:5])
    assert [m.batches for m in to(2, server.turn(), Append)] == [old[2:5]]


def test_batches_read_back_too_late_are_not_sent() -> None:
    old = batches(*[(1, 1)] * 8)
    server = Single(log=old, term=1)
    server.lead_in_office()
    server.raft.log_read(NodeId(2), old)
    assert server.turn() == [], "nobody waits for them"
    server = Single(log=old, term=1)
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.refuse(2, 8, 3)
    assert server.last.log_reads
    server.raft.log_read(NodeId(2), old[:2])
    assert server.turn() == [], "they are not the next"
    assert [r.first_index for r in server.last.log_reads] == [3]


def test_batches_read_back_keep_to_the_window() -> None:
    """Reproduces a window of 2 batches with 8 in flight: storage counts only bytes."""
    old = batches(*[(1, 1)] * 8)
    server = Single(log=old, term=1, config=RaftConfig(cache_bytes=4096, window_batches=2))
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.refuse(2, 8, 3)
    server.raft.log_read(NodeId(2), old[2:])
    assert [m.batches for m in to(2, server.turn(), Append)] == [old[2:4]]


def test_batches_read_back_that_a_late_answer_has_settled_are_not_sent() -> None:
    """Reproduces a leader that ended with "sent 181, next is 184"."""
    old = batches(*[(1, 1)] * 8)
    server = Single(log=old, term=1, config=RaftConfig(cache_bytes=4096))
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.refuse(2, 8, 2)
    server.acknowledge(2, 1)
    assert [(r.peer, r.first_index) for r in server.last.log_reads] == [(2, 2)]
    server.raft.log_read(NodeId(2), old[1:4])
    reply = AppendReply(server.raft.term, 1, True, 3, 3, 8, 0, 0, False)
    server.raft.step(NodeId(2), reply, server.now)
    assert to(2, server.turn(), Append) == []
    assert [(r.peer, r.first_index) for r in server.last.log_reads] == [(2, 4)]


def test_a_failed_read_of_the_log_is_tried_again() -> None:
    server = Single(log=batches(*[(1, 1)] * 8), term=1)
    server.raft.log.applied(8)
    server.raft.log.limit_cache(0)
    server.lead()
    server.refuse(2, 8, 3)
    server.raft.log_read(NodeId(2), [])
    server.turn()
    assert [r.first_index for r in server.last.log_reads] == [3]
