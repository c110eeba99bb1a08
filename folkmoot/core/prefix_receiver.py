"""A follower's side of a prefix transfer: it asks for what it is missing, until all of it is here.

Pure: no I/O, no clock, no randomness. `core/replica.py` drives it; files are written beside the
loop. What comes then, the restoring and the install, is `prefix_install`'s.

    offer -> begin (what is here of it already is kept) -> ask, write, ask ... -> complete

A WINDOW of chunks is asked for, in order; they are written in order, whatever order they come in.
What does not come is asked for again. Another offer begins anew, but keeps the files that both
archives have: so neither a crash of this server nor a change of the leader loses much.

Only reading it back verifies what was received. What is found DAMAGED then is removed, asked for
again, and reported to the leader, who looks at its own. An archive that is damaged once more is
refused: it would be sent for ever.

A full disk makes a pause, and ends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from folkmoot.core.compacting import CompactionPort
from folkmoot.core.errors import RemoteProtocolError, StorageFull
from folkmoot.core.jobs import BeginReceiving, CheckReceived, DiscardReceived, Receive
from folkmoot.core.prefix_events import PrefixBegun, PrefixDelayed, PrefixRefused
from folkmoot.core.prefix_frames import CHUNK_BYTES, Ask, Chunk, Damaged, Offer, PrefixMessage
from folkmoot.core.prefix_table import ArchiveTable, archive_id
from folkmoot.core.raft import Raft
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.types import NodeId

WINDOW_CHUNKS = 16
"""So many chunks are asked for, or wait for the disk."""
AGAIN_S = 1.0
"""What does not come for so long is asked for again."""
PAUSE_S = 10.0
"""After a full disk, no offer is taken up for so long."""
DAMAGES_MAX = 1
"""So often what is damaged of one archive is asked for again."""

Place = tuple[int, int]
"""(file number, offset)"""


class PrefixReceiver:
    """One transfer at most.

    - `_asked` are places of this archive, in order, each asked for and not yet handed to the disk;
      those in `_arrived` are here and wait for one before them.
    - `_written` bytes of each file are on the disk or on their way there, in order;
      `received_bytes` is their sum, and every file before `_first` is whole.
    - The answer of a job that was posted for an earlier transfer means nothing (`number`).
    """

    def __init__(
        self,
        raft: Raft,
        storage: CompactionPort,
        send: Callable[[NodeId, PrefixMessage], None],
        tell: Callable[[TraceEvent], None],
    ) -> None:
        self._raft = raft
        self._storage = storage
        self._send = send
        self._tell = tell
        self.number = 0
        """Of the present transfer: it rises when one begins, and when one ends."""
        self._refused = b""
        """The archive that was damaged again."""
        self._is_full = False
        self._paused_until = -math.inf
        self._clear()

    def _clear(self) -> None:
        self.number += 1
        self.table: ArchiveTable | None = None
        self.size_bytes = 0
        """Of all files; 0 while nothing is received."""
        self.received_bytes = 0
        """Bytes that are here."""
        self._id = b""
        self._leader = NodeId(0)
        self._term = 0
        self._is_waiting = False
        """For a job: there is nothing to ask for."""
        self._is_held = False
        self._damages = 0
        self._first = 0
        self._written: list[int] = []
        self._asked: dict[Place, int] = {}
        self._arrived: dict[Place, bytes] = {}
        self._writing = 0
        self._ask_again_at = math.inf

    # -- what arrives --------------------------------------------------------------------------

    def offered(self, sender: NodeId, offer: Offer, now: float) -> None:
        """Take an offer of the leader. Raises RemoteProtocolError for a table that is none."""
        raft = self._raft
        if sender != raft.leader or offer.term != raft.term or self._is_held or self._is_full:
            return
        found = archive_id(offer.table)
        if found == self._id:
            self._offered_again(sender, offer.term, now)
        elif found != self._refused and now >= self._paused_until:
            table = ArchiveTable.decode(offer.table)
            if self._is_better(sender, offer, table):
                self._begin(sender, offer, table)

    def arrived(self, sender: NodeId, chunk: Chunk, now: float) -> None:
        """Take bytes that were asked for; others are passed over."""
        place = (chunk.file_number, chunk.offset)
        size_bytes = self._asked.get(place)
        if sender != self._leader or chunk.archive_id != self._id or size_bytes is None:
            return
        if len(chunk.data) != size_bytes:
            raise RemoteProtocolError(
                f"chunk of {len(chunk.data)} bytes at {place}, {size_bytes} were asked for"
            )
        self._arrived[place] = chunk.data
        self._ask_again_at = now + AGAIN_S
        self._write()
        self._ask(now)

    def tick(self, now: float) -> None:
        """Ask for what is next, ask again for what has not come; give up what is of no use."""
        if self._is_full:
            self._is_full = False
            self._paused_until = now + PAUSE_S
        table = self.table
        if table is None or self._is_held:
            return
        if self._raft.has_entry(table.point.index, table.point.term):
            self.give_up()  # a leader with a longer log has brought it in the ordinary way
            return
        if now >= self._ask_again_at:
            self._ask_again(now)
        self._ask(now)

    def deadline(self, now: float) -> float:
        """When `tick` must be called even if nothing arrives."""
        return max(self._ask_again_at, now)

    # -- for the install -------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether every byte is on the disk."""
        if self.table is None or self._is_waiting or self._writing:
            return False
        return self.received_bytes == self.size_bytes

    def hold(self) -> None:
        """Keep to this archive from now on, whatever is offered."""
        self._is_held = True

    def installed(self) -> None:
        """Forget the transfer: the storage has made what was received its own."""
        self._clear()

    def give_up(self) -> None:
        """Forget the transfer, and what has come of it: it is of no use."""
        if self.table is not None:
            self._clear()
            self._storage.post(DiscardReceived(), _nothing)

    def damaged(self) -> None:
        """What was received does not verify: have it looked at, and the damaged part sent anew."""
        self._is_waiting = True
        self._post(CheckReceived(), self._on_checked)

    def _on_checked(self, damaged: list[int]) -> None:
        self._is_waiting = False
        table = self.table
        assert table is not None, "checked nothing"
        for number in damaged:
            self._send(self._leader, Damaged(self._term, self._id, number))
            self._take_written(number, 0)
        self._first = 0
        self._damages += 1
        if not damaged or self._damages > DAMAGES_MAX:
            self._refused = self._id
            self._tell(PrefixRefused(table.point.index, self._leader))
            self.give_up()

    # -- beginning -----------------------------------------------------------------------------

    def _offered_again(self, sender: NodeId, term: int, now: float) -> None:
        if (sender, term) != (self._leader, self._term):
            self._leader, self._term = sender, term
            self._ask_again(now)
        self._ask(now)
        if self.is_complete:  # it is being restored: the leader is to keep the log behind it
            self._send(sender, Ask(term, self._id, 0, 0, 0, self.received_bytes))

    def _is_better(self, sender: NodeId, offer: Offer, table: ArchiveTable) -> bool:
        """Say whether another archive takes the place of the one that is being received.

        What is complete stays while the leader's log goes on from it. What one leader offers only
        gets newer (bugs E3):

            1. the leader offers the prefix of 10, compacts, and offers the prefix of 20
            2. the second offer overtakes the first, and what both have is kept
            3. the first arrives: had it been taken, the files of 20 would be thrown away
        """
        if not self._raft.may_install(table.point.index, table.point.term):
            return False
        present = self.table
        if present is None:
            return True
        if self.is_complete and present.point.index >= offer.log_start:
            return False
        is_same = (sender, offer.term) == (self._leader, self._term)
        return not (is_same and table.point.index <= present.point.index)

    def _begin(self, sender: NodeId, offer: Offer, table: ArchiveTable) -> None:
        self._clear()
        self.table, self._id = table, archive_id(offer.table)
        self.size_bytes = table.size_bytes
        self._leader, self._term = sender, offer.term
        self._is_waiting = True
        self._post(BeginReceiving(offer.table), self._on_begun)

    def _on_begun(self, answer: list[int] | StorageFull) -> None:
        if isinstance(answer, StorageFull):
            self._pause(answer)
            return
        assert self.table is not None, "begun with no table"
        self._is_waiting = False
        self._written, self.received_bytes = answer, sum(answer)
        point = self.table.point
        self._tell(PrefixBegun(point.index, self._leader, self.size_bytes, self.received_bytes))

    def _pause(self, error: StorageFull) -> None:
        """Wait a while; what is on the disk of it stays, and counts when it is begun again."""
        assert self.table is not None, "paused with no table"
        self._tell(PrefixDelayed(self.table.point.index, str(error)))
        self._clear()
        self._is_full = True

    # -- asking and writing --------------------------------------------------------------------

    def _ask(self, now: float) -> None:
        """Ask for the next chunks, as far as the window goes."""
        room = WINDOW_CHUNKS - len(self._asked) - self._writing
        if self.table is None or self._is_waiting or room <= 0:
            return
        for place, size_bytes in self._missing():
            if place in self._asked:
                continue
            self._asked[place] = size_bytes
            self._send_ask(place, now)
            room -= 1
            if not room:
                break
        if not self._asked:
            self._ask_again_at = math.inf

    def _ask_again(self, now: float) -> None:
        for place in self._asked:
            if place not in self._arrived:
                self._send_ask(place, now)

    def _send_ask(self, place: Place, now: float) -> None:
        size_bytes = self._asked[place]
        ask = Ask(self._term, self._id, *place, size_bytes, self.received_bytes)
        self._send(self._leader, ask)
        self._ask_again_at = now + AGAIN_S

    def _missing(self) -> Iterator[tuple[Place, int]]:
        """Yield the places that are not written, in order."""
        assert self.table is not None, "asked with no table"
        files = self.table.files
        while (
            self._first < len(files) and self._written[self._first] == files[self._first].entry.end
        ):
            self._first += 1
        for number in range(self._first, len(files)):
            end = files[number].entry.end
            for offset in range(self._written[number], end, CHUNK_BYTES):
                yield (number, offset), min(CHUNK_BYTES, end - offset)

    def _write(self) -> None:
        """Hand to the disk what follows what it has."""
        while self._asked:
            place = next(iter(self._asked))
            data = self._arrived.pop(place, None)
            if data is None:
                return
            del self._asked[place]
            number, offset = place
            assert offset == self._written[number], (
                f"{place} written behind {self._written[number]}"
            )
            self._take_written(number, offset + len(data))
            self._writing += 1
            self._post(Receive(number, offset, data), self._writer(number, offset + len(data)))

    def _writer(self, number: int, expected: int) -> Callable[[int | StorageFull], None]:
        def written(answer: int | StorageFull) -> None:
            self._writing -= 1
            if isinstance(answer, StorageFull):
                self._pause(answer)
            else:
                assert answer == expected, f"file {number} has {answer} bytes, not {expected}"

        return written

    def _take_written(self, number: int, size_bytes: int) -> None:
        self.received_bytes += size_bytes - self._written[number]
        self._written[number] = size_bytes

    def _post(self, job: Any, then: Callable[[Any], None]) -> None:
        """Have a job done; its answer counts if it still is for the present transfer."""
        number = self.number

        def answered(answer: Any) -> None:
            if number == self.number:
                then(answer)

        self._storage.post(job, answered)


def _nothing(_: Any) -> None:
    """Nobody waits for this job."""
