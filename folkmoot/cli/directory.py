"""`ls` and `inspect`: which resources there are, and all about one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster


@click.command(cls=Command)
@click.argument("prefix", default="")
@click.pass_obj
def ls(options: Options, prefix: str) -> int:
    """List the resources whose names begin with PREFIX: name, type, id."""
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        found = await cluster.resources(prefix=prefix)
        rows = [{"name": one.name, "type": one.type_name, "id": one.id} for one in found]
        columns = {"name": "name", "type": "type", "id": "id"}
        options.out.table(rows, columns, right=["id"], empty="There is nothing yet.")
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
        raise NotImplementedError

    return with_cluster(options, use)


def fields_of(description: Any) -> dict[str, Any]:
    """A description as plain data."""
    import attrs

    if attrs.has(type(description)):
        return attrs.asdict(description)
    return dict(description)
