"""The checks: one small checker per property, asked after every event.

A checker derives from `Checker` and overrides the moments that it needs; it keeps what it must
remember itself. A failed check raises `Violation`, which names the checker and its rule.

`Checks` hands each moment to the checkers that want it. It also finds out which moment is the FIRST
application of an entry on any server: `step`. Since committed entries are the same everywhere
(checked), the steps are the history of the cluster, and most rules are about them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import attrs

from folkmoot.core.batch import COMMANDS_HEADER, Batch, Kind
from folkmoot.core.event_chain import Event
from folkmoot.core.multiplexer import Applied, Multiplexer
from folkmoot.core.raft import Ready, Write
from folkmoot.core.requests import decode_operations
from folkmoot.core.targets import Target

if TYPE_CHECKING:
    from tests.sim.application import Ask, Call
    from tests.sim.client import SimClient
    from tests.sim.member import Member
    from tests.sim.simulation import Simulation

NOT_COUNTED = frozenset({"sequence_gap", "overloaded", "session_expired", "result_expired"})
"""Answers to commands that took no effect and used no sequence."""


class Violation(AssertionError):
    """A property does not hold."""


@attrs.frozen
class Done:
    """One command that took its turn: counted, and answered with a value or an error."""

    index: int
    session: int
    sequence: int
    operation: list[Any]
    value: Any
    """Without the id that an answer by name brings along."""
    error: str
    """The code; empty where it succeeded."""
    resource: int


@attrs.frozen
class Step:
    """One batch, applied for the first time on any server."""

    batch: Batch
    applied: Applied
    multiplexer: Multiplexer
    """The state after it, on the server that was first."""
    done: list[Done]
    events: dict[int, list[tuple[int, list[bytes]]]]
    """Session -> what was published to it: (index, events)."""


@attrs.define(eq=False, slots=False)
class Checker:
    """Base of all checkers. Every moment does nothing here."""

    world: Simulation

    rule: ClassVar[str] = ""
    """The property in one sentence, with its section or number."""

    def fail(self, text: str) -> NoReturn:
        """Report that the property does not hold."""
        raise Violation(f"{type(self).__name__}: {text}\n  rule: {self.rule}")

    def booted(self, member: Member, batches: list[Batch]) -> None:
        """A server has recovered its log and will run."""

    def died(self, member: Member) -> None:
        """A server has crashed or stopped."""

    def ready(self, member: Member, ready: Ready) -> None:
        """Consensus wants these effects; none of them has happened."""

    def turned(self, member: Member) -> None:
        """A server's turn is over."""

    def written(self, member: Member, write: Write) -> None:
        """A write is in the files, not yet durable but for its hard state."""

    def synced(self, member: Member) -> None:
        """Everything written is durable."""

    def installing(self, member: Member, index: int, term: int) -> None:
        """Consensus puts a prefix that ends there in the place of its log; the disk has not yet."""

    def went_over(self, member: Member) -> None:
        """A server has gone over to a state that another server's prefix brought."""

    def frozen(self, member: Member) -> None:
        """A server freezes its state as it is now."""

    def swept(self, member: Member) -> None:
        """A server has removed the files that it needs no more."""

    def committed(self, member: Member, index: int, entry: tuple[int, int]) -> None:
        """More is committed than anybody knew before: up to `index`, says this server."""

    def applied(self, member: Member, batch: Batch, applied: Applied) -> None:
        """A server has applied a batch."""

    def step(self, step: Step) -> None:
        """A batch was applied for the first time on any server."""

    def asked(self, client: SimClient, ask: Ask) -> None:
        """An application begins a read."""

    def read(self, client: SimClient, ask: Ask) -> None:
        """A read has ended."""

    def answered(self, client: SimClient, call: Call) -> None:
        """A command has ended for its application."""

    def lost(self, client: SimClient, call: Call) -> None:
        """A client crashed with this command under way: nobody learns what became of it."""

    def event(self, client: SimClient, event: Event) -> None:
        """An event was delivered to an application."""

    def client_turned(self, client: SimClient) -> None:
        """A client's turn is over."""

    def granted(self, client: SimClient, target: Target, token: int) -> None:
        """An application believes that it holds a lock or leads from now on."""

    def given_up(self, client: SimClient, target: Target) -> None:
        """It does not any more."""

    def left(self, client: SimClient, reason: str) -> None:
        """A client gives its connection up."""

    def settled(self, member: Member) -> None:
        """The cluster has come to rest, and this server's compactions and transfers, too."""

    def rested(self, member: Member) -> None:
        """The cluster has come to rest, and this server has compacted all that there is."""

    def finished(self) -> None:
        """The run has ended."""


_MOMENTS = [
    name
    for name, value in vars(Checker).items()
    if callable(value) and not name.startswith("_") and name != "fail"
]


class Checks:
    """Hands every moment to the checkers that want it."""

    def __init__(self, world: Simulation, kinds: list[type[Checker]]) -> None:
        self.world = world
        self.checkers = [kind(world) for kind in kinds]
        self.step_index = 0
        """Everything up to here has been applied on some server."""
        self.sequences: dict[int, int] = {}
        """Session -> the last sequence that was counted."""
        self._wanted: dict[str, list[Callable[..., None]]] = {
            name: [
                getattr(checker, name)
                for checker in self.checkers
                if getattr(type(checker), name) is not getattr(Checker, name)
            ]
            for name in _MOMENTS
        }
        for name in _MOMENTS:
            if name not in ("applied",):
                setattr(self, name, self._dispatcher(self._wanted[name]))

    @staticmethod
    def _dispatcher(wanted: list[Callable[..., None]]) -> Callable[..., None]:
        if len(wanted) == 1:
            return wanted[0]

        def dispatch(*args: Any) -> None:
            for tell in wanted:
                tell(*args)

        return dispatch

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., None]: ...

    def applied(self, member: Member, batch: Batch, applied: Applied) -> None:
        """A server has applied a batch."""
        for tell in self._wanted["applied"]:
            tell(member, batch, applied)
        if batch.last_index > self.step_index:
            step = self._step(member.multiplexer, batch, applied)
            self.step_index = batch.last_index
            for tell in self._wanted["step"]:
                tell(step)

    def _step(self, multiplexer: Multiplexer, batch: Batch, applied: Applied) -> Step:
        operations: dict[tuple[int, int], list[Any]] = {}
        for group in batch.groups:
            if group.kind == Kind.COMMANDS:
                session, first, _, _ = COMMANDS_HEADER.unpack_from(group.payload)
                for sequence, operation in enumerate(decode_operations(group.payload), first):
                    operations.setdefault((session, sequence), operation)
        done: list[Done] = []
        for results in applied.results:
            codes = {error[0]: error[1] for error in results.errors or ()}
            first_index = results.index - len(results.values) + 1
            for at, value in enumerate(results.values):
                session, sequence = results.session_id, results.first_sequence + at
                code = codes.get(at, "")
                if sequence != self.sequences.get(session, 0) + 1 or code in NOT_COUNTED:
                    continue
                self.sequences[session] = sequence
                operation = operations[session, sequence]
                resource = operation[0]
                if type(resource) is list:
                    resource = 0 if code else value[0]
                    value = None if code else value[1]
                done.append(
                    Done(first_index + at, session, sequence, operation, value, code, resource)
                )
        before, sessions = batch.first_index - 1, multiplexer.sessions
        events = {
            session_id: [(index, events) for index, _, events in session.events_after(before)]
            for session_id in applied.dirty
            if (session := sessions.get(session_id)) is not None
        }
        return Step(batch, applied, multiplexer, done, events)
