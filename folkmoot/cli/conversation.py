"""Several questions to one server, on one connection and without a session."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import ByteStream

from folkmoot.core.errors import ConnectionLost, RemoteProtocolError, from_wire
from folkmoot.core.requests import DIRECTORY, PROTOCOL_VERSION, FrameType, decode, encode
from folkmoot.transport.address import cause_of, parse_address
from folkmoot.transport.frame import FrameReader

_FRAME_BYTES_MAX = 16 << 20
_NAME = "folkmoot command line"


class Conversation:
    """What is asked, and the answers, in the order of the questions.

    Each method raises ConnectionLost naming the address, RemoteProtocolError for what is no
    folkmoot server, and what the server itself answered with.
    """

    def __init__(self, address: str, stream: ByteStream, timeout_s: float) -> None:
        self.address = address
        self._stream = stream
        self._timeout_s = timeout_s
        self._reader = FrameReader(_FRAME_BYTES_MAX)
        self._answers: deque[tuple[int, bytes]] = deque()

    async def ask(self, operation: str, *arguments: Any) -> Any:
        """Ask one question; return its answer. None may be waiting."""
        await self.send(operation, *arguments)
        return await self.answer()

    async def send(self, operation: str, *arguments: Any) -> None:
        """Ask, and let the answer come later."""
        await self._send(encode(FrameType.ADMIN, 1, operation, list(arguments)))

    async def answer(self, timeout_s: float | None = None) -> Any:
        """Return the next answer."""
        _, code, result = await self._next(FrameType.ADMIN_RESULT, timeout_s or self._timeout_s)
        if code is not None:
            raise from_wire(code, str(result))
        return result

    async def index_now(self) -> int:
        """Return an index at or above everything that was acknowledged before this call.

        It is a linearizable read, so it waits for a leader (§6.4).
        """
        operation = [DIRECTORY, "count", []]
        await self._send(encode(FrameType.READ, 1, "linearizable", 0, 0, [operation]))
        _, index, _, _ = await self._next(FrameType.READ_RESULTS, self._timeout_s)
        return int(index)

    async def greet(self) -> None:
        """Say who we are; nothing is answered that need be waited for."""
        await self._send(encode(FrameType.HELLO, PROTOCOL_VERSION, "client", b"", 0, _NAME))

    async def _send(self, data: bytes) -> None:
        try:
            with anyio.fail_after(self._timeout_s):
                await self._stream.send(data)
        except TimeoutError:
            raise self._silent(self._timeout_s) from None
        except (OSError, anyio.BrokenResourceError) as error:
            raise ConnectionLost(f"{self.address}: {cause_of(error)}") from None

    async def _next(self, wanted: FrameType, timeout_s: float) -> list[Any]:
        try:
            with anyio.fail_after(timeout_s):
                while not self._answers:
                    self._take(await self._stream.receive())
        except TimeoutError:
            raise self._silent(timeout_s) from None
        except anyio.EndOfStream:
            raise ConnectionLost(f"{self.address} has closed the connection") from None
        except (OSError, anyio.BrokenResourceError) as error:
            raise ConnectionLost(f"{self.address}: {cause_of(error)}") from None
        frame_type, body = self._answers.popleft()
        if frame_type != wanted:
            raise RemoteProtocolError(f"{self.address} sent a frame of type {frame_type}")
        return decode(frame_type, body)

    def _take(self, data: bytes) -> None:
        for frame_type, _, body in self._reader.feed(data):
            if frame_type == FrameType.REFUSED:
                code, message = decode(frame_type, body)
                raise from_wire(code, f"{self.address}: {message}")
            if frame_type not in (FrameType.WELCOME, FrameType.LEADER):
                self._answers.append((frame_type, body))

    def _silent(self, timeout_s: float) -> ConnectionLost:
        return ConnectionLost(f"{self.address} did not answer within {timeout_s:g} s")


@asynccontextmanager
async def conversation(address: str, *, timeout_s: float) -> AsyncIterator[Conversation]:
    """Connect to the one server at `address`."""
    host, port = parse_address(address)
    try:
        with anyio.fail_after(timeout_s):
            stream = await anyio.connect_tcp(host, port)
    except TimeoutError:
        raise ConnectionLost(f"{address} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectionLost(f"{address}: {cause_of(error)}") from None
    async with stream:
        talk = Conversation(address, stream, timeout_s)
        await talk.greet()
        yield talk
