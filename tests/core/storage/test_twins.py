"""Every planted bug of compaction and of transfers is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from folkmoot.core.errors import FolkmootError
from tests.core.storage import test_compaction
from tests.core.storage import test_compaction_crashes as crashes
from tests.core.storage.history import small_steps
from tests.core.storage.test_compaction_machine import play
from tests.core.storage.twins_compaction import TWINS

Check = Callable[[], object]


def anything() -> None:
    """Random lifetimes, with restarts and power cuts."""
    for seed in range(20):
        play(seed)


def interrupted() -> None:
    """Transfers that are cut short."""
    with small_steps():
        crashes.test_the_end_at_every_operation_of_a_transfer("fresh", "half lost")
        crashes.test_what_a_failed_sync_left_in_memory_is_written_again()


CAUGHT_BY: dict[str, Check] = {
    "dead_items_of_living_entries_not_counted": (
        test_compaction.test_an_entry_of_which_little_lives_is_written_anew
    ),
    "called_whole_before_it_is_durable": interrupted,
    "what_is_here_believed_unread": interrupted,
}
"""The others are caught by doing anything at all."""


@pytest.mark.parametrize("check", [anything, interrupted])
def test_without_a_twin_nothing_is_caught(check: Check) -> None:
    check()


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_is_caught(name: str) -> None:
    with TWINS[name](), pytest.raises((AssertionError, FolkmootError)):
        CAUGHT_BY.get(name, anything)()
