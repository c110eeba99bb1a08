"""The compacted prefix of one member: its files, what of them lives, and who still needs old ones.

What it is: the owner of `prefix/`. It has the prefix read back at a start (`StoredPrefix`), keeps
what is known of each items file, and removes files that MANIFEST no longer lists once nobody reads
them. What it is not: it writes no
prefix (`compaction`), and MANIFEST is `LogStore`'s.

Who drives it: `LogStore`. `pin`, `unpin` and `read` may be called from any thread.

A file may be under way to a follower or into a backup when a compaction replaces it. Who reads PINS
it; a replaced file goes when its last pin does (bugs E14), or at the next start.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from folkmoot.core.prefix_table import FileKind, PrefixFileEntry
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import Manifest
from folkmoot.core.storage.prefix_file import SUBDIR, file_name
from folkmoot.core.storage.stored_prefix import ItemsFile, StoredPrefix, file_names


class PrefixStore:
    """The prefix files of one directory.

    - `entries` are those that MANIFEST lists, the state file first; `items_files` stand for the
      others, and are there once the prefix was read back, or made by a compaction.
    - A file is removed when it is neither listed nor pinned.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._pins: dict[str, int] = {}
        self._doomed: set[str] = set()
        self._begun: list[str] = []
        """Files of a compaction under way, which nobody lists yet."""
        self.entries = manifest.files
        self.items_files: list[ItemsFile] = []
        self.is_loaded = not self.entries
        highest = max((entry.file_id for entry in self.entries), default=0)
        self._ids = itertools.count(highest + 1)

    def new_id(self) -> int:
        """Return an id that no file has. Ids of files that were never listed may come again.

        Safe in any thread.
        """
        return next(self._ids)

    def begin_file(self, kind: FileKind) -> int:
        """Return the id of a file that a compaction is about to write."""
        file_id = self.new_id()
        self._begun.append(file_name(kind, file_id))
        return file_id

    def read_back(self) -> StoredPrefix:
        """Return the listed prefix as a source; `loaded` takes it when it was read to the end."""
        return StoredPrefix(self._files, self.entries)

    def loaded(self, source: StoredPrefix) -> None:
        """Take over what reading has found out about the files."""
        assert source.is_read, f"{file_names(self.entries)} were not read to the end"
        self.items_files = source.items_files
        self.is_loaded = True

    def replace(self, entries: Sequence[PrefixFileEntry], items_files: list[ItemsFile]) -> None:
        """Go over to the files that MANIFEST lists now; the others go with the next `sweep`."""
        kept = set(file_names(entries))
        with self._lock:
            self._doomed.update(name for name in file_names(self.entries) if name not in kept)
        self.entries, self.items_files, self.is_loaded = tuple(entries), items_files, True
        self._begun.clear()

    def give_up(self) -> None:
        """Forget the files of a compaction under way; they go with the next `sweep`."""
        with self._lock:
            self._doomed.update(self._begun)
        self._begun.clear()

    def pin(self, entries: Sequence[PrefixFileEntry]) -> None:
        """Keep these files until as many `unpin`s as pins have come."""
        with self._lock:
            for name in file_names(entries):
                self._pins[name] = self._pins.get(name, 0) + 1

    def unpin(self, entries: Sequence[PrefixFileEntry]) -> None:
        """Let go of these files. Those that are not listed any more go with the next `sweep`."""
        with self._lock:
            for name in file_names(entries):
                self._pins[name] -= 1
                if not self._pins[name]:
                    del self._pins[name]

    def sweep(self) -> None:
        """Remove the files that are neither listed nor pinned."""
        with self._lock:
            free = sorted(self._doomed - set(self._pins))
            self._doomed.difference_update(free)
        # A disk that is full may have refused to make a file that a compaction had begun.
        present = {f"{SUBDIR}/{name}" for name in self._files.list(SUBDIR)}
        for name in free:
            if name in present:
                self._files.unlink(name)

    @property
    def size_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.end for entry in self.entries)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state file, which each compaction writes anew."""
        return self.entries[0].end if self.entries else 0

    def status(self) -> dict[str, int]:
        """Return what an operator wants to know: sizes in bytes."""
        return {
            "prefix_files": len(self.entries),
            "prefix_bytes": self.size_bytes,
            "live_entries": sum(one.live_count for one in self.items_files),
            "live_bytes": sum(one.live_bytes for one in self.items_files),
        }


def leftovers(files: Files, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return the files in `prefix/` that are not listed, and those listed that are missing."""
    listed = {file_name(entry.kind, entry.file_id) for entry in manifest.files}
    present = {f"{SUBDIR}/{name}" for name in files.list(SUBDIR)}
    return sorted(present - listed), sorted(listed - present)
