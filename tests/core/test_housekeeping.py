"""The thread beside the loop: jobs in order, compactions between them, and how it ends.

Real threads, and no sleeping: a test waits for what the thread says.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from random import Random
from typing import Any, ClassVar

import attrs
import pytest

from folkmoot.core import housekeeping
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageCorrupt, StorageError, StorageFull
from folkmoot.core.housekeeping import Housekeeping, Pace
from folkmoot.core.jobs import Roll, StorePort, Sweep
from folkmoot.core.prefix import Ledger
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.writer import StorageWriter
from tests.core.storage.history import Compactor, contents, equal
from tests.core.storage.support import Write, open_log

CONFIG = StorageConfig(
    segment_bytes=4096, reserve_bytes=0, compaction_duty=1.0, compaction_bytes_per_s=1 << 40
)
WAIT_S = 20


class Bench:
    """A log with a history, its writer, and the thread; what the thread says is in `heard`."""

    def __init__(self, config: StorageConfig = CONFIG) -> None:
        self.files = MemoryFiles()
        self.store = open_log(self.files)
        self.store.write([Write(1, HardState(1, None))])
        self.store.sync()
        self.history = Compactor(self.store, Random(1))
        self.history.number = 1
        self.heard: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.answers: list[Any] = []
        self.writer = StorageWriter(self.store, lambda *_: None, self.heard.put)
        self.thread = Housekeeping(
            self.store, self.writer, config, lambda: self.heard.put(None), self.heard.put
        )

    def freeze(self, count: int = 40) -> Any:
        """Write some batches, and return what has changed."""
        with self.writer.standing_still():
            self.history.write(count)
            self.store.roll()
        return self.history.history.freeze()

    def compact(self, count: int = 40, failing: tuple[str, Exception] | None = None) -> None:
        frozen = self.freeze(count)
        if failing is not None:
            operation, error = failing
            self.files.fail(operation, 1, error)  # type: ignore[arg-type]
        self.thread.compact(frozen, self.then("compacted"))

    def then(self, name: str) -> Any:
        return lambda answer: self.answers.append((name, answer))

    def until(self, count: int) -> list[Any]:
        """Wait for so many answers in all."""
        while len(self.answers) < count:
            error = self.heard.get(timeout=WAIT_S)
            if error is not None:
                raise error
            self.thread.take_done()
        return self.answers

    def close(self) -> None:
        self.thread.close()
        self.writer.close()

    def check(self) -> None:
        """The prefix holds what lives."""
        assert equal(contents(self.store.prefix.read_back()), self.history.history.expected())


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A compaction takes a step, and then sleeps for longer than any test takes."""
    monkeypatch.setattr(housekeeping, "_STEP_S", 0.0)
    monkeypatch.setattr(Pace, "pause_s", lambda *_: 3600.0)
    return monkeypatch


@attrs.frozen
class Say:
    """A job that answers, once it may."""

    exclusive: ClassVar[bool] = False
    word: str
    gate: threading.Event | None = None
    begun: threading.Event | None = None

    def run(self, store: StorePort) -> str:
        if self.begun is not None:
            self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        return self.word


@attrs.frozen
class Fail:
    """A job that fails."""

    exclusive: ClassVar[bool] = False
    error: Exception

    def run(self, store: StorePort) -> None:
        raise self.error


def test_jobs_are_done_in_order_and_answered_by_the_loop(bench: Bench) -> None:
    for word in "abc":
        bench.thread.post(Say(word), bench.then("said"))
    assert bench.answers == [], "nothing is called from the thread"
    assert bench.until(3) == [("said", word) for word in "abc"]


def test_a_compaction_is_installed_and_answered_with_the_bytes_of_its_records(bench: Bench) -> None:
    bench.compact()
    ((_, records_bytes),) = bench.until(1)
    assert records_bytes == bench.store.prefix.state_bytes > 0
    assert bench.store.compaction.index == bench.history.history.index
    assert not bench.thread.is_compacting
    bench.check()
    bench.compact(60)
    bench.until(2)
    bench.check()


def test_an_exclusive_job_waits_for_the_writer(bench: Bench) -> None:
    bench.freeze()
    segments = bench.store.status()["segments"]
    with bench.writer.standing_still():
        bench.thread.post(Say("before"), bench.then("said"))
        bench.thread.post(Roll(), bench.then("rolled"))
        bench.thread.post(Say("behind"), bench.then("said"))
        bench.until(1)
        bench.history.write(3)  # this thread has the store to itself
    assert bench.until(3) == [("said", "before"), ("rolled", None), ("said", "behind")]
    assert bench.store.status()["segments"] == segments + 1


@pytest.mark.usefixtures("sleeps")
def test_jobs_are_done_between_two_steps_of_a_compaction() -> None:
    bench = Bench()
    bench.compact(200)
    for word in "ab":
        bench.thread.post(Say(word), bench.then("said"))
    assert bench.until(2) == [("said", "a"), ("said", "b")]
    assert bench.thread.is_compacting, "it sleeps, so as not to write too fast"
    bench.close()
    bench.thread.take_done()
    assert bench.answers[2:] == [("compacted", None)], "closing leaves it"
    assert bench.files.list("prefix") == []
    assert not any(one.name == "folkmoot-housekeeping" for one in threading.enumerate())


def test_a_compaction_that_is_stopped_is_answered_before_who_stopped_it(
    bench: Bench, sleeps: pytest.MonkeyPatch
) -> None:
    bench.compact(200)
    bench.thread.stop_compaction(bench.then("stopped"))
    assert bench.until(2) == [("compacted", None), ("stopped", None)]
    assert not bench.thread.is_compacting
    assert bench.store.compaction.index == 0
    assert bench.files.list("prefix") == []
    sleeps.undo()
    bench.compact(1)
    bench.until(3)
    bench.check()


def test_stopping_nothing_is_answered(bench: Bench) -> None:
    bench.thread.stop_compaction(bench.then("stopped"))
    assert bench.until(1) == [("stopped", None)]


@pytest.mark.parametrize("again", [1, 2, 5])
def test_what_was_frozen_for_one_that_was_stopped_goes_into_the_next(
    bench: Bench, sleeps: pytest.MonkeyPatch, again: int
) -> None:
    """Or what died in between would live for ever."""
    for _ in range(again):
        bench.compact(60)
        bench.thread.stop_compaction(bench.then("stopped"))
    bench.until(2 * again)
    sleeps.undo()
    bench.compact(10)
    bench.until(2 * again + 1)
    bench.check()
    assert bench.store.compaction.index == bench.history.history.index


def test_what_was_frozen_of_a_state_that_was_replaced_is_forgotten(
    bench: Bench, sleeps: pytest.MonkeyPatch
) -> None:
    """A prefix that reaches further was installed meanwhile: what died then would die again."""
    frozen = bench.freeze()
    bench.thread.compact(frozen, bench.then("compacted"))
    bench.thread.stop_compaction(bench.then("stopped"))
    bench.until(2)
    sleeps.undo()
    with bench.writer.standing_still():
        bench.history.write(20)
        bench.store.roll()
        compaction = bench.store.compact([frozen, bench.history.history.freeze()])
        for _ in compaction.steps():
            pass
        bench.store.install(compaction)
    bench.compact(30)
    assert bench.until(3)[-1][1]
    bench.check()


def test_a_full_disk_ends_a_compaction_and_keeps_what_was_frozen(bench: Bench) -> None:
    bench.compact(60, failing=("create", StorageFull("no room")))
    assert bench.until(1) == [("compacted", None)]
    assert bench.store.compaction.index == 0
    bench.thread.post(Say("alive"), bench.then("said"))
    bench.until(2)
    bench.compact(1)
    assert bench.until(3)[-1][1]
    bench.check()


def test_the_last_of_a_disk_is_left_to_the_log(bench: Bench) -> None:
    frozen = bench.freeze(60)
    bench.files.capacity_bytes = bench.files._used_bytes() + 2 * CONFIG.segment_bytes - 1
    bench.thread.compact(frozen, bench.then("compacted"))
    assert bench.until(1) == [("compacted", None)]
    assert bench.files.list("prefix") == []
    with bench.writer.standing_still():
        bench.history.write(1)
    bench.files.capacity_bytes = None
    bench.compact(1)
    assert bench.until(2)[-1][1]
    bench.check()


def test_it_is_done_later_at_the_same_index(bench: Bench) -> None:
    """What comes with the second try is empty."""
    frozen = bench.freeze(60)
    again = attrs.evolve(frozen, ledger=Ledger(), records={})
    bench.files.fail("create", 1, StorageFull("no room"))
    bench.thread.compact(frozen, bench.then("compacted"))
    bench.until(1)
    bench.thread.compact(again, bench.then("compacted"))
    assert bench.until(2)[-1][1]
    assert bench.store.compaction.index == frozen.index
    bench.check()


@pytest.mark.parametrize("error", [StorageError("no"), StorageCorrupt("no"), KeyError("no")])
def test_every_other_failure_is_told_and_ends_the_thread(bench: Bench, error: Exception) -> None:
    bench.thread.post(Fail(error), bench.then("failed"))
    bench.thread.post(Say("never"), bench.then("said"))
    with pytest.raises(type(error)):
        bench.until(1)
    bench.thread.close()
    assert bench.answers == []


def test_a_failure_inside_a_compaction_is_told(bench: Bench) -> None:
    bench.compact(failing=("sync", StorageError("the disk is gone")))
    with pytest.raises(StorageError, match="gone"):
        bench.until(1)


def test_closing_does_what_was_posted_before() -> None:
    bench = Bench()
    gate, begun = threading.Event(), threading.Event()
    bench.thread.post(Say("a", gate, begun), bench.then("said"))
    bench.thread.post(Sweep(), bench.then("swept"))
    assert begun.wait(WAIT_S)
    closing = threading.Thread(target=bench.close)
    closing.start()
    gate.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    bench.thread.take_done()
    assert bench.answers == [("said", "a"), ("swept", None)]


# -- how fast --------------------------------------------------------------------------------------


def pace(log_bytes: int = 0, **options: Any) -> Pace:
    return Pace(StorageConfig(**options), log_bytes)


def test_it_takes_its_part_of_a_core() -> None:
    assert pace(compaction_duty=0.25).pause_s(0.001, 0) == pytest.approx(0.003)
    assert pace(compaction_duty=1.0).pause_s(0.001, 0) == 0.0


def test_it_writes_no_faster_than_it_may() -> None:
    one = pace(compaction_bytes_per_s=2000, compaction_duty=1.0)
    assert one.pause_s(0.001, 500) == pytest.approx(0.25)
    assert one.pause_s(0.001, 500) == 0.0, "nothing new was written"
    assert one.pause_s(0.001, 600) == pytest.approx(0.05)


def test_it_hurries_where_much_log_waits() -> None:
    """Twice as much as a compaction begins with is usual; four times that, and it is as urgent."""
    config = {"compaction_log_bytes": 2000, "compaction_duty": 0.1, "compaction_bytes_per_s": 2000}
    assert pace(4000, **config).pause_s(0.001, 0) == pytest.approx(0.009)
    assert pace(16_000, **config).pause_s(0.001, 0) == pytest.approx(0.0015)
    assert pace(16_000, **config).pause_s(0.0, 8000) == pytest.approx(1.0)
    assert pace(1 << 40, **config).pause_s(0.001, 0) == 0.0, "at most the whole core"
