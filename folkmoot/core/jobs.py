"""What is asked of the storage beside writing and reading the log: each job as a value.

Pure: no I/O, no clock, no randomness of its own: a job says what to call of the storage. These are
the small things that the server's loop wants done elsewhere than in a turn, as each waits for the
disk. A compaction is none: it takes many steps (core/storage/compaction.py).

The server's loop posts them; `core/housekeeping.py`, or the simulator, runs them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import attrs

from folkmoot.core.errors import StorageFull
from folkmoot.core.prefix_table import ArchiveTable


class ArchivePort(Protocol):
    """A prefix that is being read by somebody (core/storage/archive.py)."""

    table: ArchiveTable
    encoded: bytes
    """The table's bytes."""
    id: bytes

    def read(self, file_number: int, offset: int, size_bytes: int) -> bytes:
        """Return bytes of a file."""
        ...

    def check(self, file_number: int) -> None:
        """Verify a whole file."""
        ...

    def close(self) -> None:
        """Let the files go."""
        ...


class IncomingPort(Protocol):
    """A prefix that is being received (core/storage/incoming.py)."""

    have: list[int]

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to come."""
        ...

    def begin(self, encoded: bytes) -> None:
        """Receive the archive with this table."""
        ...

    def write(self, file_number: int, offset: int, data: bytes) -> Any:
        """Take bytes of a file."""
        ...

    def drop(self, file_number: int) -> None:
        """Remove what is here of a file."""
        ...

    def check(self) -> list[int]:
        """Verify everything, and remove what is damaged."""
        ...

    def discard(self) -> None:
        """Remove everything."""
        ...


class StorePort(Protocol):
    """What jobs call of the storage (core/storage/log_store.py)."""

    @property
    def incoming(self) -> IncomingPort:
        """What is being received."""
        ...

    def roll(self) -> None:
        """Seal the active segment."""
        ...

    def trim(self, index: int) -> None:
        """Give up the log up to an index."""
        ...

    def sweep(self) -> None:
        """Remove files that nobody needs."""
        ...

    def archive(self) -> ArchivePort | None:
        """Pin the prefix."""
        ...

    def free_bytes(self) -> int:
        """Bytes that are free on the disk."""
        ...


class Job(Protocol):
    """One job. Jobs run in the order in which they were posted."""

    exclusive: ClassVar[bool]
    """Whether it changes what the log's writer changes, so that the writer must stand still."""

    def run(self, store: StorePort) -> Any:
        """Do it; what it returns goes to whoever posted it."""
        ...


@attrs.frozen
class Roll:
    """Seal the active segment, so that the log's end becomes a boundary."""

    exclusive: ClassVar[bool] = True

    def run(self, store: StorePort) -> None:
        """Do it."""
        store.roll()


@attrs.frozen
class Trim:
    """Give up the log up to `index`, for which the prefix speaks."""

    exclusive: ClassVar[bool] = True
    index: int

    def run(self, store: StorePort) -> None:
        """Do it."""
        store.trim(self.index)


@attrs.frozen
class Sweep:
    """Remove files that nobody needs any more."""

    exclusive: ClassVar[bool] = False

    def run(self, store: StorePort) -> None:
        """Do it."""
        store.sweep()


@attrs.frozen
class OpenArchive:
    """Pin the prefix for somebody who wants to read it; answers None where there is none.

    The writer may go on, though it may install a received prefix meanwhile: what MANIFEST listed a
    moment ago is still there, as only jobs remove files of a prefix.
    """

    exclusive: ClassVar[bool] = False

    def run(self, store: StorePort) -> ArchivePort | None:
        """Do it."""
        return store.archive()


@attrs.frozen
class ReadArchive:
    """Read some bytes of a file of an archive."""

    exclusive: ClassVar[bool] = False
    archive: ArchivePort
    file_number: int
    offset: int
    size_bytes: int

    def run(self, store: StorePort) -> bytes:
        """Do it."""
        return self.archive.read(self.file_number, self.offset, self.size_bytes)


@attrs.frozen
class CheckArchive:
    """Verify a file of an archive, all of it: who was sent it says that it is damaged.

    Raises StorageCorrupt if it is so here: this server must stop, and be rebuilt from the others.
    """

    exclusive: ClassVar[bool] = False
    archive: ArchivePort
    file_number: int

    def run(self, store: StorePort) -> None:
        """Do it."""
        self.archive.check(self.file_number)


@attrs.frozen
class CloseArchive:
    """Let the files of an archive go. As jobs run in order, not before they have been read.

    1. a read is posted, then the archive is closed at once: its files are not pinned any more;
    2. the compaction that is under way is installed, and sweeps them away;
    3. the read finds no file, which stops the server.
    """

    exclusive: ClassVar[bool] = False
    archive: ArchivePort

    def run(self, store: StorePort) -> None:
        """Do it."""
        self.archive.close()


@attrs.frozen
class BeginReceiving:
    """Receive the archive with this table, keeping what is here of it already.

    Answers how many bytes of each file are; or StorageFull, where there is no room for the rest.
    """

    exclusive: ClassVar[bool] = False
    table: bytes = attrs.field(repr=False)

    def run(self, store: StorePort) -> list[int] | StorageFull:
        """Do it."""
        incoming = store.incoming
        try:
            incoming.begin(self.table)
        except StorageFull as error:
            return error
        missing, free = incoming.missing_bytes, store.free_bytes()
        if missing > free:
            return StorageFull(f"{missing} bytes are missing of it, and {free} are free here")
        return list(incoming.have)


@attrs.frozen
class Receive:
    """Write some bytes of the archive that is being received, behind those that are here.

    Answers how many bytes of the file are here then; or StorageFull, and the file is gone again:
    what of it was not synced may be lost, and a sync that comes later would not say so (bugs F2).
    """

    exclusive: ClassVar[bool] = False
    file_number: int
    offset: int
    data: bytes = attrs.field(repr=False)

    def run(self, store: StorePort) -> int | StorageFull:
        """Do it."""
        try:
            store.incoming.write(self.file_number, self.offset, self.data)
        except StorageFull as error:
            store.incoming.drop(self.file_number)
            return error
        return store.incoming.have[self.file_number]


@attrs.frozen
class CheckReceived:
    """Verify what was received, and remove the files that are damaged: answers which those are."""

    exclusive: ClassVar[bool] = False

    def run(self, store: StorePort) -> list[int]:
        """Do it."""
        return store.incoming.check()


@attrs.frozen
class DiscardReceived:
    """Remove what was received: it is not what it should be, or nobody needs it any more."""

    exclusive: ClassVar[bool] = False

    def run(self, store: StorePort) -> None:
        """Do it."""
        store.incoming.discard()
