"""Quorum arithmetic: which index is committed, who won, how recent a majority's contact is.

Pure: no I/O, no clock, no randomness, no state.

A quorum system is given as `quorums`: one set of voters, or two while a joint configuration is in
force (§4.3). A decision needs a majority of EACH set. Learners appear in none of them, so they can
never be counted by mistake; whoever is not in a set simply has no say, whatever a mapping holds.

Two of the three questions are the same one: "which is the largest value that a majority has
reached?" It is answered in `_reached`, once.

Source: §3.6.2 (commitment), §3.4 (votes), §4.3 (joint consensus), §6.2 and §6.4 (leader contact).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence, Set
from typing import TypeVar

from folkmoot.core.types import NodeId

_Value = TypeVar("_Value", int, float)

Quorums = Sequence[Set[NodeId]]
"""One set of voters, or the two of a joint configuration."""


class VoteResult(enum.StrEnum):
    """How an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """Return how many of `count` voters are a majority."""
    return count // 2 + 1


def committed(match: Mapping[NodeId, int], quorums: Quorums) -> int:
    """Return the highest index that a majority of every voter set has stored (§3.6.2, §4.3)."""
    return min([_reached(match, voters, 0) for voters in quorums])


def quorum_contact(contact: Mapping[NodeId, float], quorums: Quorums) -> float:
    """Return the latest time at which a majority of every voter set had been in contact.

    `contact` holds each voter's newest contact; one that is missing was never in contact.
    """
    return min([_reached(contact, voters, float("-inf")) for voters in quorums])


def vote_result(votes: Mapping[NodeId, bool], quorums: Quorums) -> VoteResult:
    """Return how the election stands: lost as soon as some voter set can no longer be won."""
    result = VoteResult.WON
    for voters in quorums:
        assert voters, "an election without voters"
        needed = majority(len(voters))
        granted = sum(1 for voter in voters if votes.get(voter) is True)
        refused = sum(1 for voter in voters if votes.get(voter) is False)
        if refused > len(voters) - needed:
            return VoteResult.LOST
        if granted < needed:
            result = VoteResult.PENDING
    return result


def _reached(values: Mapping[NodeId, _Value], voters: Set[NodeId], missing: _Value) -> _Value:
    """Return the largest value that a majority of `voters` has reached."""
    assert voters, "a quorum of no voters"
    ascending = sorted([values.get(voter, missing) for voter in voters])
    return ascending[len(ascending) - majority(len(ascending))]
