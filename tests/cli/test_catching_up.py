"""A member that gets another's prefix, as `status` and a server on a terminal show it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from folkmoot.cli.catching_up import prefix_of, share_of, words
from folkmoot.cli.members import ClusterView, merge
from folkmoot.cli.progress import Bars
from folkmoot.cli.status import COLUMNS, render, rows
from folkmoot.core.progress import Progress
from tests.cli.test_members import MEMBERS, answer
from tests.cli.test_progress import Terminal

OWN = {
    "index": 170,
    "received_bytes": 43 << 20,
    "size_bytes": 100 << 20,
    "phase": "receiving",
    "restored_entries": 0,
    "live_entries": None,
}
SENT = {"index": 170, "received_bytes": 42 << 20, "size_bytes": 100 << 20}


@pytest.mark.parametrize(
    ("changed", "share", "said"),
    [
        ({}, 0.43, "prefix 43% of 100 MiB"),
        ({"received_bytes": 200 << 20}, 1.0, "prefix 100% of 100 MiB"),
        ({"phase": "restoring"}, 0.0, "restoring 0 entries"),
        (
            {"phase": "restoring", "restored_entries": 1000, "live_entries": 4000},
            0.25,
            "restoring 1,000 of 4,000 entries",
        ),
        ({"phase": "restoring", "live_entries": 0}, 0.0, "restoring 0 of 0 entries"),
        ({"phase": "stopping"}, 1.0, "installing"),
        ({"phase": "writing"}, 1.0, "installing"),
    ],
)
def test_each_phase_has_its_words_and_its_share(
    changed: dict[str, Any], share: float, said: str
) -> None:
    assert share_of(OWN | changed) == pytest.approx(share)
    assert words(OWN | changed) == said


def test_the_member_speaks_for_itself_and_the_leader_for_one_that_does_not() -> None:
    assert prefix_of(OWN, SENT, is_up=True) == OWN
    assert words(prefix_of(None, SENT, is_up=False)) == "prefix 42% of 100 MiB"
    assert words(prefix_of(None, SENT, is_up=True)) == "prefix 42% of 100 MiB"
    done = SENT | {"received_bytes": 100 << 20}
    assert prefix_of(None, done, is_up=True) is None, "it has it, and serves from it"
    assert prefix_of(None, None, is_up=True) is None
    assert words(None) == ""


def view(**own: Any) -> ClusterView:
    members: list[dict[str, Any]] = [{**member, "prefix": None} for member in MEMBERS]
    members[2]["prefix"] = SENT
    leading = answer(1, "leader", 2) | {"members": members}
    return merge(MEMBERS, [("c:1", leading), ("c:3", answer(3, "follower", 2) | own)])


def test_status_has_it_as_data_in_words_and_as_a_bar() -> None:
    found = view(receiving=OWN)
    row = found.as_data()["members"][2]
    assert row["prefix"] == OWN
    assert row["catching_up"] == "prefix 43% of 100 MiB"
    assert found.as_data()["members"][0]["prefix"] is None
    assert list(COLUMNS)[-1] == "catching_up", "columns are only ever added to"
    assert [one["catching_up"] for one in rows(found)] == [None, None, "prefix 43% of 100 MiB"]
    text = drawn(found)
    assert "node 3 ━" in text
    assert text.rstrip().endswith("prefix 43% of 100 MiB")
    assert "━" not in drawn(merge(MEMBERS, [("c:1", answer(1, "leader", 2))]))


def drawn(found: ClusterView) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(render(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_server_on_a_terminal_draws_one_bar_after_another() -> None:
    terminal = Terminal()
    bars = Bars(terminal)
    bars.show(None)
    bars.show(Progress("restoring the state", 0, None, "entries"))
    assert terminal.getvalue() == "", "nobody knows of how much"
    bars.show(Progress("restoring the state", 10, 50, "entries"))
    bars.show(Progress("restoring the state", 20, 50, "entries"))
    bars.show(None)
    assert "restoring the state" in terminal.getvalue()
    bars.show(Progress("receiving the prefix up to 170", 1 << 20, 4 << 20, "bytes"))
    bars.close()
    assert "receiving the prefix up to 170" in terminal.getvalue()
    assert "4.0 MiB" in terminal.getvalue()
