"""MANIFEST: which files make up the log and its compacted prefix.

What it is: the one truth about which files exist. It is small and replaced as a whole: write
MANIFEST.new, sync, rename, sync the directory. That rename is the moment at which a segment is
sealed, a log is truncated or trimmed, and a compacted prefix becomes live. A file in `log/` or
`prefix/` that is not listed does not exist, and is removed at the next opening: it is left over
from a crash. A file that is listed and missing is corruption.

What it is not: it holds no state that changes with every write.

    magic 8 | version u32 | size_bytes u32 (of all) | cluster_id 16 | node_id u64 | epoch u64
    | restore_id 16 | compaction point | start point
    | bootstrap size u32 | prefix files u32 | segments u32 | 4 zeros
    | bootstrap | prefix file ... | segment ... | crc32 u32
    point        index u64 | term u64 | log_time u64
    prefix file  kind u32 | 4 zeros | id u64 | first_index u64 | last_index u64 | end u64
                 | chain u32 | 4 zeros
    segment      id u64 | first_index u64 | last_index u64 | end u64 | chain u32 | 4 zeros

The COMPACTION POINT is the last entry that the prefix files speak for. The START POINT is the last
entry before the first segment: usually an earlier one, as segments stay for followers that lag.

Segments stand in log order. All but the last are SEALED: `end`, `chain` and `last_index` say
exactly where they end, and whatever lies behind that end in the file is not part of the log. The
last one is ACTIVE: its end is found by reading.

Version 1 had one point, always 0, and no prefix files. It is still read.

Who drives it: `LogStore` and recovery.
"""

from __future__ import annotations

import struct
import zlib

import attrs

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.prefix_table import BEGINNING, FileKind, Point, PrefixFileEntry, check_files
from folkmoot.core.storage.files import Files

NAME = "MANIFEST"
NEW_NAME = "MANIFEST.new"
_MAGIC = b"FMMANIFE"
_VERSION = 2
_HEAD = struct.Struct("<8sII16sQQ16sQQQQQQIII4x")
_HEAD_1 = struct.Struct("<8sII16sQQQII")
_FILE = struct.Struct("<I4xQQQQI4x")
_SEGMENT = struct.Struct("<QQQQI4x")
_CHECK = struct.Struct("<I")
NEVER_RESTORED = bytes(16)


@attrs.frozen
class SegmentEntry:
    """One live segment. `last_index`, `end` and `chain` are 0 for the active one."""

    segment_id: int
    first_index: int
    last_index: int = 0
    end: int = 0
    chain: int = 0


@attrs.frozen
class Manifest:
    """The whole content.

    Invariants:
    - there is at least one segment, and exactly the last is active (`end` 0);
    - ids differ; from the start point on segments follow one another without a gap;
    - the start point is not behind the compaction point, which is the start point itself or the end
      of a sealed segment;
    - above compaction index 0 the first prefix file is the state file, of exactly that index; the
      others are items files in order of index, at or below it, without overlap.
    """

    cluster_id: bytes
    node_id: int
    bootstrap: bytes
    segments: tuple[SegmentEntry, ...]
    compaction: Point = BEGINNING
    start: Point = BEGINNING
    files: tuple[PrefixFileEntry, ...] = ()
    epoch: int = 0
    """How often this cluster's state was restored from a backup."""
    restore_id: bytes = NEVER_RESTORED
    """Names the restore that this cluster began with: it is part of what makes its cluster id."""

    def check(self) -> str:
        """Return what is wrong with it; empty if nothing."""
        return self._check_segments() or self._check_files()

    def _check_segments(self) -> str:
        if not self.segments:
            return "no segment is listed"
        if len({entry.segment_id for entry in self.segments}) != len(self.segments):
            return "a segment is listed twice"
        last_index = self.start.index
        for entry in self.segments:
            if entry.first_index != last_index + 1:
                return f"segment {entry} does not follow index {last_index}"
            if entry is self.segments[-1]:
                break
            if not (entry.end and entry.first_index <= entry.last_index):
                return f"segment {entry} is not sealed"
            last_index = entry.last_index
        if self.segments[-1].end:
            return f"the last segment {self.segments[-1]} is sealed"
        index = self.compaction.index
        if index > self.start.index and index not in [one.last_index for one in self.segments[:-1]]:
            return f"the prefix ends at {index}, where no segment does"
        return ""

    def _check_files(self) -> str:
        index = self.compaction.index
        if self.start.index > index:
            return f"the log starts behind {self.start.index}, the prefix ends at {index}"
        return check_files(index, self.files)


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode it with its checksum."""
    wrong = manifest.check()
    assert not wrong, wrong
    m, bootstrap = manifest, manifest.bootstrap
    entries_bytes = len(m.files) * _FILE.size + len(m.segments) * _SEGMENT.size
    size_bytes = _HEAD.size + len(bootstrap) + entries_bytes + _CHECK.size
    body = b"".join(
        (
            _HEAD.pack(
                _MAGIC, _VERSION, size_bytes, m.cluster_id, m.node_id, m.epoch, m.restore_id,
                *attrs.astuple(m.compaction), *attrs.astuple(m.start),
                len(bootstrap), len(m.files), len(m.segments),
            ),
            bootstrap,
            *(_FILE.pack(*attrs.astuple(entry)) for entry in m.files),
            *(_SEGMENT.pack(*attrs.astuple(entry)) for entry in m.segments),
        )
    )  # fmt: skip
    return body + _CHECK.pack(zlib.crc32(body))


def decode_manifest(data: bytes, where: str = NAME) -> Manifest:
    """Verify and decode. Raises StorageCorrupt naming `where` and the offset."""
    if len(data) < _HEAD_1.size + _CHECK.size:
        raise _corrupt(where, 0, f"{len(data)} bytes are too few")
    magic, version, size_bytes = struct.unpack_from("<8sII", data)
    if magic != _MAGIC:
        raise _corrupt(where, 0, f"begins with {magic!r}, not with {_MAGIC!r}")
    crc = zlib.crc32(memoryview(data)[: -_CHECK.size])
    said = _CHECK.unpack_from(data, len(data) - _CHECK.size)[0]
    if crc != said:
        raise _corrupt(where, len(data) - _CHECK.size, f"checksum {crc:08x}, it says {said:08x}")
    if size_bytes != len(data):
        raise _corrupt(where, 12, f"{len(data)} bytes, {size_bytes} claimed")
    if version == 1:
        manifest = _decode_version_1(data, where)
    elif version == _VERSION:
        manifest = _decode(data, where)
    else:
        raise StorageError(
            f"{where}: format version {version}, this program knows 1 and {_VERSION}; "
            "use the release that wrote this directory, or a newer one"
        )
    wrong = manifest.check()
    if wrong:
        raise _corrupt(where, _HEAD.size, wrong)
    return manifest


def _decode(data: bytes, where: str) -> Manifest:
    if len(data) < _HEAD.size + _CHECK.size:
        raise _corrupt(where, 0, f"{len(data)} bytes are too few")
    _, _, _, cluster_id, node_id, epoch, restore_id, *rest = _HEAD.unpack_from(data)
    *points, bootstrap_bytes, file_count, segment_count = rest
    files_at = _HEAD.size + bootstrap_bytes
    segments_at = files_at + file_count * _FILE.size
    expected = segments_at + segment_count * _SEGMENT.size + _CHECK.size
    if expected != len(data):
        raise _corrupt(where, 12, f"{len(data)} bytes, {expected} are needed")
    files = _FILE.iter_unpack(data[files_at:segments_at])
    segments = _SEGMENT.iter_unpack(data[segments_at : -_CHECK.size])
    try:
        entries = tuple(PrefixFileEntry(FileKind(kind), *fields) for kind, *fields in files)
    except ValueError as error:
        raise _corrupt(where, files_at, str(error)) from error
    return Manifest(
        cluster_id,
        node_id,
        data[_HEAD.size : files_at],
        tuple(SegmentEntry(*fields) for fields in segments),
        Point(*points[:3]),
        Point(*points[3:]),
        entries,
        epoch,
        restore_id,
    )


def _decode_version_1(data: bytes, where: str) -> Manifest:
    _, _, _, cluster_id, node_id, _, _, bootstrap_bytes, count = _HEAD_1.unpack_from(data)
    start = _HEAD_1.size + bootstrap_bytes
    expected = start + count * _SEGMENT.size + _CHECK.size
    if expected != len(data):
        raise _corrupt(where, 12, f"{len(data)} bytes, {expected} are needed")
    segments = _SEGMENT.iter_unpack(data[start : -_CHECK.size])
    entries = tuple(SegmentEntry(*fields) for fields in segments)
    return Manifest(cluster_id, node_id, data[_HEAD_1.size : start], entries)


def _corrupt(where: str, offset: int, why: str) -> StorageCorrupt:
    return StorageCorrupt(
        f"{where} at offset {offset}: {why}; which files make up the log is unknown: "
        "rebuild this member from the others, or restore a backup"
    )


def load_manifest(files: Files) -> Manifest:
    """Read, verify, and make sure that it is durable under its name."""
    manifest = decode_manifest(files.read(NAME), files.describe(NAME))
    # A rename that is visible need not be durable yet: the writer may have been killed before it
    # synced.
    files.sync_dir()
    return manifest


def replace_manifest(files: Files, manifest: Manifest) -> None:
    """Replace the file, durably. Cut short anywhere, the old one or the new one stands."""
    data = encode_manifest(manifest)
    files.create(NEW_NAME)
    files.write(NEW_NAME, 0, data)
    files.sync(NEW_NAME)
    files.rename(NEW_NAME, NAME)
    files.sync_dir()
