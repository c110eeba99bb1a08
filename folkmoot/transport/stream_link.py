"""The link over an anyio byte stream: trio, TLS, and wherever else there is no Protocol.

One task reads and one writes; both live in the transport's task group. The writer takes whatever
was sent since its last write, so sends are joined just as on the other link.
"""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream

from folkmoot.transport.address import cause_of
from folkmoot.transport.base import BaseLink, BaseTransport

RECEIVE_BYTES = 64 << 10
"""Asked for in one receive, which allocates as much. The C library gets blocks of 128 KiB and more
from the kernel, one by one, which costs ten times as much as the receive."""

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class StreamLink(BaseLink):
    """One anyio byte stream. `run` is its life, to be started in the transport's task group."""

    def __init__(
        self, owner: BaseTransport, stream: ByteStream, remote: str, frame_bytes_max: int
    ) -> None:
        super().__init__(owner, remote, frame_bytes_max)
        self._stream = stream
        self._wake_writer = anyio.Event()
        self._writing_bytes = 0
        self._aborted = False
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Move bytes until the link has ended, then report it."""
        why = "the transport was closed"
        try:
            with self._scope:
                if not self._aborted:
                    why = await self._move_bytes()
            if self._scope.cancelled_caught and self.unsent_bytes and not self._aborted:
                self._reason += f" ({self.unsent_bytes} bytes could not be delivered)"
        finally:
            self._pending.clear()
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)
            self._ended(why)

    async def dispose(self) -> None:
        """End a link whose `run` was cancelled before its first step, as asyncio does."""
        await anyio.aclose_forcefully(self._stream)
        await super().dispose()

    async def _move_bytes(self) -> str:
        """Return why it ended. Each half, when it breaks, makes the other one stop as well."""
        async with anyio.create_task_group() as halves:
            halves.start_soon(self._write_until_closed)
            try:
                await self._read_until_end()
            except _BROKEN as error:
                halves.cancel_scope.cancel()
                return f"connection lost: {cause_of(error)}"
        return "closed by the other side"

    async def _read_until_end(self) -> None:
        try:
            while True:
                self._deliver(await self._stream.receive(RECEIVE_BYTES))
        except anyio.EndOfStream:
            self._peer_ended()

    async def _write_until_closed(self) -> None:
        try:
            while True:
                while self._pending:
                    data = self._take_pending()
                    self._writing_bytes = len(data)
                    self._room = self._owner.send_buffer_bytes_max - len(data)
                    await self._stream.send(data)
                    self._writing_bytes = 0
                if self.closed:
                    break
                self._room = self._owner.send_buffer_bytes_max
                self._wake_writer = anyio.Event()
                await self._wake_writer.wait()
            await self._stream.send_eof()
        except _BROKEN as error:
            # The reader learns of it by itself, and may first find what the other side said last.
            self._reason = self._reason or f"connection lost: {cause_of(error)}"
            self.closed = True
            self._limit_time()

    def _written_unsent_bytes(self) -> int:
        return self._writing_bytes

    def _flush_soon(self) -> None:
        self._wake_writer.set()

    def _begin_close(self) -> None:
        self._wake_writer.set()
        self._limit_time()

    def _begin_abort(self) -> None:
        self._aborted = True
        self._scope.cancel()

    def _limit_time(self) -> None:
        self._scope.deadline = min(
            self._scope.deadline, anyio.current_time() + self._owner.close_timeout_s
        )
