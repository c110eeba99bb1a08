"""Compaction by cleaning: from the last prefix and the log behind it to the next prefix.

What it is: one compaction as a sequence of bounded steps, from frozen liveness to files that are
complete and durable. What it is not: it decides nothing about when, makes nothing live (`LogStore`
does, by one MANIFEST), and knows nothing of what entries mean: what lives was written down while
they were applied (core/prefix.py).

    before   prefix to 400:  [1..180 = = .][181..400 . = .]      log: [401..900][901..1300][1301..
                                     many are dead ^
    after    prefix to 1300: [1..180 = = .][181..1300 = = = = =]

    mark    each superseded item is looked up in the file of its owner; its entry may die with it
    plan    files with enough dead weight, and runs of small neighbours, are rewritten
    copy    what lives of those, and of the log up to the compaction index, goes into new files
    state   records that changed are written, the others carried over; and what lives, per file

Each step holds the interpreter for a few milliseconds at most, so that whoever drives them can let
the server's loop run in between. Nothing that exists is changed, in the files or in memory: a
compaction that is given up leaves files that nobody lists, and what was frozen goes into the next.

Source: §5.3 (log cleaning). Who drives it: `core/housekeeping.py` from a thread of its own; the
simulator and tests, step by step.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from itertools import compress
from typing import Any

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Kind
from folkmoot.core.config import StorageConfig
from folkmoot.core.prefix import Frozen, Ledger, RecordKey
from folkmoot.core.prefix_table import PrefixFileEntry
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.items_output import ItemsOutput
from folkmoot.core.storage.operation_spans import OperationSpans
from folkmoot.core.storage.prefix_blocks import ItemsBlock
from folkmoot.core.storage.prefix_file import SUBDIR, read_items
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.segment import Segment, read_records
from folkmoot.core.storage.state_file import write_state
from folkmoot.core.storage.stored_prefix import ItemsFile
from folkmoot.transport.codec import pack, unpack

STEP_COUNT = 1024
"""Entries that one step looks at: about a millisecond."""
_RAW_BYTES = 64 << 10
_SMALL_PART = 4
"""A file is small below this part of a segment ..."""
_SMALL_RUN = 4
"""... and so many small neighbours are merged, so that an entry is not copied every time."""


def merged(frozen: Sequence[Frozen]) -> Frozen:
    """Make one of several that follow one another: the last one's index, everybody's changes."""
    if len(frozen) == 1:
        return frozen[0]
    ledger = Ledger()
    records: dict[RecordKey, bytes | None] = {}
    for one in frozen:
        ledger.retained.extend(one.ledger.retained)
        ledger.retained_many.update(one.ledger.retained_many)
        ledger.superseded.extend(one.ledger.superseded)
        ledger.superseded_parts += one.ledger.superseded_parts
        ledger.named.update(one.ledger.named)
        ledger.deleted += one.ledger.deleted
        records.update(one.records)
    return attrs.evolve(frozen[-1], ledger=ledger, records=records)


class Compaction:
    """One compaction. `steps` does it; then `entries` and `items_files` are the new prefix.

    - Items files, kept and new, follow one another in order of index and end at or below `index`.
    - An entry of the log is copied exactly if one of its items was retained and not superseded,
      both at or below `index`.
    """

    def __init__(
        self,
        files: Files,
        store: PrefixStore,
        segments: Sequence[Segment],
        frozen: Frozen,
        *,
        after: int,
        owner: tuple[bytes, int],
        config: StorageConfig,
    ) -> None:
        """`segments` are the sealed ones with entries in (`after`, `frozen.index`]."""
        assert store.is_loaded, "compacted before the prefix was read back"
        self.index = frozen.index
        self.entries: list[PrefixFileEntry] = []
        self.items_files: list[ItemsFile] = []
        self.rewritten = 0
        """Items files that were read and written anew."""
        self.after = after
        self.log_bytes = sum(one.end for one in segments)
        """About how much log there is to go through."""
        self._files = files
        self._store = store
        self._segments = segments
        self._frozen = frozen
        self._owner = owner
        self._config = config
        self._old = list(store.items_files)
        self._many = array("Q", frozen.ledger.retained_many)
        self._copied = 0
        """Entries of the log that the present step has copied."""
        self._dead: set[int] = set()
        """Entries of the log, above `after`, whose item 0 is superseded."""
        self._dead_parts: dict[int, set[int]] = {}
        self._deleted = frozenset(frozen.ledger.deleted)
        self._output = ItemsOutput(files, store, owner, config.segment_bytes)

    def steps(self) -> Iterator[int]:
        """Do it; yields after each step how many bytes were written so far."""
        for _ in self._mark():
            yield self._output.written_bytes
        for _ in self._mark_deleted():
            yield self._output.written_bytes
        for _ in self._copy():
            self._output.flush()
            yield self._output.written_bytes
        items_bytes, written_bytes, state = self._output.written_bytes, 0, None
        for state_bytes, entry in write_state(
            self._files, self._store, self._frozen, self.items_files, self._owner
        ):
            written_bytes, state = items_bytes + state_bytes, entry
            yield written_bytes
        assert state is not None, f"no state file of index {self.index}"
        self._files.sync_dir(SUBDIR)
        self.entries = [state, *(one.entry for one in self.items_files)]
        yield written_bytes

    def give_up(self) -> None:
        """Leave it unfinished. Its files go with the next `sweep`."""
        self._store.give_up()

    # -- mark ----------------------------------------------------------------------------------

    def _mark(self) -> Iterator[None]:
        """Note in the files, and for the log in `_dead` and `_dead_parts`, what is superseded."""
        ledger = self._frozen.ledger
        firsts = [one.entry.first_index for one in self._old]
        found: dict[int, list[int]] = {at: [] for at in range(-1, len(firsts))}
        parts: dict[int, list[tuple[int, int]]] = {}
        for chunk in _chunks(ledger.superseded):
            for index in chunk:
                if index > self.after:
                    self._dead.add(index)
                else:
                    found[bisect_right(firsts, index) - 1].append(index)
            yield
        for some in _chunks(ledger.superseded_parts):
            for index, ordinal in some:
                if index > self.after:
                    self._dead_parts.setdefault(index, set()).add(ordinal)
                else:
                    at = bisect_right(firsts, index) - 1
                    parts.setdefault(at, []).append((index, ordinal))
            yield
        unknown = found.pop(-1) + [index for index, _ in parts.pop(-1, ())]
        assert not unknown, f"{unknown[0]} died, and no file is from an index so low: {firsts[:1]}"
        for at, one in enumerate(self._old):
            if not (found[at] or at in parts):
                continue
            self._old[at] = one = one.copy()
            for indexes in _chunks(found[at]):
                one.supersede_all(indexes)
                yield
            for some in _chunks(parts.get(at, ())):
                for index, ordinal in some:
                    one.supersede(_position(one, index), ordinal)
                yield

    def _mark_deleted(self) -> Iterator[None]:
        """Look through all files for what a deleted resource owned: that is rare enough."""
        if not self._deleted:
            return
        for at, one in enumerate(self._old):
            one = self._old[at] = one.copy()
            position = 0
            for block in read_items(self._files, one.name, one.entry):
                for offset, resource in enumerate(block.resources):
                    if resource in self._deleted and one.alive[position + offset]:
                        one.kill(position + offset)
                position += len(block)
                yield

    # -- plan and copy -------------------------------------------------------------------------

    def _plan(self) -> list[bool]:
        """Say for each file whether it is rewritten."""
        live_share, small = 1.0 - self._config.compaction_dead_share, self._small_bytes
        plan = [one.live_bytes <= live_share * one.total_bytes for one in self._old]
        run: list[int] = []
        for at, one in enumerate(self._old):
            if plan[at] or one.live_bytes < small:
                run.append(at)
            else:
                _merge_run(plan, run, _SMALL_RUN)
                run = []
        _merge_run(plan, run, _SMALL_RUN - 1)  # the log's part comes behind it
        return plan

    @property
    def _small_bytes(self) -> int:
        return self._config.segment_bytes // _SMALL_PART

    def _copy(self) -> Iterator[None]:
        output, done = self._output, 0
        for one, rewrite in zip(self._old, self._plan(), strict=True):
            if rewrite:
                self.rewritten += 1
                if one.live_count:
                    yield from self._copy_file(one)
                continue
            output.cut(one.entry.first_index - 1)
            self.items_files += [*output.files[done:], one]
            done = len(output.files)
            output.cut(one.entry.last_index)
        for segment in self._segments:
            yield from self._copy_segment(segment)
        output.cut(self.index)
        self.items_files += output.files[done:]

    def _copy_file(self, one: ItemsFile) -> Iterator[None]:
        position = 0
        for block in read_items(self._files, one.name, one.entry):
            alive = one.alive[position : position + len(block)]
            self._refresh_parts(one, block, position)
            self._output.extend(block if all(alive) else block.select(alive))
            position += len(block)
            yield

    def _refresh_parts(self, one: ItemsFile, block: ItemsBlock, position: int) -> None:
        """Bring the ordinals that live up to date, and trim entries that have lost some."""
        for at, mask in list(block.parts.items()):
            living = one.parts.get(position + at)
            if living is None:
                del block.parts[at]  # dead, or it would be among the parts
            elif living != mask:
                block.parts[at] = bytes(living)
                resource, data = block.resources[at], block.operations[at]
                block.operations[at] = self._trimmed(resource, data, block.parts[at])

    def _trimmed(self, resource: int, data: bytes, mask: bytes) -> bytes:
        """Leave out of an operation what only its dead items needed."""
        if all(mask):
            return data
        _, name, args, *_ = unpack(data)
        return pack([resource, *self._frozen.trim(resource, name, args, _ordinals(mask))])

    def _copy_segment(self, segment: Segment) -> Iterator[None]:
        """Copy what lives in one segment of the log, jumping over what does not."""
        live: list[int] = []
        for chunk in self._retained(segment):
            live += chunk
            yield
        at = 0
        while at < len(live):
            start, end = segment.span(live[at], _RAW_BYTES)
            data = self._files.read(segment.name, start, end - start)
            where = self._files.describe(segment.name)
            for batch in read_records(data, segment.tag, start, where):
                if at < len(live) and batch.last_index >= live[at]:
                    at = yield from self._copy_batch(batch, live, at)
            self._copied = 0
            yield

    def _retained(self, segment: Segment) -> Iterator[list[int]]:
        """Yield the entries of a segment that own something still, in order."""
        dead, ones, many = self._dead, self._frozen.ledger.retained, self._many
        first, last = max(segment.first_index, self.after + 1), min(segment.last_index, self.index)
        at, end = bisect_left(ones, first), bisect_right(ones, last)
        many_at, many_end = bisect_left(many, first), bisect_right(many, last)
        while at < end or many_at < many_end:
            chunk = ones[at : min(at + STEP_COUNT, end)]
            more = many[many_at : min(many_at + STEP_COUNT, many_end)]
            if chunk and more:
                upto = min(chunk[-1], more[-1])
                chunk, more = chunk[: bisect_right(chunk, upto)], more[: bisect_right(more, upto)]
            found = [index for index in chunk if index not in dead]
            if more:
                found = sorted([*found, *filter(self._mask, more)])
            yield found
            at += len(chunk)
            many_at += len(more)

    def _mask(self, index: int) -> bytes:
        """Return a byte per ordinal for an entry that owns several items; empty if all are dead."""
        count = self._frozen.ledger.retained_many[index]
        mask = bytearray(b"\1" * count)
        if index in self._dead:
            mask[0] = 0
        for ordinal in self._dead_parts.get(index, ()):
            mask[ordinal] = 0
        return bytes(mask) if any(mask) else b""

    def _copy_batch(self, batch: Batch, live: Sequence[int], at: int) -> Generator[None, None, int]:
        """Copy the entries of a batch that live, from `live[at]` on; returns the next position."""
        first = batch.first_index
        for group in batch.groups:
            end = bisect_left(live, first + group.count, at)
            if at < end:
                assert group.kind == Kind.COMMANDS, f"entry {live[at]} of kind {group.kind} lives"
                session = COMMANDS_HEADER.unpack_from(group.payload)[0]
                spans = OperationSpans(group.payload, COMMANDS_HEADER.size)
                for start in range(at, end, STEP_COUNT):
                    chunk = live[start : min(start + STEP_COUNT, end)]
                    self._copy_entries(chunk, batch.log_time, session, spans, first)
                    self._copied += len(chunk)
                    if self._copied >= STEP_COUNT:
                        self._copied = 0
                        yield
                at = end
            first += group.count
        return at

    def _copy_entries(
        self, chunk: Sequence[int], time: int, session: int, spans: OperationSpans, first: int
    ) -> None:
        """Copy some entries of one client's frame, whose first entry is `first`."""
        ledger, deleted = self._frozen.ledger, self._deleted
        taken = [spans.take(index - first) for index in chunk]
        resources = [reference for reference, _ in taken]
        operations = [data for _, data in taken]
        block = ItemsBlock(array("Q", chunk), [], array("Q"), array("Q"), operations, {})
        if None in resources:
            for at, reference in enumerate(resources):
                if reference is None:
                    resources[at] = ledger.named[chunk[at]]
        block.resources.extend(resources)  # type: ignore[arg-type]
        if ledger.retained_many:
            for at, index in enumerate(chunk):
                if index in ledger.retained_many:
                    block.parts[at] = mask = self._mask(index)
                    operations[at] = self._trimmed(block.resources[at], operations[at], mask)
        block.times = [time] * len(block)
        block.sessions = array("Q", [session]) * len(block)
        if deleted and not deleted.isdisjoint(resources):
            block = block.select([resource not in deleted for resource in resources])
        self._output.extend(block)


def _merge_run(plan: list[bool], run: list[int], enough: int) -> None:
    """Rewrite a run of small files, if it is long enough; what is rewritten anyway counts too."""
    if len(run) >= enough:
        for at in run:
            plan[at] = True


def _position(one: ItemsFile, index: int) -> int:
    position = bisect_left(one.indexes, index)
    found = one.indexes[position] if position < len(one.indexes) else None
    assert found == index, f"entry {index} died, and {one.name} has {found} in its place"
    return position


def _ordinals(mask: bytes) -> list[int]:
    return list(compress(range(len(mask)), mask))


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), STEP_COUNT):
        yield values[start : start + STEP_COUNT]
