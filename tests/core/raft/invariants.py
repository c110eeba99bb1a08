"""What must hold after every turn of every node, and for all that it says (§3.2, §3.5, §3.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from folkmoot.core.batch import Batch
from folkmoot.core.raft import AppendReply, HardState, Message, Role, VoteReply, VoteRequest
from folkmoot.core.types import NodeId
from tests.core.raft.disk import Disk

if TYPE_CHECKING:
    from tests.core.raft.network import Network, Node


def check_spoken(node: Node, peer: NodeId, message: Message) -> None:
    """§3.8: what a message reveals is on disk."""
    disk = node.disk
    if isinstance(message, VoteRequest) and message.pre:
        assert message.term == disk.hard_state.term + 1, (node.node_id, message)
    elif isinstance(message, VoteReply):
        assert message.term <= disk.hard_state.term, (node.node_id, message)
        if message.granted and not message.pre:
            state = disk.hard_state
            assert state.term > message.election_term or state == HardState(
                message.election_term, peer
            ), (node.node_id, message, state)
    else:
        assert message.term <= disk.hard_state.term, (node.node_id, message)
    if isinstance(message, VoteRequest) and not message.pre:
        assert disk.hard_state.term > message.term or disk.hard_state == HardState(
            message.term, node.node_id
        ), (node.node_id, message)
    if isinstance(message, AppendReply) and message.success:
        assert message.match_index <= disk.last_index, (node.node_id, message, disk.last_index)
        check_same_on_disk(node, message.match_index)


def check_same_on_disk(node: Node, index: int) -> None:
    """The log that consensus sees and the one on the disk are the same up to `index`."""
    log, disk = node.raft.log, node.disk
    if index >= max(log.start_index, disk.start.index):
        assert disk.term_at(index) == log.term_at(index), (node.node_id, index, disk.start)


def check_node(network: Network, node: Node) -> None:
    """§3.2: election safety, leader completeness; and that nothing outruns the disk."""
    raft = node.raft
    if raft.role is Role.LEADER:
        if raft.term not in network.leaders:
            network.leaders[raft.term] = int(node.node_id)
            for index, (term, _) in network.committed.items():
                assert index <= raft.last_index, (index, raft.status())
                if index >= raft.log.start_index:
                    assert raft.log.term_at(index) == term, (index, term, raft.status())
        assert network.leaders[raft.term] == node.node_id, (raft.term, node.node_id)
    assert node.applied_index <= min(raft.commit_index, raft.durable_index)
    if node.is_up:
        assert raft.durable_index <= node.disk.last_index, (node.node_id, raft.status())
        check_same_on_disk(node, raft.durable_index)
        assert node.disk.start.index <= node.disk.prefix.point.index <= raft.commit_index


def check_logs(disks: Sequence[Disk]) -> None:
    """§3.5, log matching: equal term at an index means equal logs up to there."""
    logs = [{batch.first_index: batch for batch in disk.batches} for disk in disks]
    for a in logs:
        for b in logs:
            _check_pair(a, b)


def _check_pair(a: dict[int, Batch], b: dict[int, Batch]) -> None:
    same = [i for i in a.keys() & b.keys() if a[i].term == b[i].term]
    # Where one log starts later than the other there is nothing to compare.
    first = max(min(a, default=0), min(b, default=0))
    for i in (a.keys() | b.keys()) if same else ():
        if first <= i <= max(same):
            assert i in a and i in b, (i, sorted(a), sorted(b))  # noqa: PT018
            assert a[i].data == b[i].data, (a[i], b[i])
