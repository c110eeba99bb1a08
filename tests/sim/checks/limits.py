"""Every queue and window stays under its limit; the replica's own invariants hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from folkmoot.core.admin import status
from tests.sim.checks import Checker, Step

if TYPE_CHECKING:
    from tests.sim.client import SimClient
    from tests.sim.member import Member

FRAME_SLACK = 1 << 16
"""The last thing that is taken may be as large as one frame of ours."""


@attrs.define(eq=False, slots=False)
class EverythingBounded(Checker):
    rule = "every queue, window and table stays under its limit"

    def turned(self, member: Member) -> None:
        replica, raft = member.replica, member.raft
        limits, config = member.config.limits, member.config.raft
        leader = raft._leader
        self._at_most("pending", replica.intake.size_bytes, limits.pending_bytes_max)
        self._at_most(
            "forwarded", replica.router.forwarded_bytes, limits.pending_bytes_max + FRAME_SLACK
        )
        if leader is not None:
            self._at_most(
                "uncommitted",
                leader._uncommitted_bytes,
                config.uncommitted_bytes_max + FRAME_SLACK,
            )
            self._at_most("reads", leader.reads.count, config.pending_reads_max)
            for progress in leader._replication.progress.values():
                self._at_most("batches", progress.inflight_batches, config.window_batches)
                self._at_most("bytes", progress.inflight_bytes, config.window_bytes + FRAME_SLACK)

    def step(self, step: Step) -> None:
        limits = self.world.options.limits()
        for session in step.multiplexer.sessions:
            kept = session.sequence - session.low_water
            self._at_most("answers", kept, limits.session_window)
            self._at_most("events", session.events.count, limits.session_events_max)

    def client_turned(self, client: SimClient) -> None:
        pipeline = client.core.pipeline
        self._at_most("in flight", len(pipeline.in_flight), pipeline.window)

    def finished(self) -> None:
        """Operators can ask every server how it stands."""
        for member in self.world.members.values():
            if member.is_up:
                status(member.replica, [], member.local_now())

    def _at_most(self, what: str, value: int, limit: int) -> None:
        if value > limit:
            self.fail(f"{what}: {value}, the limit is {limit}")
