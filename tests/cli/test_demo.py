"""The demo's checks can fail, and its views say what the scene knows."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

import folkmoot
from folkmoot.cli import demo_work
from folkmoot.cli.demo_scene import Scene, Tally
from folkmoot.cli.demo_view import live, plain_line, progress_line, summary, tell_lines
from folkmoot.cli.demo_work import Holders, Increments, Messages, Reigns, Writes
from folkmoot.cli.output import Output
from folkmoot.cli.processes import LocalCluster
from folkmoot.cluster import Cluster

pytestmark = pytest.mark.anyio


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with folkmoot.open() as found:
        yield found


@pytest.mark.parametrize(
    ("acknowledged", "unknown", "counted", "good"),
    [(3, 0, 3, True), (3, 1, 3, True), (3, 1, 4, True), (3, 0, 2, False), (3, 1, 5, False)],
)
async def test_an_increment_that_is_lost_or_counts_twice_is_seen(
    cluster: Cluster, acknowledged: int, unknown: int, counted: int, good: bool
) -> None:
    work, scene = Increments(), Scene()
    work.tally.done, work.tally.unknown = acknowledged, unknown
    await cluster.counter(work.name).set(counted)
    await work.check(scene, cluster)
    assert (scene.faults == []) is good


async def test_a_write_that_is_lost_is_seen(cluster: Cluster) -> None:
    work, scene = Writes(), Scene()
    work._last, work._doubt = {"a": 2, "b": 2, "c": 2}, {"b": {3}}
    values = cluster.map(work.name)
    await values.set_many({"a": 2, "b": 3, "c": 1})
    await work.check(scene, cluster)
    assert scene.faults == ["map: c is 1; 2 was acknowledged"]


@pytest.mark.parametrize(
    ("stays", "said"),
    [
        ([(1, 0.0, 1.0), (2, 1.0, 2.0)], []),
        ([(1, 0.0, 1.1), (2, 1.0, 2.0)], ["2 was held before 1 had left"]),
        ([(2, 0.0, 1.0), (1, 1.0, 2.0)], ["token 1 was granted after token 2"]),
        ([(2, 0.0, 1.0), (2, 1.0, 2.0)], ["token 2 was granted after token 2"]),
    ],
)
async def test_two_holders_at_once_are_seen(
    cluster: Cluster, stays: list[tuple[int, float, float]], said: list[str]
) -> None:
    for work, held in ((holders := Holders(), holders._held), (reigns := Reigns(), reigns._reigns)):
        scene = Scene()
        held.extend(stays)
        await work.check(scene, cluster)
        assert len(scene.faults) == len(said)
        if isinstance(work, Holders):
            assert all(words in fault for words, fault in zip(said, scene.faults, strict=True))


@pytest.mark.parametrize(
    ("received", "said"),
    [
        ([1, 2, 4], None),
        ([1, 2, 3, 4], None),
        ([1, 2, 3], "misses [4]"),
        ([1, 2, 2, 4], "received twice [2]"),
        ([2, 1, 4], "out of order"),
        ([1, 2, 4, 9], "received what nobody sent: {9}"),
    ],
)
async def test_a_message_that_is_lost_repeated_reordered_or_invented_is_seen(
    cluster: Cluster, received: list[int], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_work, "DELIVERY_TIMEOUT_S", 0.01)
    work, scene = Messages(), Scene()
    work._published, work._doubt, work._received = [1, 2, 4], {3}, [received]
    await work.check(scene, cluster)
    assert [said in fault for fault in scene.faults if said] == ([True] if said else [])
    assert bool(scene.faults) is bool(said)


async def test_recovery_counts_from_the_first_write_that_was_issued_after_the_kill() -> None:
    scene = Scene()
    tally = Tally("counter")
    scene.killed_at_s = scene.now_s
    scene.acknowledged(tally, issued_at_s=scene.killed_at_s - 1)
    assert scene.recovery_s is None, "that one may have been on its way already"
    scene.acknowledged(tally, issued_at_s=scene.now_s)
    assert scene.recovery_s is not None
    assert tally.done == 2


async def test_a_failure_is_said_in_every_view() -> None:
    scene = Scene(killed_node=2)
    scene.tallies = {"map": Tally("map", done=7, verdict="7 writes", good=False)}
    text, data = io.StringIO(), io.StringIO()
    tell_lines(scene, Output(as_json=False, file=text))
    scene.fault("map: c is 1; 2 was acknowledged")
    cluster = LocalCluster(Path("nowhere"), [])
    summary(scene, Output(as_json=False, file=text), cluster)
    summary(scene, Output(as_json=True, file=data), cluster)
    assert plain_line(scene.happenings[0]) in text.getvalue()
    assert "FAILED" in text.getvalue()
    assert "Nothing was lost" not in text.getvalue()
    assert json.loads(data.getvalue())["good"] is False
    screen = io.StringIO()
    Console(file=screen, width=100).print(live(scene, 24))
    assert "✗ 7 writes" in screen.getvalue()
    assert "map 7" in progress_line(scene)
