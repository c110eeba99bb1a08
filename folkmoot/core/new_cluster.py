"""A new cluster made from a backup: what it takes over, and what is new.

Pure: no I/O, no clock, no randomness. `storage/restored_directory.py` writes it down, for one
member at a time; everything here is the same for all of them.

    cluster id    new, so that no member of the old cluster is ever taken for one of the new, nor
                  the other way round (bugs K7)
    members       those of the new configuration
    epoch         one more than in the backup
    index         moved up by the BUMP: tokens and versions are indexes, and those that the old
                  cluster handed out after the backup was made must stay below all new ones
    sessions      all end, with their locks and subscriptions: by the first entry of the log, which
                  is in every member's log from the beginning, and is applied like any other

    1. backup at 100; the old cluster grants a lock with token 150, which a store outside has seen.
    2. restored with no bump: the new cluster grants the same lock with token 120.
    3. that store refuses the new holder, for ever, and takes the old one, should it still live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import attrs

from folkmoot.core.batch import Batch, encode_batch
from folkmoot.core.config import Member
from folkmoot.core.errors import StorageCorrupt
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import RecordKey, RecordKind
from folkmoot.core.prefix_table import ArchiveTable, Point
from folkmoot.core.raft import Configuration
from folkmoot.core.restore import encode_core
from folkmoot.core.sessions import encode_restored
from folkmoot.transport.codec import pack

BUMP = 1_000_000_000
"""More entries than a cluster takes in a week of 1,600 a second."""
BUMP_MAX = 1 << 48


@attrs.frozen
class Beginning:
    """What each member's directory begins with, beside the files of the backup."""

    point: Point
    """What the prefix speaks for in the new cluster."""
    epoch: int
    restore_id: bytes
    """Names this restore: the backup, the epoch and where it begins."""
    members: bytes
    """The first configuration, encoded."""
    records: Mapping[RecordKey, bytes]
    """These take the place of the backup's."""
    batch: Batch
    """The first of the log, already durable everywhere."""


def beginning(
    table: ArchiveTable,
    archive_id: bytes,
    state: Multiplexer,
    members: Iterable[Member],
    bump: int,
) -> Beginning:
    """Say how a cluster of these members begins. `state` is what the backup was restored to.

    Raises StorageCorrupt where backup and state do not agree.
    """
    point = table.point
    if (state.index, state.time) != (point.index, point.log_time):
        raise StorageCorrupt(f"a backup of {point} holds a state of {state.index}, {state.time}")
    assert 1 <= bump <= BUMP_MAX, f"a bump of {bump}"
    first = Point(point.index + bump, point.term, point.log_time)
    epoch = table.epoch + 1
    configuration = Configuration.bootstrap(members)
    core = encode_core(first.index, state.time, state.sessions.floor, state.epoch)
    records: dict[RecordKey, bytes] = {
        (RecordKind.CORE, 0): core,
        (RecordKind.CONFIGURATION, 0): pack([configuration.index, configuration.encode()]),
    }
    batch = encode_batch(first.term + 1, first.index + 1, first.log_time, [encode_restored(epoch)])
    named = pack(["folkmoot restore", archive_id, epoch, first.index])
    restore_id = hashlib.sha256(named).digest()[:16]
    return Beginning(first, epoch, restore_id, pack(configuration.encode()), records, batch)
