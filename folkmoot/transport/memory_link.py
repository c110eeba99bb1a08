"""The in-memory link, and the lanes by which two of them are joined.

A connection is two links and two LANES, one per direction. A lane is the network: what has been
written and not yet arrived is in it, held while its hosts are cut off, delayed, or lost when it
breaks. It moves in turns of the event loop (`turns.py`), so nothing is called from inside `send`.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Protocol

from folkmoot.transport.base import BaseLink, BaseTransport
from folkmoot.transport.turns import Turns


class Route(Protocol):
    """What a lane asks of its network."""

    def passes(self, source: str, target: str) -> bool:
        """Tell whether anything gets from `source` to `target` now."""

    def delay_of(self, source: str, target: str) -> float:
        """Seconds that something sent now travels."""

    def enter(self, lane: Lane) -> None:
        """Know of a lane that is, or will be, in use."""

    def leave(self, lane: Lane) -> None:
        """Forget a lane in which nothing is and nothing is expected."""


class Host(BaseTransport):
    """The part of a transport that links and lanes see."""

    host: str
    turns: Turns


class _Mark(enum.Enum):
    END = "the sender sends no more"
    RESET = "the sender is gone"


class Lane:
    """One direction of a connection.

    - Things arrive in the order in which they were carried: when the delay has shrunk, what is
      due early waits behind what is due late.
    - Nothing is behind a mark.
    - A move is asked for whenever something is in it that can pass.
    """

    def __init__(self, route: Route, source: MemoryLink, target: MemoryLink) -> None:
        self.source = source
        self.target = target
        self.unsent_bytes = 0
        self._route = route
        self._under_way: deque[tuple[float, bytes | _Mark]] = deque()
        self._move_asked = False
        route.enter(self)

    @property
    def hosts(self) -> tuple[str, str]:
        """From where to where."""
        return self.source.owner.host, self.target.owner.host

    def carry(self, thing: bytes | _Mark) -> None:
        """Send it on its way."""
        self._route.enter(self)
        now = self.source.owner.turns.now()
        self._under_way.append((now + self._route.delay_of(*self.hosts), thing))
        if isinstance(thing, bytes):
            self.unsent_bytes += len(thing)
        self.move_soon()

    def lose(self) -> None:
        """Lose what is under way."""
        self._route.leave(self)
        self._under_way.clear()
        self.unsent_bytes = 0

    def move_soon(self) -> None:
        """See to it that what can arrive does, when it is due."""
        if self._under_way and not self._move_asked and self._route.passes(*self.hosts):
            self._move_asked = True
            turns = self.target.owner.turns
            due = self._under_way[0][0]
            if due <= turns.now():
                turns.call_soon(self._move)
            else:
                turns.call_at(due, self._move)

    def _move(self) -> None:
        self._move_asked = False
        if not self._route.passes(*self.hosts):
            return
        now = self.target.owner.turns.now()
        arrived: list[bytes] = []
        mark: _Mark | None = None
        while self._under_way and self._under_way[0][0] <= now:
            thing = self._under_way.popleft()[1]
            if isinstance(thing, bytes):
                arrived.append(thing)
            else:
                mark = thing
        data = b"".join(arrived)
        self.unsent_bytes -= len(data)
        self.target.arrive(data)
        if mark is None:
            self.move_soon()
        else:
            self._route.leave(self)
            self.target.arrive_end(reset=mark is _Mark.RESET)
            self.source.end_arrived()


class MemoryLink(BaseLink):
    """One end of a connection. `lane` leads to the other end."""

    lane: Lane

    def __init__(self, owner: Host, remote: str, frame_bytes_max: int) -> None:
        super().__init__(owner, remote, frame_bytes_max)
        self.owner = owner
        self._flush_asked = False
        self._peer_is_done = False
        self._own_end_arrived = False

    def arrive(self, data: bytes) -> None:
        """Receive."""
        if data:
            self._deliver(data)

    def arrive_end(self, *, reset: bool) -> None:
        """Learn that the other end sends no more, or is gone."""
        if reset:
            self.break_off("connection lost: reset by the other side")
            return
        self._peer_ended()
        self._peer_is_done = True
        self._end_if_done()

    def end_arrived(self) -> None:
        """Learn that the other end has everything that was sent."""
        self._own_end_arrived = True
        self._end_if_done()

    def break_off(self, reason: str) -> None:
        """Lose the connection at this end. The other end is not told."""
        self.closed = True
        self._reason = self._reason or reason
        self._pending.clear()
        self._pending_bytes = 0
        self.lane.lose()
        self.owner.turns.call_soon(lambda: self._ended(reason))

    def _end_if_done(self) -> None:
        if self._peer_is_done and self._own_end_arrived:
            self._ended("closed by the other side")

    def _written_unsent_bytes(self) -> int:
        return self.lane.unsent_bytes

    def _flush_soon(self) -> None:
        if not self._flush_asked:
            self._flush_asked = True
            self.owner.turns.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_asked = False
        if self._pending:
            self.lane.carry(self._take_pending())
            self._room = self.owner.send_buffer_bytes_max - self.lane.unsent_bytes

    def _begin_close(self) -> None:
        self._flush_now()
        self.lane.carry(_Mark.END)
        turns = self.owner.turns
        turns.call_at(turns.now() + self.owner.close_timeout_s, self._give_up)

    def _begin_abort(self) -> None:
        self.break_off(self._reason)
        self.lane.carry(_Mark.RESET)

    def _give_up(self) -> None:
        if self._receiver is not None:
            if self.unsent_bytes:
                self._reason += f" ({self.unsent_bytes} bytes could not be delivered)"
            self.abort(self._reason)
