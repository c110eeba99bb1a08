"""Keys in order, against a plain set; with tiny buckets, so that they split and vanish."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from folkmoot.primitives import _keys
from folkmoot.primitives._keys import SortedKeys
from folkmoot.primitives._subscriptions import KEY, PREFIX, Subscriptions

NAMES = st.integers(0, 40).map(lambda number: f"{number:02}")


def check_shape(keys: SortedKeys) -> None:
    assert keys._lasts == [bucket[-1] for bucket in keys._buckets]
    assert all(1 <= len(bucket) <= 2 * _keys._BUCKET for bucket in keys._buckets)


@pytest.mark.parametrize("bucket", [1, 2, 3])
def test_keys_walk_in_order_from_any_point(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keys, "_BUCKET", bucket)

    @settings(max_examples=100)
    @given(st.sets(NAMES), st.lists(st.tuples(st.booleans(), NAMES), max_size=60), NAMES)
    def check(first: set[str], steps: list[tuple[bool, str]], start: str) -> None:
        keys, model = SortedKeys(first), set(first)
        for add, key in steps:
            if add and key not in model:
                keys.add(key)
                model.add(key)
            elif not add and key in model:
                keys.remove(key)
                model.remove(key)
            check_shape(keys)
        assert list(keys.walk("")) == sorted(model)
        assert list(keys.walk(start)) == sorted(key for key in model if key >= start)

    check()


def test_the_order_is_that_of_utf_8() -> None:
    names = ["", "a", "\x00", "é", "\uffff", "\U0001f600", "a\0", "Z"]
    assert list(SortedKeys(names).walk("")) == sorted(names, key=str.encode)


TEXTS = st.text("ab", max_size=3)
FILTERS = st.tuples(st.sampled_from([KEY, PREFIX]), TEXTS)


@given(st.lists(st.tuples(st.integers(1, 4), FILTERS, st.booleans()), max_size=30), TEXTS)
def test_a_key_finds_each_of_its_subscribers_once(
    steps: list[tuple[int, tuple[str, str], bool]], key: str
) -> None:
    subscriptions, model = Subscriptions(), set()
    for who, where, add in steps:
        if add:
            subscriptions.add(who, *where)
            model.add((who, where))
        else:
            assert subscriptions.remove(who, *where) is ((who, where) in model)
            model.discard((who, where))
        assert subscriptions.has(*where) is any(where == other for _, other in model)
    restored = Subscriptions()
    restored.restore(subscriptions.snapshot())
    wanted = {
        who for who, (kind, text) in model if (key == text if kind == KEY else key.startswith(text))
    }
    for index in (subscriptions, restored):
        assert list(index.matching(key)) == sorted(wanted)
        assert index.everybody() == sorted({who for who, _ in model})
        assert bool(index) is bool(model)
    for who in (1, 2, 3, 4):
        subscriptions.drop(who)
    assert subscriptions.snapshot() == []
    assert not subscriptions._lengths
    assert not subscriptions._keys
    assert not subscriptions._prefixes
