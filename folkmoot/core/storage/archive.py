"""An archive: a compacted prefix as a table of files and their bytes, for a follower or a backup.

What it is: the one form in which a prefix leaves a server. A table says which files there are, how
long they are and what their chain is at the end; the bytes are those of the files, read in any
order. What it is not: a copy. The files stay where they are, pinned until the archive is closed.

The id of an archive is a hash of its table, which names every file by who made it, its number
there, its size and its chain. So equal ids mean equal bytes, and a file with the same line in two
tables need not be sent again.

Who drives it: the server that sends a prefix, and `folkmoot snapshot`. `read` is safe in any
thread.
"""

from __future__ import annotations

import attrs

from folkmoot.core.prefix_table import ArchiveFile, ArchiveTable, archive_id
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import Manifest
from folkmoot.core.storage.prefix_file import file_name, read_blocks, read_header
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.segment import corrupt


class Archive:
    """A prefix that is being read by somebody.

    - Its files stay as they are until `close`, whatever is compacted meanwhile.
    """

    def __init__(self, files: Files, store: PrefixStore, manifest: Manifest) -> None:
        """Take the listed prefix, of which there must be one. Nobody may replace it meanwhile."""
        assert manifest.files, "an archive of a prefix that does not exist"
        self._files = files
        self._store = store
        self._entries = manifest.files
        self._names = [file_name(entry.kind, entry.file_id) for entry in self._entries]
        store.pin(self._entries)
        self.table = ArchiveTable(
            manifest.cluster_id,
            manifest.epoch,
            manifest.compaction,
            tuple(self._described(at) for at in range(len(self._entries))),
        )
        self.encoded = self.table.encode()
        self.id = archive_id(self.encoded)
        self.is_open = True

    def read(self, file_number: int, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file that stands at `file_number` in the table; fewer at its end.

        Only who reads back what it got verifies them. Raises StorageCorrupt for a short file.
        """
        name, end = self._names[file_number], self._entries[file_number].end
        data = self._files.read(name, offset, size_bytes)
        expected = min(size_bytes, end - offset)
        if len(data) != expected:
            where = self._files.describe(name)
            raise corrupt(where, offset + len(data), f"the file ends here, {end} bytes are needed")
        return data

    def check(self, file_number: int) -> None:
        """Verify a whole file. Raises StorageCorrupt."""
        for _ in read_blocks(self._files, self._names[file_number], self._entries[file_number]):
            pass

    def close(self) -> None:
        """Let the files go. Does nothing twice."""
        if self.is_open:
            self.is_open = False
            self._store.unpin(self._entries)

    def _described(self, at: int) -> ArchiveFile:
        """Name a file as its maker does: that is what its header says."""
        header = read_header(self._files, self._names[at])
        return ArchiveFile(header.node_id, attrs.evolve(self._entries[at], file_id=header.file_id))
