"""A leader's side of a prefix transfer: it offers, and answers what followers ask for.

Pure: no I/O, no clock, no randomness. `core/replica.py` drives it; files are read beside the loop.

Whom only a prefix can help, consensus knows (`Raft.followers_below_log`). The newest prefix is
pinned and offered; from then on the follower asks. What is sent is bounded three ways: per follower
by what it may ask for at once, in all by a rate (so that the traffic of clients goes on), and in
time, as an archive that nobody asks for is given up, and its files with it.

While an archive is sent, the log behind it must not be trimmed, or the follower could not go on
from it: `oldest` tells (bugs E7). Where the log is trimmed all the same, as it has become too long,
the follower is offered the prefix as it is now, and keeps the files that both have.

Files are sent as they lie on the disk: whoever reads them back verifies them. A follower that finds
one damaged says so, and then it is verified here, too: a leader whose own prefix is damaged stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from folkmoot.core.allowance import BURST_S, Allowance
from folkmoot.core.compacting import CompactionPort
from folkmoot.core.jobs import (
    ArchivePort,
    CheckArchive,
    CloseArchive,
    OpenArchive,
    ReadArchive,
    Sweep,
)
from folkmoot.core.prefix_frames import Ask, Chunk, Damaged, Offer, PrefixMessage
from folkmoot.core.raft import Raft, Role
from folkmoot.core.types import NodeId

OFFER_S = 0.5
"""An offer is repeated this often until it is taken up."""
SILENCE_S = 10.0
"""A follower that asks for nothing any more for so long is not being sent anything."""
ASKS_MAX = 32
"""Chunks that one follower may ask for at once; more are not answered, and asked for again."""

Place = tuple[int, int]
"""(file number, offset)"""


@attrs.define(eq=False)
class Sending:
    """One follower that is sent a prefix.

    - A place is in `asks` or in `reading`, or in neither: asked for twice, it is sent once.
    """

    archive: ArchivePort
    size_bytes: int
    """Of all files of the archive."""
    heard_at: float
    offered_at: float = -math.inf
    asked_at: float = -math.inf
    received_bytes: int = 0
    asks: dict[Place, int] = attrs.field(factory=dict)
    """What is to be sent: place -> bytes, in the order in which it was asked for."""
    reading: set[Place] = attrs.field(factory=set)
    """What is being read from the disk."""
    checked: set[int] = attrs.field(factory=set)
    """Files that were verified because the follower found them damaged."""

    @property
    def silent_at(self) -> float:
        """When it is given up, if nothing is heard of the follower."""
        return self.heard_at + SILENCE_S


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
        self._send = send
        self._sendings: dict[NodeId, Sending] = {}
        """Who was answered last stands last."""
        self._is_opening = False
        self._opened: ArchivePort | None = None
        """Opened, and nobody's yet."""
        self._allowance = Allowance(bytes_per_s)

    @property
    def oldest(self) -> int | None:
        """The lowest index that a prefix which is being sent speaks for."""
        return min((s.archive.table.point.index for s in self._sendings.values()), default=None)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is sent anything, and nothing is pinned for it."""
        return not (self._sendings or self._is_opening or self._opened is not None)

    def status(self) -> dict[NodeId, dict[str, int]]:
        """Per follower: what its prefix speaks for, and how much of it has arrived (bytes)."""
        return {
            peer: {
                "index": one.archive.table.point.index,
                "received_bytes": one.received_bytes,
                "size_bytes": one.size_bytes,
            }
            for peer, one in sorted(self._sendings.items())
        }

    def tick(self, now: float) -> None:
        """Offer, answer and give up, as it is time."""
        if self.is_idle and self._raft.role is not Role.LEADER:
            return
        for peer, one in list(self._sendings.items()):
            if now >= one.silent_at or not self._raft.needs_prefix(peer):
                self._drop(peer)
        below = self._raft.followers_below_log()
        for peer in below:
            self._offer(peer, now)
        if self._opened is not None and not below:
            self._close(self._opened)
            self._opened = None
        if self._sendings:
            self._answer(now)

    def deadline(self, now: float) -> float:
        """When `tick` must be called even if nothing arrives."""
        if not self._sendings:
            return math.inf
        due = min(one.silent_at for one in self._sendings.values())
        if any(one.asks for one in self._sendings.values()):
            return min(due, now + BURST_S / 4)
        return min(due, now + OFFER_S)

    # -- what followers say ----------------------------------------------------------------------

    def heard(self, sender: NodeId, ask: Ask, now: float) -> None:
        """Take a question. What cannot be answered is passed over: the next offer tells more."""
        one = self._sending(sender, ask)
        if one is None:
            return
        place, end = (ask.file_number, ask.offset), self._end_of(one, ask.file_number)
        if ask.offset >= end:
            return
        one.heard_at = one.asked_at = now
        one.received_bytes = min(ask.received_bytes, one.size_bytes)
        is_new = place not in one.asks and place not in one.reading
        if ask.size_bytes and is_new and len(one.asks) + len(one.reading) < ASKS_MAX:
            one.asks[place] = min(ask.size_bytes, end - ask.offset)

    def damaged(self, sender: NodeId, message: Damaged) -> None:
        """A follower has found a file damaged: look at it here, once."""
        one = self._sending(sender, message)
        number = message.file_number
        if one is not None and self._end_of(one, number) and number not in one.checked:
            one.checked.add(number)
            self._storage.post(CheckArchive(one.archive, number), lambda _: None)

    def _sending(self, sender: NodeId, message: Ask | Damaged) -> Sending | None:
        """Return what a message of this term is about; None where that is no more."""
        one = self._sendings.get(sender)
        if one is None or message.term != self._raft.term:
            return None
        return one if message.archive_id == one.archive.id else None

    def _end_of(self, one: Sending, file_number: int) -> int:
        files = one.archive.table.files
        return files[file_number].entry.end if file_number < len(files) else 0

    # -- offering --------------------------------------------------------------------------------

    def _offer(self, peer: NodeId, now: float) -> None:
        log_start = self._raft.log.start_index
        one = self._sendings.get(peer)
        if one is not None and one.archive.table.point.index < log_start:
            self._drop(peer)  # the log does not go on from there any more
            one = None
        if one is None:
            archive = self._newest(log_start)
            if archive is None:
                return
            one = self._sendings[peer] = Sending(archive, archive.table.size_bytes, now)
        if now >= max(one.offered_at, one.asked_at) + OFFER_S:
            one.offered_at = now
            self._send(peer, Offer(self._raft.term, log_start, one.archive.encoded))

    def _newest(self, log_start: int) -> ArchivePort | None:
        """Return an open archive that the log goes on from; have one opened where there is none."""
        for one in self._sendings.values():
            if one.archive.table.point.index >= log_start:
                return one.archive
        if self._opened is not None:
            archive, self._opened = self._opened, None
            return archive
        if not self._is_opening:
            self._is_opening = True
            self._storage.post(OpenArchive(), self._on_opened)
        return None

    def _on_opened(self, archive: ArchivePort | None) -> None:
        assert archive is not None, f"no prefix, and the log starts at {self._raft.log.start_index}"
        self._is_opening = False
        self._opened = archive

    def _drop(self, peer: NodeId) -> None:
        """Let a follower's archive go, and its files where nobody else is sent them."""
        archive = self._sendings.pop(peer).archive
        if all(one.archive is not archive for one in self._sendings.values()):
            self._close(archive)

    def _close(self, archive: ArchivePort) -> None:
        self._storage.post(CloseArchive(archive), lambda _: None)
        self._storage.post(Sweep(), lambda _: None)

    # -- answering -------------------------------------------------------------------------------

    def _answer(self, now: float) -> None:
        """Answer in turn as many questions as the rate allows."""
        self._allowance.refill(now)
        while self._allowance.is_left:
            peer = next((peer for peer, one in self._sendings.items() if one.asks), None)
            if peer is None:
                return
            one = self._sendings[peer] = self._sendings.pop(peer)  # the next is another's
            place = next(iter(one.asks))
            size_bytes = one.asks.pop(place)
            one.reading.add(place)
            self._allowance.take(size_bytes)
            job = ReadArchive(one.archive, *place, size_bytes)
            self._storage.post(job, self._replier(peer, one, place))

    def _replier(self, peer: NodeId, one: Sending, place: Place) -> Callable[[Any], None]:
        def reply(data: bytes) -> None:
            one.reading.discard(place)
            if self._sendings.get(peer) is one:
                self._send(peer, Chunk(one.archive.id, *place, data))

        return reply
