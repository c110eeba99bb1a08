"""Quorum arithmetic against a deliberately dumb twin: try every subset of voters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.raft.quorum import (
    VoteResult,
    committed,
    majority,
    quorum_contact,
    vote_result,
)
from folkmoot.core.types import NodeId

Sets = Sequence[Set[NodeId]]
ids = st.integers(1, 7).map(NodeId)
voter_sets = st.frozensets(ids, min_size=1, max_size=5)
quorum_systems = st.lists(voter_sets, min_size=1, max_size=2)


def is_quorum(agreeing: Set[NodeId], quorums: Sets) -> bool:
    """The definition: more than half of every set."""
    return all(2 * len(voters & agreeing) > len(voters) for voters in quorums)


def dumb_committed(match: Mapping[NodeId, int], quorums: Sets) -> int:
    """The highest index such that those who have reached it are a quorum."""
    indexes = {0, *match.values()}
    return max(
        i for i in indexes if i == 0 or is_quorum({n for n, m in match.items() if m >= i}, quorums)
    )


def dumb_result(votes: Mapping[NodeId, bool], quorums: Sets) -> VoteResult:
    """Try every way in which the missing votes could still come in."""
    voters = sorted({voter for voter_set in quorums for voter in voter_set})
    missing = [voter for voter in voters if voter not in votes]
    ends = set()
    for rest in itertools.product([True, False], repeat=len(missing)):
        final = {**votes, **dict(zip(missing, rest, strict=True))}
        ends.add(is_quorum({v for v, granted in final.items() if granted}, quorums))
    if ends == {True}:
        return VoteResult.WON
    return VoteResult.LOST if ends == {False} else VoteResult.PENDING


@given(st.dictionaries(ids, st.integers(0, 20)), quorum_systems)
def test_committed_is_what_a_quorum_has_stored(match: dict[NodeId, int], quorums: Sets) -> None:
    assert committed(match, quorums) == dumb_committed(match, quorums)


@given(st.dictionaries(ids, st.booleans()), quorum_systems)
def test_a_vote_is_decided_when_the_rest_cannot_change_it(
    votes: dict[NodeId, bool], quorums: Sets
) -> None:
    assert vote_result(votes, quorums) == dumb_result(votes, quorums)


@given(st.dictionaries(ids, st.floats(0, 100)), quorum_systems)
def test_quorum_contact_is_the_latest_time_that_a_quorum_has_reached(
    contact: dict[NodeId, float], quorums: Sets
) -> None:
    times = [
        t for t in contact.values() if is_quorum({n for n, c in contact.items() if c >= t}, quorums)
    ]
    assert quorum_contact(contact, quorums) == max(times, default=-math.inf)


@given(quorum_systems, st.data())
def test_two_quorums_of_one_system_intersect(quorums: Sets, data: st.DataObject) -> None:
    """§4.3: a joint decision needs both halves, so it meets every decision of either."""
    voters = sorted({voter for voter_set in quorums for voter in voter_set})
    a = data.draw(st.frozensets(st.sampled_from(voters)))
    b = data.draw(st.frozensets(st.sampled_from(voters)))
    if is_quorum(a, quorums) and is_quorum(b, quorums[:1]):
        assert a & b


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_majority(count: int, needed: int) -> None:
    assert majority(count) == needed


def test_bug_c11_non_voters_have_no_say() -> None:
    """Three voters, two learners, two voters cut off: nothing is decided."""
    quorums = [frozenset(map(NodeId, (1, 2, 3)))]
    heard = {NodeId(i): 50.0 for i in (1, 4, 5)}
    assert quorum_contact(heard, quorums) == -math.inf
    assert committed({NodeId(i): 9 for i in (1, 4, 5)}, quorums) == 0
    assert vote_result({NodeId(i): True for i in (1, 4, 5)}, quorums) is VoteResult.PENDING
