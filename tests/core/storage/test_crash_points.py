"""The power goes at every file operation of every durable step, and the disk loses what it may."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs
import pytest

from folkmoot.core.batch import Batch
from folkmoot.core.storage.log_store import HardState
from folkmoot.core.storage.memory import MemoryFiles, PowerCut
from tests.core.storage.support import Log, batches

SURVIVE = (0.0, 1.0, 0.8, 0.5, 0.5, 0.5, 0.2)
"""The chance of each unsynced change to survive."""

A, B = HardState(1, 1), HardState(2, 5)
FIRST = batches(1, 8, size_bytes=300)
WHOLE = batches(1, 30, size_bytes=300)


@attrs.frozen
class Step:
    """What is done, and what a crash within it may leave."""

    act: Callable[[Log], object]
    logs: Sequence[Sequence[Batch]]
    states: Sequence[HardState] = (A,)


def prefixes(whole: Sequence[Batch], shortest: int) -> list[Sequence[Batch]]:
    return [whole[:count] for count in range(shortest, len(whole) + 1)]


ROLL_OVER = [
    Step(lambda log: log.write(WHOLE[8:14]), prefixes(WHOLE[:14], 8)),
    Step(lambda log: log.store.sync(), prefixes(WHOLE[:14], 8)),
    Step(lambda _: None, [WHOLE[:14]]),
]
CUT_WITHIN = WHOLE[:4] + batches(5, 7, 2)
TRUNCATE_WITHIN = [
    Step(
        lambda log: log.write(CUT_WITHIN[4:], term=2, vote=5, truncate_after=4),
        [FIRST, *prefixes(CUT_WITHIN, 4)],
        (A, B),
    ),
    Step(lambda log: log.store.sync(), prefixes(CUT_WITHIN, 4), (B,)),
    Step(lambda _: None, [CUT_WITHIN], (B,)),
]
CUT_OVER = WHOLE[:5] + batches(6, 8, 2)
TRUNCATE_OVER = [
    Step(lambda log: log.commit(WHOLE[8:]), prefixes(WHOLE, 8)),
    Step(
        lambda log: log.write(CUT_OVER[5:], term=2, vote=5, truncate_after=5),
        [WHOLE, *prefixes(CUT_OVER, 5)],
        (A, B),
    ),
    Step(lambda log: log.store.sync(), prefixes(CUT_OVER, 5), (B,)),
    Step(
        lambda log: log.commit(batches(1, 2, 2), truncate_after=0),
        [CUT_OVER, *prefixes(batches(1, 2, 2), 0)],
        (B,),
    ),
    Step(lambda _: None, [batches(1, 2, 2)], (B,)),
]
SCENARIOS = {
    "roll over": ROLL_OVER,
    "roll over into a prepared segment": [
        Step(lambda log: log.store.prepare(), [FIRST]),
        *ROLL_OVER,
    ],
    "truncate within the segment": TRUNCATE_WITHIN,
    "truncate over segments": TRUNCATE_OVER,
    "change the hard state": [
        Step(lambda log: log.commit(term=2, vote=5), [FIRST], (A, B)),
        Step(lambda log: log.commit(term=3), [FIRST], (B, HardState(3))),
        Step(lambda log: log.commit(term=3, vote=1), [FIRST], (HardState(3), HardState(3, 1))),
        Step(lambda _: None, [FIRST], (HardState(3, 1),)),
    ],
    "mark and close": [
        Step(lambda log: log.store.mark(), [FIRST]),
        Step(lambda log: log.write(WHOLE[8:9]), prefixes(WHOLE[:9], 8)),
        Step(lambda log: log.store.close(), prefixes(WHOLE[:9], 8)),
        Step(lambda _: None, [WHOLE[:9]]),
    ],
}


def prepared() -> Log:
    log = Log(MemoryFiles())
    log.commit(FIRST, term=A.term, vote=A.voted_for)
    return log


def disk_of(log: Log) -> MemoryFiles:
    files = log.store._files
    assert isinstance(files, MemoryFiles)
    return files


def check(files: MemoryFiles, step: Step) -> None:
    """What is there is one of the step's logs and states; and it goes on from there."""
    log = Log(files)
    found = log.all()
    assert found in [list(one) for one in step.logs], (
        f"index {log.store.last_index} of term {log.store.last_term}"
    )
    assert log.store.hard_state in step.states
    assert log.store.durable_index == log.store.last_index
    last = log.store.last_index
    log.commit(batches(last + 1, last + 3, 9, size_bytes=500), term=9)
    log.store.close()
    log = Log(files)
    assert log.all() == found + batches(last + 1, last + 3, 9, size_bytes=500)
    log.store.close()


@pytest.mark.parametrize("survive", range(len(SURVIVE)))
@pytest.mark.parametrize("name", SCENARIOS)
def test_crash_at_every_operation(name: str, survive: int) -> None:
    at = 0
    while True:
        at += 1
        log = prepared()
        files = disk_of(log)
        files.cut_power_at = files.operations + at
        step, cut = SCENARIOS[name][0], False
        try:
            for step in SCENARIOS[name]:
                step.act(log)
        except PowerCut:
            cut = True
        files.crash(random.Random(at * 10 + survive), SURVIVE[survive])
        check(files, step)
        if not cut:
            assert at > 2, "the power was never cut"
            return


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_operation_and_the_power_cut_after_recovery(name: str) -> None:
    """What a restarted server saw, and has spoken of since, a power cut must not take back."""
    at = 0
    while True:
        at += 1
        log = prepared()
        files = disk_of(log)
        files.cut_power_at = files.operations + at
        step, cut = SCENARIOS[name][0], False
        try:
            for step in SCENARIOS[name]:
                step.act(log)
        except PowerCut:
            cut = True
        files.kill()
        log = Log(files)
        found, state = log.all(), log.store.hard_state
        assert found in [list(one) for one in step.logs]
        files.crash(random.Random(at), survive=0.0)
        check(files, Step(lambda _: None, [found], (state,)))
        if not cut:
            return


@pytest.mark.parametrize("survive", range(len(SURVIVE)))
def test_crash_at_every_operation_of_making_a_directory(survive: int) -> None:
    at = 0
    while True:
        at += 1
        files = MemoryFiles()
        files.cut_power_at = at
        try:
            Log(files)
        except PowerCut:
            files.crash(random.Random(at * 10 + survive), SURVIVE[survive])
            check(files, Step(lambda _: None, [[]], (HardState(),)))
        else:
            assert at > 15, "the power was never cut"
            return


@pytest.mark.parametrize("survive", range(len(SURVIVE)))
def test_crash_at_every_operation_of_a_recovery(survive: int) -> None:
    """Of one that has everything to do: tear, repair, remove what is left over."""
    at = 0
    while True:
        at += 1
        log = prepared()
        log.store.prepare()
        log.write(batches(9, 9))
        contents = disk_of(log).contents()
        torn = bytearray(contents["log/0000000001.seg"])
        torn[log.store._log.active.end - 1] ^= 1
        slot = bytearray(contents["hard_state"])
        slot[4096 + 20] ^= 1
        files = MemoryFiles(
            contents
            | {"log/0000000001.seg": bytes(torn), "hard_state": bytes(slot), "MANIFEST.new": b"x"}
        )
        files.cut_power_at = at
        try:
            recovered = Log(files).store.recovered
        except PowerCut:
            files.crash(random.Random(at * 10 + survive), SURVIVE[survive])
            check(files, Step(lambda _: None, [FIRST]))
        else:
            assert at > 8, "the power was never cut"
            assert recovered.torn_tail is not None
            assert len(recovered.repaired) == 3
            return
