"""Wakeup and Waiter: no wake-up is lost, none is invented, and cancelling costs nothing."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from folkmoot.core.errors import UsageError
from folkmoot.core.wakeup import Waiter, Wakeup

SAFETY_S = 10.0
UVLOOP = {"use_uvloop": True}

pytestmark = pytest.mark.anyio


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", UVLOOP), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    if request.param[1] == UVLOOP:
        pytest.importorskip("uvloop", reason="uvloop is not installed (extra `fast`)")
    return request.param


async def settle() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


class Turns:
    """Counts the turns of the event loop in which another task runs."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await anyio.lowlevel.checkpoint()


# Wakeup


async def test_set_before_wait_is_kept_and_counts_once() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert await wakeup.wait(SAFETY_S) is True
    assert await wakeup.wait(0) is False


async def test_set_during_wait_ends_it() -> None:
    wakeup = Wakeup()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, wakeup.set)
        assert await wakeup.wait(SAFETY_S) is True
        tasks.start_soon(later, wakeup.set)
        assert await wakeup.wait() is True


async def later(call: Callable[[], None]) -> None:
    await settle()
    call()


async def test_many_sets_are_one_wake_up() -> None:
    wakeup = Wakeup()
    woken = 0

    async def loop() -> None:
        nonlocal woken
        while True:
            await wakeup.wait()
            woken += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop)
        await settle()
        for _ in range(100):
            wakeup.set()
        await settle()
        assert woken == 1
        tasks.cancel_scope.cancel()


async def test_a_timeout_ends_it_with_false() -> None:
    wakeup = Wakeup()
    for timeout_s in (0.005, 0.001, 0, -1.0):
        assert await wakeup.wait(timeout_s) is False


async def test_a_long_wait_after_a_short_one_is_not_cut_short() -> None:
    wakeup = Wakeup()
    wakeup.set()
    assert await wakeup.wait(0.005) is True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waker, wakeup, 0.02)
        assert await wakeup.wait(0.005) is False  # arms a timer
        assert await wakeup.wait(SAFETY_S) is True  # which fires in here


async def waker(wakeup: Wakeup, after_s: float) -> None:
    await anyio.sleep(after_s)
    wakeup.set()


async def test_a_short_wait_after_a_long_one_ends_in_time() -> None:
    wakeup = Wakeup()
    wakeup.set()
    await wakeup.wait(3600)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, wakeup.set)
        assert await wakeup.wait(3600) is True  # leaves a timer of an hour
    with anyio.fail_after(SAFETY_S):
        assert await wakeup.wait(0.001) is False


async def test_a_wait_without_a_timeout_ignores_an_earlier_ones() -> None:
    wakeup = Wakeup()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, wakeup.set)
        assert await wakeup.wait(0.005) is True
        tasks.start_soon(waker, wakeup, 0.02)
        assert await wakeup.wait() is True  # not a spurious False at 0.005


async def test_a_busy_loop_lets_others_run() -> None:
    wakeup = Wakeup()
    turns = Turns()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turns.run)
        for _ in range(100):
            wakeup.set()
            assert await wakeup.wait(SAFETY_S) is True
        assert turns.count >= 50
        tasks.cancel_scope.cancel()


async def test_a_cancelled_wait_does_not_take_the_flag_with_it() -> None:
    wakeup = Wakeup()
    with anyio.CancelScope() as scope:
        scope.cancel()
        wakeup.set()
        await wakeup.wait(SAFETY_S)
    assert scope.cancelled_caught
    assert await wakeup.wait(SAFETY_S) is True


async def test_set_and_cancelled_in_the_same_turn_loses_nothing() -> None:
    """However it ends, the wake-up is either told or still there."""
    for order in ("set first", "cancel first"):
        wakeup = Wakeup()
        told: list[bool] = []

        async def wait(wakeup: Wakeup, told: list[bool]) -> None:
            told.append(await wakeup.wait(SAFETY_S))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, wakeup, told)
            await settle()
            if order == "set first":
                wakeup.set()
            tasks.cancel_scope.cancel()
            if order == "cancel first":
                wakeup.set()
        assert told == [True] or await wakeup.wait(0) is True, order


async def test_after_a_cancelled_wait_it_works_on() -> None:
    wakeup = Wakeup()
    with anyio.move_on_after(0.005):
        await wakeup.wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, wakeup.set)
        assert await wakeup.wait(SAFETY_S) is True


async def test_a_second_waiter_is_refused() -> None:
    wakeup = Wakeup()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wakeup.wait, None)
        await settle()
        with pytest.raises(UsageError, match="another task is waiting"):
            await wakeup.wait(SAFETY_S)
        wakeup.set()


async def test_threads_wake_it_and_nothing_is_lost() -> None:
    """Four threads append and set; the loop sleeps only when it has seen everything."""
    wakeup = Wakeup()
    inbox: list[int] = []
    seen = 0

    def work() -> None:
        for i in range(500):
            inbox.append(i)
            wakeup.set_from_thread()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with anyio.fail_after(SAFETY_S):
        while seen < 2000:
            assert await wakeup.wait(SAFETY_S) is True
            seen += len(inbox)
            del inbox[: len(inbox)]
    for thread in threads:
        thread.join()


async def test_a_thread_that_waits_for_the_loop_is_heard_every_time() -> None:
    wakeup = Wakeup()
    heard = threading.Semaphore(0)

    def work() -> None:
        for _ in range(100):
            wakeup.set_from_thread()
            assert heard.acquire(timeout=SAFETY_S)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(100):
        assert await wakeup.wait(SAFETY_S) is True
        heard.release()
    await anyio.to_thread.run_sync(thread.join)


async def test_set_from_thread_works_from_the_loops_own_thread_too() -> None:
    wakeup = Wakeup()
    wakeup.set_from_thread()
    assert await wakeup.wait(SAFETY_S) is True


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_after_the_loop_has_ended_threads_are_ignored(backend: str) -> None:
    async def make() -> Wakeup:
        return Wakeup()

    wakeup = anyio.run(make, backend=backend)
    wakeup.set_from_thread()


def test_outside_of_an_event_loop_it_says_so() -> None:
    with pytest.raises(UsageError, match="no event loop runs in this thread"):
        Wakeup()


def test_timeouts_pass_in_virtual_time() -> None:
    async def body() -> float:
        wakeup = Wakeup()
        assert await wakeup.wait(3600) is False
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    start = clock.current_time()
    assert trio.run(body, clock=clock) - start == 3600


def test_in_a_guest_run_of_trio_on_asyncio_it_is_trios() -> None:
    async def body() -> bool:
        wakeup = Wakeup()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_later, wakeup)
            return await wakeup.wait(SAFETY_S)

    async def trio_later(wakeup: Wakeup) -> None:
        await trio.lowlevel.checkpoint()
        wakeup.set()

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            body, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        return (await done).unwrap()

    assert asyncio.run(host()) is True


def test_many_waits_with_timeouts_make_few_timers() -> None:
    async def body() -> int:
        loop = asyncio.get_running_loop()
        made = 0
        call_at = loop.call_at

        def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            nonlocal made
            made += 1
            return call_at(*args, **kwargs)

        loop.call_at = counted  # type: ignore[assignment, method-assign]
        wakeup = Wakeup()
        for _ in range(200):
            loop.call_soon(wakeup.set)
            assert await wakeup.wait(SAFETY_S)
        return made

    assert asyncio.run(body()) == 1


# Waiter


async def test_a_result_before_the_wait_is_returned_without_a_turn() -> None:
    waiter: Waiter[int] = Waiter()
    turns = Turns()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turns.run)
        waiter.set_result(1)
        assert waiter.done
        assert await waiter.wait() == 1
        assert turns.count == 0
        tasks.cancel_scope.cancel()


async def test_a_result_during_the_wait() -> None:
    waiter: Waiter[int] = Waiter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, lambda: waiter.set_result(1))
        with anyio.fail_after(SAFETY_S):
            assert await waiter.wait() == 1


async def test_an_exception_before_and_during_the_wait() -> None:
    before: Waiter[int] = Waiter()
    before.set_exception(LookupError("before"))
    with pytest.raises(LookupError, match="before"):
        await before.wait()
    during: Waiter[int] = Waiter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, lambda: during.set_exception(LookupError("during")))
        with pytest.raises(LookupError, match="during"):
            await during.wait()


async def test_the_first_completion_decides() -> None:
    waiter: Waiter[int] = Waiter()
    waiter.set_result(1)
    waiter.set_result(2)
    waiter.set_exception(LookupError())
    assert await waiter.wait() == 1
    assert await waiter.wait() == 1
    failed: Waiter[int] = Waiter()
    failed.set_exception(LookupError())
    failed.set_result(1)
    with pytest.raises(LookupError):
        await failed.wait()


async def test_completed_twice_while_it_waits() -> None:
    waiter: Waiter[int] = Waiter()

    def twice() -> None:
        waiter.set_result(1)
        waiter.set_result(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later, twice)
        assert await waiter.wait() == 1


async def test_a_completion_after_cancelling_is_ignored() -> None:
    waiter: Waiter[int] = Waiter()
    with anyio.move_on_after(0.005) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
    assert not waiter.done
    waiter.set_result(1)
    waiter.set_exception(LookupError())
    await settle()


async def test_completed_and_cancelled_in_the_same_turn() -> None:
    for order in ("complete first", "cancel first"):
        waiter: Waiter[int] = Waiter()
        got: list[int] = []

        async def wait(waiter: Waiter[int], got: list[int]) -> None:
            got.append(await waiter.wait())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, waiter, got)
            await settle()
            if order == "complete first":
                waiter.set_result(1)
            tasks.cancel_scope.cancel()
            if order == "cancel first":
                waiter.set_result(1)
        assert waiter.done
        assert got in ([], [1])


async def test_a_waiter_has_one_waiter() -> None:
    waiter: Waiter[int] = Waiter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter.wait)
        await settle()
        with pytest.raises(UsageError, match="another task is waiting"):
            await waiter.wait()
        waiter.set_result(1)


async def test_many_waiters_are_each_given_their_own() -> None:
    waiters: list[Waiter[int]] = [Waiter() for _ in range(100)]
    got: dict[int, int] = {}

    async def wait(i: int) -> None:
        got[i] = await waiters[i].wait()

    async with anyio.create_task_group() as tasks:
        for i in range(100):
            tasks.start_soon(wait, i)
        await settle()
        for i in reversed(range(100)):
            waiters[i].set_result(i)
    assert got == {i: i for i in range(100)}


def test_a_waiter_may_be_made_and_completed_outside_of_a_loop() -> None:
    waiter: Waiter[int] = Waiter()
    waiter.set_result(1)

    async def body() -> int:
        return await waiter.wait()

    run: Callable[[Callable[[], Awaitable[int]]], int] = anyio.run
    assert run(body) == 1
