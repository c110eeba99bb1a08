"""The topic's machine: golden scripts, and all kinds of histories against plain lists."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from folkmoot.core.errors import BadCommand, ConfigError, LimitExceeded, NotHeld
from folkmoot.primitives import topic_machine
from folkmoot.primitives._retained import PAGE_BYTES_MAX
from folkmoot.primitives.topic_machine import TopicMachine
from tests.primitives.harness import Event, Harness, check_script, scripts
from tests.primitives.twins import Twins


@pytest.mark.parametrize("path", scripts("topic"))
def test_script(path: Path, rewrite: bool) -> None:
    check_script(TopicMachine, path, rewrite)


SESSIONS = st.integers(1, 3)
NAMES = st.sampled_from(["a", "b"])
CONFIGS = st.sampled_from(
    [
        *({}, {"count": 1}, {"count": 3}, {"bytes": 5}, {"age_ms": 20}),
        *({"count": 2, "age_ms": 20}, {"count": 1, "bytes": 5, "age_ms": 20}),
    ]
)


class TopicAgainstLists(RuleBasedStateMachine):
    """Model: all messages ever, how many are gone, positions of cursors, lists of who waits."""

    @initialize(config=CONFIGS, held_max=st.sampled_from([2, 5, topic_machine.HELD_MAX]))
    def start(self, config: dict[str, int], held_max: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(topic_machine, "HELD_MAX", held_max)
        self.topic = Twins(TopicMachine, config)
        self.count = config.get("count", 1000)
        self.count_max = max(self.count, held_max)
        self.bytes = config.get("bytes", 1 << 20)
        self.age = config.get("age_ms")
        self.alive = {1: 1, 2: 2, 3: 3}
        self.requests = self.last_token = 0
        self.messages: list[tuple[int, int, bytes]] = []
        self.gone = 0
        self.subscribers: set[int] = set()
        self.cursors: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.consumers: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}  # the first consumes
        self.expected: list[Event] = []

    def teardown(self) -> None:
        self.patch.undo()

    @property
    def retained(self) -> list[tuple[int, int, bytes]]:
        return self.messages[self.gone :]

    def is_kept(self, place: int) -> bool:
        """Whether the retention or a cursor asks for a message, and no bound forbids it."""
        revision, time, _ = self.messages[place]
        newer = self.messages[place:]
        is_asked_for = len(newer) <= self.count or any(
            acknowledged < revision for acknowledged in self.cursors.values()
        )
        fits = len(newer) <= self.count_max and sum(len(m[2]) for m in newer) <= self.bytes
        is_young = self.age is None or time + self.age > self.topic.time
        return is_asked_for and fits and is_young

    def settle(self) -> None:
        places = range(self.gone, len(self.messages))
        self.gone = max([place + 1 for place in places if not self.is_kept(place)] or [self.gone])
        assert self.topic.take() == self.expected
        self.expected = []

    @rule(who=SESSIONS, message=st.binary(max_size=6))
    def publish(self, who: int, message: bytes) -> None:
        assert self.topic.command(self.alive[who], "publish", message) == self.topic.index
        one = (self.topic.index, self.topic.time, message)
        self.messages.append(one)
        self.expected = [
            Event(s, self.topic.index, "message", list(one)) for s in sorted(self.subscribers)
        ]
        self.settle()

    @rule(who=SESSIONS, count=st.integers(2, 4))
    def publish_some(self, who: int, count: int) -> None:
        for _ in range(count):
            self.publish(who, b".")

    @rule(milliseconds=st.sampled_from([1, 8, 30]))
    def advance(self, milliseconds: int) -> None:
        self.topic.advance(milliseconds)
        self.settle()

    @rule(who=SESSIONS, after=st.integers(0, 12), limit=st.integers(0, 4))
    def read(self, who: int, after: int, limit: int) -> None:
        floor, head, page = self.topic.query(self.alive[who], "read", after, limit)
        assert floor == (self.messages[self.gone - 1][0] if self.gone else 0)
        assert head == (self.messages[-1][0] if self.messages else 0)
        wanted = [list(message) for message in self.retained if message[0] > after]
        assert page == wanted[: max(limit, 1)]

    @rule(who=SESSIONS, how=st.sampled_from(["subscribe", "subscribe", "unsubscribe", "cut"]))
    def watch(self, who: int, how: str) -> None:
        session = self.alive[who]
        if how == "cut":
            assert self.topic.cut(session) is (session in self.subscribers)
        else:
            self.topic.command(session, how, "prefix", "")
        self.subscribers.discard(session)
        if how == "subscribe":
            self.subscribers.add(session)
        self.settle()

    def grant_next(self, name: str, before: list[tuple[int, int]]) -> None:
        """After somebody left: the first in line may be another one now."""
        line, index = self.consumers[name], self.topic.index
        if line and before[0] != line[0]:
            self.tokens[name] = self.last_token = max(index, self.last_token + 1)
            payload = [line[0][1], self.last_token, self.cursors[name]]
            self.expected.append(Event(line[0][0], index, "grant", payload, keep=True))

    @rule(who=SESSIONS, name=NAMES, since=st.none() | st.integers(0, 9))
    def consume(self, who: int, name: str, since: int | None) -> None:
        self.requests += 1
        session = self.alive[who]
        answer = self.topic.command(session, "consume", name, self.requests, since)
        newest = self.messages[-1][0] if self.messages else 0
        self.cursors.setdefault(name, newest if since is None else since)
        self.consumers[name].append((session, self.requests))
        if len(self.consumers[name]) == 1:
            self.tokens[name] = self.last_token = max(self.topic.index, self.last_token + 1)
            assert answer == [self.last_token, self.cursors[name]]
        else:
            assert answer == [0, 0]
        self.settle()

    @rule(who=SESSIONS, name=NAMES, back=st.integers(0, 4))
    def withdraw(self, who: int, name: str, back: int) -> None:
        claim = (self.alive[who], self.requests - back)
        line, before = self.consumers[name], list(self.consumers[name])
        assert self.topic.command(claim[0], "withdraw", name, claim[1]) is (claim in line)
        if claim in line:
            line.remove(claim)
            self.grant_next(name, before)
        self.settle()

    @rule(who=SESSIONS, name=NAMES, off=st.sampled_from([0, 0, 0, 1]), revision=st.integers(0, 12))
    def acknowledge(self, who: int, name: str, off: int, revision: int) -> None:
        self.move(self.alive[who], name, off, revision)

    @rule(name=NAMES, back=st.integers(0, 4))
    def acknowledge_lately(self, name: str, back: int) -> None:
        line, lately = self.consumers[name], [0, *(message[0] for message in self.messages)]
        self.move(line[0][0] if line else 1, name, 0, lately[-1 - min(back, len(lately) - 1)])

    def move(self, session: int, name: str, off: int, revision: int) -> None:
        line, token = self.consumers[name], self.tokens.get(name, 0) - off
        answer = self.topic.command(session, "acknowledge", name, token, revision)
        newest = self.messages[-1][0] if self.messages else 0
        if not line or line[0][0] != session or off:
            assert answer is NotHeld
        elif revision > max(newest, self.cursors[name]):
            assert answer is BadCommand
        else:
            self.cursors[name] = max(self.cursors[name], revision)
            assert answer == self.cursors[name]
        self.settle()

    @rule(who=SESSIONS, name=NAMES)
    def delete_cursor(self, who: int, name: str) -> None:
        there = self.cursors.pop(name, None) is not None
        assert self.topic.command(self.alive[who], "delete_cursor", name) is there
        for place, (session, request) in enumerate(self.consumers[name]):
            payload = [request, 0 if place else self.tokens[name], "deleted"]
            self.expected.append(Event(session, self.topic.index, "ended", payload, keep=True))
        self.consumers[name] = []
        self.settle()

    @rule(who=SESSIONS)
    def end(self, who: int) -> None:
        session = self.alive[who]
        self.alive[who] = session + 3
        self.topic.end(session)
        self.subscribers.discard(session)
        for name in self.cursors:  # in the order of their creation
            before = list(self.consumers[name])
            self.consumers[name] = [claim for claim in before if claim[0] != session]
            self.grant_next(name, before)
        self.settle()

    @rule()
    def restart(self) -> None:
        self.topic.restart()

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        view = self.topic.query(self.alive[1], "describe")
        assert view["retained"] == len(self.retained)
        assert view["retained_bytes"] == sum(len(message[2]) for message in self.retained)
        due = self.retained[0][1] + self.age if self.age is not None and self.retained else None
        assert self.topic.continued.deadlines == ({} if due is None else {"age": due})
        assert view["subscribers"] == len(self.subscribers)
        lines = self.consumers
        assert [cursor[:3] + cursor[4:] for cursor in view["cursors"]] == [
            [name, at, lines[name][0][0] if lines[name] else 0, max(0, len(lines[name]) - 1)]
            for at, name in sorted((at, name) for name, at in self.cursors.items())
        ]
        held = {self.tokens[name] for name in self.cursors if lines[name]}
        assert len(held) == len([name for name in self.cursors if lines[name]])
        for token in range(1, self.last_token + 3):
            assert self.topic.machine.holds_grant(token) is (token in held)
        busy = self.messages or self.subscribers or self.cursors
        assert self.topic.machine.idle() is not bool(busy)


TestTopicAgainstLists = TopicAgainstLists.TestCase
TestTopicAgainstLists.settings = settings(max_examples=300, stateful_step_count=40)


@pytest.mark.parametrize(
    "config", [{"count": 0}, {"count": True}, {"bytes": 1 << 31}, {"age_ms": 0.5}, {"age": 1}]
)
def test_a_wrong_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(config))):
        TopicMachine(config)


def test_the_default_retention_is_bounded() -> None:
    topic = Harness(TopicMachine, thorough=False)
    for _ in range(2501):
        topic.command(1, "publish", b"x" * 20_000)
    view = topic.query(1, "describe")
    assert view["retained"] * 20_000 == view["retained_bytes"] <= 16 << 20
    assert view["retained"] == (16 << 20) // 20_000
    floor, _, page = topic.query(1, "read", 0, 10)
    assert page[0][0] == floor + 1
    assert len(topic.log.live) == view["retained"]


def test_what_cursors_hold_is_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_machine, "HELD_MAX", 4)
    for count, retained in ((2, 4), (4, 4), (6, 6)):
        topic = Harness(TopicMachine, {"count": count})
        topic.command(1, "consume", "away", 1)
        for _ in range(9):
            topic.command(1, "publish", b"")
        assert topic.query(1, "describe")["retained"] == retained
        topic.command(1, "acknowledge", "away", 1, topic.index)
        assert topic.query(1, "describe")["retained"] == count


def test_a_forgotten_cursor_takes_what_the_bounds_allow_and_no_more() -> None:
    topic = Harness(TopicMachine, {"bytes": 1_000_000}, thorough=False)
    topic.command(1, "consume", "forgotten", 1)
    for _ in range(2100):
        topic.command(1, "publish", b"x" * 500)
    view = topic.query(1, "describe")
    assert (view["retained"], view["retained_bytes"]) == (2000, 1_000_000)
    assert len(topic.log.live) == 2000
    topic.restart()
    topic.command(1, "delete_cursor", "forgotten")
    assert topic.query(1, "describe")["retained"] == len(topic.log.live) == 1000
    topic.restart()


def test_the_cursors_furthest_behind_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_machine, "LISTED_MAX", 2)
    topic = Harness(TopicMachine)
    for request, (name, since) in enumerate([("a", 3), ("d", 2), ("c", 2), ("b", 4)], 1):
        topic.command(1, "consume", name, request, since)
    view = topic.query(1, "describe")
    assert [cursor[:2] for cursor in view["cursors"]] == [["c", 2], ["d", 2]]
    assert view["cursor_count"] == 4


def test_a_page_is_bounded_in_bytes_and_has_one_message_at_least() -> None:
    topic = Harness(TopicMachine)
    large = bytes(PAGE_BYTES_MAX // 2 + 1)
    for message in (large, large, large * 2, b"small"):
        topic.command(1, "publish", message)
    read = [[m[0] for m in topic.query(1, "read", after, 9)[2]] for after in range(4)]
    assert read == [[1], [2], [3], [4]]


def test_cursors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_machine, "CURSORS_MAX", 2)
    topic = Harness(TopicMachine)
    topic.command(1, "consume", "a", 1)
    topic.command(1, "consume", "b", 2)
    with pytest.raises(LimitExceeded):
        topic.command(1, "consume", "c", 3)
    topic.command(1, "delete_cursor", "a")
    topic.command(1, "consume", "c", 4)


def test_a_refused_claim_makes_no_cursor() -> None:
    topic = Harness(TopicMachine)
    with pytest.raises(BadCommand):
        topic.command(1, "consume", "a", 0)
    assert topic.machine.idle()
