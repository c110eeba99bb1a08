"""Consensus and the replicated state as they are, watched by the checks."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from folkmoot.core.batch import Batch
from folkmoot.core.freeze import Freeze
from folkmoot.core.multiplexer import Applied, Multiplexer
from folkmoot.core.prefix import PrefixSource
from folkmoot.core.raft import Configuration, Raft, Ready

if TYPE_CHECKING:
    from tests.sim.member import Member


class WatchedRaft(Raft):
    """Consensus, whose effects the checks see before they happen."""

    member: Member

    def ready(self) -> Ready:
        """Take all effects since the last call."""
        ready = super().ready()
        if ready:
            self.member.world.checks.ready(self.member, ready)
        return ready

    def install(
        self, index: int, term: int, log_time: int, configuration: Configuration, now: float
    ) -> None:
        """Discard the log, and go on behind a prefix."""
        super().install(index, term, log_time, configuration, now)
        self.member.world.checks.installing(self.member, index, term)

    def lease_valid(self, now: float) -> bool:
        """Return whether a read of the applied state is linearizable right now."""
        valid = super().lease_valid(now)
        self.member.world.trace.count("leases valid", int(valid))
        return valid


class WatchedMultiplexer(Multiplexer):
    """The replicated state, whose changes the checks see as they happen."""

    member: Member

    def apply(self, batch: Batch) -> Applied:
        """Apply the next batch."""
        freeze = self.freezing
        pending = 0 if freeze is None else len(freeze._pending)
        applied = super().apply(batch)
        if freeze is not None and len(freeze._pending) < pending:
            self.member.world.trace.count("records copied on write")
        self.member.world.checks.applied(self.member, batch, applied)
        return applied

    def successor(self, source: PrefixSource) -> Generator[int, None, WatchedMultiplexer]:
        """Make another state, from a prefix."""
        found = yield from super().successor(source)
        found.member = self.member
        return found

    def freeze(self) -> Freeze:
        """Freeze the state as it is now."""
        self.member.world.trace.add("freeze", self.member.name, self.index)
        self.member.world.checks.frozen(self.member)
        return super().freeze()
