"""The map as a program uses it: a real client, real frames, a server without consensus."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import attrs
import pytest

from folkmoot.core.config import LimitsConfig
from folkmoot.core.errors import (
    BadCommand,
    ClosedError,
    ConditionFailed,
    Fenced,
    LimitExceeded,
    OperationTimeout,
    ResourceDeleted,
    ResourceTypeError,
    TooLarge,
    UsageError,
)
from folkmoot.primitives import map_machine
from folkmoot.primitives._values import DecodeError
from folkmoot.primitives.counter import Counter
from folkmoot.primitives.map import Changed, Deleted, Entry, Map, MapMachine, Resync
from tests.primitives.fake_resource import resource_of
from tests.primitives.live import live

pytestmark = pytest.mark.anyio


@attrs.frozen
class User:
    name: str
    age: int = 0


async def test_set_and_get_and_everything_about_one_key() -> None:
    async with live() as it:
        users: Map[User] = it.map(type=User)
        first = await users.set("ann", User("Ann", 7))
        assert await users.get("ann") == User("Ann", 7)
        assert await users.get("bob") is None
        assert await users.get("bob", "nobody") == "nobody"
        assert await users.entry("ann") == Entry(User("Ann", 7), first, None)
        assert await users.entry("bob") is None
        assert await users.contains("ann")
        assert not await users.contains("bob")
        assert await users.size() == 1
        second = await users.set("ann", User("Ann", 8), if_version=first)
        assert second > first
        assert users.revision == second
        with pytest.raises(ConditionFailed, match=f"has version {second}, not {first}") as caught:
            await users.set("ann", User("Ann", 9), if_version=first)
        assert caught.value.data == second
        assert await users.create("ann", User("?")) is None
        third = await users.create("bob", User("Bob"))
        assert await users.replace("eve", User("Eve")) is None
        assert await users.replace("bob", User("Rob"), if_value=User("Eve")) is None
        assert await users.replace("bob", User("Rob"), if_value=User("Bob")) == users.revision
        assert third is not None
        assert users.revision > third
        assert await users.pop("bob") == User("Rob")
        assert await users.pop("bob") is None
        assert await users.pop("bob", 5) == 5
        with pytest.raises(ConditionFailed):
            await users.delete("ann", if_version=first)
        assert await users.delete("ann", if_version=second) == users.revision
        assert await users.delete("ann") is None


async def test_many_keys() -> None:
    async with live() as it:
        ages: Map[int] = it.map(type=int)
        revision = await ages.set_many({"b": 2, "a": 1, "ab": 12, "c": 3})
        assert [await ages.get(key) for key in ("a", "b")] == [1, 2]
        assert await ages.get_many(["c", "nobody", "a"]) == {"c": 3, "a": 1}
        assert await ages.get_many([]) == {}
        assert await ages.keys() == ["a", "ab", "b", "c"]
        assert await ages.values() == [1, 12, 2, 3]
        assert await ages.items(prefix="a") == [("a", 1), ("ab", 12)]
        assert await ages.items(start="ab", stop="c") == [("ab", 12), ("b", 2)]
        assert await ages.keys(limit=2) == ["a", "ab"]
        assert await ages.keys(start="ab\0", limit=2) == ["b", "c"]
        found = await ages.snapshot(prefix="b")
        assert (found.items, found.revision) == ({"b": 2}, revision)
        cleared = await ages.clear()
        assert cleared > revision
        assert await ages.keys() == []


async def test_times_to_live() -> None:
    async with live() as it:
        m = it.map()
        await m.set("a", 1, ttl=timedelta(seconds=2))
        await m.set("b", 1, ttl=2)
        await m.set("c", 1)
        entry = await m.entry("a")
        assert entry is not None
        assert entry.ttl == pytest.approx(2, abs=1)
        await m.touch("b", 1000)
        assert await m.touch("c") == m.revision
        assert await m.touch("nobody", 5) is None
        async with m.watch() as changes:
            it.server.advance(3000)
            change = await anext(changes)
            assert change == Deleted("a", 1, "expired", change.revision)
        assert await m.keys() == ["b", "c"]
        for ttl in (0, -1, float("nan"), float("inf"), timedelta(0)):
            with pytest.raises(UsageError, match=r"ttl=.*above zero"):
                await m.set("a", 1, ttl=ttl)
        with pytest.raises(BadCommand, match="time to live"):
            await m.set("a", 1, ttl=1e15)
        assert not await m.contains("a")


async def test_modify_counts_right_under_contention_and_keeps_the_time_to_live() -> None:
    async with live(3) as it:
        await it.map().set("n", 0, ttl=1000)

        async def count(client: int) -> None:
            for _ in range(5):
                await it.map(client).modify("n", lambda n: (n or 0) + 1)

        async with anyio.create_task_group() as tasks:
            for client in range(3):
                tasks.start_soon(count, client)
        entry = await it.map().entry("n")
        assert entry is not None
        assert entry.value == 15
        assert entry.ttl is not None
        assert await it.map().modify("new", lambda old: [old]) == [None]


async def test_modify_gives_up_on_a_key_that_others_keep_changing() -> None:
    async with live() as it:
        m = it.map()
        seen: list[Any] = []

        def interfere(value: Any) -> Any:
            m._resource.send("set", "k", b"\x01")
            seen.append(value)
            return 7

        with pytest.raises(ConditionFailed, match="key 'k': others changed it on 3 attempts"):
            await m.modify("k", interfere, attempts=3)
        assert seen == [None, 1, 1]
        assert await m.get("k") == 1


async def test_what_the_function_of_modify_raises_comes_out_and_nothing_changes() -> None:
    async with live() as it:
        with pytest.raises(ZeroDivisionError):
            await it.map().modify("k", lambda _: 1 // 0)
        assert not await it.map().contains("k")


async def test_too_large_or_wrong_is_refused_before_anything_is_sent() -> None:
    limits = LimitsConfig(key_bytes_max=10, value_bytes_max=100)
    async with live(limits=limits) as it:
        m = it.map()
        with pytest.raises(TooLarge, match=r"key 'é{6}'\.\.\. has 12 bytes; 10 are allowed"):
            await m.get("é" * 6)
        await m.set("é" * 5, 1)
        with pytest.raises(TooLarge, match="map 'm', key 'k': a value of 103 bytes; 100 are"):
            await m.set("k", "x" * 101)
        with pytest.raises(UsageError, match="map 'm', key 'k': a value of type set is none for"):
            await m.set("k", {1})
        with pytest.raises(UsageError, match="key 5 is a int, not a str"):
            await m.set(5, 1)  # type: ignore[arg-type]
        with pytest.raises(TooLarge, match=r"20000 values .* do not fit into one frame"):
            await m.set_many({str(number): "x" * 40 for number in range(20_000)})
        with pytest.raises(UsageError, match="consistency='strong': there are 'linearizable'"):
            await m.get("k", consistency="strong")
        with pytest.raises(UsageError, match="a listing of 0 keys"):
            await m.keys(limit=0)
        with pytest.raises(UsageError, match="a key or a prefix, not both"):
            m.watch(key="a", prefix="b")
        with pytest.raises(UsageError, match="a buffer of 0"):
            m.watch(buffer=0)
        assert it.server.multiplexer.index == m.revision


async def test_a_value_that_the_codec_does_not_know_is_said_to_be_so() -> None:
    async with live() as it:
        await it.map(codec="bytes").set("k", b"\xc1")
        with pytest.raises(DecodeError, match="map 'm', key 'k': 1 bytes are no value of codec"):
            await it.map().get("k")
        users = it.map(type=User)
        await it.map().set("k", {"name": 5})
        with pytest.raises(DecodeError, match=r"msgpack of User: .* expected str @ \$.name"):
            await users.get("k")
        async with users.watch() as changes:
            await it.map().set("k", 5)
            await it.map().set("k", {"name": "Ann"})
            await it.map().set("k", {"name": "Bob"})
            for _ in range(2):  # as a value, then as the value before
                with pytest.raises(DecodeError):
                    await anext(changes)
            change = await anext(changes)
            assert isinstance(change, Changed)
            assert change.value == User("Bob")
        with pytest.raises(DecodeError):
            await it.map(type=int).pop("k")
        assert not await users.contains("k")  # it was applied


async def test_a_listing_longer_than_a_page_and_one_that_must_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(map_machine, "PAGE_KEYS_MAX", 7)
    async with live(2) as it:
        m = it.map()
        await m.set_many({f"{number:03}": number for number in range(50)})
        assert await m.items() == [(f"{number:03}", number) for number in range(50)]
        assert await m.keys(limit=20) == [f"{number:03}" for number in range(20)]
        assert m._resource.listeners == {}
        described = await m.describe()
        assert described.watchers == 0  # the subscription was given back
        it.server.hold()
        with pytest.raises(OperationTimeout):
            await m.items(timeout=0.02)
        it.server.release()
        assert len(await m.items()) == 50


async def test_a_listing_of_many_pages_ends_within_its_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(map_machine, "PAGE_KEYS_MAX", 1)
    resource = resource_of(MapMachine)
    resource.harness.command(9, "set_many", {"a": b"\x01", "b": b"\x02"})
    resource.command = lambda *args: anyio.sleep_forever()
    with pytest.raises(OperationTimeout, match="<Map 'fake' of msgpack> was not listed"):
        await Map(resource).items(timeout=0.01)
    assert resource.listeners == []


async def test_values_that_are_too_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_machine, "PAGE_BYTES_MAX", 10)
    async with live() as it:
        m = it.map(codec="bytes")
        await m.set_many({"a": b"12345678", "b": b"12345678"})
        with pytest.raises(LimitExceeded, match="of these 2 keys"):
            await m.get_many(["a", "b"])
        assert await m.items() == [("a", b"12345678"), ("b", b"12345678")]


async def test_a_read_sees_at_least_a_revision_of_another_process() -> None:
    async with live(2) as it:
        revision = await it.map(0).set("k", 1)
        for consistency in ("linearizable", "lease", "sequential"):
            found = await it.map(1).get("k", consistency=consistency, at_least=revision)
            assert found == 1


async def test_a_write_is_refused_once_its_fence_has_ended() -> None:
    async with live() as it:
        m = it.map()
        lock = it.clients[0].resource("guard", "lock")
        token = await lock.command("acquire", 1, None)
        grant = SimpleNamespace(fence=(lock.resource_id, token))
        await m.set("k", 1, fence=grant)
        await lock.command("release", token)
        with pytest.raises(Fenced):
            await m.set("k", 2, fence=grant)
        with pytest.raises(Fenced):
            await m.modify("k", lambda n: 3, fence=grant)
        assert await m.get("k") == 1


async def test_a_watch_tells_what_all_clients_do_in_the_order_of_the_log() -> None:
    async with live(2) as it:
        mine, other = it.map(0), it.map(1)
        async with mine.watch() as changes:
            first = await other.set("a", 1)
            second = await mine.set("a", 2)
            assert await other.pop("a") == 2
            third = other.revision
            assert [await anext(changes) for _ in range(3)] == [
                Changed("a", 1, None, first),
                Changed("a", 2, 1, second),
                Deleted("a", 2, "removed", third),
            ]
            assert changes.revision < first


async def test_one_event_on_the_wire_serves_a_hundred_watches_of_a_key() -> None:
    async with live(2) as it:
        told: list[tuple[int, str, Any]] = []
        resource = it.clients[0].resource("m", "map")

        class Wiretap:
            def on_event(self, *event: Any) -> None:
                told.append(event)

            def on_state(self, *state: Any) -> None: ...

        resource.listen(Wiretap())
        proxies = [it.map(0) for _ in range(100)]
        async with anyio.create_task_group() as tasks:
            entered = [proxy.watch(key="k") for proxy in proxies]
            for watch in entered:
                tasks.start_soon(watch.__aenter__)
        revision = await it.map(1).set("k", 1)
        await it.map(1).set("other", 1)
        for watch in entered:
            assert await anext(watch) == Changed("k", 1, None, revision)
        assert told == [(revision, "set", ["k", b"\x01", None])]
        for watch in entered[1:]:
            watch.close()
        second = await it.map(1).set("k", 2)
        assert await anext(entered[0]) == Changed("k", 2, 1, second)
        entered[0].close()
        await proxies[0].set("other", 2)  # behind what the closing has sent
        await it.map(1).set("k", 3)
        assert len(told) == 2
        assert (await it.map(1).describe()).watchers == 0


async def test_a_watch_goes_on_with_a_resync_after_the_session_was_lost() -> None:
    async with live(2) as it:
        mine, other = it.map(0), it.map(1)
        await mine.set("a", 1)
        async with mine.watch(prefix="a") as changes:
            await other.set("ab", 2)
            it.lose_session()
            lost = await other.set("ac", 3)
            await other.set("b", 3)
            change = await anext(changes)
            while not isinstance(change, Resync):  # it may have had the first before the loss
                assert change.key == "ab"
                change = await anext(changes)
            assert change.snapshot == {"a": 1, "ab": 2, "ac": 3}
            assert change.revision >= lost
            after = await other.set("a", 4)
            assert await anext(changes) == Changed("a", 4, 1, after)


async def test_nothing_is_missed_or_repeated_over_lost_connections() -> None:
    async with live(2) as it:
        mine, other = it.map(0), it.map(1)
        async with mine.watch() as changes:
            wanted = []
            for number in range(30):
                if number % 3 == 0:
                    it.network.drop("c0", "server")
                old = number - 1 if number else None
                wanted.append(Changed("k", number, old, await other.set("k", number)))
            assert [await anext(changes) for _ in wanted] == wanted


async def test_a_session_that_does_not_read_its_events_gets_a_resync() -> None:
    limits = LimitsConfig(session_events_max=16)
    async with live(2, server_limits=limits) as it, it.map(0).watch() as changes:
        it.network.cut("c0", "server")
        for number in range(20):
            await it.map(1).set(str(number), number)
        it.network.heal()
        change = await anext(changes)
        while not isinstance(change, Resync):
            change = await anext(changes)
        assert len(change.snapshot) == 20
        after = await it.map(1).set("k", 4)
        assert await anext(changes) == Changed("k", 4, None, after)


async def test_the_end_of_the_map_ends_its_watches_and_its_proxies() -> None:
    async with live(2) as it:
        mine = it.map(0)
        await mine.set("a", 1)
        async with mine.watch() as changes:
            last = await mine.set("a", 2)
            row, _ = await it.clients[1].directory.query("find", "m")
            await it.clients[1].directory.command("delete", row[1])
            assert await anext(changes) == Changed("a", 2, 1, last)
            for _ in range(2):
                with pytest.raises(ResourceDeleted, match="the resource was deleted"):
                    await anext(changes)
        with pytest.raises(ResourceDeleted):
            await mine.get("a")
        anew = it.map(0)
        assert await anew.get("a") is None
        await anew.set("a", 3)
        assert await it.map(1).get("a") == 3


async def test_a_closed_client_ends_the_watch() -> None:
    async with live(1) as it:
        m = it.map()
        watch = m.watch(initial=True)
        await watch.__aenter__()
        assert isinstance(await anext(watch), Resync)
    with pytest.raises(ClosedError, match="the client is closed"):
        await anext(watch)
    watch.close()
    with pytest.raises(ClosedError):
        await m.get("a")


async def test_a_name_of_another_type_is_an_error_that_names_both() -> None:
    async with live() as it:
        await it.map().set("a", 1)
        counter = Counter(it.clients[0].resource("m", "counter"))
        with pytest.raises(ResourceTypeError, match="'m' is a map, not a counter"):
            await counter.add()
        with pytest.raises(ResourceTypeError, match="'m' is a map, not a counter"):
            async with counter.watch():
                pass
        assert counter._resource.listeners == {}


async def test_describe_and_repr() -> None:
    async with live(2) as it:
        users = it.map(0, User)
        assert repr(users) == "<Map 'm' of msgpack of User>"
        await users.set("a", User("A"), ttl=5)
        async with users.watch() as changes, users.watch(key="a") as narrow:
            assert repr(changes) == "<watch of map 'm': open>"
            assert repr(narrow) == "<watch of map 'm' key='a': open>"
            found = await it.map(1).describe()
            assert (found.size, found.expiring, found.watchers) == (1, 1, 1)
            assert found.watched_by == ((it.clients[0].session_id, "client-0", 2),)
        assert repr(changes) == "<watch of map 'm': closed>"
