"""Watches and feeds by themselves: sharing, bounds, who reads, how it ends."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from folkmoot.core.errors import (
    ClosedError,
    Overloaded,
    ResourceDeleted,
    SessionExpired,
    UsageError,
)
from folkmoot.core.types import ConnectionState
from folkmoot.primitives import _watch
from folkmoot.primitives._watch import Resync, feed_of
from folkmoot.primitives.counter import Counted, Counter, CounterMachine
from folkmoot.primitives.map import Changed, Map, MapMachine
from tests.primitives.fake_resource import resource_of
from tests.primitives.harness import Harness

pytestmark = pytest.mark.anyio


class World:
    """A counter or a map, a client with two proxies of it, and another session."""

    def __init__(self, kind: Any = CounterMachine) -> None:
        self.resource = resource_of(kind)
        self.harness: Harness = self.resource.harness
        self.counter = Counter(self.resource)
        self.again = Counter(self.resource)
        self.map: Map[bytes] = Map(self.resource, codec="bytes")

    def do(self, operation: str, *args: Any) -> int:
        self.harness.command(9, operation, *args)
        self.resource.deliver()
        return self.harness.index

    def subscribed(self) -> bool:
        return bool(self.harness.machine._subscriptions)  # type: ignore[attr-defined]


async def test_proxies_of_one_resource_share_a_feed_and_a_subscription() -> None:
    world = World()
    assert feed_of(world.resource) is feed_of(world.resource)
    async with world.counter.watch() as one:
        async with world.again.watch() as two:
            index = world.do("add", 5)
            assert await anext(one) == await anext(two) == Counted(5, 0, index)
        assert world.resource.events_seen == 1
        assert world.subscribed()  # the first one still needs it
        world.do("add", 1)
        assert await anext(one) == Counted(6, 5, world.harness.index)
    assert not world.subscribed()
    assert world.resource.listeners == []
    assert world.resource.issued == ["subscribe", "subscribe", "unsubscribe"]


async def test_a_watch_gets_nothing_from_before_it_began_though_another_one_did() -> None:
    world = World()
    async with world.counter.watch() as older:
        before = iter([1])
        world.resource.meanwhile = lambda: [world.do("add", n) for n in before][:0]
        async with world.again.watch() as newer:  # its subscription is answered after that change
            assert newer.revision == world.harness.index
            index = world.do("add", 10)
            assert await anext(newer) == Counted(11, 1, index)
        assert [(await anext(older)).revision for _ in range(2)] == [index - 2, index]


async def test_an_overflow_cuts_that_watch_alone_and_keeps_its_subscription() -> None:
    world = World()
    async with world.counter.watch(buffer=3) as slow, world.again.watch() as quick:
        indexes = [world.do("add", 1) for _ in range(4)]
        assert [(await anext(quick)).revision for _ in range(4)] == indexes
        resync = await anext(slow)
        assert resync == Resync(4, slow.revision)
        assert slow.revision >= indexes[-1]
        last = world.do("add", 1)
        assert await anext(slow) == await anext(quick) == Counted(5, 4, last)


async def test_up_to_its_bound_a_buffer_overflows_not() -> None:
    world = World()
    async with world.counter.watch(buffer=3) as changes:
        indexes = [world.do("add", 1) for _ in range(3)]
        assert [(await anext(changes)).revision for _ in range(3)] == indexes


async def test_large_changes_overflow_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "BUFFER_BYTES", 100)
    world = World(MapMachine)
    async with world.map.watch() as changes:
        for _ in range(3):  # what was read makes room again
            world.do("set", "k", bytes(80))
            assert isinstance(await anext(changes), Changed)
            world.do("delete", "k")
            await anext(changes)
        world.do("set", "k", bytes(60))
        world.do("set", "l", bytes(60))
        assert isinstance(await anext(changes), Resync)
        world.do("set", "k", b"1")
        assert isinstance(await anext(changes), Changed)


async def test_a_reader_that_never_keeps_up_is_told_so_and_may_try_again() -> None:
    world = World()
    async with world.counter.watch() as changes:
        world.resource.cut()
        world.resource.meanwhile = world.resource.cut
        with pytest.raises(Overloaded, match="changes come faster than the state can be read"):
            await anext(changes)
        world.resource.meanwhile = lambda: None
        assert await anext(changes) == Resync(0, changes.revision)


async def test_a_session_that_is_lost_while_the_watch_begins_costs_no_more_than_a_resync() -> None:
    world = World()
    lost = iter([1, 2, 3])

    def lose() -> None:
        if next(lost, None):
            world.resource.lose_session()

    world.resource.meanwhile = lose
    async with world.counter.watch() as changes:
        index = world.do("add", 1)
        change = await anext(changes)
        assert change in (Counted(1, 0, index), Resync(1, changes.revision))
    assert not world.subscribed()


async def test_a_session_that_is_lost_again_and_again_while_the_state_is_read() -> None:
    world = World()
    world.harness.command(9, "add", 7)
    lost = iter(range(5))

    def lose() -> None:
        if next(lost, None) is not None:
            world.resource.lose_session()

    world.resource.meanwhile = lose
    async with world.counter.watch(initial=True) as changes:
        assert await anext(changes) == Resync(7, changes.revision)
        world.do("add", 1)
        assert await anext(changes) == Counted(8, 7, world.harness.index)


async def test_an_initial_state_that_was_not_read_in_time_is_replaced_by_a_newer_one() -> None:
    world = World()
    async with world.counter.watch(initial=True) as changes:
        world.do("add", 1)
        world.resource.lose_session()
        world.do("add", 1)
        assert await anext(changes) == Resync(2, changes.revision)


async def test_what_came_before_the_end_is_read_before_it() -> None:
    world = World()
    async with world.counter.watch() as changes:
        index = world.do("add", 1)
        world.resource.tell(index + 1, "deleted")
        world.resource.tell(index + 1, "changed", [9, 9])  # nothing comes after the end
        assert await anext(changes) == Counted(1, 0, index)
        for _ in range(2):
            with pytest.raises(ResourceDeleted):
                await anext(changes)
    assert "unsubscribe" not in world.resource.issued  # of whom?


async def test_a_closed_client_ends_a_watch_that_waits() -> None:
    world = World()
    async with world.counter.watch() as changes, anyio.create_task_group() as tasks:

        async def read() -> None:
            with pytest.raises(ClosedError, match="the client is closed"):
                await anext(changes)

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        world.resource.state(ConnectionState.CLOSED)


async def test_a_suspended_session_ends_and_cuts_nothing() -> None:
    world = World()
    async with world.counter.watch() as changes:
        world.resource.state(ConnectionState.SUSPENDED)
        world.resource.state(ConnectionState.CONNECTED)
        index = world.do("add", 1)
        assert await anext(changes) == Counted(1, 0, index)


async def test_closing_ends_the_loop_of_another_task() -> None:
    world = World()
    seen = []
    async with anyio.create_task_group() as tasks:
        changes = world.counter.watch()
        await changes.__aenter__()

        async def read() -> None:
            seen.extend([change async for change in changes])

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        index = world.do("add", 1)
        await anyio.wait_all_tasks_blocked()
        changes.close()
        changes.close()
    assert seen == [Counted(1, 0, index)]
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


async def test_a_cancelled_read_loses_nothing() -> None:
    world = World()
    async with world.counter.watch() as changes:
        with anyio.move_on_after(0.001) as scope:
            await anext(changes)
        assert scope.cancelled_caught
        index = world.do("add", 1)
        assert await anext(changes) == Counted(1, 0, index)


async def test_a_cancelled_reading_of_the_state_begins_anew() -> None:
    world = World()
    async with world.counter.watch() as changes:
        world.resource.cut()
        world.do("add", 3)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(changes)
        world.do("add", 3)
        assert await anext(changes) == Resync(6, changes.revision)


async def test_misuse_is_said_at_once() -> None:
    world = World()
    watch = world.counter.watch()
    with pytest.raises(UsageError, match="is not entered: use `async with"):
        await anext(watch)
    async with watch, anyio.create_task_group() as tasks:
        tasks.start_soon(anext, watch)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(UsageError, match="another task is reading"):
            await anext(watch)
        world.do("add", 1)
    with pytest.raises(UsageError, match="was entered before"):
        async with watch:
            pass


async def test_an_error_on_entering_leaves_nothing_behind() -> None:
    world = World()

    async def refuse(*args: Any, **options: Any) -> Any:
        raise ResourceDeleted("gone")

    world.resource.command = refuse
    with pytest.raises(ResourceDeleted):
        async with world.counter.watch():
            pass
    assert world.resource.listeners == []


async def test_a_lost_session_is_no_error_of_unsubscribing() -> None:
    world = World()
    async with world.counter.watch():

        def lost(*args: Any) -> None:
            raise SessionExpired("too late")

        world.resource.send = lost


async def test_events_of_other_kinds_are_not_for_watches() -> None:
    world = World()
    async with world.counter.watch() as changes:
        world.resource.tell(99, "reached", [1, 2])
        assert not changes._buffer


async def test_a_small_buffer_is_no_hindrance_to_reading_the_state() -> None:
    world = World()

    def change() -> None:
        for _ in range(3):
            world.do("add", 1)

    world.resource.meanwhile = change
    async with world.counter.watch(initial=True, buffer=1) as changes:
        world.resource.meanwhile = lambda: None
        assert isinstance(await anext(changes), Resync)
        while changes._buffer:
            await anext(changes)
        world.do("add", 1)
        assert isinstance(await anext(changes), Counted)
        world.do("add", 1)
        world.do("add", 1)  # for reading it needed room; now it has its bound again
        assert isinstance(await anext(changes), Resync)
