"""The whole replicated state of one server: sessions, directory, machines; and what changes it.

Pure: no I/O, no clock, no randomness. The server's loop hands it committed batches in order and
gets back what it must tell its own clients (`Applied`), which is built for every batch alike on
every server. It is not consensus, which knows nothing of what entries mean, nor the server's front,
which knows nothing of what machines do.

ONE ENTRY at log time t: first the deadlines that are due (<= t), in order of (time, resource id,
key); then the entry itself; then what it left to settle: sessions whose events overflowed are cut
or expired, and resources that nobody needs any more are collected. All entries of a batch share t.

FAULTS. A machine that raises what is no CommandError, that raises one after it has published,
retained, superseded or touched a deadline, or that answers what msgpack cannot carry, has a bug on
every replica: `MachineFault`. The state is then half-changed; the server stops.

COMPACTION. `freeze` begins to say, for the storage, what the state is at this index, and
`restoring` makes the state anew of what the storage kept (core/freeze.py, core/restore.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from typing import Any, Self

from folkmoot.core.applied import Applied, Ended, Kept, Opened, Results
from folkmoot.core.batch import Batch, Group, Kind
from folkmoot.core.commands import CommandRunner
from folkmoot.core.config import LimitsConfig
from folkmoot.core.context import EntryContext, ReadContext
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.directory import Directory, deleted
from folkmoot.core.entry import EntryFrame
from folkmoot.core.errors import (
    BadCommand,
    CommandError,
    LimitExceeded,
    RemoteProtocolError,
    StorageCorrupt,
)
from folkmoot.core.freeze import Changes, Freeze
from folkmoot.core.machine import Registry
from folkmoot.core.prefix import PrefixSource
from folkmoot.core.requests import DIRECTORY, check_operation, error_fields
from folkmoot.core.resource import MachineFault, Resource
from folkmoot.core.restore import Restore, encode_core
from folkmoot.core.sessions import (
    Session,
    SessionTable,
    decode_keep_alive,
    decode_open,
    decode_restored,
    decode_session_id,
)
from folkmoot.transport.codec import pack

__all__ = ["Applied", "Ended", "Kept", "MachineFault", "Multiplexer", "Opened", "Results"]


class Multiplexer:
    """The replicated state of one server.

    - `index` and `time` are those of the last applied entry; neither ever falls.
    - A session is in `Resource.sessions` exactly where the resource is in `Session.opened`, and it
      lives.
    - Equal batches give an equal `digest()`, and equal `Applied`, on every server.
    """

    def __init__(self, registry: Registry, limits: LimitsConfig) -> None:
        self.index = 0
        self.time = 0
        self.epoch = 0
        """How often a backup was restored to begin the cluster anew."""
        self.sessions = SessionTable()
        self._deadlines = Deadlines()
        self._changes = Changes(self._deadlines)
        self.directory = Directory(registry, limits, self.sessions, self._deadlines, self._changes)
        self._limits = limits
        self._registry = registry
        self._read_context = ReadContext(self.sessions)
        context = EntryContext(self.sessions, self._deadlines, self._changes, limits)
        self._frame = EntryFrame(
            context, self.sessions, self.directory, self._deadlines, self._changes
        )
        self._commands = CommandRunner(
            self._frame, self.sessions, self.directory, self._deadlines, self._changes, limits
        )
        self._usable = True
        self._handlers: dict[int, Callable[[Group, int], None]] = {
            Kind.INITIALIZE: self._initialize,
            Kind.CONFIGURATION: self._nothing,
            Kind.OPEN_SESSION: self._open_session,
            Kind.KEEP_ALIVE: self._keep_alive,
            Kind.EXPIRE_SESSION: self._expire_session,
            Kind.CLOSE_SESSION: self._close_session,
            Kind.TICK: self._nothing,
            Kind.RESTORED: self._restored,
        }

    def apply(self, batch: Batch) -> Applied:
        """Apply the next batch: group by group, entry by entry.

        Decoded operations of its groups are handed over to the machines: a Batch object is applied
        once. Raises MachineFault where a machine is at fault and StorageCorrupt for a kind of entry
        that this program does not know; after either, this object must not be used again.
        """
        assert self._usable, "used after a fault"
        assert batch.first_index == self.index + 1, (
            f"batch from {batch.first_index} after entry {self.index}"
        )
        assert batch.log_time >= self.time, f"log time {batch.log_time} after {self.time}"
        self._usable = False
        self.time = batch.log_time
        applied = self._frame.begin(batch.log_time)
        index = batch.first_index
        for group in batch.groups:
            self._frame.enter(index)
            if group.kind == Kind.COMMANDS:
                self._commands.apply(group, index)
            else:
                self._apply_one(group, index)
            index += group.count
        assert index == batch.last_index + 1, (
            f"groups up to entry {index - 1}, batch up to {batch.last_index}"
        )
        self.index = batch.last_index
        self._usable = True
        return applied

    def query(self, session: int, operation: list[Any]) -> Any:
        """Answer a read, `[resource, name, args]`, from the present state. Changes nothing.

        A name that does not exist is answered by an empty machine. The answer is to be encoded
        before the next `apply`: it may be a part of a machine. Raises CommandError for whatever is
        wrong, a failing machine included: a read never stops a server.
        """
        context = self._read_context
        context.index, context.time, context.session = self.index, self.time, session
        try:
            check_operation(operation)
        except RemoteProtocolError as error:
            raise BadCommand(str(error)) from error
        if len(operation) == 4:
            raise BadCommand("a read takes no fence")
        resource = self._to_read(operation[0])
        try:
            answer = resource.ask(context, operation[1], operation[2])
            if not (_simple(answer) or (type(answer) is list and all(map(_simple, answer)))):
                pack([[answer]])  # fails here for what its frame could not carry, so deep
        except CommandError:
            raise
        except Exception as error:
            what = (
                f"{operation[1]!r} of {resource.describe()} raised {type(error).__name__}: {error}"
            )
            raise CommandError(f"the servers' machine is at fault: {what}") from error
        return answer

    def next_deadline(self) -> int | None:
        """Return the earliest deadline of all machines (ms of log time): a Tick is due then."""
        return self._deadlines.next()

    def due_sessions(self, time: int) -> list[int]:
        """Return the sessions that at log time `time` have been silent for their timeout.

        Longest due first. They live on until an EXPIRE_SESSION entry for them is applied.
        """
        return self.sessions.due(time)

    def next_expiry(self) -> int | None:
        """Return the earliest log time at which `due_sessions` would not be empty."""
        return self.sessions.next_expiry()

    @property
    def anything_died(self) -> bool:
        """Whether an item was superseded, or a resource with items deleted, since the freeze."""
        ledger = self._changes.ledger
        return bool(ledger.superseded or ledger.superseded_parts or ledger.deleted)

    @property
    def freezing(self) -> Freeze | None:
        """The freeze that is under way, until its result is taken."""
        return self._changes.freezing

    def freeze(self) -> Freeze:
        """Freeze the state as it is now, for the storage. One at a time.

        O(1): what it serialises later, in steps, is as of now, whatever is applied meanwhile.
        """
        assert self._usable, "used after a fault"
        core = encode_core(self.index, self.time, self.sessions.floor, self.epoch)
        freeze = self._changes.freeze(self.index, self.time, core, self.directory.trim_entry)
        self._frame.context.begin_period()
        return freeze

    @classmethod
    def restoring(
        cls, registry: Registry, limits: LimitsConfig, source: PrefixSource
    ) -> Generator[int, None, Self]:
        """Make the state that a compacted prefix holds: it goes on exactly as the old one would.

        In steps, one per record and one per `Items`; yields the number of items so far. Raises
        StorageCorrupt where bytes are no records, UsageError where a resource's type is not
        registered, and MachineFault.
        """
        found = cls(registry, limits)
        restore = Restore(found.directory, found.sessions, found._deadlines, source)
        yield from restore.run()
        found.index, found.time, found.epoch = restore.index, restore.time, restore.epoch
        found._changes.begin(found.index)
        found._frame.context.begin_period()
        return found

    def successor(self, source: PrefixSource) -> Generator[int, None, Self]:
        """Make another state, with the same machines and limits, from a prefix; see `restoring`."""
        return self.restoring(self._registry, self._limits, source)

    def snapshot(self) -> bytes:
        """Encode the whole state, to compare servers: equal states, equal bytes.

        Raises MachineFault.
        """
        assert self._usable, "used after a fault"
        return pack(
            [
                *(self.index, self.time, self.sessions.floor, self.epoch),
                self.directory.snapshot(),
                [pack(session.snapshot()) for session in self.sessions],
                self._deadlines.snapshot(),
            ]
        )

    def digest(self) -> bytes:
        """Return the SHA-256 of the state. Equal on all servers at equal indexes."""
        return hashlib.sha256(self.snapshot()).digest()

    # -- entries that are not commands ------------------------------------------------------------

    def _apply_one(self, group: Group, index: int) -> None:
        handler = self._handlers.get(group.kind)
        if handler is None:
            raise StorageCorrupt(
                f"entry {index} is of kind {group.kind}, which this program does not know"
            )
        handler(group, index)
        if self._frame.context.unsettled:
            self._frame.leave()
        self._frame.skip(index + 1, index + group.count - 1)

    def _nothing(self, group: Group, index: int) -> None:
        """TICK and CONFIGURATION: time has passed, no more."""

    def _initialize(self, group: Group, index: int) -> None:
        self.sessions.floor = self.time

    def _open_session(self, group: Group, index: int) -> None:
        try:
            secret_hash, timeout_ms, client_name = decode_open(group.payload)
        except RemoteProtocolError:
            return  # nobody to answer
        session = self.sessions.by_secret(secret_hash)
        if session is not None:
            self._changes.touch_session(session)
            session.last_seen = self.time
        elif len(self.sessions) >= self._limits.sessions_max:
            error = LimitExceeded(
                f"there are {len(self.sessions)} sessions, as many as sessions_max allows"
            )
            self._frame.applied.opened.append(Opened(secret_hash, 0, 0, error_fields(error)))
            return
        else:
            session = Session(index, secret_hash, timeout_ms, client_name, self.time, self.time)
            self._changes.add_session(session)
            self.sessions.add(session)
        self._frame.applied.opened.append(Opened(secret_hash, session.id, session.timeout_ms, None))

    def _keep_alive(self, group: Group, index: int) -> None:
        try:
            items = decode_keep_alive(group.payload)
        except RemoteProtocolError:
            return
        for session_id, low_water, event_index, number in items:
            session = self.sessions.get(session_id)
            if session is None:
                self._frame.applied.ended.append(Ended(session_id, "unknown", index))
            else:
                self._changes.touch_session(session)
                session.last_seen = self.time
                session.acknowledge(low_water, event_index, index)
                self._frame.applied.kept.append(Kept(session_id, number, index))

    def _expire_session(self, group: Group, index: int) -> None:
        """End a session if it is still silent: a keep-alive that got into the log first wins."""
        session = self._named_session(group)
        if session is not None and self.sessions.expiry(session) <= self.time:
            self._frame.end(session, "expired")

    def _close_session(self, group: Group, index: int) -> None:
        try:
            session_id = decode_session_id(group.payload)
        except RemoteProtocolError:
            return
        session = self.sessions.get(session_id)
        if session is None:
            self._frame.applied.ended.append(Ended(session_id, "unknown", index))
        else:
            self._frame.end(session, "closed")

    def _restored(self, group: Group, index: int) -> None:
        """Begin a new cluster's life: nobody who had a session in the old one has it here."""
        try:
            epoch = decode_restored(group.payload)
        except RemoteProtocolError:
            return
        for session in list(self.sessions):
            self._frame.end(session, "restored")
        self.epoch = epoch

    def _named_session(self, group: Group) -> Session | None:
        try:
            return self.sessions.get(decode_session_id(group.payload))
        except RemoteProtocolError:
            return None

    def _to_read(self, reference: Any) -> Resource:
        """Find what a read is for; a name that does not exist is read as an empty machine."""
        if type(reference) is int:
            resource = (
                self.directory.itself
                if reference == DIRECTORY
                else self.directory.resources.get(reference)
            )
            if resource is None:
                raise deleted(reference)
            return resource
        name, type_name, version, config = reference
        resource, _ = self.directory.resolve(name, type_name, version, config)
        if resource is None:
            machine = self.directory.new_machine(type_name, config)
            resource = Resource(0, name, type_name, version, config, 0, machine)
        return resource


def _simple(answer: Any) -> bool:
    """Tell, at once, of the common answers that they can be encoded."""
    if type(answer) is int:
        return -(1 << 63) <= answer < 1 << 64
    if type(answer) is str:
        return answer.isascii()
    return answer is None or type(answer) is bytes or type(answer) is bool
