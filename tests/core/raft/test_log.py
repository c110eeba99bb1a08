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

CACHE_BYTES = 400


class LogAgainstList(RuleBasedStateMachine):
    """Append, cut, apply, recover: after each step everything that can be asked is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.log = LogView(compaction_index=5, compaction_term=2, cache_bytes=CACHE_BYTES)
        self.model: list[Batch] = []
        self.applied = 5

    @property
    def last(self) -> int:
        return self.model[-1].last_index if self.model else 5

    @rule(rise=st.integers(0, 2), count=st.integers(1, 4), time=st.integers(0, 5))
    def append(self, rise: int, count: int, time: int) -> None:
        term = (self.model[-1].term if self.model else 2) + rise
        at = (self.model[-1].log_time if self.model else 0) + time
        (batch,) = batches((term, count), after=self.last, time=at)
        self.log.append(batch)
        self.model.append(batch)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(0, len(self.model)))
        index = self.model[keep - 1].last_index if keep else 5
        if index >= self.applied:
            self.log.truncate_after(index)
            del self.model[keep:]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        self.applied = max(self.applied, data.draw(st.sampled_from(self.model)).last_index)
        self.log.applied(self.applied)

    @rule()
    def recover(self) -> None:
        self.log = LogView.recovered(5, 2, self.model, cache_bytes=CACHE_BYTES)
        self.log.applied(self.applied)

    @invariant()
    def ends_agree(self) -> None:
        assert self.log.last_index == self.last
        assert self.log.last_term == (self.model[-1].term if self.model else 2)
        assert self.log.last_log_time == (self.model[-1].log_time if self.model else 0)

    @invariant()
    def terms_and_boundaries_agree(self) -> None:
        terms = {5: 2}
        boundaries = {5}
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
            if index > 5:
                same = [i for i in terms if i > 5 and terms[i] == term]
                assert self.log.first_of_term_at(index) == min(same)
                assert self.log.last_of_term(term) == max(same)
        assert self.log.last_of_term(99) == 0
        assert not self.log.is_boundary(self.last + 1)

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
        assert self.log.get(5) is None
        assert self.log.get(self.last + 1) is None


TestLogAgainstList = LogAgainstList.TestCase
TestLogAgainstList.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


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
    log = LogView(compaction_term=1)
    with pytest.raises(AssertionError, match=why):
        log.append(batches(*shape, after=after)[0])


def test_a_cut_inside_a_batch_is_refused() -> None:
    log = LogView.recovered(0, 0, batches((1, 3)))
    with pytest.raises(AssertionError, match="inside a batch"):
        log.truncate_after(2)


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
