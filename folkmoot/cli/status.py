"""`folkmoot status`: how each member is, once or again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.catching_up import bars
from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options
from folkmoot.cli.output import duration, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from folkmoot.cli.members import ClusterView

ASK_TIMEOUT_S = 1.0
"""A member that has not answered by then is shown as down."""

COLUMNS = {
    "node": "node",
    "role": "role",
    "client_address": "clients at",
    "term": "term",
    "commit_index": "commit",
    "applied_index": "applied",
    "lag": "lag",
    "clients": "clients",
    "uptime": "up for",
    "free": "disk free",
    "trouble": "trouble",
    "catching_up": "catching up",
}
_RIGHT = ("node", "term", "commit_index", "applied_index", "lag", "clients", "uptime", "free")
_COLOUR = {
    "leader": "bold green",
    "down": "bold red",
    "candidate": "yellow",
    "pre_candidate": "yellow",
}
_HEALTH = {
    "healthy": "green",
    "degraded": "yellow",
    "disk low": "red",
    "no leader": "red",
    "down": "red",
}


@click.command(cls=Command)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    metavar="SECONDS",
    help="How often, with --watch.  [default 1]",
)
@click.option("--sessions", is_flag=True, help="List the open sessions instead.")
@click.pass_obj
def status(options: Options, watch: bool, interval: float, sessions: bool) -> int:
    """Show the members: role, term, commit, lag and load.

    Each member is asked for itself, so this works without a leader too. The exit status is 0 while
    the cluster serves (even with a member down), 69 when it has no leader or nobody answers.

    A member that was away for so long that it needs the state first is shown with a bar.

    In a pipe: node, role, address, term, commit index, applied index, lag, clients, uptime, free
    disk space, trouble, what it is catching up with.
    """
    import anyio

    if sessions:
        return anyio.run(show_sessions, options)
    return anyio.run(watch_members if watch else show_members, options, interval)


async def show_members(options: Options, interval_s: float = 0.0) -> int:
    """Print the members once."""
    view = await _look(options)
    out = options.out
    if out.as_json:
        out.show(view.as_data())
    elif out.is_terminal:
        out.console().print(render(view))
    else:
        out.table(rows(view), COLUMNS)
    return ExitCode.OK if view.leader else ExitCode.UNAVAILABLE


async def watch_members(options: Options, interval_s: float) -> int:
    """Print the members again and again; on a terminal in place."""
    import anyio

    out = options.out
    if not out.is_terminal:
        while True:
            view = await _look(options)
            if out.as_json:
                out.event(view.as_data(), ())
            else:
                out.table(rows(view), COLUMNS)
            await anyio.sleep(interval_s)

    from rich.live import Live

    rate = Rate()
    with Live(console=out.console(), auto_refresh=False, transient=False) as live:
        while True:
            view = await _look(options)
            live.update(render(view, rate.of(view, time.monotonic())), refresh=True)
            await anyio.sleep(interval_s)


async def show_sessions(options: Options) -> int:
    """Print the sessions that the leader (or whoever answers) knows."""
    from folkmoot.cli.members import ask

    view = await _look(options)
    member = view.leader or next(member for member in view.members if member.status)
    found: list[dict[str, Any]] = await ask(
        member.client_address, "sessions", 1000, timeout_s=options.timeout
    )
    columns = {
        "session_id": "session",
        "name": "client",
        "timeout_ms": "timeout ms",
        "silent_ms": "silent ms",
        "pending_events": "events waiting",
        "open_resources": "resources open",
    }
    options.out.table(found, columns, right=set(columns) - {"name"}, empty="No session is open.")
    return ExitCode.OK


async def _look(options: Options) -> ClusterView:
    from folkmoot.cli.members import look
    from folkmoot.cluster import addresses_of

    return await look(addresses_of(options.url), timeout_s=min(options.timeout, ASK_TIMEOUT_S))


class Rate:
    """Commits per second, between one look and the next."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def of(self, view: ClusterView, now: float) -> float | None:
        """The rate since the last call; None the first time, and where nobody knows."""
        commit = view.best.get("commit_index")
        before, self._before = self._before, None if commit is None else (now, int(commit))
        if before is None or self._before is None or now <= before[0]:
            return None
        return max(0.0, (self._before[1] - before[1]) / (now - before[0]))


def rows(view: ClusterView) -> list[dict[str, Any]]:
    """The members as rows of COLUMNS."""
    return [
        {
            **row,
            "node": row["node_id"],
            "uptime": duration(row["uptime_s"]),
            "free": size(row["free_bytes"]),
        }
        for row in (member.row() for member in view.members)
    ]


def render(
    view: ClusterView, commits_per_s: float | None = None, *, with_trouble: bool = True
) -> RenderableType:
    """The members for a terminal: one line on the whole, then a table."""
    from rich.console import Group
    from rich.text import Text

    best = view.best
    parts: list[tuple[str, str]] = [
        (f"{best.get('cluster', '?')}", "bold"),
        (view.health, f"bold {_HEALTH[view.health]}"),
        (f"{view.up} of {len(view.members)} up", ""),
    ]
    if view.leader is not None:
        parts.append((f"node {view.leader.node_id} leads term {best['term']}", ""))
    if best.get("epoch"):
        parts.append((f"epoch {best['epoch']}", ""))
    parts += [(f"{best[key]} {key}", "") for key in ("sessions", "resources") if best]
    if commits_per_s is not None:
        parts.append((f"{commits_per_s:,.0f} commits/s", ""))
    line = Text(" · ").join(Text(text, style) for text, style in parts)
    catching_up = bars(view.members)
    space = [Text()] if catching_up else []
    return Group(line, Text(), _table(view, with_trouble), *space, *catching_up)


def _table(view: ClusterView, with_trouble: bool) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = rows(view)
    troubled = with_trouble and any(row["trouble"] for row in found)
    left_out = {"catching_up"} if troubled else {"catching_up", "trouble"}  # that has bars
    columns = {key: title for key, title in COLUMNS.items() if key not in left_out}
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for key, title in columns.items():
        table.add_column(title, justify="right" if key in _RIGHT else "left")
    for row in found:
        style = _COLOUR.get(row["role"], "")
        cells = [
            Text(_cell(key, row[key]), style if key in ("node", "role", "trouble") else "")
            for key in columns
        ]
        table.add_row(*cells)
    return table


def _cell(key: str, value: Any) -> str:
    if value in (None, ""):
        return "" if key == "trouble" else "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
