"""The port to the disk: a few synchronous file operations, and the real disk behind them.

What it is: the only way in which the storage touches the outside. `DirectoryFiles` is the real one;
`memory.MemoryFiles` is the same contract in memory, with faults. What it is not: it knows nothing
of segments, batches or terms, and it never decides what to do about an error.

Who drives it: `LogStore`. What is done to one file is done by one thread at a time; to different
ones, by the log's writer and by the housekeeping at once. `read` may be called from any thread.

Because every durable step of the storage is one call here, this seam is also the place for
failpoints: `MemoryFiles` counts the calls and cuts the power at the n-th. There are no others, and
the real disk pays nothing for them.

A name is relative to the data directory, with at most one `/`. Files get mode 0600, directories
0700.

What is assumed of the disk and the file system (and no more than this):
- after `sync(name)` returned, the bytes written to that file before survive a power cut;
- after `sync_dir(subdir)` returned, the names created, renamed and unlinked there before do;
- unsynced writes survive in any subset, in parts, in any order; `rename` is atomic, not durable;
- writing to a byte range does not damage durable bytes beside it (SQLite's "powersafe overwrite").
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Protocol, cast

from folkmoot.core.errors import DirectoryLocked, StorageError, StorageFull

_ZEROS = bytes(1 << 20)
_LOCK = "LOCK"


class Files(Protocol):
    """What the storage needs of a disk. Each method raises StorageError (StorageFull)."""

    def describe(self, name: str) -> str:
        """Return `name` as an operator would look for it. For messages."""

    def lock(self) -> None:
        """Take the directory for life, or raise DirectoryLocked naming who has it."""

    def create(self, name: str, size_bytes: int = 0) -> None:
        """Make a new file of `size_bytes` zeros that are really allocated. It must not exist."""

    def extend(self, name: str, size_bytes: int) -> None:
        """Grow a file to `size_bytes` with zeros that are really allocated. Never shrinks it."""

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write all of `data`; a short write is continued. Not durable before `sync`."""

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Read up to `size_bytes` (None: all) from `offset`; shorter at the end of the file."""

    def size(self, name: str) -> int:
        """Return the file's size in bytes."""

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut a file to `size_bytes`. Never grows it."""

    def sync(self, name: str) -> None:
        """Make the file's bytes durable (fdatasync)."""

    def release(self, name: str) -> None:
        """Give up the handle kept for a file that will not be written any more."""

    def rename(self, old: str, new: str) -> None:
        """Rename atomically, replacing `new`. Not durable before `sync_dir`."""

    def unlink(self, name: str) -> None:
        """Remove a file. Not durable before `sync_dir`."""

    def sync_dir(self, subdir: str = "") -> None:
        """Make the names in a directory durable."""

    def list(self, subdir: str = "") -> list[str]:
        """Return the names in a directory, sorted; none if there is no such directory."""

    def free_bytes(self) -> int:
        """Return how many more bytes the disk has room for. Safe in any thread."""

    def close(self) -> None:
        """Give up every handle and the lock."""


def _failed(what: str, error: OSError) -> StorageError:
    """Translate, once and for all, what the operating system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{what}: {error.strerror}; free space on this disk and start again")
    return StorageError(
        f"{what}: {error.strerror} (errno {error.errno}); check the disk and its log"
    )


class DirectoryFiles:
    """A real directory.

    Invariants:
    - a handle that was written to stays open until it was synced and released: closing it before
      could lose the kernel's only report of a failed write-back;
    - `read` opens a handle of its own, so a reader in another thread never meets a closed one;
    - the lock's handle is open exactly as long as this object may write.
    """

    _pwrite = staticmethod(os.pwrite)
    """Overridden by a test that writes short."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Make the directory (and its parents) where it is missing. Nothing is locked yet."""
        self.root = Path(root)
        self._handles: dict[str, int] = {}
        self._lock_handle: int | None = None
        try:
            if not self.root.is_dir():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._sync_path(self.root.parent)
        except OSError as error:
            raise _failed(f"cannot make the data directory {self.root}", error) from error

    def describe(self, name: str) -> str:
        """Return the full path."""
        return str(self.root / name)

    def lock(self) -> None:
        """Take LOCK by flock (it ends with the process) and write down who holds it."""
        assert self._lock_handle is None, f"{self.root} is already locked by this object"
        path = self.root / _LOCK
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _failed(f"cannot open {path}", error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            holder = f"pid {os.getpid()} on {socket.gethostname()} since {since}\n"
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder.encode(), 0)
        except OSError as error:
            holder = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise _failed(f"cannot lock {path}", error) from error
            raise DirectoryLocked(
                f"{self.root} is held by {holder or 'another process'}: one process per data "
                "directory; stop that one, or choose another directory"
            ) from None
        self._lock_handle = handle

    def create(self, name: str, size_bytes: int = 0) -> None:
        """Make a new file; its directory too where it is missing, durably."""
        path = self.root / name
        assert name not in self._handles, f"{name} is already open"
        try:
            self._make_directory(path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._handles[name] = os.open(path, flags, 0o600)
        except OSError as error:
            raise _failed(f"cannot create {path}", error) from error
        self.extend(name, size_bytes)

    def extend(self, name: str, size_bytes: int) -> None:
        """Write zeros. (An allocation without writing them would make each later sync dearer.)"""
        offset = self.size(name)
        while offset < size_bytes:
            zeros = _ZEROS[: size_bytes - offset]
            self.write(name, offset, zeros)
            offset += len(zeros)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`."""
        handle = self._handle(name)
        try:
            done = self._pwrite(handle, data, offset)
            while done < len(data):
                more = self._pwrite(handle, memoryview(data)[done:], offset + done)
                if more == 0:
                    raise OSError(errno.EIO, "the disk takes no more bytes")
                done += more
        except OSError as error:
            what = f"cannot write {len(data)} bytes at offset {offset} of {self.root / name}"
            raise _failed(what, error) from error

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Read through a handle of its own. Safe in any thread."""
        path = self.root / name
        try:
            with path.open("rb", buffering=0) as file:
                wanted = os.fstat(file.fileno()).st_size - offset
                if size_bytes is not None:
                    wanted = min(wanted, size_bytes)
                parts: list[bytes] = []
                while wanted > 0:
                    part = os.pread(file.fileno(), wanted, offset)
                    if not part:
                        break
                    parts.append(part)
                    offset += len(part)
                    wanted -= len(part)
                return parts[0] if len(parts) == 1 else b"".join(parts)
        except OSError as error:
            raise _failed(f"cannot read {path} at offset {offset}", error) from error

    def size(self, name: str) -> int:
        """Return the file's size in bytes."""
        path = self.root / name
        try:
            return path.stat().st_size
        except OSError as error:
            raise _failed(f"cannot look at {path}", error) from error

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut the file."""
        if self.size(name) <= size_bytes:
            return
        try:
            os.ftruncate(self._handle(name), size_bytes)
        except OSError as error:
            raise _failed(f"cannot cut {self.root / name} to {size_bytes}", error) from error

    def sync(self, name: str) -> None:
        """Make it durable. An error is final: the kernel may have dropped the bytes."""
        try:
            _datasync(self._handle(name))
        except OSError as error:
            raise _failed(f"cannot sync {self.root / name}", error) from error

    def release(self, name: str) -> None:
        """Close the handle."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            try:
                os.close(handle)
            except OSError as error:
                raise _failed(f"cannot close {self.root / name}", error) from error

    def rename(self, old: str, new: str) -> None:
        """Rename, into a directory that is made where it is missing. Kept handles are closed."""
        self.release(old)
        self.release(new)
        try:
            self._make_directory((self.root / new).parent)
            (self.root / old).replace(self.root / new)
        except OSError as error:
            raise _failed(f"cannot rename {self.root / old} to {new}", error) from error

    def unlink(self, name: str) -> None:
        """Remove the file."""
        self.release(name)
        try:
            (self.root / name).unlink()
        except OSError as error:
            raise _failed(f"cannot remove {self.root / name}", error) from error

    def sync_dir(self, subdir: str = "") -> None:
        """Make the directory's names durable."""
        try:
            self._sync_path(self.root / subdir)
        except OSError as error:
            raise _failed(f"cannot sync the directory {self.root / subdir}", error) from error

    def list(self, subdir: str = "") -> list[str]:
        """Return the names, sorted."""
        path = self.root / subdir
        try:
            return sorted(entry.name for entry in path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failed(f"cannot list {path}", error) from error

    def free_bytes(self) -> int:
        """Return what the file system leaves to this user; a quota may leave less."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise _failed(f"cannot ask how much is free at {self.root}", error) from error
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Close everything; the lock goes last."""
        for name in list(self._handles):
            self.release(name)
        if self._lock_handle is not None:
            os.close(self._lock_handle)
            self._lock_handle = None

    def _handle(self, name: str) -> int:
        handle = self._handles.get(name)
        if handle is None:
            path = self.root / name
            try:
                handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise _failed(f"cannot open {path}", error) from error
            self._handles[name] = handle
        return handle

    def _make_directory(self, path: Path) -> None:
        """Make a directory where it is missing; its own name is durable then."""
        if not path.is_dir():
            path.mkdir(mode=0o700, exist_ok=True)
            self._sync_path(self.root)

    @staticmethod
    def _sync_path(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _datasync(handle: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:  # macOS: fsync alone stops at the drive's cache
        fcntl.fcntl(handle, full)
    else:
        os.fdatasync(handle)


class _WithoutSync:
    def __init__(self, files: Files) -> None:
        self._files = files

    def sync(self, name: str) -> None:
        """Do nothing."""

    def sync_dir(self, subdir: str = "") -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._files, name)


def without_sync(files: Files) -> Files:
    """Return the same files, never synced: for tests and measurements (`StorageConfig.fsync`)."""
    return cast("Files", _WithoutSync(files))
