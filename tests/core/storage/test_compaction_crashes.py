"""The end comes at every file operation of a compaction, and of a prefix's way to another disk.

The power is cut, and unsynced writes and names are lost in any subset; or the process is killed; or
the disk fails. What opens then is the old prefix, whole, or the new one, whole, with the log that
goes with it; a transfer goes on where it was, and nothing that is whole is asked for again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from random import Random

import pytest

from folkmoot.core.batch import Group, Kind, encode_batch
from folkmoot.core.errors import StorageError, StorageFull
from folkmoot.core.prefix import Frozen, Ledger
from folkmoot.core.storage.log_store import HardState, LogStore
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from tests.core.storage.history import Contents, contents, equal, small_steps
from tests.core.storage.support import Write, open_log
from tests.core.storage.transfers import Source, begun, install, receive

End = Callable[[MemoryFiles, int], None]
"""Ends a process at the n-th operation; leaves the disk as its next one finds it."""


def cut(survive: float, seed: int = 0) -> End:
    return lambda files, at: files.crash(Random(at * 10 + seed), survive)


ENDS: dict[str, End] = {
    "killed": lambda files, _: files.kill(),
    "all lost": cut(0.0),
    "all kept": cut(1.0),
    "half lost": cut(0.5),
    "half lost, others": cut(0.5, 1),
    "half lost, others again": cut(0.5, 2),
    "some lost": cut(0.8, 3),
    "most lost": cut(0.2, 4),
}
FAILING = ("create", "extend", "write", "truncate", "sync", "rename", "unlink", "sync_dir")


@pytest.fixture(autouse=True)
def _many_blocks() -> Iterator[None]:
    with small_steps():
        yield


def disk_of(store: LogStore) -> MemoryFiles:
    assert isinstance(store._files, MemoryFiles)
    return store._files


def prefix_of(store: LogStore) -> Contents:
    return contents(store.prefix.read_back())


def listed(store: LogStore) -> None:
    """Nothing is there that is not listed, and the other way round (bugs E13)."""
    names = {f"{one.file_id:010d}" for one in store.prefix.entries}
    disk = disk_of(store)
    assert {name.rpartition(".")[0] for name in disk.list("prefix")} == names
    segments = {one.name.rpartition("/")[2] for one in store._log.segments}
    assert set(disk.list("log")) == segments
    assert "MANIFEST.new" not in disk.list()


# -- a compaction ------------------------------------------------------------------------------


class Compacting:
    """A second compaction of a log, with everything that belongs to it."""

    def __init__(self) -> None:
        self.compactor = begun(7, keys=40, record_bytes=2000)
        self.compactor.write(25)
        self.compactor.compact()
        self.old_index, self.old = self.store.compaction.index, self.compactor.history.expected()
        self.batches = list(self.store.batches())
        self.files = disk_of(self.store)

    @property
    def store(self) -> LogStore:
        return self.compactor.store

    def run(self) -> None:
        made = [self.compactor.history.batch(value_bytes=30) for _ in range(25)]
        self.batches += made
        self.new_index, self.new = 0, self.old
        self.compactor.store.write([Write(1000, batches=made)])
        self.compactor.store.roll()
        frozen = self.compactor.history.freeze()
        self.new_index, self.new = frozen.index, self.compactor.history.expected()
        compaction = self.store.compact([frozen])
        for _ in compaction.steps():
            pass
        self.store.install(compaction)
        self.store.trim(self.old_index)
        self.store.sweep()

    def check(self) -> None:
        """The old or the new prefix, whole, and the log behind where it starts."""
        store = open_log(self.files)
        index = store.compaction.index
        assert index in (self.old_index, self.new_index)
        assert equal(prefix_of(store), self.new if index == self.new_index else self.old)
        found = list(store.batches())
        behind = [one for one in self.batches if one.last_index > store.start.index]
        assert found == behind[: len(found)]
        assert store.last_index >= max(index, self.old_index)
        listed(store)
        go_on(store)


def go_on(store: LogStore) -> None:
    """The next compaction works on whatever was left, and a restart finds it."""
    source = store.prefix.read_back()
    before = contents(source)
    store.prefix.loaded(source)
    index = store.last_index + 1
    ticks = encode_batch(9, index, 1 << 30, [Group(Kind.TICK, 1, b"")])
    store.write([Write(1, HardState(9, None), batches=[ticks])])
    store.roll()
    frozen = Frozen(index, 1 << 30, Ledger(), {}, lambda *_: ("", []))
    compaction = store.compact([frozen])
    for _ in compaction.steps():
        pass
    store.install(compaction)
    store.sweep()
    store.close()
    again = open_log(disk_of(store))
    assert again.compaction.index == index
    assert equal(prefix_of(again), before)
    listed(again)


@pytest.mark.parametrize("end", ENDS)
def test_the_end_at_every_operation_of_a_compaction(end: str) -> None:
    at = 0
    while True:
        at += 1
        one = Compacting()
        one.files.cut_power_at = one.files.operations + at
        try:
            one.run()
        except PowerCut:
            ENDS[end](one.files, at)
            one.check()
        else:
            assert at > 60, "the end never came"
            return


@pytest.mark.parametrize("operation", FAILING)
def test_every_operation_of_a_compaction_fails(operation: str) -> None:
    nth = 0
    while True:
        nth += 1
        one = Compacting()
        one.files.fail(operation, nth)
        try:
            one.run()
        except StorageError:
            ENDS["killed"](one.files, nth)
            one.check()
        else:
            assert nth > 1 or operation in ("extend",), f"{operation} never failed"
            return


def test_a_full_disk_ends_a_compaction_and_nothing_else() -> None:
    """Whatever it has no room for: it is given up, and what was frozen goes into the next one."""
    room = 0
    while True:
        one = Compacting()
        store, history = one.store, one.compactor.history
        one.compactor.write(25)
        store.roll()
        frozen = history.freeze()
        used = sum(map(len, one.files.contents().values()))
        one.files.capacity_bytes = used + room
        compaction = store.compact([frozen])
        try:
            for _ in compaction.steps():
                pass
        except StorageFull:
            compaction.give_up()
            store.sweep()
            listed(store)
            one.files.capacity_bytes = None
            assert equal(prefix_of(store), one.old)
            one.compactor.write(10)
            store.roll()
            compaction = store.compact([frozen, history.freeze()])
            for _ in compaction.steps():
                pass
            store.install(compaction)
            store.sweep()
            assert equal(prefix_of(store), history.expected())
            listed(store)
        else:
            assert room > 500, "there was always room"
            return
        room += 97


# -- a transfer --------------------------------------------------------------------------------


def fresh() -> LogStore:
    """A member that has joined and has nothing."""
    return begun(1).store


def lagging() -> LogStore:
    """One that has a prefix of its own, and a log that goes on differently from the leader's."""
    compactor = begun(2, keys=10, record_bytes=600)
    compactor.write(6)
    compactor.compact()
    compactor.write(6)
    return compactor.store


def ahead() -> LogStore:
    """One whose log is longer than the prefix that it is sent, and wrong."""
    compactor = begun(3, keys=10)
    compactor.write(80)
    return compactor.store


RECEIVERS = {"fresh": fresh, "lagging": lagging, "ahead": ahead}
SOURCES: dict[int, Source] = {}


def source() -> Source:
    """Made once: it is only read."""
    if not SOURCES:
        with small_steps():
            SOURCES[0] = Source.made(11)
    return SOURCES[0]


class Transfer:
    """One whole transfer, and what the receiver had before."""

    def __init__(self, receiver: str) -> None:
        self.source = source()
        self.store = RECEIVERS[receiver]()
        self.files = disk_of(self.store)
        self.old = prefix_of(self.store) if self.store.compaction.index else None
        self.old_index = self.store.compaction.index
        self.batches = list(self.store.batches())
        self.whole: set[int] = set()
        self.is_installed = False

    def run(self) -> None:
        receive(self.store.incoming, self.source, 700, self.whole.add)
        install(self.store, self.source, 1000)
        self.is_installed = True

    def check(self) -> None:
        """All old, or all new; what was whole is not asked for again; and it comes to its end."""
        store = open_log(self.files)
        index = store.compaction.index
        if index == self.old_index:
            assert not self.is_installed, "an install that was durable is undone"
            assert (prefix_of(store) if index else None) == self.old
            assert list(store.batches()) == self.batches
            assert store.start.index <= index
            asked = receive(store.incoming, self.source, 4000)
            assert not self.whole & set(asked.bytes), "asked for again"
            install(store, self.source, 1)
        self.check_new(store)
        store.close()
        self.check_new(open_log(self.files))

    def check_new(self, store: LogStore) -> None:
        index = self.source.index
        assert store.compaction == store.start == self.source.archive.table.point
        assert store.epoch == self.source.archive.table.epoch
        assert equal(prefix_of(store), self.source.expected)
        assert [one.first_index for one in store.batches()] in ([], [index + 1])
        assert store.durable_index == store.last_index >= index
        assert store.incoming.table is None
        assert disk_of(store).list("incoming") == []


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_a_transfer_comes_to_its_end(receiver: str) -> None:
    one = Transfer(receiver)
    one.run()
    assert len(one.whole) == len(one.source.archive.table.files) >= 3
    assert one.store.compaction.index == one.source.index
    listed(one.store)
    one.check_new(one.store)
    one.files.kill()
    one.check()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("receiver", RECEIVERS)
def test_the_end_at_every_operation_of_a_transfer(receiver: str, end: str) -> None:
    at = 0
    while True:
        at += 1
        one = Transfer(receiver)
        one.files.cut_power_at = one.files.operations + at
        try:
            one.run()
        except PowerCut:
            ENDS[end](one.files, at)
            one.check()
        else:
            assert at > 50, "the end never came"
            return


@pytest.mark.parametrize("operation", FAILING)
def test_every_operation_of_a_transfer_fails(operation: str) -> None:
    nth = 0
    while True:
        nth += 1
        one = Transfer("lagging")
        one.files.fail(operation, nth)
        try:
            one.run()
        except StorageError:
            one.files.kill()
            one.check()
        else:
            assert nth > 1 or operation in ("extend", "truncate"), f"{operation} never failed"
            return


@pytest.mark.parametrize("end", ENDS)
def test_the_end_at_every_operation_of_a_restart_within_an_install(end: str) -> None:
    """The files had been moved, and MANIFEST did not say so: they are taken back."""
    at = 0
    while True:
        at += 1
        one = Transfer("lagging")
        receive(one.store.incoming, one.source, 700, one.whole.add)
        one.files.fail("extend")
        with contextlib.suppress(StorageError):
            install(one.store, one.source, 1000)
        one.files.kill()
        one.files.cut_power_at = one.files.operations + at
        try:
            open_log(one.files)
        except PowerCut:
            ENDS[end](one.files, at)
            one.check()
        else:
            assert at > 5, "the end never came"
            return


def test_what_a_failed_sync_left_in_memory_is_written_again() -> None:
    """A part that is seen after a failed sync is on no disk; a sync alone changes nothing."""
    seen = set()
    for nth in range(2, 12):
        one = Transfer("fresh")
        one.files.fail("sync", nth)
        try:
            receive(one.store.incoming, one.source, 700)
        except StorageError:
            one.files.kill()
            have = list(open_log(one.files).incoming.have)
            one.files.crash(Random(nth), survive=0.0)
            assert open_log(one.files).incoming.have == have, "what was there is gone"
            one.files.kill()
            one.check()
            seen.add(sum(have))
    assert len(seen) > 3, f"{seen} bytes were seen after a sync had failed"
