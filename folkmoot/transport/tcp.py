"""TCP: connect, listen, and the choice between the two kinds of link.

On asyncio (and uvloop) links are Protocols, on trio they are anyio streams; `streams=True` asks
for streams on asyncio too, which the tests do to hold both to one contract. Sockets keep the
operating system's buffer sizes: setting them would switch off its tuning, which was measured to
do better.

The accept loop is our own, because what event loops do when file descriptors run out differs: one
logs a traceback a second, one stops listening. Here it pauses, says so once, and goes on; whoever
knocks meanwhile waits in the kernel's backlog.

TLS will come as an argument of the constructor; links then have an `identity`.
"""

from __future__ import annotations

import abc
import asyncio
import errno
import logging
import socket
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream

from folkmoot.core.errors import ConfigError, ConnectionLost
from folkmoot.transport.address import (
    cause_of,
    os_error_of,
    parse_address,
    printable,
    set_options,
)
from folkmoot.transport.backend import running_backend
from folkmoot.transport.base import BaseLink, BaseTransport
from folkmoot.transport.link import (
    CLOSE_TIMEOUT_S,
    SEND_BUFFER_BYTES_MAX,
    Link,
    Listener,
    OnLink,
    Receiver,
)
from folkmoot.transport.protocol_link import ProtocolLink
from folkmoot.transport.stream_link import StreamLink

logger = logging.getLogger("folkmoot.transport")

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_EXHAUSTED_PAUSE_S = 0.1
_BACKLOG = 1024
_RECEIVE_BYTES = 256 << 10
SILENCE_MAX_S = 5.0


class TcpTransport(BaseTransport):
    """Links over TCP.

    Args:
        streams: use anyio streams on asyncio as well.
        send_buffer_bytes_max: unsent bytes per link; a link that passes it is closed.
        close_timeout_s: how long a closing link waits for the other side.
        silence_max_s: sent bytes that the other side's kernel has not confirmed for so long end the
            link (where the system knows TCP_USER_TIMEOUT). Without it a link over a black hole
            stays up for minutes, and after the hole has closed it is silent for as long again.
    """

    def __init__(
        self,
        *,
        streams: bool = False,
        send_buffer_bytes_max: int = SEND_BUFFER_BYTES_MAX,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        silence_max_s: float = SILENCE_MAX_S,
    ) -> None:
        super().__init__(
            send_buffer_bytes_max=send_buffer_bytes_max, close_timeout_s=close_timeout_s
        )
        self.silence_max_s = silence_max_s
        self._streams = streams
        self.receive_buffer = memoryview(bytearray(_RECEIVE_BYTES))

    async def connect(self, address: str, receiver: Receiver, *, frame_bytes_max: int) -> Link:
        """Connect to `address` (see Transport.connect). Names are resolved at every attempt."""
        self._open()
        host, port = parse_address(address)
        try:
            if self._uses_streams():
                return await self._connect_stream(host, port, receiver, frame_bytes_max)
            return await self._connect_protocol(host, port, receiver, frame_bytes_max)
        except (OSError, UnicodeError) as error:
            raise ConnectionLost(f"cannot connect to {address}: {cause_of(error)}") from error

    async def listen(self, address: str, on_link: OnLink, *, frame_bytes_max: int) -> Listener:
        """Accept links at `address` (see Transport.listen). A name means its first address."""
        tasks = self._open()
        host, port = parse_address(address)
        try:
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # A name with both kinds of addresses: IPv4, which every client of the name tries.
            found.sort(key=lambda info: info[0] != socket.AF_INET)
            multi = await anyio.create_tcp_listener(
                local_host=found[0][4][0], local_port=port, backlog=_BACKLOG
            )
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"cannot listen on {address}: {cause_of(error)}") from error
        accepting = multi.listeners[0]
        assert isinstance(accepting, SocketListener), f"{accepting!r} is not a listening socket"
        kind = _StreamListener if self._uses_streams() else _ProtocolListener
        listener = kind(self, accepting, on_link, frame_bytes_max)
        self.add_listener(listener)
        tasks.start_soon(listener.run)
        return listener

    def start(self, link: StreamLink) -> None:
        """Give a link that was handed out its tasks."""
        self._running().start_soon(link.run)

    @property
    def can_write_at_once(self) -> bool:
        """Whether links write what is sent before `send` returns, if they are told to."""
        return not self._uses_streams()

    def _uses_streams(self) -> bool:
        return self._streams or running_backend() == "trio"

    async def _connect_protocol(
        self, host: str, port: int, receiver: Receiver, frame_bytes_max: int
    ) -> Link:
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(
            lambda: ProtocolLink(self, self.receive_buffer, frame_bytes_max, self.silence_max_s),
            host,
            port,
        )
        # Nothing was read so far, and nothing is until the caller's task awaits again.
        self._refuse_if_closing(link)
        link.hand_out(receiver)
        link.start_reading()
        return link

    async def _connect_stream(
        self, host: str, port: int, receiver: Receiver, frame_bytes_max: int
    ) -> Link:
        stream = await anyio.connect_tcp(host, port)
        link = StreamLink(self, stream, await _prepare(stream, self.silence_max_s), frame_bytes_max)
        if self._closing:
            await anyio.aclose_forcefully(stream)
        self._refuse_if_closing(link)
        link.hand_out(receiver)
        self.start(link)
        return link

    def _refuse_if_closing(self, link: BaseLink) -> None:
        if self._closing:
            link.abort("the transport was closed")
            raise ConnectionLost(f"connected to {link.remote}, but the transport was closed")


class _TcpListener(abc.ABC):
    """One listening socket and its accept loop."""

    def __init__(
        self, owner: TcpTransport, listener: SocketListener, on_link: OnLink, frame_bytes_max: int
    ) -> None:
        self.address = printable(_raw_socket(listener).getsockname())
        self._owner = owner
        self._listener = listener
        self._on_link = on_link
        self._frame_bytes_max = frame_bytes_max
        self._scope = anyio.CancelScope()
        self._stopped = anyio.Event()

    async def aclose(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    async def run(self) -> None:
        """Accept until closed, whatever happens to single connections."""
        try:
            with self._scope:
                await self._accept_for_ever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._listener.aclose()
            self._owner.discard_listener(self)
            self._stopped.set()

    async def _accept_for_ever(self) -> None:
        exhausted = False
        while True:
            try:
                await self._accept()
                exhausted = False
            except (OSError, anyio.BrokenResourceError) as error:
                cause = os_error_of(error)
                if cause is None or cause.errno not in _EXHAUSTED:
                    logger.info("a connection to %s failed: %s", self.address, cause_of(error))
                    await anyio.lowlevel.checkpoint()
                    continue
                if not exhausted:
                    logger.error(
                        "%s accepts no connections for now: %s; raise the limit (ulimit -n) or "
                        "lower connections_max",
                        self.address,
                        cause_of(error),
                    )
                exhausted = True
                await anyio.sleep(_EXHAUSTED_PAUSE_S)

    @abc.abstractmethod
    async def _accept(self) -> None:
        """Accept one connection and hand it out."""


class _ProtocolListener(_TcpListener):
    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        listening = _raw_socket(self._listener)
        sock, _ = await loop.sock_accept(listening)
        try:
            await loop.connect_accepted_socket(self._make_link, sock)
        except OSError:
            sock.close()
            raise

    def _make_link(self) -> ProtocolLink:
        owner = self._owner
        return ProtocolLink(
            owner, owner.receive_buffer, self._frame_bytes_max, owner.silence_max_s, self._made
        )

    def _made(self, link: ProtocolLink) -> None:
        self._owner.accept(link, self._on_link, self.address)


class _StreamListener(_TcpListener):
    async def _accept(self) -> None:
        stream = await self._listener.accept()
        remote = await _prepare(stream, self._owner.silence_max_s)
        link = StreamLink(self._owner, stream, remote, self._frame_bytes_max)
        self._owner.accept(link, self._on_link, self.address)
        self._owner.start(link)  # also when nobody took it: `run` closes the stream


def _raw_socket(of: SocketListener | SocketStream) -> Any:
    return of.extra_attributes[SocketAttribute.raw_socket]()


async def _prepare(stream: SocketStream, silence_max_s: float) -> str:
    """Set the socket's options and return the other side's address; close `stream` on failure."""
    try:
        raw = _raw_socket(stream)
        set_options(raw, silence_max_s)
        return printable(raw.getpeername())
    except OSError:
        await anyio.aclose_forcefully(stream)
        raise
