"""Linearizable reads by read index (§6.4): the leader's half, and the half of everybody else.

Pure: no I/O, no clock, no randomness. It reads no state machine: a token goes in, and comes out
with the index that must be applied before the read may be answered, or comes out as lost.

The leader: all reads that wait at ready() share ONE round, which starts after they arrived, and
take the commit index of that moment. When a quorum has acknowledged the round, nobody else can have
committed anything before the round started, so the index is recent enough. Nothing starts before an
entry of the leader's own term is committed: until then its commit index may lag (§6.4, bug C1).

Everybody else asks the leader it follows, one question for all reads of a turn. Both halves live
and die with one leader in one term:

    1. follower F takes a read of its client and asks leader A of term 5
    2. A is deposed; B leads term 6 and commits a write, which another client sees acknowledged
    3. A's delayed answer of term 5 arrives: its index lies before that write (bug C3)

The term check drops the answer of step 3, and F gave the read up when it learnt of term 6. The term
alone is not enough where F forgets what it asked, so questions are numbered from a random start:

    1. F asks question 1 in term 5 and crashes; A's answer, index 10, is on its way
    2. index 11 is written and acknowledged; F is back, still in term 5, and takes a new read
    3. were that question 1 again, the answer of step 1 would fit it

Nobody forwards what was forwarded to it (bug K5): who is asked and does not lead refuses.

Source: §6.4.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

from folkmoot.core.errors import Overloaded
from folkmoot.core.raft.effects import ReadState
from folkmoot.core.raft.messages import ReadIndexReply, ReadIndexRequest
from folkmoot.core.raft.state import State
from folkmoot.core.raft.trace import ReadsLost
from folkmoot.core.types import NodeId


@attrs.define
class _Round:
    number: int
    index: int
    reads: list[tuple[NodeId | None, int]]
    """(None, token) for this server's own, (who asked, question) for another's."""


class LeaderReads:
    """The leader's reads: waiting for a round, or waiting for their round's acknowledgement.

    - A read's round starts after the read arrived; its index is the commit index at that moment.
    - Rounds are confirmed in order; a later one confirms all before it.
    """

    __slots__ = ("_rounds", "_state", "_waiting", "count")

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[tuple[NodeId | None, int]] = []
        self._rounds: deque[_Round] = deque()
        self.count = 0
        """Reads that have no answer yet."""

    @property
    def is_waiting(self) -> bool:
        """True when reads wait for a round to start."""
        return bool(self._waiting)

    @property
    def is_asking(self) -> bool:
        """True when a round of reads waits for a quorum."""
        return bool(self._rounds)

    def add(self, asker: NodeId | None, number: int) -> None:
        """Take an own read's token (asker None) or another server's question in.

        Raises Overloaded beyond pending_reads_max; nothing changed then.
        """
        limit = self._state.config.pending_reads_max
        if self.count >= limit:
            raise Overloaded(f"pending_reads_max: {self.count} reads wait, the limit is {limit}")
        self.count += 1
        self._waiting.append((asker, number))

    def begin(self, number: int) -> None:
        """Put all waiting reads on the round that starts now."""
        self._rounds.append(_Round(number, self._state.commit_index, self._waiting))
        self._waiting = []

    def confirm(self, acknowledged: int) -> list[tuple[NodeId, int]]:
        """Answer the reads of every round up to the one that a quorum has acknowledged.

        Returns (who asked, index) for those that other servers asked for: they must also be able to
        learn that the index is committed.
        """
        told: list[tuple[NodeId, int]] = []
        while self._rounds and self._rounds[0].number <= acknowledged:
            confirmed = self._rounds.popleft()
            self.count -= len(confirmed.reads)
            for asker, number in confirmed.reads:
                if asker is None:
                    self._state.effects.reads.append(ReadState(number, confirmed.index))
                else:
                    reply = ReadIndexReply(self._state.term, number, confirmed.index)
                    self._state.effects.send(asker, reply)
                    told.append((asker, confirmed.index))
        return told

    def lose(self) -> None:
        """Give up every read: this server no longer leads. Other servers notice that themselves."""
        everything = [*self._waiting, *[read for r in self._rounds for read in r.reads]]
        own = [token for asker, token in everything if asker is None]
        if own:
            self._state.effects.reads_lost.extend(own)
            self._state.effects.trace.append(ReadsLost(len(own), "leadership lost"))
        self._waiting, self.count = [], 0
        self._rounds.clear()


class ForwardedReads:
    """The reads that this server, not leading, has asked its leader about.

    - Bound to one leader in one term: when either changes, all of them are lost (bug C3).
    - A question without an answer after an election timeout is lost: messages can be.
    - No question's number is used again, not even by this server's next life.
    """

    __slots__ = ("_asked", "_count", "_question", "_state", "_waiting")

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[int] = []
        """Tokens that go into the next question."""
        self._asked: dict[int, tuple[float, list[int]]] = {}
        """Question -> (when it was asked, the tokens that it is for), in that order."""
        self._question = state.rng.getrandbits(60)
        self._count = 0

    def add(self, token: int) -> None:
        """Take a read in; it is lost at once when no leader is known. Raises Overloaded."""
        limit = self._state.config.pending_reads_max
        if self._state.leader is None:
            self._lost([token], "no leader is known")
        elif self._count >= limit:
            raise Overloaded(f"pending_reads_max: {self._count} reads wait, the limit is {limit}")
        else:
            self._count += 1
            self._waiting.append(token)

    @property
    def deadline(self) -> float:
        """When the oldest question has waited too long."""
        for asked_at, _ in self._asked.values():
            return asked_at + self._state.config.election_timeout_s
        return math.inf

    def flush(self) -> None:
        """Ask the leader one question for everything that waits."""
        if not self._waiting:
            return
        state = self._state
        assert state.leader is not None, "reads wait for a leader, and none is known"
        self._question += 1
        self._asked[self._question] = (state.now, self._waiting)
        self._waiting = []
        state.effects.send(state.leader, ReadIndexRequest(state.term, self._question))

    def answered(self, reply: ReadIndexReply) -> None:
        """Take the leader's answer of this term; one that nobody waits for is ignored."""
        _, tokens = self._asked.pop(reply.question, (0.0, []))
        self._count -= len(tokens)
        if reply.index > 0:
            reads = [ReadState(token, reply.index) for token in tokens]
            self._state.effects.reads.extend(reads)
        elif tokens:
            self._lost(tokens, "refused by the leader")

    def expire(self) -> None:
        """Give up the questions that have waited for an election timeout."""
        timeout_s = self._state.config.election_timeout_s
        while self._asked:
            question, (asked_at, tokens) = next(iter(self._asked.items()))
            if self._state.now < asked_at + timeout_s:
                return
            del self._asked[question]
            self._count -= len(tokens)
            self._lost(tokens, "no answer from the leader")

    def lose(self) -> None:
        """Give up everything: the leader or the term changed."""
        tokens = [token for _, asked in self._asked.values() for token in asked]
        tokens += self._waiting
        self._asked, self._waiting, self._count = {}, [], 0
        if tokens:
            self._lost(tokens, "leader changed")

    def _lost(self, tokens: list[int], reason: str) -> None:
        self._state.effects.reads_lost.extend(tokens)
        self._state.effects.trace.append(ReadsLost(len(tokens), reason))
