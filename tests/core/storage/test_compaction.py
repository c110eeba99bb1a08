"""Compaction: what lives is kept, whatever is rewritten; the rest goes; also after a restart."""

from random import Random

import attrs
import pytest

from folkmoot.core.storage.log_store import HardState, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from tests.core.storage.history import Compactor, contents, equal
from tests.core.storage.support import Write, open_log


def begun(seed: int, **options: int) -> tuple[MemoryFiles, Compactor]:
    files = MemoryFiles()
    store = open_log(files)
    store.write([Write(1, HardState(1, None))])
    store.sync()
    compactor = Compactor(store, Random(seed), **options)
    compactor.number = 1
    return files, compactor


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
    files, compactor = begun(seed, keys=Random(seed).choice((3, 12, 200)))
    for _ in range(6):
        compactor.write(Random(seed).randrange(1, 60))
        compactor.compact()
        check(compactor.store, compactor)
    store = reopened(files)
    assert store.compaction.index == compactor.history.index
    check(store, compactor)
