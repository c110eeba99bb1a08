"""`folkmoot snapshot save`, `inspect` and `restore`: backups in one file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Group, Options
from folkmoot.cli.output import size
from folkmoot.cli.server import load_machine, member_config, member_options

if TYPE_CHECKING:
    from folkmoot.core.storage.backup import Backup, Description
    from folkmoot.core.survey import Survey

RESOURCE_COLUMNS = {
    "name": "name",
    "type": "type",
    "id": "id",
    "entries": "entries",
    "size": "size",
}


@click.group(cls=Group)
def snapshot() -> None:
    """Save, look at or restore a backup: all of a cluster's state in one file."""


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option(
    "--data",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Save from the data directory of a member that is stopped, not from the cluster.",
)
@click.pass_obj
def save(options: Options, file: Path, force: bool, directory: Path | None) -> int:
    """Save a backup to FILE, while the cluster serves.

    Everything that was acknowledged before the command began is in it. FILE is complete, verified
    and durable, or not there, and only its owner can read it.

    With --data it is what that member had compacted, up to an index that is told: the log behind it
    is not in it. That is for when no majority can be started any more.
    """
    import anyio

    from folkmoot.cli.snapshot_save import save_offline, save_online

    if directory is not None:
        saved = save_offline(options, file, directory, force=force)
    else:
        saved = anyio.run(lambda: save_online(options, file, force=force))
    data = saved.as_data()
    if options.out.is_terminal:
        text = (
            f"{file}: {size(data['size_bytes'])} up to index {data['index']}, "
            f"{data['resources']} resources, {data['entries']} entries"
        )
    else:
        text = f"{file}\t{data['index']}\t{data['size_bytes']}"
    options.out.show(data, text)
    if saved.log_entries and not options.json:
        click.echo(
            f"folkmoot: the log behind index {data['index']} ({saved.log_entries} entries, "
            "committed or not) is not in it",
            err=True,
        )
    return ExitCode.OK


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def inspect(options: Options, file: Path) -> int:
    """Verify all of the backup FILE, and show what is in it.

    Each hash and each record is checked; damage is told with its offset, and exits with 74. In a
    pipe: one line for each field, then one for each resource ("resource", name, type, id, entries,
    bytes).
    """
    from folkmoot.cli.progress import progress
    from folkmoot.cli.snapshot_restore import open_backup
    from folkmoot.core.survey import survey

    backup = open_backup(file)
    with progress(options, "verifying", backup.size_bytes) as bar:
        bar.finish(backup.verify())
    description = backup.description()
    with progress(options, "counting", description.entries, "entries") as bar:
        found = bar.finish(survey(backup.source()))
    _show(options, backup, description, found)
    return ExitCode.OK


def _show(options: Options, backup: Backup, description: Description, found: Survey) -> None:
    table = backup.table
    fields = {
        "index": table.point.index,
        "term": table.point.term,
        "log_time": table.point.log_time,
        "cluster_id": table.cluster_id.hex(),
        "epoch": table.epoch,
        "size_bytes": backup.size_bytes,
        "files": len(table.files),
        "sessions": found.sessions,
        "saved_at": description.made_at,
        "saved_by": description.made_by,
    }
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "type": one.type_name,
            "id": one.id,
            "entries": one.entries,
            "size_bytes": one.size_bytes,
        }
        for one in found.resources.values()
    ]
    out = options.out
    if out.as_json:
        out.show({**fields, "resources": rows})
        return
    for label, value in fields.items():
        out.field(label, value)
    if out.is_terminal:
        shown = [{**row, "size": size(row["size_bytes"])} for row in rows]
        out.line("")
        right = ["id", "entries", "size"]
        out.table(shown, RESOURCE_COLUMNS, right=right, empty="There is no resource in it.")
    else:
        for row in rows:
            out.event(row, ["resource", *row.values()])


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@member_options
@click.option(
    "--bump",
    type=click.IntRange(min=1, max=1 << 48),
    metavar="N",
    help="How far indexes, so tokens and versions, are moved up.  [default 1000000000]",
)
@click.pass_obj
def restore(
    options: Options,
    file: Path,
    node_id: int | None,
    cluster: str | None,
    data_dir: str | None,
    members: tuple[str, ...],
    assignments: tuple[str, ...],
    machines: tuple[str, ...],
    bump: int | None,
) -> int:
    """Make the data directory of one member of a NEW cluster from the backup FILE.

    \b
    folkmoot snapshot restore FILE --config node-1.toml

    Run it once for each member, everywhere with the same FILE, the same members and the same
    --bump, and then start the servers. It takes a member's options as `folkmoot server` does.

    The new cluster has another id, so members of the old one are refused. All sessions have ended,
    so locks are free. Tokens and versions are above all that the old cluster has handed out, as
    long as it took fewer than --bump entries after the backup was made. To restore the same backup
    again, when a cluster restored from it has served already, take twice the bump.
    """
    from folkmoot.cli.snapshot_restore import restore as restore_member
    from folkmoot.core.new_cluster import BUMP

    config = member_config(options, node_id, cluster, data_dir, members, assignments)
    kinds = [load_machine(text) for text in machines]
    made = restore_member(options, file, config, kinds, bump or BUMP)
    data = made.as_data()
    text = "\t".join(str(data[key]) for key in ("directory", "cluster_id", "epoch", "index"))
    if options.out.is_terminal:
        text = (
            f"{data['directory']}: node {data['node_id']} of cluster {data['cluster_id']}, "
            f"epoch {data['epoch']}, {data['resources']} resources; "
            f"{data['sessions_ended']} sessions will have ended"
        )
    options.out.show(data, text)
    return ExitCode.OK
