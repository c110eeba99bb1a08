"""Segments and records: how batches lie in a file.

What it is: the format of one segment file, and `Segment`, which stands for one: its place in the
log, its index of positions, and the batches staged for the next write. What it is not: it does not
decide when to sync, to seal or to cut (`LogStore`), nor what a bad record means (`recovery`).

    log/0000000007.seg

    0        header: magic 8 | version u32 | header_bytes u32 | segment_id u64 | first_index u64
             | previous_id u64 | previous_chain u32 | 4 reserved | cluster_id 16 | node_id u64
             | zeros | crc32 u32 of the 508 bytes before it
    512      record | record | record | ... | (mark) | zeros up to the preallocated size

    record   tag u32 | size_bytes u32 | previous u32 | durable u64 | check u32 | batch (size_bytes)
    mark     a record without a batch (size_bytes 0)

- `tag` is the header's checksum, so it depends on the segment's id, first index, predecessor,
  cluster and node. It is never 0. Zero-filled blocks and blocks of another or earlier file do not
  carry it.
- `previous` is the `check` of the record before (the tag for the first): the chain.
  `previous_chain` in the header is where the segment before ended, so the chain runs through the
  whole log.
- `durable` is the highest index that was known durable here when the record was written. It is
  always below the record's own first index. It is what tells a torn tail from corruption (bugs F1).
- `check` is the crc32 of the four fields before it and of the batch's first 8 bytes, which are the
  batch's own size and crc32. The batch's other bytes are covered by that crc32. This is as strong
  as a crc32 over everything: each byte on the disk is covered by exactly one crc32 that is verified
  whenever the record is read, a damaged batch that kept its crc fails the inner one, a damaged or
  foreign inner crc fails the outer one, and either lets a random error pass with probability 2^-32.
  The chain covers the batch's bytes through that crc. It saves a second pass over every batch.
- A MARK stands where the next record will go, and the next record overwrites it. It says that
  everything before it is durable, when nothing follows that could say so: after a clean close and
  when idle.
- The header is durable before the first record is written, so a segment that is listed in the
  manifest has a valid header.
- Bytes of a record are never overwritten with others. What is cut off (`LogStore` truncation) is
  left behind in a sealed segment beyond its end, and appending goes on in a new one.

Who drives it: `LogStore` and recovery.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from folkmoot.core.batch import Batch, decode_batch
from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.prefix_table import Point
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.manifest import SegmentEntry

SUBDIR = "log"
HEADER_BYTES = 512
_MAGIC = b"FMSEGMNT"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQI4x16sQ")
_RECORD = struct.Struct("<IIIQ")
_CHECK = struct.Struct("<I")
RECORD_BYTES = _RECORD.size + _CHECK.size
_INNER_BYTES = 8  # the batch's size and crc32


def segment_name(segment_id: int) -> str:
    """Return the file's name."""
    return f"{SUBDIR}/{segment_id:010d}.seg"


def first_index_of(files: Files, name: str) -> int:
    """Return the first index that a segment's header claims, unverified; 0 where there is none."""
    head = files.read(name, 0, _HEADER.size)
    return int(_HEADER.unpack(head)[4]) if len(head) == _HEADER.size else 0


def corrupt(where: str, offset: int, why: str) -> StorageCorrupt:
    """Name the file, the offset, what is wrong there, and what to do."""
    return StorageCorrupt(
        f"{where} at offset {offset}: {why}; durable bytes are damaged, nothing was cut: "
        "rebuild this member from the others, or restore a backup"
    )


def encode_record(tag: int, previous: int, durable: int, data: bytes) -> tuple[bytes, int]:
    """Return what stands before a batch's bytes, and its check, which is the chain's new value."""
    head = _RECORD.pack(tag, len(data), previous, durable)
    check = zlib.crc32(head + data[:_INNER_BYTES])
    return head + _CHECK.pack(check), check


def decode_record(data: bytes, offset: int, tag: int) -> tuple[int, int, int, int] | str:
    """Verify what stands before a batch at `offset`: (size_bytes, previous, durable, check).

    Returns instead, as a string, why it does not verify. The batch itself is not looked at.
    """
    if len(data) - offset < RECORD_BYTES:
        return f"{len(data) - offset} bytes are left, a record's frame has {RECORD_BYTES}"
    found, size_bytes, previous, durable = _RECORD.unpack_from(data, offset)
    if found != tag:
        return f"tag {found:08x} is not this segment's {tag:08x}"
    body = offset + RECORD_BYTES
    inner = data[body : body + min(size_bytes, _INNER_BYTES)]
    check = zlib.crc32(data[offset : offset + _RECORD.size] + inner)
    said: int = _CHECK.unpack_from(data, offset + _RECORD.size)[0]
    if check != said:
        return f"checksum {check:08x}, the record says {said:08x}"
    return size_bytes, previous, durable, check


class Segment:
    """One segment file of the log.

    Invariants:
    - `firsts` and `offsets` have one item per batch, both strictly rising; they are derived data,
      rebuilt from the file whenever it is opened (bugs F7);
    - `end` is where the next record goes: all bytes in [512, end) are verified records;
    - `chain`, `last_index`, `last_term` belong to the last record before `end`;
    - published in this order, `offsets`, `end`, `firsts`, so that a reader in another thread which
      takes the length of `firsts` first finds everything up to there written;
    - nothing is staged while the segment is sealed, cut or read back by its writer.
    """

    def __init__(
        self, entry: SegmentEntry, previous_id: int, previous_chain: int, last_term: int,
        cluster_id: bytes, node_id: int, capacity: int,
    ) -> None:  # fmt: skip
        body = _HEADER.pack(
            _MAGIC, _VERSION, HEADER_BYTES, entry.segment_id, entry.first_index,
            previous_id, previous_chain, cluster_id, node_id,
        ).ljust(HEADER_BYTES - _CHECK.size, b"\0")  # fmt: skip
        crc = zlib.crc32(body)
        self.header = body + _CHECK.pack(crc)
        self.segment_id = entry.segment_id
        self.name = segment_name(entry.segment_id)
        self.first_index = entry.first_index
        self.owner = cluster_id, node_id
        self.link = previous_id, previous_chain
        """Which segment it followed when it was started, and where that one's chain stood."""
        self.tag = crc or 1
        self.capacity = capacity
        """Bytes that the file has room for, including the header."""
        self.firsts = array("Q")
        self.offsets = array("Q")
        self.end = HEADER_BYTES
        self.chain = self.tag
        self.last_index = entry.first_index - 1
        self.last_term = last_term
        self.last_log_time = 0
        """Log time of the last batch; not known while the segment is empty."""
        self.marked = False
        """Whether a mark stands at `end`, or there is no room for one."""
        self.vouched_index = 0
        """The highest index that a record read by recovery says was durable."""
        self._parts: list[bytes] = []
        self._staged_firsts: list[int] = []
        self._staged_offsets: list[int] = []
        self.staged_end = self.end
        """Where the next record goes, counting those that are staged."""

    @classmethod
    def load(cls, files: Files, entry: SegmentEntry, last_term: int, capacity: int) -> Segment:
        """Read the header; the index is still empty."""
        name = segment_name(entry.segment_id)
        data = files.read(name, 0, HEADER_BYTES)
        where = files.describe(name)
        if len(data) < HEADER_BYTES:
            raise corrupt(where, 0, f"{len(data)} bytes, a header has {HEADER_BYTES}")
        crc, said = zlib.crc32(data[: -_CHECK.size]), _CHECK.unpack(data[-_CHECK.size :])[0]
        if crc != said:
            raise corrupt(where, 0, f"the header's checksum is {crc:08x}, it says {said:08x}")
        magic, version, _, segment_id, first_index, previous_id, chain, cluster_id, node_id = (
            _HEADER.unpack_from(data)
        )
        if magic == _MAGIC and version != _VERSION:
            raise StorageError(
                f"{where}: format version {version}, this program knows {_VERSION}; "
                "use the release that wrote this directory, or a newer one"
            )
        if (magic, segment_id, first_index) != (_MAGIC, entry.segment_id, entry.first_index):
            found = f"segment {segment_id} from index {first_index} ({magic!r})"
            raise corrupt(where, 0, f"{found} where the manifest lists {entry}")
        return cls(entry, previous_id, chain, last_term, cluster_id, node_id, capacity)

    @property
    def point(self) -> Point:
        """The last entry's place in the log."""
        return Point(self.last_index, self.last_term, self.last_log_time)

    def entry(self, *, sealed: bool) -> SegmentEntry:
        """Return what the manifest says of it."""
        if not sealed:
            return SegmentEntry(self.segment_id, self.first_index)
        return SegmentEntry(
            self.segment_id, self.first_index, self.last_index, self.end, self.chain
        )

    def fits(self, size_bytes: int) -> bool:
        """Say whether a batch of that size can be staged."""
        return self.staged_end + RECORD_BYTES + size_bytes <= self.capacity

    def stage(self, batch: Batch, durable: int) -> None:
        """Put a batch behind the last one, for the next `flush`."""
        assert durable < batch.first_index, f"durable {durable} at batch {batch.first_index}"
        data = batch.data
        frame, self.chain = encode_record(self.tag, self.chain, durable, data)
        self._parts += (frame, data)
        self._staged_firsts.append(batch.first_index)
        self._staged_offsets.append(self.staged_end)
        self.staged_end += RECORD_BYTES + len(data)
        self.last_index = batch.last_index
        self.last_term = batch.term
        self.last_log_time = batch.log_time
        assert self.staged_end <= self.capacity, f"{self.staged_end} of {self.capacity} bytes"

    def flush(self, files: Files) -> int:
        """Write what is staged, in one write, and publish it to readers. Returns the bytes."""
        if not self._parts:
            return 0
        data = b"".join(self._parts)
        assert self.end + len(data) == self.staged_end, f"{self.end} {self.staged_end}"
        files.write(self.name, self.end, data)
        self.offsets.extend(self._staged_offsets)
        self.end = self.staged_end
        self.marked = False
        self.firsts.extend(self._staged_firsts)
        self._parts.clear()
        self._staged_firsts.clear()
        self._staged_offsets.clear()
        return len(data)

    def mark(self, files: Files) -> None:
        """Write a mark that everything before is durable, if there is room. It may get lost."""
        assert not self._parts, f"{len(self._parts)} parts are staged"
        if self.end + RECORD_BYTES <= self.capacity:
            frame, _ = encode_record(self.tag, self.chain, self.last_index, b"")
            files.write(self.name, self.end, frame)
        self.marked = True

    def place(self, batch: Batch, offset: int, check: int) -> None:
        """Take a batch that recovery has read and verified at `offset` into the index."""
        assert offset == self.end == self.staged_end, f"{offset} {self.end} {self.staged_end}"
        self.offsets.append(offset)
        self.end = self.staged_end = offset + RECORD_BYTES + len(batch.data)
        self.firsts.append(batch.first_index)
        self.chain = check
        self.last_index = batch.last_index
        self.last_term = batch.term
        self.last_log_time = batch.log_time

    def cut_after(self, files: Files, index: int) -> Segment:
        """Return this segment as it is when it ends with `index`, the end of a batch."""
        assert not self._parts, f"{len(self._parts)} parts are staged"
        count = bisect_right(self.firsts, index)
        assert count, f"{self.name} begins at {self.first_index}, cut after {index}"
        start = self.offsets[count - 1]
        stop = self.offsets[count] if count < len(self.offsets) else self.end
        data = files.read(self.name, start, stop - start)
        where = files.describe(self.name)
        found = decode_record(data, 0, self.tag)
        if isinstance(found, str):
            raise corrupt(where, start, found)
        batch = read_batch(data, 0, found[0])
        if isinstance(batch, str):
            raise corrupt(where, start, batch)
        assert batch.last_index == index, f"cut after {index} inside a batch to {batch.last_index}"
        cut = Segment.load(files, self.entry(sealed=False), batch.term, self.capacity)
        cut.offsets, cut.firsts = self.offsets[:count], self.firsts[:count]
        cut.end = cut.staged_end = stop
        cut.chain, cut.last_index, cut.last_log_time = found[3], index, batch.log_time
        return cut

    def span(self, first_index: int, bytes_max: int) -> tuple[int, int]:
        """Return the offsets from the batch with `first_index` to about `bytes_max` further.

        At least one batch is spanned if one ends at or after `first_index`. Safe in any thread.
        """
        count = len(self.firsts)
        end = self.end
        at = max(bisect_right(self.firsts, first_index, 0, count) - 1, 0)
        if at >= count:
            return end, end
        start = self.offsets[at]
        beyond = bisect_right(self.offsets, start + bytes_max, at, count)
        if beyond == count and end - start <= bytes_max:
            return start, end
        last = max(beyond - 1, at + 1)
        return start, self.offsets[last] if last < count else end

    def offset_from(self, index: int) -> int:
        """Return the offset of the first batch that begins at or after `index`, or the end."""
        at = bisect_left(self.firsts, index)
        return self.offsets[at] if at < len(self.firsts) else self.end


def read_batch(data: bytes, offset: int, size_bytes: int) -> Batch | str:
    """Verify and decode the batch of a record at `offset`; or return why it does not verify."""
    body = offset + RECORD_BYTES
    if size_bytes > len(data) - body:
        return f"a batch of {size_bytes} bytes, {len(data) - body} are left"
    try:
        batch = decode_batch(data[body : body + size_bytes])
    except StorageCorrupt as error:
        return str(error)
    if len(batch.data) != size_bytes:
        return f"a batch of {len(batch.data)} bytes in a record of {size_bytes}"
    return batch


def read_records(
    data: bytes, tag: int, start: int, where: str, previous: int | None = None
) -> Iterator[Batch]:
    """Yield the batches of `data`, which was read from `start` on and holds whole records only.

    Every frame, the chain between them and every batch are verified; raises StorageCorrupt.
    """
    offset = 0
    while offset < len(data):
        found = decode_record(data, offset, tag)
        if isinstance(found, str):
            raise corrupt(where, start + offset, found)
        size_bytes, before, _, check = found
        if previous is not None and before != previous:
            why = f"chained to {before:08x}, the record before is {previous:08x}"
            raise corrupt(where, start + offset, why)
        batch = read_batch(data, offset, size_bytes)
        if isinstance(batch, str):
            raise corrupt(where, start + offset, batch)
        yield batch
        previous = check
        offset += RECORD_BYTES + size_bytes
