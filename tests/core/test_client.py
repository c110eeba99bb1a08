"""The client and its resources against a server without consensus, on asyncio and on trio.

Nothing here waits for time: see test_client_time.py for what does.
"""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from folkmoot.core.client import Client, Resource, StateChange
from folkmoot.core.config import ClientConfig, LimitsConfig
from folkmoot.core.errors import (
    BadCommand,
    ClosedError,
    OperationTimeout,
    OutcomeUnknown,
    Overloaded,
    ResourceDeleted,
    ResourceTypeError,
    SessionExpired,
    TooLarge,
    UsageError,
)
from folkmoot.core.requests import FrameType
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from tests.core.standalone import Standalone

pytestmark = pytest.mark.anyio
Pair = tuple[Client, Standalone]
AT_ONCE = ClientConfig(reconnect_delay_s=0.0, reconnect_delay_max_s=0.0)


@asynccontextmanager
async def pair(config: ClientConfig | None = None, **server: Any) -> AsyncIterator[Pair]:
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as far,
        MemoryTransport(network, "client") as near,
        Standalone(far, **server) as standalone,
        Client(standalone.addresses, near, config) as client,
    ):
        yield client, standalone


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    for _ in range(1000):
        if condition():
            return
        await anyio.lowlevel.checkpoint()
    raise AssertionError("it never came to hold")


class Ear:
    """A listener and a guard that remembers."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_event(self, index: int, kind: str, payload: Any) -> None:
        self.heard.append((kind, payload))

    def on_state(self, state: ConnectionState, cause: str) -> None:
        self.heard.append(state.value)

    def on_lost(self, cause: str, index: int) -> None:
        self.heard.append(("lost", cause))


def counter(client: Client, name: str = "n") -> Resource:
    return client.resource(name, "counter")


def value_of(standalone: Standalone, name: str = "n") -> int:
    found: int = standalone.multiplexer.query(0, [[name, "counter", 1, {}], "get", []])
    return found


# operations


async def test_commands_and_queries() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        await resource.command("add", 2)
        await resource.command("add", 3)
        value, index = await resource.query("get", consistency=Consistency.SEQUENTIAL)
        assert value == 5
        assert index >= resource.resource_id > 0
        assert client.state is ConnectionState.CONNECTED


async def test_what_tasks_issue_in_one_turn_leaves_as_one_frame() -> None:
    async with pair() as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        standalone.received.clear()
        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(resource.command, "add", 1)
        assert standalone.received.count(FrameType.COMMANDS) == 1
        assert value_of(standalone) == 65


async def test_send_issues_at_once_and_keeps_the_order() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        calls = [resource.send("add", number) for number in (1, 2, 3)]
        assert not calls[0].done
        values = [await call.wait() for call in reversed(calls)]
        assert [value[0] for value in values] == [6, 3, 1]
        assert {call.session_id for call in calls} == {client.session_id}
        assert (await calls[0].wait())[0] == 1, "waiting again gives the same answer"


async def test_an_abandoned_call_is_sent_all_the_same() -> None:
    async with pair() as (client, standalone):
        counter(client).send("add", 7).abandon()
        await counter(client).command("add", 1)
        assert value_of(standalone) == 8


async def test_a_machines_error_is_raised_where_it_belongs() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        with pytest.raises(BadCommand, match="no_such"):
            await resource.command("no_such")
        with pytest.raises(BadCommand):
            await resource.query("no_such")
        await resource.command("add", 1)


async def test_another_type_under_the_same_name_is_refused_with_both_named() -> None:
    async with pair() as (client, _):
        await counter(client).command("add", 1)
        with pytest.raises(ResourceTypeError, match=r"counter.*lock"):
            await client.resource("n", "lock").command("acquire", 1, None)


async def test_another_configuration_is_a_warning_that_names_the_difference() -> None:
    async with (
        pair() as (client, standalone),
        Client(standalone.addresses, client._transport) as other,
    ):
        await other.resource("n", "counter", config={"high": 9}).command("add", 1)
        resource = counter(client)
        with pytest.warns(UserWarning, match="high"):
            await resource.command("add", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await resource.command("add", 1)


async def test_a_resource_is_shared_while_somebody_holds_it() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        assert counter(client) is resource
        assert client.resource("n", "lock") is not resource


async def test_one_name_with_two_configurations_in_one_client_is_a_warning() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        with pytest.warns(UserWarning, match="held here"):
            assert client.resource("n", "counter", config={"high": 9}) is resource


@pytest.mark.parametrize("name", ["", None, 7, b"n"])
async def test_a_name_that_is_none_is_refused(name: Any) -> None:
    async with pair() as (client, _):
        with pytest.raises(UsageError, match="name"):
            client.resource(name, "counter")


async def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    async with pair() as (client, standalone):
        with pytest.raises(TooLarge, match="513 bytes"):
            client.resource("n" * 513, "counter")
        await client.wait_ready()
        with pytest.raises(TooLarge, match="frame_bytes_max"):
            await counter(client).command("add", bytes(1 << 20))
        with pytest.raises(UsageError, match="set"):
            await counter(client).command("add", {1})
        assert FrameType.COMMANDS not in standalone.received


async def test_arguments_are_taken_as_they_are_when_the_command_is_issued() -> None:
    async with pair() as (client, _):
        entry: list[Any] = ["k"]
        resource = client.resource("m", "counter")
        call = resource.send("no_such", entry)
        entry.append("changed")
        assert b"changed" not in call.body
        with pytest.raises(BadCommand):
            await call.wait()


async def test_a_deleted_resource_is_dead_for_its_holders_and_new_for_others() -> None:
    async with pair() as (client, _):
        ear, resource = Ear(), counter(client)
        resource.listen(ear)
        await resource.command("add", 5)
        await client.directory.command("delete", resource.resource_id)
        await until(lambda: bool(ear.heard))
        assert ear.heard[-1] == ("deleted", None)
        with pytest.raises(ResourceDeleted):
            await resource.command("add", 1)
        with pytest.raises(ResourceDeleted):
            await resource.query("get")
        anew = counter(client)
        assert anew is not resource
        assert (await anew.command("add", 1))[0] == 1


async def test_a_resource_that_nobody_holds_is_closed_so_that_it_can_be_collected() -> None:
    async with pair() as (client, standalone):
        resource = client.resource("idle", "lock")
        await resource.command("withdraw", 1)
        assert len(standalone.multiplexer.directory.resources) == 1
        del resource
        gc.collect()
        await counter(client, "other").command("add", 1)
        assert [one.name for one in standalone.multiplexer.directory.resources.values()] == [
            "other"
        ]


async def test_dropping_and_naming_again_in_one_turn_leaves_the_resource_usable() -> None:
    async with pair() as (client, _):
        for _ in range(3):
            resource = client.resource("idle", "lock")
            await resource.command("withdraw", 1)
            del resource
            gc.collect()
            again = client.resource("idle", "lock")
            await again.command("withdraw", 1)
            await client.directory.query("count")
            await again.command("withdraw", 1)
            del again


async def test_admin_asks_the_connected_server() -> None:
    async with pair() as (client, _):
        answer = await client.admin("status", "all")
        assert answer == {"node_id": 1, "asked": ["status", ["all"]]}


# exactly once


async def test_bug_g1_no_reply_is_applied_twice_whatever_connection_it_was_lost_with() -> None:
    async with pair(AT_ONCE) as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        for expected in range(2, 22):
            standalone.mute = True
            call = resource.send("add", 1)
            await until(partial(standalone.has_applied, expected))
            standalone.cut()
            await until(lambda: client.state is ConnectionState.SUSPENDED)
            standalone.mute = False
            assert (await call.wait())[0] == expected
        assert value_of(standalone) == 21


async def test_bug_h1_cut_at_every_step_each_event_comes_once() -> None:
    async with pair(AT_ONCE) as (client, standalone):
        ear, resource = Ear(), client.resource("l", "lock")
        resource.listen(ear)
        await resource.command("acquire", 1, None)
        for request in range(2, 12):
            await resource.command("acquire", request, None)
            standalone.mute = True
            call = resource.send("withdraw", request - 1)
            for _ in range(request):
                await anyio.lowlevel.checkpoint()
            standalone.cut()
            standalone.mute = False
            assert await call.wait() is True
        grants = [payload[0] for kind, payload in filter(is_event, ear.heard) if kind == "grant"]
        assert grants == list(range(2, 12))


def is_event(heard: Any) -> bool:
    return isinstance(heard, tuple)


async def test_refused_commands_raise_overloaded_and_the_client_goes_on() -> None:
    async with pair() as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        standalone.refusing = True
        calls = [resource.send("add", 1) for _ in range(3)]
        for call in calls:
            with pytest.raises(Overloaded, match="refused by the test"):
                await call.wait()
        standalone.refusing = False
        await resource.command("add", 1)
        assert value_of(standalone) == 2


async def test_the_outbox_is_bounded() -> None:
    async with pair(ClientConfig(outbox_max=3)) as (client, standalone):
        await client.wait_ready()
        standalone.deaf = True
        standalone.cut()
        await until(lambda: client.state is ConnectionState.SUSPENDED)
        resource = counter(client)
        calls = [resource.send("add", 1) for _ in range(3)]
        with pytest.raises(Overloaded, match="outbox_max"):
            await resource.command("add", 1)
        assert not any(call.done for call in calls)
        standalone.deaf = False


# cancellation


async def test_bug_k8_cancelled_before_sending_leaves_nothing() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await resource.command("add", 1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await resource.query("get")
        assert (await resource.command("add", 1))[0] == 1
        assert client.core.pipeline.last_sequence == 1
        assert not client.core.reads.queued


async def test_bug_k8_cancelled_after_sending_keeps_its_place_and_drops_the_answer() -> None:
    async with pair() as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        standalone.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(resource.command, "add", 1)
            tasks.start_soon(resource.query, "get")
            await until(lambda: standalone.multiplexer.index >= 3)
            tasks.cancel_scope.cancel()
        standalone.release()
        assert (await resource.command("add", 1))[0] == 3
        assert not client.core.reads.asked


async def test_bug_k8_cancelled_at_every_turn_in_between() -> None:
    """However far the command has come, what follows is in order and nothing hangs."""
    async with pair() as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        for turns in range(25):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(resource.command, "add", 1)
                tasks.start_soon(resource.query, "get")
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            before = value_of(standalone)
            assert (await resource.command("add", 0))[0] >= before
        assert not client.core.pipeline.in_flight
        assert not client.core.reads.queued


async def test_cancelling_while_waiting_to_be_ready_or_for_states() -> None:
    async with pair() as (client, _):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.wait_ready()
        assert not client._ready
        async with client.states() as changes:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(changes)
            assert (await anext(changes)).state is ConnectionState.CONNECTED


async def test_leaving_while_cancelled_still_closes_the_session() -> None:
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as far,
        MemoryTransport(network, "client") as near,
        Standalone(far) as standalone,
    ):
        with anyio.CancelScope() as scope:
            async with Client(standalone.addresses, near) as client:
                await client.resource("l", "lock").command("acquire", 1, None)
                assert len(standalone.multiplexer.sessions) == 1
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert len(standalone.multiplexer.sessions) == 0


# states, listeners, guards


async def test_states_are_observed_in_order_and_end_with_the_client() -> None:
    seen: list[StateChange] = []
    async with pair() as (client, standalone), client.states() as changes:
        await client.wait_ready()
        first = client.session_id
        standalone.cut()
        await until(lambda: client.state is ConnectionState.SUSPENDED)
        await client.wait_ready()
        standalone.end_session(first)
        await until(lambda: client.state is ConnectionState.EXPIRED)
        await client.wait_ready()
        while len(seen) < 5:
            seen.append(await anext(changes))
    assert [change.state.value for change in seen] == [
        "connected",
        "suspended",
        "connected",
        "expired",
        "connected",
    ]
    assert [change.session_id for change in seen][:4] == [first] * 4
    assert seen[4].session_id > first


async def test_states_end_when_the_client_is_closed() -> None:
    async with pair() as (client, _):
        await client.wait_ready()
        changes = await client.states().__aenter__()
    assert [change.state async for change in changes] == [ConnectionState.CLOSED]
    await changes.__aexit__()
    with pytest.raises(UsageError, match="async with"):
        await anext(changes)


async def test_a_guard_hears_once_that_the_session_was_lost() -> None:
    async with pair() as (client, standalone):
        await client.wait_ready()
        told, removed, late = Ear(), Ear(), Ear()
        client.add_guard(told)
        client.add_guard(removed)
        client.remove_guard(removed)
        session_id = client.session_id
        standalone.end_session(session_id)
        await until(lambda: bool(told.heard))
        client.add_guard(late, session_id)
        await client.wait_ready()
        standalone.end_session(client.session_id)
        await until(lambda: client.state is ConnectionState.EXPIRED)
        assert (told.heard, removed.heard, late.heard) == (
            [("lost", "expired")],
            [],
            [("lost", "expired")],
        )


async def test_a_guard_added_before_there_is_a_session_waits_for_its_end() -> None:
    async with pair() as (client, standalone):
        ear = Ear()
        client.add_guard(ear)
        await client.wait_ready()
        assert ear.heard == []
        standalone.end_session(client.session_id)
        await until(lambda: bool(ear.heard))


async def test_listeners_hear_events_and_states_in_order() -> None:
    async with pair() as (client, standalone):
        ear, resource = Ear(), client.resource("l", "lock")
        resource.listen(ear)
        await resource.command("acquire", 1, None)
        await resource.command("acquire", 2, None)
        await resource.command("withdraw", 1)
        await until(lambda: is_event(ear.heard[-1]))
        standalone.end_session(client.session_id)
        await until(lambda: ear.heard[-1] == "expired")
        await until(lambda: ear.heard[-1] == "connected")
        assert [heard if isinstance(heard, str) else heard[0] for heard in ear.heard] == [
            "connected",
            "grant",
            "expired",
            "connected",
        ]
        resource.unlisten(ear)
        resource.unlisten(ear)


async def test_bug_g14_at_the_sessions_end_sent_is_unknown_and_waiting_goes_on_anew() -> None:
    async with pair() as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        standalone.mute = True
        call = resource.send("add", 1)
        await until(lambda: standalone.multiplexer.index >= 3)
        standalone.end_session(client.session_id)
        standalone.cut()
        standalone.mute = False
        with pytest.raises(OutcomeUnknown, match="may have been applied"):
            await call.wait()
        assert (await resource.command("add", 1))[0] == 3, "and it did take effect, once"


async def test_unsent_commands_are_certainly_not_applied_at_the_sessions_end() -> None:
    limits = LimitsConfig(session_window=1)
    async with pair(ClientConfig(limits=limits)) as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        standalone.hold()
        sent, unsent = resource.send("add", 1), resource.send("add", 1)
        await until(lambda: standalone.multiplexer.index >= 3)
        standalone._held = []
        standalone.end_session(client.session_id)
        standalone.release()
        with pytest.raises(OutcomeUnknown):
            await sent.wait()
        with pytest.raises(SessionExpired):
            await unsent.wait()


# misuse


async def test_a_closed_client_says_so_at_once() -> None:
    async with pair() as (client, _):
        resource = counter(client)
        await resource.command("add", 1)
        pending = resource.send("add", 1)
    assert (await pending.wait())[0] == 2, "what was issued before closing was sent"
    for attempt in (
        resource.command("add", 1),
        resource.query("get"),
        client.wait_ready(),
        client.admin("status"),
    ):
        with pytest.raises(ClosedError):
            await attempt
    assert client.state is ConnectionState.CLOSED
    ear = Ear()
    client.add_guard(ear)
    assert ear.heard == [("lost", "closed")]


async def test_a_client_that_is_not_entered_says_so() -> None:
    client = Client(["a:1"], MemoryTransport(MemoryNetwork()))
    with pytest.raises(UsageError, match="async with"):
        await counter(client).command("add", 1)
    with pytest.raises(UsageError, match="address"):
        async with Client():
            raise AssertionError("not reached")


async def test_a_client_is_entered_once() -> None:
    async with pair() as (client, _):
        with pytest.raises(UsageError, match="once"):
            await client.__aenter__()


async def test_use_from_another_thread_is_noticed() -> None:
    async with pair() as (client, _):
        errors: list[BaseException] = []

        def use() -> None:
            try:
                counter(client).send("add", 1)
            except UsageError as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert "thread" in str(errors[0])


async def test_use_in_a_fork_is_noticed() -> None:
    async with pair() as (client, _):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            text = "nothing was raised"
            try:
                counter(client).send("add", 1)
            except UsageError as error:
                text = str(error)
            os.write(writer, text.encode())
            os._exit(0)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
        text = os.read(reader, 1000).decode()
        os.close(reader)
        os.close(writer)
        assert "fork" in text
        await counter(client).command("add", 1)


async def test_a_bug_in_a_listener_comes_out_of_the_client_and_nobody_hangs() -> None:
    class Broken(Ear):
        def on_event(self, index: int, kind: str, payload: Any) -> None:
            raise ZeroDivisionError("a bug")

    ended: list[str] = []

    async def wait(resource: Resource) -> None:
        try:
            await resource.send("acquire", 3, None).wait()
        except (ClosedError, OutcomeUnknown) as error:
            ended.append(error.code)

    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as far,
        MemoryTransport(network, "client") as near,
        Standalone(far) as standalone,
        anyio.create_task_group() as tasks,
    ):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the body waits for it
            async with Client(standalone.addresses, near) as client:
                resource = client.resource("l", "lock")
                resource.listen(broken := Broken())
                await resource.command("acquire", 1, None)
                await resource.command("acquire", 2, None)
                standalone.hold()
                resource.send("withdraw", 1)
                await until(lambda: bool(standalone._held))
                standalone.deaf = True
                tasks.start_soon(wait, resource)
                await until(lambda: client.core.pipeline.last_sequence == 4)
                standalone.release()
                await anyio.sleep_forever()
        assert broken.heard == ["connected", "closed"]
    assert ended == ["outcome_unknown"]


async def test_an_exception_of_the_body_is_not_wrapped() -> None:
    network = MemoryNetwork()
    async with (
        MemoryTransport(network, "server") as far,
        MemoryTransport(network, "client") as near,
        Standalone(far) as standalone,
    ):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the statement is the whole body
            async with Client(standalone.addresses, near) as client:
                await counter(client).command("add", 1)
                raise ZeroDivisionError


# several members


async def test_the_client_goes_to_the_leader_and_follows_it() -> None:
    async with pair(addresses=("server:1", "server:2")) as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        assert client.core.connector.node_id == 1
        accepted = standalone.members[1].accepted
        standalone.lead(2)
        await until(lambda: client.core.connector.node_id == 2)
        assert (await resource.command("add", 1))[0] == 2
        assert client.core.session.id == 1, "the same session"
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert standalone.members[1].accepted == accepted + 1, (
            "the old link's end does not end the new one"
        )


async def test_a_member_that_is_gone_is_passed_over() -> None:
    config = ClientConfig(prefer_leader=False, reconnect_delay_s=0.0)
    async with pair(config, addresses=("server:1", "server:2")) as (client, standalone):
        resource = counter(client)
        await resource.command("add", 1)
        await standalone.stop_listening(client.core.connector.node_id)
        standalone.cut()
        assert (await resource.command("add", 1))[0] == 2


async def test_another_protocol_version_is_named_when_time_runs_out() -> None:
    async with pair(protocol_version=9) as (client, _):
        await until(lambda: bool(client.core.connector.causes))
        with pytest.raises(OperationTimeout, match=r"speaks 1, this server 9"):
            await client.wait_ready(timeout=0)
