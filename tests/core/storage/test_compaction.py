"""Compaction: what lives is kept, whatever is rewritten; the rest goes; also after a restart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import attrs
import pytest

from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.memory import MemoryFiles
from tests.core.storage.history import Compactor, contents, equal, small_steps
from tests.core.storage.support import open_log
from tests.core.storage.transfers import begun


def reopened(files: MemoryFiles) -> LogStore:
    files.kill()
    return open_log(files)


def check(store: LogStore, compactor: Compactor) -> None:
    """The prefix read back is what the history says as of now, and so is what is kept in memory."""
    source = store.prefix.read_back()
    assert equal(contents(source), compactor.history.expected())
    if store.prefix.is_loaded:
        pairs = zip(store.prefix.items_files, source.items_files, strict=True)
        assert all(attrs.astuple(a) == attrs.astuple(b) for a, b in pairs)
    store.prefix.loaded(source)


@pytest.mark.parametrize("seed", range(40))
def test_the_prefix_holds_what_lives(seed: int) -> None:
    files = MemoryFiles()
    compactor = begun(seed, files, keys=Random(seed).choice((3, 12, 200)))
    for _ in range(6):
        compactor.write(Random(seed).randrange(1, 60))
        compactor.compact()
        check(compactor.store, compactor)
    store = reopened(files)
    assert store.compaction.index == compactor.history.index
    check(store, compactor)


def test_an_entry_of_which_little_lives_is_written_anew() -> None:
    """It counts as dead in proportion: else a thousand items stay for one that lives."""
    compactor = begun(1, keys=60, kinds=("many",))
    history, prefix = compactor.history, compactor.store.prefix
    compactor.write(12, value_bytes=300)
    compactor.compact()
    before = sum(one.total_bytes for one in prefix.items_files)
    for (resource, key), (_, ordinal) in list(history.owners.items()):
        if ordinal % 5:
            history.supersede(resource, key)
    assert len(history.entries) > 3
    history.kinds = ("fail",)
    compactor.write()
    compactor.compact()
    assert sum(one.total_bytes for one in prefix.items_files) < before / 2
    check(compactor.store, compactor)


class CountedFiles(MemoryFiles):
    """Counts the bytes that are read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        data = super().read(name, offset, size_bytes)
        self.bytes += len(data)
        return data

    def write(self, name: str, offset: int, data: bytes) -> None:
        super().write(name, offset, data)
        self.bytes += len(data)


def lines_of(act: Callable[[], object]) -> int:
    """Do it, and return how many lines of the storage were executed for it: its work, unclocked."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if "core/storage/" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def largest_step(batches: int, keys: int) -> tuple[int, int]:
    """Return the most lines and bytes that one step of a second compaction took."""
    files = CountedFiles()
    compactor = begun(5, files, keys=keys, record_bytes=300, kinds=("set", "set", "many"))
    for _ in range(2):
        compactor.write(batches)
        compactor.history.changed |= {(3, 10 + key): bytes(20) for key in range(batches)}
        if not compactor.store.compaction.index:
            compactor.compact()
    compactor.store.roll()
    compaction = compactor.store.compact([compactor.history.freeze()])
    steps, most_lines, most_bytes, count = compaction.steps(), 0, 0, 0
    is_done = False

    def step() -> None:
        nonlocal is_done
        is_done = next(steps, None) is None

    while not is_done:
        before = files.bytes
        most_lines = max(most_lines, lines_of(step))
        most_bytes = max(most_bytes, files.bytes - before)
        count += 1
    assert count > batches / 3, f"{count} steps for {batches} batches"
    return most_lines, most_bytes


@pytest.mark.parametrize("keys", [5, 5000])
def test_no_step_grows_with_what_is_compacted(keys: int) -> None:
    """Steps hold the interpreter: each looks at so many entries, records and bytes, however many
    there are. (But for a few lines per file.)
    """
    with small_steps():
        small, large = largest_step(40, keys), largest_step(320, keys)
    assert large[0] <= 1.5 * small[0] + 500, f"lines: {small[0]}, then {large[0]}"
    assert large[1] <= 1.5 * small[1] + 500, f"bytes: {small[1]}, then {large[1]}"
