"""The configuration as a value: who may do what, and its plain data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.batch import FLAG_CONFIGURATION, Group, Kind, encode_batch
from folkmoot.core.config import Member
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft import Configuration
from folkmoot.core.raft.membership import effective, from_batch
from folkmoot.core.types import NodeId
from tests.core.raft.network import command, voters

ids = st.integers(1, 9).map(NodeId)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    voting, outgoing = draw(st.frozensets(ids)), draw(st.frozensets(ids))
    others = [NodeId(i) for i in range(1, 10) if i not in voting | outgoing]
    return Configuration(
        voters=voting,
        outgoing=outgoing,
        learners=frozenset(o for o in others if draw(st.booleans())),
        witnesses=frozenset(v for v in sorted(voting | outgoing) if draw(st.booleans())),
        members=draw(st.dictionaries(ids, st.tuples(st.text(max_size=9), st.text(max_size=9)))),
        index=7,
    )


@given(configurations())
def test_a_configuration_survives_its_bytes(configuration: Configuration) -> None:
    assert Configuration.from_payload(configuration.to_payload(), 7) == configuration


@given(st.binary(max_size=60))
def test_arbitrary_payloads_raise_only_the_protocol_error(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Configuration.from_payload(payload, 1)


def test_bootstrap_makes_every_listed_member_a_voter() -> None:
    members = [
        Member(node_id=NodeId(n), peer_address=f"p{n}", client_address=f"c{n}") for n in (3, 1)
    ]
    configuration = Configuration.bootstrap(members)
    assert configuration.voters == {1, 3}
    assert configuration.everyone == (1, 3)
    assert configuration.members[NodeId(3)] == ("p3", "c3")
    assert (configuration.index, configuration.is_joint) == (0, False)


def test_who_may_do_what() -> None:
    configuration = Configuration(
        voters=frozenset(map(NodeId, (1, 2))),
        outgoing=frozenset(map(NodeId, (2, 3))),
        learners=frozenset([NodeId(4)]),
        witnesses=frozenset([NodeId(3)]),
    )
    assert configuration.is_joint
    assert configuration.everyone == (1, 2, 3, 4)
    assert [n for n in range(1, 6) if configuration.is_voter(NodeId(n))] == [1, 2, 3]
    assert [n for n in range(1, 6) if configuration.may_lead(NodeId(n))] == [1, 2]
    assert not configuration.is_alone(NodeId(1))
    assert voters(1, learners=[2]).is_alone(NodeId(1))
    assert not voters(2).is_alone(NodeId(1))


GOOD: dict[str, Any] = {
    "voters": [1],
    "outgoing": [],
    "learners": [2],
    "witnesses": [],
    "members": [[1, "a", "b"]],
}


@pytest.mark.parametrize(
    "change",
    [
        {"voters": [0]},
        {"voters": [True]},
        {"voters": [1, 2]},
        {"voters": "1"},
        {"voters": list(range(1, 2000))},
        {"witnesses": [5]},
        {"members": [[1, "a"]]},
        {"members": [[1, "a", 3]]},
        {"members": [[1, "a", "b" * 2000]]},
        {"members": None},
        {"more": 1},
    ],
    ids=str,
)
def test_malformed_data_is_refused(change: dict[str, Any]) -> None:
    assert Configuration.decode(dict(GOOD), 5).index == 5
    with pytest.raises(RemoteProtocolError, match="configuration of entry 5"):
        Configuration.decode({**GOOD, **change}, 5)


def test_the_last_configuration_of_a_batch_counts_with_the_index_of_its_entry() -> None:
    first, last = voters(1), voters(1, 2)
    groups = [
        Group(Kind.CONFIGURATION, 1, first.to_payload()),
        command("x"),
        Group(Kind.CONFIGURATION, 1, last.to_payload()),
    ]
    batch = encode_batch(1, 10, 0, groups, FLAG_CONFIGURATION)
    assert from_batch(batch).index == 12
    assert from_batch(batch).voters == last.voters
    assert effective(first, [batch]).voters == last.voters
    assert effective(first, []) == first


@pytest.mark.parametrize(
    "parts",
    [
        {"voters": [1], "learners": [1]},
        {"voters": [1], "witnesses": [2]},
    ],
)
def test_a_contradictory_configuration_cannot_be_made(parts: dict[str, list[int]]) -> None:
    with pytest.raises(AssertionError):
        Configuration(**{name: frozenset(map(NodeId, ids)) for name, ids in parts.items()})  # type: ignore[arg-type]
