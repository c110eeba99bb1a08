"""A prefix that goes from one disk to another, in pieces, as often as it is cut short."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import attrs

from folkmoot.core.config import StorageConfig
from folkmoot.core.storage.archive import Archive
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.incoming import Incoming
from folkmoot.core.storage.log_store import HardState, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from tests.core.storage.history import Compactor, Contents, contents, equal
from tests.core.storage.support import SMALL, Write, open_log


def begun(
    seed: int, files: Files | None = None, config: StorageConfig = SMALL, **options: Any
) -> Compactor:
    """Return a history with an empty log, on a disk."""
    store = open_log(files or MemoryFiles(), config)
    store.write([Write(1, HardState(1, None))])
    store.sync()
    compactor = Compactor(store, Random(seed), **options)
    compactor.number = 1
    return compactor


@attrs.define(eq=False)
class Source:
    """A member that sends: what its prefix holds, and the log behind it."""

    compactor: Compactor
    archive: Archive
    expected: Contents

    @classmethod
    def made(cls, seed: int) -> Source:
        """Make one whose prefix has several files."""
        compactor = begun(seed, keys=100, record_bytes=600)
        for _ in range(3):
            compactor.write(20, value_bytes=200)
            compactor.compact()
        archive = compactor.store.archive()
        assert archive is not None
        return cls(compactor, archive, compactor.history.expected())

    @property
    def index(self) -> int:
        return self.archive.table.point.index

    def compact(self) -> Source:
        """Go on, compact again, and return what is sent then."""
        self.compactor.write(30)
        self.compactor.compact()
        archive = self.compactor.store.archive()
        assert archive is not None
        return Source(self.compactor, archive, self.compactor.history.expected())


class Asked:
    """What a receiver asked for: file number -> bytes."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def note(self, number: int, size_bytes: int) -> None:
        self.bytes[number] = self.bytes.get(number, 0) + size_bytes


def receive(
    incoming: Incoming,
    source: Source,
    chunk_bytes: int,
    whole: Callable[[int], None] = lambda _: None,
) -> Asked:
    """Fetch what is missing, chunk by chunk; `whole` hears of each file that is all there."""
    asked = Asked()
    incoming.begin(source.archive.encoded)
    while (gap := incoming.gap()) is not None:
        number, offset, missing = gap
        data = source.archive.read(number, offset, min(chunk_bytes, missing))
        asked.note(number, len(data))
        assert not incoming.write(number, offset + 1, data), "a piece that does not follow"
        assert incoming.write(number, offset, data)
        if len(data) == missing:
            whole(number)
    return asked


def install(store: LogStore, source: Source, number: int) -> None:
    """Read back what was received, and go over to it, with a batch behind it."""
    assert equal(contents(store.incoming.read_back()), source.expected)
    batch = attrs.evolve(source.compactor.history, rng=Random(5)).copy().batch()
    store.write([Write(number, install=source.archive.table.point, batches=[batch])])
    store.sync()
    store.sweep()
