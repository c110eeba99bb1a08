"""Reads that wait on this server for their moment (§6.4).

Pure: no I/O, no clock, no randomness. Driven by `core/replica.py`.

A linearizable read waits for a READ INDEX: a commit index that a leader had after the read arrived,
confirmed by a majority in a round that began after it arrived. All reads of one turn share one
token, so one round. Then, like every other read, it waits until this server has applied that far,
and is answered from the local state.

A lease read is answered at once while the lease holds, checked AFTER the evaluation, so that a
pause between the check and the read cannot hide (bugs: etcd #20418); without a lease it becomes a
linearizable read.

A sequential read waits only for what its own session has seen and done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from folkmoot.core.errors import CommandError
from folkmoot.core.requests import error_fields


@attrs.define(eq=False)
class Read:
    """One READ frame."""

    connection: Any
    request_id: int
    at_least: int
    """Index that must have been applied."""
    session_id: int
    after_sequence: int
    """Sequence of the session that must have been applied (0: none)."""
    operations: list[Any]
    resume: tuple[int, bytes, int, int] | None = None
    """Not a read but a session that wants to be resumed: it needs the log's end just the same."""


def evaluate(
    read: Read, query: Callable[[int, list[Any]], Any]
) -> tuple[list[Any], list[Any] | None]:
    """Values and errors of a read's operations, as `query` answers them."""
    values: list[Any] = []
    errors: list[Any] | None = None
    for operation in read.operations:
        try:
            values.append(query(read.session_id, operation))
        except CommandError as error:
            errors = errors or []
            errors.append([len(values), *error_fields(error)])
            values.append(None)
    return values, errors


@attrs.define
class ReadDesk:
    """All reads that wait here.

    - A read is in exactly one place: unconfirmed, in a round, or confirmed.
    """

    unconfirmed: list[Read] = attrs.field(factory=list)
    """Need a read index and are in no round yet."""
    leased: list[Read] = attrs.field(factory=list)
    """Of this turn: answered at its end if the lease still holds, else unconfirmed."""
    rounds: dict[int, list[Read]] = attrs.field(factory=dict)
    """Token -> the reads that wait for that round."""
    _confirmed: list[tuple[int, int, Read]] = attrs.field(factory=list)
    """Heap by the index that they need."""
    _behind: list[Read] = attrs.field(factory=list)
    """Their index is applied but their session's own command is not."""
    _count: int = 0
    _token: int = 0

    def waiting(self) -> int:
        """How many reads wait here."""
        rounds = sum(map(len, self.rounds.values()))
        return len(self.unconfirmed) + rounds + len(self._confirmed) + len(self._behind)

    @property
    def are_near(self) -> bool:
        """Whether any read may be answered in this turn: all others wait for a round."""
        return bool(self._confirmed or self._behind or self.leased)

    def begin_round(self) -> int | None:
        """Put every unconfirmed read into one new round; its token, or None when there is none."""
        if not self.unconfirmed:
            return None
        self._token += 1
        self.rounds[self._token] = self.unconfirmed
        self.unconfirmed = []
        return self._token

    def confirmed(self, token: int, index: int) -> None:
        """The round ended: its reads may be answered from `index` on."""
        for read in self.rounds.pop(token, ()):
            read.at_least = max(read.at_least, index)
            self.add_confirmed(read)

    def lost(self, token: int) -> None:
        """The round was lost with its leader: its reads need another."""
        self.unconfirmed.extend(self.rounds.pop(token, ()))

    def add_confirmed(self, read: Read) -> None:
        """A read that only has to wait for its index (and its session's sequence)."""
        self._count += 1
        heapq.heappush(self._confirmed, (read.at_least, self._count, read))

    def due(self, applied: int, sequence_of: Any) -> Iterator[Read]:
        """Reads that may be answered now, in the order in which they were confirmed per index.

        `sequence_of(session_id)` is the last applied sequence of a session.
        """
        behind, self._behind = self._behind, []
        heap = self._confirmed
        while heap and heap[0][0] <= applied:
            behind.append(heapq.heappop(heap)[2])
        for read in behind:
            if read.after_sequence and sequence_of(read.session_id) < read.after_sequence:
                self._behind.append(read)
            else:
                yield read

    def refused(self, connection: Any, first_sequence: int) -> None:
        """Commands of a client from `first_sequence` on were not taken: no read waits for them.

        1. a client sends commands 5..9 and a sequential read behind them, which names 9
        2. the commands are refused, as too many wait; the client gives them up
        3. nothing with the sequence 9 may come for hours, and the read would wait for it
        """
        for read in [*self._behind, *[item[2] for item in self._confirmed]]:
            if read.connection is connection:
                read.after_sequence = min(read.after_sequence, first_sequence - 1)

    def forget(self, connection: Any) -> None:
        """A client went away."""
        self.unconfirmed = [read for read in self.unconfirmed if read.connection is not connection]
        for token, reads in self.rounds.items():
            self.rounds[token] = [read for read in reads if read.connection is not connection]
        self._behind = [read for read in self._behind if read.connection is not connection]
        self._confirmed = [item for item in self._confirmed if item[2].connection is not connection]
        heapq.heapify(self._confirmed)
