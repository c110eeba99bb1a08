"""The link contract, held by every implementation on every event loop.

What is particular to sockets is in test_tcp.py, what is particular to faults in test_memory.py.
"""

import logging
from typing import Any

import anyio
import pytest

from folkmoot.core.errors import ConfigError, ConnectionLost, UsageError
from folkmoot.transport.frame import encode_frame
from folkmoot.transport.link import Link
from tests.transport.world import (
    BUG,
    FRAME_BYTES_MAX,
    HOST,
    REFUSED,
    SAFETY_S,
    Notes,
    Pair,
    World,
    frame,
)

pytestmark = pytest.mark.anyio

ASYNCIO = ("asyncio", {"use_uvloop": False})
UVLOOP = ("asyncio", {"use_uvloop": True})
TRIO: tuple[str, dict[str, Any]] = ("trio", {})


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((ASYNCIO, "memory"), id="memory-asyncio"),
        pytest.param((ASYNCIO, "tcp"), id="protocol-asyncio"),
        pytest.param((ASYNCIO, "streams"), id="streams-asyncio"),
        pytest.param((UVLOOP, "tcp"), id="protocol-uvloop"),
        pytest.param((UVLOOP, "streams"), id="streams-uvloop"),
        pytest.param((TRIO, "memory"), id="memory-trio"),
        pytest.param((TRIO, "tcp"), id="streams-trio"),
    ],
)
def setting(request: pytest.FixtureRequest) -> Any:
    if request.param[0] == UVLOOP:
        pytest.importorskip("uvloop", reason="uvloop is not installed (extra `fast`)")
    return request.param


@pytest.fixture(scope="module")
def anyio_backend(setting: Any) -> Any:
    return setting[0]


@pytest.fixture
def world(setting: Any) -> World:
    return World(setting[1])


async def both_closed(pair: Pair) -> None:
    await pair.near_notes.until(lambda notes: notes.reasons)
    await pair.far_notes.until(lambda notes: notes.reasons)


# Frames


async def test_frames_arrive_whole_and_in_order_both_ways(world: World) -> None:
    async with world.pair() as pair:
        for i in range(300):
            pair.near.send(encode_frame(i % 250, b"n%d" % i, flags=i % 200))
            pair.far.send(frame(f"f{i}"))
        await pair.far_notes.until(lambda notes: len(notes.frames) == 300)
        await pair.near_notes.until(lambda notes: len(notes.frames) == 300)
    assert pair.far_notes.frames == [(i % 250, i % 200, b"n%d" % i) for i in range(300)]
    assert pair.near_notes.bodies == [b"f%d" % i for i in range(300)]


async def test_a_link_says_who_is_there(world: World) -> None:
    async with world.pair() as pair:
        assert pair.near.remote == pair.listener.address
        host, _, port = pair.far.remote.rpartition(":")
        assert (host, port.isdigit()) == ("client" if world.kind == "memory" else HOST, True)
        assert pair.near.identity is None
        assert pair.far.remote in repr(pair.far)


async def test_what_is_sent_in_one_turn_leaves_as_one_write_and_arrives_in_bulk(
    world: World,
) -> None:
    async with world.pair() as pair:
        for i in range(100):
            pair.near.send(frame(f"{i}"))
        await pair.far_notes.until(lambda notes: len(notes.frames) == 100)
        assert pair.near.writes == 1
        assert pair.far_notes.batches == [100]


async def test_answers_to_frames_of_one_receive_leave_as_one_write(world: World) -> None:
    async with world.pair() as pair:

        def echo(link: Link, frames: Any) -> None:
            for _, _, body in frames:
                link.send(encode_frame(2, body))

        pair.far_notes.on_batch = echo
        for i in range(100):
            pair.near.send(frame(f"{i}"))
        await pair.near_notes.until(lambda notes: len(notes.frames) == 100)
        assert pair.far.writes == 1


async def test_send_never_calls_back(world: World) -> None:
    async with world.pair() as pair:
        pair.near.send(frame("a"))
        assert pair.far_notes.frames == []
        assert pair.near.unsent_bytes == len(frame("a"))
        await pair.far_notes.until(lambda notes: notes.frames)
        assert pair.near.unsent_bytes == 0


async def test_large_frames_pass(world: World) -> None:
    body = bytes(range(256)) * 4000
    async with world.pair() as pair:
        for _ in range(3):
            pair.near.send(encode_frame(1, body))
        await pair.far_notes.until(lambda notes: len(notes.frames) == 3)
    assert pair.far_notes.bodies == [body] * 3


async def test_the_limit_can_be_raised_by_the_hello_for_what_is_right_behind_it(
    world: World,
) -> None:
    async with world.pair() as pair:
        pair.far.frame_bytes_max = 100
        assert pair.far.frame_bytes_max == 100

        def raise_limit(link: Link, frames: Any) -> None:
            link.frame_bytes_max = 1 << 20

        pair.far_notes.on_batch = raise_limit
        pair.near.send(frame("hello"))
        pair.near.send(encode_frame(1, bytes(50_000)))
        await pair.far_notes.until(lambda notes: len(notes.frames) == 2)
        assert pair.far_notes.reasons == []


# Closing


async def test_close_delivers_what_was_sent_then_both_sides_are_told_once(world: World) -> None:
    async with world.pair() as pair:
        for i in range(2000):
            pair.near.send(encode_frame(1, bytes(1000) + b"%d" % i))
        pair.near.close("enough")
        assert pair.near.closed
        pair.near.close("again")
        pair.near.send(frame("too late"))
        await both_closed(pair)
        assert len(pair.far_notes.frames) == 2000
        assert pair.far_notes.bodies[-1].endswith(b"1999")
        assert pair.far.closed
    assert pair.near_notes.reasons == ["enough"]
    assert pair.far_notes.reasons == ["closed by the other side"]


async def test_a_close_without_a_reason_gets_one(world: World) -> None:
    async with world.pair() as pair:
        pair.near.close()
        await both_closed(pair)
    assert pair.near_notes.reasons == ["closed by this side"]


async def test_both_sides_may_close_at_once(world: World) -> None:
    async with world.pair() as pair:
        pair.near.send(frame("n"))
        pair.far.send(frame("f"))
        pair.near.close("near")
        pair.far.close("far")
        await both_closed(pair)
    assert (pair.near_notes.reasons, pair.far_notes.reasons) == (["near"], ["far"])


async def test_closing_in_on_frames_delivers_the_answer_and_nothing_more_comes(
    world: World,
) -> None:
    async with world.pair() as pair:

        def answer_and_close(link: Link, frames: Any) -> None:
            link.send(frame("refused: version 9, this is version 1"))
            link.close("wrong version")

        pair.far_notes.on_batch = answer_and_close
        # So much that some of it is unread when the other side closes: a reset would follow.
        for i in range(40):
            pair.near.send(encode_frame(1, bytes(100_000)))
            if i == 0:
                await pair.far_notes.until(lambda notes: notes.frames)
        await both_closed(pair)
    assert pair.near_notes.bodies == [b"refused: version 9, this is version 1"]
    assert pair.far_notes.reasons == ["wrong version"]
    assert len(pair.far_notes.batches) == 1


async def test_a_half_written_frame_is_mentioned(world: World) -> None:
    async with world.pair() as pair:
        pair.near.send(frame("whole") + frame("half")[:7])
        pair.near.close()
        await both_closed(pair)
    assert pair.far_notes.bodies == [b"whole"]
    assert pair.far_notes.reasons == [
        "closed by the other side inside a frame, of which 7 bytes came"
    ]


async def test_leaving_the_block_closes_links_and_delivers(world: World) -> None:
    async with world.link_transport("server") as server:
        far = Notes()
        listener = await server.listen(world.address, far.on_link, frame_bytes_max=FRAME_BYTES_MAX)
        near = Notes()
        async with world.link_transport("client") as client:
            link = await client.connect(listener.address, near, frame_bytes_max=FRAME_BYTES_MAX)
            link.send(frame("last words"))
        assert near.reasons == ["the transport was closed"]
        await far.until(lambda notes: notes.reasons)
        assert far.bodies == [b"last words"]


async def test_leaving_the_block_by_an_error_still_tells_receivers(world: World) -> None:
    pair: Any = None
    with pytest.raises(BaseExceptionGroup) as caught:
        async with world.pair() as pair:
            raise LookupError("body")
    assert caught.group_contains(LookupError, match="body")
    assert len(pair.near_notes.reasons) == len(pair.far_notes.reasons) == 1


async def test_being_cancelled_still_tells_receivers(world: World) -> None:
    with anyio.CancelScope() as scope:
        async with world.pair() as pair:
            scope.cancel()
            await anyio.sleep(SAFETY_S)
    assert scope.cancelled_caught
    assert len(pair.near_notes.reasons) == len(pair.far_notes.reasons) == 1


# Refusals and bugs


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff\x7f\x01\x00", "a frame says it has 2147483647 bytes; the limit is 1048576"),
        (b"\x00\x00\x00\x00\x00\x00", "a frame says it has 0 bytes; type and flags alone are 2"),
        (encode_frame(REFUSED, b""), "frame type 99 is not spoken here"),
    ],
    ids=["oversized", "undersized", "by the receiver"],
)
async def test_refused_bytes_close_that_link_only(world: World, data: bytes, reason: str) -> None:
    async with world.pair() as pair:
        good = Notes()
        good_link = await pair.client.connect(
            pair.listener.address, good, frame_bytes_max=FRAME_BYTES_MAX
        )
        await pair.far_notes.until(lambda notes: len(notes.links) == 2)
        pair.near.send(frame("good") + data)
        await both_closed(pair)
        assert pair.far_notes.reasons == [reason]
        good_link.send(frame("still here"))
        await pair.far_notes.until(lambda notes: b"still here" in notes.bodies)
        late = await pair.client.connect(
            pair.listener.address, Notes(), frame_bytes_max=FRAME_BYTES_MAX
        )
        late.send(frame("listener too"))
        await pair.far_notes.until(lambda notes: b"listener too" in notes.bodies)
    assert pair.far_notes.bodies[0] == b"good"


async def test_a_bug_in_a_receiver_is_logged_and_comes_out_of_the_block(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pairs: list[Pair] = []

    async def run() -> None:
        async with world.pair() as pair:
            pairs.append(pair)
            pair.near.send(encode_frame(BUG, b""))
            await anyio.sleep(SAFETY_S)

    with caplog.at_level(logging.ERROR), pytest.raises(BaseExceptionGroup) as caught:
        await run()
    (pair,) = pairs
    assert caught.group_contains(LookupError, match="a bug in the receiver")
    assert "a bug in the receiver" in pair.far_notes.reasons[0]
    assert len(pair.near_notes.reasons) == len(pair.far_notes.reasons) == 1
    logged = [record for record in caplog.records if record.name == "folkmoot.transport"]
    assert len(logged) == 1
    assert "a bug while" in logged[0].message


async def test_a_bug_in_on_closed_comes_out_of_the_block(world: World) -> None:
    class Faulty(Notes):
        def on_closed(self, link: Link, reason: str) -> None:
            raise LookupError("in on_closed")

    async def run() -> None:
        async with world.pair() as pair:
            link = await pair.client.connect(
                pair.listener.address, Faulty(), frame_bytes_max=FRAME_BYTES_MAX
            )
            link.close()
            await anyio.sleep(SAFETY_S)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(LookupError, match="in on_closed")


async def test_a_bug_in_on_link_comes_out_of_the_block(world: World) -> None:
    def faulty(link: Link) -> Notes:
        raise LookupError("in on_link")

    near = Notes()
    connected: list[Link] = []

    async def run() -> None:
        async with world.link_transport("server") as server:
            listener = await server.listen(world.address, faulty, frame_bytes_max=100)
            async with world.link_transport("client") as client:
                connected.append(await client.connect(listener.address, near, frame_bytes_max=100))
                await anyio.sleep(SAFETY_S)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(LookupError, match="in on_link")
    assert len(near.reasons) == len(connected)  # the bug may come out before connect returns


# Connecting and listening


async def test_refused_connections_name_the_address_and_the_cause(world: World) -> None:
    async with world.pair() as pair:
        await pair.listener.aclose()
        with pytest.raises(ConnectionLost) as caught:
            await pair.client.connect(pair.listener.address, Notes(), frame_bytes_max=100)
        cause = "nobody listens there" if world.kind == "memory" else "Connection refused"
        assert str(caught.value) == f"cannot connect to {pair.listener.address}: {cause}"


async def test_links_survive_their_listener(world: World) -> None:
    async with world.pair() as pair:
        await pair.listener.aclose()
        pair.near.send(frame("still here"))
        await pair.far_notes.until(lambda notes: notes.bodies == [b"still here"])


async def test_an_address_is_listened_on_once(world: World) -> None:
    async with world.pair() as pair:
        with pytest.raises(ConfigError, match=f"cannot listen on {pair.listener.address}"):
            await pair.server.listen(pair.listener.address, Notes().on_link, frame_bytes_max=100)


async def test_what_is_no_address_is_refused(world: World) -> None:
    async with world.pair() as pair:
        with pytest.raises(ConfigError, match="'nonsense' has no port"):
            await pair.client.connect("nonsense", Notes(), frame_bytes_max=100)
        with pytest.raises(ConfigError, match="'x:y': port 'y'"):
            await pair.client.listen("x:y", Notes().on_link, frame_bytes_max=100)


async def test_a_link_may_be_closed_when_it_is_accepted(world: World) -> None:
    def full(link: Link) -> Notes:
        link.send(frame("no room"))
        link.close("connections_max is reached")
        return far

    far, near = Notes(), Notes()
    async with world.link_transport("server") as server, world.link_transport("client") as client:
        listener = await server.listen(world.address, full, frame_bytes_max=100)
        await client.connect(listener.address, near, frame_bytes_max=100)
        await near.until(lambda notes: notes.reasons)
        await far.until(lambda notes: notes.reasons)
    assert near.bodies == [b"no room"]
    assert far.reasons == ["connections_max is reached"]


async def test_nothing_is_called_before_connect_has_returned(world: World) -> None:
    def greet(link: Link) -> Notes:
        link.send(frame("hello"))
        link.close("that was all")
        return far

    far, near = Notes(), Notes()
    async with world.link_transport("server") as server, world.link_transport("client") as client:
        listener = await server.listen(world.address, greet, frame_bytes_max=100)
        await client.connect(listener.address, near, frame_bytes_max=100)
        assert (near.frames, near.reasons) == ([], [])
        await near.until(lambda notes: notes.reasons)
    assert near.bodies == [b"hello"]


async def test_outside_of_its_block_a_transport_refuses(world: World) -> None:
    transport = world.link_transport()
    with pytest.raises(UsageError, match="inside `async with transport:`"):
        await transport.connect(f"{HOST}:1", Notes(), frame_bytes_max=100)
    async with transport:
        pass
    with pytest.raises(UsageError):
        await transport.listen(f"{HOST}:0", Notes().on_link, frame_bytes_max=100)
    with pytest.raises(UsageError, match="entered once"):
        await transport.__aenter__()
