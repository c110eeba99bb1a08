"""A server's side of saving a backup: a prefix is made that speaks for enough, pinned, and read.

Pure: no I/O, no clock, no randomness. `core/front.py` hands in what clients ask, `core/replica.py`
its turns; files are read beside the loop. What a backup looks like in a file is
`storage/backup.py`'s, and writing it the command line's.

    snapshot_begin index      again and again, until it says "ready" and brings the table
    snapshot_read  n, at, k   k bytes of file n from `at`; answered when they have been read
    snapshot_end              the files may go

EVERYTHING THAT WAS ACKNOWLEDGED BEFORE IS IN IT: the client asks for an index that a linearizable
read told it, and `snapshot_begin` waits for a prefix that speaks for that index or a later one.

A backup belongs to the connection that began it, and ends with it. There are few at once, each may
ask for little at once, all together are sent no faster than the prefixes for followers, and one
that nobody reads is given up, as its files take room: a compaction that replaces them cannot remove
them before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from folkmoot.core.allowance import BURST_S, Allowance
from folkmoot.core.compacting import Compacting, CompactionPort
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import BadCommand, Overloaded, StorageFull
from folkmoot.core.jobs import ArchivePort, CloseArchive, OpenArchive, ReadArchive, Sweep
from folkmoot.core.raft import Raft

BACKUPS_MAX = 4
"""At once on one server; a further one is refused with Overloaded."""
SILENCE_S = 60.0
"""One that is asked for nothing for so long is given up."""
READ_BYTES_MAX = 256 << 10
"""Of one question."""
READS_MAX = 16
"""Questions of one backup that wait; a further one is refused with Overloaded."""

Reply = Callable[[Any], None]
"""Sends the answer to one question."""


@attrs.define
class _Read:
    """One question that waits."""

    reply: Reply
    file_number: int
    offset: int
    size_bytes: int


@attrs.define(eq=False)
class _Backup:
    """One backup, from its first question on.

    - `archive` is open, once it is there, until the backup is closed.
    """

    heard_at: float
    archive: ArchivePort | None = None
    is_opening: bool = False
    is_closed: bool = False
    reads: deque[_Read] = attrs.field(factory=deque)


class Backups:
    """All backups that are being saved from this server."""

    def __init__(
        self, raft: Raft, compacting: Compacting, storage: CompactionPort, bytes_per_s: int
    ) -> None:
        self._raft = raft
        self._compacting = compacting
        self._storage = storage
        self._allowance = Allowance(bytes_per_s)
        self._backups: dict[ClientConnection, _Backup] = {}
        self.operations: dict[str, Callable[[ClientConnection, list[Any], Reply, float], None]] = {
            "snapshot_begin": self._begin,
            "snapshot_read": self._read,
            "snapshot_end": self._end,
        }
        """What an operator may ask. Each replies once, at once or later, or raises."""

    def __len__(self) -> int:
        return len(self._backups)

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        backup = self._backups.pop(connection, None)
        if backup is not None:
            backup.is_closed = True
            self._release(backup)

    def tick(self, now: float) -> None:
        """Answer as much as the rate allows, and give up what nobody reads."""
        if not self._backups:
            return
        for connection, backup in list(self._backups.items()):
            if not backup.reads and now - backup.heard_at >= SILENCE_S:
                self.forget(connection)
        self._allowance.refill(now)
        waiting = deque(backup for backup in self._backups.values() if backup.reads)
        while waiting and self._allowance.is_left:
            backup = waiting.popleft()
            backup.heard_at = now
            self._answer(backup, backup.reads.popleft())
            if backup.reads:
                waiting.append(backup)

    def deadline(self, now: float) -> float:
        """When `tick` must be called even if nothing arrives."""
        if any(backup.reads for backup in self._backups.values()):
            return now + BURST_S / 4
        return min((one.heard_at + SILENCE_S for one in self._backups.values()), default=math.inf)

    # -- what is asked ---------------------------------------------------------------------------

    def _begin(
        self, connection: ClientConnection, arguments: list[Any], reply: Reply, now: float
    ) -> None:
        (index,) = _numbers("snapshot_begin", arguments, "an index")
        backup = self._backups.get(connection)
        if backup is None:
            if len(self._backups) >= BACKUPS_MAX:
                raise Overloaded(f"{BACKUPS_MAX} backups are being saved from this server already")
            backup = self._backups[connection] = _Backup(now)
        backup.heard_at = now
        if backup.archive is not None and backup.archive.table.point.index >= index:
            reply({"phase": "ready", "table": backup.archive.encoded})
            return
        if self._is_covered(index) and not backup.is_opening:
            self._release(backup)
            backup.is_opening = True
            self._storage.post(OpenArchive(), lambda archive: self._opened(backup, archive))
        reply({"phase": "preparing", "index": self._compacting.index})

    def _is_covered(self, index: int) -> bool:
        """Whether there is a prefix that speaks for `index`; else see to it that there will be.

        An index that is not committed here yet is not wanted, but waited for: it may be nonsense.
        """
        if index > self._raft.commit_index:
            return False
        if self._compacting.want(max(index, 1)):
            return True
        if self._compacting.is_short_of_room:
            raise StorageFull(
                "the server's disk is too full for the compaction that a backup begins with"
            )
        return False

    def _read(
        self, connection: ClientConnection, arguments: list[Any], reply: Reply, now: float
    ) -> None:
        file_number, offset, size_bytes = _numbers(
            "snapshot_read", arguments, "a file's number", "an offset", "a size in bytes"
        )
        backup = self._backups.get(connection)
        if backup is None or backup.archive is None:
            raise BadCommand(
                "snapshot_read: no backup is open on this connection; one that is asked for "
                f"nothing for {SILENCE_S:g} s is closed"
            )
        files = backup.archive.table.files
        end = files[file_number].entry.end if file_number < len(files) else 0
        if not 0 < size_bytes <= min(READ_BYTES_MAX, end - offset):
            raise BadCommand(
                f"snapshot_read: {size_bytes} bytes at {offset} of file {file_number} of "
                f"{len(files)}, which has {end}; 1 to {READ_BYTES_MAX} are allowed"
            )
        if len(backup.reads) >= READS_MAX:
            raise Overloaded(f"{READS_MAX} reads of this backup wait already")
        backup.heard_at = now
        backup.reads.append(_Read(reply, file_number, offset, size_bytes))

    def _end(
        self, connection: ClientConnection, arguments: list[Any], reply: Reply, now: float
    ) -> None:
        _numbers("snapshot_end", arguments)
        self.forget(connection)
        reply(True)

    # -- beside the loop -------------------------------------------------------------------------

    def _opened(self, backup: _Backup, archive: ArchivePort | None) -> None:
        assert archive is not None, f"no prefix, and it speaks for {self._compacting.index}"
        backup.is_opening = False
        backup.archive = archive
        if backup.is_closed:
            self._release(backup)

    def _answer(self, backup: _Backup, read: _Read) -> None:
        assert backup.archive is not None, f"{read} with nothing to read"
        self._allowance.take(read.size_bytes)

        def then(data: bytes) -> None:
            if not backup.is_closed:
                read.reply(data)

        job = ReadArchive(backup.archive, read.file_number, read.offset, read.size_bytes)
        self._storage.post(job, then)

    def _release(self, backup: _Backup) -> None:
        """Let the files go."""
        archive, backup.archive = backup.archive, None
        backup.reads.clear()
        if archive is not None:
            self._storage.post(CloseArchive(archive), lambda _: None)
            self._storage.post(Sweep(), lambda _: None)


def _numbers(operation: str, arguments: list[Any], *meanings: str) -> list[int]:
    """Check that the arguments are so many numbers. Raises BadCommand."""
    if len(arguments) != len(meanings) or not all(
        type(one) is int and one >= 0 for one in arguments
    ):
        raise BadCommand(f"{operation} takes {', '.join(meanings) or 'nothing'}")
    return arguments
