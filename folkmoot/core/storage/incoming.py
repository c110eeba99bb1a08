"""A prefix that is being received: written down piece by piece, resumed after a crash, installed.

What it is: the files in `incoming/`, with the table that says what they will be. What it is not: it
asks nobody for anything (`core/prefix_receiver.py` does), and nothing of it counts before MANIFEST
lists it (`LogStore.write` with an install).

    incoming/TABLE                            the archive's table, durable before the first file
    incoming/3-0000000017-9f3a22c1.part       file 17 of node 3, as far as it has come
    incoming/3-0000000018-00c1d204.whole      file 18 of node 3, all of it, durable

- A file is named by who made it, its number there and its chain: another table keeps the files that
  it lists as well, whole or in part. So a leader that has compacted meanwhile, or that was elected
  anew, sends what is missing only.
- After a crash a part is as long as its records verify, and it goes on from there.
- An install moves the files away before MANIFEST lists them. One that is cut short in between has
  them taken back at the next start, before anything else is done to them.

Who drives it: `LogStore`'s owner, from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.prefix_table import ArchiveFile, ArchiveTable, PrefixFileEntry, archive_id
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.prefix_file import SUBDIR as PREFIX
from folkmoot.core.storage.prefix_file import file_name, read_header, verified_bytes
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.stored_prefix import StoredPrefix

SUBDIR = "incoming"
_TABLE = f"{SUBDIR}/TABLE"
_NEW_TABLE = f"{SUBDIR}/TABLE.new"
_SYNC_BYTES = 4 << 20
_COPY_BYTES = 1 << 20


def _name(one: ArchiveFile) -> str:
    origin, file_id, chain = one.identity
    return f"{SUBDIR}/{origin}-{file_id:010d}-{chain:08x}"


def _part(one: ArchiveFile) -> str:
    return f"{_name(one)}.part"


def _whole(one: ArchiveFile) -> str:
    return f"{_name(one)}.whole"


class Incoming:
    """What of an archive has arrived.

    - `have[n]` bytes of file n are written, from its beginning.
    - A file that is `.whole` is as long as the table says, and durable; only reading it back
      verifies it. It is complete when all files are.
    """

    def __init__(self, files: Files, compaction_index: int) -> None:
        """Find out what an earlier life has received, as long as it would be an advance."""
        self._files = files
        self._unsynced = 0
        self.table: ArchiveTable | None = None
        self.id = b""
        self.have: list[int] = []
        self.source: StoredPrefix | None = None
        """What reads the complete prefix back, once `read_back` was called."""
        encoded = _read_table(files)
        table = None if encoded is None else _decoded(encoded)
        if encoded is None or table is None or table.point.index <= compaction_index:
            # Installed, or never durable, or rotten: nothing of it was promised to anybody.
            self.discard()
        else:
            self._take(table, encoded, {})

    @property
    def received_bytes(self) -> int:
        """Bytes that are here."""
        return sum(self.have)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not."""
        return 0 if self.table is None else self.table.size_bytes - self.received_bytes

    def begin(self, encoded: bytes) -> None:
        """Receive the archive with this table, keeping what is here of it.

        Raises RemoteProtocolError for bytes that are no table; nothing changes then.
        """
        table = ArchiveTable.decode(encoded)
        if archive_id(encoded) == self.id:
            return
        self._remove(_NEW_TABLE)
        self._files.create(_NEW_TABLE)
        self._files.write(_NEW_TABLE, 0, encoded)
        self._files.sync(_NEW_TABLE)
        self._files.rename(_NEW_TABLE, _TABLE)
        self._files.sync_dir(SUBDIR)
        known = {}
        if self.table is not None:
            known = dict(zip(map(_name, self.table.files), self.have, strict=True))
        # Should a full disk end this, then what is here is looked at anew the next time.
        self.table, self.id, self.have, self.source = None, b"", [], None
        self._take(table, encoded, known)

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
            self._remove(name)
            self._files.create(name)
            self._files.sync_dir(SUBDIR)
        self._files.write(name, offset, data)
        self.have[file_number] += len(data)
        self._unsynced += len(data)
        if self.have[file_number] == one.entry.end:
            self._complete(one)
        elif self._unsynced >= _SYNC_BYTES:
            self._files.sync(name)
            self._unsynced = 0
        return True

    def drop(self, file_number: int) -> None:
        """Remove what has come of a file."""
        assert self.table is not None, "no archive is being received"
        one = self.table.files[file_number]
        self._remove(_part(one))
        self._remove(_whole(one))
        self.have[file_number] = self._unsynced = 0

    def check(self) -> list[int]:
        """Verify what is whole, and drop what is damaged; return which files that was."""
        assert self.table is not None, "no archive is being received"
        damaged = []
        for number, one in enumerate(self.table.files):
            if self.have[number] == one.entry.end and not self._is_sound(one):
                self.drop(number)
                damaged.append(number)
        self.source = None
        return damaged

    def _is_sound(self, one: ArchiveFile) -> bool:
        try:
            return verified_bytes(self._files, _whole(one), one.entry) == one.entry.end
        except StorageCorrupt:
            return False

    def read_back(self) -> StoredPrefix:
        """Return the complete prefix as a source. Reading it verifies every byte."""
        assert self.table is not None, "no archive is being received"
        assert self.gap() is None, f"read back with {self.gap()} missing"
        entries = [one.entry for one in self.table.files]
        self.source = StoredPrefix(self._files, entries, [_whole(one) for one in self.table.files])
        return self.source

    def move(self, store: PrefixStore) -> list[PrefixFileEntry]:
        """Move the files to where MANIFEST may list them, and say what it is to list."""
        assert self.table is not None, "no archive is being received"
        assert self.source is not None, "moved before it was read back"
        assert self.source.is_read, "moved before all of it was read back"
        entries = []
        for one in self.table.files:
            entry = attrs.evolve(one.entry, file_id=store.new_id())
            self._files.rename(_whole(one), file_name(entry.kind, entry.file_id))
            entries.append(entry)
        for items, entry in zip(self.source.items_files, entries[1:], strict=True):
            items.entry = entry
        self._files.sync_dir(PREFIX)
        self._files.sync_dir(SUBDIR)
        return entries

    def discard(self) -> None:
        """Remove everything: it was installed, or is not what it should be."""
        for name in self._files.list(SUBDIR):
            self._files.unlink(f"{SUBDIR}/{name}")
        self.table, self.id, self.have, self.source = None, b"", [], None

    def discard_to(self, compaction_index: int) -> None:
        """Remove what would be no advance: an earlier life began it, and the log came after all.

        What is being read back stays, for as long as its owner wants to.
        """
        is_late = self.table is not None and self.table.point.index <= compaction_index
        if is_late and self.source is None:
            self.discard()

    def _take(self, table: ArchiveTable, encoded: bytes, known: Mapping[str, int]) -> None:
        """Go over to a table, which is durable; `known` files need not be looked at."""
        names = {_name(one) for one in table.files}
        for name in self._files.list(SUBDIR):
            path = f"{SUBDIR}/{name}"
            if path != _TABLE and path.rpartition(".")[0] not in names:
                self._files.unlink(path)
        present = {f"{SUBDIR}/{name}" for name in self._files.list(SUBDIR)}
        self.have = [self._present_bytes(one, present, known) for one in table.files]
        self.table, self.id, self.source = table, archive_id(encoded), None

    def _present_bytes(self, one: ArchiveFile, present: set[str], known: Mapping[str, int]) -> int:
        """Return how much of a file is here."""
        if _name(one) in known:
            return known[_name(one)]
        if _whole(one) in present:
            if self._files.size(_whole(one)) == one.entry.end:
                return one.entry.end
            self._files.unlink(_whole(one))
        return self._verified(one) if _part(one) in present else 0

    def _verified(self, one: ArchiveFile) -> int:
        """Cut a part behind its last record that verifies; return its length."""
        name = _part(one)
        try:
            size_bytes = verified_bytes(self._files, name, one.entry)
        except StorageCorrupt:
            size_bytes = 0
        self._files.truncate(name, size_bytes)
        # What was read may be in memory only, and called clean after a failed sync: a sync alone
        # would then do nothing (bugs F2). So it is written again.
        for offset in range(0, size_bytes, _COPY_BYTES):
            data = self._files.read(name, offset, min(_COPY_BYTES, size_bytes - offset))
            self._files.write(name, offset, data)
        if size_bytes == one.entry.end:
            self._complete(one)
        else:
            self._files.sync(name)
        return size_bytes

    def _complete(self, one: ArchiveFile) -> None:
        """Make a part that is all there durable, and give it the name that says so.

        After a power cut it may have its old name: then it is read once more.
        """
        self._files.sync(_part(one))
        self._unsynced = 0
        self._files.release(_part(one))
        self._files.rename(_part(one), _whole(one))

    def _remove(self, name: str) -> None:
        if name.rpartition("/")[2] in self._files.list(SUBDIR):
            self._files.unlink(name)


def take_back(files: Files, names: Sequence[str]) -> list[str]:
    """Take back, of files in `prefix/` that MANIFEST does not list, what an install had moved.

    Returns those that are in `incoming/` again.
    """
    encoded = _read_table(files) if names else None
    table = None if encoded is None else _decoded(encoded)
    if table is None:
        return []
    wanted = {(one.origin, one.entry.file_id): one for one in table.files}
    present = files.list(SUBDIR)
    taken = []
    for name in names:
        try:
            header = read_header(files, name)
        except StorageCorrupt:
            continue
        one = wanted.get((header.node_id, header.file_id))
        if one is None or _whole(one).rpartition("/")[2] in present:
            continue
        # It was durable, and read back to its end, before it was moved: if it was this one.
        if verified_bytes(files, name, one.entry) == one.entry.end == files.size(name):
            files.rename(name, _whole(one))
            taken.append(name)
    if taken:
        files.sync_dir(PREFIX)
        files.sync_dir(SUBDIR)
    return taken


def _read_table(files: Files) -> bytes | None:
    return files.read(_TABLE) if "TABLE" in files.list(SUBDIR) else None


def _decoded(encoded: bytes) -> ArchiveTable | None:
    try:
        return ArchiveTable.decode(encoded)
    except RemoteProtocolError:
        return None
