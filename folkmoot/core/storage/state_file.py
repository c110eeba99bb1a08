"""The state file: all records of the compacted prefix, and which entries of it live.

What it is: how one is written from the last one and what has changed. What it is not: it does not
look into a record (core/freeze.py makes them).

Records stand in order of (kind, id), so the last file and the changes are merged in one pass, and
what is not new is carried over as it is.

Who drives it: `compaction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from folkmoot.core.prefix import Frozen
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import FileKind, PrefixFileEntry
from folkmoot.core.storage.prefix_file import (
    BLOCK_BYTES,
    LIVENESS,
    PrefixFileWriter,
    Record,
    encode_records,
    file_name,
    read_records,
)
from folkmoot.core.storage.prefix_store import ItemsFile, PrefixStore

_SYNC_BYTES = 1 << 20


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
    for record in _all_records(files, store, frozen, items_files):
        block.append(record)
        size_bytes += len(record[2])
        if size_bytes >= BLOCK_BYTES:
            writer.append(encode_records(block))
            writer.flush(_SYNC_BYTES)
            block, size_bytes = [], 0
            yield writer.size_bytes, None
    if block:
        writer.append(encode_records(block))
    yield writer.size_bytes, writer.close(frozen.index)


def _all_records(
    files: Files, store: PrefixStore, frozen: Frozen, items_files: Sequence[ItemsFile]
) -> Iterator[Record]:
    changes = frozen.records
    new = iter(sorted(key for key, data in changes.items() if data is not None))
    key = next(new, None)
    for kind, number, data in _old_records(files, store):
        while key is not None and key < (kind, number):
            yield (*key, changes[key] or b"")
            key = next(new, None)
        if (kind, number) not in changes:
            yield kind, number, data
    while key is not None:
        yield (*key, changes[key] or b"")
        key = next(new, None)
    for one in items_files:
        yield LIVENESS, one.entry.first_index, one.liveness()


def _old_records(files: Files, store: PrefixStore) -> Iterator[Record]:
    if not store.entries:
        return
    state = store.entries[0]
    name = file_name(state.kind, state.file_id)
    for block in read_records(files, name, state):
        for record in block:
            if record[0] == LIVENESS:
                return  # they stand last
            yield record
