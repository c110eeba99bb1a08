"""Planted bugs of compaction, beside the storage's and consensus's own (`twins_compaction.py`).

Importing this module adds them to `planted.PLANTED`.
"""

from __future__ import annotations

import math
from array import array
from typing import Any
from unittest import mock

from folkmoot.core.compacting import Compacting
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.events import PendingEvents
from folkmoot.core.freeze import Changes, Freeze
from folkmoot.core.jobs import Job, Sweep
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import RecordKey, RecordKind
from folkmoot.core.prefix_install import InstallState, PrefixInstall
from folkmoot.core.prefix_receiver import PrefixReceiver
from folkmoot.core.prefix_table import ArchiveFile
from folkmoot.core.replica import Replica
from folkmoot.core.restore import ItemContext, encode_core
from folkmoot.core.sessions import Session
from folkmoot.core.storage import incoming
from folkmoot.core.storage.compaction import Compaction
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.segmented_log import SegmentedLog
from tests.sim.disk import SimDisk
from tests.sim.planted import PLANTED, plants

# -- freezing ----------------------------------------------------------------------------------


@plants(Compacting, "look")
def frozen_one_batch_late(self: Compacting) -> None:
    """The state is frozen when one batch more is applied, and is said to be that of before."""
    state = self._multiplexer
    late = vars(self).pop("late", None)
    if late is not None:
        freeze = state.freeze()
        index, time = late
        freeze.index = freeze._frozen.index = index
        core = encode_core(index, time, state.sessions.floor, state.epoch)
        freeze._frozen.records[RecordKind.CORE, 0] = core
        self._is_running = True
        self._applied_bytes = 0
    elif self._storage.boundary_from(state.index) == state.index > self.index:
        vars(self)["late"] = (state.index, state.time)


@plants(Freeze, "keep")
def frozen_as_it_is_by_then(self: Freeze, key: RecordKey) -> None:
    """What changes while it is pending is serialised as it has become."""


_begin = Changes.begin


@plants(Changes, "begin")
def ledger_kept_over_a_freeze(self: Changes, index: int) -> None:
    """The next period begins with what the last one had retained and superseded."""
    ledger = self.ledger
    _begin(self, index)
    self.ledger.retained = array("Q", ledger.retained)
    self.ledger.superseded = array("Q", ledger.superseded)


_touch_session = Changes.touch_session


@plants(Changes, "touch_session")
def changes_of_sessions_not_noted(self: Changes, session: Session) -> None:
    """Only new sessions are in the next prefix."""
    if session.id % 3:
        _touch_session(self, session)


# -- restoring ---------------------------------------------------------------------------------

_restore_session = vars(Session)["restore"].__func__


def _without_answers(cls: type[Session], data: list[Any], resources: Any) -> Session:
    *fields, _, events, opened = data
    session: Session = _restore_session(cls, [*fields, [], events, opened], resources)
    return session


PLANTED["answers_not_restored"] = [(Session, "restore", classmethod(_without_answers))]
"""A session forgets over a restore what it had answered (G2, G10)."""


@plants(PendingEvents, "restore")
def events_not_restored(self: PendingEvents, data: Any) -> None:
    """A session forgets over a restore what it had not received yet (H4)."""


@plants(ItemContext, "set_deadline")
def deadlines_of_items_not_restored(self: ItemContext, key: str, time: int) -> None:
    """What was to expire does not, on who has restored it."""


@plants(Deadlines, "of")
def deadlines_left_out(self: Deadlines, resource_id: int) -> list[Any]:
    """A lock's delay and a wait's end are not in the prefix."""
    return []


# -- the log and the files ---------------------------------------------------------------------


@plants(LogStore, "trim_target")
def trimmed_whether_compacted_or_not(
    self: LogStore, keep_bytes: int, keep_bytes_max: int, needed: int | None
) -> int | None:
    """Log goes for which no prefix speaks."""
    segments = self._log.segments
    end = segments[-2].last_index if len(segments) > 1 else 0
    return end if end > self.start.index else None


_trim = SegmentedLog.trim


@plants(SegmentedLog, "trim", "trimmed_whether_compacted_or_not")
def _trim_unchecked(self: SegmentedLog, index: int) -> Any:
    return _trim(self, min(index, self.manifest.compaction.index))


@plants(Compacting, "deadline")
def log_never_given_up(self: Compacting, now: float) -> float:
    """It grows without end."""
    self._trim_at = math.inf
    return math.inf


@plants(Compaction, "_plan")
def dead_weight_is_never_dropped(self: Compaction) -> list[bool]:
    """The prefix grows with every write, whatever lives."""
    return [False] * len(self._old)


@plants(PrefixStore, "sweep")
def replaced_files_stay(self: PrefixStore) -> None:
    """Files are never removed while the server runs."""


# -- transfers ---------------------------------------------------------------------------------


@plants(incoming, "_name")
def files_of_another_leader_taken_for_these(one: ArchiveFile) -> str:
    """What one leader had begun to send is gone on with by another (E6)."""
    return f"{incoming.SUBDIR}/{one.entry.kind}-{one.entry.first_index:010d}-00000000"


@plants(PrefixInstall, "take")
def gone_over_before_it_is_durable(self: PrefixInstall, applicable: int) -> Any:
    """The new state serves while the disk has the old log still (E4)."""
    if self.phase is not InstallState.WRITING:
        return None
    state = self._state
    self._clear()
    self._receiver.installed()
    return state


@plants(SimDisk, "stop_compaction")
def compaction_goes_on_over_an_install(self: SimDisk, then: Any) -> None:
    """The own compaction is finished on top of another server's prefix."""
    then(None)


@plants(PrefixReceiver, "_ask_again")
def lost_chunks_not_asked_for_again(self: PrefixReceiver, now: float) -> None:
    """A frame that is lost is waited for without end."""
    self._ask_again_at = math.inf


_go_over = Replica._go_over


@plants(Replica, "_go_over")
def files_of_the_old_prefix_stay(self: Replica, state: Multiplexer) -> None:
    """They lie there beside the new ones until the next compaction."""
    post = self.storage.post

    def post_others(job: Job, then: Any) -> None:
        if not isinstance(job, Sweep):
            post(job, then)

    with mock.patch.object(self.storage, "post", post_others):
        _go_over(self, state)
