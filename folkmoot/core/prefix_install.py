"""From a received prefix to a server that goes on from it.

Pure: no I/O, no clock, no randomness, but for the files that restoring reads back through its
source. `core/replica.py` drives it, a step per turn, so that the loop goes on answering its leader
(bugs A15).

    complete -> restore a new state, which verifies every byte -> stop the own compaction
             -> consensus takes the prefix as one write, durable like any other -> go over

Until that write is durable nothing has changed: a crash leaves the old log and the old prefix,
whole, and what was received. Behind it the new prefix is the truth, and a crash restores from it
(bugs E4). What was received and is of no use any more (the log has come in the ordinary way
meanwhile, or another leader thinks otherwise) is thrown away (bugs E3).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Protocol

from folkmoot.core.compacting import Compacting
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix_receiver import PrefixReceiver
from folkmoot.core.raft import Configuration, Raft
from folkmoot.core.storage.manifest import Point
from folkmoot.core.storage.stored_prefix import StoredPrefix
from folkmoot.transport.codec import unpack


class InstallPort(Protocol):
    """What an install needs of the storage."""

    def received(self) -> StoredPrefix:
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

    - `state` is the restored one from STOPPING on.
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
        """Items so far."""
        self._steps: Iterator[int] = iter(())
        self._source: StoredPrefix | None = None
        self._state: Multiplexer | None = None
        self._point = Point()

    @property
    def is_restoring(self) -> bool:
        """Whether there is a step to do, so that the next turn is due at once."""
        return self.phase in (InstallState.RESTORING, InstallState.READY)

    @property
    def is_writing(self) -> bool:
        """Whether the log is being given up: what of it was not applied yet never will be."""
        return self.phase is InstallState.WRITING

    def step(self, present: Multiplexer, now: float) -> str | None:
        """Take a step, if it is time for one; returns what went wrong, for the operator."""
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
        if not self._raft.may_install(table.point.index, table.point.term):
            self._give_up()
            return
        self._point = table.point
        self._source = self._storage.received()
        self._steps = self._restoring(present, self._source)
        self.phase = InstallState.RESTORING

    def _restoring(self, present: Multiplexer, source: StoredPrefix) -> Iterator[int]:
        self._state = yield from present.successor(source)

    def _restore(self) -> str | None:
        try:
            self.restored = next(self._steps)
        except StopIteration:
            self.phase = InstallState.STOPPING
            self._compacting.is_stopped = True
            self._storage.stop_compaction(self._on_stopped)
        except StorageCorrupt as error:
            # Received damaged, or damaged since: nobody relies on it, so it is sent anew.
            self._give_up()
            return f"the prefix up to {self._point.index} that was received is discarded: {error}"
        return None

    def _on_stopped(self, _: None) -> None:
        self.phase = InstallState.READY

    def _install(self, now: float) -> None:
        point, source = self._point, self._source
        assert source is not None, "nothing was restored"
        if not self._raft.may_install(point.index, point.term):
            self._give_up()
            return
        index, members = unpack(source.configuration)
        try:
            configuration = Configuration.decode(members, index)
        except RemoteProtocolError as error:
            raise StorageCorrupt(f"the members in a received prefix: {error}") from error
        self._raft.install(point.index, point.term, point.log_time, configuration, now)
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

    def _give_up(self) -> None:
        self._compacting.is_stopped = False
        self._receiver.give_up()
        self._clear()
