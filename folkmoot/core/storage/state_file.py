"""The state file: all records of the compacted prefix, and which entries of it live.

What it is: how one is written from the last one and what has changed. What it is not: it does not
look into a record (core/freeze.py makes them).

Records stand in order of (kind, id), so the last file and the changes are merged in one pass, and
what is not new is carried over as it is.

Who drives it: `compaction`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

from folkmoot.core.prefix import Frozen, RecordKey
from folkmoot.core.prefix_table import FileKind, PrefixFileEntry
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.prefix_blocks import (
    BLOCK_BYTES,
    RECORD_HEAD_BYTES,
    Record,
    encode_records,
)
from folkmoot.core.storage.prefix_file import LIVENESS, PrefixFileWriter, file_name, read_records
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.stored_prefix import ItemsFile

_SYNC_BYTES = 1 << 20
_RUN_COUNT = 1024
"""So many changes are sorted in one step."""


def write_state(
    files: Files,
    store: PrefixStore,
    frozen: Frozen,
    items_files: Sequence[ItemsFile],
    owner: tuple[bytes, int],
) -> Iterator[tuple[int, PrefixFileEntry | None]]:
    """Write it; yields (bytes so far, None) after each step, and at the end what MANIFEST says."""
    file_id = store.begin_file(FileKind.STATE)
    writer = PrefixFileWriter(files, FileKind.STATE, file_id, 1, owner)
    block: list[Record] = []
    size_bytes = 0
    for record in _all_records(_old_records(files, store), frozen.records, items_files):
        if record is not None:
            block.append(record)
            size_bytes += RECORD_HEAD_BYTES + len(record[2])
        if size_bytes >= BLOCK_BYTES:
            writer.append(encode_records(block))
            block, size_bytes = [], 0
            writer.flush(_SYNC_BYTES)
            yield writer.size_bytes, None
        elif record is None:
            yield writer.size_bytes, None
    if block:
        writer.append(encode_records(block))
    yield writer.size_bytes, writer.close(frozen.index)


def _all_records(
    old: Iterator[list[Record]],
    changes: Mapping[RecordKey, bytes | None],
    items_files: Sequence[ItemsFile],
) -> Iterator[Record | None]:
    """Yield all records in order, and None where a step has done enough without one."""
    runs: list[list[RecordKey]] = []
    keys = list(changes)
    for start in range(0, len(keys), _RUN_COUNT):
        chunk = keys[start : start + _RUN_COUNT]
        runs.append(sorted(key for key in chunk if changes[key] is not None))
        yield None
    new = _new_records(heapq.merge(*runs), changes)
    one = next(new, None)
    for block in old:
        for record in block:
            while one is not None and one[:2] < record[:2]:
                yield one
                one = next(new, None)
            if record[:2] not in changes:
                yield record
        yield None
    while one is not None:
        yield one
        one = next(new, None)
    for items in items_files:
        yield LIVENESS, items.entry.first_index, items.liveness()
        yield None


def _new_records(
    keys: Iterator[RecordKey], changes: Mapping[RecordKey, bytes | None]
) -> Iterator[Record]:
    for key in keys:
        data = changes[key]
        assert data is not None, f"record {key} is none any more"
        yield (*key, data)


def _old_records(files: Files, store: PrefixStore) -> Iterator[list[Record]]:
    """Yield the records of the last state file, without the liveness, which stands last."""
    if not store.entries:
        return
    state = store.entries[0]
    for block in read_records(files, file_name(state.kind, state.file_id), state):
        yield [record for record in block if record[0] < LIVENESS]
