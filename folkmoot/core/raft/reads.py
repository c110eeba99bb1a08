"""Linearizable reads by read index (§6.4): the leader's half, and the half of everybody else.

Pure: no I/O, no clock, no randomness. It reads no state machine: a token goes in, and comes out
with the index that must be applied before the read may be answered, or comes out as lost.

The leader: all reads that wait at ready() share ONE round, which starts after they arrived, and
take the commit index of that moment. When a quorum has acknowledged the round, nobody else can have
committed anything before the round started, so the index is recent enough. Nothing starts before an
entry of the leader's own term is committed: until then its commit index may lag (§6.4, bug C1).

Everybody else asks the leader it follows. Both halves live and die with one leader in one term:

    1. follower F takes a read of its client and asks leader A of term 5
    2. A is deposed; B leads term 6 and commits a write, which another client sees acknowledged
    3. A's delayed answer of term 5 arrives: its index lies before that write (bug C3)

The term check drops the answer of step 3, and F gave the read up when it learnt of term 6.

Nobody forwards what was forwarded to it (bug K5): who is asked and does not lead refuses.

Source: §6.4.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import attrs

from folkmoot.core.errors import Overloaded
from folkmoot.core.raft.effects import ReadState, tokens_in_parts
from folkmoot.core.raft.messages import TOKENS_MAX, ReadIndexReply, ReadIndexRequest
from folkmoot.core.raft.state import State
from folkmoot.core.raft.trace import ReadsLost
from folkmoot.core.types import NodeId


@attrs.define
class _Round:
    number: int
    index: int
    reads: list[tuple[NodeId | None, Sequence[int]]]
    """(who asked, None for this server itself; tokens)."""


class LeaderReads:
    """The leader's reads: waiting for a round, or waiting for their round's acknowledgement.

    - A read's round starts after the read arrived; its index is the commit index at that moment.
    - Rounds are confirmed in order; a later one confirms all before it.
    """

    __slots__ = ("_rounds", "_state", "_waiting", "count")

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[tuple[NodeId | None, Sequence[int]]] = []
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

    def add(self, asker: NodeId | None, tokens: Sequence[int]) -> None:
        """Take reads in. Raises Overloaded beyond pending_reads_max; nothing changed then."""
        limit = self._state.config.pending_reads_max
        if self.count + len(tokens) > limit:
            raise Overloaded(f"pending_reads_max: {self.count} reads wait, the limit is {limit}")
        self.count += len(tokens)
        self._waiting.append((asker, tokens))

    def begin(self, number: int) -> None:
        """Put all waiting reads on the round that starts now."""
        self._rounds.append(_Round(number, self._state.commit_index, self._waiting))
        self._waiting = []

    def confirm(self, number: int) -> list[tuple[NodeId, int]]:
        """Answer the reads of every round up to `number`, which a quorum has acknowledged.

        Returns (who asked, index) for those that other servers asked for: they must also be able to
        learn that the index is committed.
        """
        told: list[tuple[NodeId, int]] = []
        while self._rounds and self._rounds[0].number <= number:
            confirmed = self._rounds.popleft()
            for asker, tokens in confirmed.reads:
                self.count -= len(tokens)
                if asker is None:
                    reads = [ReadState(token, confirmed.index) for token in tokens]
                    self._state.effects.reads.extend(reads)
                else:
                    reply = ReadIndexReply(self._state.term, tokens, confirmed.index)
                    self._state.effects.send(asker, reply)
                    told.append((asker, confirmed.index))
        return told

    def lose(self) -> None:
        """Give up every read: this server no longer leads. Other servers notice that themselves."""
        everything = [*self._waiting, *[read for r in self._rounds for read in r.reads]]
        own = [token for asker, tokens in everything if asker is None for token in tokens]
        if own:
            self._state.effects.reads_lost.extend(own)
            self._state.effects.trace.append(ReadsLost(len(own), "leadership lost"))
        self._waiting, self.count = [], 0
        self._rounds.clear()


class ForwardedReads:
    """The reads that this server, not leading, has asked its leader about.

    - Bound to one leader in one term: when either changes, all of them are lost (bug C3).
    - One without an answer after an election timeout is lost: requests and replies can be.
    """

    __slots__ = ("_asked", "_state", "_waiting")

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: list[int] = []
        self._asked: dict[int, float] = {}
        """Token -> when it was asked, in that order."""

    def add(self, token: int) -> None:
        """Take a read in; it is lost at once when no leader is known. Raises Overloaded."""
        limit = self._state.config.pending_reads_max
        count = len(self._waiting) + len(self._asked)
        if self._state.leader is None:
            self._lost([token], "no leader is known")
        elif count >= limit:
            raise Overloaded(f"pending_reads_max: {count} reads wait, the limit is {limit}")
        else:
            self._waiting.append(token)

    @property
    def deadline(self) -> float:
        """When the oldest question has waited too long."""
        for asked_at in self._asked.values():
            return asked_at + self._state.config.election_timeout_s
        return math.inf

    def flush(self) -> None:
        """Ask the leader about everything that waits, in as few messages as possible."""
        if not self._waiting:
            return
        state, tokens = self._state, self._waiting
        assert state.leader is not None, "reads wait for a leader, and none is known"
        for part in tokens_in_parts(tokens, TOKENS_MAX):
            state.effects.send(state.leader, ReadIndexRequest(state.term, part))
        self._asked.update(dict.fromkeys(tokens, state.now))
        self._waiting = []

    def answered(self, reply: ReadIndexReply) -> None:
        """Take the leader's answer of this term; tokens that nobody waits for are ignored."""
        known = [token for token in reply.tokens if self._asked.pop(token, None) is not None]
        if reply.index > 0:
            reads = [ReadState(token, reply.index) for token in known]
            self._state.effects.reads.extend(reads)
        elif known:
            self._lost(known, "refused by the leader")

    def expire(self) -> None:
        """Give up the questions that have waited for an election timeout."""
        timeout_s = self._state.config.election_timeout_s
        expired = []
        for token, asked_at in self._asked.items():
            if self._state.now < asked_at + timeout_s:
                break
            expired.append(token)
        for token in expired:
            del self._asked[token]
        if expired:
            self._lost(expired, "no answer from the leader")

    def lose(self) -> None:
        """Give up everything: the leader or the term changed."""
        tokens = [*self._asked, *self._waiting]
        self._asked, self._waiting = {}, []
        if tokens:
            self._lost(tokens, "leader changed")

    def _lost(self, tokens: list[int], reason: str) -> None:
        self._state.effects.reads_lost.extend(tokens)
        self._state.effects.trace.append(ReadsLost(len(tokens), reason))
