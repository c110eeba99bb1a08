"""A session's commands on their way: sequences, frames, answers, and what is sent again.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`.

A command is ISSUED by the application, waits in the OUTBOX, gets its sequence when the frame that
carries it is built, and is IN FLIGHT until its answer comes. From then on it is done.

    issue -> outbox -> (frame: sequence assigned) -> in flight -> answered
                |                                       |
                +-- withdrawn: never sent               +-- given up: keeps its place, see below
                                                        +-- refused: see `refused`

A sequence once used is always consumed. So a command that its caller gives up on before it was sent
vanishes from the outbox and never had a sequence; one given up on later stays in flight and its
answer is dropped by whoever waited. Nothing here knows about callers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from folkmoot.core.errors import (
    FolkmootError,
    OutcomeUnknown,
    RemoteProtocolError,
    ResourceDeleted,
    SequenceGap,
    Unavailable,
    from_wire,
)
from folkmoot.core.requests import commands_frame, pack_operation
from folkmoot.core.targets import Target


class Operation:
    """One operation on one resource, and what became of it: `answered`, then `value` or `error`.

    Drivers derive from it and override `finished`.
    """

    __slots__ = (
        "answered",
        "body",
        "by_name",
        "error",
        "fenced",
        "index",
        "note",
        "target",
        "value",
    )

    def __init__(
        self, target: Target, name: str, args: tuple[Any, ...], fence: tuple[int, int] | None = None
    ) -> None:
        self.target = target
        self.body = pack_operation(name, args, fence)
        self.fenced = fence is not None
        self.by_name = False
        self.answered = False
        self.value: Any = None
        self.error: FolkmootError | None = None
        self.index = 0
        """Log index of the answer: that of the entry, or at which a query was evaluated."""
        self.note: str | None = None

    def finished(self) -> None:
        """It has its answer, and the driver has come to it in `Effects.answers`."""

    def head(self) -> bytes:
        """What goes before `body`; fixes whether the answer brings the resource's id along."""
        target = self.target
        self.by_name = not target.known
        return target.head(fenced=self.fenced)

    def succeed(self, value: Any, index: int) -> int:
        """Take the answer; return the resource's id if it came along, else 0."""
        found = 0
        if self.by_name:
            if type(value) is not list or len(value) != 3 or type(value[0]) is not int:
                raise RemoteProtocolError(
                    f"{self.target!r}: an answer by name must be [id, value, note]"
                )
            found, value, self.note = value
        self.value = value
        self.index = index
        self.answered = True
        return found

    def fail(self, error: FolkmootError, index: int = 0) -> None:
        """Take an error as the answer."""
        if type(error) is ResourceDeleted and not self.by_name:
            self.target.deleted = True
        self.error = error
        self.index = index
        self.answered = True


class Command(Operation):
    """An operation that goes through the log. `sequence` is 0 until its frame is built."""

    __slots__ = ("head_bytes", "number", "sequence", "session_id")

    def __init__(
        self, target: Target, name: str, args: tuple[Any, ...], fence: tuple[int, int] | None = None
    ) -> None:
        super().__init__(target, name, args, fence)
        self.head_bytes = 0
        """How much of `body` is its head; 0 until its frame is built."""
        self.number = 0
        self.sequence = 0
        self.session_id = 0
        """The session under which it was sent."""


class Pipeline:
    """All commands of one session, in order.

    - in flight: exactly the sequences low_water + 1 ... last_sequence, without a gap.
    - last_sequence - low_water <= window, so the server never caches more results than that.
    - A command is in the outbox, or in flight, or done.
    """

    def __init__(self, *, window: int, window_bytes: int, frame_bytes: int) -> None:
        self.window = window
        self.window_bytes = window_bytes
        self.frame_bytes = frame_bytes
        self.outbox: dict[int, Command] = {}
        self.in_flight: deque[Command] = deque()
        self.low_water = 0
        self.last_sequence = 0
        self.flight_bytes = 0
        self.issued = 0
        """How many commands were issued ever: numbers them, so that reads can wait for their turn.
        """
        self._repeated = 0
        self._sent_at: deque[tuple[int, float]] = deque()

    # the way out

    @property
    def sent(self) -> int:
        """Every command with a number up to this has left the outbox."""
        return next(iter(self.outbox)) - 1 if self.outbox else self.issued

    def issue(self, command: Command) -> None:
        """Queue a command. It leaves with the next frame that has room."""
        self.issued += 1
        command.number = self.issued
        self.outbox[command.number] = command

    def withdraw(self, command: Command) -> bool:
        """Take a command back if it was not sent; it then never had a sequence."""
        return self.outbox.pop(command.number, None) is not None

    def take_frames(self, session_id: int, event_index: int, now: float) -> list[bytes]:
        """Build frames of what waits, as far as the window reaches; each call starts a new one."""
        frames = []
        while self.outbox:
            taken = self._gather()
            if not taken:
                break
            first = self.last_sequence + 1
            for command in taken:
                self.last_sequence += 1
                command.sequence = self.last_sequence
                command.session_id = session_id
                head = command.head()
                command.head_bytes = len(head)
                command.body = head + command.body
                self.flight_bytes += len(command.body)
            self.in_flight.extend(taken)
            self._sent_at.append((first, now))
            frames.append(self._frame(session_id, event_index, taken))
        return frames

    def _gather(self) -> list[Command]:
        """Take from the outbox what goes into one frame."""
        room = self.window - (self.last_sequence - self.low_water)
        bytes_left = self.window_bytes - self.flight_bytes
        taken: list[Command] = []
        size_bytes = 0
        for command in islice(self.outbox.values(), max(room, 0)):
            size_bytes += len(command.body) + len(command.target.head(fenced=command.fenced))
            if size_bytes > self.frame_bytes and taken:
                break
            if size_bytes > bytes_left and (taken or self.in_flight):
                break
            taken.append(command)
        if len(taken) == len(self.outbox):
            self.outbox = {}
        else:
            for command in taken:
                del self.outbox[command.number]
        return taken

    def _frame(self, session_id: int, event_index: int, commands: list[Command]) -> bytes:
        bodies = [command.body for command in commands]
        return commands_frame(session_id, commands[0].sequence, self.low_water, event_index, bodies)

    def repeat_frames(self, session_id: int, event_index: int) -> list[bytes]:
        """Build again exactly what has no answer, in order: the server knows which of it is new."""
        self._repeated = self.last_sequence
        return [self._frame(session_id, event_index, chunk) for chunk in self._chunks()]

    def _chunks(self) -> Iterator[list[Command]]:
        chunk: list[Command] = []
        size_bytes = 0
        for command in self.in_flight:
            size_bytes += len(command.body)
            if chunk and size_bytes > self.frame_bytes:
                yield chunk
                chunk, size_bytes = [], len(command.body)
            chunk.append(command)
        if chunk:
            yield chunk

    # answers

    def answer(
        self,
        first: int,
        index: int,
        values: list[Any],
        errors: list[Any] | None,
        done: list[Operation],
    ) -> None:
        """Match answers with commands; those that are done now are appended to `done`.

        What was answered before is passed over (bugs: G1). Raises RemoteProtocolError for answers
        that skip a command, answer what was never sent, or are none; commands before it are done
        then.
        """
        skip = self.low_water + 1 - first
        if skip < 0:
            raise RemoteProtocolError(
                f"RESULTS from sequence {first}, but {self.low_water + 1} has no answer yet"
            )
        last = first + len(values) - 1
        if last > self.last_sequence:
            raise RemoteProtocolError(
                f"RESULTS up to sequence {last}; the last one sent is {self.last_sequence}"
            )
        failed = errors_by_offset(errors, len(values)) if errors else None
        for offset in range(skip, len(values)):
            command = self.in_flight[0]
            at = index - (len(values) - 1 - offset)
            if failed is not None and offset in failed:
                if isinstance(failed[offset], _NOT_ANSWERS):
                    raise RemoteProtocolError(
                        f"sequence {first + offset} was answered with {failed[offset]!r}"
                    )
                command.fail(failed[offset], at)
            else:
                resource_id = command.succeed(values[offset], at)
                if resource_id and not command.target.known:
                    command.target.learn(resource_id)
            self.in_flight.popleft()
            self.low_water += 1
            self.flight_bytes -= len(command.body)
            done.append(command)

    def acknowledged_at(self) -> float | None:
        """Give the send time of the newest frame that was answered since the last call, if any was.

        Only first sendings count: an answer may be to the first although a second was sent.
        """
        newest = None
        while self._sent_at and self._sent_at[0][0] <= self.low_water:
            newest = self._sent_at.popleft()[1]
        return newest

    def frame_end(self, first: int) -> int:
        """The last sequence of the frame that began with `first`."""
        later = (begin for begin, _ in self._sent_at if begin > first)
        return next(later, self.last_sequence + 1) - 1

    def take_back(self, commands: list[Command]) -> None:
        """Put commands that were refused, and not for their own sake, before all that waits.

        They were issued in this order, and before whatever waits. So they keep their order to it.
        """
        for command in commands:
            command.body = command.body[command.head_bytes :]
            command.head_bytes = command.sequence = 0
        self.outbox = {command.number: command for command in commands} | self.outbox

    def refused(self, first: int) -> tuple[list[Command], bool]:
        """The server took nothing from `first` on; return those whose sequences are free again.

        A command that was sent on an earlier connection may be in the log already: it keeps its
        sequence, and the second value says that there is such a one, to be repeated.
        """
        if not self.low_water < first <= self.last_sequence + 1:
            return [], False  # about commands that have been answered, or taken back, since
        keep = max(first - 1, self._repeated)
        freed = []
        while self.last_sequence > keep:
            command = self.in_flight.pop()
            self.flight_bytes -= len(command.body)
            self.last_sequence -= 1
            freed.append(command)
        while self._sent_at and self._sent_at[-1][0] > self.last_sequence:
            self._sent_at.pop()
        return freed[::-1], keep >= first

    def end(self) -> tuple[list[Command], list[Command]]:
        """The session has ended: return what was sent and has no answer, and what was not sent."""
        sent, unsent = list(self.in_flight), list(self.outbox.values())
        self.in_flight.clear()
        self.outbox = {}
        self._sent_at.clear()
        self.low_water = self.last_sequence = self.flight_bytes = self._repeated = 0
        return sent, unsent


_NOT_ANSWERS = (SequenceGap, Unavailable, OutcomeUnknown)
"""Errors that leave open what becomes of the command: never an answer to it."""


def errors_by_offset(errors: list[Any], count: int) -> dict[int, FolkmootError]:
    """Errors as they travel in RESULTS and READ_RESULTS: [offset, code, message, data] each."""
    found = {}
    for fields in errors:
        if (
            type(fields) is not list
            or len(fields) != 4
            or tuple(map(type, fields[:3])) != (int, str, str)
        ):
            raise RemoteProtocolError("an error is [offset, code, message, data]")
        if not 0 <= fields[0] < count:
            raise RemoteProtocolError(f"an error at offset {fields[0]} of {count} answers")
        found[fields[0]] = from_wire(*fields[1:])
    return found
