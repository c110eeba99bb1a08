"""Planted twins: the compaction with one bug switched on. A test that passes with it proves little.

Each twin is a context manager that breaks one rule, in place, for as long as it is entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import attrs

from folkmoot.core.prefix import Frozen, Ledger, RecordKey
from folkmoot.core.prefix_table import ArchiveFile, PrefixFileEntry
from folkmoot.core.storage import incoming, log_store, state_file
from folkmoot.core.storage.compaction import Compaction, merged
from folkmoot.core.storage.incoming import Incoming
from folkmoot.core.storage.prefix_blocks import ItemsBlock, Record
from folkmoot.core.storage.prefix_file import PrefixFileWriter
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.segment import Segment
from folkmoot.core.storage.segmented_log import SegmentedLog
from folkmoot.core.storage.stored_prefix import ItemsFile

Twin = Callable[[], contextlib.AbstractContextManager[Any]]
TWINS: dict[str, Twin] = {}


def replaces(target: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a twin, named like the decorated function, that puts it in place of `target.name`."""

    def register(broken: Callable[..., Any]) -> Callable[..., Any]:
        TWINS[broken.__name__] = lambda: mock.patch.object(target, name, broken)
        return broken

    return register


def _without(self: Compaction, **fields: Any) -> None:
    ledger = attrs.evolve(self._frozen.ledger, **fields)
    self._frozen = attrs.evolve(self._frozen, ledger=ledger)


# -- what lives --------------------------------------------------------------------------------

_mark = Compaction._mark


@replaces(log_store, "merged")
def judged_by_what_was_superseded_later(frozen: Sequence[Frozen]) -> Frozen:
    """An item is dead at S although what superseded it came after S."""
    first, later = frozen[0], merged(frozen).ledger
    known = {*first.ledger.retained, *first.ledger.retained_many}
    dead = [index for index in later.superseded if index in known]
    ledger = attrs.evolve(first.ledger, superseded=type(later.superseded)("Q", dead))
    return attrs.evolve(first, ledger=ledger)


@replaces(Compaction, "_mark")
def parts_never_die(self: Compaction) -> Iterator[None]:
    _without(self, superseded_parts=[])
    yield from _mark(self)


@replaces(Compaction, "_mark")
def off_by_one_at_the_last_index(self: Compaction) -> Iterator[None]:
    self.after -= 1
    yield from _mark(self)
    self.after += 1


_retained = Compaction._retained


@replaces(Compaction, "_retained")
def first_entry_behind_the_last_index_left_out(
    self: Compaction, segment: Segment
) -> Iterator[list[int]]:
    self.after += 1
    yield from _retained(self, segment)
    self.after -= 1


@replaces(Compaction, "_mark_deleted")
def deleted_resources_keep_their_items(self: Compaction) -> Iterator[None]:
    self._deleted = frozenset()
    yield


_steps = Compaction.steps


@replaces(Compaction, "steps")
def names_of_resources_forgotten(self: Compaction) -> Iterator[int]:
    _without(self, named=dict.fromkeys(self._frozen.ledger.named, 0))
    yield from _steps(self)


@replaces(Compaction, "_refresh_parts")
def parts_of_a_rewritten_file_come_back(
    self: Compaction, one: ItemsFile, block: ItemsBlock, position: int
) -> None:
    for at in list(block.parts):
        if position + at not in one.parts:
            del block.parts[at]


@replaces(ItemsFile, "liveness")
def liveness_of_kept_files_lost(self: ItemsFile) -> bytes:
    return _liveness(attrs.evolve(self, alive=bytearray(b"\1" * len(self.alive))))


_liveness = ItemsFile.liveness


@replaces(ItemsFile, "_live_bytes_of")
def dead_items_of_living_entries_not_counted(self: ItemsFile, position: int) -> int:
    return self.sizes[position]


@replaces(log_store, "merged")
def records_of_a_frozen_state_forgotten(frozen: Sequence[Frozen]) -> Frozen:
    return attrs.evolve(frozen[-1], ledger=merged(frozen).ledger)


@replaces(log_store, "merged")
def ledger_of_a_frozen_state_forgotten(frozen: Sequence[Frozen]) -> Frozen:
    ledger = frozen[-1].ledger if len(frozen) == 1 else Ledger()
    return attrs.evolve(merged(frozen), ledger=ledger)


_all_records = state_file._all_records


@replaces(state_file, "_all_records")
def removed_records_carried_over(
    old: Iterator[list[Record]],
    changes: Mapping[RecordKey, bytes | None],
    items_files: Sequence[ItemsFile],
) -> Iterator[Record | None]:
    there = {key: data for key, data in changes.items() if data is not None}
    yield from _all_records(old, there, items_files)


# -- files -------------------------------------------------------------------------------------


@replaces(SegmentedLog, "trim")
def trimmed_beyond_the_prefix(self: SegmentedLog, index: int) -> list[Segment]:
    dropped = [one for one in self.segments[:-1] if one.first_index <= index + 1]
    if dropped:
        rest = self.manifest.segments[len(dropped) :]
        start = dropped[-1].point
        self.replace_manifest(attrs.evolve(self.manifest, start=start, segments=rest))
        self.segments = self.segments[len(dropped) :]
    return dropped


@replaces(PrefixStore, "pin")
def files_that_are_read_are_removed(self: PrefixStore, entries: Sequence[PrefixFileEntry]) -> None:
    with self._lock:
        for one in entries:
            self._pins.setdefault(f"never/{one.file_id}", 1)


@replaces(PrefixStore, "unpin")
def files_that_were_read_stay(self: PrefixStore, entries: Sequence[PrefixFileEntry]) -> None:
    pass


_close = PrefixFileWriter.close


@replaces(PrefixFileWriter, "close")
def installed_before_its_files_are_durable(
    self: PrefixFileWriter, last_index: int
) -> PrefixFileEntry:
    with mock.patch.object(self._files, "sync"):
        return _close(self, last_index)


@replaces(Compaction, "steps")
def installed_before_its_names_are_durable(self: Compaction) -> Iterator[int]:
    with mock.patch.object(self._files, "sync_dir"):
        yield from _steps(self)


# -- transfers ---------------------------------------------------------------------------------

_complete = Incoming._complete


@replaces(Incoming, "_complete")
def called_whole_before_it_is_durable(self: Incoming, one: ArchiveFile) -> None:
    with mock.patch.object(self._files, "sync"):
        _complete(self, one)


@replaces(Incoming, "_verified")
def what_is_here_believed_unread(self: Incoming, one: ArchiveFile) -> int:
    return min(self._files.size(incoming._part(one)), one.entry.end)
