"""How a member that gets another's prefix is shown: in words, and as a bar.

A member that was away for long is sent the state first, and then the log that goes on from it (see
`docs/internals`). This is its progress, as it says itself, or the leader of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from folkmoot.cli.output import size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from folkmoot.cli.members import MemberView

BAR_WIDTH = 40


def prefix_of(
    receiving: Mapping[str, Any] | None, sent: Mapping[str, Any] | None, *, is_up: bool
) -> dict[str, Any] | None:
    """Put together what the member says and what the leader says of it; None: it gets none."""
    if receiving:
        return dict(receiving)
    if not sent or (is_up and sent["received_bytes"] >= sent["size_bytes"]):
        return None
    return {"phase": "receiving", "restored_entries": 0, "live_entries": None, **sent}


def share_of(prefix: Mapping[str, Any]) -> float:
    """How much of the present phase is done, from 0 to 1."""
    if prefix["phase"] == "receiving":
        done, total = prefix["received_bytes"], prefix["size_bytes"]
    elif prefix["phase"] == "restoring":
        done, total = prefix["restored_entries"], prefix["live_entries"] or 0
    else:
        return 1.0
    return min(done / total, 1.0) if total else 0.0


def words(prefix: Mapping[str, Any] | None) -> str:
    """Say it in a few words; empty for a member that gets no prefix."""
    if prefix is None:
        return ""
    if prefix["phase"] == "receiving":
        return f"prefix {share_of(prefix):.0%} of {size(prefix['size_bytes'])}"
    if prefix["phase"] == "restoring":
        total = prefix["live_entries"]
        of = "" if total is None else f" of {total:,}"
        return f"restoring {prefix['restored_entries']:,}{of} entries"
    return "installing"


def bars(members: Sequence[MemberView]) -> list[RenderableType]:
    """A line with a bar for each member that gets a prefix."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for member in members:
        if member.prefix is not None:
            bar = ProgressBar(1.0, share_of(member.prefix), width=BAR_WIDTH)
            grid.add_row(f"node {member.node_id}", bar, words(member.prefix))
    return [grid] if grid.row_count else []
