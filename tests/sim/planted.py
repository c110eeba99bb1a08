"""Planted bugs: the product with one rule broken, for as long as a `with` block lasts.

Those of consensus alone are in tests/core/raft/twins.py, and those of the files of a prefix in
tests/core/storage/twins_compaction.py; here are those of the parts around: the log, sessions,
machines, the server's front, and the client; and in planted_compaction.py those of freezing,
restoring and sending a state. A check that no planted bug can fail proves nothing, so
test_planted_bugs.py has each of them caught.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import attrs

from folkmoot.core import traffic
from folkmoot.core.applied import Results
from folkmoot.core.batch import COMMANDS_HEADER, Group
from folkmoot.core.commands import CommandRunner
from folkmoot.core.context import EntryContext
from folkmoot.core.errors import SessionExpired
from folkmoot.core.event_chain import EventChain, _decode
from folkmoot.core.events import PendingEvents
from folkmoot.core.front import Front
from folkmoot.core.intake import Intake
from folkmoot.core.liveness import SignsOfLife
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.raft.leader import Leader
from folkmoot.core.raft.replication import Replication
from folkmoot.core.reading import Read, ReadDesk
from folkmoot.core.sessions import Session, SessionTable
from folkmoot.core.storage.hard_state import HardStateFile
from folkmoot.core.storage.segmented_log import SegmentedLog
from folkmoot.primitives._seat import Claim, Seat, Tokens
from tests.core.raft import twins_compaction
from tests.core.raft.twins import TWINS as CORE_TWINS
from tests.core.raft.twins import planted as core_planted
from tests.core.storage.twins_compaction import TWINS as STORAGE_TWINS
from tests.sim.watched import WatchedRaft

assert twins_compaction.install_durable_at_once.__name__ in CORE_TWINS
Patch = tuple[Any, str, Any]
PLANTED: dict[str, list[Patch]] = {}


def plants(
    target: Any, attribute: str, name: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function a planted bug, or a part of the one with this name."""

    def register(broken: Callable[..., Any]) -> Callable[..., Any]:
        PLANTED.setdefault(name or broken.__name__, []).append((target, attribute, broken))
        return broken

    return register


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Run the block with a bug of this list, of consensus's or of the storage's."""
    if name == "lease_from_receipt_time":
        with _lease_from_receipt_time():
            yield
        return
    if name in CORE_TWINS or name in STORAGE_TWINS:
        with core_planted(name) if name in CORE_TWINS else STORAGE_TWINS[name]():
            yield
        return
    with contextlib.ExitStack() as stack:
        for target, attribute, broken in PLANTED[name]:
            stack.enter_context(mock.patch.object(target, attribute, broken))
        yield


# -- storage -----------------------------------------------------------------------------------


@plants(HardStateFile, "replace")
def hard_state_never_written(self: HardStateFile, state: Any) -> None:
    """The term and vote are taken for durable, and are only in memory."""
    self.slot = attrs.evolve(self.slot, state=state)


@plants(SegmentedLog, "_sync_active")
def log_never_synced(self: SegmentedLog) -> None:
    """Written is taken for durable."""
    self._dirty = False


# -- sessions ----------------------------------------------------------------------------------

_apply = CommandRunner.apply


@plants(CommandRunner, "apply")
def commands_not_deduplicated(self: CommandRunner, group: Group, index: int) -> None:
    """A command that comes again is applied again (G1)."""
    session_id, sequence, _, _ = COMMANDS_HEADER.unpack_from(group.payload)
    session = self._sessions.get(session_id)
    if session is not None and session.low_water < sequence <= session.sequence:
        session.sequence = sequence - 1
        while session.results and session.results[-1].last_sequence >= sequence:
            last = session.results.pop()
            session.result_bytes -= last.size_bytes
    _apply(self, group, index)


_keep = Session.keep


@plants(Session, "keep")
def results_not_kept(self: Session, results: Results) -> None:
    """Answers are forgotten as soon as they are given (G2)."""
    _keep(self, results)
    self.low_water = self.sequence
    self.results.clear()
    self.result_bytes = 0


@plants(Session, "cached")
def retries_answered_with_null(
    self: Session, first_sequence: int, last_sequence: int | None = None, index: int = 0
) -> list[Results]:
    """A retry gets an answer, but not the one that there was."""
    last = self.sequence if last_sequence is None else min(last_sequence, self.sequence)
    count = last - first_sequence + 1
    return [Results(self.id, first_sequence, index + count - 1, [None] * count, None)]


@plants(Multiplexer, "_expire_session")
def expires_while_a_keep_alive_is_in(self: Multiplexer, group: Group, index: int) -> None:
    """An expiry takes effect whatever got into the log before it (G5)."""
    session = self._named_session(group)
    if session is not None:
        self._frame.end(session, "expired")


@plants(Multiplexer, "_initialize")
def silence_counts_through_elections(self: Multiplexer, group: Group, index: int) -> None:
    """A new leader expires whoever could not reach the old one (G6)."""


@plants(SignsOfLife, "kept")
def local_deadline_from_receipt(self: SignsOfLife, number: int) -> None:
    """The client counts its session's life from when a sign was acknowledged, not sent (I3)."""
    while self._keep_alives and self._keep_alives[0][0] <= number:
        self._keep_alives.popleft()
        self.acknowledged(self._sent_at + self.timeout_s / 4)


PLANTED["unknown_called_not_applied"] = [(traffic, "OutcomeUnknown", SessionExpired)]
"""What was sent and has no answer is said not to be applied (G14)."""


# -- events ------------------------------------------------------------------------------------


@plants(EventChain, "receive")
def events_delivered_again(self: EventChain, batches: list[Any]) -> tuple[int, int]:
    """The client takes what it has had once more, when the server sends it again (H1)."""
    for index, _, events in batches:
        self._held.append((index, [_decode(data) for data in events]))
        self.last = max(self.last, index)
    return 0, 0


_resume = Front._resume


@plants(Front, "_resume", "events_delivered_again")
def _all_events_sent_again(
    self: Front, connection: Any, resume: tuple[int, bytes, int, int]
) -> None:
    session = self.replica.multiplexer.sessions.get(resume[0])
    acknowledged = 0 if session is None else session.events.acked
    _resume(self, connection, (resume[0], resume[1], acknowledged, resume[3]))


@plants(Front, "_resume")
def missed_events_not_sent_again(
    self: Front, connection: Any, resume: tuple[int, bytes, int, int]
) -> None:
    """What a resumed session has missed stays missed."""
    _resume(self, connection, resume)
    session = self.replica.multiplexer.sessions.get(resume[0])
    if session is not None:
        connection.event_index = session.events.last


_acknowledge = PendingEvents.acknowledge


@plants(PendingEvents, "acknowledge")
def events_forgotten_at_once(self: PendingEvents, event_index: int) -> None:
    """Any sign of life acknowledges all events, received or not."""
    _acknowledge(self, self.last)


_publish = EntryContext.publish


_published = itertools.count()


@plants(EntryContext, "publish")
def replicas_publish_differently(
    self: EntryContext, sessions: Any, kind: str, payload: Any = None, *, keep: bool = False
) -> None:
    """What is published depends on something that is no part of the state (J1)."""
    if kind != "changed" or next(_published) % 7:
        _publish(self, sessions, kind, payload, keep=keep)


# -- locks and elections -----------------------------------------------------------------------


@plants(Seat, "drop_session")
def waiters_outlive_their_session(self: Seat, context: Any, session: int) -> Claim | None:
    """A waiter is granted after its own session died (I2)."""
    held = self.holder
    if held is not None and held.session == session:
        self.remove(context, held)
        return held
    return None


@plants(Tokens, "draw")
def tokens_do_not_rise(self: Tokens, index: int) -> int:
    """A token may come again."""
    self.last = 1 + index % 64
    return self.last


@plants(Seat, "claim")
def lock_granted_to_whoever_asks(
    self: Seat,
    context: Any,
    request: int,
    timeout_ms: int | None,
    *,
    free: bool = True,
    priority: int = 0,
    value: bytes = b"",
) -> Claim:
    """Two hold at one index."""
    self.check(context, request, timeout_ms)
    self.last_order = max(context.index, self.last_order + 1)
    claim = Claim(
        self.last_order, context.session, request, context.time, None, priority, value=value
    )
    self._claims.setdefault(claim.session, {})[request] = claim
    self.holder = None
    self._seat(context, claim)
    return claim


# -- reads -------------------------------------------------------------------------------------


@plants(Leader, "flush")
def read_index_without_a_round(self: Leader) -> None:
    """Reads are answered from the own commit index, whoever leads by now (§6.4)."""
    if self.reads.is_waiting and self._state.commit_index >= self.initialize_index:
        self.reads.begin(0)
        self.reads.confirm(0)
    self._replication.flush()


@plants(ReadDesk, "due")
def sequential_reads_do_not_wait(self: ReadDesk, applied: int, sequence_of: Any) -> Iterator[Read]:
    """A session does not see its own commands, nor what it has seen elsewhere (C10)."""
    found, self._confirmed = self._confirmed, []
    for _, _, read in found:
        yield read


@plants(WatchedRaft, "lease_valid")
def leader_needs_no_lease(self: WatchedRaft, now: float) -> bool:
    """Whoever believes that he leads reads locally."""
    return self._leader is not None and self.is_leader_ready


@contextlib.contextmanager
def _lease_from_receipt_time() -> Iterator[None]:
    """The lease counts from when answers arrive, not from when the round was sent (C4)."""
    learn = Replication.learn_contact

    def learn_contact(self: Replication, progress: Any, reply: Any) -> bool:
        news = learn(self, progress, reply)
        if news:
            progress.acked_sent_at = self._state.now
        return news

    with mock.patch.object(Replication, "learn_contact", learn_contact):
        yield


# -- the server's front ------------------------------------------------------------------------

_answered = Intake.answered


@plants(Intake, "retry_at")
def loop_spins_without_a_leader(self: Intake) -> float | None:
    """The bug that the simulator found first: a server without a leader turned without end."""
    return self._check_at if self.size_bytes or self.opens or self.closes else None


@plants(Intake, "answered")
def last_answer_before_the_first(
    self: Intake, session_id: int, first_sequence: int, count: int, now: float
) -> int:
    """A session that moved in the midst of its commands is told of the last ones only."""
    return first_sequence if _answered(self, session_id, first_sequence, count, now) else 0


@plants(SessionTable, "expiry")
def sessions_never_expire(self: SessionTable, session: Session) -> int:
    """What a dead client holds is held for ever."""
    return 1 << 60
