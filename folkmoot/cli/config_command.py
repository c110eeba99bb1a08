"""`config show` and `config validate`: what a server or a client would be started with, and why."""

from __future__ import annotations

from typing import Any

import click

from folkmoot.cli.config_file import DEFAULT, SETTINGS, Given, Loaded, from_assignments
from folkmoot.cli.options import Group, Options


@click.group(cls=Group)
def config() -> None:
    """Show or check the configuration."""


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
@click.pass_obj
def show(options: Options, origin: bool, assignments: tuple[str, ...]) -> None:
    """Print the settings in effect, as a TOML file that could be used itself.

    They come from the file of --config, then the environment (FOLKMOOT_RAFT_HEARTBEAT_S and its
    like), then flags; the last one that gives a value wins.
    """
    loaded = options.load(from_assignments(assignments, "--set"))
    if options.json:
        options.out.show(
            {
                path: {"value": _plain(item), "origin": item.origin}
                for path, item in loaded.given.items()
            }
        )
    else:
        options.out.line(as_toml(loaded, origin=origin))


@config.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_obj
def validate(options: Options, file: str) -> None:
    """Check a configuration file (with the environment as it is) and say what it is for."""
    options.config = file
    loaded = options.load()
    node = loaded.node
    members = len(node.members) or 1
    text = f"{file}: node {node.node_id} of {members} in cluster {node.cluster!r}: good"
    options.out.show(
        {"file": file, "valid": True, "node_id": node.node_id, "members": members}, text
    )


def as_toml(loaded: Loaded, *, origin: bool) -> str:
    """The settings as TOML; with `origin`, each followed by a comment that says where it came
    from."""
    lines: list[str] = []
    tables: list[str] = []
    table = ""
    for path in sorted(SETTINGS, key=lambda path: path.rpartition(".")[0]):
        item = loaded.given[path]
        prefix, _, name = path.rpartition(".")
        if prefix != table:
            table = prefix
            lines += ["", f"[{table}]"]
        remark = f"  # {item.origin}" if origin else ""
        if path == "members":
            tables += _members(item, remark)
        elif item.value is None:
            lines.append(f"# {name} is not set{remark}")
        else:
            lines.append(f"{name} = {_literal(item.value)}{remark}")
    return "\n".join(lines + tables)


def _members(item: Given, remark: str) -> list[str]:
    if item.origin == DEFAULT:
        return ["", f"# no members: a cluster of this one node{remark}"]
    lines = []
    for member in _plain(item):
        lines += ["", f"[[members]]{remark}"]
        lines += [f"{name} = {_literal(value)}" for name, value in member.items()]
    return lines


def _plain(item: Given) -> Any:
    import attrs

    if isinstance(item.value, tuple):
        return [attrs.asdict(member) for member in item.value]
    return item.value


def _literal(value: Any) -> str:
    import json

    # A JSON string is a TOML basic string, except that TOML also wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
