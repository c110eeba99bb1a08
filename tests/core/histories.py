"""Random histories of commands of any type, and several servers that live through them.

One server applies everything and is never restarted. Others are restored from prefixes that servers
froze on the way, also from those of servers that were restored themselves; and all are compared
after each batch: what they tell, the whole state, and what is due.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import attrs

from folkmoot.core.applied import Applied
from folkmoot.core.batch import Batch, Group, Kind, decode_batch, encode_batch
from folkmoot.core.config import LimitsConfig
from folkmoot.core.machine import Machine, Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import RecordKey
from folkmoot.core.requests import encode_commands
from folkmoot.core.sessions import (
    encode_close,
    encode_expire,
    encode_keep_alive,
    encode_open,
    encode_restored,
)
from folkmoot.primitives import BUILTIN_MACHINES
from tests.core.prefix_twin import PrefixTwin, expected_records, restore
from tests.core.scratch import Scratch
from tests.core.shelf import Shelf, Tally

MACHINES: tuple[type[Machine], ...] = (*BUILTIN_MACHINES, Scratch, Shelf, Tally)
REGISTRY = Registry.of(MACHINES)
LIMITS = LimitsConfig(
    sessions_max=4,
    resources_max=6,
    session_window=8,
    session_events_max=16,
    session_event_bytes_max=4096,
)
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "counter": [{"low": -3, "high": 9}, {}],
    "lock": [{"lock_delay_ms": 7}, {}],
    "topic": [{"count": 1}, {"age_ms": 9, "count": 2}, {"bytes": 8}],
}
"""By type, where it takes any."""

Operation = tuple[str, list[Any]]
Make = Callable[[Random, int], Operation]
"""(random, a number that somebody was answered lately) -> command and arguments."""

KEYS = ["a", "b", "c"]
TTLS = [0, 0, 0, 3, 20]


def _choose(random: Random, operations: list[Operation]) -> Operation:
    return random.choice(operations)


def map_operation(random: Random, number: int) -> Operation:
    key, value, ttl = random.choice(KEYS), random.choice([b"", b"x", b"y"]), random.choice(TTLS)
    many = {random.choice(KEYS): value for _ in range(random.randrange(4))}
    text = random.choice(["", "a", "b"])
    kind = "prefix" if not text else random.choice(["key", "prefix"])
    return _choose(
        random,
        [
            ("set", [key, value]),
            ("set", [key, value, random.choice([*TTLS, -1])]),
            ("set", [key, value, ttl, random.choice([0, number, number])]),
            ("create", [key, value, ttl]),
            ("replace", [key, value, ttl]),
            ("replace", [key, value, random.choice([*TTLS, -1]), random.choice([b"x", b"y"])]),
            ("set_many", [many, random.choice([*TTLS, -1])]),
            ("set_many", [many]),
            ("touch", [key, ttl]),
            ("touch", [key, 9]),
            ("delete", [key]),
            ("delete", [key, number]),
            ("pop", [key]),
            ("clear", []) if random.random() < 0.5 else ("touch", [key]),
            ("subscribe", [kind, text]),
            ("subscribe", ["prefix", ""]),
            ("unsubscribe", [kind, text]),
        ],
    )


def lock_operation(random: Random, number: int) -> Operation:
    request = random.randrange(1, 5)
    return _choose(
        random,
        [
            ("acquire", [request, random.choice([None, None, 0, 4, 15])]),
            ("acquire", [request, None]),
            ("withdraw", [request]),
            ("release", [number]),
            ("release", [number]),
            ("break_lock", random.choice([[], [number]])),
            *SUBSCRIBE,
        ],
    )


def election_operation(random: Random, number: int) -> Operation:
    request, value = random.randrange(1, 5), random.choice([b"v", b"w"])
    return _choose(
        random,
        [
            ("campaign", [request, value, random.randrange(3), random.choice([None, 0, 9])]),
            ("campaign", [request, value, 0, None]),
            ("withdraw", [request]),
            ("release", [number]),
            ("resign", random.choice([[], [number]])),
            ("proclaim", [number, value]),
            *[(name, [number]) for name in ("promote", "transfer", "evict")],
            *SUBSCRIBE,
        ],
    )


def counter_operation(random: Random, number: int) -> Operation:
    small = random.randrange(-2, 6)
    return _choose(
        random,
        [
            ("add", [random.randrange(-2, 3)]),
            ("set", [small]),
            ("compare_and_set", [random.randrange(-2, 6), small]),
            ("wait_for", [random.randrange(1, 5), small, None]),
            ("wait_for", [random.randrange(1, 5), None, small]),
            ("withdraw", [random.randrange(1, 5)]),
            *SUBSCRIBE,
        ],
    )


def topic_operation(random: Random, number: int) -> Operation:
    cursor, request = random.choice(["p", "p", "q"]), random.randrange(1, 4)
    return _choose(
        random,
        [
            *[("publish", [b"." * random.randrange(5)])] * 4,
            ("consume", [cursor, request]),
            ("consume", [cursor, request, random.choice([0, number])]),
            *[("acknowledge", [cursor, number, number + random.randrange(9)])] * 3,
            ("withdraw", [cursor, request]),
            ("delete_cursor", [cursor])
            if random.random() < 0.3
            else ("consume", [cursor, request]),
            *SUBSCRIBE,
        ],
    )


def scratch_operation(random: Random, number: int) -> Operation:
    key = random.choice(["x", "again", "set:x", "clear:x", "release", "empty:"])
    payload = b"." * random.choice([0, 0, 300, 700])
    told = [random.randrange(max(number - 20, 0), number + 1) for _ in range(6)]
    return _choose(
        random,
        [
            ("add", [random.randrange(3)]),
            ("push", [[number]]),
            *[(name, []) for name in ("hold", "release", "watch", "who", "refuse")],
            ("echo", ["x", random.randrange(3)]),
            ("tell", [told, "x", payload, random.random() < 0.4]),
            ("later", [key, random.randrange(200)]),
            ("never", [key]),
        ],
    )


def shelf_operation(random: Random, number: int) -> Operation:
    key, value = random.choice(KEYS), random.randrange(3)
    pairs = [[random.choice(KEYS), random.randrange(3)] for _ in range(random.randrange(4))]
    return _choose(
        random,
        [
            ("put", [key, value]),
            ("put", [key, value, random.choice([3, 20])]),
            ("swap", [key, random.randrange(3), value]),
            ("put_many", [pairs]),
            ("put_many", [pairs]),
            ("touch", [key, random.choice([3, 20])]),
            ("take", [key]),
            ("clear", []) if random.random() < 0.3 else ("take", [key]),
            ("watch", []),
        ],
    )


SUBSCRIBE: list[Operation] = [("subscribe", ["prefix", ""]), ("unsubscribe", ["prefix", ""])]

OPERATIONS: dict[str, Make] = {
    "map": map_operation,
    "lock": lock_operation,
    "election": election_operation,
    "counter": counter_operation,
    "topic": topic_operation,
    "scratch": scratch_operation,
    "shelf": shelf_operation,
    "tally": shelf_operation,
}
"""Type -> what may be done to one. Whoever adds a primitive adds a line here."""


class Server:
    """A replicated state with a storage of its own."""

    def __init__(self, mux: Multiplexer, prefix: PrefixTwin) -> None:
        self.mux = mux
        self.prefix = prefix
        self._expected: dict[RecordKey, bytes] = {}

    def source(self) -> PrefixTwin:
        """Return what a server that is restored reads."""
        return self.prefix.copy()

    def compact(self, random: Random) -> bool:
        """Begin a freeze or go on with it; say whether there is a new prefix."""
        found = self.mux.freezing
        if found is None:
            if random.random() < 0.2:
                self._expected = expected_records(self.mux)
                self.mux.freeze()
            return False
        if random.random() < 0.4 or not found.step(random.choice([1, 1, 300, 10_000])):
            return False
        self.prefix.take(found.result())
        assert self.prefix.kept == self._expected, "the records are not those of the index"
        return True


@attrs.define
class Then:
    """What was to be seen after a batch."""

    data: bytes
    applied: Applied
    state: bytes
    due: tuple[int | None, int | None]


class History:
    """A log of one seed, and the servers that live through it.

    - `servers[0]` is never restarted; the others are restored from a prefix of any of them.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.time = 0
        self.thens: list[Then] = []
        self.firsts: dict[int, int] = {1: 0}
        """First index of a batch -> its place in `thens`."""
        self.servers = [Server(Multiplexer(REGISTRY, LIMITS), PrefixTwin())]
        self.mux = self.servers[0].mux
        self.kinds = self.random.sample([kind.type_name for kind in MACHINES], 3)
        self.numbers = [0]
        self.sequences: dict[int, int] = {}
        self.restored = 0

    def run(self, batches: int) -> None:
        """Live through so many batches."""
        self.apply([encode_open(b"s", 1000, ""), encode_open(b"t", 30, "")])
        for _ in range(batches):
            self.sequences = {session.id: session.sequence for session in self.mux.sessions}
            self.time += self.random.choice([0, 0, 1, 2, 8, 15])
            self.apply([self.group() for _ in range(self.random.randrange(1, 4))])
            for server in list(self.servers):
                if server.compact(self.random) and self.random.random() < 0.7:
                    self.restart(server)

    def apply(self, groups: list[Group]) -> None:
        """Apply a batch on all servers, and compare them."""
        data = encode_batch(1, self.mux.index + 1, self.time, groups).data
        applied = self.mux.apply(decode_batch(data))
        then = Then(data, applied, self.mux.snapshot(), due(self.mux))
        self.thens.append(then)
        self.firsts[self.mux.index + 1] = len(self.thens)
        for server in self.servers:
            server.prefix.batch(decode_batch(data))
        for server in self.servers[1:]:
            follow(server.mux, then)
        for results in applied.results:
            self.numbers += [n for value in results.values for n in numbers_in(value)]
        del self.numbers[:-40]

    def restart(self, server: Server) -> None:
        """Restore another server from the prefix of this one, and let it catch up."""
        mux = restore(server.source(), REGISTRY, LIMITS)
        place = self.firsts[mux.index + 1]
        then = self.thens[place - 1]
        assert mux.snapshot() == then.state, "another state was restored"
        assert due(mux) == then.due, "other times are due"
        for later in self.thens[place:]:
            follow(mux, later)
        del self.servers[3:]
        self.servers.insert(1, Server(mux, server.prefix.copy()))
        self.restored += 1

    # -- making entries

    def group(self) -> Group:
        """Make entries of one kind."""
        random, sessions = self.random, list(self.mux.sessions)
        one = random.choice(sessions).id if sessions and random.random() < 0.97 else 77
        match random.randrange(20):
            case 0 | 1:
                return encode_open(random.choice([b"s", b"t", b"u", b"v"]), 30, "client")
            case 2:
                items = [[one, *self.marks(one), 1] for _ in range(2)]
                return encode_keep_alive(items)
            case 3:
                return encode_expire(one)
            case 4:
                dues = self.mux.due_sessions(self.time)
                return encode_expire(dues[0]) if dues else Group(Kind.TICK, 2, b"")
            case 5 if random.random() < 0.4:
                return encode_close(one)
            case 6 if random.random() < 0.1:
                return encode_restored(random.randrange(9))
            case 7 if random.random() < 0.5:
                return Group(Kind.INITIALIZE, 1, b"")
            case _:
                return self.commands(one)

    def marks(self, session_id: int) -> list[int]:
        """Make a low water and an event index near the truth."""
        session = self.mux.sessions.get(session_id)
        if session is None:
            return [0, 0]
        low = self.sequences[session_id] - self.random.choice([0, 0, 1, 4])
        event = self.random.choice([0, 0, 0, session.events.last])
        return [max(low, 0), event]

    def commands(self, session_id: int) -> Group:
        """Make a session's next commands, or some that it had before."""
        random = self.random
        low, event = self.marks(session_id)
        operations = [self.operation() for _ in range(random.randrange(1, 5))]
        first = self.sequences.get(session_id, 0) + 1
        if random.random() < 0.1:
            first = max(1, first - random.randrange(4))
        self.sequences[session_id] = first - 1 + len(operations)
        body = encode_commands(session_id, first, low, event, operations)
        return Group(Kind.COMMANDS, len(operations), body)

    def operation(self) -> list[Any]:
        """Make one command: mostly of a resource, by its id or by its name."""
        random = self.random
        resources = list(self.mux.directory.resources.values())
        chance = random.random()
        if resources and chance < 0.03:
            return [0, "delete", [random.choice(resources).id]]
        if resources and chance < 0.06:
            return [0, "close", [[random.choice(resources).id]]]
        if resources and chance < 0.6:
            resource = random.choice(resources)
            return [resource.id, *self.call(resource.type_name, resource.machine)]
        kind = random.choice(self.kinds)
        config = random.choice(CONFIGS.get(kind, [{}]))
        name = random.choice([kind, f"another {kind}", "any"])
        return [[name, kind, 1, config], *self.call(kind)]

    def call(self, type_name: str, machine: Machine | None = None) -> Operation:
        """Make a command of a type; of one that is there, often with a token that is held."""
        held = [] if machine is None else [n for n in self.numbers if machine.holds_grant(n)]
        numbers = held if held and self.random.random() < 0.5 else self.numbers[-6:]
        return OPERATIONS[type_name](self.random, self.random.choice(numbers))


def follow(mux: Multiplexer, then: Then) -> None:
    """Apply what others applied before, and compare."""
    batch: Batch = decode_batch(then.data)
    assert mux.apply(batch) == then.applied, f"another answer at {batch.first_index}"
    assert mux.snapshot() == then.state, f"another state at {batch.last_index}"
    assert due(mux) == then.due, f"other times are due at {batch.last_index}"


def due(mux: Multiplexer) -> tuple[int | None, int | None]:
    """Return when something is due."""
    return mux.next_deadline(), mux.next_expiry()


def numbers_in(value: Any) -> list[int]:
    """Find small numbers in an answer: tokens and revisions, most of them."""
    found = value if type(value) is list else [value]
    return [number for number in found if type(number) is int and 0 <= number < 1 << 20]
