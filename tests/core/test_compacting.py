"""When a server compacts, what of its log it keeps, and for whom."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from folkmoot.core import compacting
from folkmoot.core.compacting import RETRY_S, ROOM_S, TRIM_S, Compacting
from folkmoot.core.config import StorageConfig
from folkmoot.core.jobs import Job, Roll, Sweep, Trim
from folkmoot.core.prefix import Frozen, RecordKind
from tests.core.scratch import Client, Log

CONFIG = StorageConfig(
    segment_bytes=4096,
    reserve_bytes=0,
    compaction_log_bytes=1024,
    log_keep_bytes=100,
    log_keep_bytes_max=500,
)


class FakeRaft:
    """As much of consensus as compacting asks for."""

    def __init__(self) -> None:
        self.start_index = 0
        self.reachable: int | None = None
        self.compacted: list[int] = []

    @property
    def log(self) -> FakeRaft:
        return self

    def configuration_at(self, index: int) -> FakeRaft:
        self.index = index
        return self

    def encode(self) -> dict[str, Any]:
        return {}

    def reachable_match(self, now: float) -> int | None:
        return self.reachable

    def compact(self, index: int, now: float) -> None:
        self.compacted.append(index)
        self.start_index = index


class FakeStorage:
    """Boundaries, and everything that was asked for."""

    def __init__(self) -> None:
        self.boundaries: list[int] = []
        self.jobs: list[Job] = []
        self.frozen: list[Frozen] = []
        self.asked: list[tuple[int, int, int | None]] = []
        self.target: int | None = None
        self.then: Callable[[int | None], None] = lambda _: None

    def boundary_from(self, index: int) -> int | None:
        return next((one for one in self.boundaries if one >= index), None)

    def trim_target(self, keep_bytes: int, keep_bytes_max: int, needed: int | None) -> int | None:
        self.asked.append((keep_bytes, keep_bytes_max, needed))
        return self.target

    def compact(self, frozen: Frozen, then: Callable[[int | None], None]) -> None:
        self.frozen.append(frozen)
        self.then = then

    def post(self, job: Job, then: Callable[[Any], None]) -> None:
        self.jobs.append(job)
        if isinstance(job, Roll):
            self.rolled = then


@attrs.define
class Bench:
    """One `Compacting` with everything around it."""

    log: Log = attrs.field(factory=Log)
    raft: Any = attrs.field(factory=FakeRaft)
    storage: Any = attrs.field(factory=FakeStorage)
    config: StorageConfig = CONFIG

    def __attrs_post_init__(self) -> None:
        self.policy = Compacting(self.config, self.raft, self.log.mux, self.storage, 0)
        self.client: Client = self.log.client()

    policy: Compacting = attrs.field(init=False)
    client: Client = attrs.field(init=False)

    @property
    def index(self) -> int:
        return self.log.mux.index

    def apply(self, size_bytes: int) -> None:
        """Look, as the loop does between two batches, then apply one of that size."""
        if self.policy.is_due:
            self.policy.look()
        self.log.tick()
        self.policy.applied(size_bytes)

    def turn(self, now: float = 10.0, *, low_bytes: int | None = None, sending: Any = None) -> None:
        """Do what the loop does at the end of a turn."""
        if self.policy.is_due:
            self.policy.look()
        if self.policy.is_slicing:
            self.policy.slice()
        self.policy.tick(now, low_bytes=low_bytes, sending=sending)

    def freeze(self) -> Frozen:
        """Bring it to a boundary with enough applied, and to hand over."""
        self.apply(5000)
        self.storage.boundaries.append(self.index)
        self.turn()
        frozen: Frozen = self.storage.frozen[-1]
        assert frozen.index == self.index
        return frozen


# -- when ------------------------------------------------------------------------------------------


def test_the_state_is_frozen_at_a_boundary_once_enough_was_applied() -> None:
    bench = Bench()
    bench.apply(1000)
    bench.storage.boundaries = [bench.index]
    bench.turn()
    assert not bench.policy.is_due
    bench.apply(24)
    bench.storage.boundaries.append(bench.index + 2)
    bench.turn()
    assert bench.policy.is_due
    assert not bench.storage.frozen, "no boundary here"
    bench.apply(1)
    bench.apply(1)
    assert not bench.storage.frozen
    bench.apply(1)  # looks before it applies, where the segment ends
    bench.turn()
    (frozen,) = bench.storage.frozen
    assert frozen.index == bench.index - 1
    assert frozen.records[RecordKind.CONFIGURATION, 0] is not None
    assert bench.raft.index == frozen.index, "the members as of the index"


def test_there_is_one_compaction_at_a_time() -> None:
    bench = Bench()
    bench.freeze()
    bench.apply(5000)
    bench.storage.boundaries.append(bench.index)
    bench.turn()
    assert len(bench.storage.frozen) == 1
    bench.storage.then(10)
    bench.turn()
    assert len(bench.storage.frozen) == 2


def test_the_next_waits_for_as_much_log_as_the_last_wrote_of_records() -> None:
    bench = Bench()
    frozen = bench.freeze()
    bench.storage.then(50_000)
    assert bench.policy.index == frozen.index
    bench.apply(49_999)
    assert not bench.policy.is_due
    bench.apply(1)
    assert bench.policy.is_due
    bench.storage.boundaries.append(bench.index)
    bench.turn()
    bench.storage.then(3)
    bench.apply(1024)
    assert bench.policy.is_due, "and never for less than is configured"


def test_a_turn_serialises_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "SLICE_BYTES", 1)
    bench = Bench()
    for number in range(5):
        bench.client.open(f"scratch {number}")
    bench.apply(5000)
    bench.storage.boundaries.append(bench.index)
    turns = 0
    while not bench.storage.frozen:
        bench.turn()
        turns += 1
    assert turns == 6, "a session and five resources"
    assert not bench.policy.is_slicing


# -- because somebody wants it ---------------------------------------------------------------------


def test_what_is_wanted_is_sealed_for() -> None:
    bench = Bench()
    bench.apply(1)
    assert not bench.policy.want(bench.index)
    bench.turn()
    bench.turn()
    assert bench.storage.jobs == [Roll()], "once"
    bench.storage.boundaries.append(bench.index + 1)  # by then there is more in the log
    bench.storage.rolled(None)
    bench.turn()
    assert not bench.storage.frozen
    assert bench.storage.jobs == [Roll()]
    bench.apply(1)
    bench.turn()
    assert bench.storage.frozen[0].index == bench.index
    bench.storage.then(1)
    assert bench.policy.want(bench.index - 1)
    assert not bench.policy.is_due


# -- a full disk, and a compaction that was stopped ------------------------------------------------


def test_after_a_full_disk_it_is_tried_again_at_the_same_index_without_a_new_segment() -> None:
    bench = Bench()
    frozen = bench.freeze()
    bench.storage.jobs.clear()
    bench.storage.then(None)
    assert bench.policy.is_short_of_room
    bench.turn(10.0)
    assert bench.policy.deadline(10.0) == 10.0 + RETRY_S
    bench.turn(10.0 + RETRY_S - 0.1)
    assert len(bench.storage.frozen) == 1
    for attempt in (1, 2, 3):
        bench.turn(10.0 + attempt * RETRY_S)
        again = bench.storage.frozen[-1]
        assert len(bench.storage.frozen) == 1 + attempt
        assert again.index == frozen.index
        assert not again.ledger.retained, "the storage has kept it"
        assert not again.records
        assert not bench.policy.is_short_of_room
        bench.storage.then(None)
        bench.turn(10.0 + attempt * RETRY_S)
    assert not bench.policy.want(bench.index + 1)
    bench.turn(10.0 + 3 * RETRY_S)
    assert len(bench.storage.frozen) == 4, "what is wanted does not make it try without a pause"
    bench.apply(1)
    bench.turn(10.0 + 3 * RETRY_S)
    assert bench.storage.jobs == [], "a new segment could be the end of the disk"
    bench.turn(10.0 + 4 * RETRY_S)
    bench.storage.then(7)
    assert bench.policy.index == frozen.index
    bench.turn(40.0)
    assert bench.storage.jobs[:1] == [Roll()]


def test_what_is_wanted_is_not_tried_again_in_every_turn_while_the_disk_is_full() -> None:
    """Reproduces a server that froze and compacted in each turn, for a backup that waited."""
    bench = Bench()
    frozen = bench.freeze()
    bench.policy.want(frozen.index)
    bench.storage.then(None)
    for at in range(10):
        bench.turn(10.0 + at * 0.1)
    assert bench.policy.is_short_of_room
    assert len(bench.storage.frozen) == 1
    bench.turn(10.0 + RETRY_S)
    assert len(bench.storage.frozen) == 2


def test_a_freeze_takes_the_place_of_another_try() -> None:
    bench = Bench()
    bench.freeze()
    bench.storage.then(None)
    bench.turn(10.0)
    bench.apply(5000)
    bench.storage.boundaries.append(bench.index)
    bench.turn(12.0)
    assert bench.storage.frozen[-1].index == bench.index
    bench.turn(60.0)
    assert len(bench.storage.frozen) == 2
    bench.storage.then(1)
    bench.turn(99.0)
    assert len(bench.storage.frozen) == 2


def test_nothing_is_begun_and_nothing_is_due_while_it_is_stopped() -> None:
    bench = Bench()
    bench.freeze()
    bench.policy.is_stopped = True
    bench.storage.then(None)
    bench.apply(5000)
    bench.storage.boundaries.append(bench.index)
    for now in (10.0, 20.0, 30.0):
        bench.turn(now)
        assert bench.policy.deadline(now) == math.inf, "or the loop would turn round and round"
    assert len(bench.storage.frozen) == 1
    bench.policy.is_stopped = False
    bench.turn(40.0)
    assert len(bench.storage.frozen) == 2


def test_another_servers_state_begins_anew() -> None:
    bench = Bench()
    bench.freeze()
    bench.policy.is_stopped = True
    bench.storage.then(None)
    bench.apply(5000)
    other = Log()
    for _ in range(50):
        other.tick()
    bench.policy.replaced(other.mux)
    assert bench.policy.index == 50
    bench.log = other
    for now in (10.0, 20.0, 30.0):
        bench.turn(now)
    assert len(bench.storage.frozen) == 1, "what was frozen of the old state is of no use"
    frozen = bench.freeze()
    assert frozen.index == 51


# -- giving log up ---------------------------------------------------------------------------------


def compacted() -> Bench:
    bench = Bench()
    bench.freeze()
    bench.storage.then(1)
    bench.storage.jobs.clear()
    return bench


def test_log_is_given_up_by_consensus_first() -> None:
    bench = compacted()
    bench.storage.target = bench.policy.index
    bench.turn(10.0)
    assert bench.raft.compacted == [bench.policy.index]
    assert bench.storage.jobs == [Trim(bench.policy.index), Sweep()]


def test_it_looks_once_a_second_and_only_where_there_is_something() -> None:
    bench = compacted()
    assert bench.policy.deadline(10.0) == 0.0, "at once"
    bench.turn(10.0)
    bench.turn(10.0 + TRIM_S / 2)
    assert len(bench.storage.asked) == 1
    assert bench.policy.deadline(10.0) == 10.0 + TRIM_S
    bench.turn(10.0 + TRIM_S)
    assert len(bench.storage.asked) == 2
    bench.raft.start_index = bench.policy.index
    assert bench.policy.deadline(20.0) == math.inf
    bench.turn(20.0)
    assert len(bench.storage.asked) == 2


@pytest.mark.parametrize(
    ("reachable", "sending", "low", "expected"),
    [
        (None, None, None, (100, 500, None)),
        (70, None, None, (100, 500, 70)),
        (70, 60, None, (100, 500, 60)),
        (50, 60, None, (100, 500, 50)),
        (None, 60, None, (100, 500, 60)),
        (70, 60, 1000, (0, 0, 60)),
    ],
)
def test_what_is_kept_for_whom(
    reachable: int | None,
    sending: int | None,
    low: int | None,
    expected: tuple[int, int, int | None],
) -> None:
    bench = compacted()
    bench.raft.reachable = reachable
    bench.turn(10.0, low_bytes=low, sending=sending)
    assert bench.storage.asked[0] == expected


def test_no_less_is_kept_at_most_than_always() -> None:
    config = attrs.evolve(CONFIG, log_keep_bytes=900)
    bench = Bench(config=config)
    bench.freeze()
    bench.storage.then(1)
    bench.turn(20.0)
    assert bench.storage.asked[-1] == (900, 900, None)


# -- room ------------------------------------------------------------------------------------------


def test_while_the_disk_is_low_what_was_deleted_becomes_room() -> None:
    bench = Bench()
    bench.apply(10)  # far below the threshold
    bench.turn(10.0, low_bytes=None)
    assert bench.storage.jobs == []
    bench.turn(11.0, low_bytes=20_000)
    assert bench.policy.is_due
    bench.turn(11.1, low_bytes=20_000)
    assert bench.storage.jobs == [Roll()], "the log ends in a segment that is not sealed"
    bench.storage.boundaries.append(bench.index)
    bench.storage.rolled(None)
    bench.turn(11.2, low_bytes=20_000)
    assert [frozen.index for frozen in bench.storage.frozen] == [bench.index]
    bench.storage.then(1)
    bench.apply(10)
    bench.turn(11.1 + ROOM_S, low_bytes=20_000)
    assert not bench.policy.is_due, "nothing has died since"
    bench.log.mux._changes.ledger.superseded.append(1)
    bench.turn(11.2 + ROOM_S, low_bytes=20_000)
    assert not bench.policy.is_due, "it was only just looked"
    bench.turn(11.1 + 2 * ROOM_S, low_bytes=20_000)
    assert bench.policy.is_due


def test_a_compaction_that_found_no_room_gives_way_to_one_that_has_less_to_keep() -> None:
    bench = Bench()
    left = bench.freeze()
    bench.storage.then(None)
    bench.turn(11.0, low_bytes=20_000)  # nothing was applied since: it waits for its next try
    assert bench.policy.is_short_of_room
    bench.apply(10)
    bench.log.mux._changes.ledger.superseded.append(1)
    bench.turn(11.0 + ROOM_S, low_bytes=20_000)
    assert not bench.policy.is_short_of_room
    bench.turn(11.1 + ROOM_S, low_bytes=20_000)
    assert Roll() in bench.storage.jobs
    bench.storage.boundaries.append(bench.index)
    bench.storage.rolled(None)
    bench.turn(11.2 + ROOM_S, low_bytes=20_000)
    assert bench.storage.frozen[-1].index == bench.index > left.index


def test_a_disk_with_no_room_for_segments_is_spared_new_ones() -> None:
    bench = Bench()
    bench.apply(10)
    bench.turn(10.0, low_bytes=2 * CONFIG.segment_bytes - 1)
    bench.turn(10.1, low_bytes=2 * CONFIG.segment_bytes - 1)
    assert not bench.policy.is_due
    assert bench.storage.jobs == []
