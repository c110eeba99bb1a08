"""Batches and groups: the unit of storage, replication and checksum.

Pure: no I/O, no clock, no randomness.

A BATCH holds the entries that a leader appended in one turn, in one term, with one log time. The
leader encodes it once; those very bytes go to its disk, to its followers and to their disks. Inside
are GROUPS: runs of entries that came together, most often one client's frame of commands, which
goes in as the client sent it.

    batch   size_bytes u32 | crc32 u32 | version u8 | flags u8 | reserved u16 | count u32
            | term u64 | first_index u64 | log_time u64 | groups
    group   size_bytes u32 (of the payload) | count u32 | kind u8 | 3 reserved bytes | payload

All integers are little-endian. crc32 covers everything behind itself. `count` spans indexes: the
last index is `first_index + count - 1`. In a batch as the leader wrote it the groups' counts add up
to `count`.

Invariants of a `Batch`: count >= 1; log_time never falls from one batch to the next; the bytes
verify.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import attrs

from folkmoot.core.errors import StorageCorrupt

VERSION = 1
BATCH_HEADER = struct.Struct("<IIBBHIQQQ")
GROUP_HEADER = struct.Struct("<IIB3x")
COMMANDS_HEADER = struct.Struct("<QQQQ")
"""session_id, first_sequence, low_water, event_index.

What stands before the operations of a COMMANDS group.
"""

_CRC_FROM = 8
FLAG_CONFIGURATION = 1
"""The batch holds a CONFIGURATION group, so that consensus finds it without decoding anything
else.
"""


class Kind(enum.IntEnum):
    """What a group's payload is. The numbers are on disk and on the wire.

    They never change their meaning.
    """

    COMMANDS = 1
    INITIALIZE = 2
    CONFIGURATION = 3
    OPEN_SESSION = 4
    KEEP_ALIVE = 5
    EXPIRE_SESSION = 6
    CLOSE_SESSION = 7
    TICK = 8
    RESTORED = 9
    """A backup was restored into a new cluster: all sessions end, and an epoch begins."""


@attrs.define
class Group:
    """A run of `count` entries with one payload.

    `decoded` caches what the payload decodes to, so that a server which had to decode it to check
    it does not decode it again to apply it. It is never part of equality nor of the bytes.
    """

    kind: int
    count: int
    payload: bytes
    decoded: Any = attrs.field(default=None, eq=False, repr=False)


@attrs.define
class Batch:
    """One batch: the header's values beside the very bytes. `groups` is filled on first use."""

    term: int
    first_index: int
    last_index: int
    log_time: int
    flags: int
    data: bytes = attrs.field(repr=False)
    _groups: list[Group] | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def groups(self) -> list[Group]:
        """The groups in order. Raises StorageCorrupt where they do not add up."""
        if self._groups is None:
            self._groups = decode_groups(self.data)
        return self._groups

    def release(self) -> None:
        """Let go of the groups and what they were decoded to: the bytes are all that is kept."""
        self._groups = None


def encode_batch(
    term: int, first_index: int, log_time: int, groups: Sequence[Group], flags: int = 0
) -> Batch:
    """Encode `groups` as one batch. The only place where batch bytes are made."""
    count = 0
    parts: list[bytes] = [b""]
    size_bytes = BATCH_HEADER.size
    for group in groups:
        assert group.count >= 1, f"a group of {group.count} entries"
        count += group.count
        size_bytes += GROUP_HEADER.size + len(group.payload)
        parts.append(GROUP_HEADER.pack(len(group.payload), group.count, group.kind))
        parts.append(group.payload)
    assert count >= 1, "a batch without entries"
    header = BATCH_HEADER.pack(size_bytes, 0, VERSION, flags, 0, count, term, first_index, log_time)
    parts[0] = header[_CRC_FROM:]
    tail = b"".join(parts)
    data = struct.pack("<II", size_bytes, zlib.crc32(tail)) + tail
    return Batch(term, first_index, first_index + count - 1, log_time, flags, data, list(groups))


def decode_batch(data: bytes, offset: int = 0) -> Batch:
    """Verify and decode the batch that starts at `offset` of `data`.

    Raises StorageCorrupt when the bytes do not verify; the message says where and why. Costs one
    checksum.
    """
    if len(data) - offset < BATCH_HEADER.size:
        raise StorageCorrupt(
            f"batch at offset {offset}: {len(data) - offset} bytes, "
            f"a header has {BATCH_HEADER.size}"
        )
    size_bytes, crc, version, flags, _, count, term, first_index, log_time = (
        BATCH_HEADER.unpack_from(data, offset)
    )
    if not BATCH_HEADER.size <= size_bytes <= len(data) - offset:
        raise StorageCorrupt(
            f"batch at offset {offset}: claims {size_bytes} bytes of {len(data) - offset}"
        )
    body = data if offset == 0 and size_bytes == len(data) else data[offset : offset + size_bytes]
    found = zlib.crc32(memoryview(body)[_CRC_FROM:])
    if found != crc:
        raise StorageCorrupt(
            f"batch at offset {offset}: checksum {found:08x}, header says {crc:08x}"
        )
    if version != VERSION:
        raise StorageCorrupt(
            f"batch at offset {offset}: format version {version}, this program knows {VERSION}"
        )
    if count < 1 or first_index < 1:
        raise StorageCorrupt(f"batch at offset {offset}: {count} entries from index {first_index}")
    return Batch(term, first_index, first_index + count - 1, log_time, flags, body)


def decode_batches(data: bytes) -> list[Batch]:
    """Decode batches that follow one another without a gap until the end of `data`."""
    batches = []
    offset = 0
    while offset < len(data):
        batch = decode_batch(data, offset)
        batches.append(batch)
        offset += len(batch.data)
    return batches


def decode_groups(data: bytes) -> list[Group]:
    """Split a verified batch into its groups.

    Raises StorageCorrupt where the groups do not add up.
    """
    groups = []
    offset, end = BATCH_HEADER.size, len(data)
    while offset < end:
        if end - offset < GROUP_HEADER.size:
            raise StorageCorrupt(f"group at offset {offset} of a batch: {end - offset} bytes left")
        size_bytes, count, kind = GROUP_HEADER.unpack_from(data, offset)
        offset += GROUP_HEADER.size
        if size_bytes > end - offset or count < 1:
            raise StorageCorrupt(
                f"group before offset {offset} of a batch: {size_bytes} bytes, {count} entries"
            )
        groups.append(Group(kind, count, data[offset : offset + size_bytes]))
        offset += size_bytes
    return groups
