"""A prefix that is being received: written down piece by piece, resumed after a crash, installed.

What it is: the files in `incoming/`, with the table that says what they will be. What it is not: it
asks nobody for anything (`core/prefix_transfer.py` does), and nothing of it counts before MANIFEST
lists it (`LogStore.write` with an install).

    incoming/TABLE                     the archive's table, durable before the first byte of a file
    incoming/3-0000000017.part         file 17 of node 3, as far as it has come

- After a crash each file is as long as its records verify; it goes on from there. What a power cut
  left half-written is found out by the same checks.
- Another table keeps the files that it lists as well, whole or in part: a leader that has compacted
  meanwhile, or that was elected anew, sends what is missing only.

Who drives it: `LogStore`'s owner, from one thread at a time.
"""

from __future__ import annotations

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.storage.archive import ArchiveFile, ArchiveTable, archive_id
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import PrefixFileEntry
from folkmoot.core.storage.prefix_file import SUBDIR as PREFIX
from folkmoot.core.storage.prefix_file import file_name, verified_bytes
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.stored_prefix import StoredPrefix

SUBDIR = "incoming"
_TABLE = f"{SUBDIR}/TABLE"
_NEW_TABLE = f"{SUBDIR}/TABLE.new"
_SYNC_BYTES = 4 << 20


def _part(one: ArchiveFile) -> str:
    return f"{SUBDIR}/{one.origin}-{one.entry.file_id:010d}.part"


class Incoming:
    """What of an archive has arrived.

    - `have[n]` bytes of file n are written, from its beginning; they may not be durable yet.
    - It is complete when every file is whole, verified and durable.
    """

    def __init__(self, files: Files) -> None:
        """Find out what an earlier life has received."""
        self._files = files
        self._unsynced = 0
        self.table: ArchiveTable | None = None
        self.id = b""
        self.have: list[int] = []
        self.source: StoredPrefix | None = None
        """What reads the complete prefix back, once `read_back` was called."""
        if "TABLE" in files.list(SUBDIR):
            self._resume(files.read(_TABLE))

    @property
    def received_bytes(self) -> int:
        """Bytes that are here."""
        return sum(self.have)

    def begin(self, encoded: bytes) -> None:
        """Receive the archive with this table, keeping what is here of it.

        Raises RemoteProtocolError for bytes that are no table; nothing changes then.
        """
        table = ArchiveTable.decode(encoded)
        wanted = {_part(one) for one in table.files}
        for name in self._present():
            if name not in wanted:
                self._files.unlink(name)
        if "TABLE.new" in self._files.list(SUBDIR):
            self._files.unlink(_NEW_TABLE)
        self._files.create(_NEW_TABLE)
        self._files.write(_NEW_TABLE, 0, encoded)
        self._files.sync(_NEW_TABLE)
        self._files.rename(_NEW_TABLE, _TABLE)
        self._files.sync_dir(SUBDIR)
        self._take(table, encoded)

    def gap(self) -> tuple[int, int, int] | None:
        """Return what is missing next as (file number, offset, bytes); None when nothing is."""
        assert self.table is not None, "no archive is being received"
        for number, one in enumerate(self.table.files):
            if self.have[number] < one.entry.end:
                return number, self.have[number], one.entry.end - self.have[number]
        return None

    def write(self, file_number: int, offset: int, data: bytes) -> bool:
        """Take bytes of a file; False where they are not its next ones: then nothing happens."""
        assert self.table is not None, "no archive is being received"
        one = self.table.files[file_number]
        if offset != self.have[file_number] or offset + len(data) > one.entry.end or not data:
            return False
        name = _part(one)
        if not offset:
            if name in self._present():
                self._files.unlink(name)
            self._files.create(name)
        self._files.write(name, offset, data)
        self.have[file_number] += len(data)
        self._unsynced += len(data)
        is_whole = self.have[file_number] == one.entry.end
        if is_whole or self._unsynced >= _SYNC_BYTES:
            self._files.sync(name)
            self._unsynced = 0
        if is_whole:
            self._files.release(name)
        return True

    def read_back(self) -> StoredPrefix:
        """Return the complete prefix as a source. Reading it verifies every byte."""
        assert self.table is not None, "no archive is being received"
        assert self.gap() is None, f"read back with {self.gap()} missing"
        entries = [one.entry for one in self.table.files]
        self.source = StoredPrefix(self._files, entries, [_part(one) for one in self.table.files])
        return self.source

    def move(self, store: PrefixStore) -> list[PrefixFileEntry]:
        """Move the files to where MANIFEST may list them, and say what it is to list."""
        assert self.table is not None, "no archive is being received"
        assert self.source is not None, "moved before it was read back"
        entries = []
        for one in self.table.files:
            entry = attrs.evolve(one.entry, file_id=store.new_id())
            self._files.rename(_part(one), file_name(entry.kind, entry.file_id))
            entries.append(entry)
        for items, entry in zip(self.source.items_files, entries[1:], strict=True):
            items.entry = entry
        self._files.sync_dir(PREFIX)
        self._files.sync_dir(SUBDIR)
        self._files.sync_dir()
        return entries

    def discard(self) -> None:
        """Remove everything: it was installed, or is not what it should be."""
        for name in self._present():
            self._files.unlink(name)
        if self.table is not None:
            self._files.unlink(_TABLE)
        self.table, self.id, self.have, self.source = None, b"", [], None

    def _present(self) -> list[str]:
        return [f"{SUBDIR}/{name}" for name in self._files.list(SUBDIR) if name.endswith(".part")]

    def _resume(self, encoded: bytes) -> None:
        try:
            table = ArchiveTable.decode(encoded)
        except RemoteProtocolError:
            # It never became durable, or has rotted: nothing of it was promised to anybody.
            self._files.unlink(_TABLE)
            self.discard()
        else:
            self._take(table, encoded)

    def _take(self, table: ArchiveTable, encoded: bytes) -> None:
        self.table, self.id, self.source = table, archive_id(encoded), None
        present = set(self._present())
        self.have = [
            self._verified(one) if _part(one) in present else 0 for one in self.table.files
        ]

    def _verified(self, one: ArchiveFile) -> int:
        """Cut a file behind its last record that verifies; return its length."""
        name = _part(one)
        try:
            size_bytes = verified_bytes(self._files, name, one.entry)
        except StorageCorrupt:
            size_bytes = 0
        if size_bytes < self._files.size(name):
            self._files.truncate(name, size_bytes)
        # What was read may be in memory only, and called clean after a failed sync.
        self._files.sync(name)
        self._files.release(name)
        return size_bytes
