"""From a received prefix to a server that goes on from it.

Pure: no I/O, no clock, no randomness, but for the files that restoring reads back through its
source. `core/replica.py` drives it, a step per turn, so that the loop goes on answering its leader
(bugs A15).

    complete -> restore a new state, which verifies every byte -> stop the own compaction
             -> consensus takes the prefix as one write, durable like any other -> go over

Until that write is durable nothing has changed: a crash leaves the old log and the old prefix,
whole, and what was received. Behind it the new prefix is the truth, and a crash restores from it
(bugs E4). What was received and is of no use any more (the log has come in the ordinary way
meanwhile) is thrown away (bugs E3). While no leader is known it waits: a prefix that took an hour
to come is not given up for an election.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Protocol

from folkmoot.core.compacting import Compacting, decode_members
from folkmoot.core.errors import StorageCorrupt
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import PrefixSource
from folkmoot.core.prefix_receiver import PrefixReceiver
from folkmoot.core.prefix_table import Point
from folkmoot.core.raft import Configuration, Raft, Role

RECORDS_PER_STEP = 64
"""A step restores so many records, or one block of entries."""


class ReceivedPrefix(PrefixSource, Protocol):
    """A prefix that was received, with consensus's own record."""

    configuration: bytes
    live_count: int | None
    """Both are known once the records are read; this is how many entries live."""


class InstallPort(Protocol):
    """What an install needs of the storage."""

    def received(self) -> ReceivedPrefix:
        """The complete prefix that was received, to be read back."""

    def stop_compaction(self, then: Any) -> None:
        """Leave a compaction unfinished; `then(None)` when no step of it will come any more."""


class InstallState(enum.StrEnum):
    """How far it is."""

    IDLE = "idle"
    RESTORING = "restoring"
    STOPPING = "stopping"
    READY = "ready"
    WRITING = "writing"


class PrefixInstall:
    """One install at most.

    - From STOPPING on `state` is the restored one, no compaction is under way, and the receiver
      holds what it has.
    """

    def __init__(
        self, raft: Raft, receiver: PrefixReceiver, compacting: Compacting, storage: InstallPort
    ) -> None:
        self._raft = raft
        self._receiver = receiver
        self._compacting = compacting
        self._storage = storage
        self._clear()

    def _clear(self) -> None:
        self.phase = InstallState.IDLE
        self.restored = 0
        """Entries so far."""
        self._steps: Iterator[int] = iter(())
        self._source: ReceivedPrefix | None = None
        self._state: Multiplexer | None = None
        self._configuration: Configuration | None = None
        self._point = Point()
        self._transfer = 0

    @property
    def is_restoring(self) -> bool:
        """Whether there is a step to do, so that the next turn is due at once."""
        return self.phase is InstallState.RESTORING

    @property
    def is_writing(self) -> bool:
        """Whether the log is being given up: what of it was not applied yet never will be."""
        return self.phase is InstallState.WRITING

    @property
    def live_count(self) -> int | None:
        """How many entries there are to restore, once that is known."""
        return None if self._source is None else self._source.live_count

    def step(self, present: Multiplexer, now: float) -> str | None:
        """Take a step, if it is time for one; returns what went wrong, for the operator."""
        if self.phase is InstallState.RESTORING and self._transfer != self._receiver.number:
            self._clear()  # that transfer was given up, or another has taken its place
        if self.phase is InstallState.IDLE:
            if self._receiver.is_complete:
                self._begin(present)
        elif self.phase is InstallState.RESTORING:
            return self._restore()
        elif self.phase is InstallState.READY:
            self._install(now)
        return None

    def _begin(self, present: Multiplexer) -> None:
        table = self._receiver.table
        assert table is not None, "complete with no table"
        self._transfer = self._receiver.number
        self._point = table.point
        self._source = self._storage.received()
        self._steps = self._restoring(present, self._source)
        self.phase = InstallState.RESTORING

    def _restoring(self, present: Multiplexer, source: ReceivedPrefix) -> Iterator[int]:
        self._state = yield from present.successor(source)
        self._configuration = self._checked(self._state, source)

    def _checked(self, state: Multiplexer, source: ReceivedPrefix) -> Configuration:
        """Return the members as of the prefix. Raises StorageCorrupt: it is not what it claims."""
        point = self._point
        if (state.index, state.time) != (point.index, point.log_time):
            raise StorageCorrupt(f"a state of entry {state.index} at {state.time}, not of {point}")
        return decode_members(source.configuration)

    def _restore(self) -> str | None:
        before = self.restored
        try:
            for _ in range(RECORDS_PER_STEP):
                self.restored = next(self._steps)
                if self.restored != before:
                    break
        except StopIteration:
            self.phase = InstallState.STOPPING
            self._receiver.hold()
            self._compacting.is_stopped = True
            self._storage.stop_compaction(self._on_stopped)
        except StorageCorrupt as error:
            # Received damaged, or damaged since: nobody relies on it, so that part is sent anew.
            index = self._point.index
            self._clear()
            self._receiver.damaged()
            return f"the prefix up to {index} that was received is damaged: {error}"
        return None

    def _on_stopped(self, _: None) -> None:
        assert self.phase is InstallState.STOPPING, f"a compaction is stopped in {self.phase}"
        self.phase = InstallState.READY

    def _install(self, now: float) -> None:
        raft, point, configuration = self._raft, self._point, self._configuration
        assert configuration is not None, "nothing was restored"
        if raft.has_entry(point.index, point.term) or raft.role is Role.LEADER:
            self._compacting.is_stopped = False
            self._receiver.give_up()
            self._clear()
        elif raft.may_install(point.index, point.term):
            raft.install(point.index, point.term, point.log_time, configuration, now)
            self.phase = InstallState.WRITING

    def take(self, applicable: int) -> Multiplexer | None:
        """Return the new state once consensus says that it may be gone over to."""
        if self.phase is not InstallState.WRITING or applicable < self._point.index:
            return None
        state = self._state
        self._clear()
        self._receiver.installed()
        assert state is not None, "installed with no state"
        return state
