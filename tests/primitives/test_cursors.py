"""The slowest of a topic's cursors, against the least of all their positions."""

from heapq import heapreplace
from random import Random
from typing import Any

import pytest

from folkmoot.primitives._cursors import Cursor, Cursors
from folkmoot.primitives._seat import Seat


def made(cursors: Cursors, name: str, acknowledged: int) -> Cursor:
    cursor = Cursor(acknowledged, Seat())
    cursors.add(name, cursor)
    return cursor


def test_without_cursors_nothing_is_the_lowest() -> None:
    cursors = Cursors()
    assert cursors.lowest() is None
    made(cursors, "a", 0)
    assert cursors.lowest() == 0
    cursors.delete("a")
    assert cursors.lowest() is None


def test_a_name_that_is_used_again_is_another_cursor() -> None:
    cursors = Cursors()
    old = made(cursors, "a", 3)
    made(cursors, "b", 9)
    assert cursors.delete("a") is old
    made(cursors, "a", 7)
    old.acknowledged = 5
    assert cursors.lowest() == 7
    assert cursors.delete("c") is None
    with pytest.raises(AssertionError, match="already"):
        made(cursors, "a", 1)


@pytest.mark.parametrize("seed", range(20))
def test_the_lowest_is_the_least_of_all(seed: int) -> None:
    random, cursors, model = Random(seed), Cursors(), dict[str, Cursor]()
    names = "abcdefgh"[: random.randrange(1, 9)]
    for _ in range(500):
        name, position = random.choice(names), random.randrange(50)
        match random.randrange(4):
            case 0 if name not in model:
                model[name] = made(cursors, name, position)
            case 1:
                assert cursors.delete(name) is model.pop(name, None)
            case _ if name in model:
                model[name].acknowledged = max(model[name].acknowledged, position)
        if random.random() < 0.3:
            least = min((cursor.acknowledged for cursor in model.values()), default=None)
            assert cursors.lowest() == least
        assert list(cursors.items()) == list(model.items())
        assert len(cursors._heap) <= 2 * len(cursors) + 1


def test_cursors_that_come_and_go_leave_nothing_behind() -> None:
    """The slow one stays at the top, so the others' entries never come up to be dropped."""
    cursors = Cursors()
    made(cursors, "slow", 1)
    for position in range(2, 1000):
        made(cursors, "short", position)
        assert cursors.lowest() == 1
        cursors.delete("short")
        assert len(cursors._heap) <= 3


def test_an_acknowledgement_costs_one_entry_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 cursors that go round: each acknowledgement is paid for once."""
    replaced = 0

    def replace(heap: list[Any], entry: Any) -> None:
        nonlocal replaced
        replaced += 1
        heapreplace(heap, entry)

    monkeypatch.setattr("folkmoot.primitives._cursors.heapreplace", replace)
    cursors = Cursors()
    all_of_them = [made(cursors, str(number), 0) for number in range(10_000)]
    for position in (1, 2):
        for cursor in all_of_them:
            cursor.acknowledged = position
            assert cursors.lowest() in (position - 1, position)
    assert cursors.lowest() == 2
    assert replaced == 20_000
