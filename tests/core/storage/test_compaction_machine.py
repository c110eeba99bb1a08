"""A log and its prefix against a list and a dict: any order of whatever is done to them.

Writes, truncations, rolls, freezes, compactions that are taken step by step, installed or given up
anywhere, trims, archives that are read over further compactions, restarts and power cuts. At any
time the log is the list behind its start point, and the prefix what lived at its index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from random import Random

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from folkmoot.core.batch import Batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.prefix import Frozen
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.compaction import Compaction
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from folkmoot.core.storage.stored_prefix import ItemsFile, file_names
from tests.core.storage.history import Contents, History, contents, equal, small_steps
from tests.core.storage.support import Write, open_log

SEEDS = st.integers(0, 1 << 32)
SHARES = st.floats(0, 1)
VALUE_BYTES = (0, 0, 0, 300, 5000)
"""The last one is larger than a segment."""


@attrs.define(eq=False)
class Reader:
    """Somebody who reads an archive, and what he is to find in it."""

    archive: Archive
    files: list[bytes]


class CompactionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = MemoryFiles()
        self.config = StorageConfig(segment_bytes=4096)
        self.number = 0
        self.history = History(Random(1))
        self.batches: list[Batch] = []
        self.durable = 0
        """How many of them a crash must leave."""
        self.copies: dict[int, tuple[History, list[Frozen]]] = {}
        """What lived at the end of each batch, for the case that the log ends there again; and what
        of it had been frozen and waited then.
        """
        self.expected: dict[int, Contents] = {}
        """What the prefix must hold, for each index at which the state was frozen."""
        self.frozen: list[Frozen] = []
        """Not in an installed prefix yet, oldest first."""
        self.compaction: Compaction | None = None
        self.steps: Iterator[int] = iter(())
        self.readers: list[Reader] = []
        self._patches = contextlib.ExitStack()

    def teardown(self) -> None:
        self._patches.close()

    def _remember(self) -> None:
        self.copies[self.history.index] = self.history.copy(), list(self.frozen)

    @initialize(
        segment_bytes=st.sampled_from([4096, 16384]),
        dead_share=st.sampled_from([0.05, 0.4, 0.95]),
        keys=st.sampled_from([12, 400]),
    )
    def begin(self, segment_bytes: int, dead_share: float, keys: int) -> None:
        self._patches.enter_context(small_steps())
        self.history.keys = keys
        self._remember()
        self.config = StorageConfig(segment_bytes=segment_bytes, compaction_dead_share=dead_share)
        self.store = open_log(self.files, self.config)
        self._write([], HardState(1, None))
        self.store.sync()

    # -- the log -------------------------------------------------------------------------------

    def _write(
        self,
        appended: Sequence[Batch],
        state: HardState | None = None,
        truncate_after: int | None = None,
    ) -> None:
        self.number += 1
        self.store.write([Write(self.number, state, truncate_after, appended)])

    def _make(self, count: int, value_bytes: int) -> list[Batch]:
        made = []
        for _ in range(count):
            made.append(self.history.batch(value_bytes=value_bytes))
            self.batches.append(made[-1])
            self._remember()
        return made

    @rule(count=st.integers(1, 25), value_bytes=st.sampled_from(VALUE_BYTES))
    def write(self, count: int, value_bytes: int) -> None:
        self._write(self._make(count, value_bytes))

    @rule()
    def sync(self) -> None:
        assert self.store.sync() == self.number
        self.durable = len(self.batches)

    @property
    def _settled(self) -> int:
        """What is frozen was applied, and is never truncated."""
        return self.frozen[-1].index if self.frozen else self.store.compaction.index

    def _go_back_to(self, count: int, rng: Random) -> None:
        """Take the history back to where it has so many batches, and let it become another.

        What was frozen and is neither installed nor waiting any more, is applied once more.
        """
        self.batches = self.batches[:count]
        self.durable = min(self.durable, count)
        before, frozen = self.copies[self.batches[-1].last_index if self.batches else 0]
        self.history = before.copy()
        self.history.rng = rng
        settled = self.store.compaction.index
        self.history.unfreeze([f for f in frozen if f.index > settled and f not in self.frozen])
        self._remember()

    @rule(share=SHARES, seed=SEEDS)
    def truncate(self, share: float, seed: int) -> None:
        settled = sum(one.last_index <= self._settled for one in self.batches)
        count = settled + round(share * (len(self.batches) - settled))
        self._go_back_to(count, Random(seed))
        after = self.history.index
        self._write(self._make(2, 0), truncate_after=after)

    @rule()
    def tidy(self) -> None:
        if self.store.wants_prepare:
            self.store.prepare()
        self.store.mark()

    # -- compactions ---------------------------------------------------------------------------

    @rule(count=st.integers(0, 30))
    def freeze(self, count: int) -> None:
        self._write(self._make(count, 0))
        self.store.roll()
        self.durable = len(self.batches)
        if self.history.index > self._settled:
            frozen = self.history.freeze()
            self.frozen.append(frozen)
            self.expected[frozen.index] = self.history.expected()
            self._remember()

    @precondition(lambda self: self.compaction is None)
    @rule(share=SHARES, count=st.integers(1, 8))
    def compact(self, share: float, count: int) -> None:
        if not self.frozen:
            self.freeze(count)
        some = self.frozen[: 1 + round(share * (len(self.frozen) - 1))]
        self.compaction = self.store.compact(some)
        self.steps = self.compaction.steps()

    @precondition(lambda self: self.compaction is not None)
    @rule(count=st.integers(1, 20))
    def step(self, count: int) -> None:
        for _ in range(count):
            next(self.steps, None)

    @precondition(lambda self: self.compaction is not None)
    @rule(sweep=st.booleans())
    def give_up(self, sweep: bool) -> None:
        assert self.compaction is not None
        self.compaction.give_up()
        self.compaction = None
        if sweep:
            self.store.sweep()

    def _install(self) -> None:
        assert self.compaction is not None
        for _ in self.steps:
            pass
        self.store.install(self.compaction)

    @precondition(lambda self: self.compaction is not None)
    @rule(sweep=st.booleans())
    def install(self, sweep: bool) -> None:
        self._install()
        self.compaction = None
        self.frozen = [one for one in self.frozen if one.index > self.store.compaction.index]
        if sweep:
            self.store.sweep()
        self.read_back()

    @rule(count=st.integers(10, 40), value_bytes=st.sampled_from(VALUE_BYTES))
    def compact_whole(self, count: int, value_bytes: int) -> None:
        """All of it at once: so that what comes after it has many files to work on."""
        self._write(self._make(count, value_bytes))
        if self.compaction is None:
            self.freeze(1)
            self.compaction = self.store.compact(self.frozen)
            self.steps = self.compaction.steps()
        self.install(sweep=False)

    @rule(share=SHARES)
    def trim(self, share: float) -> None:
        self.store.trim(int(share * self.store.compaction.index))

    @rule()
    def sweep(self) -> None:
        self.store.sweep()
        self._only_what_is_needed_is_there()

    @rule()
    def read_back(self) -> None:
        """What is on the disk is what lived; what is kept in memory is what is on the disk."""
        store = self.store
        if not store.compaction.index:
            return
        source = store.prefix.read_back()
        assert equal(contents(source), self.expected[store.compaction.index])
        if store.prefix.is_loaded:
            assert kept_of(store.prefix.items_files) == kept_of(source.items_files)
        else:
            store.prefix.loaded(source)

    # -- readers -------------------------------------------------------------------------------

    @precondition(lambda self: len(self.readers) < 4)
    @rule()
    def open_archive(self) -> None:
        archive = self.store.archive()
        if archive is not None:
            sizes = [one.entry.end for one in archive.table.files]
            files = [archive.read(number, 0, size) for number, size in enumerate(sizes)]
            assert [len(data) for data in files] == sizes
            self.readers.append(Reader(archive, files))

    @precondition(lambda self: self.readers)
    @rule(share=SHARES)
    def close_archive(self, share: float) -> None:
        reader = self.readers.pop(round(share * (len(self.readers) - 1)))
        reader.archive.close()
        reader.archive.close()
        self.store.sweep()
        self._only_what_is_needed_is_there()

    def _only_what_is_needed_is_there(self) -> None:
        """Of the files in `prefix/` each is listed, being read, or being written (bugs E14)."""
        prefix = self.store.prefix
        listed, begun = file_names(prefix.entries), prefix._begun
        read = [name for one in self.readers for name in one.archive._names]
        present = {f"prefix/{name}" for name in self.files.list("prefix")}
        assert present == {*listed, *begun, *read}

    # -- the end -------------------------------------------------------------------------------

    def _reopen(self, seed: int | None, allowed: Sequence[int]) -> None:
        """End the process, or cut the power: then `seed` says what is lost."""
        if seed is None:
            self.files.kill()
        else:
            self.files.crash(Random(seed))
        self.store = store = open_log(self.files, self.config)
        self.compaction, self.readers, self.frozen, self.number = None, [], [], 0
        start, index = store.start.index, store.compaction.index
        assert index in allowed
        behind = [one for one in self.batches if one.last_index > start]
        found = list(store.batches())
        assert found == behind[: len(found)], "the log was never like this"
        count = len(self.batches) - len(behind) + len(found)
        assert count >= self.durable, "durable batches are lost"
        self._go_back_to(count, Random(seed))
        self.durable = count
        self.read_back()
        self._only_what_is_needed_is_there()

    @rule(seed=st.none() | SEEDS, close=st.booleans())
    def end(self, seed: int | None, close: bool) -> None:
        if close:
            self.store.close()
            self.durable = len(self.batches)
        self._reopen(seed, [self.store.compaction.index])

    @precondition(lambda self: self.compaction is not None)
    @rule(seed=st.none() | SEEDS, at=st.integers(1, 60), share=SHARES)
    def crash_within(self, seed: int | None, at: int, share: float) -> None:
        """The end comes at the n-th operation of all that makes a compaction count."""
        assert self.compaction is not None
        old, new = self.store.compaction.index, self.compaction.index
        self.files.cut_power_at = self.files.operations + at
        with contextlib.suppress(PowerCut):
            self._write(self._make(3, 300))
            self._install()
            self.store.trim(int(share * new))
            self.store.sweep()
        self._reopen(seed, [old, new])

    # -- at any time ---------------------------------------------------------------------------

    @invariant()
    def the_log_is_the_list_behind_its_start(self) -> None:
        store = self.store
        start = store.start.index
        behind = [one for one in self.batches if one.last_index > start]
        assert list(store.batches()) == behind
        assert all(one.first_index > start for one in behind), "a batch lies across the start"
        for at in range(self.number % 7, len(behind), 7):
            one = behind[at]
            assert store.read(one.last_index, 1) == [one]
            found = store.read(one.first_index, 3000)
            assert found == behind[at : at + len(found)]
        assert start <= store.compaction.index <= store.durable_index <= store.last_index
        assert store.last_index == self.history.index

    @invariant()
    def archives_stay_as_they_were(self) -> None:
        for reader in self.readers:
            for number, data in enumerate(reader.files):
                middle = len(data) // 2
                assert reader.archive.read(number, 0, middle) == data[:middle]
                assert reader.archive.read(number, middle, len(data)) == data[middle:]

    @invariant()
    def a_restart_would_find_the_boundary(self) -> None:
        """A compaction index is the end of a segment, or where the log starts."""
        index = self.store.compaction.index
        assert index == self.store.start.index or self.store.boundary_from(index) == index


def play(seed: int, count: int = 30) -> None:
    """Do what the rules do, drawn from a seed alone: many times faster, for planted twins."""
    rng = Random(seed)
    machine = CompactionMachine()
    machine.begin(rng.choice((4096, 16384)), rng.choice((0.05, 0.4, 0.95)), rng.choice((12, 400)))
    try:
        for _ in range(count):
            rng.choice(CHANCES)(machine, rng)
            machine.the_log_is_the_list_behind_its_start()
            machine.archives_stay_as_they_were()
            machine.a_restart_would_find_the_boundary()
    finally:
        machine.teardown()


def step_or_begin(machine: CompactionMachine, rng: Random) -> None:
    if machine.compaction is None:
        machine.compact(rng.random(), 8)
    elif rng.random() < 0.2:
        machine.give_up(rng.random() < 0.5)
    elif rng.random() < 0.4:
        machine.install(rng.random() < 0.5)
    else:
        machine.step(10)


def read_or_not(machine: CompactionMachine, rng: Random) -> None:
    if machine.readers and rng.random() < 0.5:
        machine.close_archive(rng.random())
    else:
        machine.open_archive()


def seed_of(rng: Random) -> int | None:
    return rng.choice((None, rng.randrange(1 << 32)))


def end(machine: CompactionMachine, rng: Random) -> None:
    if machine.compaction is not None and rng.random() < 0.5:
        machine.crash_within(seed_of(rng), rng.randrange(1, 60), rng.random())
    else:
        machine.end(seed_of(rng), rng.random() < 0.3)


Chance = Callable[[CompactionMachine, Random], None]
CHANCES: Sequence[Chance] = (
    lambda machine, rng: machine.write(rng.randint(1, 20), rng.choice(VALUE_BYTES)),
    lambda machine, rng: machine.freeze(rng.randint(0, 20)),
    lambda machine, rng: machine.compact_whole(rng.randint(5, 30), rng.choice(VALUE_BYTES)),
    lambda machine, rng: machine.trim(rng.random()),
    lambda machine, _: machine.sweep(),
    step_or_begin,
    step_or_begin,
    step_or_begin,
    read_or_not,
    end,
)


def kept_of(items_files: Sequence[ItemsFile]) -> list[tuple[object, ...]]:
    return [attrs.astuple(one) for one in items_files]


CompactionMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None
)
TestCompactionMachine = CompactionMachine.TestCase
