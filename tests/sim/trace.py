"""What happened, in order: hashed completely, the last part kept for people; and what was counted.

A record is a tuple of the true time and plain values. Frames enter the hash by their checksum and
are kept whole in the tail, so that a failure can show what they said.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from typing import Any

from folkmoot.core.errors import FolkmootError
from folkmoot.core.forwarding import FORWARD, decode_consensus, decode_forward
from folkmoot.core.prefix_frames import decode_prefix, is_prefix
from folkmoot.core.requests import FrameType
from folkmoot.transport.frame import FRAME_HEADER, FrameReader
from tests.core.raft.notation import show
from tests.sim.scheduler import Scheduler

TAIL = 400
_CHUNK = 1024

SOMETIMES = (
    "elections",
    "pre-votes lost",
    "crashes",
    "power cuts",
    "kills",
    "crashes after a send",
    "crashes before a sync",
    "crashes after a sync",
    "crashes inside a disk operation",
    "disks failed",
    "faults in recovery or closing",
    "restarts",
    "graceful stops",
    "torn tails cut",
    "segments sealed",
    "truncations",
    "batches committed",
    "entries committed",
    "transfers won",
    "quorum lost",
    "partitions",
    "one-way blocks",
    "stalled streams resumed",
    "links broken",
    "frames dropped",
    "frames repeated",
    "pauses",
    "stalls noticed",
    "slow disks",
    "clock changes",
    "log reads",
    "commands ok",
    "commands failed",
    "commands unknown",
    "duplicates answered",
    "groups dropped",
    "commands refused",
    "sessions opened",
    "sessions resumed",
    "sessions expired",
    "sessions closed",
    "expired while queued",
    "expiries void",
    "grants",
    "grants by event",
    "fenced writes refused",
    "fenced writes",
    "waits timed out",
    "claims withdrawn",
    "events delivered",
    "resyncs",
    "linearizable reads",
    "lease reads",
    "leases valid",
    "sequential reads",
    "reads lost",
    "clients crashed",
    "clients paused",
    "calls abandoned",
    "digests compared",
    "compactions installed",
    "compactions given up",
    "crashes inside a compaction",
    "crashes between steps",
    "restarts from a prefix",
    "logs trimmed",
    "prefixes of several items files",
    "items files rewritten",
    "records copied on write",
    "sessions restored with events",
    "sessions restored with answers",
    "deadlines restored",
    "transfers begun",
    "transfers resumed",
    "transfers interrupted",
    "received prefixes damaged",
    "prefixes installed",
    "long absences",
    "crashes while receiving",
    "crashes while sending",
)
"""What a long run must have seen at least once, each of it."""


class Trace:
    """The trace of one run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.counts: dict[str, int] = dict.fromkeys(SOMETIMES, 0)
        self.tail: deque[tuple[Any, ...]] = deque(maxlen=TAIL)
        self._scheduler = scheduler
        self._hash = hashlib.sha256()
        self._chunk: list[tuple[Any, ...]] = []

    def add(self, *fields: Any) -> None:
        """Record plain values: numbers and strings."""
        record = (self._scheduler.now, *fields)
        self.tail.append(record)
        self._hashed(record)

    def frame(self, what: str, sender: str, receiver: str, data: bytes) -> None:
        """Record bytes that go from one to another."""
        now = self._scheduler.now
        self.tail.append((now, what, sender, receiver, data))
        self._hashed((now, what, sender, receiver, zlib.crc32(data)))

    def count(self, name: str, by: int = 1) -> None:
        """Count something that happens sometimes."""
        self.counts[name] += by

    def digest(self) -> str:
        """The SHA-256 of everything so far."""
        self._flush()
        return self._hash.hexdigest()

    def last(self, lines: int) -> str:
        """The last part, for people."""
        return "\n".join(map(_line, list(self.tail)[-lines:]))

    def _hashed(self, record: tuple[Any, ...]) -> None:
        self._chunk.append(record)
        if len(self._chunk) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._hash.update(repr(self._chunk).encode())
        self._chunk = []


def _line(record: tuple[Any, ...]) -> str:
    now, what, *rest = record
    if rest and type(rest[-1]) is bytes:
        sender, receiver, data = rest
        return f"{now:10.6f}  {sender} -> {receiver}  {what}: {show_frames(data)}"
    return f"{now:10.6f}  {what} " + " ".join(map(str, rest))


def show_frames(data: bytes) -> str:
    """Frames, as short as they can be read."""
    try:
        frames = FrameReader(1 << 30).feed(data)
        return "; ".join(_show_frame(frame_type, body) for frame_type, _, body in frames)
    except FolkmootError as error:
        return f"{len(data)} bytes that are no frames: {error}"


def _show_frame(frame_type: int, body: bytes) -> str:
    if frame_type == FORWARD:
        kinds = [f"{group.kind}x{group.count}" for group in decode_forward(body)]
        return f"forward {' '.join(kinds)}"
    if is_prefix(frame_type):
        return str(decode_prefix(frame_type, body))
    if frame_type < 32:
        return f"{FrameType(frame_type).name}({len(body)})"
    if FRAME_HEADER.size + len(body) > 1 << 16:
        return f"type {frame_type}, {len(body)} bytes"
    return show(decode_consensus(frame_type, body))
