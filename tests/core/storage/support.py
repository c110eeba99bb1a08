"""What the storage tests share: writes, batches, and a log opened on a disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from folkmoot.core.batch import Batch, Group, Kind, encode_batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.prefix_table import Point
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.log_store import HardState, Identity, LogStore
from folkmoot.core.types import NodeId

Disk = Callable[[], Files]
"""Gives the same disk again and again."""
SMALL = StorageConfig(segment_bytes=4096)
OWNER = Identity(b"cluster-of-tests", NodeId(7), b"the first configuration")


@attrs.frozen
class Write:
    number: int
    hard_state: HardState | None = None
    truncate_after: int | None = None
    batches: Sequence[Batch] = ()
    install: Point | None = None


def batch(index: int, term: int = 1, *, count: int = 1, size_bytes: int = 20) -> Batch:
    payload = bytes((index + at) % 251 for at in range(size_bytes))
    return encode_batch(term, index, index * 10, [Group(Kind.COMMANDS, count, payload)])


def batches(first: int, last: int, term: int = 1, *, size_bytes: int = 20) -> list[Batch]:
    return [batch(index, term, size_bytes=size_bytes) for index in range(first, last + 1)]


def open_log(
    files: Files, config: StorageConfig = SMALL, identity: Identity | None = OWNER
) -> LogStore:
    return LogStore.open(files, config, identity)


class Log:
    """A log store whose writes are numbered by themselves."""

    def __init__(self, files: Files, config: StorageConfig = SMALL) -> None:
        self.store = open_log(files, config)
        self.number = 0

    def write(
        self,
        appended: Sequence[Batch] = (),
        *,
        term: int | None = None,
        vote: int | None = None,
        truncate_after: int | None = None,
    ) -> int:
        self.number += 1
        state = None if term is None else HardState(term, vote)
        self.store.write([Write(self.number, state, truncate_after, appended)])
        return self.number

    def commit(
        self,
        appended: Sequence[Batch] = (),
        *,
        term: int | None = None,
        vote: int | None = None,
        truncate_after: int | None = None,
    ) -> None:
        number = self.write(appended, term=term, vote=vote, truncate_after=truncate_after)
        assert self.store.sync() == number

    def all(self) -> list[Batch]:
        return list(self.store.batches())
