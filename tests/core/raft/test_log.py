"""The log view against a plain list of batches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from folkmoot.core.batch import Batch
from folkmoot.core.raft import LogView
from tests.core.raft.network import voters
from tests.core.raft.single import batches, configuration_batch

CACHE_BYTES = 150


class LogAgainstList(RuleBasedStateMachine):
    """Append, cut, compact, reset, apply, recover: after each step everything is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.log = LogView(start_index=5, start_term=2, start_log_time=1, cache_bytes=CACHE_BYTES)
        self.start = (5, 2, 1)
        """(index, term, log time) of what the log starts behind."""
        self.model: list[Batch] = []
        self.applied = 5

    @property
    def last(self) -> int:
        return self.model[-1].last_index if self.model else self.start[0]

    def boundary(self, count: int) -> int:
        """The last index of the first `count` batches."""
        return self.model[count - 1].last_index if count else self.start[0]

    @rule(rise=st.integers(0, 2), count=st.integers(1, 4), time=st.integers(0, 5))
    def append(self, rise: int, count: int, time: int) -> None:
        term = (self.model[-1].term if self.model else self.start[1]) + rise
        at = (self.model[-1].log_time if self.model else self.start[2]) + time
        configuration = voters(term, index=self.last + 1)
        batch = (
            configuration_batch(configuration, term, self.last + 1, time=at)
            if count == 1
            else batches((term, count), after=self.last, time=at)[0]
        )
        self.log.append(batch)
        self.model.append(batch)

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(0, len(self.model)))
        index = self.boundary(keep)
        if index >= self.applied:
            self.log.truncate_after(index)
            del self.model[keep:]

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        gone = data.draw(st.integers(0, len(self.model)))
        self.log.compact_to(self.boundary(gone))
        if gone:
            last = self.model[gone - 1]
            self.start = (last.last_index, last.term, last.log_time)
            self.applied = max(self.applied, last.last_index)
            self.log.applied(self.applied)
            del self.model[:gone]

    @rule(ahead=st.integers(-3, 9), rise=st.integers(0, 2), time=st.integers(0, 5))
    def reset(self, ahead: int, rise: int, time: int) -> None:
        index = max(1, self.last + ahead)
        self.start = (index, self.log.last_term + rise, self.log.last_log_time + time)
        self.log.reset(*self.start)
        self.model, self.applied = [], index

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        self.applied = max(self.applied, data.draw(st.sampled_from(self.model)).last_index)
        self.log.applied(self.applied)

    @rule()
    def recover(self) -> None:
        index, term, log_time = self.start
        self.log = LogView.recovered(
            index, term, self.model, start_log_time=log_time, cache_bytes=CACHE_BYTES
        )
        self.log.applied(self.applied)

    @invariant()
    def ends_agree(self) -> None:
        log, (index, term, log_time) = self.log, self.start
        assert (log.start_index, log.start_term, log.start_log_time) == self.start
        assert (log.first_index, log.last_index) == (index + 1, self.last)
        assert log.last_term == (self.model[-1].term if self.model else term)
        assert log.last_log_time == (self.model[-1].log_time if self.model else log_time)
        assert log.configuration_batches == [b for b in self.model if b.flags]

    @invariant()
    def terms_and_boundaries_agree(self) -> None:
        start, start_term, _ = self.start
        terms = {start: start_term}
        boundaries = {start}
        for batch in self.model:
            boundaries.add(batch.last_index)
            for index in range(batch.first_index, batch.last_index + 1):
                terms[index] = batch.term
                assert self.log.batch_first(index) == batch.first_index
                assert self.log.batch_last(index) == batch.last_index
                assert self.log.log_time_at(index) == batch.log_time
        for index, term in terms.items():
            assert self.log.term_at(index) == term
            assert self.log.is_boundary(index) == (index in boundaries)
            same = [i for i in terms if terms[i] == term]
            assert self.log.last_of_term(term) == max(same)
            if index > start:
                same = [i for i in same if i > start]
                assert self.log.first_of_term_at(index) == min(same)
        assert self.log.last_of_term(9999) == 0

    @invariant()
    def nothing_is_known_beyond_the_ends(self) -> None:
        """Bug E5: one below where the log starts, one above where it ends."""
        for index in (self.start[0] - 1, self.last + 1):
            assert not self.log.is_boundary(index)
            assert self.log.get(index) is None
            with pytest.raises(AssertionError, match="asked of a log"):
                self.log.term_at(index)
            with pytest.raises(AssertionError, match="no boundary"):
                self.log.compact_to(index)

    @invariant()
    def bytes_agree_and_the_unapplied_are_there(self) -> None:
        for position, batch in enumerate(self.model):
            found = self.log.batches_from(batch.first_index, 300, 3)
            assert self.log.get(batch.last_index) in (None, batch)
            if found is not None:
                assert found == self.model[position : position + len(found)]
                assert len(found) == 1 or sum(len(b.data) for b in found) <= 300
                assert len(found) <= 3
                assert self.log.slice(batch.first_index, self.last) == self.model[position:]
            else:
                assert self.log.slice(batch.first_index, self.last) is None
        assert self.log.get(self.start[0]) is None


TestLogAgainstList = LogAgainstList.TestCase
TestLogAgainstList.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_what_is_not_applied_is_never_dropped() -> None:
    log = LogView(cache_bytes=100)
    made = batches(*[(1, 1)] * 50)
    for batch in made:
        log.append(batch)
    assert log.slice(1, 50) == made
    log.applied(48)
    log.limit_cache(100)
    assert log.get(49) is not None
    assert log.get(1) is None


def test_recovery_keeps_only_the_end_in_memory() -> None:
    made = batches(*[(1, 1)] * 50)
    log = LogView.recovered(0, 0, made, cache_bytes=200)
    assert log.get(1) is None
    assert log.get(50) == made[-1]
    assert log.last_index == 50


@pytest.mark.parametrize(
    ("shape", "after", "why"),
    [([(1, 1)], 1, "after index 0"), ([(0, 1)], 0, "term 0 after term 1")],
)
def test_bug_e8_a_batch_that_does_not_follow_is_refused(
    shape: list[tuple[int, int]], after: int, why: str
) -> None:
    log = LogView(start_term=1)
    with pytest.raises(AssertionError, match=why):
        log.append(batches(*shape, after=after)[0])


def test_a_cut_inside_a_batch_is_refused() -> None:
    log = LogView.recovered(0, 0, batches((1, 3)))
    with pytest.raises(AssertionError, match="inside a batch"):
        log.truncate_after(2)


def test_bug_e5_a_log_starts_only_at_a_boundary() -> None:
    log = LogView.recovered(0, 0, batches((1, 3), (1, 3)))
    for index in (1, 2, 4, 5):
        with pytest.raises(AssertionError, match="no boundary"):
            log.compact_to(index)
    log.compact_to(3)
    assert [log.is_boundary(index) for index in range(8)] == [i in (3, 6) for i in range(8)]


def test_bug_e5_a_cut_below_the_start_is_refused() -> None:
    log = LogView.recovered(0, 0, batches((1, 3), (1, 3)))
    log.compact_to(3)
    with pytest.raises(AssertionError, match="cut at 2"):
        log.truncate_after(2)
    log.truncate_after(3)
    assert (log.last_index, log.last_term, log.first_index) == (3, 1, 4)


def test_compaction_keeps_the_arrays_short() -> None:
    """What is gone is at most as much as what stays: that bounds memory, and moving."""
    made = batches(*[(1, 1)] * 100)
    log = LogView.recovered(0, 0, made)
    for index in range(1, 101):
        log.compact_to(index)
        assert len(log._ends) <= 2 * (100 - index)
        assert log.slice(index + 1, 100) == made[index:] if index < 100 else log.get(100) is None


def test_log_time_never_falls() -> None:
    log = LogView.recovered(0, 0, batches((1, 1), time=7))
    with pytest.raises(AssertionError, match="log time 6 after 7"):
        log.append(batches((1, 1), after=1, time=6)[0])


@given(st.integers(0, 3))
def test_configurations_follow_the_log(keep: int) -> None:
    log = LogView()
    for index in (1, 2, 3):
        log.append(configuration_batch(voters(index), 1, index))
    log.truncate_after(keep)
    assert [b.first_index for b in log.configuration_batches] == list(range(1, keep + 1))
