"""Every server's state at an index is the same, byte for byte, and so is what it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.multiplexer import Applied, Multiplexer
from tests.sim.checks import Checker
from tests.sim.scheduler import end_of

if TYPE_CHECKING:
    from tests.sim.member import Member

EVERY = 64
"""Digests are compared whenever the index passes a multiple of this."""


@attrs.define(eq=False, slots=False)
class OneDigest(Checker):
    rule = "invariant 8: the state at an index is the same on every server"
    digests: dict[int, bytes] = attrs.field(factory=dict)

    def applied(self, member: Member, batch: Batch, applied: Applied) -> None:
        if batch.last_index // EVERY != (batch.first_index - 1) // EVERY:
            self.compare(member)

    def frozen(self, member: Member) -> None:
        self.compare(member)

    def booted(self, member: Member, batches: list[Batch]) -> None:
        if member.multiplexer.index:
            self.went_over(member)

    def went_over(self, member: Member) -> None:
        """What is restored is what was frozen, here or elsewhere."""
        index = member.multiplexer.index
        if index not in self.digests:
            self.fail(f"server {member.name} restores a state at {index}: none was frozen there")
        self.compare(member)

    def rested(self, member: Member) -> None:
        """What the files would be restored to is what was frozen as well."""
        store = member.disk.store
        registry, limits = self.world.registry, member.config.limits
        index, source = store.compaction.index, store.prefix.read_back()
        state = end_of(Multiplexer.restoring(registry, limits, source))
        if (state.index, state.digest()) != (index, self.digests[index]):
            self.fail(f"the prefix of server {member.name} up to {index} holds another state")

    def finished(self) -> None:
        for member in self.world.members.values():
            if member.is_up:
                self.compare(member)

    def compare(self, member: Member) -> None:
        """Compare a server's state with what others had at its index."""
        index, digest = member.multiplexer.index, member.multiplexer.digest()
        known = self.digests.setdefault(index, digest)
        self.world.trace.add("digest", member.name, index, digest.hex()[:16])
        if known is not digest:
            self.world.trace.count("digests compared")
        if known != digest:
            self.fail(f"server {member.name} has another state at {index}")


@attrs.define(eq=False, slots=False)
class SameAnswers(Checker):
    rule = "invariant 8: an entry has the same answers on every server, live or replayed (G10)"
    answers: dict[int, Applied] = attrs.field(factory=dict)

    def applied(self, member: Member, batch: Batch, applied: Applied) -> None:
        known = self.answers.setdefault(batch.last_index, applied)
        if known is not applied and known != applied:
            self.fail(
                f"server {member.name} tells of {batch.first_index}..{batch.last_index}\n"
                f"  {applied}\nothers told\n  {known}"
            )
