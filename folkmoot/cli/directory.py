"""`ls` and `inspect`: which resources there are, and all about one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster, ResourceInfo

BUILT_IN = ("map", "lock", "election", "counter", "topic")
"""Types with a proxy, made by the method of that name, whose `describe` knows the meaning."""


@click.command(cls=Command)
@click.argument("prefix", default="")
@click.pass_obj
def ls(options: Options, prefix: str) -> int:
    """List the resources whose names begin with PREFIX: name, type, id, sessions."""
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        found = await cluster.resources(prefix=prefix, timeout=options.timeout)
        rows = [
            {"name": one.name, "type": one.type_name, "id": one.id, "sessions": one.sessions}
            for one in found
        ]
        columns = {"name": "name", "type": "type", "id": "id", "sessions": "open in sessions"}
        options.out.table(rows, columns, right=["id", "sessions"], empty="There is nothing yet.")
        return ExitCode.OK

    return with_cluster(options, use)


@click.command(cls=Command)
@click.argument("name")
@click.pass_obj
def inspect(options: Options, name: str) -> int:
    """Show all about the resource NAME: holder or value, who waits, who watches.

    Exits with 1 when there is none. In a pipe: one line for each field, its name and its value.
    """
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        found = await cluster.resources(prefix=name, timeout=options.timeout)
        info = next((one for one in found if one.name == name), None)
        if info is None:
            click.echo(f"folkmoot: there is no resource {name!r}", err=True)
            return ExitCode.REFUSED
        data = {
            "name": info.name,
            "type": info.type_name,
            "id": info.id,
            "sessions": info.sessions,
            "config": dict(info.config),
            "description": await describe(cluster, info, options.timeout),
        }
        if options.json:
            options.out.show(data)
        else:
            for label, value in flat(data):
                options.out.field(label, value)
        return ExitCode.OK

    return with_cluster(options, use)


async def describe(cluster: Cluster, info: ResourceInfo, timeout_s: float) -> Any:
    """What the resource says of itself; None for a user's own type that says nothing."""
    import attrs

    from folkmoot.core.errors import BadCommand, FolkmootError

    if info.type_name in BUILT_IN:
        proxy = getattr(cluster, info.type_name)(info.name)
        with contextlib.suppress(FolkmootError):  # an election's value may be of another codec
            return attrs.asdict(await proxy.describe())
    resource = cluster.client.resource(info.name, info.type_name, info.type_version, info.config)
    try:
        answer, _ = await resource.query("describe", timeout=timeout_s)
    except BadCommand:
        return None
    return answer


def flat(data: Any, label: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested data, each with the path to it: "description.holder.0"."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from flat(value, f"{label}.{key}" if label else str(key))
    elif isinstance(data, list) and data:
        for position, value in enumerate(data):
            yield from flat(value, f"{label}.{position}")
    else:
        yield label, data
