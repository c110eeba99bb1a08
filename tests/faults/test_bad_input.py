"""Whatever bytes come, that connection closes with a stated reason, and the server lives."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import msgpack
import pytest

import folkmoot
from folkmoot.core.batch import COMMANDS_HEADER
from folkmoot.core.config import LimitsConfig
from folkmoot.core.requests import FrameType, encode
from folkmoot.node import Node
from tests.faults.wire import Raw, connect, frame, members, three_nodes

pytestmark = [pytest.mark.faults, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    everyone = members(1)
    limits = LimitsConfig(hello_timeout_s=0.5)
    async with Node(folkmoot.NodeConfig(members=everyone, limits=limits)) as running:
        yield running


async def lives(node: Node) -> bool:
    """Whether a well-behaved client is served."""
    async with folkmoot.open(f"folkmoot://{node.client_address}") as cluster:
        return await cluster.counter("alive").add(1) >= 1


async def greeted(raw: Raw) -> int:
    """Say hello and open a session; its id."""
    assert (await raw.hello())[0] == "WELCOME"
    await raw.send(encode(FrameType.OPEN_SESSION, b"s" * 16, 5000, "raw"))
    name, session_id, *_ = await raw.receive()
    assert name == "SESSION"
    return int(session_id)


def commands(session_id: int, first: int, operations: Any) -> bytes:
    header = COMMANDS_HEADER.pack(session_id, first, 0, 0)
    return frame(FrameType.COMMANDS, header + msgpack.packb(operations))


REFUSED_BEFORE_HELLO = {
    "oversized": (frame(FrameType.HELLO, b"", claim=1 << 30), "1073741824"),
    "first frame is no HELLO": (encode(FrameType.KEPT, 1, 1), "type 13"),
    "unknown frame type": (frame(200, b"x"), "type 200"),
    "session before hello": (encode(FrameType.OPEN_SESSION, b"s" * 16, 1, ""), "before HELLO"),
    "not msgpack": (frame(FrameType.HELLO, b"\xc1\xc1"), ""),
    "nested": (frame(FrameType.HELLO, b"\x91" * 5000), ""),
    "wrong shape": (frame(FrameType.HELLO, msgpack.packb([1, 2])), "5 fields"),
    "wrong types": (encode(FrameType.HELLO, 1, 2, b"", 0, ""), "field 2"),
    "negative": (encode(FrameType.HELLO, -1, "client", b"", 0, ""), "below zero"),
}


@pytest.mark.parametrize("case", REFUSED_BEFORE_HELLO)
async def test_a_malformed_first_frame_closes_only_its_connection(node: Node, case: str) -> None:
    data, named = REFUSED_BEFORE_HELLO[case]
    async with connect(node.client_address) as raw:
        await raw.send(data)
        assert named in await raw.reason()
    assert await lives(node)


async def test_another_version_names_both(node: Node) -> None:
    async with connect(node.client_address) as raw:
        await raw.send(encode(FrameType.HELLO, 99, "client", b"", 0, "x"))
        assert "version 99, this server 1" in await raw.reason()


async def test_another_cluster_names_both(node: Node) -> None:
    async with connect(node.client_address) as raw:
        await raw.send(encode(FrameType.HELLO, 1, "client", b"\xab" * 16, 0, "x"))
        reason = await raw.reason()
    assert "ab" * 16 in reason
    assert node.status()["cluster_id"] in reason


async def test_a_member_at_the_clients_listener_is_told_where_to_go(node: Node) -> None:
    async with connect(node.client_address) as raw:
        await raw.send(encode(FrameType.HELLO, 1, "peer", b"", 2, "1"))
        assert "role 'peer'" in await raw.reason()


async def test_who_does_not_say_hello_is_closed_after_its_time(node: Node) -> None:
    async with connect(node.client_address) as raw:
        assert await raw.reason() == ""
    assert await lives(node)


async def test_a_truncated_frame_and_a_reset_do_no_harm(node: Node) -> None:
    async with connect(node.client_address) as raw:
        await raw.send(encode(FrameType.HELLO, 1, "client", b"", 0, "x")[:-3])
    assert await lives(node)


REFUSED_IN_A_SESSION: dict[str, tuple[Callable[[int], bytes], str]] = {
    "no operations": (lambda s: commands(s, 1, []), "at least one operation"),
    "operation without a name": (lambda s: commands(s, 1, [[1, 2, []]]), "an operation is"),
    "resource of a wrong shape": (lambda s: commands(s, 1, [[["a"], "get", []]]), "a resource is"),
    "a fence that is none": (lambda s: commands(s, 1, [[1, "get", [], [1]]]), "a fence is"),
    "a gap": (lambda s: commands(s, 5, [[1, "get", []]]), "expected 1"),
    "another session": (lambda s: commands(s + 1, 1, [[1, "get", []]]), "this connection has"),
    "header alone": (lambda s: frame(FrameType.COMMANDS, b"\0" * 10), "header"),
    "a second session": (
        lambda s: encode(FrameType.OPEN_SESSION, b"t" * 16, 1000, ""),
        "has a session",
    ),
    "consistency": (lambda s: encode(FrameType.READ, 1, "stale", 0, 0, []), "'stale'"),
    "extension type": (
        lambda s: commands(s, 1, [[1, "set", [msgpack.ExtType(5, b"x")]]]),
        "",
    ),
}


@pytest.mark.parametrize("case", REFUSED_IN_A_SESSION)
async def test_a_malformed_request_closes_only_its_connection(node: Node, case: str) -> None:
    make, named = REFUSED_IN_A_SESSION[case]
    async with connect(node.client_address) as raw:
        session_id = await greeted(raw)
        await raw.send(make(session_id))
        reason = await raw.reason()
        assert reason.startswith("protocol: ")
        assert named in reason
    assert await lives(node)


async def test_a_stolen_session_id_opens_nothing_without_its_secret(node: Node) -> None:
    async with connect(node.client_address) as owner:
        session_id = await greeted(owner)
        async with connect(node.client_address) as thief:
            await thief.hello()
            await thief.send(encode(FrameType.RESUME_SESSION, session_id, b"x" * 16, 0, 1))
            assert (await thief.receive())[:3] == ["SESSION_ENDED", session_id, "unknown"]
        await owner.send(encode(FrameType.KEEP_ALIVE, session_id, 0, 0, 1))
        assert (await owner.receive())[:2] == ["KEPT", 1]


async def test_unknown_operations_and_wrong_arguments_are_answers_not_ends(node: Node) -> None:
    async with connect(node.client_address) as raw:
        session_id = await greeted(raw)
        users = ["users", "map", 1, {}]
        await raw.send(
            commands(session_id, 1, [[users, "fly", []], [users, "set", [1, 2]], [99, "get", []]])
        )
        name, first, _, values, errors = await raw.receive()
        assert (name, first, len(values)) == ("RESULTS", 1, 3)
        assert [error[1] for error in errors] == ["bad_command", "bad_command", "resource_deleted"]


async def test_connections_beyond_the_limit_are_refused_and_the_others_served() -> None:
    limits = LimitsConfig(connections_max=2)
    async with Node(folkmoot.NodeConfig(members=members(1), limits=limits)) as node:
        async with connect(node.client_address) as one, connect(node.client_address) as two:
            await one.hello()
            await two.hello()
            async with connect(node.client_address) as third:
                assert (await third.reason()).startswith("overloaded: 2 clients")
            await one.send(encode(FrameType.ADMIN, 1, "status", []))
            assert (await one.receive())[0] == "ADMIN_RESULT"
        assert await lives(node)


async def test_a_stranger_on_the_members_listener_is_refused_by_name() -> None:
    async with three_nodes() as nodes:
        status = nodes[0].status()
        cluster_id = bytes.fromhex(status["cluster_id"])
        cases = [
            (encode(FrameType.HELLO, 1, "peer", b"\1" * 16, 2, "1"), "01" * 16),
            (encode(FrameType.HELLO, 1, "peer", cluster_id, 9, "1"), "no other member"),
            (encode(FrameType.HELLO, 1, "peer", cluster_id, 2, "3"), "wants member 3 here"),
            (encode(FrameType.HELLO, 7, "peer", cluster_id, 2, "1"), "version 7"),
            (encode(FrameType.HELLO, 1, "client", b"", 0, "x"), "role 'client'"),
            (frame(33, b"junk"), "before HELLO"),
        ]
        for data, named in cases:
            async with connect(nodes[0].peer_address) as raw:
                await raw.send(data)
                assert named in await raw.reason()
        assert await lives(nodes[1])


async def test_junk_from_a_member_closes_its_link_and_nothing_else() -> None:
    async with three_nodes() as nodes:
        cluster_id = bytes.fromhex(nodes[0].status()["cluster_id"])
        for junk in (b"junk", struct.pack("<QQQQQ", 1, 2, 3, 4, 5), b""):
            for kind in (33, 34, 35, 39, 64, 99):
                async with connect(nodes[0].peer_address) as raw:
                    await raw.send(encode(FrameType.HELLO, 1, "peer", cluster_id, 2, "1"))
                    await raw.send(frame(kind, junk + b"\xff"))
                    with anyio.move_on_after(2):
                        await raw.reason()
        assert await lives(nodes[0])


async def test_commands_beyond_the_servers_room_are_refused_and_the_client_goes_on() -> None:
    """No quorum: what clients send waits, up to the limit; the rest is refused with Overloaded."""
    limits = LimitsConfig(pending_bytes_max=1 << 16)
    async with three_nodes(limits) as nodes:
        url = ",".join(node.client_address for node in nodes)
        async with folkmoot.open(f"folkmoot://{url}") as cluster:
            users = cluster.map("users", codec="bytes")
            await users.set("first", b"1")
            led = {node.config.node_id: node for node in nodes}
            leader = led[nodes[0].status()["leader"]]
            for node in nodes:
                if node is not leader:
                    for peer in node.server.peers.links.values():
                        peer.up = False  # deaf and dumb, as behind a broken switch
            leader_peers = leader.server.peers.links.values()
            for peer in leader_peers:
                peer.up = False
            outcomes: dict[str, int] = {}

            async def write(number: int) -> None:
                try:
                    await users.set(f"k{number}", b"v" * 1000, timeout=1.0)
                    outcome = "ok"
                except folkmoot.FolkmootError as error:
                    outcome = error.code
                outcomes[outcome] = outcomes.get(outcome, 0) + 1

            async with anyio.create_task_group() as tasks:
                for number in range(300):
                    tasks.start_soon(write, number)
            assert outcomes.get("overloaded", 0) > 100, outcomes
            assert outcomes.get("ok", 0) == 0, outcomes
            for node in nodes:
                assert node.server.replica.intake.size_bytes <= 1 << 16
                for peer in node.server.peers.links.values():
                    peer.up = peer.link is not None
            with anyio.fail_after(10):
                await users.set("last", b"1")
