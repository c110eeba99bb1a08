"""Room on the disk: when commands are refused before it is full, and which go on.

Pure: no I/O, no clock, no randomness. `core/replica.py` drives it and looks at the disk;
`core/front.py` asks it what to take of a client's frame.

A server that cannot write its log stops. So that it need not come to that, a disk with less than
`storage.reserve_bytes` free is LOW, and while the LEADER's is low every server refuses its own
clients' commands with StorageFull, except those that free something (`frees` in core/machine.py).
Reads, events, signs of life, sessions and ticks go on, and so does whatever is on its way: that is
what the reserve is for, and what is freed becomes room by compaction, which needs some itself.

The leader alone decides, as all that is written comes from it: it tells the others. A server that
hears nothing more takes the leader's disk to have room again, and a new leader looks at its own: so
a lost frame can let commands through for a moment, but can never keep them out.

A frame of which nothing frees is refused as a whole. Nothing of it reaches the log and its
sequences stay free, so a client that tries again and again does not make the log grow. Where some
of it frees, the others are replaced by MARKERS, each of which is applied in its place, changes
nothing and is answered with StorageFull. So is all of a frame that may have been sent before:

    1. S proposes a client's commands 5..6; the connection breaks before they are answered
    2. the client resumes its session at T, whose leader's disk is low by now, and sends 5..6 again
    3. T cannot refuse what S may have brought into the log; a marker under the same sequence is
       safe, as the first of the two to be applied is the only one (§6.3)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Group
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.requests import DIRECTORY, encode_commands
from folkmoot.core.types import NodeId

LOOK_S = 1.0
"""The disk is looked at no more often than this, if little is written."""
LOOK_BYTES = 4 << 20
"""So much is written at most between two looks; or an eighth of the reserve, if that is less."""
CLEAR_FACTOR = 1.25
"""A disk that is low stays so until it has this many times the reserve, lest it flutter."""
HEARD_FOR_S = 5 * LOOK_S
"""So long the leader's word holds. It repeats it at every look."""


@attrs.frozen
class Shortage:
    """A disk that is low, as the last look found it."""

    node_id: int
    free_bytes: int
    reserve_bytes: int

    def message(self) -> str:
        """What a client is told whose command is refused."""
        return (
            f"not applied: {self.free_bytes} bytes are free on the disk of server {self.node_id}, "
            f"which leads, and its reserve is {self.reserve_bytes} (storage.reserve_bytes); "
            "free space on that disk, or delete what is not needed: deletes, releases and reads "
            "go on"
        )

    def marker(self) -> list[Any]:
        """The operation that stands in the log for one that was refused."""
        return [DIRECTORY, "no_room", [self.node_id, self.free_bytes, self.reserve_bytes]]


@attrs.frozen
class RoomChanged(TraceEvent):
    """The disk of this server is low now, or is not any more."""

    severity: ClassVar[str] = "warning"
    low: bool
    free_bytes: int
    reserve_bytes: int

    def __str__(self) -> str:
        found = f"{self.free_bytes} bytes are free, the reserve is {self.reserve_bytes}"
        if self.low:
            return f"the disk is low: {found}; commands are refused while this server leads"
        return f"the disk has room again: {found}"


@attrs.define
class Room:
    """What is known of the disk here, and of the leader's.

    - `shortage` is set exactly while the disk here is low.
    - What another server said counts while it leads in the term in which it said so, and for
      HEARD_FOR_S.
    """

    node_id: NodeId
    reserve_bytes: int
    free_bytes: int | None = None
    """As the last look found it; None before the first."""
    shortage: Shortage | None = None
    _look_bytes: int = attrs.field(init=False)
    _look_at: float = -math.inf
    _unlooked_bytes: int = 0
    _must_tell: bool = False
    _told_term: int = 0
    _heard: Shortage | None = None
    _heard_term: int = 0
    _heard_until: float = -math.inf

    def __attrs_post_init__(self) -> None:
        self._look_bytes = min(LOOK_BYTES, self.reserve_bytes // 8) or LOOK_BYTES

    # the disk here

    def wrote(self, size_bytes: int) -> None:
        """So much more is on its way to the disk."""
        self._unlooked_bytes += size_bytes

    def wants_look(self, now: float) -> bool:
        """Whether it is time to look at the disk."""
        return now >= self._look_at or self._unlooked_bytes >= self._look_bytes

    def looked(self, free_bytes: int, now: float) -> RoomChanged | None:
        """Take what a look found; return what has changed by it."""
        was_low = self.shortage is not None
        limit = self.reserve_bytes * (CLEAR_FACTOR if was_low else 1)
        is_low = free_bytes < limit
        self.free_bytes = free_bytes
        self.shortage = Shortage(self.node_id, free_bytes, self.reserve_bytes) if is_low else None
        self._look_at, self._unlooked_bytes = now + LOOK_S, 0
        self._must_tell = self._must_tell or is_low or was_low
        return RoomChanged(is_low, free_bytes, self.reserve_bytes) if is_low != was_low else None

    def deadline(self) -> float:
        """When to look even if nothing happens: only a disk that is low has to be watched."""
        return self._look_at if self.shortage is not None else math.inf

    def status(self) -> dict[str, Any]:
        """What an operator wants to know, as plain data."""
        return {
            "free_bytes": self.free_bytes,
            "reserve_bytes": self.reserve_bytes,
            "low": self.shortage is not None,
        }

    # among the servers

    def peer_up(self) -> None:
        """A member came up, which may not have heard."""
        self._must_tell = self._must_tell or self.shortage is not None

    def must_tell(self, term: int) -> bool:
        """Whether the leader of `term`, which this server is, has something to tell the others.

        They are taken to be told.
        """
        must = self._must_tell or (term != self._told_term and self.shortage is not None)
        self._must_tell, self._told_term = False, term
        return must

    def heard(self, term: int, shortage: Shortage | None, now: float) -> None:
        """Another server, as the leader of `term`, has said how its disk is."""
        if term >= self._heard_term:  # else it comes late, and a newer leader has spoken
            self._heard, self._heard_term, self._heard_until = shortage, term, now + HEARD_FOR_S

    def of_leader(self, leader: NodeId | None, term: int, now: float) -> Shortage | None:
        """The shortage of another server that leads, if it is known to have one."""
        heard = self._heard
        if heard is None or now >= self._heard_until:
            return None
        return heard if (heard.node_id, self._heard_term) == (leader, term) else None


def sift(
    group: Group, shortage: Shortage, is_freeing: Callable[[list[Any]], bool], *, is_new: bool
) -> Group | None:
    """What is taken of a client's frame while there is no room; None: it is refused as a whole.

    `is_new`: nothing of it was sent before.
    """
    operations = group.decoded
    assert operations is not None, f"a frame of {group.count} commands is not decoded"
    taken = [operation if is_freeing(operation) else None for operation in operations]
    refused = taken.count(None)
    if not refused:
        return group
    if is_new and refused == len(taken):
        return None
    marker = shortage.marker()
    replaced = [marker if operation is None else operation for operation in taken]
    session_id, first, low_water, event_index = COMMANDS_HEADER.unpack_from(group.payload)
    payload = encode_commands(session_id, first, low_water, event_index, replaced)
    return Group(group.kind, group.count, payload, replaced)
