"""The compacted prefix and the log behind it: what they speak for, and how much disk they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.storage import incoming, prefix_file, segment
from tests.sim.checks import Checker

if TYPE_CHECKING:
    from tests.sim.member import Member


@attrs.define(eq=False, slots=False)
class PrefixSpeaks(Checker):
    rule = (
        "the log starts at or before what the prefix speaks for, which is applied; consensus knows "
        "of no log that is not there"
    )

    def booted(self, member: Member, batches: list[Batch]) -> None:
        expected = member.disk.store.start.index + 1
        for batch in batches:
            if batch.first_index != expected:
                self.fail(
                    f"server {member.name} has {batch.first_index} in the place of {expected}"
                )
            expected = batch.last_index + 1
        self.turned(member)

    def turned(self, member: Member) -> None:
        store = member.disk.store
        start, compacted = store.start.index, store.compaction.index
        known, applied = member.raft.log.start_index, member.multiplexer.index
        installing = member.replica.prefixes.install.is_writing
        if not (start <= known or installing) or not start <= compacted:
            self.fail(
                f"the log of server {member.name} starts behind {start}, for consensus behind "
                f"{known}; the prefix speaks for {compacted}"
            )
        if not (known <= compacted <= applied or installing):
            self.fail(
                f"server {member.name} has applied {applied}, its prefix speaks for {compacted}, "
                f"its log starts behind {known}"
            )


@attrs.define(eq=False, slots=False)
class OnlyWhatIsListed(Checker):
    rule = "a file that MANIFEST does not list, and nobody reads or writes, is removed"

    def booted(self, member: Member, batches: list[Batch]) -> None:
        self.swept(member)

    def swept(self, member: Member) -> None:
        store, files = member.disk.store, member.disk.files
        prefix = store.prefix
        listed = {prefix_file.file_name(one.kind, one.file_id) for one in prefix.entries}
        used = listed | set(prefix._pins) | set(prefix._begun)
        self._compare(member, files.list(prefix_file.SUBDIR), prefix_file.SUBDIR, listed, used)
        live = {one.name for one in store._log.segments}
        self._compare(member, files.list(segment.SUBDIR), segment.SUBDIR, live, live)

    def settled(self, member: Member) -> None:
        self.swept(member)
        if member.disk.store.prefix._pins:
            self.fail(f"server {member.name} pins {sorted(member.disk.store.prefix._pins)} at rest")

    def rested(self, member: Member) -> None:
        self.settled(member)
        left = member.disk.files.list(incoming.SUBDIR)
        options = self.world.options
        had_room = not (options.full_disk_rate or options.disk_failure_rate)
        if left and had_room:  # else the next transfer, or the next start, removes it
            self.fail(f"server {member.name} receives nothing, and has {left}")

    def _compare(
        self, member: Member, found: list[str], where: str, needed: set[str], allowed: set[str]
    ) -> None:
        present = {f"{where}/{name}" for name in found}
        if not needed <= present <= allowed:
            self.fail(
                f"server {member.name} has {sorted(present - allowed)} too many in {where}, "
                f"and misses {sorted(needed - present)}"
            )


@attrs.define(eq=False, slots=False)
class DiskBounded(Checker):
    rule = "the disk holds what lives, and so much more as the configuration allows"

    def rested(self, member: Member) -> None:
        self._check_log(member)
        self._check_prefix(member)

    def _check_log(self, member: Member) -> None:
        """What is to be kept, or is not compacted yet; in whole segments."""
        config, store = member.config.storage, member.disk.store
        segments = store._log.segments
        largest = max(config.segment_bytes, *(one.end for one in segments))
        framing = sum(segment.HEADER_BYTES + segment.RECORD_BYTES * len(o.firsts) for o in segments)
        waiting = member.replica.compacting._threshold + 2 * largest
        limit = max(config.log_keep_bytes, waiting) + largest + framing
        if store.size_bytes > limit:
            self.fail(
                f"the log of server {member.name} has {store.size_bytes} bytes in {len(segments)} "
                f"segments, from {store.start.index} on, compacted to {store.compaction.index}; "
                f"the limit is {limit}"
            )

    def _check_prefix(self, member: Member) -> None:
        """No file has more dead weight than it may, and small ones are merged.

        A prefix that was received is as those left it who made it.
        """
        store, makers = member.disk.store, [member]
        if member.name in self.world.ledger.installs:
            makers = list(self.world.members.values())
        configs = [maker.config.storage for maker in makers]
        dead_share = max(config.compaction_dead_share for config in configs)
        small_bytes = min(config.segment_bytes for config in configs) // 4
        large = 0
        for one in store.prefix.items_files:
            large += one.live_bytes >= small_bytes
            if one.live_bytes <= (1.0 - dead_share) * one.total_bytes:
                self.fail(
                    f"{one.name} of server {member.name}: {one.live_bytes} bytes of "
                    f"{one.total_bytes} live"
                )
        count = len(store.prefix.items_files)
        if count > 4 * (large + 1):
            self.fail(f"server {member.name} has {count} items files, {large} of them large")
        for entry in store.prefix.entries:
            name = prefix_file.file_name(entry.kind, entry.file_id)
            size_bytes = member.disk.files.size(name)
            if size_bytes != entry.end:
                self.fail(f"{name} of server {member.name} has {size_bytes} bytes, not {entry.end}")
