"""Watches and listings of a map while others change it, in every gap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from folkmoot.primitives import map_machine
from folkmoot.primitives._watch import Resync
from folkmoot.primitives.map import Changed, Deleted, Map
from folkmoot.primitives.map_machine import MapMachine
from tests.primitives.fake_resource import FakeResource
from tests.primitives.harness import Harness

NAMES = ["a", "aa", "ab", "b", "ba", "c", "d", "z"]
KEYS = st.sampled_from(NAMES)
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.binary(max_size=1)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("set_many"), st.dictionaries(KEYS, st.binary(max_size=1), max_size=5)),
    st.sampled_from([("clear",), ("large clear",), ("cut",), ("lose",), ("expire",)]),
)
FULL = [("set_many", dict.fromkeys(NAMES, b"0"))]
BEFORE = st.just(FULL) | st.lists(STEPS, max_size=6)
# The first gaps lie before anything is read that counts; most of what is interesting comes then.
GAPS = st.builds(
    lambda few, many: [[one] for one in few] + many,
    st.lists(STEPS, max_size=4),
    st.lists(st.lists(STEPS, max_size=3), min_size=2, max_size=10),
)


class World:
    """A map with a history: what it held at each revision."""

    def __init__(self, gaps: list[list[Any]]) -> None:
        self.harness = Harness(MapMachine)
        self.resource = FakeResource(self.harness)
        self.resource.meanwhile = self.act
        self.history: dict[int, dict[str, bytes]] = {0: {}}
        self.gaps = gaps
        self.upsets = 0

    def act(self) -> None:
        """Let the others do what is next in line."""
        for step in self.gaps.pop(0) if self.gaps else []:
            self.do(*step)

    def do(self, name: str, *args: Any) -> None:
        resource, harness = self.resource, self.harness
        if name in ("cut", "lose"):
            self.upsets += 1
            if self.upsets > 3:  # not for ever, or no reading of the state can succeed
                return
            resource.cut() if name == "cut" else resource.lose_session()
        elif name == "expire":
            harness.command(7, "set", "aa", b"short", 5)
            self.note()
            harness.advance(5)
        elif name == "large clear":
            limit, map_machine.CLEAR_EVENTS_MAX = map_machine.CLEAR_EVENTS_MAX, 0
            harness.command(7, "clear")
            map_machine.CLEAR_EVENTS_MAX = limit
        else:
            harness.command(7, name, *args)
        self.note()
        if len(args) % 2:  # deliver now, or together with what comes next
            resource.deliver()

    def note(self) -> None:
        items = self.harness.machine.snapshot()[0]
        self.history[self.harness.index] = {key: value for key, value, *_ in items}

    def at(self, revision: int, prefix: str = "") -> dict[str, bytes]:
        """Return what the map held at a revision."""
        last = max(index for index in self.history if index <= revision)
        return {k: v for k, v in self.history[last].items() if k.startswith(prefix)}


@pytest.fixture(autouse=True, scope="module")
def short_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_machine, "PAGE_KEYS_MAX", 2)
        yield


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "later"])
@pytest.mark.parametrize("buffer", [1, 3, 1000])
def test_changes_replayed_on_the_snapshot_give_the_map_at_every_revision(
    initial: bool, buffer: int
) -> None:
    @settings(max_examples=60)
    @given(
        before=BEFORE,
        gaps=GAPS,
        reads=st.lists(st.lists(STEPS, max_size=5), max_size=6),
        prefix=st.sampled_from(["", "a", "b"]),
    )
    @example(before=[], gaps=[], reads=[[("set", "a", b"")]], prefix="")
    def check(before: Any, gaps: Any, reads: Any, prefix: str) -> None:
        anyio.run(follow, World(gaps), before, reads, prefix, initial, buffer)

    check()


async def follow(
    world: World, before: Any, reads: Any, prefix: str, initial: bool, buffer: int
) -> None:
    proxy: Map[bytes] = Map(world.resource, codec="bytes")  # type: ignore[arg-type]
    for step in before:
        world.do(*step)
    async with proxy.watch(prefix=prefix, initial=initial, buffer=buffer) as changes:
        begun = changes.revision
        assert begun <= world.harness.index
        state = None if initial else world.at(begun, prefix)
        revision = begun
        for steps in [*reads, []]:
            for step in steps:
                world.do(*step)
            world.resource.deliver()
            while changes._first or changes._buffer or changes._is_cut:
                change = await anext(changes)
                world.resource.deliver()  # what happened while the state was read
                if isinstance(change, Resync):
                    state, revision = dict(change.snapshot), change.revision
                    assert state == world.at(revision, prefix)
                    continue
                assert state is not None, "initial=True begins with a Resync"
                assert change.revision >= revision, "time goes back"
                if change.revision > revision:  # the one before is complete, and none is missing
                    assert state == world.at(change.revision - 1, prefix)
                revision = change.revision
                assert change.old == state.get(change.key), "the change before is missing"
                if isinstance(change, Changed):
                    state[change.key] = change.value
                else:
                    assert isinstance(change, Deleted)
                    del state[change.key]
        assert state == world.at(world.harness.index, prefix)
    assert world.resource.listeners == []
    assert not world.harness.machine._subscriptions  # type: ignore[attr-defined]


@settings(max_examples=200)
@given(
    before=BEFORE,
    gaps=GAPS,
    prefix=st.sampled_from(["", "a", "b"]),
    start=st.sampled_from(["", "aa", "b"]),
    stop=st.none() | st.sampled_from(["ab", "b", "ba", "q"]),
    limit=st.none() | st.integers(1, 4),
)
@example(  # what happens beyond the pages that were read does not count for the limit
    before=[("set_many", dict.fromkeys(NAMES[:-1], b"0"))],
    gaps=[[], [], [], [], [], [("set", "z", b"")]],
    prefix="",
    start="",
    stop=None,
    limit=5,
)
@example(  # what is folded in takes its place in the order
    before=[("set_many", dict.fromkeys(NAMES[1:], b"0"))],
    gaps=[[]] * 5 + [[("set", "a", b"1")]],
    prefix="",
    start="",
    stop=None,
    limit=None,
)
@example(
    before=FULL, gaps=[[]] * 5 + [[("large clear",)]], prefix="", start="", stop=None, limit=None
)
@example(
    before=FULL,
    gaps=[[]] * 7 + [[("set", "a", b"1")]],
    prefix="",
    start="aa",
    stop=None,
    limit=None,
)
def test_a_listing_is_that_of_one_revision(
    before: Any, gaps: Any, prefix: str, start: str, stop: str | None, limit: int | None
) -> None:
    async def check() -> None:
        world = World(gaps)
        for step in before:
            world.do(*step)
        proxy: Map[bytes] = Map(world.resource, codec="bytes")  # type: ignore[arg-type]
        found = await proxy.snapshot(prefix=prefix, start=start, stop=stop, limit=limit)
        wanted = {
            key: value
            for key, value in world.at(found.revision, prefix).items()
            if key >= start and (stop is None or key < stop)
        }
        assert list(found.items.items()) == list(wanted.items())[:limit]
        assert found.revision <= world.harness.index

    anyio.run(check)
