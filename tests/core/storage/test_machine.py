"""A log against a list: any order of writes, syncs, truncations, restarts and power cuts.

After a crash the log must be one that existed, up to some batch, since the last sync; it must hold
everything that was durable; and nothing else.
"""

from __future__ import annotations

import contextlib
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from folkmoot.core.batch import Batch, Group, Kind, encode_batch
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from tests.core.storage.support import Log

SEEDS = st.none() | st.integers(0, 1 << 32)


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.files = MemoryFiles()
        self.log = Log(self.files)
        self.model: list[Batch] = []
        self.existed: list[list[Batch]] = [[]]
        """Every log since the last sync: a crash may leave a prefix of any of them."""
        self.durable = 0
        """How many batches a crash must leave."""
        self.states = [HardState()]
        """The last durable term and vote, and what may have become of it."""
        self.made = 0

    def _batches(self, count: int, size_bytes: int, term: int) -> list[Batch]:
        """No two are alike, so that a stale one is recognised."""
        index = self.model[-1].last_index + 1 if self.model else 1
        made = []
        for _ in range(count):
            self.made += 1
            payload = self.made.to_bytes(4, "little") * (size_bytes // 4)
            group = Group(Kind.COMMANDS, 1 + self.made % 3, payload)
            made.append(encode_batch(term, index, index, [group]))
            index = made[-1].last_index + 1
        return made

    def _write(self, cut: int | None, count: int, size_bytes: int, *, new_term: bool) -> None:
        """One write: perhaps a new term, perhaps a truncation to `cut` batches, then batches."""
        state = self.log.store.hard_state
        term = state.term + 1 if new_term or state.term == 0 else state.term
        if term != state.term:
            self.states.append(HardState(term, self.made % 4 or None))
        after = None
        if cut is not None:
            self.model = self.model[:cut]
            after = self.model[-1].last_index if self.model else 0
            self.durable = min(self.durable, cut)
            self.existed.append(self.model)
        appended = self._batches(count, size_bytes, term)
        self.model = self.model + appended
        self.existed.append(self.model)
        self.log.write(appended, term=term, vote=self.states[-1].voted_for, truncate_after=after)
        self.states = [self.log.store.hard_state]

    def _synced(self) -> None:
        self.existed = [self.model]
        self.durable = len(self.model)

    def _reopen(self) -> None:
        self.log = Log(self.files)
        found = self.log.all()
        assert found[: self.durable] == self.model[: self.durable], "durable batches are lost"
        assert any(found == one[: len(found)] for one in self.existed), "never was like this"
        assert self.log.store.hard_state in self.states
        self.model, self.states = found, [self.log.store.hard_state]
        self._synced()

    @rule(
        count=st.integers(0, 6), size_bytes=st.sampled_from([8, 200, 5000]), new_term=st.booleans()
    )
    def write(self, count: int, size_bytes: int, new_term: bool) -> None:
        self._write(None, count, size_bytes, new_term=new_term)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(0, 4))
    def truncate(self, data: st.DataObject, count: int) -> None:
        cut = data.draw(st.integers(0, len(self.model) - 1), label="batches that stay")
        self._write(cut, count, 100, new_term=True)

    @rule()
    def sync(self) -> None:
        assert self.log.store.sync() == self.log.number
        self._synced()

    @rule()
    def tidy(self) -> None:
        if self.log.store.wants_prepare:
            self.log.store.prepare()
        self.log.store.mark()

    @rule()
    def close_and_reopen(self) -> None:
        self.log.store.close()
        self._synced()
        self._reopen()
        assert self.log.store.recovered.torn_tail is None

    def _end(self, seed: int | None) -> None:
        """The process is killed, or the power cut: then `seed` says what is lost."""
        if seed is None:
            self.files.kill()
        else:
            self.files.crash(random.Random(seed))

    @rule(seed=SEEDS)
    def crash(self, seed: int | None) -> None:
        self._end(seed)
        self._reopen()

    @rule(seed=SEEDS, at=st.integers(1, 25), cut=st.none() | st.integers(0, 9), sync=st.booleans())
    def crash_within(self, seed: int | None, at: int, cut: int | None, sync: bool) -> None:
        """The end comes at the n-th operation of a write (and sync) that does everything."""
        self.files.cut_power_at = self.files.operations + at
        with contextlib.suppress(PowerCut):
            inside = None if cut is None or cut >= len(self.model) else cut
            self._write(inside, 4, 1500, new_term=True)
            if sync:
                self.log.store.sync()
                self._synced()
        self._end(seed)
        self._reopen()

    @rule(seed=SEEDS, at=st.integers(1, 12))
    def crash_while_recovering(self, seed: int | None, at: int) -> None:
        self._end(seed)
        self.files.cut_power_at = self.files.operations + at
        with contextlib.suppress(PowerCut):
            Log(self.files)
        self._end(seed)
        self._reopen()

    @invariant()
    def reads_agree(self) -> None:
        store = self.log.store
        assert self.log.all() == self.model
        assert store.last_index == (self.model[-1].last_index if self.model else 0)
        durable_index = self.model[self.durable - 1].last_index if self.durable else 0
        assert durable_index <= store.durable_index <= store.last_index
        if self.model:
            middle = self.model[len(self.model) // 2]
            assert store.read(middle.last_index, 1) == [middle]


LogMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestLogMachine = LogMachine.TestCase
