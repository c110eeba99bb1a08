"""`folkmoot log inspect` and `log verify`: a member's data directory, offline and read-only.

Neither writes, nor takes the directory's LOCK, so both may look at the directory of a running
server too; that is told then.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Group, Options
from folkmoot.cli.output import size

if TYPE_CHECKING:
    from folkmoot.core.storage.examination import Examination, ExaminedFile, Finding
    from folkmoot.core.storage.files import DirectoryFiles

SEGMENT_COLUMNS = {
    "segment": "segment",
    "first_index": "first",
    "last_index": "last",
    "batches": "batches",
    "entries": "entries",
    "size": "size",
    "sealed": "sealed",
}
FILE_COLUMNS = {
    "file": "prefix file",
    "first_index": "first",
    "last_index": "last",
    "records": "records",
    "entries": "entries",
    "live": "live",
    "dead_share": "dead",
    "size": "size",
}
FINDING_COLUMNS = {"file": "file", "offset": "offset", "kind": "kind", "what": "what"}
_RIGHT = {*SEGMENT_COLUMNS, *FILE_COLUMNS, "offset"} - {"segment", "file", "sealed"}


@click.group(cls=Group)
def log() -> None:
    """Look at or verify a member's data directory, without changing it."""


@log.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--entries", is_flag=True, help="List each batch and what is in it instead.")
@click.option("--from", "first", type=int, default=1, metavar="INDEX", help="With --entries.")
@click.option("--values", is_flag=True, help="With --entries: show the arguments, too.")
@click.pass_obj
def inspect(options: Options, directory: Path, entries: bool, first: int, values: bool) -> int:
    """Show what is in the data directory DIRECTORY: log, compacted prefix, term and vote.

    With --entries, each batch of the log and what it holds. All of it is read and verified on the
    way; damage is listed, and exits with 74.

    In a pipe: one line for each field; for each segment ("segment", name, first, last, batches,
    entries, bytes, sealed); for each prefix file ("prefix", name, first, last, records, entries,
    live, dead share, bytes); and for each finding ("found", file, offset, kind, what).
    """
    found, files = _examined(options, directory)
    if entries:
        from folkmoot.cli.log_entries import show_entries

        show_entries(options, files, found, first, values=values)
        _tell_findings(options, found.findings)
    else:
        _show(options, directory, found)
    return _exit_code(found)


@log.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def verify(options: Options, directory: Path) -> int:
    """Verify every checksum in the data directory DIRECTORY.

    Hard state, MANIFEST, segments and the chain through them, prefix files and what lives in them.
    All that is wrong is listed, with file and offset. Exits with 0 if nothing is damaged, else with
    74. What the next start sets right by itself, such as a torn last write that was never
    acknowledged, is listed as "repairable" and is no damage.
    """
    found, _ = _examined(options, directory)
    rows = _finding_rows(found)
    out = options.out
    if out.as_json:
        out.show({**_summary(directory, found), "findings": rows})
    else:
        out.table(rows, FINDING_COLUMNS, right=["offset"], empty=f"{directory}: all of it verifies")
    return _exit_code(found)


def _exit_code(found: Examination) -> int:
    return ExitCode.STORAGE if found.is_damaged else ExitCode.OK


def _examined(options: Options, directory: Path) -> tuple[Examination, DirectoryFiles]:
    """Read all of it. Raises UsageError for what is no data directory."""
    from folkmoot.cli.progress import progress
    from folkmoot.core.errors import UsageError
    from folkmoot.core.storage.examination import examine, size_bytes_of
    from folkmoot.core.storage.files import DirectoryFiles

    if not any((directory / name).exists() for name in ("MANIFEST", "hard_state", "log")):
        raise UsageError(f"{directory} is no data directory of a member")
    holder = holder_of(directory)
    if holder:
        click.echo(
            f"folkmoot: in use by {holder}: what is written just now may look torn", err=True
        )
    files = DirectoryFiles(directory)
    with progress(options, "verifying", size_bytes_of(files)) as bar:
        for found in examine(files):
            bar.update(found.read_bytes)
    return found, files


def holder_of(directory: Path) -> str:
    """Say which process has the directory, if one on this machine seems to; LOCK is not touched."""
    try:
        text = (directory / "LOCK").read_text(errors="replace").strip()
        _, pid, _, host, *_ = text.split()
        is_here = host == socket.gethostname() and is_running(int(pid))
    except (OSError, ValueError):
        return ""
    return text if is_here else ""


def is_running(pid: int) -> bool:
    """Say whether there is such a process, of whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- what is shown ---------------------------------------------------------------------------------


def _show(options: Options, directory: Path, found: Examination) -> None:
    out = options.out
    segments, files = _segment_rows(found), _file_rows(found)
    summary = _summary(directory, found)
    if out.as_json:
        findings = _finding_rows(found)
        out.show({**summary, "segments": segments, "prefix": files, "findings": findings})
        return
    for label, value in summary.items():
        out.field(label, value)
    if out.is_terminal:
        out.line("")
        out.table(segments, SEGMENT_COLUMNS, right=_RIGHT, empty="There is no log.")
        if files:
            out.line("")
            out.table(files, FILE_COLUMNS, right=_RIGHT)
        if found.findings:
            out.line("")
            out.table(_finding_rows(found), FINDING_COLUMNS, right=_RIGHT)
        return
    for label, rows in (("segment", segments), ("prefix", files), ("found", _finding_rows(found))):
        for row in rows:
            out.event(row, [label, *(value for key, value in row.items() if key != "size")])


def _summary(directory: Path, found: Examination) -> dict[str, Any]:
    known, state = found.manifest, found.hard_state
    trimmable = found.trimmable
    return {
        "directory": str(directory),
        "cluster_id": known.cluster_id.hex() if known else None,
        "node_id": known.node_id if known else None,
        "epoch": known.epoch if known else None,
        "term": state.term if state else None,
        "voted_for": state.voted_for if state else None,
        "compaction_index": known.compaction.index if known else None,
        "log_first_index": known.start.index + 1 if known else None,
        "log_last_index": max(
            (one.segment.last_index for one in found.segments if one.segment), default=None
        ),
        "log_bytes": sum(one.size_bytes for one in found.segments),
        "prefix_bytes": sum(one.entry.end for one in found.files),
        "trimmable_segments": len(trimmable),
        "trimmable_bytes": sum(one.size_bytes for one in trimmable),
        "damage": sum(one.is_damage for one in found.findings),
    }


def _segment_rows(found: Examination) -> list[dict[str, Any]]:
    from folkmoot.core.storage.segment import segment_name

    return [
        {
            "segment": segment_name(one.entry.segment_id),
            "first_index": one.entry.first_index,
            "last_index": one.segment.last_index if one.segment else None,
            "batches": len(one.segment.firsts) if one.segment else None,
            "entries": one.entries,
            "size_bytes": one.size_bytes,
            "size": size(one.size_bytes),
            "sealed": one.is_sealed,
        }
        for one in found.segments
    ]


def _file_rows(found: Examination) -> list[dict[str, Any]]:
    from folkmoot.core.storage.prefix_file import file_name

    return [
        {
            "file": file_name(one.entry.kind, one.entry.file_id),
            "first_index": one.entry.first_index,
            "last_index": one.entry.last_index,
            "records": one.records,
            "entries": one.entries,
            "live": one.live,
            "dead_share": _dead_share(one),
            "size_bytes": one.entry.end,
            "size": size(one.entry.end),
        }
        for one in found.files
    ]


def _dead_share(one: ExaminedFile) -> float | None:
    if one.live_bytes is None or not one.total_bytes:
        return None
    return round(1 - one.live_bytes / one.total_bytes, 3)


def _finding_rows(found: Examination) -> list[dict[str, Any]]:
    return [
        {
            "file": one.file,
            "offset": one.offset,
            "kind": "damage" if one.is_damage else "repairable",
            "what": one.what,
        }
        for one in found.findings
    ]


def _tell_findings(options: Options, findings: list[Finding]) -> None:
    for one in findings:
        click.echo(f"folkmoot: {one.file} at offset {one.offset}: {one.what}", err=True)
