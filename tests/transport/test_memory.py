"""The in-memory network: its faults, its order, and that it runs on virtual time."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio.testing

from folkmoot.transport.frame import encode_frame
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from tests.transport.world import SAFETY_S, Notes, World, frame


async def settle(turns: int = 20) -> None:
    """Let everything arrive that can."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def world() -> World:
    return World("memory")


@pytest.mark.anyio
async def test_a_cut_holds_what_is_sent_and_heal_lets_it_arrive_in_order(world: World) -> None:
    async with world.pair() as pair:
        world.network.cut("client", "server")
        for i in range(5):
            pair.near.send(frame(f"{i}"))
            pair.far.send(frame(f"{i}"))
            await settle()
        assert pair.far_notes.frames == pair.near_notes.frames == []
        assert pair.near.unsent_bytes == 5 * len(frame("0"))
        world.network.heal("server", "client")
        await pair.far_notes.until_frames(5)
        await pair.near_notes.until_frames(5)
        assert pair.far_notes.bodies == pair.near_notes.bodies == [b"0", b"1", b"2", b"3", b"4"]
        assert pair.near.unsent_bytes == 0


@pytest.mark.anyio
async def test_a_cut_one_way_lets_the_other_way_pass(world: World) -> None:
    async with world.pair() as pair:
        world.network.cut("client", "server", one_way=True)
        pair.near.send(frame("held"))
        pair.far.send(frame("passes"))
        await pair.near_notes.until_frames(1)
        await settle()
        assert pair.far_notes.frames == []
        world.network.heal("client")
        await pair.far_notes.until_frames(1)


@pytest.mark.anyio
async def test_a_cut_of_others_does_not_matter(world: World) -> None:
    async with world.pair() as pair:
        world.network.cut("client", "elsewhere")
        world.network.pause("elsewhere")
        pair.near.send(frame("passes"))
        await pair.far_notes.until_frames(1)


@pytest.mark.anyio
async def test_a_paused_host_hears_and_says_nothing(world: World) -> None:
    async with world.pair() as pair:
        world.network.pause("server")
        pair.near.send(frame("to it"))
        pair.far.send(frame("from it"))
        await settle()
        world.network.heal()  # which is not resume
        await settle()
        assert pair.far_notes.frames == pair.near_notes.frames == []
        world.network.resume("server")
        await pair.far_notes.until_frames(1)
        await pair.near_notes.until_frames(1)


@pytest.mark.anyio
async def test_dropped_links_break_at_both_ends_and_lose_what_was_under_way(world: World) -> None:
    async with world.pair() as pair:
        pair.near.send(frame("lost"))
        world.network.drop("server", "client")
        await pair.near_notes.until(lambda notes: notes.reasons)
        await pair.far_notes.until(lambda notes: notes.reasons)
        await settle()
    assert pair.far_notes.frames == []
    why = ["connection lost: the network dropped it"]
    assert pair.near_notes.reasons == pair.far_notes.reasons == why


@pytest.mark.anyio
async def test_a_cut_side_closes_in_bounded_time_and_the_other_learns_of_it_later(
    world: World,
) -> None:
    async with world.pair(close_timeout_s=0.01) as pair:
        world.network.cut("client", "server")
        pair.near.send(frame("undelivered"))
        pair.near.close("enough")
        await pair.near_notes.until(lambda notes: notes.reasons)
        size = len(frame("undelivered"))
        assert pair.near_notes.reasons == [f"enough ({size} bytes could not be delivered)"]
        assert pair.far_notes.reasons == []
        world.network.heal()
        await pair.far_notes.until(lambda notes: notes.reasons)
        assert pair.far_notes.frames == []
        assert pair.far_notes.reasons == ["connection lost: reset by the other side"]


@pytest.mark.anyio
async def test_a_side_that_cannot_send_is_closed_at_the_limit(world: World) -> None:
    async with world.pair(send_buffer_bytes_max=1000) as pair:
        world.network.cut("client", "server", one_way=True)
        for _ in range(3):
            pair.near.send(encode_frame(1, bytes(300)))
            await settle()
        assert not pair.near.closed
        pair.near.send(encode_frame(1, bytes(300)))
        assert pair.near.closed
        assert pair.near_notes.reasons == [], "on_closed was called from inside send"
        await pair.near_notes.until(lambda notes: notes.reasons)
        assert pair.near_notes.reasons[0].endswith("1224 bytes unsent, the limit is 1000")
        world.network.heal()
        await pair.far_notes.until(lambda notes: notes.reasons)


@pytest.mark.anyio
async def test_connecting_waits_while_it_is_cut_off_and_can_be_cancelled(world: World) -> None:
    async with world.pair() as pair, anyio.create_task_group() as tasks:
        world.network.cut("client", "server")
        connected: list[str] = []

        async def connect(name: str) -> None:
            await pair.client.connect(pair.listener.address, notes, frame_bytes_max=100)
            connected.append(name)

        notes = Notes()
        with anyio.CancelScope() as scope:
            tasks.start_soon(connect, "waits")
            await settle()
            scope.cancel()
            await connect("is cancelled")
        assert scope.cancelled_caught
        assert connected == []
        world.network.heal()
        await pair.far_notes.until(lambda notes: len(notes.links) == 2)
    assert connected == ["waits"]


@pytest.mark.anyio
async def test_without_a_name_a_host_is_called_after_its_address() -> None:
    network = MemoryNetwork()
    async with MemoryTransport(network) as server, MemoryTransport(network) as client:
        far = Notes()
        listener = await server.listen("n1:7001", far.on_link, frame_bytes_max=100)
        assert (server.host, listener.address) == ("n1", "n1:7001")
        link = await client.connect("n1:7001", Notes(), frame_bytes_max=100)
        link.send(frame("found"))
        await far.until_frames(1)


@pytest.mark.anyio
async def test_connections_that_ended_are_forgotten(world: World) -> None:
    async with world.pair() as pair:
        for how in ("close", "drop", "overflow", "refusal"):
            notes = Notes()
            link: Any = await pair.client.connect(pair.listener.address, notes, frame_bytes_max=100)
            if how == "close":
                link.close()
            elif how == "drop":
                link.lane.source.break_off("dropped")
                link.lane.target.break_off("dropped")
            elif how == "overflow":
                link.abort("too much")
            else:
                link.send(b"\x00" * 6)
            await notes.until(lambda notes: notes.reasons)
            await settle()
        assert len(pair.far_notes.reasons) == 4
        assert len(world.network._lanes) == 2
    assert len(world.network._lanes) == 0
    assert world.network._listeners == {}


def on_virtual_time(body: Callable[[], Awaitable[Any]]) -> Any:
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(body, clock=clock)


def test_delays_pass_in_virtual_time_one_way_and_in_order() -> None:
    arrived: list[tuple[float, bytes]] = []

    async def body() -> None:
        world = World("memory")
        async with world.pair() as pair:
            start = anyio.current_time()

            def note(link: Any, frames: Any) -> None:
                arrived.extend((anyio.current_time() - start, body) for _, _, body in frames)

            pair.far_notes.on_batch = pair.near_notes.on_batch = note
            world.network.delay("client", "server", 5.0)
            pair.near.send(frame("slow"))
            pair.far.send(frame("at once"))
            await settle()
            world.network.delay("client", "server", 0.5)
            pair.near.send(frame("not before slow"))
            await pair.far_notes.until_frames(2)
            await anyio.sleep(1)
            pair.near.send(frame("quicker"))
            await pair.far_notes.until_frames(3)

    on_virtual_time(body)
    assert arrived == [(0, b"at once"), (5, b"slow"), (5, b"not before slow"), (6.5, b"quicker")]


def test_a_cut_holds_what_is_already_on_its_way() -> None:
    async def body() -> None:
        world = World("memory")
        async with world.pair() as pair:
            world.network.delay("client", "server", 1.0)
            pair.near.send(frame("late"))
            await settle()
            world.network.cut("client", "server")
            await anyio.sleep(2)
            assert pair.far_notes.frames == []
            world.network.heal()
            await pair.far_notes.until_frames(1)

    on_virtual_time(body)


def test_connecting_takes_a_round_trip() -> None:
    async def body() -> float:
        world = World("memory")
        world.network.delay("client", "server", 2.0)
        world.network.delay("server", "client", 1.0)
        start = anyio.current_time()
        async with world.pair():
            return anyio.current_time() - start

    assert on_virtual_time(body) == 3.0


def test_an_hour_cut_off_takes_no_time() -> None:
    async def body() -> list[bytes]:
        world = World("memory")
        async with world.pair() as pair:
            world.network.cut("client", "server")
            pair.near.send(frame("late"))
            await anyio.sleep(3600)
            world.network.heal()
            await pair.far_notes.until_frames(1)
            return pair.far_notes.bodies

    assert on_virtual_time(body) == [b"late"]


def test_the_same_run_gives_the_same_trace() -> None:
    """Callbacks run in the order of asking, so even trio's scheduler leaves no mark on it."""

    async def body() -> list[Any]:
        trace: list[Any] = []
        network = MemoryNetwork()
        async with (
            MemoryTransport(network, "server") as server,
            MemoryTransport(network, "client") as client,
        ):
            far = Notes()
            listener = await server.listen("server:1", far.on_link, frame_bytes_max=100)
            links = [
                await client.connect(listener.address, Notes(), frame_bytes_max=100)
                for _ in range(5)
            ]
            far.on_batch = lambda link, frames: trace.append(
                (anyio.current_time() - start, link.remote, frames)
            )
            start = anyio.current_time()
            for turn in range(20):
                network.delay("client", "server", (turn * 7 % 5) / 10)
                for number, link in enumerate(links):
                    link.send(frame(f"{turn} {number}"))
                await anyio.sleep(0.05)
            with anyio.fail_after(SAFETY_S):
                await far.until_frames(100)
        return trace

    first = on_virtual_time(body)
    assert sum(len(frames) for _, _, frames in first) == 100
    assert all(on_virtual_time(body) == first for _ in range(5))
