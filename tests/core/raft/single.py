"""One core whose peers are the test: every message in and out is in the test's hands."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from folkmoot.core.batch import FLAG_CONFIGURATION, Batch, Group, Kind, encode_batch
from folkmoot.core.config import RaftConfig
from folkmoot.core.raft import (
    Append,
    AppendReply,
    Configuration,
    HardState,
    LogView,
    Message,
    Raft,
    Ready,
    Role,
    VoteReply,
    Write,
)
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.types import NodeId
from tests.core.raft.network import voters

Sent = TypeVar("Sent", bound=Message)


def batches(*shape: tuple[int, int], after: int = 0, time: int = 0) -> list[Batch]:
    """Batches of (term, count) each, from index `after` + 1 on."""
    made = []
    for term, count in shape:
        group = Group(Kind.COMMANDS, count, f"t{term} i{after + 1}".encode())
        made.append(encode_batch(term, after + 1, time, [group]))
        after += count
    return made


def configuration_batch(
    configuration: Configuration, term: int, index: int, time: int = 0
) -> Batch:
    """A batch of the one entry `index` that holds a configuration."""
    group = Group(Kind.CONFIGURATION, 1, configuration.to_payload())
    return encode_batch(term, index, time, [group], FLAG_CONFIGURATION)


def append(
    term: int,
    prev: tuple[int, int] = (0, 0),
    *shape: tuple[int, int],
    commit: int = 0,
    round_number: int = 1,
    holding: Sequence[Batch] | None = None,
) -> Append:
    """An append after `prev` = (index, term), holding batches of (term, count) each."""
    held = batches(*shape, after=prev[0]) if holding is None else holding
    return Append(term, prev[0], prev[1], commit, round_number, held)


class Single:
    """The core under test is node 1. Its disk is at once durable unless `disk_is_held`."""

    def __init__(
        self,
        *,
        node_id: int = 1,
        configuration: Configuration | None = None,
        term: int = 0,
        voted_for: int | None = None,
        log: Iterable[Batch] = (),
        config: RaftConfig | None = None,
        seed: int = 0,
        start: tuple[int, int] = (0, 0),
        committed: int = 0,
    ) -> None:
        self.now = 10.0
        self.config = config or RaftConfig()
        self.raft = Raft(
            node_id=NodeId(node_id),
            config=self.config,
            configuration=configuration or voters(1, 2, 3),
            hard_state=HardState(term, None if voted_for is None else NodeId(voted_for)),
            log=LogView.recovered(*start, log),
            committed_index=committed,
            rng=random.Random(seed),
            now=self.now,
        )
        self.disk_is_held = False
        self.writes: list[Write] = []
        """Every write so far."""
        self.trace: list[TraceEvent] = []
        self.reads: dict[int, int | None] = {}
        self.last = self.raft.ready()

    def turn(self) -> list[tuple[int, Message]]:
        """Take what is ready, store it, apply it; return the messages that left."""
        messages: list[tuple[int, Message]] = []
        while ready := self.raft.ready():
            assert len(messages) < 1000, f"there is always more to say: {messages[-1]}"
            self._note(ready)
            messages += ready.messages
            self.raft.applied(ready.commit_index)
            if ready.writes and not self.disk_is_held:
                self.raft.durable(ready.writes[-1].number, self.now)
        return messages

    def _note(self, ready: Ready) -> None:
        self.last = ready
        self.writes += ready.writes
        self.trace += ready.trace
        self.reads.update({read.token: read.index for read in ready.reads})
        self.reads.update(dict.fromkeys(ready.reads_lost))

    def step(self, sender: int, message: Message) -> list[tuple[int, Message]]:
        self.raft.step(NodeId(sender), message, self.now)
        return self.turn()

    def ask(self, sender: int, message: Message, answer: type[Sent]) -> Sent:
        """Step, and return the one message that went back to `sender`."""
        back = [m for peer, m in self.step(sender, message) if peer == sender]
        assert len(back) == 1, back
        assert isinstance(back[0], answer), back
        return back[0]

    def wait(self, seconds: float) -> list[tuple[int, Message]]:
        """Let time pass and tick once."""
        self.now += seconds
        self.raft.tick(self.now)
        return self.turn()

    def time_out(self) -> list[tuple[int, Message]]:
        """Let the election timer run out."""
        return self.wait(max(0.0, self.raft.deadline() - self.now))

    def durable(self, number: int | None = None) -> list[tuple[int, Message]]:
        self.raft.durable(number or self.writes[-1].number, self.now)
        return self.turn()

    def install(
        self,
        index: int,
        term: int,
        *,
        log_time: int = 0,
        configuration: Configuration | None = None,
    ) -> list[tuple[int, Message]]:
        """Let a prefix that ends with `index` arrive."""
        base = configuration or voters(1, 2, 3)
        self.raft.install(index, term, log_time, base, self.now)
        return self.turn()

    def compact(self, index: int) -> list[tuple[int, Message]]:
        self.raft.compact(index, self.now)
        return self.turn()

    def propose(self, *texts: str) -> Batch:
        groups = [Group(Kind.COMMANDS, 1, text.encode()) for text in texts or ("x",)]
        return self.raft.propose(groups, self.now)

    def lead(self) -> list[tuple[int, Message]]:
        """Win an election with the votes of all; return the first appends."""
        first = self.time_out()
        others = [n for n in self.raft.configuration.everyone if n != self.raft.node_id]
        for pre in (True, False):
            if self.raft.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
                term = self.raft.term + pre
                for peer in others:
                    self.raft.step(peer, VoteReply(self.raft.term, term, pre, True), self.now)
                first = self.turn()
        assert self.raft.role is Role.LEADER, self.raft.status()
        return first

    def lead_in_office(self) -> None:
        """Win an election, and have `Initialize` acknowledged by all, committed and applied."""
        for peer, message in self.lead():
            if isinstance(message, Append):
                self.acknowledge(peer)
        assert self.raft.is_leader_ready, self.raft.status()

    def acknowledge(
        self,
        peer: int,
        index: int | None = None,
        *,
        round_number: int | None = None,
        wants_commit: bool = False,
    ) -> list[tuple[int, Message]]:
        """Let `peer` say that it holds everything up to `index` (the end)."""
        index = self.raft.last_index if index is None else index
        round_number = self.newest_round if round_number is None else round_number
        reply = AppendReply(
            self.raft.term, round_number, True, index, index, index, 0, 0, wants_commit
        )
        return self.step(peer, reply)

    def refuse(self, peer: int, after: int, index: int, term: int = 0) -> list[tuple[int, Message]]:
        """Let `peer` refuse the append after `after` and propose to try at `index`."""
        reply = AppendReply(
            self.raft.term, self.newest_round, False, after, 0, index - 1, index, term, False
        )
        return self.step(peer, reply)

    def role(self) -> Role:
        return self.raft.role

    @property
    def newest_round(self) -> int:
        leader = self.raft._leader
        return leader.newest_round if leader else 0


def to(peer: int, messages: Sequence[tuple[int, Message]], kind: type[Sent]) -> list[Sent]:
    """The messages of one class that went to `peer`."""
    return [m for receiver, m in messages if receiver == peer and isinstance(m, kind)]
