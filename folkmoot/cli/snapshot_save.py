"""Saving a backup: from a running cluster, or from the directory of a member that is stopped.

What was acknowledged before the command began is in a backup of a running cluster: a linearizable
read tells an index, and the server brings a prefix that speaks for that index or a later one.

The file is complete and durable under its name, or not there: it is written as `NAME.xxxxxxxx.
partial`, read back, described, synced and only then renamed. A process that is killed with SIGKILL
leaves that, which is no backup and may be removed.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import attrs

from folkmoot.cli.conversation import Conversation, conversation
from folkmoot.cli.members import look
from folkmoot.cli.progress import progress
from folkmoot.cluster import addresses_of
from folkmoot.core.backups import READ_BYTES_MAX, SILENCE_S
from folkmoot.core.errors import (
    NoLeader,
    RemoteProtocolError,
    StorageError,
    StorageFull,
    UsageError,
)
from folkmoot.core.storage import manifest
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.backup import BackupResource, BackupWriter
from folkmoot.core.storage.files import DirectoryFiles
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.survey import Survey, survey

if TYPE_CHECKING:
    from folkmoot.cli.options import Options

POLL_S = 0.05
SAY_AFTER_S = 2.0
"""A compaction that takes longer is told."""
_WINDOW = 4
"""So many chunks are asked for and not here yet."""
_COPY_BYTES = 1 << 20


class NoRoom(StorageFull):
    """The disk that a file is to be written to has no room for it."""

    hint = "free some space there, or name another place"


@attrs.frozen
class Saved:
    """A backup that was written."""

    file: Path
    writer: BackupWriter
    found: Survey
    log_entries: int | None = None
    """Of the log behind it, which is not in it; None for one of a running cluster."""

    def as_data(self) -> dict[str, Any]:
        """The stable shape in JSON."""
        table = self.writer.table
        return {
            "file": str(self.file),
            "index": table.point.index,
            "term": table.point.term,
            "epoch": table.epoch,
            "cluster_id": table.cluster_id.hex(),
            "size_bytes": table.size_bytes,
            "resources": len(self.found.resources),
            "entries": sum(one.entries for one in self.found.resources.values()),
            "sessions": self.found.sessions,
            "log_entries": self.log_entries,
        }


class Target:
    """The file to be written, by way of its partial one."""

    def __init__(self, path: Path, *, force: bool) -> None:
        """Raises UsageError for a place that cannot be written to, or a file that is there."""
        self.path = path
        self._force = force
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent} is no directory")
        if path.is_dir():
            raise UsageError(f"{path} is a directory; name a file")
        self._refuse_existing()
        self.files = DirectoryFiles(path.parent)
        self.partial = f"{path.name}.{secrets.token_hex(4)}.partial"

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self._force:
            raise UsageError(f"{self.path} is there already; --force replaces it")

    def begin(self, table: bytes) -> BackupWriter:
        """Begin to write. Raises NoRoom at once where it will not fit."""
        with self._naming_itself():
            writer = BackupWriter(self.files, self.partial, table)
        needed, free = writer.table.size_bytes, self.files.free_bytes()
        if needed > free:
            raise NoRoom(f"{self.path} will take {needed} bytes, and {free} are free there")
        return writer

    def append(self, writer: BackupWriter, file_number: int, data: bytes) -> None:
        """Write the next bytes."""
        with self._naming_itself():
            writer.append(file_number, data)

    def finish(self, writer: BackupWriter, made_by: str, found: Survey) -> None:
        """Describe it, and give it its name."""
        self._refuse_existing()
        resources = [BackupResource(*attrs.astuple(one)) for one in found.resources.values()]
        made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._naming_itself():
            writer.finish(self.path.name, made_at, made_by, found.sessions, resources)

    def discard(self) -> None:
        """Leave nothing behind, unless it was finished."""
        try:
            if self.partial in self.files.list():
                self.files.unlink(self.partial)
        finally:
            self.files.close()

    @contextmanager
    def _naming_itself(self) -> Iterator[None]:
        """Say which disk it is that is full: not a server's."""
        try:
            yield
        except StorageFull as error:
            raise NoRoom(f"{self.path} cannot be written: {Exception.__str__(error)}") from error


@contextmanager
def target(path: Path, *, force: bool) -> Iterator[Target]:
    """Write a file in the block: complete behind it, or gone."""
    found = Target(path, force=force)
    try:
        yield found
    finally:
        found.discard()


# -- from a running cluster ------------------------------------------------------------------------


async def save_online(options: Options, path: Path, *, force: bool) -> Saved:
    """Save from the leader."""
    with target(path, force=force) as file:
        view = await look(addresses_of(options.url), timeout_s=min(options.timeout, 2.0))
        leader = view.leader
        if leader is None:
            raise NoLeader(f"{view.up} of {len(view.members)} members answer, and none leads")
        async with conversation(leader.client_address, timeout_s=options.timeout) as talk:
            table = await _prepared(options, talk)
            writer = _begin(file, talk, table)
            with progress(options, "saving", writer.table.size_bytes) as bar:
                async for number, data in _chunks(talk, writer):
                    file.append(writer, number, data)
                    bar.update(writer.written_bytes)
            await talk.ask("snapshot_end")
        found = await _read_back(options, writer)
        cluster = view.best.get("cluster")
        file.finish(writer, f"{_who()}, from node {leader.node_id} of cluster {cluster!r}", found)
    return Saved(path, writer, found)


def _begin(file: Target, talk: Conversation, table: bytes) -> BackupWriter:
    try:
        return file.begin(table)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{talk.address}: {Exception.__str__(error)}") from None


async def _prepared(options: Options, talk: Conversation) -> bytes:
    """Have the server compact up to what is acknowledged now; return the table of its prefix."""
    index = await talk.index_now()
    say_at: float = anyio.current_time() + SAY_AFTER_S
    while True:
        answer = await talk.ask("snapshot_begin", index)
        if answer["phase"] == "ready":
            table: bytes = answer["table"]
            return table
        if anyio.current_time() >= say_at and not options.json:
            import click

            click.echo(f"waiting for the server to compact up to index {index}", err=True)
            say_at = float("inf")
        await anyio.sleep(POLL_S)


async def _chunks(talk: Conversation, writer: BackupWriter) -> AsyncIterator[tuple[int, bytes]]:
    """Ask for all bytes, some ahead; yield them in order as (file number, bytes)."""
    asked: list[tuple[int, int]] = []
    for number, offset, size_bytes in _places(writer):
        if len(asked) >= _WINDOW:
            yield await _chunk(talk, *asked.pop(0))
        await talk.send("snapshot_read", number, offset, size_bytes)
        asked.append((number, size_bytes))
    for one in asked:
        yield await _chunk(talk, *one)


def _places(writer: BackupWriter) -> Iterator[tuple[int, int, int]]:
    for number, one in enumerate(writer.table.files):
        for offset in range(0, one.entry.end, READ_BYTES_MAX):
            yield number, offset, min(READ_BYTES_MAX, one.entry.end - offset)


async def _chunk(talk: Conversation, number: int, size_bytes: int) -> tuple[int, bytes]:
    data = await talk.answer(timeout_s=SILENCE_S)  # the server may be slow on purpose
    if type(data) is not bytes or len(data) != size_bytes:
        raise RemoteProtocolError(f"{talk.address} sent no {size_bytes} bytes of file {number}")
    return number, data


async def _read_back(options: Options, writer: BackupWriter) -> Survey:
    """Verify all that was written, and count what is in it."""
    steps = survey(writer.source())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Survey = end.value
            return found
        await anyio.lowlevel.checkpoint()


# -- from a directory ------------------------------------------------------------------------------


def save_offline(options: Options, path: Path, directory: Path, *, force: bool) -> Saved:
    """Save the compacted prefix of a member that is stopped."""
    if not (directory / manifest.NAME).is_file():
        raise UsageError(f"{directory} is no data directory: it has no {manifest.NAME}")
    with target(path, force=force) as file, _locked(directory) as files:
        found = manifest.decode_manifest(files.read(manifest.NAME), str(directory / manifest.NAME))
        if not found.files:
            raise UsageError(
                f"{directory} holds no compacted prefix yet; start the server and save from it"
            )
        archive = Archive(files, PrefixStore(files, found), found)
        writer = file.begin(archive.encoded)
        with progress(options, "saving", writer.table.size_bytes) as bar:
            for number, one in enumerate(writer.table.files):
                for offset in range(0, one.entry.end, _COPY_BYTES):
                    data = archive.read(number, offset, min(_COPY_BYTES, one.entry.end - offset))
                    file.append(writer, number, data)
                    bar.update(writer.written_bytes)
        counted = anyio.run(_read_back, options, writer)
        file.finish(writer, f"{_who()}, from {directory}", counted)
        return Saved(path, writer, counted, _entries_behind(files, found))


@contextmanager
def _locked(directory: Path) -> Iterator[DirectoryFiles]:
    """Hold a directory, so that no server starts in it meanwhile. Raises DirectoryLocked."""
    files = DirectoryFiles(directory)
    files.lock()
    try:
        yield files
    finally:
        files.close()


def _entries_behind(files: DirectoryFiles, found: manifest.Manifest) -> int:
    """Count the entries of the log behind the prefix, as far as they verify."""
    from folkmoot.core.storage.recovery import walk
    from folkmoot.core.storage.segment import Segment

    active = found.segments[-1]
    try:
        segment = Segment.load(files, active, 0, 0)
        walk(segment, files.read(segment.name))
    except StorageError:
        return max(active.first_index - 1 - found.compaction.index, 0)
    return max(segment.last_index - found.compaction.index, 0)


def _who() -> str:
    from importlib.metadata import version

    return f"folkmoot {version('folkmoot')} on {socket.gethostname()}"
