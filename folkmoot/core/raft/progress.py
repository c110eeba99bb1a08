"""What a leader knows of one follower, and what it may send it next.

Pure: no I/O, no clock, no randomness. It builds no messages and decides nothing about commitment.

    PROBE      where do the logs meet? One append at a time: with batches when the position is new,
               without at each heartbeat after that. A success leads to PIPELINE.
    PIPELINE   they meet at match_index; appends go out optimistically, up to the window. A genuine
               refusal, or an election timeout without any reply, leads back to PROBE.
    PREFIX     the follower needs batches that are compacted away. Heartbeats still go out, and ask
               where the log starts; a success there leads to PIPELINE. Who transfers the prefix,
               and how, is not consensus' business.

A refusal is believed only while it answers the present position (bug B10), and nothing is ever sent
because a reply arrived, only because there is something to say (bug B11):

    1. pipeline: appends after 10, 20 and 30 are in flight, the first is lost
    2. the follower refuses 20 and 30, both saying "try 11"
    3. the first refusal leads to PROBE at 11 with the batches; the second names prev_index 30,
       which is not the probe's 10: ignored. Answering both would double the traffic at every loss.

Source: §3.5, §10.2.1; the states' names are the ones of the field.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Sequence

from folkmoot.core.batch import Batch
from folkmoot.core.raft.messages import AppendReply
from folkmoot.core.types import NodeId


class ProgressState(enum.StrEnum):
    """How a follower is being replicated to."""

    PROBE = "probe"
    PIPELINE = "pipeline"
    PREFIX = "prefix"


class Progress:
    """One follower, as its leader sees it; made anew for each term and each time it joins.

    - match_index < next_index; match_index never falls (bug B10).
    - Replies to rounds before `first_round` are from an earlier membership of the same peer and are
      never counted (bug B14); older terms do not get here.
    - What is in flight is bounded in batches and bytes; one batch may always go (bug B13).
    """

    __slots__ = (
        "_inflight",
        "acked_round",
        "acked_sent_at",
        "contact_at",
        "due",
        "first_round",
        "inflight_batches",
        "inflight_bytes",
        "loaded",
        "match_index",
        "next_index",
        "peer",
        "probe_sent",
        "reading",
        "sent_commit",
        "state",
        "wants_commit",
    )

    def __init__(self, peer: NodeId, next_index: int, first_round: int, now: float) -> None:
        self.peer = peer
        self.state = ProgressState.PROBE
        self.match_index = 0
        self.next_index = next_index
        self.first_round = first_round
        self.acked_round = 0
        """The newest round that it has acknowledged."""
        self.acked_sent_at = -math.inf
        """When that round was SENT: leases count from there (bug C4)."""
        self.contact_at = now
        """When its newest reply arrived; a new leader gives everybody a full timeout."""
        self.due = True
        """An append must go out at the next ready(), whether or not it carries batches."""
        self.probe_sent = False
        self.wants_commit = False
        self.sent_commit = 0
        """The highest commit index that it can have learnt from what was sent."""
        self.reading = False
        """Its next batches are being read back from storage."""
        self.loaded: Sequence[Batch] = ()
        """Batches that were read back, from next_index on, not yet sent."""
        self.inflight_batches = 0
        self.inflight_bytes = 0
        self._inflight: deque[tuple[int, int, int]] = deque()
        """(last index, batches, bytes) of each append that is not yet acknowledged."""

    # -- sending -------------------------------------------------------------------------------

    def may_send_batches(self, window_batches: int, window_bytes: int) -> bool:
        """Return whether an append with batches may go out now."""
        if self.state is ProgressState.PIPELINE:
            return self.inflight_batches < window_batches and self.inflight_bytes < window_bytes
        return self.state is ProgressState.PROBE and not self.probe_sent

    def sent(self, batches: Sequence[Batch]) -> None:
        """Note that `batches`, which start at next_index, went out."""
        if self.state is not ProgressState.PIPELINE:
            return  # a probe does not move on before it is answered
        assert batches[0].first_index == self.next_index, (
            f"sent {batches[0].first_index}, next is {self.next_index}"
        )
        last_index = batches[-1].last_index
        size_bytes = sum([len(batch.data) for batch in batches])
        self.next_index = last_index + 1
        self._inflight.append((last_index, len(batches), size_bytes))
        self.inflight_batches += len(batches)
        self.inflight_bytes += size_bytes

    # -- learning ------------------------------------------------------------------------------

    def matched(self, index: int, verified: int) -> bool:
        """Note that the follower has `index` durable and agrees up to `verified`.

        Returns whether `index` is news.
        """
        if self.state is not ProgressState.PIPELINE:
            self._become(ProgressState.PIPELINE, max(index, verified, self.match_index) + 1)
        elif index <= self.match_index:
            return False  # late or repeated
        is_news = index > self.match_index
        self.match_index = max(index, self.match_index)
        self.next_index = max(self.next_index, self.match_index + 1)
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            _, batches, size_bytes = inflight.popleft()
            self.inflight_batches -= batches
            self.inflight_bytes -= size_bytes
        return is_news

    def is_genuine_refusal(self, reply: AppendReply) -> bool:
        """Return whether a refusal answers the present position (bug B10)."""
        if self.state is ProgressState.PIPELINE:
            return self.match_index < reply.prev_index < self.next_index
        return reply.prev_index == self.next_index - 1

    def become_probe(self, next_index: int, *, paced: bool = False) -> None:
        """Find out anew where the logs meet; `paced` waits for the next heartbeat to ask."""
        self._become(ProgressState.PROBE, next_index)
        self.probe_sent = paced

    def become_prefix(self, next_index: int) -> None:
        """Its next batches are gone here: only the prefix can help it."""
        self._become(ProgressState.PREFIX, next_index)

    def _become(self, state: ProgressState, next_index: int) -> None:
        assert next_index > self.match_index, f"next {next_index}, match is {self.match_index}"
        self.state = state
        self.next_index = next_index
        self.probe_sent = False
        self.sent_commit = 0
        self.reading = False
        self.loaded = ()
        self._inflight.clear()
        self.inflight_batches = self.inflight_bytes = 0
