"""Links: the contracts between those who move frames and those who understand them.

A LINK is one connection after it has been made, from either side. A RECEIVER is who owns it and
is called with what it brings. A TRANSPORT makes links, and owns the tasks behind them.

What every implementation keeps, and `tests/transport/test_links.py` holds each of them to:

- Bulk out: whatever is sent during one turn of the event loop leaves as one write. `send` never
  blocks and never calls back.
- Bulk in: all frames of one receive come in one call. Nobody awaits between the network and the
  receiver, so there is no task, queue or wake-up per message.
- A receiver is called only from the thread of the event loop, never while it is being called, and
  not before `connect` or `on_link` has returned.
- `on_closed` comes exactly once for every link that was handed out, last, and always with a
  reason that a person can read.
- Memory is bounded: incoming by one incomplete frame (`frame_bytes_max`) and one receive,
  outgoing by the transport's `send_buffer_bytes_max`; a link that would pass it is closed.
- Bytes that are refused close their own link and nothing else. Any other exception out of a
  receiver is a bug in it: it is logged, the link is closed, and it comes out of the transport's
  `async with` block.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.transport.frame import Frame

SEND_BUFFER_BYTES_MAX = 64 << 20
"""Default for unsent bytes per link."""
CLOSE_TIMEOUT_S = 1.0
"""Default for how long a closing link waits for the other side to take what is left."""


class Link(Protocol):
    """One connection, after connect or accept."""

    remote: str
    """The other side's address, printable."""
    identity: str | None
    """Who the other side has proved to be; None on links that prove nothing."""
    closed: bool
    """Closed here, by the other side, or by an error. True before `on_closed` is called."""
    writes: int
    """How many writes have been handed to the network, for counting."""
    immediate: bool
    """Set by an owner that gathers a turn's output itself: each send is then written at once, where
    the transport can (see Transport.can_write_at_once)."""
    farewell: Callable[[RemoteProtocolError], bytes] | None
    """Set by the owner: the last frames to send when the other side's bytes are refused."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes sent that the operating system has not taken yet."""

    @property
    def frame_bytes_max(self) -> int:
        """Largest frame accepted (see FrameReader); holds from the next frame on."""

    @frame_bytes_max.setter
    def frame_bytes_max(self, value: int) -> None: ...

    def send(self, data: bytes) -> None:
        """Buffer `data`, whole frames; it leaves with this turn's other sends as one write.

        On a closed link it does nothing: on_closed has been, or will be, called. When the unsent
        bytes pass their limit the link closes itself, and what was unsent is lost.
        """

    def close(self, reason: str = "") -> None:
        """Stop receiving, deliver what is buffered (for a bounded time), then close.

        Returns at once; `on_closed` says when it is done, with `reason`. A second close does
        nothing.
        """


class Receiver(Protocol):
    """Who is called with what a link brings. One receiver may serve many links."""

    def on_frames(self, link: Link, frames: list[Frame]) -> None:
        """Take all frames of one receive.

        Raise RemoteProtocolError to refuse them: the link closes, with the error as the reason.
        """

    def on_closed(self, link: Link, reason: str) -> None:
        """Take notice that `link` brings nothing any more."""


class Listener(Protocol):
    """A place where links are accepted."""

    address: str
    """host:port, with the real port when port 0 was asked for."""

    async def aclose(self) -> None:
        """Accept no more. Links that were accepted live on."""


OnLink = Callable[[Link], Receiver]
"""Called for each accepted link; returns who owns it. May close it at once."""


class Transport(Protocol):
    """Makes links. Used as `async with transport:`, which owns the tasks behind them.

    Leaving the block closes all listeners and links; links deliver what is buffered only if it is
    left without an exception.
    """

    async def connect(self, address: str, receiver: Receiver, *, frame_bytes_max: int) -> Link:
        """Connect to `address`. Cancelled, it leaves nothing behind and never calls `receiver`.

        Raises ConnectionLost, naming address and cause, when nobody can be reached there;
        ConfigError for what is no address; UsageError outside of the transport's block.
        """

    async def listen(self, address: str, on_link: OnLink, *, frame_bytes_max: int) -> Listener:
        """Accept links at `address`.

        Raises ConfigError, naming address and cause, when it cannot be listened on.
        """

    @property
    def can_write_at_once(self) -> bool:
        """Whether `Link.immediate` has an effect here."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...
