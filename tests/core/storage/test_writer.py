"""The storage's thread: group commit, inline writes, reads beside them, failures. No sleeps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageError
from folkmoot.core.storage.files import DirectoryFiles
from folkmoot.core.storage.log_store import HardState, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.writer import StorageWriter
from tests.core.storage.support import OWNER, SMALL, Write, batch, batches, open_log

WAIT_S = 10.0


class SlowFiles(MemoryFiles):
    """A sync waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.arrived = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def sync(self, name: str) -> None:
        if self.slow:
            self.arrived.release()
            assert self.go.acquire(timeout=WAIT_S)
        super().sync(name)


class Server:
    """Stands for the server's loop: it hands writes over and hears of what became of them."""

    def __init__(self, files: MemoryFiles | DirectoryFiles, *, idle_s: float = WAIT_S) -> None:
        self.files = files
        self.store = LogStore.open(files, SMALL, OWNER)
        self.store.write([Write(1, HardState(1))])
        self.store.sync()
        self.durable: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.ticks = 0
        self.writer = StorageWriter(
            self.store,
            lambda number, _: self.durable.put(number),
            self.errors.put,
            clock=self.clock,
            idle_s=idle_s,
        )

    def clock(self) -> float:
        """Each look takes a millisecond."""
        self.ticks += 1
        return self.ticks / 1000

    def submit(self, *indexes: int) -> None:
        self.writer.submit([Write(index + 1, None, None, [batch(index)]) for index in indexes])

    def heard(self) -> int:
        return self.durable.get(timeout=WAIT_S)


@pytest.fixture
def slow() -> Iterator[Server]:
    server = Server(SlowFiles())
    yield server
    server.writer.close()
    server.store.close()


def test_a_write_is_reported_when_durable(tmp_path: Path) -> None:
    server = Server(DirectoryFiles(tmp_path))
    server.submit(1)
    assert server.heard() == 2
    assert server.store.durable_index == 1
    server.writer.close()
    server.store.close()


def test_everything_that_waits_becomes_one_group(slow: Server) -> None:
    files = slow.files
    assert isinstance(files, SlowFiles)
    files.slow = True
    slow.submit(1)
    assert files.arrived.acquire(timeout=WAIT_S)
    for index in range(2, 8):
        slow.submit(index)
    assert not slow.writer.idle
    assert slow.durable.empty()
    files.slow = False
    syncs = slow.store.counters.log_syncs
    files.go.release()
    assert slow.heard() == 2
    assert slow.heard() == 8
    assert slow.store.counters.log_syncs == syncs + 2
    assert (slow.writer.groups, slow.writer.writes) == (2, 7)


def test_bug_f8_a_slow_disk_does_not_stop_the_loop(slow: Server) -> None:
    """`submit` returns while the disk stands still, and nothing is reported before it moves."""
    files = slow.files
    assert isinstance(files, SlowFiles)
    files.slow = True
    slow.submit(1)
    assert files.arrived.acquire(timeout=WAIT_S)
    slow.submit(2)
    assert slow.durable.empty()
    assert slow.store.durable_index == 0
    # Somebody else may read meanwhile: another thread's lagging follower.
    assert slow.store.read(1, 100) == [batch(1)]
    files.slow = False
    files.go.release()
    assert [slow.heard(), slow.heard()] == [2, 3]


def test_an_inline_write_is_durable_when_it_returns() -> None:
    server = Server(MemoryFiles())
    assert server.writer.idle
    assert server.writer.write_inline([Write(2, None, None, batches(1, 3))]) == 2
    assert server.store.durable_index == 3
    server.submit(4)
    assert server.heard() == 5
    assert server.writer.write_inline([Write(6, None, None, batches(5, 6))]) == 6
    server.writer.close()
    assert server.durable.empty(), "inline writes are not reported"


def test_an_inline_write_must_not_overtake(slow: Server) -> None:
    files = slow.files
    assert isinstance(files, SlowFiles)
    files.slow = True
    slow.submit(1)
    assert files.arrived.acquire(timeout=WAIT_S)
    with pytest.raises(AssertionError, match="1 jobs wait"):
        slow.writer.write_inline([Write(3, None, None, [batch(2)])])
    files.slow = False
    files.go.release()
    assert slow.heard() == 2


def test_idle_is_true_again_when_the_report_comes() -> None:
    files = MemoryFiles()
    store = open_log(files)
    seen: queue.SimpleQueue[bool] = queue.SimpleQueue()
    writer: list[StorageWriter] = []
    writer.append(StorageWriter(store, lambda *_: seen.put(writer[0].idle), lambda error: None))
    writer[0].submit([Write(1, HardState(1))])
    assert seen.get(timeout=WAIT_S)
    writer[0].close()
    store.close()


def test_reads_are_served_in_order_and_see_what_was_written() -> None:
    server = Server(MemoryFiles())
    got: queue.SimpleQueue[list[Batch]] = queue.SimpleQueue()
    server.submit(1, 2, 3)
    server.writer.submit_read(2, 1 << 20, got.put)
    server.writer.submit_read(1, 1, got.put)
    assert got.get(timeout=WAIT_S) == batches(2, 3)
    assert got.get(timeout=WAIT_S) == batches(1, 1)
    server.writer.close()


def test_close_finishes_what_was_submitted() -> None:
    server = Server(MemoryFiles())
    got: queue.SimpleQueue[list[Batch]] = queue.SimpleQueue()
    for index in range(1, 30):
        server.submit(index)
        server.writer.submit_read(1, 1, got.put)
    server.writer.close()
    server.writer.close()
    assert server.store.durable_index == 29
    assert got.qsize() == 29
    with pytest.raises(StorageError, match="was closed"):
        server.submit(30)
    server.store.close()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_failure_is_reported_once_and_ends_everything(operation: str) -> None:
    files = MemoryFiles()
    server = Server(files)
    files.fail(operation, error=StorageError("the disk is on fire"))
    server.submit(1)
    with pytest.raises(StorageError, match="on fire"):
        raise server.errors.get(timeout=WAIT_S)
    server.writer.close()
    assert server.durable.empty()
    with pytest.raises(StorageError, match="on fire"):
        server.submit(2)
    with pytest.raises(StorageError, match="on fire"):
        server.writer.write_inline([])
    with pytest.raises(StorageError, match="on fire"):
        server.writer.submit_read(1, 1, lambda _: None)
    server.store.close()
    assert server.errors.empty()


def test_a_failed_inline_write_is_raised_and_ends_everything() -> None:
    files = MemoryFiles()
    server = Server(files)
    files.fail("sync", error=StorageError("the disk is on fire"))
    with pytest.raises(StorageError, match="on fire"):
        server.writer.write_inline([Write(2, None, None, [batch(1)])])
    with pytest.raises(StorageError, match="on fire"):
        server.submit(2)
    server.writer.close()
    server.store.close()


def test_the_time_of_a_sync_is_averaged() -> None:
    server = Server(MemoryFiles())
    assert server.writer.sync_ewma_s == 0.0
    server.writer.write_inline([Write(2, None, None, [batch(1)])])
    assert server.writer.sync_ewma_s == pytest.approx(0.001)
    server.ticks = 10_000_000
    assert server.writer.sync_ewma_s == pytest.approx(0.001)
    server.writer.close()


class MarkedFiles(MemoryFiles):
    """Tells when something the size of a mark is written, or a file is made."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.made: queue.SimpleQueue[str] = queue.SimpleQueue()

    def write(self, name: str, offset: int, data: bytes) -> None:
        super().write(name, offset, data)
        if len(data) == 24:
            self.marks.put(offset)

    def sync(self, name: str) -> None:
        super().sync(name)
        self.made.put(name)


@pytest.mark.parametrize("inline", [False, True])
def test_an_idle_log_is_marked(inline: bool) -> None:
    files = MarkedFiles()
    server = Server(files, idle_s=0.001)
    for index in (1, 2):
        if inline:
            server.writer.write_inline([Write(index + 1, None, None, [batch(index)])])
        else:
            server.submit(index)
            server.heard()
        end = server.store._log.active.end
        while files.marks.get(timeout=WAIT_S) != end:
            pass
    assert not server.store.wants_mark
    server.writer.close()
    server.store.close()


@pytest.mark.parametrize("inline", [False, True])
def test_the_next_segment_is_prepared_by_the_worker(inline: bool) -> None:
    files = MarkedFiles()
    server = Server(files)
    index = 0
    while not server.store.wants_prepare:
        index += 1
        if inline:
            server.writer.write_inline([Write(index + 1, None, None, [batch(index)])])
        else:
            server.submit(index)
            server.heard()
        if server.store._log.next.is_ready:
            break
    while files.made.get(timeout=WAIT_S) != "log/0000000002.seg":
        pass
    server.writer.close()
    assert server.store._log.next.is_ready
    server.store.close()


def test_a_reader_in_another_thread_never_sees_a_half_written_log() -> None:
    """One thread writes, rolls over and truncates; another reads from the front all the time."""
    store = open_log(MemoryFiles(), StorageConfig(segment_bytes=4096))
    store.write([Write(1, HardState(1))])
    store.sync()
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        try:
            while not stop.is_set():
                found = store.read(1, 1 << 20)
                indexes = [one.first_index for one in found]
                if indexes != list(range(1, len(found) + 1)):
                    wrong.append(indexes)
        except StorageError as error:
            wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(2, 400):
        cut = store.last_index // 2 if number % 40 == 0 else None
        after = store.last_index if cut is None else cut
        appended = batches(after + 1, after + 2, size_bytes=150)
        store.write([Write(number, None, cut, appended)])
        store.sync()
    stop.set()
    thread.join()
    assert wrong == []
    store.close()
