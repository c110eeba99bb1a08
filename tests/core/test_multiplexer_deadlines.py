"""The heap of deadlines against a plain dict that is sorted each time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.deadlines import NEVER, TIME_MAX, Deadlines

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "clear", "drop", "fire", "look", "again"]),
        st.integers(1, 3),
        st.sampled_from("abc"),
        st.integers(0, 20),
    ),
    max_size=80,
)


@given(STEPS)
def test_deadlines_agree_with_a_sorted_dict(steps: list[tuple[str, int, str, int]]) -> None:
    deadlines = Deadlines()
    plain: dict[tuple[int, str], int] = {}
    for what, resource_id, key, time in steps:
        if what == "set":
            deadlines.set(resource_id, key, time)
            plain[resource_id, key] = time
        elif what == "clear":
            deadlines.clear(resource_id, key)
            plain.pop((resource_id, key), None)
        elif what == "drop":
            deadlines.drop(resource_id)
            plain = {name: at for name, at in plain.items() if name[0] != resource_id}
        elif what == "look":
            assert deadlines.next() == min(plain.values(), default=None)
        else:
            due = sorted((at, *name) for name, at in plain.items() if at <= time)
            assert deadlines.take_due(time) == due
            for item in due:
                if what == "again" and item[2] == "a":  # while these fire, another one is moved
                    deadlines.set(item[1], "b", time + 1)
                    plain[item[1], "b"] = time + 1
                lives = plain.get((item[1], item[2])) == item[0]
                assert deadlines.claim(item) == lives
                if lives:
                    del plain[item[1], item[2]]
        assert len(deadlines) == len(plain)
        assert deadlines.earliest <= min(plain.values(), default=NEVER)
        assert deadlines.snapshot() == sorted([at, *name] for name, at in plain.items())
        assert len(deadlines._heap) <= 2 * len(plain) + 64
    copy = Deadlines()
    for resource_id in (3, 1, 2):
        for key, time in deadlines.of(resource_id):
            copy.set(resource_id, key, time)
    assert copy.snapshot() == deadlines.snapshot()
    assert copy.next() == deadlines.next()


def test_what_is_set_twice_to_the_same_time_fires_once() -> None:
    deadlines = Deadlines()
    deadlines.set(1, "a", 5)
    deadlines.clear(1, "a")
    deadlines.set(1, "a", 5)
    (item,) = deadlines.take_due(5)
    assert deadlines.claim(item)
    assert not deadlines.claim(item)
    assert deadlines.next() is None


def test_moving_one_deadline_for_ever_does_not_grow_the_heap() -> None:
    deadlines = Deadlines()
    for time in range(10_000):
        deadlines.set(1, "lease", time)
    assert len(deadlines._heap) <= 66
    for time in range(10_000, 20_000):
        deadlines.set(1, "lease", time)
        deadlines.clear(1, "lease")
    assert len(deadlines._heap) <= 64


@pytest.mark.parametrize(("time", "stored"), [(-7, 0), (1 << 70, TIME_MAX), (TIME_MAX, TIME_MAX)])
def test_a_time_out_of_range_is_brought_into_it(time: int, stored: int) -> None:
    deadlines = Deadlines()
    deadlines.set(1, "a", time)
    assert deadlines.next() == stored
    assert deadlines.take_due(TIME_MAX) == [(stored, 1, "a")]


@pytest.mark.parametrize(("key", "time"), [("a", 1.5), ("a", True), (b"a", 1), (None, 1)])
def test_what_is_no_key_or_no_time_is_a_fault(key: str, time: int) -> None:
    with pytest.raises(TypeError):
        Deadlines().set(1, key, time)
