"""Claims that are given up, and guarded bodies: real clients, a standalone server."""

# ruff: noqa: PT012  # what is raised here is raised by a statement with a body

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from folkmoot.core.errors import (
    LockLost,
    SessionExpired,
)
from folkmoot.primitives import _grant
from folkmoot.primitives.lock import Lock, LockGrant
from tests.primitives.rig import Cluster, holder_and_waiters, lock, rig

pytestmark = pytest.mark.anyio


# Cancellation: no ghost grants (bugs: I4)


async def start(
    cluster: Cluster, tasks: Any, function: Callable[[], Awaitable[Any]]
) -> anyio.CancelScope:
    """Start a task that can be cancelled, and let it come as far as it can."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await function()

    tasks.start_soon(run)
    await cluster.settle()
    return scope


@pytest.mark.parametrize("moment", ["unsent", "unanswered", "waiting", "granted"])
async def test_i4_a_cancelled_acquire_leaves_no_ghost(moment: str) -> None:
    """Acquire given up at the client but queued at the server, at every interleaving."""
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        await lock(b).describe()
        grant = await lock(a).acquire()
        async with anyio.create_task_group() as tasks:
            if moment == "unanswered":
                cluster.server.hold()
            scope = anyio.CancelScope()

            async def wait() -> None:
                with scope:
                    await lock(b).acquire()
                    pytest.fail("it was cancelled")

            tasks.start_soon(wait)
            if moment == "unsent":
                await anyio.lowlevel.checkpoint()
            else:
                await cluster.settle()
            if moment == "granted":  # and the event is on its way
                cluster.server.hold()
                grant._holding._send_release()
                await cluster.settle()
            scope.cancel()
            await cluster.settle()
            cluster.server.release()
        await cluster.settle()
        if moment == "granted":
            assert await holder_and_waiters(lock(c)) == (None, [])
        else:
            assert await holder_and_waiters(lock(c)) == ("a", [])
            await grant.release()
        async with lock(c).hold(timeout=0):
            pass
        async with lock(b).hold(timeout=0):  # and b can have it again
            pass


@pytest.mark.parametrize("what", ["acquire", "hold"])
async def test_i4_a_cancellation_in_any_turn_leaves_the_lock_free(what: str) -> None:
    """From before the command is sent until long after the grant has arrived, turn by turn."""
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        outcomes = set()
        for turns in range(24):
            grant = await lock(a).acquire()
            got: list[LockGrant] = []

            async def hold(got: list[LockGrant] = got) -> None:
                if what == "acquire":
                    got.append(await lock(b).acquire())
                    return
                async with lock(b) as held:
                    got.append(held)
                    await anyio.sleep_forever()

            async with anyio.create_task_group() as tasks:
                scope = await start(cluster, tasks, hold)
                grant._holding._send_release()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
            grant._holding.forget()
            outcomes.add(bool(got))
            if got and what == "acquire":
                await got[0].release()
            await lock(b).describe()  # its withdrawal is behind us
            assert await holder_and_waiters(lock(a)) == (None, [])
        assert outcomes == {False, True}  # or it was no sweep


async def test_a_cancelled_holder_in_waiting_passes_the_lock_on_in_its_withdrawal() -> None:
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        grant = await lock(a).acquire()
        async with anyio.create_task_group() as tasks:
            scope = await start(cluster, tasks, lock(b).acquire)
            won: list[LockGrant] = []

            async def third() -> None:
                won.append(await lock(c).acquire())

            tasks.start_soon(third)
            await cluster.settle()
            cluster.server.hold()
            grant._holding._send_release()
            await cluster.settle()
            index = cluster.server.multiplexer.index
            scope.cancel()
            await cluster.settle()
            assert cluster.server.multiplexer.index == index + 1
            cluster.server.release()
        assert won[0].token == index + 1


async def refuse_once(cluster: Cluster) -> None:
    """Refuse the next commands as an overloaded server does, and no more after them."""
    cluster.server.refusing = True
    while not any(one.connection.refused_from for one in cluster.server.receivers):
        await anyio.lowlevel.checkpoint()
    cluster.server.refusing = False


async def test_a_withdrawal_that_is_refused_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_grant, "RETRY_S", 0)
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        grant = await lock(a).acquire()
        async with anyio.create_task_group() as tasks:
            scope = await start(cluster, tasks, lock(b).acquire)
            scope.cancel()
            await refuse_once(cluster)
        await cluster.settle()
        assert await holder_and_waiters(lock(a)) == ("a", [])
        await grant.release()


async def test_a_wait_ends_with_its_session() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        async with lock(a), anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(SessionExpired):
                    await lock(b).acquire()

            tasks.start_soon(wait)
            await cluster.settle()
            cluster.expire(b)
            await cluster.settle()
            assert await holder_and_waiters(lock(a)) == ("a", [])
        async with lock(b).hold(timeout=1):  # in its new session
            pass


async def test_a_wait_survives_a_new_connection() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        grant = await lock(a).acquire()
        async with anyio.create_task_group() as tasks:
            got: list[LockGrant] = []

            async def wait() -> None:
                got.append(await lock(b).acquire())

            tasks.start_soon(wait)
            await cluster.settle()
            cluster.server.mute = True  # the grant's event is lost with the connection
            grant._holding._send_release()
            await cluster.settle()
            cluster.server.mute = False
            cluster.server.cut()
        assert got[0].held


# Guarded bodies


async def test_i3_the_body_is_cancelled_when_the_session_expires() -> None:
    """Client thinks it still holds the lock after the loss of its session (CURATOR-696)."""
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        caught: list[LockLost] = []

        async def body() -> None:
            with pytest.raises(LockLost) as info:
                async with lock(a) as held:
                    try:
                        await anyio.sleep_forever()
                    finally:
                        with pytest.raises(LockLost, match="expired"):
                            held.check()
                        assert not held.held
            caught.append(info.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(body)
            await cluster.settle()
            cluster.expire(a)
            index = cluster.server.multiplexer.index
        assert (caught[0].cause, caught[0].index) == ("expired", index)
        assert caught[0].applied == "maybe"
        assert (await lock(b).acquire_nowait()).held


async def test_i3_the_body_is_cancelled_at_the_local_deadline_before_the_cluster_grants() -> None:
    """Nothing arrives from the cluster, which has not expired the session yet."""
    async with rig() as cluster:
        a, b = await cluster.client("a", session_timeout_s=0.3), await cluster.client("b")
        granted_at: list[float] = []

        async def rival() -> None:
            async with lock(b):
                granted_at.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            with pytest.raises(LockLost) as info:
                async with lock(a):
                    tasks.start_soon(rival)
                    await cluster.settle()
                    cluster.network.cut("a", "server")
                    await anyio.sleep_forever()
            ended_at = anyio.current_time()
            assert not granted_at
            assert info.value.cause == "expired"
        assert granted_at[0] >= ended_at
        cluster.network.heal()


async def test_a_body_that_never_awaits_raises_at_its_end() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        with pytest.raises(LockLost):
            async with lock(client) as held:
                with anyio.CancelScope(shield=True):
                    cluster.expire(client)
                    await cluster.settle()
                with pytest.raises(LockLost):
                    held.check()


async def test_after_a_pause_check_and_exit_see_the_deadline_before_the_loop_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I1: an owner paused past its expiry; the body runs before the client's loop."""
    async with rig() as cluster:
        client = await cluster.client()
        with pytest.raises(LockLost, match="expired"):
            async with lock(client) as held:
                held.check()
                clock = held._holding._clock
                held._holding._clock = lambda: clock() + 60
                assert not held.held
                with pytest.raises(LockLost, match="expired"):
                    held.check()


async def test_check_in_a_thread() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        with pytest.raises(LockLost):
            async with lock(client) as held:
                await anyio.to_thread.run_sync(held.check)
                held._holding.on_lost("expired", 0)
                with anyio.CancelScope(shield=True), pytest.raises(LockLost):
                    await anyio.to_thread.run_sync(held.check)


async def test_a_body_error_releases_and_goes_on() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        with pytest.raises(ZeroDivisionError):
            async with lock(client):
                raise ZeroDivisionError
        assert await holder_and_waiters(lock(client)) == (None, [])


async def test_lost_and_a_body_error_give_lost_with_the_error_as_its_cause() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        with pytest.raises(LockLost) as info:
            async with lock(client):
                try:
                    cluster.expire(client)
                    await anyio.sleep_forever()
                finally:
                    raise ZeroDivisionError
        assert isinstance(info.value.__cause__, ZeroDivisionError)


async def test_lost_inside_of_a_task_group_gives_lost_alone() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        with pytest.raises(LockLost) as info:
            async with lock(client), anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                tasks.start_soon(anyio.sleep_forever)
                await cluster.settle()
                cluster.expire(client)
        assert info.value.__cause__ is None


async def test_a_cancelled_body_waits_for_its_release_and_stays_cancelled() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = lock(client)
        free_at_once: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def body() -> None:
                try:
                    async with mine as held:
                        await anyio.sleep_forever()
                finally:
                    machine = cluster.server.multiplexer.directory.resources[held.fence[0]].machine
                    free_at_once.append(not machine.holds_grant(held.token))

            scope = await start(cluster, tasks, body)
            scope.cancel()
        assert scope.cancelled_caught
        assert free_at_once == [True]


async def test_lost_and_cancelled_from_outside_stays_cancelled() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        with anyio.CancelScope() as scope:
            async with lock(client) as held:
                with anyio.CancelScope(shield=True):
                    cluster.expire(client)
                    await cluster.settle()
                assert not held.held
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_does_not_take_the_release_back() -> None:
    """asyncio's own cancel() goes through shields; here before the release could be sent."""
    async with rig() as cluster:
        client = await cluster.client()
        mine = lock(client)  # or the resource would be left, and with it the lock
        ends = asyncio.Event()

        async def body() -> None:
            async with mine:
                await ends.wait()

        task = asyncio.create_task(body())
        await cluster.settle()
        cluster.network.cut("a", "server")
        cluster.network.drop("a", "server")
        await cluster.settle()
        ends.set()
        await cluster.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cluster.network.heal()
        await client.wait_ready(timeout=5)
        assert await holder_and_waiters(mine) == (None, [])


async def test_a_release_that_is_refused_ends_with_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_grant, "RETRY_S", 60)
    async with rig() as cluster, anyio.create_task_group() as tasks:
        left: list[str] = []

        async def body(mine: Lock) -> None:
            async with mine as held:
                cluster.server.refusing = True
            left.append(repr(held))

        async with cluster.transient() as client:
            tasks.start_soon(body, lock(client))
            await cluster.settle()
            assert not left
        await cluster.settle()
        assert "released with its session" in left[0]


async def test_a_release_that_crosses_the_end_of_the_session_raises_nothing() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        done: list[str] = []

        async def body() -> None:
            async with lock(a) as held:
                cluster.server.deaf = True  # the release arrives nowhere
            done.append(repr(held))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(body)
            await cluster.settle()
            assert not done
            cluster.server.deaf = False
            cluster.expire(a)
        assert "released with its session" in done[0]
        assert (await lock(b).acquire_nowait()).held


async def test_a_release_that_is_refused_is_sent_again() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        async with anyio.create_task_group() as tasks, lock(client):
            tasks.start_soon(refuse_once, cluster)
            await anyio.lowlevel.checkpoint()
        assert await holder_and_waiters(lock(client)) == (None, [])
