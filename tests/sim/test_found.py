"""What the simulator found in the product and no smaller test can hold: one script each.

What a unit could hold is beside the unit: tests/core/test_intake.py (a loop that spun without a
leader, answers ahead of their turn), test_reading.py and test_session_client.py (reads behind
refused commands, events ahead of an answer), raft/test_rules_replication.py (the window, and what
was read back too late), storage/test_contract.py (a hole in what was read back from two segments),
test_prefix_transfer.py (chunks that were not asked for again) and test_prefix_leaders.py (transfers
of no use that went on for ever).
"""

from __future__ import annotations

from unittest import mock

import pytest

from folkmoot.core.errors import Overloaded
from folkmoot.core.raft import Raft
from tests.sim import scripts
from tests.sim.options import Options
from tests.sim.simulation import simulate

pytestmark = pytest.mark.sim

_read_index = Raft.read_index


def test_more_rounds_of_reads_than_the_limit_do_not_stop_a_server() -> None:
    """Reproduces a server that ended with Overloaded, which nobody had asked it to raise."""
    refused: list[int] = []

    def read_index(self: Raft, token: int, now: float) -> None:
        try:
            _read_index(self, token, now)
        except Overloaded:
            refused.append(token)
            raise

    options = Options(
        seed=1, clients=4, small_limits=True, duration_s=3.0, read_part=1.0, work_rate=400, burst=1
    )
    with mock.patch.object(Raft, "read_index", read_index):
        simulate(options, scripts.reads_beside_a_silent_majority)
    assert refused, "the limit was never reached"


@pytest.mark.parametrize("seed", [0, 5, 14])
def test_a_follower_left_behind_while_it_compacts_goes_over(seed: int) -> None:
    """Reproduces a loop that spun until the own compaction had stopped."""
    options = Options(
        seed=seed, clients=3, duration_s=12.0, work_rate=40, compacts=True, step_s=0.1
    )
    assert simulate(options, scripts.left_behind_while_it_compacts).counts["prefixes installed"]
