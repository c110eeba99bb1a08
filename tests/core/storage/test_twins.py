"""Every planted bug of compaction and of transfers is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from folkmoot.core.errors import FolkmootError
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


TRANSFERS: dict[str, Check] = {
    "called_whole_before_it_is_durable": interrupted,
    "what_is_here_believed_unread": interrupted,
}
"""All others are bugs of compaction."""


@pytest.mark.parametrize("check", [anything, interrupted])
def test_without_a_twin_nothing_is_caught(check: Check) -> None:
    check()


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_is_caught(name: str) -> None:
    with TWINS[name](), pytest.raises((AssertionError, FolkmootError)):
        TRANSFERS.get(name, anything)()
