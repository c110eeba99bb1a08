"""What a log store promises of compaction, over a real directory and a disk in memory alike."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from folkmoot.core.errors import StorageError
from folkmoot.core.prefix import Frozen
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.stored_prefix import file_names
from tests.core.storage.history import Compactor, Contents, contents, equal
from tests.core.storage.support import Disk, open_log
from tests.core.storage.transfers import Source, begun, install, receive


def compacting(disk: Disk, **options: Any) -> Compactor:
    compactor = begun(1, disk(), **options)
    for _ in range(2):
        compactor.write(30, value_bytes=100)
        compactor.compact()
    return compactor


def prefix_of(store: LogStore) -> Contents:
    return contents(store.prefix.read_back())


def test_a_prefix_is_there_after_reopening_and_goes_on(disk: Disk) -> None:
    compactor = compacting(disk, keys=60)
    compactor.store.trim(compactor.store.compaction.index)
    compactor.store.sweep()
    compactor.write(5)
    before, point = list(compactor.store.batches()), compactor.store.compaction
    compactor.store.close()
    compactor.store, compactor.number = open_log(disk()), 0
    store = compactor.store
    assert store.recovered.repaired == ()
    assert (store.start, store.compaction) == (point, point)
    assert list(store.batches()) == before
    source = store.prefix.read_back()
    contents(source)
    store.prefix.loaded(source)
    compactor.write(30, value_bytes=100)
    compactor.compact()
    store.sweep()
    assert equal(prefix_of(store), compactor.history.expected())
    assert len(disk().list("prefix")) == len(store.prefix.entries)
    store.close()


def test_indexes_before_the_start_point_are_gone(disk: Disk) -> None:
    """The prefix speaks for them; what is left has no gap."""
    compactor = compacting(disk)
    compactor.write(5)
    store = compactor.store
    before = list(store.batches())
    store.trim(store.compaction.index)
    store.sweep()
    start = store.start.index
    assert 0 < start == store.compaction.index
    assert list(store.batches()) == [one for one in before if one.first_index > start]
    assert store.status()["first_index"] == start + 1
    assert len(disk().list("log")) == store.status()["segments"]
    store.close()


def test_a_prefix_goes_to_another_disk(disk: Disk) -> None:
    """One that has had none: its directories are made on the way."""
    source = Source.made(3)
    compactor = begun(2, disk())
    compactor.write(5)
    receive(compactor.store.incoming, source, 1000)
    compactor.store.close()
    store = open_log(disk())
    assert receive(store.incoming, source, 1000).bytes == {}, "all of it was here"
    install(store, source, 1)
    assert equal(prefix_of(store), source.expected)
    store.close()
    store = open_log(disk())
    assert store.recovered.repaired == ()
    assert equal(prefix_of(store), source.expected)
    assert disk().list("incoming") == []
    assert [one.first_index for one in store.batches()] == [source.index + 1]
    store.close()


@pytest.mark.parametrize("is_read", [False, True])
def test_what_is_received_too_late_goes_unless_it_is_being_read(disk: Disk, is_read: bool) -> None:
    source = Source.made(3)
    compactor = begun(2, disk())
    compactor.write(200)
    store = compactor.store
    receive(store.incoming, source, 1000)
    found = store.incoming.read_back() if is_read else None
    assert store.last_index > source.index
    compactor.compact()
    assert (disk().list("incoming") == []) == (found is None)
    if found is not None:
        assert equal(contents(found), source.expected)
    store.close()
    open_log(disk()).close()
    assert disk().list("incoming") == []


def test_a_compaction_that_is_given_up_leaves_nothing(disk: Disk) -> None:
    compactor = compacting(disk)
    store, before = compactor.store, disk().list("prefix")
    compactor.write(30)
    store.roll()
    compaction = store.compact([compactor.history.freeze()])
    next(compaction.steps())
    list(compaction.steps())
    store.sweep()
    assert set(before) <= set(disk().list("prefix"))
    compaction.give_up()
    store.sweep()
    assert disk().list("prefix") == [
        name.rpartition("/")[2] for name in sorted(file_names(store.prefix.entries))
    ]
    store.close()


def test_one_thread_compacts_while_another_writes(disk: Disk) -> None:
    """As a server does: they only take turns where MANIFEST changes."""
    compactor = begun(1, disk(), keys=30)
    store, lock, wrong = compactor.store, threading.Lock(), list[Exception]()
    frozen: queue.SimpleQueue[Frozen | None] = queue.SimpleQueue()

    def compact() -> None:
        try:
            while (one := frozen.get()) is not None:
                compaction = store.compact([one])
                for _ in compaction.steps():
                    pass
                with lock:
                    store.install(compaction)
                    store.trim(store.compaction.index)
                store.sweep()
        except (AssertionError, StorageError) as error:
            wrong.append(error)

    thread = threading.Thread(target=compact)
    thread.start()
    for _ in range(15):
        for _ in range(20):
            with lock:
                compactor.write(1, value_bytes=50)
        with lock:
            store.roll()
        frozen.put(compactor.history.freeze())
    expected = compactor.history.expected()
    frozen.put(None)
    thread.join()
    assert wrong == []
    assert store.compaction.index == store.last_index
    assert equal(prefix_of(store), expected)
    store.close()
    store = open_log(disk())
    assert equal(prefix_of(store), expected)
    assert store.recovered.repaired == ()
    store.close()
