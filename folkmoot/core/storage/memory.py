"""A disk in memory: the same contract as a directory, with faults.

What it is: the storage of a member without a data directory, and the faulty disk of tests and of
the simulator: the real segment code runs on it. What it is not: it never sleeps and draws no
randomness of its own.

Who drives it: `LogStore`, like any other `Files`; and whoever simulates, through `crash` and the
faults.

What a power cut does here (ALICE, OSDI'14, says which file systems do worse than one thinks):
- synced bytes stay. Each unsynced write survives or is lost on its own, whatever its order; one
  that survives may do so in part: any prefix, to the byte, or any subset of its 512-byte blocks;
- synced names stay. Each unsynced create, rename or unlink survives or is lost on its own. A rename
  is atomic: both its names change or neither;
- after a failed sync what it should have made durable is still seen, and taken for clean: later
  syncs succeed and skip it, until it is written again. Linux does that (bugs F2).

Memory is taken for what was written, not for what was preallocated; nothing is copied but what a
write replaces, until it is synced.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import attrs

from folkmoot.core.errors import DirectoryLocked, StorageError, StorageFull

_BLOCK_BYTES = 512
UNLIMITED_BYTES = 1 << 62
"""What is free on a disk in memory without a capacity."""


class PowerCut(Exception):
    """The power went instead of this operation. Nothing works until `MemoryFiles.crash`."""


@attrs.define
class _Change:
    """One unsynced change of a file: how to undo it and how to do it again."""

    offset: int
    before: bytes
    after: bytes | None
    """None: the file was cut at `offset`."""
    length_before: int
    size_before: int
    size_after: int


@attrs.define(eq=False)
class _Inode:
    """One file. `data` ends with the last byte written; then zeros up to `size_bytes`."""

    data: bytearray = attrs.field(factory=bytearray)
    size_bytes: int = 0
    pending: list[_Change] = attrs.field(factory=list)
    beneath: _Inode | None = None
    """What is really on the disk, once a sync has failed."""

    def put(self, offset: int, data: bytes) -> None:
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data
        self.size_bytes = max(self.size_bytes, offset + len(data))

    def cut(self, size_bytes: int) -> None:
        del self.data[size_bytes:]
        self.size_bytes = size_bytes

    def write(self, offset: int, data: bytes, size_after: int) -> None:
        before = bytes(self.data[offset : offset + len(data)])
        length, size = len(self.data), self.size_bytes
        self.pending.append(_Change(offset, before, data, length, size, size_after))
        if data:
            self.put(offset, data)
        self.size_bytes = size_after

    def truncate(self, size_bytes: int) -> None:
        before, length = bytes(self.data[size_bytes:]), len(self.data)
        change = _Change(size_bytes, before, None, length, self.size_bytes, size_bytes)
        self.pending.append(change)
        self.cut(size_bytes)

    def sync(self) -> None:
        if self.beneath is not None:
            for change in self.pending:
                self.beneath.redo(change, [(0, len(change.after or b""))])
        self.pending.clear()

    def fail_sync(self) -> None:
        """Forget, as a kernel does, that what waits was never written."""
        waiting = self.undo_all()
        if self.beneath is None:
            self.beneath = _Inode(bytearray(self.data), self.size_bytes)
        for change in waiting:
            self.redo(change, [(0, len(change.after or b""))])

    def lose(self, rng: random.Random, survive: float) -> None:
        """Come to what is on the disk, with what survives of the rest."""
        waiting = self.undo_all()
        if self.beneath is not None:
            self.data, self.size_bytes = self.beneath.data, self.beneath.size_bytes
            self.beneath = None
        for change in waiting:
            self.redo(change, _surviving_parts(rng, survive, len(change.after or b"")))

    def undo_all(self) -> list[_Change]:
        """Go back to what is durable; return what was undone, oldest first."""
        for change in reversed(self.pending):
            if change.after is None:
                self.data.extend(change.before)
            else:
                self.data[change.offset : change.offset + len(change.before)] = change.before
                del self.data[change.length_before :]
            self.size_bytes = change.size_before
        undone, self.pending = self.pending, []
        return undone

    def redo(self, change: _Change, parts: list[tuple[int, int]]) -> None:
        """Do an undone change again, or the parts of it that reached the disk."""
        if not parts:
            return
        if change.after is None:
            if change.size_after < self.size_bytes:
                self.cut(change.size_after)
            return
        for start, stop in parts:
            self.put(change.offset + start, change.after[start:stop])
        if not change.after:
            self.size_bytes = max(self.size_bytes, change.size_after)


_Names = list[tuple[str, _Inode | None]]
"""What becomes of some names, together: a file, or nothing."""


class MemoryFiles:
    """Files in memory. What was closed can be opened again: the files are still there.

    Invariants:
    - `_durable` names the files that a power cut leaves; `_name_changes` leads from it to `_names`;
    - a file's durable bytes are its bytes with `pending` undone, newest first.
    """

    def __init__(self, contents: Mapping[str, bytes] | None = None) -> None:
        self._names: dict[str, _Inode] = {}
        for name, data in (contents or {}).items():
            self._names[name] = _Inode(bytearray(data), len(data))
        self._durable = dict(self._names)
        self._name_changes: list[tuple[str, _Names]] = []
        self._locked = False
        self._off = False
        self._failures: dict[str, tuple[int, StorageError]] = {}
        self.operations = 0
        """Calls so far that change something or make it durable: these are the failpoints."""
        self.cut_power_at: int | None = None
        """PowerCut is raised instead of the operation with this number (the first is 1)."""
        self.capacity_bytes: int | None = None
        """StorageFull is raised by a write beyond this many bytes in all files together."""

    def describe(self, name: str) -> str:
        """Return the name, marked as one in memory."""
        return f"memory:{name}"

    def lock(self) -> None:
        """Take the disk until `close` or `crash`."""
        if self._locked:
            raise DirectoryLocked("this disk in memory is held by another log of this process")
        self._locked = True

    def create(self, name: str, size_bytes: int = 0) -> None:
        """Make a new file of zeros."""
        self._step("create", name)
        if name in self._names:
            raise StorageError(f"cannot create {name}: it exists")
        self._rename([(name, _Inode())])
        if size_bytes:
            self.extend(name, size_bytes)

    def extend(self, name: str, size_bytes: int) -> None:
        """Grow a file with zeros, which take no memory here."""
        self._step("extend", name)
        inode = self._find(name)
        if size_bytes > inode.size_bytes:
            self._check_room(size_bytes - inode.size_bytes)
            inode.write(inode.size_bytes, b"", size_bytes)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write all of `data`; if the disk is full, as much as fits."""
        inode = self._find(name)
        self._step("write", name)
        size_after = max(inode.size_bytes, offset + len(data))
        try:
            self._check_room(size_after - inode.size_bytes)
        except StorageFull:
            fits = inode.size_bytes - offset
            if fits > 0:
                inode.write(offset, data[:fits], inode.size_bytes)
            raise
        inode.write(offset, data, size_after)

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Read, with zeros for what was allocated and never written."""
        if self._off:
            raise PowerCut
        inode = self._find(name)
        stop = inode.size_bytes
        if size_bytes is not None:
            stop = min(stop, offset + size_bytes)
        # A slice, not a view: a file cannot grow in another thread while there is a view of it.
        data = bytes(inode.data[offset:stop])
        return data if len(data) >= stop - offset else data.ljust(stop - offset, b"\0")

    def size(self, name: str) -> int:
        """Return the size in bytes."""
        return self._find(name).size_bytes

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut the file."""
        self._step("truncate", name)
        inode = self._find(name)
        if size_bytes < inode.size_bytes:
            inode.truncate(size_bytes)

    def sync(self, name: str) -> None:
        """Make the bytes durable."""
        inode = self._find(name)
        try:
            self._step("sync", name)
        except StorageError:
            inode.fail_sync()
            raise
        inode.sync()

    def release(self, name: str) -> None:
        """Do nothing: there are no handles here."""

    def rename(self, old: str, new: str) -> None:
        """Rename atomically."""
        self._step("rename", old)
        self._rename([(new, self._find(old)), (old, None)])

    def unlink(self, name: str) -> None:
        """Remove the name."""
        self._step("unlink", name)
        self._find(name)
        self._rename([(name, None)])

    def sync_dir(self, subdir: str = "") -> None:
        """Make the directory's names durable."""
        self._step("sync_dir", subdir)
        # In place: another thread may be making files in another directory.
        for change in [one for one in list(self._name_changes) if one[0] == subdir]:
            _apply(self._durable, change[1])
            self._name_changes.remove(change)

    def list(self, subdir: str = "") -> list[str]:
        """Return the names in a directory, sorted."""
        prefix = f"{subdir}/" if subdir else ""
        # A copy at once: another thread may be making files.
        names = list(self._names)
        inside = (name[len(prefix) :] for name in names if name.startswith(prefix))
        return sorted(name for name in inside if "/" not in name)

    def free_bytes(self) -> int:
        """Return what the capacity leaves."""
        if self.capacity_bytes is None:
            return UNLIMITED_BYTES
        return max(0, self.capacity_bytes - self._used_bytes())

    def close(self) -> None:
        """Give the lock up."""
        self._locked = False

    def kill(self) -> None:
        """End the process that has it open, wherever it is; the machine lives on.

        What was written is still seen and still not durable: a power cut may come later.
        """
        self._locked = self._off = False
        self._failures.clear()
        self.cut_power_at = None

    def crash(self, rng: random.Random, survive: float | None = None) -> None:
        """Cut the power: lose what is not durable, then be ready to be opened again.

        `survive` is the probability with which each unsynced change survives: 0 loses all, 1
        none; None draws 0, 1 or something between.
        """
        if survive is None:
            survive = rng.choice((0.0, rng.random(), rng.random(), 1.0))
        named = [one for _, names in self._name_changes for _, one in names if one is not None]
        everything = (*self._durable.values(), *self._names.values(), *named)
        inodes = {id(one): one for one in everything}
        for inode in inodes.values():
            inode.lose(rng, survive)
        for _, names in self._name_changes:
            if rng.random() < survive:
                _apply(self._durable, names)
        self._name_changes.clear()
        self._names = dict(self._durable)
        self.kill()

    def fail(self, operation: str, nth: int = 1, error: StorageError | None = None) -> None:
        """Let the `nth` call of `operation` from now on ("write", "sync", "rename", ...) fail."""
        default = StorageError(f"injected failure of {operation}")
        self._failures[operation] = (nth, error or default)

    def flip_bit(self, name: str, offset: int, bit: int = 0) -> None:
        """Damage a byte for good, as rot does."""
        inode = self._find(name)
        byte = self.read(name, offset, 1)[0] ^ (1 << bit)
        size = inode.size_bytes
        inode.put(offset, bytes((byte,)))
        assert inode.size_bytes == size, f"offset {offset} of {size}"

    def contents(self) -> dict[str, bytes]:
        """Return a copy of every file as the program sees it; `MemoryFiles` takes it."""
        return {name: self.read(name) for name in self._names}

    def _find(self, name: str) -> _Inode:
        inode = self._names.get(name)
        if inode is None:
            raise StorageError(f"cannot open memory:{name}: there is no such file")
        return inode

    def _rename(self, names: _Names) -> None:
        directory = names[0][0].rpartition("/")[0]
        _apply(self._names, names)
        self._name_changes.append((directory, names))

    def _check_room(self, more_bytes: int) -> None:
        if self.capacity_bytes is not None and more_bytes > 0:
            used = self._used_bytes()
            if used + more_bytes > self.capacity_bytes:
                full = f"{used} of {self.capacity_bytes} bytes used, {more_bytes} more needed"
                raise StorageFull(f"the disk in memory is full: {full}")

    def _used_bytes(self) -> int:
        # A copy at once, as in `list`.
        return sum(inode.size_bytes for inode in list(self._names.values()))

    def _step(self, operation: str, name: str) -> None:
        """Count a failpoint, and fail where that was asked for."""
        self.operations += 1
        if self._off or self.operations == self.cut_power_at:
            self._off = True
            raise PowerCut(f"at operation {self.operations}, {operation} {name!r}")
        if operation in self._failures:
            nth, error = self._failures.pop(operation)
            if nth <= 1:
                raise error
            self._failures[operation] = (nth - 1, error)


def _apply(names: dict[str, _Inode], changes: _Names) -> None:
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _surviving_parts(rng: random.Random, survive: float, size_bytes: int) -> list[tuple[int, int]]:
    """Choose which parts of one unsynced write reach the disk."""
    if survive >= 1.0:
        return [(0, size_bytes)]
    if rng.random() >= survive:
        return []
    kind = rng.randrange(3)
    if kind == 0 or not size_bytes:
        return [(0, size_bytes)]
    if kind == 1:
        return [(0, rng.randrange(size_bytes + 1))]
    starts = range(0, size_bytes, _BLOCK_BYTES)
    blocks = ((start, min(start + _BLOCK_BYTES, size_bytes)) for start in starts)
    return [block for block in blocks if rng.random() < 0.5]
