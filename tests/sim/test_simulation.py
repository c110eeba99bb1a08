"""Seeds of the simulator in the ordinary test run, and that a seed always gives the same trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.sim.options import Options
from tests.sim.scheduler import Scheduler, Timer
from tests.sim.simulation import simulate
from tests.sim.trace import SOMETIMES

SEEDS = 400
CHUNK = 10

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    """Much goes wrong, nothing that must not: see tests/sim/checks."""
    counts: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        counts.update(simulate(Options.draw(seed)).counts)
    assert counts["elections"] > CHUNK, "quiet runs prove nothing"
    assert counts["entries committed"] > 50 * CHUNK


@pytest.mark.parametrize("seed", [3, 17, 66, 141])
def test_a_seed_gives_the_same_trace_again(seed: int) -> None:
    first, second = simulate(Options.draw(seed)), simulate(Options.draw(seed))
    assert first.digest == second.digest
    assert first == second


def test_a_seed_gives_the_same_trace_whatever_strings_hash_to() -> None:
    program = (
        "from tests.sim.options import Options; from tests.sim.simulation import simulate\n"
        "for seed in (5, 12): print(simulate(Options.draw(seed)).digest)"
    )
    digests = []
    for hash_seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(done.stdout)
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 2 * 65


def test_swarms_differ() -> None:
    """Each fault is absent from many runs and present in many."""
    drawn = [Options.draw(seed) for seed in range(200)]
    names = ("crash_rate", "partition_rate", "pause_rate", "drop", "tail", "slow_disk_rate")
    for name in (*names, "compacts", "want_rate", "away_rate"):
        absent = sum(getattr(options, name) == 0 for options in drawn)
        assert 40 < absent < 180, (name, absent)
    assert {options.nodes for options in drawn} == {3, 5}
    assert len({options.describe() for options in drawn}) == 200


def test_a_timer_can_be_moved_both_ways() -> None:
    scheduler = Scheduler()
    fired: list[float] = []
    timer = Timer(scheduler, lambda: fired.append(scheduler.now))
    timer.set(5.0)
    timer.set(2.0)
    scheduler.run(3.0)
    assert fired == [2.0]
    timer.set(4.0)
    timer.set(6.0)
    scheduler.run(10.0)
    assert fired == [2.0, 6.0]


def test_what_is_counted_is_named_once() -> None:
    assert len(set(SOMETIMES)) == len(SOMETIMES)
