"""Every planted bug is caught by the test that is named for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from folkmoot.core.errors import FolkmootError
from tests.core.raft import (
    test_bugs_compaction,
    test_bugs_elections,
    test_bugs_reads,
    test_bugs_replication,
    test_chaos,
    test_rules_compaction,
    test_rules_reads,
    test_rules_replication,
    twins_compaction,
)
from tests.core.raft.twins import TWINS, planted

A, B, C = test_bugs_elections, test_bugs_replication, test_bugs_reads
E, RULES_E = test_bugs_compaction, test_rules_compaction


def graphs() -> None:
    for graph in A.GRAPHS:
        for seed in range(4):
            A.test_bug_a8_a_partial_partition_gets_one_stable_leader(graph, seed)


CAUGHT_BY: dict[str, Callable[[], object]] = {
    "vote_not_persisted": A.test_bug_a1_no_second_vote_in_a_term_after_a_restart,
    "vote_spoken_before_it_is_durable": (
        A.test_bug_a1_a_vote_that_was_lost_with_the_disk_was_never_spoken
    ),
    "votes_counted_without_term_and_kind": (
        A.test_bug_a3_repeated_late_and_foreign_votes_do_not_count
    ),
    "no_up_to_date_check": A.test_bug_a4_the_longer_log_with_the_older_last_term_loses,
    "index_compared_before_term": A.test_bug_a4_the_longer_log_with_the_older_last_term_loses,
    "no_pre_vote": A.test_bug_a7_a_server_back_from_a_partition_deposes_nobody,
    "no_stickiness": graphs,
    "old_leader_left_unanswered": A.test_bug_a9_a_server_stuck_at_a_higher_term_gets_back_in,
    "old_append_refused_with_its_round": (
        C.test_a_refusal_of_an_old_append_answers_no_round_of_the_new_term
    ),
    "no_check_quorum": A.test_bug_a10_a_leader_without_a_quorum_stops_believing,
    "same_timeout_every_time": A.test_bug_a12_equal_seeds_still_elect_someone,
    "transfer_never_given_up": A.test_bug_a14_a_transfer_to_a_dead_target_ends_and_work_goes_on,
    "lease_kept_during_transfer": (
        A.test_bug_a14_no_lease_during_a_transfer_nor_after_a_timeout_now_has_left
    ),
    "lease_back_after_a_transfer_was_given_up": A.test_bug_a14_a_late_timeout_now_finds_no_lease,
    "old_term_committed_by_counting": (
        B.test_bug_b1_figure_8_an_old_entry_is_not_committed_by_counting_copies
    ),
    "commit_up_to_the_own_last_index": B.test_bug_b3_a_heartbeat_commits_only_what_it_verified,
    "truncates_always": B.test_bug_b4_a_late_shorter_append_deletes_nothing,
    "acknowledged_before_fsync": B.test_bug_b7_an_append_is_acknowledged_only_when_durable,
    "durable_mark_kept_over_a_cut": (
        B.test_bug_b7_a_truncation_lowers_the_durable_mark_and_drops_what_claimed_more
    ),
    "own_match_before_own_fsync": (
        B.test_bug_b8_a_leader_does_not_count_itself_before_its_own_sync
    ),
    "applied_beyond_the_own_disk": B.test_bug_b9_nothing_is_applied_before_the_own_disk_has_it,
    "every_refusal_believed": B.test_bug_b10_a_refusal_is_believed_only_for_the_present_probe,
    "every_reply_answered": B.test_bug_b11_repeated_replies_trigger_nothing,
    "replies_of_earlier_memberships_counted": (
        B.test_bug_b14_a_reply_from_an_earlier_membership_is_dropped
    ),
    "dead_followers_pipelined_to": (
        test_rules_replication.test_a_pipeline_without_replies_for_an_election_timeout_becomes_a_probe
    ),
    "configuration_not_rolled_back": (
        B.test_bug_d3_a_configuration_takes_effect_when_appended_and_is_rolled_back_when_cut
    ),
    "read_before_the_own_term_committed": (
        C.test_bug_c1_no_read_index_before_the_own_term_has_committed
    ),
    "read_joins_a_round_under_way": (
        test_rules_reads.test_6_4_the_round_starts_after_the_read_arrived_even_beside_another
    ),
    "read_kept_over_a_leader_change": C.test_bug_c3_an_answer_from_before_a_leader_change_is_void,
    "questions_counted_from_one": (
        test_rules_reads.test_bug_c3_an_answer_to_a_question_of_an_earlier_life_is_void
    ),
    "lease_from_receipt_time": C.test_bug_c4_a_lease_counts_from_the_sending_of_the_heartbeat,
    "lease_while_the_own_disk_lags": (
        test_rules_reads.test_6_4_1_no_lease_while_others_may_have_applied_more_than_this_server
    ),
    "no_restart_silence": C.test_bug_c7_a_restarted_follower_keeps_the_promise_it_forgot,
}

CAUGHT_BY |= {
    "compacted_beyond_what_is_applied": E.test_bug_e5_what_is_not_applied_is_never_compacted,
    "configuration_lost_with_the_start_of_the_log": (
        E.test_bug_d4_a_configuration_that_leaves_the_log_stays_in_force
    ),
    "prefix_not_known_to_be_committed": (
        RULES_E.test_5_1_a_restarted_server_knows_that_its_prefix_is_committed
    ),
    "append_from_before_the_log_taken_for_a_conflict": (
        lambda: E.test_bug_b6_an_append_from_before_the_install_is_no_conflict(18)
    ),
    "followers_left_where_the_log_is_gone": (
        RULES_E.test_a_log_read_under_way_for_what_is_gone_is_ignored
    ),
    "late_answers_below_the_start_refused": E.test_a_late_answer_below_the_start_is_no_offence,
    "late_success_below_the_start_believed": (
        RULES_E.test_a_silent_pipeline_is_probed_where_the_log_starts
    ),
    "late_refusal_believed_below_the_match": (
        E.test_a_late_refusal_below_the_start_asks_for_no_prefix
    ),
    "prefix_asked_for_at_the_end_of_the_log": (
        lambda: RULES_E.test_5_1_an_installed_follower_is_pipelined_to_at_its_next_answer(10)
    ),
    "commits_told_to_who_cannot_verify_them": (
        E.test_bug_b11_a_follower_in_prefix_on_which_clients_wait_is_not_flooded
    ),
    "install_at_or_below_the_commit_index": (
        E.test_bug_e3_an_install_at_or_below_the_commit_index_is_refused
    ),
    "install_over_a_log_that_holds_it": (
        RULES_E.test_figure_5_3_a_log_that_holds_the_last_entry_of_the_prefix_is_retained
    ),
    "candidacy_begun_by_an_install": (
        E.test_bug_a15_an_install_begins_no_candidacy_and_touches_no_vote
    ),
    "configuration_of_a_prefix_ignored": (
        E.test_bug_d4_a_discarded_configuration_is_not_in_force_after_an_install
    ),
    "install_keeps_a_conflicting_tail": (
        E.test_bug_e3_what_conflicts_with_an_installed_prefix_does_not_survive_it
    ),
    "install_durable_at_once": E.test_bug_b7_an_install_claims_nothing_before_it_is_durable,
    "durable_mark_kept_over_an_install": (
        E.test_bug_b7_an_install_claims_nothing_before_it_is_durable
    ),
    "claims_kept_over_an_install": E.test_bug_b7_an_install_takes_back_what_waits_to_be_claimed,
    "pending_writes_settle_what_an_install_discards": (
        E.test_bug_b7_an_install_takes_back_what_waits_to_be_claimed
    ),
}

BY_RANDOM_FAULTS = [
    "vote_not_persisted",
    "acknowledged_before_fsync",
    "durable_mark_kept_over_a_cut",
    "no_up_to_date_check",
    "install_at_or_below_the_commit_index",
    "install_durable_at_once",
    "durable_mark_kept_over_an_install",
    "followers_left_where_the_log_is_gone",
    "commits_told_to_who_cannot_verify_them",
]


def test_every_twin_is_listed() -> None:
    assert set(CAUGHT_BY) == set(TWINS)
    assert twins_compaction.install_durable_at_once.__name__ in TWINS


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_the_twin_is_caught_by_its_test(name: str) -> None:
    check = CAUGHT_BY[name]
    check()
    with planted(name), pytest.raises((AssertionError, FolkmootError)):
        check()


@pytest.mark.parametrize("name", BY_RANDOM_FAULTS)
def test_the_twin_is_caught_by_random_faults(name: str) -> None:
    def all_seeds() -> None:
        for seed in range(60):
            test_chaos.test_random_faults(seed)

    with planted(name), pytest.raises((AssertionError, FolkmootError)):
        all_seeds()
