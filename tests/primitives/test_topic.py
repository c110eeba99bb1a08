"""The topic's proxy: real clients, a standalone server, no time passing."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from folkmoot.core.errors import (
    ClosedError,
    ConfigError,
    Fenced,
    NotHeld,
    ResourceDeleted,
    UsageError,
)
from folkmoot.primitives import _subscription
from folkmoot.primitives._subscription import Gap
from folkmoot.primitives._values import DecodeError
from folkmoot.primitives._watch import Resync
from folkmoot.primitives.topic import Consumer, Message, Messages, Topic
from tests.primitives.rig import lock, rig, topic

pytestmark = pytest.mark.anyio


async def read(messages: Messages[str] | Consumer[str], count: int) -> list[Any]:
    """Read so many items: values, and gaps as they are."""
    items = []
    with anyio.fail_after(5):
        for _ in range(count):
            item = await anext(messages)
            items.append(item.value if isinstance(item, Message) else item.snapshot)
    return items


async def test_all_subscribers_get_all_messages_in_one_order() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        await topic(a).publish("before")
        async with topic(a).subscribe() as one, topic(b).subscribe() as two:
            async with topic(b).subscribe() as three:
                revisions = [await topic(x).publish(text) for x, text in ((a, "1"), (b, "2"))]
                assert await read(one, 2) == await read(two, 2) == ["1", "2"]
                first = await anext(three)
                assert isinstance(first, Message)
                assert (first.value, first.revision) == ("1", revisions[0])
                assert one.revision == revisions[1]
            assert await topic(a).subscribers() == ((a.session_id, "a"), (b.session_id, "b"))
            assert (await topic(a).describe()).subscribers == 2
        await topic(a).publish("after")
        assert await topic(a).subscribers() == ()


async def test_since_gives_the_retained_first_and_misses_nothing_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_subscription, "PAGE_MESSAGES", 2)
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client)
        revisions = [await mine.publish(str(number)) for number in range(5)]
        async with mine.subscribe(since=0) as all_of_it:
            async with mine.subscribe(since=revisions[1]) as some:
                await mine.publish("5")
                assert await read(some, 4) == ["2", "3", "4", "5"]
                await mine.publish("6")
                assert await read(some, 1) == ["6"]  # "5" was an event, and on a page
            assert await read(all_of_it, 7) == [str(number) for number in range(7)]
        assert mine.revision > revisions[-1]


async def test_a_gap_is_told_where_the_retention_has_passed() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client, count=2)
        revisions = [await mine.publish(str(number)) for number in range(5)]
        async with mine.subscribe(since=revisions[0]) as messages:
            item = await anext(messages)
            assert item == Resync(Gap(revisions[0], revisions[2]), revisions[2])
            assert await read(messages, 2) == ["3", "4"]
        async with mine.subscribe(since=0) as messages:
            assert await read(messages, 2) == ["3", "4"]  # asked for what there is


@pytest.mark.parametrize("buffer", [1, 2, 3, 100])
async def test_a_slow_reader_loses_nothing_that_is_retained(buffer: int) -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client)
        async with mine.subscribe(buffer=buffer) as messages:
            for number in range(10):
                await mine.publish(str(number))
            assert await read(messages, 4) == ["0", "1", "2", "3"]
            for number in range(10, 20):
                await mine.publish(str(number))
            assert await read(messages, 16) == [str(number) for number in range(4, 20)]
            await mine.publish("live again")
            assert await read(messages, 1) == ["live again"]


async def test_a_slow_reader_is_told_what_the_retention_took() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client, count=3)
        async with mine.subscribe(buffer=2) as messages:
            revisions = [await mine.publish(str(number)) for number in range(8)]
            gap, *rest = await read(messages, 4)
            assert isinstance(gap, Gap)
            assert gap.after < revisions[0]
            assert gap.upto == revisions[4]
            assert rest == ["5", "6", "7"]


@pytest.mark.parametrize("loss", ["expired", "cut", "connection"])
async def test_a_reader_goes_on_where_it_was(loss: str) -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        async with topic(a).subscribe() as messages:
            await topic(b).publish("1")
            await topic(b).publish("2")
            await cluster.settle()
            assert await read(messages, 1) == ["1"]
            if loss == "expired":
                cluster.expire(a)
            elif loss == "cut":
                messages._reader.on_event(0, "resync", None)
            else:
                cluster.server.mute = True
            await topic(b).publish("3") if loss != "connection" else None
            if loss == "connection":
                topic(b)._resource.send("publish", b"\xa13").abandon()
                await cluster.settle()
                cluster.server.mute = False
                cluster.server.cut()
            assert await read(messages, 2) == ["2", "3"]
            await topic(b).publish("4")
            assert await read(messages, 1) == ["4"]


async def test_a_cancelled_read_loses_nothing() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client)
        async with mine.subscribe() as messages:
            got: list[Any] = []
            for turns in range(30):
                async with anyio.create_task_group() as tasks:

                    async def consume() -> None:
                        while True:
                            got.extend(await read(messages, 1))

                    tasks.start_soon(consume)
                    await mine.publish(str(turns))
                    for _ in range(turns % 10):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
            got.extend(await read(messages, 30 - len(got)) if len(got) < 30 else [])
        assert got == [str(number) for number in range(30)]


async def test_a_read_that_is_cancelled_while_it_catches_up_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_subscription, "PAGE_MESSAGES", 2)
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client)
        for number in range(12):
            await mine.publish(str(number))
        got: list[Any] = []
        async with mine.subscribe(since=0) as messages:

            async def consume() -> None:
                while True:
                    got.extend(await read(messages, 1))

            turns = 0
            while len(got) < 12:
                turns += 1
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(consume)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
        assert got == [str(number) for number in range(12)]


async def test_the_end_of_topic_client_and_reader() -> None:
    async with rig() as cluster:
        a = await cluster.client("a")
        async with topic(a).subscribe() as messages, anyio.create_task_group() as tasks:

            async def read_to_the_end() -> None:
                with pytest.raises(StopAsyncIteration):
                    await anext(messages)

            tasks.start_soon(read_to_the_end)
            await cluster.settle()
            with pytest.raises(UsageError, match="another task"):
                await anext(messages)
            with pytest.raises(UsageError, match="entered before"):
                async with messages:
                    pytest.fail("entered twice")
            messages.close()
        with pytest.raises(UsageError):
            await anext(topic(a).subscribe())
        async with topic(a).subscribe() as messages:
            messages._reader.on_event(9, "deleted", None)
            with pytest.raises(ResourceDeleted):
                await anext(messages)
        async with cluster.transient("t") as client:
            messages = topic(client).subscribe()
            await messages.__aenter__()
        with pytest.raises(ClosedError):
            await anext(messages)


async def test_a_message_of_another_type_is_an_error_and_reading_goes_on() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        mine = topic(client)
        async with mine.subscribe() as messages:
            await client.resource("t", "topic").command("publish", b"\xc1")
            await mine.publish("fine")
            with pytest.raises(DecodeError):
                await anext(messages)
            assert await read(messages, 1) == ["fine"]


async def test_a_fenced_publish_is_refused_once_the_grant_has_ended() -> None:
    """I1: the token of a lock that has passed on."""
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        grant = await lock(a).acquire()
        await topic(a).publish("held", fence=grant)
        await lock(b).break_lock()
        with pytest.raises(Fenced):
            await topic(a).publish("late", fence=grant)
        async with topic(a).subscribe(since=0) as messages:
            assert await read(messages, 1) == ["held"]


# Cursors


async def test_a_cursor_goes_on_from_what_was_acknowledged() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        for number in range(4):
            await topic(a).publish(str(number))
        async with topic(a).cursor("c", since=0) as messages:
            assert await read(messages, 3) == ["0", "1", "2"]  # asking acknowledged "0" and "1"
        async with topic(b).cursor("c") as messages:
            assert await read(messages, 2) == ["2", "3"]
        async with topic(b).cursor("c", auto_ack=False) as messages:
            delivery = await anext(messages)
            assert isinstance(delivery, Message)
            assert delivery.value == "3"
            await delivery.ack()
        (cursor,) = (await topic(a).describe()).cursors
        assert (cursor.name, cursor.acknowledged, cursor.session) == ("c", delivery.revision, 0)


async def test_without_auto_ack_nothing_is_acknowledged_by_reading() -> None:
    async with rig() as cluster:
        mine = topic(await cluster.client())
        await mine.publish("0")
        await mine.publish("1")
        for _ in range(2):
            async with mine.cursor("c", since=0, auto_ack=False) as messages:
                assert await read(messages, 2) == ["0", "1"]


async def test_a_new_cursor_begins_now() -> None:
    async with rig() as cluster:
        mine = topic(await cluster.client())
        await mine.publish("before")
        async with mine.cursor("c") as messages:
            await mine.publish("after")
            assert await read(messages, 1) == ["after"]


async def test_a_burst_is_acknowledged_to_its_end() -> None:
    """Acknowledgements under way cover one another; none is left behind."""
    async with rig() as cluster:
        mine = topic(await cluster.client())
        async with mine.cursor("c") as messages:
            revisions = [await mine.publish(str(number)) for number in range(50)]
            index = cluster.server.multiplexer.index
            await read(messages, 50)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, messages, 1)  # it waits, so all before is dealt with
                await cluster.settle()
                (cursor,) = (await mine.describe()).cursors
                assert cursor.acknowledged == revisions[-1]
                tasks.cancel_scope.cancel()
            assert cluster.server.multiplexer.index - index < 10


async def test_a_second_consumer_stands_by() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        got: list[Any] = []

        async def standby() -> None:
            async with topic(b).cursor("c") as messages:
                got.extend(await read(messages, 2))

        async with anyio.create_task_group() as tasks, topic(a).cursor("c") as messages:
            tasks.start_soon(standby)
            await cluster.settle()
            await topic(a).publish("1")
            await topic(a).publish("2")
            assert await read(messages, 1) == ["1"]
            (cursor,) = (await topic(a).describe()).cursors
            assert (cursor.client, cursor.waiting) == ("a", 1)
            with pytest.raises(UsageError, match="wait for itself"):
                await topic(a).cursor("c").__aenter__()
            token = messages.token
            assert messages.fence == (messages._resource.resource_id, token)
        assert got == ["1", "2"]


async def test_a_cursor_whose_session_was_lost_is_claimed_anew_and_late_acks_are_refused() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        async with topic(a).cursor("c", auto_ack=False) as messages:
            for number in range(3):
                await topic(b).publish(str(number))
            first, second = await anext(messages), await anext(messages)
            assert isinstance(first, Message)
            await first.ack()
            cluster.expire(a)
            await cluster.settle()
            assert await read(messages, 2) == ["1", "2"]  # at least once
            assert isinstance(second, Message)
            with pytest.raises(NotHeld):
                await second.ack()


async def test_a_wait_for_a_message_ends_when_the_cursor_is_lost_or_deleted() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        got: list[Any] = []

        async def consume() -> None:
            async with topic(a).cursor("c") as messages:
                got.extend(await read(messages, 1))
                with pytest.raises(ResourceDeleted):
                    await anext(messages)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            await cluster.settle()
            cluster.expire(a)
            await cluster.settle()
            await topic(b).publish("in the new session")
            await cluster.settle()
            assert await topic(b).delete_cursor("c")
            assert not await topic(b).delete_cursor("c")
        assert got == ["in the new session"]
        with pytest.raises(UsageError):
            topic(a).cursor("")


def test_the_retention_is_checked_where_it_is_written() -> None:
    made = Topic.configuration(count=5, bytes=100, age=1.5)
    assert made == {"count": 5, "bytes": 100, "age_ms": 1500}
    assert Topic.configuration() == {}
    with pytest.raises(ConfigError):
        Topic.configuration(age=0)


async def test_a_consumer_that_was_away_gets_all_that_was_published_meanwhile() -> None:
    async with rig() as cluster:
        here = topic(await cluster.client("a"), count=2)
        there = topic(await cluster.client("b"), count=2)
        async with here.cursor("c") as messages:
            await there.publish("before")
            assert await read(messages, 1) == ["before"]
        revisions = [await there.publish(str(number)) for number in range(20)]
        found = await there.describe()
        assert (found.count_max, found.retained) == (2, 21)  # also the one not acknowledged
        async with there.cursor("c") as messages:
            assert await read(messages, 21) == ["before", *map(str, range(20))]
            await messages.acknowledge(revisions[16])
            assert (await there.describe()).retained == 3
            await messages.acknowledge(revisions[19])
            found = await there.describe()
            assert (found.retained, found.floor) == (2, revisions[17])


async def test_a_consumer_is_told_what_the_bytes_took_while_it_was_away() -> None:
    async with rig() as cluster:
        mine = topic(await cluster.client(), count=2, bytes=8)
        async with mine.cursor("c", auto_ack=False) as messages:
            first = await mine.publish("0")
            assert await read(messages, 1) == ["0"]
            await messages.acknowledge(first)
        revisions = [await mine.publish(str(number)) for number in range(1, 8)]  # 2 bytes each
        async with mine.cursor("c") as messages:
            gap, *rest = await read(messages, 5)
            assert gap == Gap(first, revisions[2])
            assert rest == ["4", "5", "6", "7"]


async def test_the_slowest_cursor_holds_until_it_is_deleted() -> None:
    async with rig() as cluster:
        mine = topic(await cluster.client(), count=2)
        for name in ("quick", "slow"):
            async with mine.cursor(name):
                pass
        revisions = [await mine.publish(str(number)) for number in range(6)]
        async with mine.cursor("quick") as messages:
            assert await read(messages, 6) == [str(number) for number in range(6)]
            await messages.acknowledge(revisions[5])
        found = await mine.describe()
        assert found.retained == 6
        assert found.cursors[0].name == "slow"
        assert await mine.delete_cursor("slow")
        assert (await mine.describe()).retained == 2
