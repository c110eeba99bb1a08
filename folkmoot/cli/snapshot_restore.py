"""From a backup to the data directory of one member of a new cluster.

The backup is verified, all of it, and its state restored, before anything is written. The
directory is built beside its place, as `DIR.restoring`, and renamed when it is complete and
durable: so DIR is a whole one or none, and what a crash leaves behind the next try clears away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from folkmoot.cli.progress import progress
from folkmoot.core.errors import StorageFull, UsageError
from folkmoot.core.machine import Machine, Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.new_cluster import Beginning, beginning
from folkmoot.core.server import cluster_id_of
from folkmoot.core.storage.backup import Backup
from folkmoot.core.storage.files import DirectoryFiles
from folkmoot.core.storage.recovery import Identity
from folkmoot.core.storage.restored_directory import FirstContent, write_directory
from folkmoot.primitives import BUILTIN_MACHINES

if TYPE_CHECKING:
    from folkmoot.cli.options import Options
    from folkmoot.core.config import NodeConfig

SUFFIX = ".restoring"
_OURS = frozenset({"LOCK", "MANIFEST", "MANIFEST.new", "hard_state", "log", "prefix"})
"""What a directory that is being built may hold."""


class NoRoom(StorageFull):
    """The disk that the directory is to be on has no room for it."""

    hint = "free some space there, or name another directory"


@attrs.frozen
class Restored:
    """A directory that was made."""

    directory: Path
    content: FirstContent
    state: Multiplexer

    def as_data(self) -> dict[str, Any]:
        """The stable shape in JSON."""
        content, identity = self.content, self.content.identity
        return {
            "directory": str(self.directory),
            "node_id": identity.node_id,
            "cluster_id": identity.cluster_id_after(content.restore_id).hex(),
            "epoch": content.epoch,
            "index": content.point.index,
            "resources": len(self.state.directory.resources),
            "sessions_ended": len(self.state.sessions),
        }


def restore(
    options: Options,
    path: Path,
    config: NodeConfig,
    machines: Sequence[type[Machine]],
    bump: int,
) -> Restored:
    """Do all of it."""
    assert config.data_dir is not None, "no directory to restore into"
    directory = Path(config.data_dir)
    _refuse_existing(directory)
    backup = open_backup(path)
    state = verified(options, backup, config, Registry.of([*BUILTIN_MACHINES, *machines]))
    begun = beginning(backup.table, backup.id, state, config.members, bump)
    content = first_content(config, begun)
    try:
        _check_room(directory, backup)
        _build(options, directory, backup, content)
    except StorageFull as error:
        raise NoRoom(f"{directory} cannot be made: {Exception.__str__(error)}") from error
    return Restored(directory, content, state)


def open_backup(path: Path) -> Backup:
    """Open a backup. Raises UsageError where there is no file, StorageCorrupt where it is none."""
    if not path.is_file():
        raise UsageError(f"{path} is no file")
    return Backup.open(DirectoryFiles(path.absolute().parent), path.name)


def verified(
    options: Options, backup: Backup, config: NodeConfig, registry: Registry
) -> Multiplexer:
    """Verify every byte, and make the state of it, as a server that starts does.

    Raises StorageCorrupt naming the offset, UsageError for a resource that no machine serves.
    """
    with progress(options, "verifying", backup.size_bytes) as bar:
        bar.finish(backup.verify())
    entries = backup.description().entries
    try:
        with progress(options, "restoring the state", entries, "entries") as bar:
            return bar.finish(Multiplexer.restoring(registry, config.limits, backup.source()))
    except UsageError as error:
        raise UsageError(
            f"{Exception.__str__(error)}; name the machines that its servers had with --machine"
        ) from error


def first_content(config: NodeConfig, begun: Beginning) -> FirstContent:
    """Say what this member's directory holds beside the files of the backup."""
    cluster_id = cluster_id_of(config.cluster, config.members)
    return FirstContent(
        identity=Identity(cluster_id, config.node_id, begun.members),
        restore_id=begun.restore_id,
        epoch=begun.epoch,
        point=begun.point,
        records=begun.records,
        batch=begun.batch,
        segment_bytes=config.storage.segment_bytes,
    )


def _refuse_existing(directory: Path) -> None:
    """Refuse a place where something is already."""
    if (directory / "MANIFEST").exists():
        raise UsageError(
            f"{directory} holds a member's data already; name another directory, or move that away"
        )
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is no directory")
    if directory.is_dir() and (names := sorted(os.listdir(directory))):
        raise UsageError(f"{directory} is not empty, it has {names[0]}; name another directory")


def _check_room(directory: Path, backup: Backup) -> None:
    parent = directory.absolute().parent
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.statvfs(parent)
    free = found.f_bavail * found.f_frsize
    if backup.size_bytes > free:
        raise NoRoom(f"{directory} will take {backup.size_bytes} bytes, and {free} are free there")


def _build(options: Options, directory: Path, backup: Backup, content: FirstContent) -> None:
    beside = directory.absolute().with_name(directory.absolute().name + SUFFIX)
    with _built_beside(beside) as files:
        with progress(options, "writing", backup.table.size_bytes) as bar:
            bar.finish(write_directory(files, backup, content))
        _refuse_existing(directory)
        try:
            beside.rename(directory.absolute())
        except OSError as error:
            raise UsageError(
                f"{beside} cannot be renamed to {directory}: {error.strerror}; "
                "where that is a mount point, name a directory below it"
            ) from error
        DirectoryFiles(directory.absolute().parent).sync_dir()


@contextmanager
def _built_beside(path: Path) -> Iterator[DirectoryFiles]:
    """Hold an empty directory in the block; what is left of it behind the block is removed."""
    files = DirectoryFiles(path)
    try:
        files.lock()
        strange = sorted({*os.listdir(path)} - _OURS)
        if strange:
            raise UsageError(f"{path} is in the way: it holds {strange[0]}; move it away")
        try:
            _clear(path)
            yield files
        finally:
            if path.exists():
                shutil.rmtree(path)
    finally:
        files.close()


def _clear(path: Path) -> None:
    """Remove what an earlier try has left."""
    for one in path.iterdir():
        if one.is_dir():
            shutil.rmtree(one)
        elif one.name != "LOCK":
            one.unlink()
