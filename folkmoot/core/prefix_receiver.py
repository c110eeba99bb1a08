"""A follower's side of a prefix transfer: it asks for what it is missing, until all of it is here.

Pure: no I/O, no clock, no randomness. `core/replica.py` drives it; files are written beside the
loop. What comes then, the restoring and the install, is `prefix_install`'s.

    offer -> begin (what is here of it already is kept) -> ask, write, ask ... -> complete

A WINDOW of chunks is asked for, in order; they are written in order, whatever order they come in.
What does not come is asked for again. Another offer begins anew, but keeps the files that both
archives have: so neither a crash of this server nor a change of the leader loses much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from folkmoot.core.compacting import CompactionPort
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.prefix_frames import CHUNK_BYTES, Ask, Chunk, Offer, PrefixMessage
from folkmoot.core.raft import Raft
from folkmoot.core.storage.archive import ArchiveTable, archive_id
from folkmoot.core.storage.jobs import BeginReceiving, DiscardReceived, Receive
from folkmoot.core.types import NodeId

WINDOW_CHUNKS = 16
"""So many chunks are asked for and not here yet."""
AGAIN_S = 1.0
"""What does not come for so long is asked for again."""

Place = tuple[int, int]
"""(file number, offset)"""


class PrefixReceiver:
    """One transfer at most.

    - `_asked` are places of this archive, in order, each asked for and not yet handed to the disk;
      those in `_arrived` are here and wait for one before them.
    - `_written` bytes of each file are on the disk or on their way there, in order.
    """

    def __init__(
        self,
        raft: Raft,
        storage: CompactionPort,
        send: Callable[[NodeId, PrefixMessage], None],
    ) -> None:
        self._raft = raft
        self._storage = storage
        self._send = send
        self.begun = 0
        """How many transfers have begun."""
        self._clear()

    def _clear(self) -> None:
        self.table: ArchiveTable | None = None
        self._id = b""
        self._leader = NodeId(0)
        self._is_beginning = False
        self._written: list[int] = []
        self._asked: dict[Place, int] = {}
        self._arrived: dict[Place, bytes] = {}
        self._writing = 0
        self._ask_again_at = math.inf

    # -- what arrives --------------------------------------------------------------------------

    def offered(self, sender: NodeId, offer: Offer, now: float) -> None:
        """Take an offer of the leader. Raises RemoteProtocolError for a table that is none."""
        raft = self._raft
        if sender != raft.leader or offer.term != raft.term or self._is_beginning or self._writing:
            return
        found = archive_id(offer.table)
        if found == self._id:
            if sender != self._leader:
                self._leader = sender
                self._forget_asked()
            self._ask(now)
            if self.is_complete:  # it is being restored: the leader is to keep the log behind it
                self._send(sender, Ask(raft.term, found, 0, 0, 0, self.received_bytes))
            return
        if self.is_complete:
            return
        table = ArchiveTable.decode(offer.table)
        if not raft.may_install(table.point.index, table.point.term):
            return
        self._clear()
        self.table, self._id, self._leader = table, found, sender
        self._is_beginning = True
        self.begun += 1
        self._storage.post(BeginReceiving(offer.table), self._on_begun)

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
        self._write()
        self._ask(now)

    def tick(self, now: float) -> None:
        """Ask again for what has not come, as long as it is of use."""
        if now < self._ask_again_at:
            return
        if self.table is not None and self.table.point.index <= self._raft.commit_index:
            if not self._writing:
                self.give_up()  # a leader with a longer log has brought it in the ordinary way
            return
        self._forget_asked()
        self._ask(now)

    def deadline(self) -> float:
        """When `tick` must be called even if nothing arrives."""
        return self._ask_again_at

    # -- what is known -------------------------------------------------------------------------

    @property
    def received_bytes(self) -> int:
        """Bytes that are here."""
        return sum(self._written)

    @property
    def is_complete(self) -> bool:
        """Whether every byte is on the disk."""
        table = self.table
        if table is None or self._is_beginning or self._writing:
            return False
        return all(
            done == one.entry.end for done, one in zip(self._written, table.files, strict=True)
        )

    def installed(self) -> None:
        """Forget the transfer: the storage has made what was received its own."""
        self._clear()

    def give_up(self) -> None:
        """Forget the transfer, and what has come of it: it is of no use."""
        if self.table is not None:
            self._clear()
            self._storage.post(DiscardReceived(), lambda _: None)

    # -- asking and writing --------------------------------------------------------------------

    def _on_begun(self, have: list[int]) -> None:
        self._is_beginning = False
        self._written = have
        self._ask_again_at = -math.inf  # at the next tick

    def _ask(self, now: float) -> None:
        """Ask for the next chunks, as far as the window goes."""
        if self.table is None or self._is_beginning:
            return
        for place, size_bytes in self._missing():
            if len(self._asked) >= WINDOW_CHUNKS:
                break
            if place not in self._asked:
                self._asked[place] = size_bytes
                ask = Ask(self._raft.term, self._id, *place, size_bytes, self.received_bytes)
                self._send(self._leader, ask)
        self._ask_again_at = now + AGAIN_S if self._asked else math.inf

    def _missing(self) -> Iterator[tuple[Place, int]]:
        """Yield the places that are not written, in order."""
        assert self.table is not None, "asked with no table"
        for number, one in enumerate(self.table.files):
            for offset in range(self._written[number], one.entry.end, CHUNK_BYTES):
                yield (number, offset), min(CHUNK_BYTES, one.entry.end - offset)

    def _write(self) -> None:
        """Hand to the disk what follows what it has."""
        while self._asked:
            place = next(iter(self._asked))
            data = self._arrived.pop(place, None)
            if data is None:
                return
            del self._asked[place]
            number, offset = place
            assert offset == self._written[number], f"{place} written behind {self._written}"
            self._written[number] += len(data)
            self._writing += 1
            self._storage.post(Receive(number, offset, data), self._on_written)

    def _on_written(self, fitted: bool) -> None:
        self._writing -= 1
        assert fitted, f"a chunk did not follow what is here: {self._written}"

    def _forget_asked(self) -> None:
        self._asked.clear()
        self._arrived.clear()
