"""The election's proxy: real clients, a standalone server, no time passing."""

# ruff: noqa: PT012  # what is raised here is raised by a statement with a body

from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from folkmoot.core.client import Client
from folkmoot.core.errors import (
    ElectionTimeout,
    LeadershipLost,
    NotHeld,
    ResourceDeleted,
    SessionClosed,
    SessionExpired,
    UsageError,
)
from folkmoot.primitives._watch import Resync
from folkmoot.primitives.election import Elected, Proclaimed, Term, Vacant
from tests.primitives.rig import election, rig

pytestmark = pytest.mark.anyio


async def names(client: Client) -> tuple[str | None, list[str | None]]:
    """What the leader and those who wait say of themselves."""
    view = await election(client).describe()
    return view.leader.value if view.leader else None, [one.value for one in view.candidates]


async def campaign(client: Client, value: str, terms: list[Term[str]], priority: int = 0) -> None:
    """Lead until cancelled or deposed."""
    try:
        async with election(client).lead(value=value, priority=priority) as term:
            terms.append(term)
            await anyio.sleep_forever()
    except LeadershipLost:
        pass


async def test_the_leader_is_known_and_the_next_follows_in_order_of_priority() -> None:
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        assert await election(c).leader() is None
        terms: list[Term[str]] = []
        async with anyio.create_task_group() as tasks:
            async with election(a).lead(value="first") as term:
                for client, value, priority in ((b, "low", 0), (c, "high", 7)):
                    tasks.start_soon(campaign, client, value, terms, priority)
                    await cluster.settle()
                leader = await election(c).leader()
                assert leader is not None
                assert (leader.token, leader.value, leader.client) == (term.token, "first", "a")
                assert leader.number == term.number
                assert await names(a) == ("first", ["high", "low"])
                waiting = await election(b).candidates()
                assert [(one.client, one.priority) for one in waiting] == [("c", 7), ("b", 0)]
            await cluster.settle()
            assert await names(a) == ("high", ["low"])
            assert terms[0].token > term.token
            tasks.cancel_scope.cancel()
        assert await names(a) == (None, [])


async def test_a_leader_proclaims_and_resigns() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        with pytest.raises(NotHeld):
            await election(a).proclaim("nobody")
        async with election(a).lead(value="one") as term:
            assert await term.proclaim("two") < await election(a).proclaim("three")
            assert (await names(b))[0] == "three"
            await term.resign()
            assert await names(b) == (None, [])
            with pytest.raises(NotHeld):
                await term.proclaim("four")
            with pytest.raises(NotHeld):
                term.check()


async def test_a_candidate_times_out_in_the_log() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a", 100), await cluster.client("b", 100)
        async with election(a).lead(), anyio.create_task_group() as tasks:

            async def impatient() -> None:
                with pytest.raises(ElectionTimeout):
                    async with election(b).lead(timeout=timedelta(seconds=30)):
                        pytest.fail("it leads")

            tasks.start_soon(impatient)
            await cluster.settle()
            cluster.server.advance(30_001)
        with pytest.raises(UsageError):
            async with election(a).lead(), election(a).lead():
                pytest.fail("waits for itself")


async def test_i4_a_cancelled_candidacy_is_withdrawn() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        for turns in range(20):
            terms: list[Term[str]] = []
            async with anyio.create_task_group() as tasks, election(a).lead() as term:
                tasks.start_soon(campaign, b, "b", terms)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                await term.resign()
                tasks.cancel_scope.cancel()
            await election(b).describe()
            assert await names(a) == (None, [])


async def test_i3_a_transfer_waits_for_the_leaders_code_to_end() -> None:
    """No two lead over a transfer (CURATOR-696), however long the leader cleans up."""
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        terms: list[Term[str]] = []
        cleaned = anyio.Event()
        lost: list[LeadershipLost] = []

        async def leader() -> None:
            with pytest.raises(LeadershipLost) as info:
                async with election(a).lead(value="a") as term:
                    try:
                        await anyio.sleep_forever()
                    finally:
                        with pytest.raises(LeadershipLost):
                            term.check()
                        with anyio.CancelScope(shield=True):
                            await cleaned.wait()
            lost.append(info.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leader)
            await cluster.settle()
            for client, value in ((b, "b"), (c, "c")):
                tasks.start_soon(campaign, client, value, terms)
                await cluster.settle()
            candidates = await election(b).candidates()
            assert await election(b).transfer_to(candidates[1])
            assert not await election(b).transfer_to(10_000)
            await cluster.settle()
            assert await names(b) == ("a", ["c", "b"])
            assert not terms
            cleaned.set()
            await cluster.settle()
            assert await names(b) == ("c", ["b"])
            assert terms[0].number == candidates[1].number
            assert lost[0].cause == "transferred"
            tasks.cancel_scope.cancel()


async def test_evict_resign_and_promote() -> None:
    async with rig() as cluster:
        a, b, c = [await cluster.client(name) for name in "abc"]
        terms: list[Term[str]] = []
        async with anyio.create_task_group() as tasks:
            for client, value in ((a, "a"), (b, "b"), (c, "c"), (a, "a2")):
                tasks.start_soon(campaign, client, value, terms)
                await cluster.settle()
            waiting = await election(b).candidates()
            assert await election(b).promote(waiting[1])
            assert await names(b) == ("a", ["c", "b", "a2"])
            assert await election(b).evict(waiting[0])
            leader = await election(b).leader()
            assert leader is not None
            assert await election(b).evict(leader)
            await cluster.settle()
            assert await names(b) == ("c", ["a2"])
            assert not terms[0].held
            assert await election(b).resign(waiting[2]) == 0  # that is not b's
            assert await election(a).resign(waiting[2]) == 1
            assert await election(c).resign() == 1
            await cluster.settle()
            assert await names(b) == (None, [])


# run


async def test_run_returns_what_the_function_returns() -> None:
    async with rig() as cluster:
        client = await cluster.client()

        async def work(term: Term[str]) -> int:
            return term.token

        assert await election(client).run(work) > 0
        assert await names(client) == (None, [])


async def test_run_campaigns_again_whatever_took_the_leadership() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        tokens: list[int] = []

        async def work(term: Term[str]) -> None:
            tokens.append(term.token)
            if len(tokens) == 5:
                return
            await anyio.sleep_forever()

        async def reign(count: int) -> None:
            while len(tokens) < count:
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(election(a).run, work)
            await reign(1)
            leader = await election(b).leader()
            assert leader is not None
            assert await election(b).evict(leader)
            await reign(2)
            cluster.expire(a)
            await reign(3)
            await election(a).resign()
            await reign(4)
            cluster.expire(a)
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 5


async def test_run_goes_on_when_what_the_function_did_was_lost_with_the_session() -> None:
    async with rig() as cluster:
        client = await cluster.client()
        reigns = 0

        async def work(term: Term[str]) -> str:
            nonlocal reigns
            reigns += 1
            if reigns == 1:
                cluster.server.deaf = True
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.resource("n", "counter").command, "add", 1)
                    await cluster.settle()
                    cluster.server.deaf = False
                    cluster.expire(client)
            return "done"

        assert await election(client).run(work) == "done"
        assert reigns == 2


@pytest.mark.parametrize("error", [ValueError("mine"), SessionExpired("mine"), LeadershipLost("?")])
async def test_run_ends_with_what_the_function_raises(error: Exception) -> None:
    async with rig() as cluster:
        client = await cluster.client()

        async def work(term: Term[str]) -> None:
            raise error

        with pytest.raises(type(error)) as info:
            await election(client).run(work)
        assert info.value is error


async def test_run_does_not_hide_an_error_behind_the_loss() -> None:
    async with rig() as cluster:
        client = await cluster.client()

        async def work(term: Term[str]) -> None:
            try:
                cluster.expire(client)
                await anyio.sleep_forever()
            finally:
                raise ZeroDivisionError

        with pytest.raises(LeadershipLost) as info:
            await election(client).run(work)
        assert isinstance(info.value.__cause__, ZeroDivisionError)


async def test_run_ends_with_its_client_and_with_the_election() -> None:
    async with rig() as cluster, anyio.create_task_group() as tasks:
        ended: list[type] = []

        async def run(client: Client) -> None:
            try:
                await election(client).run(lambda term: anyio.sleep_forever())
            except (SessionClosed, ResourceDeleted, UsageError, LeadershipLost) as error:
                ended.append(type(error))

        async with cluster.transient("t") as client:
            tasks.start_soon(run, client)
            await cluster.settle()
            assert (await names(client))[0] is None
        await cluster.settle()
        assert len(ended) == 1


async def test_a_watch_tells_of_every_reign() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        async with election(b).watch(initial=True) as changes:
            async with election(a).lead(value="one") as term:
                await term.proclaim("two")
            async with election(b).lead(value="three") as second:
                pass
            seen = [await anext(changes) for _ in range(6)]
        assert [type(change) for change in seen] == [
            Resync, Elected, Proclaimed, Vacant, Elected, Vacant
        ]  # fmt: skip
        reigns = [(c.leader.token, c.leader.value) for c in seen if isinstance(c, Elected)]
        assert reigns == [(term.token, "one"), (second.token, "three")]
        assert isinstance(seen[2], Proclaimed)
        assert seen[2].leader.value == "two"
        assert isinstance(seen[3], Vacant)
        assert seen[3].cause == "resigned"


async def test_a_watch_goes_on_in_a_new_session_with_the_present_leader() -> None:
    async with rig() as cluster:
        a, b = await cluster.client("a"), await cluster.client("b")
        async with election(b).watch() as changes, election(a).lead(value="one") as term:
            assert isinstance(await anext(changes), Elected)
            cluster.expire(b)
            await cluster.settle()
            change = await anext(changes)
            assert isinstance(change, Resync)
            assert change.snapshot is not None
            assert change.snapshot.token == term.token
