"""Recovery: from a directory as a crash left it to a log that is verified and durable.

What it is: the reading of everything at the start, and the judgement of what does not verify. What
it is not: it repairs nothing that may have been acknowledged.

Who drives it: `LogStore.open`.

A directory is made in an order in which MANIFEST comes last, so without one nothing was ever
promised. With one, everything that it lists must be there and verify, but for the tail of the last
segment:

TORN TAIL. Records that were written and not synced may be there in any subset and any parts. The
first bad record, and everything behind it, is cut if no record vouches for it: it was never
acknowledged (later records that verify belong to the same unsynced write: blocks reach the disk out
of order). The cut is reported, and its bytes are overwritten with zeros and synced before anything
is appended, so that they can never be taken for records that follow what is appended there.

CORRUPTION. The bad record, or one behind it, was durable once: a later record of this segment that
verifies says so by its durable mark, or the segment is sealed. Then nothing is cut, and nothing
starts.

WHAT CANNOT BE TOLD APART (by anybody, FAST'18 §3.3.3): rot in the last synced records when nothing
was written after them. `LogStore` narrows it: a mark is written at a clean close and when the log
goes idle.

What is read here may still be in memory only: the process was killed and the machine was not. It
may even be called clean there, if a sync failed (bugs F2): then a sync alone would do nothing.
So what no mark vouches for is WRITTEN AGAIN, the same bytes at the same place, and synced, before
`durable_index` covers it. The hard state is treated alike.
"""

from __future__ import annotations

import hashlib
import struct
import time

import attrs

from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.storage import hard_state, manifest, prefix_file, segment
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.hard_state import HardStateFile
from folkmoot.core.storage.incoming import take_back
from folkmoot.core.storage.manifest import Manifest, SegmentEntry
from folkmoot.core.storage.prefix_store import leftovers
from folkmoot.core.storage.segment import HEADER_BYTES, RECORD_BYTES, SUBDIR, Segment, corrupt
from folkmoot.core.types import NodeId


@attrs.frozen
class Identity:
    """Whose directory this is."""

    cluster_id: bytes
    """16 bytes that guard every connection."""
    node_id: NodeId
    bootstrap: bytes
    """The first configuration, encoded by consensus; opaque here. Read back, never compared."""

    def cluster_id_after(self, restore_id: bytes) -> bytes:
        """Return the id of a cluster of this configuration that began with a restored backup.

        The same on every member, another one for each restore: so no member of the old cluster is
        ever taken for one of the new (bugs K7).
        """
        if restore_id == manifest.NEVER_RESTORED:
            return self.cluster_id
        return hashlib.sha256(b"folkmoot restored" + self.cluster_id + restore_id).digest()[:16]


@attrs.frozen
class TornTail:
    """What was cut from the end of the log: never acknowledged, so nothing is lost."""

    file: str
    offset: int
    size_bytes: int
    why: str


@attrs.frozen
class Recovered:
    """What opening found and did. For the operator's log."""

    created: bool
    batches: int
    last_index: int
    segments: int
    size_bytes: int
    torn_tail: TornTail | None
    repaired: tuple[str, ...]
    """Other things set right, one line each: a hard state slot, files left over from a crash."""
    elapsed_s: float


@attrs.frozen
class Opened:
    """All that a LogStore starts with."""

    manifest: Manifest
    hard_state: HardStateFile
    segments: list[Segment]
    recovered: Recovered


def open_directory(files: Files, config: StorageConfig, identity: Identity | None) -> Opened:
    """Create or recover the log in a directory that is already locked."""
    started_s = time.perf_counter()
    created = manifest.NAME not in files.list()
    if created:
        _create(files, config, identity)
    found = manifest.load_manifest(files)
    if identity is not None:
        _check_identity(files, found, identity)
    state = HardStateFile.load(files)
    repaired = [state.repaired] if state.repaired else []
    if (state.slot.cluster_id, state.slot.node_id) != (found.cluster_id, found.node_id):
        mine = f"cluster {state.slot.cluster_id.hex()} node {state.slot.node_id}"
        theirs = f"cluster {found.cluster_id.hex()} node {found.node_id}"
        where = files.describe(hard_state.NAME)
        raise corrupt(where, 0, f"it is of {mine}, MANIFEST of {theirs}")
    repaired += _remove_leftovers(files, found)
    segments, torn_tail = _load_segments(files, config, found)
    last = segments[-1]
    if last.last_term > state.state.term:
        # Bugs A2: a term is durable before its entries are, so this hard state is not the last one.
        why = f"term {state.state.term}, and the log has an entry of term {last.last_term}"
        raise corrupt(files.describe(hard_state.NAME), 0, why)
    recovered = Recovered(
        created=created,
        batches=sum(len(one.firsts) for one in segments),
        last_index=last.last_index,
        segments=len(segments),
        size_bytes=sum(one.end for one in segments),
        torn_tail=torn_tail,
        repaired=tuple(repaired),
        elapsed_s=time.perf_counter() - started_s,
    )
    return Opened(found, state, segments, recovered)


def start_segment(files: Files, new: Segment, *, allocated: bool = False) -> None:
    """Make a segment's file, its header and its name durable. The manifest comes after."""
    if not allocated:
        files.create(new.name)
        files.sync_dir(SUBDIR)
    files.extend(new.name, new.capacity)
    files.write(new.name, 0, new.header)
    files.sync(new.name)


def _create(files: Files, config: StorageConfig, identity: Identity | None) -> None:
    """Make a new directory; MANIFEST last, because it is what says that there is one."""
    _check_nothing_was_promised(files)
    if identity is None:
        where = files.describe("")
        raise StorageError(f"{where} holds no log yet: an identity is needed to make one")
    if len(identity.cluster_id) != 16 or identity.node_id < 1:
        raise StorageError(f"{identity} is not an identity: 16 bytes and a positive node id")
    for name in files.list():
        if name in (hard_state.NAME, manifest.NEW_NAME):
            files.unlink(name)
    for name in files.list(SUBDIR):
        files.unlink(f"{SUBDIR}/{name}")
    HardStateFile.create(files, identity.cluster_id, identity.node_id)
    entry = SegmentEntry(segment_id=1, first_index=1)
    cluster_id, node_id = identity.cluster_id, identity.node_id
    first = Segment(entry, 0, 0, 0, cluster_id, node_id, config.segment_bytes)
    start_segment(files, first)
    files.sync_dir()
    made = Manifest(cluster_id, node_id, identity.bootstrap, (entry,))
    manifest.replace_manifest(files, made)


def _check_nothing_was_promised(files: Files) -> None:
    """Without MANIFEST only the remains of a creation that was cut short may be here."""
    where = files.describe(manifest.NAME)
    if hard_state.NAME in files.list():
        data = files.read(hard_state.NAME)
        for start in (0, hard_state.SLOT_BYTES):
            slot = hard_state.decode_slot(data[start : start + hard_state.SLOT_BYTES])
            if slot is not None and slot.sequence > 1:
                raise StorageCorrupt(
                    f"{where} is missing, but hard_state at offset {start} holds {slot.state}: "
                    "restore the file, or rebuild this member from the others"
                )
    for name in files.list(SUBDIR):
        data = files.read(f"{SUBDIR}/{name}", HEADER_BYTES)
        if data != bytes(len(data)):
            raise StorageCorrupt(
                f"{where} is missing, but {files.describe(f'{SUBDIR}/{name}')} holds records: "
                "restore the file, or rebuild this member from the others"
            )


def _check_identity(files: Files, found: Manifest, identity: Identity) -> None:
    expected = identity.cluster_id_after(found.restore_id)
    if (found.cluster_id, found.node_id) != (expected, identity.node_id):
        raise StorageError(
            f"{files.describe('')} belongs to cluster {found.cluster_id.hex()} "
            f"node {found.node_id}, this is cluster {expected.hex()} "
            f"node {identity.node_id}; use the directory of this member, or an empty one"
        )


def _remove_leftovers(files: Files, found: Manifest) -> list[str]:
    """Remove what a crash left behind: files that the durable manifest does not list.

    Nothing is removed before everything that is listed was found (bugs F11): an old MANIFEST, put
    back by hand, does not list what has come since.
    """
    unlisted, missing = leftovers(files, found)
    live = {segment.segment_name(entry.segment_id) for entry in found.segments}
    present = [f"{SUBDIR}/{name}" for name in files.list(SUBDIR)]
    for name in [*sorted(live - set(present)), *missing]:
        raise corrupt(files.describe(name), 0, "the file is missing, and MANIFEST lists it")
    leftover = sorted((name for name in present if name not in live), reverse=True)
    for name in leftover:
        # A segment gets records only once MANIFEST lists it, and ids rise: this one was listed.
        if name > max(live) and any_but_zero(files.read(name), HEADER_BYTES):
            why = "it has records and a higher id than any that MANIFEST lists: that is an old one"
            raise corrupt(files.describe(name), HEADER_BYTES, why)
    said = []
    if manifest.NEW_NAME in files.list():
        files.unlink(manifest.NEW_NAME)
        files.sync_dir()
        said.append(f"{manifest.NEW_NAME} removed: its replacement was cut short")
    taken = take_back(files, unlisted)
    said += [f"{name} taken back: its installation was cut short" for name in taken]
    for name in [*leftover, *(name for name in unlisted if name not in taken)]:
        files.unlink(name)
        said.append(f"{name} removed: MANIFEST does not list it")
    files.sync_dir(SUBDIR)
    if unlisted:
        files.sync_dir(prefix_file.SUBDIR)
    return said


def _load_segments(
    files: Files, config: StorageConfig, found: Manifest
) -> tuple[list[Segment], TornTail | None]:
    """Read and verify the whole log."""
    segments: list[Segment] = []
    term = found.start.term
    for entry in found.segments[:-1]:
        segments.append(_load_sealed(files, found, entry, term))
        term = segments[-1].last_term
    active, torn_tail = _load_active(files, config, found, term)
    segments.append(active)
    _check_links(files, found, segments)
    return segments, torn_tail


def _load_sealed(files: Files, found: Manifest, entry: SegmentEntry, term: int) -> Segment:
    """A sealed segment was durable before the manifest said so: everything must verify."""
    one = Segment.load(files, entry, term, entry.end)
    where = files.describe(one.name)
    data = files.read(one.name, 0, entry.end)
    if len(data) < entry.end:
        raise corrupt(where, len(data), f"the file ends here, {entry.end} bytes are needed")
    why = walk(one, data)
    if why:
        raise corrupt(where, one.end, why)
    if (one.end, one.chain, one.last_index) != (entry.end, entry.chain, entry.last_index):
        ended = f"ends with index {one.last_index}, chain {one.chain:08x}"
        raise corrupt(where, one.end, f"{ended}; MANIFEST says {entry}")
    return one


def _load_active(
    files: Files, config: StorageConfig, found: Manifest, term: int
) -> tuple[Segment, TornTail | None]:
    """Find the end of the last segment; cut a torn tail; make durable what stays."""
    size_bytes = files.size(segment.segment_name(found.segments[-1].segment_id))
    one = Segment.load(files, found.segments[-1], term, max(size_bytes, config.segment_bytes))
    where = files.describe(one.name)
    data = files.read(one.name)
    why = walk(one, data)
    tail = data[one.end :]
    torn = None
    if why:
        claim, at = highest_claim(tail, one.tag)
        if claim > one.last_index:
            later = f"the record at offset {one.end + at} says that index {claim} was durable"
            raise corrupt(where, one.end, f"{why}, and {later}")
        used = len(tail.rstrip(b"\0"))
        torn = TornTail(where, one.end, used, why)
        # From here on nothing of the tail may parse again: zeros, durable, before any append.
        files.write(one.name, one.end, bytes(used))
    _write_again(files, one, data)
    files.extend(one.name, one.capacity)
    files.sync(one.name)
    return one, torn


def _write_again(files: Files, one: Segment, data: bytes) -> None:
    """Let the next sync really write what it is to cover."""
    start = one.offset_from(one.vouched_index + 1)
    if start < one.end:
        files.write(one.name, start, data[start : one.end])


def _check_links(files: Files, found: Manifest, segments: list[Segment]) -> None:
    """The chain runs through the whole log. What stood before it may have been trimmed."""
    link = segments[0].link if found.start.index else (0, 0)
    for one in segments:
        where = files.describe(one.name)
        if one.owner != (found.cluster_id, found.node_id):
            owner = f"cluster {one.owner[0].hex()} node {one.owner[1]}"
            raise corrupt(where, 0, f"it is of {owner}, MANIFEST of another")
        if one.link != link:
            said = f"segment {one.link[0]} (chain {one.link[1]:08x})"
            why = f"it was started behind {said}, and is behind {link[0]} ({link[1]:08x})"
            raise corrupt(where, 0, why)
        link = one.segment_id, one.chain


def walk(one: Segment, data: bytes) -> str:
    """Index the records of `data`, the file from its start, up to the first that is not one.

    Returns why it stopped; empty at the end of the data or where only zeros (or a mark) are left.
    """
    offset = HEADER_BYTES
    while offset < len(data):
        record = segment.decode_record(data, offset, one.tag)
        if isinstance(record, str):
            return "" if not any_but_zero(data, offset) else record
        size_bytes, previous, durable, check = record
        one.vouched_index = max(one.vouched_index, durable)
        if previous != one.chain:
            return f"chained to {previous:08x}, the record before is {one.chain:08x}"
        if size_bytes == 0:
            one.marked = not any_but_zero(data, offset + RECORD_BYTES)
            return "" if one.marked else "bytes behind a mark are not zero"
        batch = segment.read_batch(data, offset, size_bytes)
        if isinstance(batch, str):
            return batch
        if batch.first_index != one.last_index + 1 or batch.term < one.last_term:
            before = f"index {one.last_index} term {one.last_term}"
            return f"index {batch.first_index} term {batch.term} after {before}"
        if durable >= batch.first_index:
            return f"index {batch.first_index} claims that {durable} was durable before it"
        one.place(batch, offset, check)
        offset = one.end
    return ""


def any_but_zero(data: bytes, offset: int) -> bool:
    """Say whether anything but zeros stands from `offset` on. (A comparison: no loop, no copy.)"""
    return offset < len(data) and not data.startswith(bytes(len(data) - offset), offset)


def highest_claim(tail: bytes, tag: int) -> tuple[int, int]:
    """Return the highest index that a frame in `tail` says was durable, and the frame's offset.

    A frame counts that verifies by itself, wherever it lies: its batch may be torn and the record
    before it damaged, its mark is still what was written. Batches of frames that verify are stepped
    over.
    """
    claim, where = 0, 0
    needle = struct.pack("<I", tag)
    at = tail.find(needle)
    while at >= 0:
        record = segment.decode_record(tail, at, tag)
        step = 1
        if not isinstance(record, str):
            if record[2] > claim:
                claim, where = record[2], at
            step = RECORD_BYTES + record[0]
        at = tail.find(needle, at + step)
    return claim, where
