"""A leader's side of a prefix transfer: it offers, and answers what followers ask for.

Pure: no I/O, no clock, no randomness. `core/replica.py` drives it; files are read beside the loop.

Whom only a prefix can help, consensus knows (`Raft.followers_below_log`). The newest prefix is
pinned and offered; from then on the follower asks. What is sent is bounded three ways: per follower
by what it may ask for at once, in all by a rate (so that the traffic of clients goes on), and in
time, as an archive that nobody asks for is given up, and its files with it.

While an archive is sent, the log behind it must not be trimmed, or the follower could not go on
from it: `oldest` tells (bugs E7).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from folkmoot.core.compacting import CompactionPort
from folkmoot.core.prefix_frames import Ask, Chunk, Offer, PrefixMessage
from folkmoot.core.raft import Raft, Role
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.jobs import OpenArchive, ReadArchive, Sweep
from folkmoot.core.types import NodeId

OFFER_S = 0.5
"""An offer is repeated this often until it is taken up."""
SILENCE_S = 10.0
"""A follower that asks for nothing any more for so long is not being sent anything."""
ASKS_MAX = 32
"""Chunks that one follower may ask for at once; more are not answered, and asked for again."""
_BURST_S = 0.05
"""What the rate allows may be saved up for so long."""


@attrs.define(eq=False)
class Sending:
    """One follower that is sent a prefix."""

    archive: Archive
    heard_at: float
    offered_at: float = -math.inf
    asked_at: float = -math.inf
    received_bytes: int = 0
    asks: deque[Ask] = attrs.field(factory=deque)


class PrefixSender:
    """All transfers that this server, while it leads, is sending.

    - Each archive in `_sendings` is open; none else is, but the one that is just being opened.
    """

    def __init__(
        self,
        raft: Raft,
        storage: CompactionPort,
        bytes_per_s: int,
        send: Callable[[NodeId, PrefixMessage], None],
    ) -> None:
        self._raft = raft
        self._storage = storage
        self._bytes_per_s = bytes_per_s
        self._send = send
        self._sendings: dict[NodeId, Sending] = {}
        self._is_opening = False
        self._opened: Archive | None = None
        """Opened, and nobody's yet."""
        self._allowed_bytes = 0.0
        self._allowed_at = 0.0

    @property
    def oldest(self) -> int | None:
        """The lowest index that a prefix which is being sent speaks for."""
        return min((s.archive.table.point.index for s in self._sendings.values()), default=None)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is sent anything."""
        return not self._sendings

    def status(self) -> dict[NodeId, dict[str, int]]:
        """Per follower: what its prefix speaks for, and how much of it has arrived (bytes)."""
        return {
            peer: {
                "index": one.archive.table.point.index,
                "received_bytes": one.received_bytes,
                "size_bytes": one.archive.table.size_bytes,
            }
            for peer, one in sorted(self._sendings.items())
        }

    def tick(self, now: float) -> None:
        """Offer, answer and give up, as it is time."""
        if not self._sendings and self._opened is None and self._raft.role is not Role.LEADER:
            return
        below = self._raft.followers_below_log()
        for peer, one in list(self._sendings.items()):
            silent_s = now - one.heard_at
            is_done = peer not in below and silent_s > 2 * OFFER_S
            if is_done or silent_s > SILENCE_S or self._raft.role is not Role.LEADER:
                self._drop(peer)
        if self._opened is not None and not below:
            self._close(self._opened)
            self._opened = None
        for peer in below:
            self._offer(peer, now)
        if self._sendings:
            self._answer(now)

    def deadline(self, now: float) -> float:
        """When `tick` must be called even if nothing arrives."""
        if not self._sendings:
            return math.inf
        due = min(one.heard_at + SILENCE_S for one in self._sendings.values())
        if any(one.asks for one in self._sendings.values()):
            return min(due, now + _BURST_S / 4)
        return min(due, now + OFFER_S)

    def heard(self, sender: NodeId, ask: Ask, now: float) -> None:
        """Take a question. What cannot be answered is passed over: the next offer tells more."""
        one = self._sendings.get(sender)
        if one is None or ask.term != self._raft.term or ask.archive_id != one.archive.id:
            return
        files = one.archive.table.files
        if ask.file_number >= len(files) or ask.offset >= files[ask.file_number].entry.end:
            return
        one.heard_at = one.asked_at = now
        one.received_bytes = ask.received_bytes
        if ask.size_bytes and len(one.asks) < ASKS_MAX:
            one.asks.append(ask)

    def _offer(self, peer: NodeId, now: float) -> None:
        one = self._sendings.get(peer)
        if one is not None and one.archive.table.point.index < self._raft.log.start_index:
            self._drop(peer)  # the log does not go on from there any more
            one = None
        if one is None:
            archive = self._newest()
            if archive is None:
                return
            one = self._sendings[peer] = Sending(archive, now)
        if now - max(one.offered_at, one.asked_at) >= OFFER_S:
            one.offered_at = now
            self._send(peer, Offer(self._raft.term, one.archive.encoded))

    def _newest(self) -> Archive | None:
        """Return an open archive that the log goes on from; have one opened where there is none."""
        for one in self._sendings.values():
            if one.archive.table.point.index >= self._raft.log.start_index:
                return one.archive
        if self._opened is not None:
            archive, self._opened = self._opened, None
            return archive
        if not self._is_opening:
            self._is_opening = True
            self._storage.post(OpenArchive(), self._on_opened)
        return None

    def _on_opened(self, archive: Archive | None) -> None:
        self._is_opening = False
        self._opened = archive

    def _answer(self, now: float) -> None:
        """Answer in turn as many questions as the rate allows."""
        passed_s = min(max(now - self._allowed_at, 0.0), _BURST_S)
        burst = max(self._bytes_per_s * _BURST_S, 1.0)
        self._allowed_bytes = min(self._allowed_bytes + passed_s * self._bytes_per_s, burst)
        self._allowed_at = now
        waiting = deque(item for item in self._sendings.items() if item[1].asks)
        while waiting and self._allowed_bytes > 0:
            peer, one = waiting.popleft()
            ask = one.asks.popleft()
            self._allowed_bytes -= ask.size_bytes
            job = ReadArchive(one.archive, ask.file_number, ask.offset, ask.size_bytes)
            self._storage.post(job, self._replier(peer, ask))
            if one.asks:
                waiting.append((peer, one))

    def _replier(self, peer: NodeId, ask: Ask) -> Callable[[Any], None]:
        def reply(data: bytes) -> None:
            self._send(peer, Chunk(ask.archive_id, ask.file_number, ask.offset, data))

        return reply

    def _drop(self, peer: NodeId) -> None:
        """Let a follower's archive go, and its files where nobody else is sent them."""
        archive = self._sendings.pop(peer).archive
        if all(one.archive is not archive for one in self._sendings.values()):
            self._close(archive)

    def _close(self, archive: Archive) -> None:
        archive.close()
        self._storage.post(Sweep(), lambda _: None)
