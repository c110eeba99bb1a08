"""Looking at a data directory without changing anything in it: what there is, and what is damaged.

What it is: reading of everything that recovery reads, with the same checks, which goes on behind
damage: what is found is listed, not raised. What it is not: it repairs nothing, judges nothing that
consensus knows, takes no lock and syncs nothing. So it may look at a directory that a running
server has: what is written just then may look torn, and a file that is replaced may be missing;
what MANIFEST does not list any more at the end is left out.

Who drives it: `folkmoot log`, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from folkmoot.core.errors import StorageError
from folkmoot.core.prefix_table import FileKind, PrefixFileEntry
from folkmoot.core.storage import hard_state, manifest
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.hard_state import HardState, Slot
from folkmoot.core.storage.manifest import Manifest, SegmentEntry, decode_manifest
from folkmoot.core.storage.prefix_file import file_name, read_items, read_records, verified_bytes
from folkmoot.core.storage.recovery import any_but_zero, highest_claim, walk
from folkmoot.core.storage.segment import SUBDIR, Segment, first_index_of, segment_name
from folkmoot.core.storage.stored_prefix import StoredPrefix


@attrs.frozen
class Finding:
    """Something that is not as it should be."""

    file: str
    offset: int
    what: str
    is_damage: bool = True
    """Else the next start sets it right, and nothing that was acknowledged is lost."""


@attrs.define
class ExaminedSegment:
    """One segment of the log."""

    entry: SegmentEntry
    segment: Segment | None = None
    """Its index of batches, as far as they verify; None where its header does not."""
    entries: int = 0
    size_bytes: int = 0
    """Up to the last record that verifies."""

    @property
    def is_sealed(self) -> bool:
        """Whether nothing is appended to it any more."""
        return bool(self.entry.end)


@attrs.define
class ExaminedFile:
    """One file of the prefix. Counts are None where it is the state file, or damaged."""

    entry: PrefixFileEntry
    records: int | None = None
    """Of the state file."""
    entries: int | None = None
    live: int | None = None
    total_bytes: int | None = None
    live_bytes: int | None = None


@attrs.define
class Examination:
    """A directory, as far as it could be read.

    - Where there is damage, `findings` says so.
    """

    manifest: Manifest | None = None
    hard_state: HardState | None = None
    segments: list[ExaminedSegment] = attrs.field(factory=list)
    files: list[ExaminedFile] = attrs.field(factory=list)
    findings: list[Finding] = attrs.field(factory=list)
    read_bytes: int = 0

    @property
    def is_damaged(self) -> bool:
        """Whether anything is lost, or may be."""
        return any(one.is_damage for one in self.findings)

    @property
    def trimmable(self) -> list[ExaminedSegment]:
        """The segments that the prefix speaks for: they are kept for followers only."""
        index = 0 if self.manifest is None else self.manifest.compaction.index
        return [one for one in self.segments if one.is_sealed and one.entry.last_index <= index]

    def found(self, file: str, offset: int, what: str, *, is_damage: bool = True) -> None:
        """Note a finding."""
        self.findings.append(Finding(file, offset, what, is_damage))


def examine(files: Files) -> Iterator[Examination]:
    """Read everything; yields the examination after each step, and the last one is complete."""
    seen = Examination()
    _examine_manifest(files, seen)
    yield seen
    _examine_hard_state(files, seen)
    found = seen.manifest
    for entry in _unlisted(files) if found is None else found.segments:
        _examine_segment(files, seen, entry)
        yield seen
    _check_term(seen)
    if found is not None:
        _check_links(seen, found)
        seen.files = [ExaminedFile(entry) for entry in found.files]
        yield from _examine_prefix(files, seen)
        _drop_replaced(files, seen)
    yield seen


def size_bytes_of(files: Files) -> int:
    """Return about how much `examine` will read; 0 where that is unknown."""
    try:
        found = decode_manifest(files.read(manifest.NAME))
        active = files.size(segment_name(found.segments[-1].segment_id))
    except StorageError:
        return 0
    return active + sum(one.end for one in found.segments) + sum(one.end for one in found.files)


def _examine_manifest(files: Files, seen: Examination) -> None:
    try:
        seen.manifest = decode_manifest(files.read(manifest.NAME), manifest.NAME)
    except StorageError as error:
        seen.found(manifest.NAME, 0, str(error))


def _examine_hard_state(files: Files, seen: Examination) -> None:
    name = hard_state.NAME
    try:
        data = files.read(name)
        slots = [
            hard_state.decode_slot(data[at : at + hard_state.SLOT_BYTES])
            for at in (0, hard_state.SLOT_BYTES)
        ]
    except StorageError as error:
        seen.found(name, 0, str(error))
        return
    good = [one for one in slots if one is not None]
    if not good:
        seen.found(name, 0, "neither slot verifies: term and vote are unknown")
        return
    for number, one in enumerate(slots):
        if one is None:
            why = f"slot {number} does not verify; the other one is used"
            seen.found(name, number * hard_state.SLOT_BYTES, why, is_damage=False)
    _choose_slot(seen, good)


def _choose_slot(seen: Examination, good: list[Slot]) -> None:
    first, last = good[0], good[-1]
    newest = max(good, key=lambda one: one.sequence)
    seen.hard_state = newest.state
    if first != last:
        same = first.sequence == last.sequence
        why = f"the slots hold {first.state} and {last.state}, sequences {first.sequence} and "
        what = f"{why}{last.sequence}" + ("" if same else ": a change was cut short")
        seen.found(hard_state.NAME, hard_state.SLOT_BYTES, what, is_damage=same)
    found = seen.manifest
    if found and (newest.cluster_id, newest.node_id) != (found.cluster_id, found.node_id):
        mine = f"cluster {newest.cluster_id.hex()} node {newest.node_id}"
        theirs = f"cluster {found.cluster_id.hex()} node {found.node_id}"
        seen.found(hard_state.NAME, 0, f"it is of {mine}, MANIFEST of {theirs}")


# -- the log ---------------------------------------------------------------------------------------


def _unlisted(files: Files) -> Iterator[SegmentEntry]:
    """Yield the segments that are there, by their headers, where no MANIFEST says which count."""
    for name in files.list(SUBDIR):
        stem = name.removesuffix(".seg")
        if stem.isdecimal():
            yield SegmentEntry(int(stem), first_index_of(files, f"{SUBDIR}/{name}"))


def _examine_segment(files: Files, seen: Examination, entry: SegmentEntry) -> None:
    """Read one segment, up to the first record that does not verify."""
    one, found = ExaminedSegment(entry), seen.manifest
    before = seen.segments[-1].segment if seen.segments else None
    term = before.last_term if before is not None else 0
    seen.segments.append(one)
    name = segment_name(entry.segment_id)
    try:
        data = files.read(name)
        segment = Segment.load(files, entry, term, len(data))
    except StorageError as error:
        seen.found(name, 0, str(error))
        return
    seen.read_bytes += len(data)
    why = walk(segment, data[: entry.end] if one.is_sealed else data)
    one.segment, one.size_bytes = segment, segment.end
    one.entries = segment.last_index - segment.first_index + 1
    if found is not None and segment.owner != (found.cluster_id, found.node_id):
        owner = f"cluster {segment.owner[0].hex()} node {segment.owner[1]}"
        seen.found(name, 0, f"it is of {owner}, MANIFEST of another")
    if one.is_sealed:
        ends = segment.end, segment.chain, segment.last_index
        if why or ends != (entry.end, entry.chain, entry.last_index):
            ended = f"it ends with index {segment.last_index}, MANIFEST says {entry}"
            seen.found(name, segment.end, why or ended)
    elif why:
        _examine_tail(seen, name, segment, data, why)


def _examine_tail(seen: Examination, name: str, segment: Segment, data: bytes, why: str) -> None:
    """Judge what does not verify at the log's end, as recovery does."""
    tail = data[segment.end :]
    claim, at = highest_claim(tail, segment.tag)
    if claim > segment.last_index:
        later = f"the record at offset {segment.end + at} says that index {claim} was durable"
        seen.found(name, segment.end, f"{why}, and {later}")
    elif any_but_zero(tail, 0):
        used = len(tail.rstrip(b"\0"))
        what = f"a torn tail of {used} bytes, never acknowledged: {why}"
        seen.found(name, segment.end, what, is_damage=False)


def _check_links(seen: Examination, found: Manifest) -> None:
    """The chain runs from segment to segment, and terms never fall, as far as both are known."""
    for before, one in zip(seen.segments, seen.segments[1:], strict=False):
        segment = one.segment
        if segment is None:
            continue
        link = before.entry.segment_id, before.entry.chain
        if segment.link != link:
            said = f"segment {segment.link[0]} (chain {segment.link[1]:08x})"
            why = f"it was started behind {said}, and is behind {link[0]} ({link[1]:08x})"
            seen.found(segment.name, 0, why)
    first = seen.segments[0].segment
    if first is not None and not found.start.index and first.link != (0, 0):
        seen.found(first.name, 0, f"it was started behind segment {first.link[0]}, which is gone")


def _check_term(seen: Examination) -> None:
    terms = [one.segment.last_term for one in seen.segments if one.segment is not None]
    if seen.hard_state is not None and max(terms, default=0) > seen.hard_state.term:
        why = f"term {seen.hard_state.term}, and the log has an entry of term {max(terms)}"
        seen.found(hard_state.NAME, 0, why)


# -- the prefix ------------------------------------------------------------------------------------


def _examine_prefix(files: Files, seen: Examination) -> Iterator[Examination]:
    """Read all of it as a server that starts does; where that fails, file by file."""
    if not seen.files:
        return
    source = StoredPrefix(files, [one.entry for one in seen.files])
    before = len(seen.findings)
    state, *items = seen.files
    try:
        state.records = 0
        for _ in source.records():
            state.records += 1
        seen.read_bytes += state.entry.end
        yield seen
        for _ in source.items():
            yield seen
    except StorageError as error:
        yield from _examine_files(files, seen)
        if len(seen.findings) == before:  # each file verifies, and they do not fit together
            seen.found(file_name(state.entry.kind, state.entry.file_id), 0, str(error))
        return
    for one, known in zip(items, source.items_files, strict=True):
        seen.read_bytes += one.entry.end
        one.entries, one.live = len(known.indexes), known.live_count
        one.total_bytes, one.live_bytes = known.total_bytes, known.live_bytes


def _examine_files(files: Files, seen: Examination) -> Iterator[Examination]:
    """Find out which files are damaged, and where."""
    for one in seen.files:
        entry, name = one.entry, file_name(one.entry.kind, one.entry.file_id)
        try:
            if entry.kind is FileKind.STATE:
                one.records = sum(len(block) for block in read_records(files, name, entry))
            else:
                one.entries = sum(len(block) for block in read_items(files, name, entry))
        except StorageError as error:
            one.records = one.entries = None
            seen.found(name, _good_bytes(files, name, entry), str(error))
        seen.read_bytes += entry.end
        yield seen


def _good_bytes(files: Files, name: str, entry: PrefixFileEntry) -> int:
    try:
        return verified_bytes(files, name, entry)
    except StorageError:
        return 0


def _drop_replaced(files: Files, seen: Examination) -> None:
    """Leave out what a running server has replaced meanwhile."""
    try:
        now = decode_manifest(files.read(manifest.NAME))
    except StorageError:
        return
    if now == seen.manifest:
        return
    listed = {segment_name(one.segment_id) for one in now.segments}
    listed |= {file_name(one.kind, one.file_id) for one in now.files}
    listed |= {manifest.NAME, hard_state.NAME}
    seen.findings = [one for one in seen.findings if one.file in listed]
