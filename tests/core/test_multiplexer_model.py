"""Random logs against the dumb twin: answers, events, ends, what is due; restarts at any point."""

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from folkmoot.core.applied import Applied, Results
from folkmoot.core.batch import Group, Kind, decode_batch, encode_batch
from folkmoot.core.config import LimitsConfig
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.requests import encode_commands
from folkmoot.core.sessions import encode_close, encode_expire, encode_keep_alive, encode_open
from folkmoot.transport.codec import pack
from tests.core.prefix_twin import PrefixTwin, finish, restore
from tests.core.scratch import REGISTRY, named
from tests.core.twin import Twin

LIMITS = LimitsConfig(
    sessions_max=4,
    resources_max=5,
    session_window=6,
    session_events_max=16,
    session_event_bytes_max=4096,
)
SECRETS = [b"a", b"b", b"c", b"d", b"e"]
KEYS = ["x", "y", "again", "set:x", "set:again", "clear:x", "clear:y", "release", "empty:"]

small = st.integers(0, 3)
picks = st.integers(0, 11)
references = st.sampled_from(["one", "two", "three"]) | st.tuples(st.just("id"), picks)
calls = st.one_of(
    st.tuples(st.just("add"), st.tuples(small)),
    st.tuples(st.just("push"), st.tuples(st.just([1]))),
    st.tuples(st.sampled_from(["hold", "release", "watch", "who"]), st.just(())),
    st.tuples(
        st.just("tell"),
        st.tuples(
            st.lists(picks, max_size=12),
            st.just("x"),
            st.sampled_from([b"", b"." * 600]),
            st.booleans(),
        ),
    ),
    st.tuples(st.just("later"), st.tuples(st.sampled_from(KEYS), st.integers(-5, 60))),
    st.tuples(st.just("never"), st.tuples(st.sampled_from(KEYS))),
)
directory = st.one_of(
    st.tuples(
        st.just("open"), st.sampled_from(["one", "two"]), st.sampled_from(["scratch", "other"])
    ),
    st.tuples(st.just("close"), st.lists(picks, max_size=3)),
    st.tuples(st.just("delete"), picks),
)
operations = st.one_of(
    st.tuples(references, calls, st.none() | st.tuples(picks, picks)),
    *[st.tuples(references, calls, st.none())] * 4,
    directory,
)


class RandomLog(RuleBasedStateMachine):
    """One batch of one to three groups per rule `commit`; the other rules fill the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mux = Multiplexer(REGISTRY, LIMITS)
        self.prefix = PrefixTwin()
        self.steady = Multiplexer(REGISTRY, LIMITS)  # the same log, never restarted
        self.twin = Twin(LIMITS)
        self.time = 0
        self.groups: list[Group] = []
        self.plain: list[list[Any]] = []

    def known(self, pick: int) -> int:
        """Choose a session that lives, or one that does not."""
        sessions = sorted(self.twin.sessions)
        return sessions[pick % len(sessions)] if sessions and pick < 11 else 77

    def resource(self, pick: int) -> int:
        """Choose a resource that exists, or one that does not."""
        resources = sorted(self.twin.resources)
        return resources[pick % len(resources)] if resources and pick < 11 else 78

    @initialize()
    def begin(self) -> None:
        self.open(b"a", 1000)
        self.open(b"b", 30)
        self.commit(0)

    @rule(secret=st.sampled_from(SECRETS), timeout=st.integers(1, 40))
    def open(self, secret: bytes, timeout: int) -> None:
        self.groups.append(encode_open(secret, timeout, "name"))
        self.plain.append(["open", secret, timeout])

    @rule(items=st.lists(st.tuples(picks, st.integers(-1, 2), st.integers(-3, 3)), max_size=4))
    def keep_alive(self, items: list[tuple[int, int, int]]) -> None:
        made = [
            [self.known(pick), *self.marks(pick, low, event), pick] for pick, low, event in items
        ]
        self.groups.append(encode_keep_alive(made))
        self.plain.append(["keep_alive", made])

    @rule(pick=picks, kind=st.sampled_from(["expire", "expire", "expire", "close"]))
    def end(self, pick: int, kind: str) -> None:
        session_id = self.known(pick)
        encode = encode_close if kind == "close" else encode_expire
        self.groups.append(encode(session_id))
        self.plain.append([kind, session_id])

    @rule(
        kind=st.sampled_from([Kind.TICK, Kind.INITIALIZE, Kind.CONFIGURATION]),
        count=st.integers(1, 3),
    )
    def quiet(self, kind: Kind, count: int) -> None:
        self.groups.append(Group(kind, count, b""))
        self.plain.append([kind.name, count])

    @rule(
        pick=picks,
        ahead=st.sampled_from([0, 0, 0, 0, -1, -3, 2]),
        low=st.integers(-1, 2),
        event=st.integers(-3, 3),
        chosen=st.lists(operations, min_size=1, max_size=6),
        now=st.booleans(),
    )
    def commands(
        self, pick: int, ahead: int, low: int, event: int, chosen: list[Any], now: bool
    ) -> None:
        session_id = self.known(pick)
        session = self.twin.sessions.get(session_id)
        first = max(0, (session.sequence if session else 0) + 1 + ahead)
        made = [self.operation(*parts) for parts in chosen]
        low_water, event_index = self.marks(pick, low, event)
        body = encode_commands(session_id, first, low_water, event_index, made)
        self.groups.append(Group(Kind.COMMANDS, len(made), body))
        self.plain.append(["commands", session_id, first, low_water, event_index, made])
        if now:
            self.commit(0)

    def marks(self, pick: int, low: int, event: int) -> list[int]:
        """Make the two marks, near the truth."""
        session = self.twin.sessions.get(self.known(pick))
        if session is None:
            return [0, 0]
        return [max(0, session.sequence + low - 1), max(0, session.last + event)]

    def operation(self, head: Any, *rest: Any) -> list[Any]:
        if head == "open":
            return [0, "open", [rest[0], rest[1], 1, {}]]
        if head == "close":
            return [0, "close", [[self.resource(pick) for pick in rest[0]]]]
        if head == "delete":
            return [0, "delete", [self.resource(rest[0])]]
        reference = named(head) if isinstance(head, str) else self.resource(head[1])
        (name, args), fence = rest
        args = list(args)
        if name == "tell":
            args[0] = [self.known(pick) for pick in args[0]]
        if name == "later":
            args[1] += self.time
        if fence is None:
            return [reference, name, args]
        return [reference, name, args, [self.resource(fence[0]), self.twin.index - fence[1] % 4]]

    @rule(passing=st.sampled_from([0, 0, 1, 10, 50]))
    def commit(self, passing: int) -> None:
        if not self.groups:
            return
        self.time += passing
        batch = encode_batch(1, self.mux.index + 1, self.time, self.groups)
        applied = self.mux.apply(decode_batch(batch.data))
        self.prefix.batch(batch)
        assert self.steady.apply(decode_batch(batch.data)) == applied
        self.twin.ended = []
        expected = self.tell_twin()
        assert answers(applied.results) == expected["answers"]
        assert [[o.session_id] for o in applied.opened] == expected["opened"]
        assert [[k.session_id, k.number, k.index] for k in applied.kept] == expected["kept"]
        unknown = [[e.session_id, e.index] for e in applied.ended if e.reason == "unknown"]
        assert unknown == expected["unknown"]
        ended = [[e.session_id, e.reason, e.index] for e in applied.ended if e.reason != "unknown"]
        assert ended == self.twin.ended
        self.check_dirty(applied, batch.first_index)
        self.groups, self.plain = [], []

    def tell_twin(self) -> dict[str, list[Any]]:
        twin = self.twin
        out: dict[str, list[Any]] = {"answers": [], "opened": [], "kept": [], "unknown": []}
        for what, *fields in self.plain:
            if what == "commands":
                self.tell_commands(out["answers"], *fields)
                continue
            twin.entry(self.time)
            if what == "open":
                out["opened"].append([twin.open(*fields)])
            elif what == "keep_alive":
                for session_id, low_water, event_index, number in fields[0]:
                    if twin.marks(session_id, low_water, event_index):
                        out["kept"].append([session_id, number, twin.index])
                    else:
                        out["unknown"].append([session_id, twin.index])
            elif what == "close":
                if fields[0] not in twin.sessions:
                    out["unknown"].append([fields[0], twin.index])
                twin.end(fields[0], "closed")
            elif what == "expire":
                session = twin.sessions.get(fields[0])
                if session is not None and twin.expiry(session) <= twin.time:
                    twin.end(fields[0], "expired")
            elif what == "INITIALIZE":
                twin.floor = self.time
            twin.settle()
            if what in ("TICK", "INITIALIZE", "CONFIGURATION"):
                for _ in range(fields[0] - 1):
                    twin.entry(self.time)
                    twin.settle()
        return out

    def tell_commands(
        self, out: list[Any], session_id: int, first: int, low: int, event: int, made: list[Any]
    ) -> None:
        twin = self.twin
        expected = 0
        for offset, operation in enumerate(made):
            twin.entry(self.time)
            if offset == 0:
                twin.marks(session_id, low, event)
                session = twin.sessions.get(session_id)
                expected = session.sequence + 1 if session is not None else 0
            out_of_turn = first < 1 or first > expected
            if out_of_turn and session_id in twin.sessions:
                answer = [twin.index, None, "sequence_gap"]
            else:
                answer = twin.command(session_id, first + offset, operation)
            out.append([session_id, first + offset, *answer])
            twin.settle()

    def check_dirty(self, applied: Applied, first_index: int) -> None:
        new = {
            session_id
            for session_id, session in self.twin.sessions.items()
            if session.batches and session.batches[-1][0] >= first_index
        }
        assert new <= set(applied.dirty)
        assert set(applied.dirty) <= set(self.twin.sessions)

    @rule()
    def restart(self) -> None:
        self.prefix.take(finish(self.mux.freeze()))
        self.mux = restore(self.prefix, REGISTRY, LIMITS)

    @invariant()
    def same(self) -> None:
        assert self.mux.digest() == self.steady.digest()
        twin = self.twin
        assert [session.id for session in self.mux.sessions] == sorted(twin.sessions)
        for session in self.mux.sessions:
            other = twin.sessions[session.id]
            assert (session.sequence, session.low_water) == (other.sequence, other.low_water)
            assert session.events_after(0) == [
                (index, previous, [event for event, _ in events])
                for index, previous, events in other.batches
            ]
            mine = [r for r, resource in twin.resources.items() if session.id in resource.sessions]
            assert sorted(session.opened) == sorted(mine)
            assert answers(session.cached(session.low_water + 1)) == [
                [session.id, sequence, *other.answers[sequence]]
                for sequence in range(session.low_water + 1, session.sequence + 1)
            ]

    @invariant()
    def same_resources(self) -> None:
        assert sorted(self.mux.directory.resources) == sorted(self.twin.resources)
        for resource_id, resource in self.mux.directory.resources.items():
            other = self.twin.resources[resource_id]
            assert (resource.name, resource.type_name) == (other.name, other.type_name)
            assert resource.sessions == other.sessions
            assert pack(resource.machine.snapshot()) == pack(other.machine.snapshot())

    @invariant()
    def same_times(self) -> None:
        twin = self.twin
        assert self.mux.next_deadline() == min(twin.deadlines.values(), default=None)
        expiries = sorted((twin.expiry(s), session_id) for session_id, s in twin.sessions.items())
        assert self.mux.next_expiry() == (expiries[0][0] if expiries else None)
        for time in (self.time, self.time + 20):
            due = [session_id for at, session_id in expiries if at <= time]
            assert self.mux.due_sessions(time) == due


def answers(results: list[Results]) -> list[list[Any]]:
    """Spread results out: [session, sequence, index, value, error code] per command."""
    out = []
    for part in results:
        errors = {error[0]: error[1] for error in part.errors or ()}
        first = part.index - len(part.values) + 1
        for offset, value in enumerate(part.values):
            where = [part.session_id, part.first_sequence + offset, first + offset]
            out.append([*where, value, errors.get(offset)])
    return out


TestRandomLog = RandomLog.TestCase
TestRandomLog.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# -- the same by seeds: Hypothesis shrinks, a plain generator goes deeper --------------------------


def random_operation(random: Random) -> Any:
    reference = random.choice(["one", "two", "three", ("id", random.randrange(12))])
    match random.randrange(20):
        case 0:
            return (
                "open",
                random.choice(["one", "two", "four"]),
                random.choice(["scratch", "other"]),
            )
        case 1:
            return "close", [random.randrange(12) for _ in range(random.randrange(3))]
        case 2:
            return "delete", random.randrange(12)
        case 3 | 4 | 5:
            sessions = [random.randrange(12) for _ in range(random.randrange(1, 9))]
            payload = b"." * random.choice([0, 0, 300, 700])
            call: Any = "tell", (sessions, "x", payload, random.random() < 0.4)
        case 6 | 7 | 8 | 9:
            call = "later", (random.choice(KEYS), random.randrange(-5, 30))
        case 10:
            call = "never", (random.choice(KEYS),)
        case 11 | 12:
            call = "add", (random.randrange(3),)
        case 13:
            call = "push", ([1],)
        case _:
            call = random.choice(["hold", "hold", "release", "watch", "watch", "who"]), ()
    fence = (random.randrange(12), random.randrange(12)) if random.random() < 0.1 else None
    return reference, call, fence


def random_step(log: RandomLog, random: Random) -> None:
    pick = random.randrange(12)
    match random.randrange(14):
        case 0:
            log.open(random.choice(SECRETS), random.randrange(10, 60))
        case 1:
            marks = [
                (random.randrange(12), random.randrange(3), random.randrange(-3, 4))
                for _ in range(random.randrange(4))
            ]
            log.keep_alive(marks)
        case 2:
            log.end(pick, random.choice(["expire", "expire", "expire", "close"]))
        case 3:
            log.quiet(random.choice([Kind.TICK, Kind.INITIALIZE]), random.randrange(1, 3))
        case 4 if random.random() < 0.2:
            log.restart()
        case _:
            ahead = random.choice([0] * 9 + [-1, -3, 2])
            chosen = [random_operation(random) for _ in range(random.randrange(1, 7))]
            low, event = random.choice([-1, 1, 1, 1, 2]), random.choice([-9] * 6 + [0, 3])
            log.commands(pick, ahead, low, event, chosen, now=False)
    if random.random() < 0.5:
        log.commit(random.choice([0, 0, 1, 5, 40]))


@pytest.mark.parametrize("seed", range(40))
def test_a_random_log_of_a_seed(seed: int) -> None:
    random = Random(seed)
    log = RandomLog()
    log.begin()
    for _ in range(120):
        random_step(log, random)
        log.same()
        log.same_resources()
        log.same_times()
