"""The batches of a log, one line for each group in them: for `folkmoot log inspect --entries`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Group, Kind
from folkmoot.core.errors import FolkmootError, StorageError
from folkmoot.core.requests import decode_operations
from folkmoot.core.storage.segment import Segment, read_records
from folkmoot.transport.codec import unpack

if TYPE_CHECKING:
    from folkmoot.cli.options import Options
    from folkmoot.core.storage.examination import Examination
    from folkmoot.core.storage.files import DirectoryFiles

COLUMNS = ("index", "term", "log_time", "kind", "count", "session", "operations")


def show_entries(
    options: Options, files: DirectoryFiles, found: Examination, first: int, *, values: bool
) -> None:
    """Print the groups of all batches that end at or behind `first`, as far as they verify.

    One line each: index of its first entry, term, log time, kind, count, session, operations.
    """
    for batch in _batches(files, found, first):
        for row in group_rows(batch, values=values):
            options.out.event(row, [row[column] for column in COLUMNS])


def _batches(files: DirectoryFiles, found: Examination, first: int) -> Iterator[Batch]:
    for one in found.segments:
        segment = one.segment
        if segment is None or segment.last_index < first:
            continue
        try:
            yield from _batches_of(files, segment, first)
        except StorageError:
            continue  # it was replaced while it was read, or the examination has told of it


def _batches_of(files: DirectoryFiles, segment: Segment, first: int) -> Iterator[Batch]:
    """Read from the batch that holds `first`, or the segment's first one, to the end."""
    start, _ = segment.span(first, 0)
    data = files.read(segment.name, start, segment.end - start)
    yield from read_records(data, segment.tag, start, segment.name)


def group_rows(batch: Batch, *, values: bool) -> Iterator[dict[str, Any]]:
    """Yield what is known of each group."""
    index = batch.first_index
    for group in batch.groups:
        session, operations = _decoded(group, values)
        yield {
            "index": index,
            "term": batch.term,
            "log_time": batch.log_time,
            "kind": _kind(group.kind),
            "count": group.count,
            "session": session,
            "operations": operations,
        }
        index += group.count


def _kind(kind: int) -> str:
    try:
        return Kind(kind).name.lower()
    except ValueError:
        return f"kind {kind}"


def _decoded(group: Group, values: bool) -> tuple[int | None, list[Any]]:
    """Return the session, if it is of one, and its operations: what they are, or with values."""
    try:
        if group.kind == Kind.COMMANDS:
            operations = decode_operations(group.payload)
            session_id: int = COMMANDS_HEADER.unpack_from(group.payload)[0]
            return session_id, [_operation(one, values) for one in operations]
        if group.kind in (Kind.EXPIRE_SESSION, Kind.CLOSE_SESSION):
            return unpack(group.payload)[0], []
        if values and group.payload:
            return None, [unpack(group.payload)]
    except (FolkmootError, ValueError, TypeError, IndexError, KeyError) as error:
        return None, [f"does not decode: {error}"]
    return None, []


def _operation(operation: list[Any], values: bool) -> Any:
    """[resource, name, ...]: with the arguments, or how many there are."""
    resource, name, args, *fence = operation
    if values:
        return [resource, name, args, *fence]
    target = resource if type(resource) is int else f"{resource[1]} {resource[0]!r}"
    return f"{target} {name}/{len(args)}"
