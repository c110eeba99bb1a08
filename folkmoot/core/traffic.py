"""What goes back and forth over a session: commands, reads, their answers, and events.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`, which knows when there is
a session and which connection carries it; this only knows what belongs to the present one.

It holds together what must be in one order: answers teach the ids that events name, and events wait
for answers that they lie behind (see `event_chain.py`).
"""

from __future__ import annotations

from typing import Any

from folkmoot.core.config import ClientConfig
from folkmoot.core.effects import Effects
from folkmoot.core.errors import (
    FolkmootError,
    OutcomeUnknown,
    SessionEnded,
    StorageFull,
    from_wire,
)
from folkmoot.core.event_chain import EventChain
from folkmoot.core.pipeline import Command, Operation, Pipeline
from folkmoot.core.queries import Reads
from folkmoot.core.targets import Target, Targets


class Traffic:
    """Everything of the application's that is under way.

    - `seen_index` never falls, not even from one session to the next.
    """

    def __init__(self, config: ClientConfig) -> None:
        limits = config.limits
        frame_bytes = min(config.frame_bytes, limits.frame_bytes_max)
        self.pipeline = Pipeline(
            window=limits.session_window, window_bytes=config.window_bytes, frame_bytes=frame_bytes
        )
        self.reads = Reads(pending_max=limits.pending_reads_per_client, frame_bytes=frame_bytes)
        self.targets = Targets()
        self.events = EventChain(self.targets)
        self.seen_index = 0
        """Highest index that any answer, event or sign of life came with."""
        self._hold_until = 0
        """Last sequence that was in flight when the session was resumed."""

    def release(self, target: Target) -> None:
        """Leave the resource of a target that nobody holds any more, so that it can be collected.

        The directory hears of it behind everything issued so far and before whatever is done
        through a new target of that name, which so opens the resource again.
        """
        if self.targets.drop(target):
            self.pipeline.issue(Command(self.targets.directory, "close", ([target.id],)))

    def saw(self, index: int) -> None:
        """Something has come with this index."""
        self.seen_index = max(self.seen_index, index)

    # sending

    def take_commands(self, session_id: int, now: float) -> list[bytes]:
        """Build the frames of the commands that may go out."""
        return self.pipeline.take_frames(session_id, self.events.last, now)

    def take_reads(self) -> list[bytes]:
        """Build the frames of the reads that may go out."""
        pipeline = self.pipeline
        return self.reads.take_frames(pipeline.sent, pipeline.last_sequence, self.seen_index)

    def resume(self, session_id: int) -> list[bytes]:
        """Another connection carries the session: send again what has no answer."""
        self._hold_until = self.pipeline.last_sequence
        return self.pipeline.repeat_frames(session_id, self.events.last)

    # receiving

    def results(self, fields: list[Any], effects: Effects) -> SessionEnded | None:
        """Take a RESULTS frame; return the error that says the session is gone, if any."""
        first, index, values, errors = fields
        begin = len(effects.answers)
        try:
            self.pipeline.answer(first, index, values, errors, effects.answers)
        finally:
            for operation in effects.answers[begin:]:
                if operation.by_name and operation.target.known:
                    self.targets.learned(operation.target)
        self.saw(index)
        # Answers that were passed over say nothing of those that are still missing (bugs: H2).
        if self.events.is_holding and len(effects.answers) > begin:
            everything = self.pipeline.low_water >= self._hold_until
            effects.notices += self.events.deliver(None if everything else index)
        found = (one.error for one in effects.answers[begin:] if errors)
        return next((error for error in found if isinstance(error, SessionEnded)), None)

    def refused(self, first: int, code: str, message: str, effects: Effects) -> bool:
        """Take a REFUSED_COMMANDS frame; tell whether some of it must be sent again.

        Where the disk is full, that is said of one frame. What was sent behind it was not looked
        at, and some of it may well be taken (a release, a delete): it is sent again, in its place.
        """
        end = self.pipeline.frame_end(first)
        freed, again = self.pipeline.refused(first)
        if code == StorageFull.code:
            behind = [command for command in freed if command.sequence > end]
            freed = freed[: len(freed) - len(behind)]
            if behind:
                self.reads.repeat_behind(behind[0].number)
                self.pipeline.take_back(behind)
        for command in freed:
            finish(command, from_wire(code, message), effects)
        return again

    def read_results(self, fields: list[Any], effects: Effects) -> None:
        """Take a READ_RESULTS frame."""
        request_id, index, values, errors = fields
        self.reads.answer(request_id, index, values, errors, effects.answers)
        self.saw(index)

    def take_events(self, batches: list[Any], effects: Effects) -> tuple[int, int]:
        """Take an EVENTS frame; return how many events, and how many bytes, were new."""
        try:
            return self.events.receive(batches)
        finally:
            self.saw(self.events.last)
            if self.pipeline.low_water >= self._hold_until:
                effects.notices += self.events.deliver()

    # ends

    def session_ended(self, unsent: FolkmootError, cause: str, effects: Effects) -> None:
        """End all commands: what was sent as unknown, what was not with the error given.

        Reads go on, by name: what nobody has open any more may be collected, so that its id is
        answered with ResourceDeleted.
        """
        sent_commands, unsent_commands = self.pipeline.end()
        for command in sent_commands:
            text = (
                f"{command.target!r}: command {command.sequence} of session {command.session_id} "
                f"was sent and has no answer; it may have been applied ({cause})"
            )
            finish(command, OutcomeUnknown(text), effects)
        for command in unsent_commands:
            finish(command, type(unsent)(*unsent.args), effects)
        self.events.session_ended()
        self.targets.session_ended()
        self.reads.repeat()
        self._hold_until = 0


def finish(operation: Operation, error: FolkmootError, effects: Effects) -> None:
    """End an operation with an error that no server sent."""
    operation.fail(error)
    effects.answers.append(operation)
