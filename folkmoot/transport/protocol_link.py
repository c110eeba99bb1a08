"""The link for asyncio: an `asyncio.BufferedProtocol`, called by the event loop itself.

No task and no wake-up stands between the socket and the receiver: a round trip costs a third (on
uvloop) to a sixth of what it does over the stream link on the same event loop, which is why there
are two.

Receives go into one buffer that all links of a transport share, and what has come is copied out.
A plain Protocol would have asyncio allocate 256 KiB for every receive, however small; the C
library asks the kernel for each of them, and that alone costs more than all the rest of a receive.
Sharing is safe because the loop asks for the buffer, fills it, and says so without a break.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from folkmoot.transport.address import cause_of, printable, set_options
from folkmoot.transport.base import BaseLink, BaseTransport


class ProtocolLink(BaseLink, asyncio.BufferedProtocol):
    """One socket under asyncio or uvloop.

    `on_made` is called when the connection is there; it hands the link out, or leaves that to
    whoever awaits the connection. Until then nothing is read.
    """

    def __init__(
        self,
        owner: BaseTransport,
        buffer: memoryview,
        frame_bytes_max: int,
        silence_max_s: float,
        on_made: Callable[[ProtocolLink], None] | None = None,
    ) -> None:
        super().__init__(owner, "unconnected", frame_bytes_max)
        self._loop = asyncio.get_running_loop()
        self._buffer = buffer
        self._on_made = on_made
        self._silence_max_s = silence_max_s
        self._transport: asyncio.Transport | None = None
        self._flush_asked = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (called by the event loop)."""
        # uvloop's transport is none by inheritance, only by its methods.
        self._transport = stream = cast("asyncio.Transport", transport)
        self.remote = printable(transport.get_extra_info("peername"))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            set_options(sock, self._silence_max_s)
        # The limit is kept in `send`; the transport need never call pause_writing.
        stream.set_write_buffer_limits(high=self._owner.send_buffer_bytes_max * 2)
        if self._on_made is None:
            stream.pause_reading()
        else:
            self._on_made(self)

    def start_reading(self) -> None:
        """Begin, for a link that was handed out later than its connection was made."""
        if self._transport is not None:
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to receive into (called by the event loop)."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received (called by the event loop)."""
        self._deliver(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> None:
        """Take the other side's end (called by the event loop)."""
        self._peer_ended()

    def connection_lost(self, exc: Exception | None) -> None:
        """End (called by the event loop, once)."""
        if self._deadline is not None:
            self._deadline.cancel()
        why = f"connection lost: {cause_of(exc)}" if exc else "closed by the other side"
        self._ended(why)

    def _written_unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, data: bytes) -> None:
        """Buffer `data` for this turn's write, or write it now (see Link.immediate)."""
        if not self.immediate or self.closed:
            super().send(data)
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > self._room:
            self._check_room()
        self._flush_now()

    def _flush_soon(self) -> None:
        if not self._flush_asked:
            self._flush_asked = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_asked = False
        transport = self._transport
        if not self._pending or transport is None:
            return
        data = self._take_pending()
        if not transport.is_closing():
            transport.write(data)
            self._room = self._owner.send_buffer_bytes_max - transport.get_write_buffer_size()

    def _begin_close(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._flush_now()
        self._deadline = self._loop.call_later(self._owner.close_timeout_s, self._give_up)
        if not transport.can_write_eof():
            transport.close()
            return
        try:
            transport.write_eof()  # when the buffer is empty; reading goes on, to _deliver's floor
        except OSError:
            transport.abort()  # the other side is gone already

    def _begin_abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _give_up(self) -> None:
        unsent_bytes = self.unsent_bytes
        if unsent_bytes:
            self._reason += f" ({unsent_bytes} bytes could not be delivered)"
        self._begin_abort()
