"""How the demo looks: redrawn in place on a terminal, lines in a pipe, JSON on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from folkmoot.cli.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from folkmoot.cli.demo_scene import Happening, Scene
    from folkmoot.cli.processes import LocalCluster

_LINES_ABOVE = 19
"""What stands above the happenings on a terminal: they get the rest."""
_HAPPENINGS_MIN = 3

NEXT = (
    ("folkmoot up", "a cluster of your own on this machine"),
    ("folkmoot status --watch", "what you just saw, of any cluster"),
    ("folkmoot lock nightly -- CMD", "run a command under a lock"),
)


def plain_line(happening: Happening) -> str:
    """One happening in a pipe."""
    return f"{happening.at_s:6.2f} s  {happening.text}"


def tell_lines(scene: Scene, out: Output) -> None:
    """Let each happening be a line, from now on."""

    def tell(happening: Happening) -> None:
        if out.as_json:
            out.event({"at_s": round(happening.at_s, 3), "event": happening.text}, ())
        else:
            out.line(plain_line(happening))

    scene.tell = tell


def progress_line(scene: Scene) -> str:
    """The counts in a pipe, every now and then."""
    counts = ", ".join(f"{tally.title} {tally.done:,}" for tally in scene.tallies.values())
    return f"{scene.now_s:6.2f} s  {counts}; {scene.rate():,.0f} writes/s"


def live(scene: Scene, height: int | None = None) -> RenderableType:
    """The whole, for a terminal of so many lines; None: with all happenings."""
    from rich.console import Group
    from rich.text import Text

    from folkmoot.cli.status import render

    parts: list[RenderableType] = [
        Text.assemble(
            ("folkmoot demo", "bold"), "  ", f"{scene.now_s:4.1f} s", "  ", (scene.phase, "cyan")
        ),
        Text(),
    ]
    if scene.view is not None:
        parts.append(render(scene.view, with_trouble=False))
    if scene.tallies:
        parts += [Text(), _tallies(scene), Text()]
    room = 0 if height is None else max(_HAPPENINGS_MIN, height - _LINES_ABOVE)
    parts += [
        Text.assemble((f"{happening.at_s:6.2f} s  ", "dim"), (happening.text, happening.style))
        for happening in scene.happenings[-room:]
    ]
    return Group(*parts)


def _tallies(scene: Scene) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("clients at work", min_width=16)
    table.add_column("acknowledged", justify="right")
    table.add_column(f"{scene.done:,} in all, {scene.rate():,.0f} a second", min_width=44)
    for tally in scene.tallies.values():
        mark = {None: "", True: "✓ ", False: "✗ "}[tally.good]
        style = {None: "", True: "green", False: "bold red"}[tally.good]
        text = mark + (tally.verdict or tally.detail)
        table.add_row(tally.title, f"{tally.done:,}", Text(text, style))
    return table


def summary(scene: Scene, out: Output, cluster: LocalCluster) -> None:
    """Say how it went and what to do next."""
    if out.as_json:
        out.event({"event": "summary", **scene.as_data()}, ())
        return
    recovery_s = scene.recovery_s
    took = (
        "no write was acknowledged again" if recovery_s is None else f"{recovery_s * 1000:,.0f} ms"
    )
    lines = [""]
    if scene.faults:
        lines += ["FAILED:", *(f"  {fault}" for fault in scene.faults), ""]
        lines += [f"The servers' logs and data are kept in {cluster.directory}"]
    else:
        lines += ["Nothing was lost."]
    lines += [
        "",
        f"  {scene.done:,} operations acknowledged in {scene.ended_at_s:.0f} s by "
        f"{len(cluster.servers)} servers that fsync every write",
        f"  recovery after SIGKILL of the leader (node {scene.killed_node}): {took}",
        "",
    ]
    shown_above = out.is_terminal
    lines += [
        f"  {'ok  ' if tally.good else 'BAD '} {tally.title:<10} {tally.verdict}"
        for tally in scene.tallies.values()
        if not shown_above
    ]
    lines += ["Next:"] if shown_above else ["", "Next:"]
    lines += [f"  {command:<30} {text}" for command, text in NEXT]
    for line in lines:
        out.line(line)
