"""What consensus promises: figure 3.2 of the dissertation, and its rules of commitment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from folkmoot.core.batch import Batch
from folkmoot.core.raft import Ready, Role
from folkmoot.core.raft.trace import Committed, RoleChanged
from tests.sim.checks import Checker
from tests.sim.checks.ledger import Book

if TYPE_CHECKING:
    from tests.sim.member import Member


@attrs.define(eq=False, slots=False)
class ElectionSafety(Checker):
    rule = "§3.4: at most one leader in a term"
    leaders: dict[int, str] = attrs.field(factory=dict)

    def turned(self, member: Member) -> None:
        raft = member.raft
        if raft.role is Role.LEADER:
            leader = self.leaders.setdefault(raft.term, member.name)
            if leader != member.name:
                self.fail(f"servers {leader} and {member.name} both lead term {raft.term}")


@attrs.define(eq=False, slots=False)
class LeaderAppendOnly(Checker):
    rule = "§3.5: a leader never overwrites or deletes entries of its log"
    led: dict[str, tuple[int, int, tuple[int, int]]] = attrs.field(factory=dict)

    def turned(self, member: Member) -> None:
        raft, book = member.raft, self.world.ledger.logs[member.name]
        if raft.role is not Role.LEADER:
            return
        term, index, entry = self.led.get(member.name, (0, 0, (0, 0)))
        if term == raft.term and book.entries.get(index) != entry:
            self.fail(f"leader {member.name} of term {term} changed its log at {index}")
        last = book.last_index
        self.led[member.name] = (raft.term, last, book.entries[last])


@attrs.define(eq=False, slots=False)
class LogMatching(Checker):
    rule = "§3.5: logs that have an index and term in common are equal up to there"
    chains: dict[tuple[int, int], int] = attrs.field(factory=dict)

    def booted(self, member: Member, batches: list[Batch]) -> None:
        for batch in batches:
            self._match(member, batch)

    def ready(self, member: Member, ready: Ready) -> None:
        book = self.world.ledger.logs[member.name]
        for write in ready.writes:
            for batch in write.batches:
                if batch.last_index in book.entries:  # not cut again in this very turn
                    self._match(member, batch)

    def _match(self, member: Member, batch: Batch) -> None:
        term, chain = self.world.ledger.logs[member.name].entries[batch.last_index]
        known = self.chains.setdefault((batch.last_index, term), chain)
        if known != chain:
            self.fail(f"server {member.name} has another log at {batch.last_index} term {term}")


@attrs.define(eq=False, slots=False)
class StateMachineSafety(Checker):
    rule = "§3.6.3: what one server takes as committed, every other has at that index as well"
    entries: dict[int, tuple[int, int]] = attrs.field(factory=dict)
    index: int = 0
    told: dict[tuple[str, int], int] = attrs.field(factory=dict)

    def turned(self, member: Member) -> None:
        commit_index = member.raft.commit_index
        key = (member.name, member.life)
        before = self.told.get(key, 0)
        if commit_index == before:
            return
        self.told[key] = commit_index
        if commit_index < before:
            self.fail(f"commit index {commit_index} of server {member.name} after {before}")
        book = self.world.ledger.logs[member.name]
        known = min(commit_index, self.index)
        if known and book.entries.get(known) != self.entries[known]:
            self.fail(
                f"server {member.name} has {book.entries.get(known)} at committed {known}, "
                f"others {self.entries[known]}"
            )
        if commit_index > self.index:
            self._extend(member, book, commit_index)

    def _extend(self, member: Member, book: Book, commit_index: int) -> None:
        """More is committed than anybody knew: it must be on the disks of a majority."""
        fresh = [end for end in _ends_after(book, self.index) if end <= commit_index]
        self.entries.update((end, book.entries[end]) for end in fresh)
        count = self.world.trace.count
        count("batches committed", len(fresh))
        count("entries committed", commit_index - self.index)
        self.index = commit_index
        self.world.checks.committed(member, commit_index, self.entries[commit_index])


def _ends_after(book: Book, index: int) -> list[int]:
    """Boundaries above an index. Few: a commit advances by little."""
    found: list[int] = []
    for end in reversed(book.ends):
        if end <= index:
            break
        found.append(end)
    return found[::-1]


@attrs.define(eq=False, slots=False)
class LeaderCompleteness(Checker):
    rule = "§3.6.3: a committed entry is in the log of every leader of a higher term"
    checked: tuple[str, int] = ("", 0)

    def turned(self, member: Member) -> None:
        raft = member.raft
        if raft.role is not Role.LEADER or self.checked == (member.name, raft.term):
            return
        self.checked = (member.name, raft.term)
        safety = self.world.safety
        index = safety.index
        if not index:
            return
        entry = safety.entries[index]
        found = self.world.ledger.logs[member.name].entries.get(index)
        if found != entry and entry[0] < raft.term:
            self.fail(
                f"leader {member.name} of term {raft.term} has {found} at {index}, "
                f"committed is {entry} (term, chain)"
            )


@attrs.define(eq=False, slots=False)
class CommitRule(Checker):
    rule = "§3.6.2: a leader commits by counting only entries of its own term"
    roles: dict[tuple[str, int], str] = attrs.field(factory=dict)

    def ready(self, member: Member, ready: Ready) -> None:
        key = (member.name, member.life)
        role = self.roles.get(key, Role.FOLLOWER)
        for event in ready.trace:
            if isinstance(event, RoleChanged):
                role = self.roles[key] = event.role
            elif isinstance(event, Committed) and role == Role.LEADER:
                term = self.world.ledger.logs[member.name].entries[event.index][0]
                if term != member.raft.term and member.raft.role is Role.LEADER:
                    self.fail(
                        f"leader {member.name} of term {member.raft.term} committed index "
                        f"{event.index} of term {term}"
                    )


@attrs.define(eq=False, slots=False)
class Monotone(Checker):
    rule = "§3.3, §3.6: term, commit index and applied index never fall"
    terms: dict[str, int] = attrs.field(factory=dict)
    applied_index: dict[tuple[str, int], int] = attrs.field(factory=dict)

    def turned(self, member: Member) -> None:
        raft, applied = member.raft, member.multiplexer.index
        if raft.term < self.terms.get(member.name, 0):
            self.fail(f"term {raft.term} of server {member.name} after {self.terms[member.name]}")
        self.terms[member.name] = raft.term
        key = (member.name, member.life)
        if not self.applied_index.get(key, 0) <= applied <= raft.commit_index:
            self.fail(
                f"server {member.name} has applied {applied} after "
                f"{self.applied_index.get(key, 0)}, committed is {raft.commit_index}"
            )
        self.applied_index[key] = applied

    def died(self, member: Member) -> None:
        # What was not durable was never spoken of: see PersistBeforeSpeaking.
        self.terms[member.name] = self.world.ledger.disks[member.name].term
