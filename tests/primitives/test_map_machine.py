"""The map's machine: golden scripts, and histories of all kinds against a plain dict."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from folkmoot.core.errors import BadCommand, ConditionFailed, ConfigError, LimitExceeded
from folkmoot.primitives._subscriptions import FILTERS_MAX
from folkmoot.primitives.map_machine import (
    CLEAR_EVENTS_MAX,
    KEEP,
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
    MapMachine,
)
from folkmoot.transport.codec import pack, unpack
from tests.primitives.harness import Event, Harness, check_script, scripts


@pytest.mark.parametrize("path", scripts("map"))
def test_script(path: Path, rewrite: bool) -> None:
    check_script(MapMachine, path, rewrite)


KEYS = st.sampled_from(["a", "a", "a", "aa", "aa", "", "ab", "b", "é", "\U0001f600"])
VALUES = st.sampled_from([b"", b"1", b"2", bytes(60)])
TTLS = st.sampled_from([0, 0, 1, 5, 1000])
WHO = st.integers(1, 3)
FILTERS = st.tuples(st.sampled_from(["key", "prefix"]), KEYS)


class MapAgainstDict(RuleBasedStateMachine):
    """Model: a dict of value, version, expiry; and a set of filters per session."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness(MapMachine)
        self.twin = Harness(MapMachine)  # never restarted
        self.items: dict[str, tuple[bytes, int, int | None]] = {}
        self.filters: dict[int, set[tuple[str, str]]] = {}
        self.alive = {1: 1, 2: 2, 3: 3}  # who -> session

    def command(self, name: str, *args: Any, session: int = 9) -> Any:
        answers = []
        for harness in (self.harness, self.twin):
            try:
                answers.append(harness.command(session, name, *args))
            except ConditionFailed as error:
                answers.append(("refused", error.data))
        assert answers[0] == answers[1]
        return answers[0]

    def expect(self, *changes: tuple[str, list[Any]]) -> None:
        """Compare what was published with what must have been, for this entry."""
        told = [
            Event(session, self.harness.index, kind, payload)
            for kind, payload in changes
            for session in sorted(self.filters)
            if any(
                text == payload[0] if by == "key" else payload[0].startswith(text)
                for by, text in self.filters[session]
            )
        ]
        assert self.harness.take() == told
        assert self.twin.take() == told

    def put(self, key: str, value: bytes, ttl: int) -> tuple[str, list[Any]]:
        old = self.items.get(key)
        expiry = self.harness.time + ttl if ttl > 0 else None
        if ttl == KEEP and old:
            expiry = old[2]
        self.items[key] = (value, self.harness.index, expiry)
        return "set", [key, value, old and old[0]]

    @rule(key=KEYS, value=VALUES, ttl=TTLS | st.just(KEEP), want=st.just(-1) | st.integers(0, 8))
    def set(self, key: str, value: bytes, ttl: int, want: int) -> None:
        version = self.items[key][1] if key in self.items else 0
        answer = self.command("set", key, value, ttl, want)
        if want not in (-1, version):
            assert answer == ("refused", version)
            return self.expect()
        assert answer == self.harness.index
        return self.expect(self.put(key, value, ttl))

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def create(self, key: str, value: bytes, ttl: int) -> None:
        answer = self.command("create", key, value, ttl)
        if key in self.items:
            assert answer is None
            return self.expect()
        assert answer == self.harness.index
        return self.expect(self.put(key, value, ttl))

    @rule(key=KEYS, value=VALUES, ttl=TTLS, want=st.none() | VALUES)
    def replace(self, key: str, value: bytes, ttl: int, want: bytes | None) -> None:
        answer = self.command("replace", key, value, ttl, want)
        if key not in self.items or want not in (None, self.items[key][0]):
            assert answer is None
            return self.expect()
        assert answer == self.harness.index
        return self.expect(self.put(key, value, ttl))

    @rule(values=st.dictionaries(KEYS, VALUES, max_size=5), ttl=TTLS | st.just(KEEP))
    def set_many(self, values: dict[str, bytes], ttl: int) -> None:
        assert self.command("set_many", values, ttl) == self.harness.index
        self.expect(*[self.put(key, value, ttl) for key, value in values.items()])

    @rule(key=KEYS, want=st.just(-1) | st.integers(0, 8))
    def delete(self, key: str, want: int) -> None:
        version = self.items[key][1] if key in self.items else 0
        answer = self.command("delete", key, want)
        if want not in (-1, version):
            assert answer == ("refused", version)
            return self.expect()
        if not version:
            assert answer is None
            return self.expect()
        assert answer == self.harness.index
        return self.expect(("removed", [key, self.items.pop(key)[0]]))

    @rule(key=KEYS)
    def pop(self, key: str) -> None:
        old = self.items.pop(key, None)
        assert self.command("pop", key) == [self.harness.index, old and old[0]]
        self.expect(*[("removed", [key, old[0]])] if old else [])

    @rule()
    def clear(self) -> None:
        assert self.command("clear") == self.harness.index
        self.expect(*[("removed", [key, self.items[key][0]]) for key in sorted(self.items)])
        self.items = {}

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: str, ttl: int) -> None:
        answer = self.command("touch", key, ttl)
        if key in self.items:
            value, version, _ = self.items[key]
            self.items[key] = (value, version, self.harness.time + ttl if ttl else None)
            assert answer == self.harness.index
        else:
            assert answer is None
        self.expect()

    @rule(milliseconds=st.sampled_from([0, 1, 3, 900]))
    def advance(self, milliseconds: int) -> None:
        end = self.harness.time + milliseconds
        index = self.harness.index
        due: dict[int, list[str]] = {}
        for key, (_, _, expiry) in self.items.items():
            if expiry is not None and expiry <= end:
                due.setdefault(expiry, []).append(key)
        self.harness.advance(milliseconds)
        self.twin.advance(milliseconds)
        assert self.harness.index == index + len(due)
        told = [
            (event.kind, event.payload)
            for event in self.harness.take()
            if event.session == self.alive[1]
        ]
        assert told == [
            ("expired", [key, self.items[key][0]])
            for _, keys in sorted(due.items())
            for key in sorted(keys)
            if any(
                text == key if by == "key" else key.startswith(text)
                for by, text in self.filters.get(self.alive[1], ())
            )
        ]
        self.twin.take()
        for keys in due.values():
            for key in keys:
                del self.items[key]

    @rule(who=WHO, where=FILTERS)
    def subscribe(self, who: int, where: tuple[str, str]) -> None:
        session = self.alive[who]
        answer = self.command("subscribe", *where, session=session)
        assert answer == self.harness.index
        self.filters.setdefault(session, set()).add(where)

    @rule(who=WHO, where=FILTERS)
    def unsubscribe(self, who: int, where: tuple[str, str]) -> None:
        session = self.alive[who]
        was = where in self.filters.get(session, set())
        assert self.command("unsubscribe", *where, session=session) is was
        self.filters.get(session, set()).discard(where)

    @rule(who=WHO)
    def cut(self, who: int) -> None:
        had = bool(self.filters.pop(self.alive[who], None))
        assert self.harness.cut(self.alive[who]) is had
        assert self.twin.cut(self.alive[who]) is had

    @rule(who=WHO)
    def end(self, who: int) -> None:
        session = self.alive[who]
        self.alive[who] = session + 3
        self.filters.pop(session, None)
        self.harness.end(session)
        self.twin.end(session)
        self.expect()

    @precondition(lambda self: self.harness.index % 3 == 0)
    @rule()
    def restart(self) -> None:
        """From here on, restored (from trimmed entries) and never restored must stay the same."""
        self.harness.restart()

    @rule(
        prefix=KEYS, start=KEYS, stop=st.none() | KEYS, limit=st.integers(1, 9), full=st.booleans()
    )
    def page(self, prefix: str, start: str, stop: str | None, limit: int, full: bool) -> None:
        wanted = [
            key
            for key in sorted(self.items)
            if key.startswith(prefix) and key >= start and (stop is None or key < stop)
        ]
        keys, values, more = self.harness.query(1, "page", prefix, start, stop, limit, full)
        assert keys == wanted[:limit]
        assert more is (len(wanted) > limit)
        assert values == ([self.items[key][0] for key in keys] if full else None)

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        item = self.items.get(key)
        assert self.harness.query(1, "get", key) == (item and item[0])
        assert self.harness.query(1, "contains", key) is (item is not None)
        left = item and [item[0], item[1], item[2] and item[2] - self.harness.time]
        assert self.harness.query(1, "entry", key) == left
        assert self.harness.query(1, "get_many", [key, "no"]) == [item and item[0], None]

    @invariant()
    def size_and_deadlines(self) -> None:
        assert self.harness.query(1, "size") == len(self.items)
        expiries = {key: item[2] for key, item in self.items.items() if item[2] is not None}
        assert self.harness.deadlines == expiries
        assert self.harness.query(1, "describe")["expiring"] == len(expiries)
        assert self.harness.machine.idle() is (not self.items and not any(self.filters.values()))

    @invariant()
    def restored_is_the_same(self) -> None:
        assert self.harness.digest() == self.twin.digest()


MapAgainstDict.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_against_a_dict = MapAgainstDict.TestCase


def test_a_large_set_many_does_not_stay_whole_for_one_key() -> None:
    values = {f"{number:04}": bytes(100) for number in range(1000)}
    name, args = "set_many", [values, 50]
    for first in (3, 100):  # so many values are gone
        rest = list(range(first, 1000)) + list(range(1000, 2000))
        before = pack(args)
        name, args = MapMachine.trim(name, args, rest)
        assert name == ("set_many" if first == 3 else "kept")
        assert len(pack(args)) <= len(before)
    name, args = MapMachine.trim(name, unpack(pack(args)), [107, 1103, 1107])
    parts = [[103, "0103", None, True], [107, "0107", bytes(100), True]]
    assert (name, args) == ("kept", [1000, 50, parts])
    name, args = MapMachine.trim(name, args, [1103])
    assert args == [1000, 50, [[103, "0103", None, True]]]


def test_of_an_entry_that_lives_for_its_expiry_only_the_key_and_the_ttl_are_kept() -> None:
    for name in ("set", "create", "replace"):
        kept = MapMachine.trim(name, ["k", bytes(1000), 50], [1])
        assert kept == ("kept", [1, 50, [[0, "k", None, True]]])


@pytest.mark.parametrize(
    ("name", "args", "ordinals"),
    [
        ("set", ["k", b"1"], [0]),
        ("set", ["k", b"1", 50, 7], [0]),
        ("set", ["k", b"1", 50], [0, 1]),
        ("set_many", [{"k": b"1", "l": b"2"}], [0, 1]),
        ("set_many", [{"k": b"1", "l": b"2"}, 50], [0, 1, 3]),
        ("touch", ["k", 50], [0]),
        ("subscribe", ["key", "k"], [0]),
    ],
)
def test_an_entry_with_nothing_to_leave_out_stays_as_it_is(
    name: str, args: list[Any], ordinals: list[int]
) -> None:
    assert MapMachine.trim(name, args, ordinals) == (name, args)


def filled(count: int, size_bytes: int = 1) -> Harness:
    harness = Harness(MapMachine)
    values = {f"{number:05}": bytes(size_bytes) for number in range(count)}
    harness.command(1, "set_many", values)
    return harness


def test_a_page_is_cut_at_a_number_of_keys_and_says_so() -> None:
    harness = filled(PAGE_KEYS_MAX + 1)
    keys, _, more = harness.query(1, "page", "", "", None, 1 << 20, False)
    assert (len(keys), more) == (PAGE_KEYS_MAX, True)
    keys, _, more = harness.query(1, "page", "", keys[-1] + "\0", None, 1 << 20, False)
    assert (keys, more) == ([f"{PAGE_KEYS_MAX:05}"], False)


def test_a_page_is_cut_at_a_number_of_bytes_but_never_empty() -> None:
    harness = filled(3, PAGE_BYTES_MAX // 2 - 10)
    keys, _, more = harness.query(1, "page", "", "", None, 100, True)
    assert (len(keys), more) == (2, True)
    harness = filled(2, PAGE_BYTES_MAX * 2)
    keys, values, more = harness.query(1, "page", "", "", None, 100, True)
    assert (len(keys), len(values[0]), more) == (1, PAGE_BYTES_MAX * 2, True)


def test_many_values_that_are_too_large_together_are_refused_and_one_never() -> None:
    harness = filled(2, PAGE_BYTES_MAX * 2)
    assert len(harness.query(1, "get_many", ["00001"])[0]) == PAGE_BYTES_MAX * 2
    with pytest.raises(LimitExceeded, match="of these 2 keys have more than"):
        harness.query(1, "get_many", ["00000", "00001"])


@pytest.mark.parametrize("count", [CLEAR_EVENTS_MAX, CLEAR_EVENTS_MAX + 1])
def test_a_large_clear_is_one_event_to_each_subscriber(count: int) -> None:
    harness = filled(count)
    harness.command(1, "subscribe", "prefix", "")
    harness.command(2, "subscribe", "key", "no such key")
    harness.command(3, "clear")
    told = [(event.session, event.kind) for event in harness.take()]
    if count <= CLEAR_EVENTS_MAX:
        assert told == [(1, "removed")] * count
    else:
        assert told == [(1, "cleared"), (2, "cleared")]


def test_a_clear_of_large_values_is_one_event() -> None:
    harness = filled(2, 200_000)
    harness.command(1, "subscribe", "prefix", "")
    harness.command(1, "clear")
    assert [event.kind for event in harness.take()] == ["cleared"]


def test_a_session_sets_a_bounded_number_of_filters() -> None:
    harness = Harness(MapMachine, thorough=False)
    for number in range(FILTERS_MAX):
        harness.command(1, "subscribe", "key", str(number))
    harness.command(1, "subscribe", "key", "0")  # it has this one
    with pytest.raises(LimitExceeded, match=f"watches {FILTERS_MAX}"):
        harness.command(1, "subscribe", "prefix", "")
    harness.command(2, "subscribe", "prefix", "")
    harness.restart()


def test_a_map_takes_no_configuration() -> None:
    with pytest.raises(ConfigError, match="map takes no configuration, got \\['x'\\]"):
        MapMachine({"x": 1})


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(BadCommand, match="no filter by 'range'"):
        Harness(MapMachine).command(1, "unsubscribe", "range", "a")
