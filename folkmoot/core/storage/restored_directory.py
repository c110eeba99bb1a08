"""A member's data directory, made from a backup.

What it is: the files of the backup's prefix, its state file written anew with some other records, a
hard state, a log of one entry, and MANIFEST. What it is not: it decides nothing (`core/
new_cluster.py` does), and verifies nothing: the backup has been read to the end before.

The directory counts from MANIFEST on, which comes last. Whoever drives this builds it under another
name, and renames it when it is complete.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.errors import StorageCorrupt
from folkmoot.core.prefix import RecordKey
from folkmoot.core.prefix_table import FileKind, Point, PrefixFileEntry
from folkmoot.core.storage.backup import Backup
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.hard_state import HardState, HardStateFile
from folkmoot.core.storage.manifest import Manifest, SegmentEntry, replace_manifest
from folkmoot.core.storage.prefix_blocks import encode_records
from folkmoot.core.storage.prefix_file import SUBDIR, PrefixFileWriter, file_name
from folkmoot.core.storage.recovery import Identity, start_segment
from folkmoot.core.storage.segment import Segment

_SYNC_BYTES = 4 << 20


@attrs.frozen(kw_only=True)
class FirstContent:
    """What the directory holds beside the backup's files."""

    identity: Identity
    """Of this member; its cluster id is the one that the configuration gives."""
    restore_id: bytes
    epoch: int
    point: Point
    records: Mapping[RecordKey, bytes]
    """These take the place of the backup's."""
    batch: Batch
    segment_bytes: int


def write_directory(
    files: Files, backup: Backup, content: FirstContent
) -> Generator[int, None, None]:
    """Write all of it into an empty directory; yields how many bytes are written so far."""
    identity = content.identity
    owner = identity.cluster_id_after(content.restore_id), int(identity.node_id)
    # Above every number in the backup, so that none comes twice among files that one node made.
    first_id = max(one.entry.file_id for one in backup.table.files) + 1
    entries: list[PrefixFileEntry] = []
    written = 0
    for size_bytes, entry in _write_state(files, backup, content, first_id, owner):
        yield size_bytes
        if entry is not None:
            entries.append(entry)
            written = entry.end
    for number in range(1, len(backup.table.files)):
        entry = attrs.evolve(backup.table.files[number].entry, file_id=first_id + number)
        for size_bytes in _copy(files, backup, number, entry):
            written += size_bytes
            yield written
        entries.append(entry)
    files.sync_dir(SUBDIR)
    state = HardStateFile.create(files, *owner)
    state.replace(HardState(content.batch.term))
    segment = _write_log(files, content, owner)
    files.sync_dir()
    manifest = Manifest(
        *owner,
        identity.bootstrap,
        (segment,),
        compaction=content.point,
        start=content.point,
        files=tuple(entries),
        epoch=content.epoch,
        restore_id=content.restore_id,
    )
    replace_manifest(files, manifest)


def _write_state(
    files: Files, backup: Backup, content: FirstContent, file_id: int, owner: tuple[bytes, int]
) -> Iterator[tuple[int, PrefixFileEntry | None]]:
    """Write the state file anew; yields (bytes so far, None), and at the end what it is."""
    writer = PrefixFileWriter(files, FileKind.STATE, file_id, 1, owner)
    missing = set(content.records)
    for block in backup.state_records():
        writer.append(encode_records(_replaced(block, content.records)))
        missing.difference_update(record[:2] for record in block)
        writer.flush(_SYNC_BYTES)
        yield writer.size_bytes, None
    if missing:
        raise StorageCorrupt(f"a backup without the records {sorted(missing)}")
    yield writer.size_bytes, writer.close(content.point.index)


def _replaced(
    block: Sequence[tuple[int, int, bytes]], records: Mapping[RecordKey, bytes]
) -> list[tuple[int, int, bytes]]:
    return [(kind, key, records.get((kind, key), data)) for kind, key, data in block]


def _copy(files: Files, backup: Backup, number: int, entry: PrefixFileEntry) -> Iterator[int]:
    """Copy one file as it is: its header still says who made it. Yields the bytes of each step."""
    name, offset, unsynced = file_name(entry.kind, entry.file_id), 0, 0
    files.create(name)
    for data in backup.read_file(number):
        files.write(name, offset, data)
        offset += len(data)
        unsynced += len(data)
        if unsynced >= _SYNC_BYTES:
            files.sync(name)
            unsynced = 0
        yield len(data)
    files.sync(name)
    files.release(name)


def _write_log(files: Files, content: FirstContent, owner: tuple[bytes, int]) -> SegmentEntry:
    """Write the log of one entry; return what MANIFEST says of it."""
    point = content.point
    entry = SegmentEntry(1, point.index + 1)
    segment = Segment(entry, 0, 0, point.term, *owner, content.segment_bytes)
    start_segment(files, segment)
    segment.stage(content.batch, point.index)
    segment.flush(files)
    files.sync(segment.name)
    files.release(segment.name)
    return entry
