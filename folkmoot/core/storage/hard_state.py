"""The hard state: term and vote, durable before any message that reveals them (§3.8, figure 3.1).

What it is: one file of two slots, each in a block of its own:

    offset 0     slot 0   magic 8 | version u32 | reserved u32 | sequence u64 | cluster_id 16
                          | node_id u64 | term u64 | voted_for u64 (0: nobody) | crc32 u32
    offset 4096  slot 1   the same

What it is not: it does not judge terms against the log; recovery does.

Who drives it: `LogStore.write`, before it writes batches of the new term, and recovery.

A CHANGE GOES TO SLOT 0, IS SYNCED, THEN TO SLOT 1, IS SYNCED, and only then counts as durable.
Writing the slots alternately (one sync per change) looks cheaper and is not enough: a slot that was
torn while being written (never acknowledged: the older one is right) and a slot that was durable
and has rotted (the older one would forget a vote, and the server could vote twice) look the same.
With both slots written before anything is said, there is nothing to tell apart:

    slot 0 valid, slot 1 not    slot 0 is written first, so it is at least as new: right
    slot 0 not, slot 1 valid    what slot 0 held beyond slot 1 was never acknowledged: right
    both valid, they differ     the higher sequence is right: a change was cut short between them
    both valid, same sequence, other content; or none valid        StorageCorrupt

What this cannot see: both copies lost or set back together, as by a restored backup. For that there
is a last line: no entry's term is above the durable term (bugs A2), and recovery refuses where one
is. The second sync costs about 0.2 ms per election.
"""

from __future__ import annotations

import struct
import zlib

import attrs

from folkmoot.core.errors import StorageCorrupt, StorageError
from folkmoot.core.storage.files import Files

NAME = "hard_state"
SLOT_BYTES = 4096
_MAGIC = b"FMHARDST"
_VERSION = 1
_SLOT = struct.Struct("<8sIIQ16sQQQ")
_CHECK = struct.Struct("<I")
_USED_BYTES = _SLOT.size + _CHECK.size


@attrs.frozen
class HardState:
    """Term and vote. Invariants: the term never falls; within a term a vote is given once."""

    term: int = 0
    voted_for: int | None = None

    def may_become(self, term: int, voted_for: int | None) -> bool:
        """Say whether figure 3.1 allows the change."""
        if term != self.term:
            return term > self.term
        return self.voted_for is None or voted_for == self.voted_for


@attrs.frozen
class Slot:
    """What one slot holds."""

    sequence: int
    cluster_id: bytes
    node_id: int
    state: HardState


def encode_slot(slot: Slot) -> bytes:
    """Encode one slot, without the padding behind it."""
    state = slot.state
    body = _SLOT.pack(
        _MAGIC, _VERSION, 0, slot.sequence, slot.cluster_id, slot.node_id,
        state.term, state.voted_for or 0,
    )  # fmt: skip
    return body + _CHECK.pack(zlib.crc32(body))


def decode_slot(data: bytes) -> Slot | None:
    """Decode one slot; None where the bytes do not verify."""
    if len(data) < _USED_BYTES:
        return None
    body = data[: _SLOT.size]
    if zlib.crc32(body) != _CHECK.unpack_from(data, _SLOT.size)[0]:
        return None
    magic, version, _, sequence, cluster_id, node_id, term, voted_for = _SLOT.unpack(body)
    if magic != _MAGIC:
        return None
    if version != _VERSION:
        raise StorageError(
            f"{NAME}: format version {version}, this program knows {_VERSION}; "
            "use the release that wrote this directory, or a newer one"
        )
    return Slot(sequence, cluster_id, node_id, HardState(term, voted_for or None))


class HardStateFile:
    """The file and what is durable in it.

    Invariants:
    - `slot` is what both slots hold, durable;
    - the sequence grows by one with each change;
    - slot 0 is never older than slot 1, except where a write to slot 0 was lost or damaged.
    """

    def __init__(self, files: Files, slot: Slot, repaired: str = "") -> None:
        self._files = files
        self.slot = slot
        self.repaired = repaired
        """What `load` had to repair, in words; empty if nothing."""

    @property
    def state(self) -> HardState:
        """The durable term and vote."""
        return self.slot.state

    @classmethod
    def create(cls, files: Files, cluster_id: bytes, node_id: int) -> HardStateFile:
        """Make the file, durable with term 0. Its name is not: the caller syncs the directory."""
        slot = Slot(1, cluster_id, node_id, HardState())
        files.create(NAME, 2 * SLOT_BYTES)
        files.write(NAME, 0, encode_slot(slot))
        files.write(NAME, SLOT_BYTES, encode_slot(slot))
        files.sync(NAME)
        return cls(files, slot)

    @classmethod
    def load(cls, files: Files) -> HardStateFile:
        """Read and choose, repair the other slot, and make both durable."""
        if NAME not in files.list():
            raise StorageCorrupt(
                f"{files.describe(NAME)} at offset 0: the file is missing, so term and vote are "
                "unknown and this member must not vote; rebuild it from the others as a new member"
            )
        data = files.read(NAME)
        first = decode_slot(data[:SLOT_BYTES])
        second = decode_slot(data[SLOT_BYTES:])
        slot = _choose(files, first, second)
        # The right one first. It too: what was read may be in memory only (see recovery).
        slots = sorted(enumerate((first, second)), key=lambda one: one[1] != slot)
        repaired = ""
        for number, found in slots:
            files.write(NAME, number * SLOT_BYTES, encode_slot(slot))
            files.sync(NAME)
            if found != slot:
                was = "did not verify" if found is None else f"had sequence {found.sequence}"
                repaired = f"{NAME}: slot {number} {was}, rewritten from the other one"
        return cls(files, slot, repaired)

    def replace(self, state: HardState) -> None:
        """Make a new term or vote durable: two writes, two syncs, in this order."""
        old = self.slot.state
        assert old.may_become(state.term, state.voted_for), (
            f"hard state {old} cannot become {state}"
        )
        slot = attrs.evolve(self.slot, sequence=self.slot.sequence + 1, state=state)
        data = encode_slot(slot)
        self._files.write(NAME, 0, data)
        self._files.sync(NAME)
        self._files.write(NAME, SLOT_BYTES, data)
        self._files.sync(NAME)
        self.slot = slot


def _choose(files: Files, first: Slot | None, second: Slot | None) -> Slot:
    where = files.describe(NAME)
    if first is None and second is None:
        raise StorageCorrupt(
            f"{where} at offset 0 and at offset {SLOT_BYTES}: neither slot verifies: term and "
            "vote are unknown and this member must not vote; rebuild it from the others as a new "
            "member"
        )
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    if first.sequence == second.sequence and first != second:
        raise StorageCorrupt(
            f"{where} at offset 0 and at offset {SLOT_BYTES}: the slots hold {first.state} and "
            f"{second.state}, both with sequence {first.sequence}; rebuild this member "
            "from the others"
        )
    return first if first.sequence >= second.sequence else second
