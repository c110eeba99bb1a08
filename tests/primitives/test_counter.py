"""The counter as a program uses it: a real client, real frames, a server without consensus."""

from __future__ import annotations

import anyio
import pytest

from folkmoot.core.errors import (
    ClosedError,
    ConfigError,
    OperationTimeout,
    OutOfBounds,
    ResourceDeleted,
    UsageError,
)
from folkmoot.primitives.counter import Counted, Counter, CounterMachine, Reading, Resync
from tests.primitives.fake_resource import resource_of
from tests.primitives.live import Live, live

pytestmark = pytest.mark.anyio


async def test_counting() -> None:
    async with live() as it:
        n = it.counter()
        assert await n.get() == 0
        assert await n.add() == 1
        assert await n.add(5) == 6
        assert await n.get_and_add(-2) == 6
        before = n.revision
        assert await n.set(40) == n.revision > before
        assert await n.compare_and_set(40, 41)
        assert not await n.compare_and_set(40, 42)
        assert await n.get(consistency="sequential", at_least=n.revision) == 41
        assert repr(n) == "<Counter 'n'>"


async def test_many_clients_count_right_over_lost_connections() -> None:
    async with live(3) as it:

        async def count(client: int) -> None:
            for number in range(20):
                if number % 7 == client:
                    it.network.drop(f"c{client}", "server")
                await it.counter(client).add()

        async with anyio.create_task_group() as tasks:
            for client in range(3):
                tasks.start_soon(count, client)
        assert await it.counter().get() == 60


async def test_bounds() -> None:
    async with live(2) as it:
        seats = it.counter(0, (0, 2))
        assert [await seats.add(), await seats.add()] == [1, 2]
        with pytest.raises(OutOfBounds, match="3 is not within 0 to 2: it stays 2") as caught:
            await seats.add()
        assert caught.value.data == 2
        with pytest.raises(OutOfBounds):
            await it.counter(1, (0, 2)).set(-1)
        assert await seats.get() == 2
        with pytest.raises(OutOfBounds, match="no value lies between 3 and 2"):
            await seats.wait_for(at_least=3)


async def test_a_counter_in_use_with_other_bounds_is_said_so() -> None:
    async with live(2) as it:
        await it.counter(0, (0, 2)).add()
        with pytest.warns(UserWarning, match="low|high|config"):
            await it.counter(1).add()


def test_wrong_bounds_are_refused_at_once() -> None:
    assert Counter.configuration() == Counter.configuration((None, None)) == {}
    assert Counter.configuration((0, None)) == {"low": 0}
    with pytest.raises(ConfigError, match="the lower one comes first"):
        Counter.configuration((2, 1))


async def test_only_int_is_counted() -> None:
    n = Counter(resource_of(CounterMachine))
    for wrong in (1.0, True, "1", None):
        with pytest.raises(UsageError, match="a counter takes int"):
            await n.add(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="wait for what"):
        await n.wait_for()
    with pytest.raises(UsageError, match="a buffer of 0"):
        n.watch(buffer=0)


async def test_waiting_until_the_value_is_there() -> None:
    async with live(2) as it:
        n = it.counter()
        await n.add(3)
        at_once = await n.wait_for(at_least=1, at_most=5)
        assert at_once.value == 3
        assert at_once.revision > n.revision
        found: list[Reading] = []

        async def wait(target: int) -> None:
            found.append(await it.counter().wait_for(at_least=target))

        async with anyio.create_task_group() as tasks:
            for target in (5, 7, 7):
                tasks.start_soon(wait, target)
            await anyio.wait_all_tasks_blocked()
            described = await it.counter(1).describe()
            assert described.waiters == 3
            assert sorted(line[1:4] for line in described.waiting) == [
                ("client-0", 5, None),
                ("client-0", 7, None),
                ("client-0", 7, None),
            ]
            other = it.counter(1)
            await other.add(2)
            five = other.revision
            await other.add(2)
        assert found == [Reading(5, five), Reading(7, other.revision), Reading(7, other.revision)]
        assert n._resource.listeners == {}


async def waiters(it: Live) -> int:
    return (await it.counter(1).describe()).waiters


async def test_who_stops_waiting_is_withdrawn_from_the_log() -> None:
    async with live(2) as it:
        n = it.counter()
        with pytest.raises(OperationTimeout, match="<Counter 'n'> was not within the timeout"):
            await n.wait_for(at_most=-1, timeout=0.01)
        await n.get()
        await n.add(0)  # behind the withdrawal
        assert await waiters(it) == 0
        with anyio.move_on_after(0.01):
            await n.wait_for(at_most=-1)
        await n.add(0)
        assert await waiters(it) == 0
        assert n._resource.listeners == {}


async def test_waiting_goes_on_under_the_next_session() -> None:
    async with live(2) as it:
        found: list[Reading] = []

        async def wait() -> None:
            found.append(await it.counter().wait_for(at_least=5))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not await waiters(it):
                await anyio.wait_all_tasks_blocked()
            before = it.clients[0].session_id
            it.lose_session()
            assert await waiters(it) == 0
            while not await waiters(it):
                await anyio.wait_all_tasks_blocked()
            assert it.clients[0].session_id != before
            await it.counter(1).add(5)
        assert [one.value for one in found] == [5]


async def test_the_end_of_the_counter_ends_the_waiting() -> None:
    async with live(2) as it, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(ResourceDeleted):
                await it.counter().wait_for(at_least=5)

        tasks.start_soon(wait)
        while not await waiters(it):
            await anyio.wait_all_tasks_blocked()
        row, _ = await it.clients[1].directory.query("find", "n")
        await it.clients[1].directory.command("delete", row[1])


async def test_a_closed_client_ends_the_waiting() -> None:
    async with anyio.create_task_group() as tasks, live() as it:
        n = it.counter()

        async def wait() -> None:
            with pytest.raises(ClosedError):
                await n.wait_for(at_least=5)

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
    assert n._resource.listeners == {}


@pytest.mark.parametrize("gap", [0, 1])
async def test_an_answer_that_crosses_the_loss_of_the_session_is_asked_for_anew(gap: int) -> None:
    """gap 0: the session is lost before `wait_for` is sent; 1: before its answer comes."""
    resource = resource_of(CounterMachine)
    n = Counter(resource)
    resource.harness.command(9, "add", 5)
    left = [gap]

    def meanwhile() -> None:
        if left and left[0] == 0:
            left.clear()
            resource.lose_session()
        elif left:
            left[0] -= 1

    resource.meanwhile = meanwhile
    assert (await n.wait_for(at_least=5)).value == 5
    assert resource.issued.count("wait_for") == 2
    assert not resource.harness.machine._waiters


async def test_an_event_that_arrives_before_its_waiter_runs_is_not_lost() -> None:
    resource = resource_of(CounterMachine)
    steps = iter([0, 5])  # before the command takes effect, and before its answer is taken

    def meanwhile() -> None:
        resource.harness.command(9, "add", next(steps))
        resource.deliver()

    resource.meanwhile = meanwhile
    assert await Counter(resource).wait_for(at_least=5) == Reading(5, 3)
    assert resource.issued == ["wait_for"]  # there is nothing to withdraw


async def test_a_watch_tells_all_changes() -> None:
    async with live(2) as it:
        mine, other = it.counter(0), it.counter(1)
        await mine.set(3)
        async with mine.watch(initial=True) as changes:
            first = await anext(changes)
            assert first == Resync(3, changes.revision)
            await other.add(4)
            assert await anext(changes) == Counted(7, 3, other.revision)
            await other.set(7)  # no change
            await mine.add(1)
            assert await anext(changes) == Counted(8, 7, mine.revision)
            found = await other.describe()
            assert (found.value, found.watchers) == (8, 1)
            assert found.watched_by == ((it.clients[0].session_id, "client-0"),)
            it.lose_session()
            assert await anext(changes) == Resync(8, changes.revision)
