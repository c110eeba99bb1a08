"""Keys in order, against a plain set; with tiny buckets, so that they split and vanish."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from folkmoot.primitives import _keys
from folkmoot.primitives._keys import SortedKeys
from folkmoot.primitives._subscriptions import KEY, PREFIX, Subscriptions

NAMES = st.integers(0, 40).map(lambda number: f"{number:02}")


def check_shape(keys: SortedKeys) -> None:
    assert keys._lasts == [max(bucket) for bucket in keys._buckets]
    assert keys._lasts == sorted(keys._lasts)
    for bucket in keys._buckets:
        assert 1 <= len(bucket) <= _keys._ROUGH_MAX
        assert bucket == sorted(bucket) or len(bucket) > 2 * _keys._BUCKET


@pytest.mark.parametrize("bucket", [1, 2, 3])
def test_keys_walk_in_order_from_any_point(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keys, "_BUCKET", bucket)
    monkeypatch.setattr(_keys, "_ROUGH_MAX", 8)
    monkeypatch.setattr(_keys, "_LATE_MAX", 3)
    doings = st.sampled_from(["add", "load", "load", "remove"])

    @settings(max_examples=100)
    @given(st.lists(NAMES, unique=True), st.lists(st.tuples(doings, NAMES), max_size=60), NAMES)
    def check(first: list[str], steps: list[tuple[str, str]], start: str) -> None:
        keys, model = SortedKeys(), set[str]()
        for doing, key in [("load", key) for key in first] + steps:
            if (doing == "remove") is (key in model):
                getattr(keys, doing)(key)
                (model.remove if doing == "remove" else model.add)(key)
            check_shape(keys)
        assert list(keys.walk(start)) == sorted(key for key in model if key >= start)
        assert list(keys.walk("")) == sorted(model)
        check_shape(keys)
        assert all(len(one) <= 2 * bucket for one in keys._buckets)

    check()


def test_the_order_is_that_of_utf_8() -> None:
    names = ["", "a", "\x00", "é", "\uffff", "\U0001f600", "a\0", "Z"]
    keys = SortedKeys()
    for name in names:
        keys.load(name)
    assert list(keys.walk("")) == sorted(names, key=str.encode)


TEXTS = st.text("ab", max_size=3)
FILTERS = st.tuples(st.sampled_from([KEY, PREFIX]), TEXTS)


OWNERS = st.sampled_from([0, 7, 8])
STEPS = st.lists(st.tuples(st.integers(1, 4), FILTERS, st.booleans(), OWNERS), max_size=30)


@given(STEPS, TEXTS)
def test_a_key_finds_each_of_its_subscribers_once(
    steps: list[tuple[int, tuple[str, str], bool, int]], key: str
) -> None:
    subscriptions = Subscriptions()
    model: dict[tuple[int, tuple[str, str]], int] = {}
    for who, where, add, owner in steps:
        if add:
            assert subscriptions.add(who, *where, owner) is ((who, where) not in model)
            model.setdefault((who, where), owner)
        else:
            gone = [model.pop((who, where))] if (who, where) in model else []
            assert subscriptions.remove(who, *where) == gone
        assert subscriptions.has(*where) is any(where == other for _, other in model)
    restored = Subscriptions()
    restored.restore(subscriptions.snapshot())
    assert restored.snapshot() == subscriptions.snapshot()
    wanted = {
        who for who, (kind, text) in model if (key == text if kind == KEY else key.startswith(text))
    }
    for index in (subscriptions, restored):
        assert list(index.matching(key)) == sorted(wanted)
        assert index.everybody() == sorted({who for who, _ in model})
        assert bool(index) is bool(model)
    for who in (1, 2, 3, 4):
        mine = [owner for (other, _), owner in sorted(model.items()) if other == who]
        assert restored.drop(who) == mine
        subscriptions.drop(who)
    assert subscriptions.snapshot() == []
    assert not subscriptions._lengths
    assert not subscriptions._keys
    assert not subscriptions._prefixes
