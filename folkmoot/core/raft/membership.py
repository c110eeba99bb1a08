"""The configuration: who votes, who learns, who only witnesses, and where everybody listens.

Pure: no I/O, no clock, no randomness.

A `Configuration` is a value. It comes from the bootstrap list (index 0), from the compacted prefix,
or from a CONFIGURATION entry of the log, and then takes effect as soon as that entry is appended
(§4.1), committed or not. `effective` is the whole rule: the last configuration in the log, else the
base. A truncation that cuts a configuration out of the log thereby brings the one before back. When
entries leave the log at its start, the last configuration among them becomes the base (bug D4).

It is not a protocol: how a change is proposed, caught up and finished is not decided here.

The entry's payload is `encode()` in the codec's bytes. Addresses ride along so that every member
can find every other, but no arithmetic looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from folkmoot.core.batch import Batch, Kind
from folkmoot.core.config import Member
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.types import NodeId
from folkmoot.transport.codec import pack, unpack

MEMBERS_MAX = 1024
"""More members than this in one configuration are refused when it is decoded."""

_SETS = ("voters", "outgoing", "learners", "witnesses")


@attrs.frozen(kw_only=True)
class Configuration:
    """Who takes part, from one entry of the log on.

    - A decision needs a majority of `voters`, and of `outgoing` too while that is not empty (§4.3).
    - A learner is in neither: it is replicated to and counts for nothing (§4.2.1).
    - A witness is a voter that keeps no machines, so it never leads.
    - `voters` is empty only on a server that waits to be added: it knows nobody, never campaigns.
    """

    voters: frozenset[NodeId] = frozenset()
    outgoing: frozenset[NodeId] = frozenset()
    """The voters of the configuration that is being left; empty when not joint."""
    learners: frozenset[NodeId] = frozenset()
    witnesses: frozenset[NodeId] = frozenset()
    members: Mapping[NodeId, tuple[str, str]] = attrs.field(factory=dict)
    """node id -> (peer address, client address)."""
    index: int = 0
    """The entry that it came from; 0 for the bootstrap list."""
    quorums: tuple[frozenset[NodeId], ...] = attrs.field(init=False, repr=False, eq=False)
    """The voter sets, each of which must agree."""
    everyone: tuple[NodeId, ...] = attrs.field(init=False, repr=False, eq=False)
    """All that are replicated to, in ascending order."""

    def __attrs_post_init__(self) -> None:
        voting = self.voters | self.outgoing
        assert not voting & self.learners, f"{sorted(voting & self.learners)} vote and learn"
        assert self.witnesses <= voting, f"witnesses {sorted(self.witnesses - voting)} do not vote"
        quorums = (self.voters, self.outgoing) if self.outgoing else (self.voters,)
        object.__setattr__(self, "quorums", quorums)
        object.__setattr__(self, "everyone", tuple(sorted(voting | self.learners)))

    @classmethod
    def bootstrap(cls, members: Iterable[Member]) -> Configuration:
        """Return the first configuration: every listed member votes."""
        listed = {m.node_id: (m.peer_address, m.client_address) for m in members}
        return cls(voters=frozenset(listed), members=listed)

    @property
    def is_joint(self) -> bool:
        """True between the two halves of a change (§4.3)."""
        return bool(self.outgoing)

    def is_voter(self, node_id: NodeId) -> bool:
        """Return whether `node_id` has a vote in either half."""
        return node_id in self.voters or node_id in self.outgoing

    def may_lead(self, node_id: NodeId) -> bool:
        """Return whether `node_id` may campaign: a voter that keeps machines."""
        return self.is_voter(node_id) and node_id not in self.witnesses

    def is_alone(self, node_id: NodeId) -> bool:
        """Return whether `node_id` is a quorum by itself, with nobody else to ask."""
        return self.voters | self.outgoing == {node_id}

    def encode(self) -> dict[str, Any]:
        """Return plain data, without `index`: that is the index of the entry which carries it."""
        data: dict[str, Any] = {name: sorted(getattr(self, name)) for name in _SETS}
        data["members"] = [[node_id, *self.members[node_id]] for node_id in sorted(self.members)]
        return data

    @classmethod
    def decode(cls, data: Any, index: int) -> Configuration:
        """Rebuild from `encode`'s data. Raises RemoteProtocolError when it is not that."""
        try:
            sets = {name: frozenset(_node_ids(data[name])) for name in _SETS}
            members = {
                _node_id(i): (_text(peer), _text(client)) for i, peer, client in data["members"]
            }
            if len(data) != len(_SETS) + 1 or len(members) > MEMBERS_MAX:
                raise ValueError(f"{len(data)} fields, {len(members)} members")
            if (sets["voters"] | sets["outgoing"]) & sets["learners"]:
                raise ValueError("a member both votes and learns")
            if not sets["witnesses"] <= sets["voters"] | sets["outgoing"]:
                raise ValueError("a witness that does not vote")
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"configuration of entry {index}: {error}") from error
        return cls(**sets, members=members, index=index)

    def to_payload(self) -> bytes:
        """Return the payload of a CONFIGURATION group."""
        return pack(self.encode())

    @classmethod
    def from_payload(cls, payload: bytes, index: int) -> Configuration:
        """Decode a CONFIGURATION group's payload. Raises RemoteProtocolError."""
        return cls.decode(unpack(payload), index)


def from_batch(batch: Batch) -> Configuration:
    """Return the last configuration in a batch that is flagged to hold one.

    Raises RemoteProtocolError when it holds none, or a malformed one.
    """
    index, found = batch.first_index, None
    try:
        groups = batch.groups
    except StorageCorrupt as error:
        raise RemoteProtocolError(f"batch from {batch.first_index}: {error}") from error
    for group in groups:
        if group.kind == Kind.CONFIGURATION:
            found = Configuration.from_payload(group.payload, index)
        index += group.count
    if found is None:
        raise RemoteProtocolError(
            f"batch {batch.first_index}..{batch.last_index} is flagged to hold a configuration "
            "and holds none"
        )
    return found


def effective(base: Configuration, configuration_batches: Sequence[Batch]) -> Configuration:
    """Return the configuration in force: the last one in the log, committed or not (§4.1)."""
    return from_batch(configuration_batches[-1]) if configuration_batches else base


def as_of(index: int, base: Configuration, configuration_batches: Sequence[Batch]) -> Configuration:
    """Return the last configuration at or below `index`, a boundary of the log, else the base."""
    return effective(base, [b for b in configuration_batches if b.last_index <= index])


def _node_id(value: Any) -> NodeId:
    if type(value) is not int or not 1 <= value < 1 << 62:
        raise ValueError(f"node id {value!r}")
    return NodeId(value)


def _node_ids(values: Any) -> list[NodeId]:
    if not isinstance(values, list) or len(values) > MEMBERS_MAX:
        raise ValueError(f"a list of at most {MEMBERS_MAX} node ids is needed")
    return [_node_id(value) for value in values]


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError(f"address {value!r}")
    return value
