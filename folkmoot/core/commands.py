"""Commands of sessions: exactly once, in order, each to its machine.

Pure: no I/O, no clock, no randomness. The multiplexer hands over each COMMANDS group: one client's
frame.

COUNTED OR REFUSED. A command is counted when it is exactly the session's next: it reaches its
machine, or fails to find it, and whatever the answer is, it is kept. Refused, without any effect
and without being counted, is one that is ahead of its turn (SequenceGap, naming the sequence that
is expected), one beyond the window of kept answers (Overloaded), one of a session that is gone
(session_expired), and every one of a group that does not decode or does not add up (BadCommand).
One that was counted before gets the answer that was kept.

THE HOT PATH is the loop of `_run`. A command by id on a resource that the session has open takes
the short way through it; everything else (the first command, fences, the directory) goes through
`_reach`.
"""

from __future__ import annotations

from typing import Any

from folkmoot.core.applied import Results
from folkmoot.core.batch import COMMANDS_HEADER, Group
from folkmoot.core.config import LimitsConfig
from folkmoot.core.context import EntryContext, fault
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.directory import Directory, deleted
from folkmoot.core.entry import EntryFrame
from folkmoot.core.errors import (
    BadCommand,
    CommandError,
    Fenced,
    FolkmootError,
    Overloaded,
    RemoteProtocolError,
    SequenceGap,
    SessionExpired,
    UsageError,
)
from folkmoot.core.freeze import Changes
from folkmoot.core.requests import DIRECTORY, decode_operations, error_fields
from folkmoot.core.resource import MachineFault
from folkmoot.core.sessions import Session, SessionTable
from folkmoot.transport.codec import pack, unpack

_ATOMS = frozenset({int, bool, type(None)})
"""Answers that are neither copied nor counted in bytes."""
CHANGED = "published, retained, superseded or touched a deadline"
"""What a command that is refused may not have done before."""


class CommandRunner:
    """Applies COMMANDS groups.

    - Every entry of a group is entered and left exactly once, whether it does anything or not.
    - What is kept as an answer is nobody else's: machines may go on changing what they returned.
    """

    def __init__(
        self,
        frame: EntryFrame,
        sessions: SessionTable,
        directory: Directory,
        deadlines: Deadlines,
        changes: Changes,
        limits: LimitsConfig,
    ) -> None:
        self._frame = frame
        self._context: EntryContext = frame.context
        self._sessions = sessions
        self._directory = directory
        self._deadlines = deadlines
        self._changes = changes
        self._limits = limits

    def apply(self, group: Group, index: int) -> None:
        """Apply a group whose first entry, `index`, has been entered."""
        payload, count = group.payload, group.count
        if len(payload) < COMMANDS_HEADER.size:
            self._frame.skip(index, index + count - 1)  # nobody to answer
            return
        session_id, sequence, low_water, event_index = COMMANDS_HEADER.unpack_from(payload)
        session = self._sessions.get(session_id)
        if session is None:
            self._refuse(session_id, sequence, index, count, _gone(session_id))
            return
        self._changes.touch_session(session)
        session.last_seen = self._context.time
        session.acknowledge(low_water, event_index, index)
        expected = session.sequence + 1
        try:
            operations = _operations(group)
            if not 1 <= sequence <= expected:
                text = f"session {session_id}: sequence {sequence} came where {expected} is next"
                raise SequenceGap(text, expected)
        except CommandError as error:
            self._refuse(session_id, sequence, index, count, error)
            return
        repeated = min(expected - sequence, count)
        if repeated:
            last = index + repeated - 1
            self._frame.applied.results += session.cached(sequence, sequence + repeated - 1, index)
            self._frame.skip(index, last)
            operations = operations[repeated:]
        if operations:
            self._run(session, operations, index + repeated)

    def _run(self, session: Session, operations: list[Any], index: int) -> None:
        """Apply the session's next commands, as far as the bounds on kept answers let them."""
        context, time, opened = self._context, self._context.time, session.opened
        deadlines, changes, period = self._deadlines, self._changes, self._changes.period
        bytes_free = self._limits.session_result_bytes_max - session.result_bytes
        values: list[Any] = []
        errors: list[list[Any]] = []
        context.session = session.id
        for operation in operations[: self._room(session)]:
            if bytes_free <= 0:
                break
            if deadlines.earliest <= time:
                self._frame.enter(index)
            context.index = index
            try:
                resource_id = operation[0]
                if (
                    type(resource_id) is int
                    and len(operation) == 3
                    and (resource := opened.get(resource_id)) is not None
                ):
                    if resource.touched < period:
                        changes.touch_resource(resource)
                    context.resource = resource
                    value = resource.call(context, operation[1], operation[2])
                else:
                    value = self._reach(session, operation)
                if type(value) not in _ATOMS:
                    value, size_bytes = _carry(value)
                    bytes_free -= size_bytes
            except CommandError as error:
                fields, size_bytes = self._refused_by_machine(error, operation)
                errors.append([len(values), *fields])
                bytes_free -= size_bytes
                value = None
            except MachineFault:
                raise
            except Exception as error:
                raise self._fault(operation, error) from error
            values.append(value)
            index += 1
            if context.unsettled:
                self._frame.leave()
                if session.ended:
                    break
        if values:
            size_bytes = self._limits.session_result_bytes_max - session.result_bytes - bytes_free
            first = session.sequence + 1
            results = Results(session.id, first, index - 1, values, errors or None, size_bytes)
            self._check(results, operations)
            session.keep(results)
            self._frame.applied.results.append(results)
        left = len(operations) - len(values)
        if left:
            refusal = _gone(session.id) if session.ended else self._overloaded(session)
            self._refuse(session.id, session.sequence + 1, index, left, refusal)

    def _room(self, session: Session) -> int:
        """Return how many answers may still be kept."""
        if session.ended:
            return 0
        return max(0, self._limits.session_window - (session.sequence - session.low_water))

    def _reach(self, session: Session, operation: list[Any]) -> Any:
        """Apply a command that is fenced, by name, to the directory, or to what is not open yet."""
        context, directory = self._context, self._directory
        reference, name, args = operation[:3]
        if len(operation) == 4:
            self._check_fence(*operation[3])
        if type(reference) is list:
            return self._open_and_do(session, reference, name, args)
        if reference == DIRECTORY:
            return directory.itself.call(context, name, args)
        resource = directory.resources.get(reference)
        if resource is None:
            raise deleted(reference)
        self._changes.touch_resource(resource)
        context.resource = resource
        value = resource.call(context, name, args)
        if reference not in session.opened:
            directory.mark_open(resource, session.id)
        return value

    def _open_and_do(
        self, session: Session, reference: list[Any], name: str, args: list[Any]
    ) -> list[Any]:
        """Open or create by [name, type, version, configuration], and do: both or neither."""
        context, directory = self._context, self._directory
        resource, note = directory.resolve(*reference)
        existing = resource is not None
        if resource is None:
            resource = directory.make(context, *reference)
        else:
            self._changes.touch_resource(resource)
        context.resource = resource
        value = resource.call(context, name, args)
        context.name_retained()
        if not existing:
            directory.add(resource)
        directory.mark_open(resource, session.id)
        return [resource.id, value, note]

    def _check_fence(self, resource_id: int, token: int) -> None:
        resource = self._directory.resources.get(resource_id)
        try:
            held = resource is not None and resource.machine.holds_grant(token)
        except Exception as error:
            assert resource is not None
            raise fault(self._context.index, resource.describe(), "holds_grant", error) from error
        if not held:
            raise Fenced(
                f"the grant with token {token} of resource {resource_id} has ended: "
                "nothing was written"
            )

    def _refused_by_machine(
        self, error: CommandError, operation: list[Any]
    ) -> tuple[list[Any], int]:
        """Make the answer of an error. One who refuses has changed nothing: asserted, if seen."""
        context = self._context
        if context.index in (context.effect, context.retained):
            text = f"raised {type(error).__name__} after it had {CHANGED}"
            raise self._fault(operation, text) from error
        code, message, data = error_fields(error)
        try:
            data, size_bytes = _carry(data)
        except UsageError as culprit:
            raise self._fault(operation, f"raised {code} with data: {culprit}") from culprit
        return [code, message, data], size_bytes + len(message)

    def _check(self, results: Results, operations: list[Any]) -> None:
        """Make sure that the answers can be encoded, as deep as in a frame. Once per group."""
        try:
            pack([results.values, results.errors])
        except UsageError as error:
            first = results.index - len(results.values) + 1
            errors = {e[0]: e for e in results.errors or ()}
            for offset, value in enumerate(results.values):
                try:
                    pack([[value, errors.get(offset)]])
                except UsageError as culprit:
                    self._context.index = first + offset
                    raise self._fault(operations[offset], f"answered: {culprit}") from culprit
            raise AssertionError(
                f"answers at entry {results.index} cannot be encoded together"
            ) from error

    def _refuse(
        self, session_id: int, sequence: int, index: int, count: int, error: FolkmootError
    ) -> None:
        """Answer commands without applying, counting or keeping anything."""
        fields = error_fields(error)
        errors = [[offset, *fields] for offset in range(count)]
        last = index + count - 1
        self._frame.applied.results.append(
            Results(session_id, sequence, last, [None] * count, errors)
        )
        self._frame.skip(index, last)

    def _overloaded(self, session: Session) -> Overloaded:
        return Overloaded(
            f"session {session.id} has {session.sequence - session.low_water} answers of "
            f"{session.result_bytes} bytes that it has not acknowledged "
            f"(session_window is {self._limits.session_window}, "
            f"session_result_bytes_max {self._limits.session_result_bytes_max})"
        )

    def _fault(self, operation: list[Any], error: Exception | str) -> MachineFault:
        reference = operation[0]
        if type(reference) is list:
            where = f"{reference[1]} {reference[0]!r}"
        elif reference == DIRECTORY:
            where = self._directory.itself.describe()
        else:
            resource = self._directory.resources.get(reference)
            where = f"resource {reference}" if resource is None else resource.describe()
        return fault(self._context.index, where, operation[1], error)


def _operations(group: Group) -> list[Any]:
    """Return a group's operations. Raises BadCommand where they do not decode or do not add up."""
    operations: list[Any] | None = group.decoded
    if operations is None:
        try:
            operations = decode_operations(group.payload)
        except RemoteProtocolError as error:
            raise BadCommand(str(error)) from error
    if len(operations) != group.count:
        raise BadCommand(f"a group of {group.count} entries has {len(operations)} operations")
    return operations


def _gone(session_id: int) -> SessionExpired:
    return SessionExpired(f"session {session_id} has ended; this command was not applied")


def _carry(value: Any) -> tuple[Any, int]:
    """Copy an answer, as the machine may go on changing its own; say about how large it is."""
    kind = type(value)
    if kind is bytes or kind is str:
        return value, len(value)
    if kind in _ATOMS or kind is float:
        return value, 8
    if kind is list or kind is tuple:
        if _ATOMS.issuperset(map(type, value)):  # the common ones, at a third of the price
            return list(value), 8 + 8 * len(value)
        parts = [(item, 8) if type(item) in _ATOMS else _carry(item) for item in value]
        return [item for item, _ in parts], 8 + sum(size_bytes for _, size_bytes in parts)
    if kind is dict:
        copy, size_bytes = _carry(list(value.values()))
        return dict(zip(value, copy, strict=True)), size_bytes + sum(8 + len(key) for key in value)
    data = pack(value)
    return unpack(data), len(data)
