"""Each planted bug is caught, by a seed or by a script, which without the bug is clean.

A seed means another run after each change of the product, so a stored one may cease to catch its
bug. It is the first that is tried; then others are, up to SEARCH. Where that takes long, or fails,
store a seed anew: the assertion says what was tried.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable

import pytest

from tests.sim import planted_compaction, scripts
from tests.sim.options import Options
from tests.sim.planted import PLANTED, planted
from tests.sim.simulation import Failure, Script, simulate

SEARCH = 80
BY_SEED = {
    "vote_not_persisted": (0, "PersistBeforeSpeaking"),
    "vote_spoken_before_it_is_durable": (0, "PersistBeforeSpeaking"),
    "acknowledged_before_fsync": (0, "AcknowledgedIsDurable"),
    "own_match_before_own_fsync": (1, "CommittedIsDurable"),
    "old_term_committed_by_counting": (1, "CommitRule"),
    "truncates_always": (0, ""),
    "no_up_to_date_check": (0, "LeaderCompleteness"),
    "commit_up_to_the_own_last_index": (13, ""),
    "applied_beyond_the_own_disk": (0, "AppliedIsDurable"),
    "durable_mark_kept_over_a_cut": (13, ""),
    "votes_counted_without_term_and_kind": (0, ""),
    "lease_while_the_own_disk_lags": (23, "ReadsSeeTheirPast"),
    "hard_state_never_written": (0, ""),
    "log_never_synced": (2, "Ledger"),
    "commands_not_deduplicated": (1, "ExactlyOnce"),
    "results_not_kept": (1, "ExactlyOnce"),
    "retries_answered_with_null": (1, "ExactlyOnce"),
    "unknown_called_not_applied": (0, "RefusedMeansNever"),
    "expires_while_a_keep_alive_is_in": (54, "SilentWhenExpired"),
    "silence_counts_through_elections": (2, "SilentWhenExpired"),
    "sessions_never_expire": (18, "Liveness"),
    "local_deadline_from_receipt": (41, ""),
    "events_delivered_again": (1, "EventsOnceInOrder"),
    "missed_events_not_sent_again": (4, ""),
    "events_forgotten_at_once": (1, ""),
    "replicas_publish_differently": (4, "SameAnswers"),
    "waiters_outlive_their_session": (7, ""),
    "tokens_do_not_rise": (1, "OneHolder"),
    "lock_granted_to_whoever_asks": (0, "OneHolder"),
    "sequential_reads_do_not_wait": (0, "ReadsSeeTheirPast"),
    "leader_needs_no_lease": (23, "ReadsSeeTheirPast"),
    "loop_spins_without_a_leader": (0, "time stands still"),
    "frozen_one_batch_late": (0, ""),
    "frozen_as_it_is_by_then": (2, "OneDigest"),
    "ledger_kept_over_a_freeze": (0, ""),
    "changes_of_sessions_not_noted": (0, "OneDigest"),
    "answers_not_restored": (0, "OneDigest"),
    "events_not_restored": (0, "OneDigest"),
    "deadlines_of_items_not_restored": (1, "OneDigest"),
    "deadlines_left_out": (0, "OneDigest"),
    "judged_by_what_was_superseded_later": (0, ""),
    "parts_never_die": (0, ""),
    "trimmed_whether_compacted_or_not": (8, ""),
    "trimmed_beyond_the_prefix": (1, ""),
    "log_never_given_up": (23, "Liveness"),
    "dead_weight_is_never_dropped": (1, "DiskBounded"),
    "replaced_files_stay": (0, "OnlyWhatIsListed"),
    "files_that_were_read_stay": (1, "OnlyWhatIsListed"),
    "files_of_the_old_prefix_stay": (1, "OnlyWhatIsListed"),
    "files_that_are_read_are_removed": (1, ""),
    "installed_before_its_files_are_durable": (2, ""),
    "installed_before_its_names_are_durable": (2, ""),
    "prefix_not_known_to_be_committed": (0, ""),
    "followers_left_where_the_log_is_gone": (1, "Liveness"),
    "files_of_another_leader_taken_for_these": (1, ""),
    "install_durable_at_once": (1, ""),
    "gone_over_before_it_is_durable": (1, ""),
}
"""Bug -> the seed that is tried first, and what is to be said of it (empty: it shows in many ways).
"""

QUIET = {"clients": 0, "duration_s": 6.0}
COMPACTING = {"compacts": True, "clients": 3, "work_rate": 40, "duration_s": 12.0}
BUSY = {"clients": 6, "burst": 1, "prefer_leader": 0.0, "duration_s": 5.0}
BY_SCRIPT: dict[str, tuple[Script, dict[str, float], str]] = {
    "no_stickiness": (scripts.candidate_beside_a_lease, QUIET, "LeaseExcludesCommits"),
    "no_restart_silence": (scripts.restart_beside_a_lease, QUIET, "LeaseExcludesCommits"),
    "lease_from_receipt_time": (
        scripts.answers_much_later_than_questions,
        QUIET,
        "LeaseExcludesCommits",
    ),
    "read_index_without_a_round": (
        scripts.slow_leader_cut_off,
        {**BUSY, "work_rate": 120, "read_part": 0.5, "clock_spread": 0.5},
        "ReadsSeeTheirPast",
    ),
    "read_before_the_own_term_committed": (
        scripts.leader_whose_first_entry_takes_long,
        {**BUSY, "work_rate": 200, "read_part": 0.5, "session_timeout_s": 6.0, "latency_s": 0.01},
        "ReadsSeeTheirPast",
    ),
    "last_answer_before_the_first": (
        scripts.move_in_the_midst_of_commands,
        {**BUSY, "work_rate": 100, "read_part": 0.1, "session_timeout_s": 1.5, "latency_s": 0.01},
        "NeverMalformed",
    ),
    "compaction_goes_on_over_an_install": (
        scripts.left_behind_while_it_compacts,
        {**COMPACTING, "step_s": 0.1},
        "",
    ),
    "lost_chunks_not_asked_for_again": (
        scripts.left_behind_while_it_compacts,
        {**COMPACTING, "datagrams": True, "drop": 0.2, "block_bytes": 128},
        "Liveness",
    ),
}
"""Bug -> the schedule, the options that go with it, and what is to be said of it."""

pytestmark = pytest.mark.sim


def catch(bug: str, runs: Iterable[Options], said: str, script: Script | None = None) -> Options:
    """The first run that catches the bug, for the right reason."""
    tried = []
    for options in runs:
        tried.append(options.seed)
        with planted(bug), contextlib.suppress(Failure):
            try:
                simulate(options, script, tail=1)
            except Failure as failure:
                if said in str(failure):
                    return options
                raise
    raise AssertionError(f"{bug} is not caught by {said or 'anything'} in seeds {tried}")


@pytest.mark.parametrize("bug", BY_SEED)
def test_a_seed_catches(bug: str) -> None:
    seed, said = BY_SEED[bug]
    others = (other for other in range(SEARCH) if other != seed)
    run_clean(catch(bug, map(Options.draw, [seed, *others]), said))


@functools.cache
def run_clean(options: Options) -> None:
    """Several bugs are caught by one seed, which need be clean only once."""
    simulate(options)


@pytest.mark.parametrize("bug", BY_SCRIPT)
def test_a_script_catches(bug: str) -> None:
    script, fields, said = BY_SCRIPT[bug]
    runs = (Options(seed=seed, **fields) for seed in range(16))  # type: ignore[arg-type]
    caught = catch(bug, runs, said, script)
    simulate(caught, script)


def test_every_planted_bug_is_tried() -> None:
    assert planted_compaction.frozen_one_batch_late.__name__ in PLANTED
    assert set(PLANTED) <= {*BY_SEED, *BY_SCRIPT}
