"""The lock's proxy: real clients, a standalone server, no time passing."""

# ruff: noqa: PT012  # what is raised here is raised by a statement with a body

from datetime import timedelta

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus

from folkmoot.core.client import Client
from folkmoot.core.errors import (
    ClosedError,
    ConfigError,
    LockLost,
    LockTimeout,
    NotHeld,
    ResourceTypeError,
    SessionClosed,
    SessionEnded,
    UsageError,
    WouldBlock,
)
from folkmoot.primitives._watch import Resync
from folkmoot.primitives.lock import Granted, Lock, Lost, Released
from tests.primitives.rig import holder_and_waiters, lock, rig

pytestmark = pytest.mark.anyio


async def test_an_uncontended_pair_is_two_entries_and_two_round_trips() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = lock(client)
        async with mine:
            pass  # the resource is open now
        index, frames = cluster.server.multiplexer.index, len(cluster.server.received)
        async with mine.hold(timeout=5) as held:
            assert held.token == index + 1
        assert cluster.server.multiplexer.index == index + 2
        assert len(cluster.server.received) == frames + 2


async def test_a_hand_off_is_one_entry_and_the_queue_is_fair() -> None:
    async with rig() as cluster:
        clients = [await cluster.client(name) for name in "abc"]
        order: list[tuple[str, int]] = []
        gates = [anyio.Event() for _ in clients]

        async def contend(client: Client, gate: anyio.Event) -> None:
            async with lock(client) as held:
                order.append((client.config.name, held.token))
                await gate.wait()

        async with anyio.create_task_group() as tasks:
            for client, gate in zip(clients, gates, strict=True):
                tasks.start_soon(contend, client, gate)
                await cluster.settle()
            assert await holder_and_waiters(lock(clients[0])) == ("a", ["b", "c"])
            for number, gate in enumerate(gates):
                assert [name for name, _ in order] == list("abc")[: number + 1]
                index = cluster.server.multiplexer.index
                gate.set()
                await cluster.settle()
                assert cluster.server.multiplexer.index == index + 1
        tokens = [token for _, token in order]
        assert tokens == sorted(set(tokens))


async def test_many_tasks_of_one_client_exclude_each_other() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        inside = 0
        entered = []

        async def work(number: int) -> None:
            nonlocal inside
            async with lock(client):  # a proxy of its own each time
                inside += 1
                assert inside == 1
                await anyio.lowlevel.checkpoint()
                entered.append(number)
                inside -= 1

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(work, number)
        assert sorted(entered) == list(range(20))
        assert await holder_and_waiters(lock(client)) == (None, [])


async def test_the_same_task_may_not_take_it_twice() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = lock(client)
        async with mine:
            with pytest.raises(UsageError, match="wait for itself"):
                async with mine:
                    pytest.fail("entered twice")
            with pytest.raises(UsageError, match="wait for itself"):
                await lock(client).acquire()  # nor through another proxy
            async with lock(client, "another"):
                pass
        async with mine:
            pass


async def test_nowait_and_a_timeout_of_zero_leave_nothing_behind() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        grant = await lock(a).acquire_nowait()
        with pytest.raises(WouldBlock):
            await lock(b).acquire_nowait()
        with pytest.raises(LockTimeout):
            await lock(b).acquire(timeout=0)
        assert await holder_and_waiters(lock(b)) == ("a", [])
        await grant.release()
        assert (await lock(b).acquire_nowait()).held


async def test_a_timeout_is_decided_in_the_log() -> None:
    async with rig() as cluster:
        a, b = (
            await cluster.client("a", session_timeout_s=100),
            await cluster.client("b", session_timeout_s=100),
        )
        async with lock(a), anyio.create_task_group() as tasks:

            async def impatient() -> None:
                with pytest.raises(TimeoutError) as caught:
                    await lock(b).acquire(timeout=timedelta(seconds=30))
                assert isinstance(caught.value, LockTimeout)

            tasks.start_soon(impatient)
            await cluster.settle()
            index = cluster.server.multiplexer.index
            cluster.server.advance(29_000)
            await cluster.settle()
            assert await holder_and_waiters(lock(a)) == ("a", ["b"])
            cluster.server.advance(1_001)
            await cluster.settle()
            assert await holder_and_waiters(lock(a)) == ("a", [])
            assert cluster.server.multiplexer.index == index + 1  # no withdrawal


@pytest.mark.parametrize("timeout", [-1, float("nan")])
async def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    async with rig() as cluster:
        with pytest.raises(UsageError, match="timeout"):
            await lock(await cluster.client()).acquire(timeout=timeout)


async def test_a_timeout_without_a_connection_names_the_address() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        await cluster.server.stop_listening(1)
        cluster.server.cut()
        await cluster.settle()
        with pytest.raises(LockTimeout, match="server:1"):
            await lock(client).acquire(timeout=0.01)
        assert not client.core.pipeline.outbox


# Operators


async def test_a_broken_lock_cancels_the_body_and_grants_to_the_next() -> None:
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        causes: list[tuple[str, int]] = []

        async def body(task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
            with pytest.raises(LockLost) as info:
                async with lock(a) as held:
                    task_status.started(held.token)
                    await anyio.sleep_forever()
            causes.append((info.value.cause, info.value.index))
            with pytest.raises(NotHeld, match="released"):
                await held.release()

        async with anyio.create_task_group() as tasks:
            token = await tasks.start(body)
            with pytest.raises(NotHeld):
                await lock(c).break_lock(token=token + 1)
            assert await lock(c).break_lock(token=token) == token
            index = cluster.server.multiplexer.index
        assert causes == [("released", index)]
        assert await lock(c).break_lock() is None
        assert (await lock(b).acquire_nowait()).held


async def test_a_break_that_crosses_the_release_is_told() -> None:
    async with rig() as cluster:
        a, c = await cluster.client("a"), await cluster.client("c")
        with pytest.raises(LockLost) as info:
            async with lock(a) as held:
                cluster.server.hold()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(lock(c).break_lock)
                    with anyio.CancelScope(shield=True):
                        await cluster.settle()
                    cluster.server.release()
        assert info.value.cause == "released"
        assert "lost" in repr(held)


async def test_the_lock_delay_holds_back_the_next_after_a_loss_only() -> None:
    async with rig() as cluster:
        a = await cluster.client("a", session_timeout_s=100)
        b = await cluster.client("b", session_timeout_s=100)
        one, two = lock(a, lock_delay=20), lock(b, lock_delay=20)
        async with one:
            pass
        async with two.hold(timeout=0):
            pass
        await one.acquire()
        cluster.server.end_session(a.session_id, "closed")
        with pytest.raises(WouldBlock):
            await two.acquire_nowait()
        assert (await two.describe()).delayed > 19
        cluster.server.advance(20_000)
        assert (await two.acquire_nowait()).held


async def test_release_by_grant_is_idempotent_and_of_this_lock() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = lock(client)
        grant = await mine.acquire()
        assert repr(grant) == f"<LockGrant of the lock 'l', token {grant.token}, held>"
        assert grant.fence == (mine._resource.resource_id, grant.token)
        with pytest.raises(UsageError):
            await lock(client, "other").release(grant)
        await mine.release(grant)
        await grant.release()
        with pytest.raises(NotHeld):
            grant.check()
        with pytest.raises(NotHeld):
            async with grant:
                pytest.fail("entered what was released")
        assert "released" in repr(grant)


async def test_a_grant_guards_a_body_and_an_early_release_ends_that() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        async with await lock(client).acquire() as held:
            with pytest.raises(UsageError):
                async with held:
                    pytest.fail("guards two bodies")
            await held.release()
            cluster.expire(client)
            await cluster.settle()  # and the body goes on, unguarded


async def test_a_hold_is_entered_once_and_left_by_its_task() -> None:
    async with rig() as cluster:
        mine = lock(await cluster.client())
        hold = mine.hold()
        async with hold:
            pass
        with pytest.raises(UsageError, match="entered before"):
            async with hold:
                pytest.fail("entered again")
        with pytest.raises(UsageError, match="did not enter"):
            await mine.__aexit__(None, None, None)


async def test_a_watch_tells_of_every_holder() -> None:
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        async with lock(c).watch(initial=True) as changes:
            first = await anext(changes)
            assert isinstance(first, Resync)
            assert first.snapshot.holder is None
            grant = await lock(a).acquire()
            await grant.release()
            broken = await lock(b).acquire()
            await lock(a).break_lock()
            lost = await lock(a).acquire()
            cluster.expire(a)
            seen = [await anext(changes) for _ in range(6)]
        kinds = [(type(change), getattr(change, "token", 0)) for change in seen]
        assert kinds == [
            (Granted, grant.token),
            (Released, grant.token),
            (Granted, broken.token),
            (Lost, broken.token),
            (Granted, lost.token),
            (Lost, lost.token),
        ]
        assert [change.client for change in seen if isinstance(change, Granted)] == ["a", "b", "a"]
        assert [change.cause for change in seen if isinstance(change, Lost)] == [
            "released",
            "expired",
        ]
        with pytest.raises(UsageError):
            lock(c).watch(buffer=0)


async def test_one_session_may_watch_and_hold() -> None:
    """Both hear of a loss, by different events."""
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        async with lock(a).watch() as changes:
            with pytest.raises(LockLost):
                async with lock(a):
                    await lock(b).break_lock()
                    await anyio.sleep_forever()
            assert [type(await anext(changes)) for _ in range(2)] == [Granted, Lost]


async def test_the_type_and_the_configuration_are_checked() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        await client.resource("n", "counter").command("add", 1)
        with pytest.raises(ResourceTypeError):
            await lock(client, "n").acquire()
        with pytest.raises(ConfigError):
            Lock.configuration(lock_delay=-1)
        assert Lock.configuration(lock_delay=0.5) == {"lock_delay_ms": 500}
        assert Lock.configuration() == {}


async def test_leaving_the_client_ends_bodies_and_waits() -> None:
    async with rig() as cluster, anyio.create_task_group() as tasks:
        outcomes: list[type] = []

        async def hold(mine: Lock) -> None:
            try:
                async with mine:
                    await anyio.sleep_forever()
            except (LockLost, SessionEnded) as error:
                outcomes.append(type(error))

        async with cluster.transient() as client:
            mine = lock(client)
            for _ in range(2):
                tasks.start_soon(hold, mine)
                await cluster.settle()
        await cluster.settle()
        assert set(outcomes) == {LockLost, SessionClosed}
        with pytest.raises(ClosedError):
            await mine.acquire()
