"""What must be on disk before anybody hears of it (§3.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.multiplexer import Applied
from folkmoot.core.raft import (
    AppendReply,
    Message,
    Ready,
    VoteReply,
    VoteRequest,
)
from folkmoot.core.types import NodeId
from tests.sim.checks import Checker
from tests.sim.checks.ledger import Disk

if TYPE_CHECKING:
    from tests.sim.member import Member


@attrs.define(eq=False, slots=False)
class PersistBeforeSpeaking(Checker):
    rule = "§3.8: term and vote are durable before any message that reveals them leaves"

    def ready(self, member: Member, ready: Ready) -> None:
        disk = self.world.ledger.disks[member.name]
        for peer, message in ready.messages:
            fault = self._fault(member, disk, peer, message)
            if fault:
                self.fail(
                    f"server {member.name} says {message} to {peer}; "
                    f"on disk are term {disk.term}, vote {disk.voted_for}: {fault}"
                )

    @staticmethod
    def _fault(member: Member, disk: Disk, peer: NodeId, message: Message) -> str:
        if isinstance(message, VoteRequest):
            if message.pre:
                return "" if message.term == disk.term + 1 else "not the next term"
            own = (disk.term, disk.voted_for) == (message.term, member.node_id)
            return "" if own or disk.term > message.term else "the own vote"
        if message.term > disk.term:
            return "the term"
        if isinstance(message, VoteReply) and message.granted and not message.pre:
            given = (disk.term, disk.voted_for) == (message.election_term, peer)
            return "" if given or disk.term > message.election_term else "the vote"
        return ""


@attrs.define(eq=False, slots=False)
class AcknowledgedIsDurable(Checker):
    rule = "§3.8, B7: a follower acknowledges only what is durable on its disk at that moment"

    def ready(self, member: Member, ready: Ready) -> None:
        disk = self.world.ledger.disks[member.name]
        for _, message in ready.messages:
            if isinstance(message, AppendReply) and message.success:
                index = message.match_index
                if index > disk.durable_index:
                    self.fail(
                        f"server {member.name} acknowledges {index}, "
                        f"durable is {disk.durable_index}"
                    )


@attrs.define(eq=False, slots=False)
class CommittedIsDurable(Checker):
    rule = "§3.6, B8: what is committed is durable on the disks of a majority"

    def committed(self, member: Member, index: int, entry: tuple[int, int]) -> None:
        holders = [
            name
            for name, disk in self.world.ledger.disks.items()
            if disk.durable_index >= index and disk.book.entries.get(index) == entry
        ]
        if len(holders) <= self.world.options.nodes // 2:
            self.fail(
                f"server {member.name} takes {index} as committed; it is durable on {holders}"
            )


@attrs.define(eq=False, slots=False)
class AppliedIsDurable(Checker):
    rule = "B9: a server applies only what is durable on its own disk"

    def applied(self, member: Member, batch: Batch, applied: Applied) -> None:
        durable_index = self.world.ledger.disks[member.name].durable_index
        if batch.last_index > durable_index:
            self.fail(
                f"server {member.name} applied {batch.last_index}, durable is {durable_index}"
            )
