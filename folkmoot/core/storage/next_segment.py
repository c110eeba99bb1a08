"""The segment that will be next: its file is made in small steps before it is needed.

What it is: the id of the next segment, and how far its file is preallocated, so that sealing need
not wait for zeros to be written. What it is not: the segment; MANIFEST does not list it yet, and a
crash leaves a file that recovery removes.

Who drives it: `LogStore`.
"""

from __future__ import annotations

from folkmoot.core.storage.files import Files
from folkmoot.core.storage.segment import SUBDIR, segment_name

_STEP_BYTES = 1 << 20
"""One step of preallocating: some milliseconds between two commits."""


class NextSegment:
    """One file to come.

    - `made_bytes` zeros of it are allocated and durable; below 0 there is no file yet.
    """

    __slots__ = ("_files", "_target", "made_bytes", "segment_id")

    def __init__(self, files: Files, segment_id: int, size_bytes: int) -> None:
        self._files = files
        self._target = size_bytes
        self.segment_id = segment_id
        self.made_bytes = -1

    @property
    def is_ready(self) -> bool:
        """Say whether all of it is allocated."""
        return self.made_bytes >= self._target

    def step(self) -> None:
        """Allocate some more, up to the size of a segment."""
        name = segment_name(self.segment_id)
        if self.made_bytes < 0:
            self._files.create(name)
            self._files.sync_dir(SUBDIR)
            self.made_bytes = 0
        if not self.is_ready:
            size_bytes = min(self.made_bytes + _STEP_BYTES, self._target)
            self._files.extend(name, size_bytes)
            self._files.sync(name)
            self.made_bytes = size_bytes

    def taken(self) -> None:
        """It has become a segment: go on to the one behind it."""
        self.segment_id += 1
        self.made_bytes = -1
