"""What is particular to sockets: peers that stop, reset, or never read, and a full process."""

import logging
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from folkmoot.core.errors import ConfigError, ConnectionLost, UsageError
from folkmoot.transport import tcp
from folkmoot.transport.frame import encode_frame
from folkmoot.transport.link import Link
from folkmoot.transport.protocol_link import ProtocolLink
from folkmoot.transport.stream_link import StreamLink
from folkmoot.transport.tcp import TcpTransport
from tests.transport.world import (
    FRAME_BYTES_MAX,
    HOST,
    SAFETY_S,
    Notes,
    World,
    frame,
    raw_connection,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((("asyncio", {"use_uvloop": False}), "tcp"), id="protocol-asyncio"),
        pytest.param((("asyncio", {"use_uvloop": False}), "streams"), id="streams-asyncio"),
        pytest.param((("asyncio", {"use_uvloop": True}), "tcp"), id="protocol-uvloop"),
        pytest.param((("trio", {}), "tcp"), id="streams-trio"),
    ],
)
def setting(request: pytest.FixtureRequest) -> Any:
    if request.param[0][1].get("use_uvloop"):
        pytest.importorskip("uvloop", reason="uvloop is not installed (extra `fast`)")
    return request.param


@pytest.fixture(scope="module")
def anyio_backend(setting: Any) -> Any:
    return setting[0]


@pytest.fixture
def world(setting: Any) -> World:
    return World(setting[1])


@pytest.fixture
def silent_peer() -> Iterator[str]:
    """An address at which the kernel accepts, and nobody reads."""
    with socket.create_server((HOST, 0)) as listening:
        yield f"{HOST}:{listening.getsockname()[1]}"


async def test_the_kind_of_link_follows_the_backend(world: World, setting: Any) -> None:
    async with world.pair() as pair:
        protocol = setting[0][0] == "asyncio" and world.kind == "tcp"
        assert isinstance(pair.near, ProtocolLink if protocol else StreamLink)
        assert isinstance(pair.far, ProtocolLink if protocol else StreamLink)


async def test_a_reset_is_told_with_its_cause(world: World) -> None:
    async with world.link_transport() as transport:
        notes = Notes()
        listener = await transport.listen(f"{HOST}:0", notes.on_link, frame_bytes_max=100)
        with raw_connection(listener.address) as peer:
            peer.sendall(frame("hello")[:3])
            await notes.until(lambda notes: notes.links)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await notes.until(lambda notes: notes.reasons)
    assert notes.reasons == ["connection lost: Connection reset by peer"]


async def test_a_reset_in_the_middle_of_a_write_is_told_once(world: World) -> None:
    async with world.link_transport() as transport:
        notes = Notes()
        with socket.create_server((HOST, 0)) as listening:
            address = f"{HOST}:{listening.getsockname()[1]}"
            link = await transport.connect(address, notes, frame_bytes_max=100)
            peer, _ = listening.accept()
            link.send(bytes(20 << 20))  # more than the kernel takes
            while link.writes == 0:
                await anyio.lowlevel.checkpoint()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await notes.until(lambda notes: notes.reasons)
            link.send(b"into the void")
            assert link.closed
    # The kernel tells a reset to one call only: where the write got it, a read sees a plain end.
    assert len(notes.reasons) == 1
    assert notes.reasons[0].startswith(("connection lost: ", "closed by the other side"))


async def test_a_connection_made_while_the_transport_closes_is_not_handed_out(
    world: World, silent_peer: str
) -> None:
    notes = Notes()
    refused: list[bool] = []
    async with anyio.create_task_group() as tasks, world.link_transport() as transport:

        async def connect() -> None:
            try:
                await transport.connect(silent_peer, notes, frame_bytes_max=100)
            except (ConnectionLost, UsageError):
                refused.append(True)

        tasks.start_soon(connect)
        for _ in range(2):  # it has begun, and is not yet through
            await anyio.lowlevel.checkpoint()
    # Handed out and told of the end, or not handed out at all.
    assert len(notes.reasons) + len(refused) == 1


async def test_frames_cut_at_any_byte_arrive(world: World) -> None:
    async with world.link_transport() as transport:
        notes = Notes()
        listener = await transport.listen(f"{HOST}:0", notes.on_link, frame_bytes_max=100)
        data = frame("one") + frame("two") + frame("three")
        with raw_connection(listener.address) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(len(data)):
                peer.sendall(data[i : i + 1])
                await anyio.lowlevel.checkpoint()
            await notes.until(lambda notes: len(notes.frames) == 3)
    assert notes.bodies == [b"one", b"two", b"three"]
    assert notes.reasons == ["closed by the other side"]


async def test_a_peer_that_does_not_read_is_closed_at_the_limit(
    world: World, silent_peer: str
) -> None:
    limit = 1 << 18
    async with world.link_transport(send_buffer_bytes_max=limit) as transport:
        notes = Notes()
        link = await transport.connect(silent_peer, notes, frame_bytes_max=100)
        chunk = encode_frame(1, bytes(1 << 16))
        with anyio.fail_after(SAFETY_S):
            while True:
                link.send(chunk)
                if link.closed:
                    break
                assert link.unsent_bytes <= limit
                await anyio.lowlevel.checkpoint()
        link.send(chunk)
        assert notes.reasons == [], "on_closed was called from inside send"
        await notes.until(lambda notes: notes.reasons)
        (reason,) = notes.reasons
        assert reason.startswith(f"{silent_peer} does not read: ")
        assert reason.endswith(f"bytes unsent, the limit is {limit}")


async def test_too_much_in_one_turn_is_closed_as_well(world: World, silent_peer: str) -> None:
    async with world.link_transport(send_buffer_bytes_max=1000) as transport:
        notes = Notes()
        link = await transport.connect(silent_peer, notes, frame_bytes_max=100)
        link.send(bytes(1001))
        assert link.closed
        await notes.until(lambda notes: notes.reasons)
        assert "1001 bytes unsent, the limit is 1000" in notes.reasons[0]


async def test_closing_waits_for_a_bounded_time(world: World, silent_peer: str) -> None:
    async with world.link_transport(close_timeout_s=0.05) as transport:
        notes = Notes()
        link = await transport.connect(silent_peer, notes, frame_bytes_max=100)
        link.send(bytes(20 << 20))
        link.close("enough")
        await notes.until(lambda notes: notes.reasons)
        assert notes.reasons[0].startswith("enough (")
        assert notes.reasons[0].endswith(" bytes could not be delivered)")


async def test_a_peer_that_never_ends_its_side_is_not_waited_for(world: World) -> None:
    async with world.link_transport(close_timeout_s=0.05) as transport:
        notes = Notes()
        listener = await transport.listen(f"{HOST}:0", notes.on_link, frame_bytes_max=100)
        with raw_connection(listener.address) as peer:
            await notes.until(lambda notes: notes.links)
            notes.links[0].send(frame("bye"))
            notes.links[0].close("enough")
            await notes.until(lambda notes: notes.reasons)
            assert peer.recv(100) == frame("bye")
    assert notes.reasons == ["enough"]


async def test_a_refusal_reaches_a_peer_that_goes_on_sending(world: World) -> None:
    """Closing a socket with unread bytes in it would reset it, and destroy what was said last."""
    async with world.link_transport(close_timeout_s=SAFETY_S) as transport:
        notes = Notes()
        listener = await transport.listen(f"{HOST}:0", notes.on_link, frame_bytes_max=1000)

        def refuse(link: Link, frames: Any) -> None:
            link.send(frame("refused"))
            link.close("refused")

        notes.on_batch = refuse
        with raw_connection(listener.address) as peer:
            peer.sendall(frame("hello"))
            await notes.until_frames(1)
            for _ in range(20):
                peer.sendall(bytes(50_000))
                await anyio.lowlevel.checkpoint()
            await anyio.to_thread.run_sync(peer.sendall, bytes(5_000_000))
            assert peer.recv(100) == frame("refused")
            assert peer.recv(100) == b"", "not an end, but a reset"
            assert notes.reasons == []
        await notes.until(lambda notes: notes.reasons)
    assert notes.reasons == ["refused"]
    assert notes.batches == [1]


async def test_a_name_with_both_kinds_of_addresses_is_listened_on_by_ipv4(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both(host: str, port: int, **options: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, port)),
        ]

    async with world.link_transport() as transport:
        monkeypatch.setattr(anyio, "getaddrinfo", both)
        listener = await transport.listen("both:0", Notes().on_link, frame_bytes_max=100)
        assert listener.address.startswith(f"{HOST}:")


async def test_a_connection_attempt_can_be_cancelled(world: World) -> None:
    """A listener with a full backlog: the kernel answers nothing, as an unreachable host would."""
    with socket.create_server((HOST, 0), backlog=0) as listening:
        address = f"{HOST}:{listening.getsockname()[1]}"
        with raw_connection(address):
            notes = Notes()
            async with world.link_transport() as transport:
                with anyio.move_on_after(0.05) as scope:
                    await transport.connect(address, notes, frame_bytes_max=100)
                assert scope.cancelled_caught
            assert notes.reasons == []


async def test_an_unresolvable_name_is_named(world: World) -> None:
    async with world.link_transport() as transport:
        for name in ("no-such-host.invalid:7001", "x" * 64 + ".invalid:7001"):
            with pytest.raises(ConnectionLost) as caught:
                await transport.connect(name, Notes(), frame_bytes_max=100)
            assert f"cannot connect to {name}: the name cannot be resolved" in str(caught.value)


async def test_a_foreign_address_cannot_be_listened_on(world: World) -> None:
    async with world.link_transport() as transport:
        with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:7001: Cannot assign"):
            await transport.listen("192.0.2.1:7001", Notes().on_link, frame_bytes_max=100)


async def test_localhost_can_be_listened_on_and_found(world: World) -> None:
    async with world.link_transport() as transport:
        notes = Notes()
        listener = await transport.listen("localhost:0", notes.on_link, frame_bytes_max=100)
        assert listener.address.startswith(HOST)
        port = listener.address.rpartition(":")[2]
        link = await transport.connect(f"localhost:{port}", Notes(), frame_bytes_max=100)
        link.send(frame("found"))
        await notes.until(lambda notes: notes.bodies == [b"found"])


@contextmanager
def no_file_descriptors_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)  # the lowest free number: none above it can be had either
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Heard(logging.Handler):
    """Counts what the accept loop says."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.changed = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.changed.set()


async def test_accepting_survives_a_lack_of_file_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_EXHAUSTED_PAUSE_S", 0.001)
    heard = Heard()
    logger = logging.getLogger("folkmoot.transport")
    logger.addHandler(heard)
    peers: list[socket.socket] = []
    try:
        async with world.link_transport(close_timeout_s=0.01) as transport:
            notes = Notes()
            listener = await transport.listen(f"{HOST}:0", notes.on_link, frame_bytes_max=100)
            # No await until the limit holds: all three wait in the kernel's backlog.
            peers += [raw_connection(listener.address) for _ in range(3)]
            with no_file_descriptors_left():
                with anyio.fail_after(SAFETY_S):
                    await heard.changed.wait()
                await anyio.sleep(0.02)  # many more attempts, in which it must stay quiet
                assert len(heard.messages) == 1
                assert "accepts no connections for now: Too many open" in heard.messages[0]
                assert heard.messages[0].startswith(listener.address)
            await notes.until(lambda notes: len(notes.links) == 3)
            peers[2].sendall(frame("patience"))
            await notes.until(lambda notes: notes.bodies == [b"patience"])
            assert len(heard.messages) == 1
    finally:
        logger.removeHandler(heard)
        for peer in peers:
            peer.close()


async def test_idle_and_half_open_sockets_do_not_hinder_a_good_client(world: World) -> None:
    peers: list[socket.socket] = []
    try:
        async with world.link_transport() as transport:
            notes = Notes()
            listener = await transport.listen(
                f"{HOST}:0", notes.on_link, frame_bytes_max=FRAME_BYTES_MAX
            )
            for i in range(100):
                peers.append(raw_connection(listener.address))
                peers[-1].sendall(frame("never finished")[: i % 8])
            await notes.until(lambda notes: len(notes.links) == 100)
            good = await transport.connect(listener.address, Notes(), frame_bytes_max=100)
            for i in range(100):
                good.send(frame(f"{i}"))
                await notes.until_frames(i + 1)
            assert notes.reasons == []
            for peer in peers:
                peer.close()
            await notes.until(lambda notes: len(notes.reasons) == 100)
    finally:
        for peer in peers:
            peer.close()


async def test_links_that_end_are_let_go(world: World) -> None:
    async with world.pair() as pair:
        for _ in range(20):
            notes = Notes()
            link = await pair.client.connect(pair.listener.address, notes, frame_bytes_max=100)
            link.close()
            await notes.until(lambda notes: notes.reasons)
        await pair.far_notes.until(lambda notes: len(notes.reasons) == 20)
        assert isinstance(pair.client, TcpTransport)
        assert (len(pair.client._links), len(pair.server._links)) == (1, 1)
