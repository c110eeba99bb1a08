"""MANIFEST: which segments make up the log. The one truth about which files exist.

What it is: one small file, replaced as a whole: write MANIFEST.new, sync, rename, sync the
directory. That rename is the moment at which a segment is sealed, a log is truncated, and (later) a
compacted set of segments becomes live. A file in `log/` that is not listed does not exist, and is
removed at the next opening: it is left over from a crash. A file that is listed and missing is
corruption.

What it is not: it holds no state that changes with every write.

    magic 8 | version u32 | size_bytes u32 (of all) | cluster_id 16 | node_id u64
    | compaction_index u64 | compaction_term u64 | bootstrap size u32 | segments u32
    | bootstrap | segment ... | crc32 u32
    segment   id u64 | first_index u64 | last_index u64 | end u64 | chain u32 | 4 reserved bytes

Segments stand in log order, which after a compaction need not be the order of their ids. All but
the last are SEALED: `end`, `chain` and `last_index` say exactly where they end, and whatever lies
behind that end in the file is not part of the log. The last one is ACTIVE: its end is found by
reading.

Who drives it: `LogStore` and recovery.
"""

from __future__ import annotations

import struct
import zlib

import attrs

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.storage.files import Files

NAME = "MANIFEST"
NEW_NAME = "MANIFEST.new"
_MAGIC = b"FMMANIFE"
_VERSION = 1
_HEAD = struct.Struct("<8sII16sQQQII")
_SEGMENT = struct.Struct("<QQQQI4x")
_CHECK = struct.Struct("<I")


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
    - ids differ; first indexes strictly rise;
    - above the compaction index segments follow one another without a gap.
    """

    cluster_id: bytes
    node_id: int
    bootstrap: bytes
    segments: tuple[SegmentEntry, ...]
    compaction_index: int = 0
    compaction_term: int = 0

    def check(self) -> str:
        """Return what is wrong with it; empty if nothing."""
        if not self.segments:
            return "no segment is listed"
        if self.segments[0].first_index > self.compaction_index + 1:
            return f"indexes are missing before segment {self.segments[0]}"
        if len({entry.segment_id for entry in self.segments}) != len(self.segments):
            return "a segment is listed twice"
        for entry, after in zip(self.segments, self.segments[1:], strict=False):
            if not (entry.end and entry.first_index <= entry.last_index < after.first_index):
                return f"segments {entry} and {after} do not follow one another"
            if after.first_index > max(self.compaction_index, entry.last_index) + 1:
                return f"indexes are missing between segments {entry} and {after}"
        if self.segments[-1].end:
            return f"the last segment {self.segments[-1]} is sealed"
        return ""


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode it with its checksum."""
    wrong = manifest.check()
    assert not wrong, wrong
    entries = manifest.segments
    bootstrap = manifest.bootstrap
    size_bytes = _HEAD.size + len(bootstrap) + len(entries) * _SEGMENT.size + _CHECK.size
    body = b"".join(
        (
            _HEAD.pack(
                _MAGIC, _VERSION, size_bytes, manifest.cluster_id, manifest.node_id,
                manifest.compaction_index, manifest.compaction_term, len(bootstrap), len(entries),
            ),
            bootstrap,
            *(_SEGMENT.pack(e.segment_id, e.first_index, e.last_index, e.end, e.chain)
              for e in entries),
        )
    )  # fmt: skip
    return body + _CHECK.pack(zlib.crc32(body))


def decode_manifest(data: bytes, where: str = NAME) -> Manifest:
    """Verify and decode. Raises StorageCorrupt naming `where` and the offset."""
    if len(data) < _HEAD.size + _CHECK.size:
        raise _corrupt(where, 0, f"{len(data)} bytes are too few")
    magic, version, size_bytes, cluster_id, node_id, index, term, bootstrap_bytes, count = (
        _HEAD.unpack_from(data)
    )
    if magic != _MAGIC:
        raise _corrupt(where, 0, f"begins with {magic!r}, not with {_MAGIC!r}")
    crc = zlib.crc32(memoryview(data)[: -_CHECK.size])
    said = _CHECK.unpack_from(data, len(data) - _CHECK.size)[0]
    if crc != said:
        raise _corrupt(where, len(data) - _CHECK.size, f"checksum {crc:08x}, it says {said:08x}")
    if version != _VERSION:
        raise StorageError(
            f"{where}: format version {version}, this program knows {_VERSION}; "
            "use the release that wrote this directory, or a newer one"
        )
    expected = _HEAD.size + bootstrap_bytes + count * _SEGMENT.size + _CHECK.size
    if not size_bytes == expected == len(data):
        raise _corrupt(where, 12, f"{len(data)} bytes, {size_bytes} claimed, {expected} needed")
    start = _HEAD.size + bootstrap_bytes
    entries = tuple(
        SegmentEntry(*fields) for fields in _SEGMENT.iter_unpack(data[start : -_CHECK.size])
    )
    bootstrap = data[_HEAD.size : start]
    manifest = Manifest(cluster_id, node_id, bootstrap, entries, index, term)
    wrong = manifest.check()
    if wrong:
        raise _corrupt(where, start, wrong)
    return manifest


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
