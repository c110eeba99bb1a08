"""Disks that run low while everything else goes wrong, too: all that holds, holds then as well.

Whether a lock is given back, whether a session lives and what became of a command is not told
differently for it; and once there is room again, the cluster takes commands as before.
"""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest

from folkmoot.core.errors import StorageFull
from tests.sim import scripts
from tests.sim.application import Application, Ask, Call
from tests.sim.options import Options
from tests.sim.simulation import simulate

pytestmark = pytest.mark.sim

FREEING = {"release", "withdraw", "delete", "pop", "clear", "unsubscribe"}

_on_answer = Application.on_answer


def test_commands_are_refused_while_the_leaders_disk_is_low_and_nothing_else_is() -> None:
    refused: Counter[str] = Counter()
    done: Counter[str] = Counter()

    def on_answer(self: Application, operation: Call | Ask) -> None:
        found = refused if isinstance(operation.error, StorageFull) else done
        found[operation.name] += 1
        _on_answer(self, operation)

    with mock.patch.object(Application, "on_answer", on_answer):
        for seed in range(30):
            simulate(Options.draw(seed), scripts.disks_that_run_low)
    assert refused.total() > 500, refused
    assert not refused.keys() & FREEING, refused
    assert done.keys() >= {"release", "withdraw", "delete", "unsubscribe"}, done
