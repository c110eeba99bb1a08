"""`Raft`: one server's consensus, driven from outside. Inputs in, `Ready` out.

Pure: no I/O, no clock, no randomness of its own, no logging. It is not a server: nobody is listened
to here and nothing is stored. The driver (the server's loop, or a simulation) does, once per turn:

    for every input:  step(sender, message) | propose(groups) | read_index(token) | tick | ...
    ready = raft.ready()
    send ready.messages; hand ready.writes to the disk, in order; later durable(number)
    apply batches up to ready.commit_index, then applied(index); answer ready.reads once applied

This class dispatches and changes roles; the work is done by parts that share one `State`:

    Election        timer, votes              always
    Follower        taking appends            while another leads
    ForwardedReads  asking the leader         while another leads
    Leader          replicating, committing   exists exactly while this server leads

What can be asked of it without changing anything is in its base, `Known` (known.py).

Terms come first (§3.3): who sees a higher term follows it, then handles the message; what comes
from a lower term is refused with the present one, or dropped when it is only an answer (bugs A5,
A6, A9). Vote requests are the exception: stickiness says whether their term is adopted at all.

Source: figure 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from folkmoot.core.batch import Batch, Group
from folkmoot.core.config import RaftConfig
from folkmoot.core.errors import NotLeader, Overloaded
from folkmoot.core.raft.effects import HardState, PrefixPoint, Ready
from folkmoot.core.raft.election import Election
from folkmoot.core.raft.follower import Follower
from folkmoot.core.raft.known import Known
from folkmoot.core.raft.leader import Leader
from folkmoot.core.raft.log import LogView
from folkmoot.core.raft.membership import Configuration
from folkmoot.core.raft.messages import (
    Append,
    AppendReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from folkmoot.core.raft.quorum import VoteResult
from folkmoot.core.raft.reads import ForwardedReads
from folkmoot.core.raft.state import Role, State
from folkmoot.core.raft.trace import MessageIgnored
from folkmoot.core.types import NodeId


class Raft(Known):
    """One member's consensus. See the module for how it is driven.

    - At most one leader per term (§3.4); a leader's log is only appended to (§3.5).
    - A message leaves only when what it reveals is durable (§3.8).
    - Time is the caller's monotonic clock in seconds and never runs backwards.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        config: RaftConfig,
        configuration: Configuration,
        hard_state: HardState,
        log: LogView,
        rng: Random,
        now: float,
        committed_index: int = 0,
    ) -> None:
        """Start, or restart, from what is durable.

        `configuration` is the base: the bootstrap list or the compacted prefix's; one in the log
        overrides it. `committed_index` is the end of that prefix, where the log may have started
        earlier: what is known to be committed, and is applied. A hard state with a term means a
        restart, which is followed by a silence of one minimum election timeout.
        """
        log.limit_cache(config.cache_bytes)
        self._state = State(
            node_id=node_id,
            config=config,
            configuration=configuration,
            hard_state=hard_state,
            log=log,
            committed_index=committed_index,
            rng=rng,
            now=now,
        )
        self._effects = self._state.effects
        self._election = Election(self._state)
        self._follower = Follower(self._state)
        self._forwarded = ForwardedReads(self._state)
        self._leader: Leader | None = None
        self._newest_round = 0
        self._handlers: dict[type, Callable[[NodeId, Any], None]] = {
            AppendReply: self._on_append_reply,
            TimeoutNow: self._on_timeout_now,
            ReadIndexRequest: self._on_read_request,
            ReadIndexReply: self._on_read_reply,
        }

    # -- asking by the clock -------------------------------------------------------------------

    def leader_time(self, now: float) -> int:
        """Return the log time that an entry proposed now would get, in ms. Raises NotLeader."""
        self._advance(now)
        return self._office().log_time()

    def lease_valid(self, now: float) -> bool:
        """Return whether a read of the applied state is linearizable right now (§6.4.1).

        Ask AFTER the state was read: a pause between asking and reading would void the answer
        (bug C6).
        """
        self._advance(now)
        return self._leader is not None and self._state.now < self._leader.lease_until()

    # -- inputs --------------------------------------------------------------------------------

    def step(self, sender: NodeId, message: Message, now: float) -> None:
        """Handle a message. Raises RemoteProtocolError when it is refused; nothing changed then."""
        self._advance(now)
        if type(message) is Append:
            self._on_append(sender, message)
            return
        if type(message) is VoteRequest:
            self._on_vote_request(sender, message)
            return
        if type(message) is VoteReply:
            self._on_vote_reply(sender, message)
            return
        term = self._state.term
        if message.term > term:
            # §3.3: a higher term is followed first, and only then the message handled.
            self._become_follower(message.term)
        elif message.term < term:
            name, reason = type(message).__name__, f"old term {message.term}"
            self._effects.trace.append(MessageIgnored(sender, name, reason))
            return
        self._handlers[type(message)](sender, message)

    def propose(self, groups: Sequence[Group], now: float) -> Batch:
        """Append `groups` as one batch of this term, and return it; the outcome is not yet known.

        Raises NotLeader, Overloaded (uncommitted_bytes_max), Unavailable (leadership is being
        transferred): certainly not applied then.
        """
        self._advance(now)
        return self._office().propose(groups)

    def tick(self, now: float) -> None:
        """Do what has become due; cheap when nothing has."""
        self._advance(now)
        if self._state.now < self.deadline():
            return
        self._forwarded.expire()
        if self._leader is not None:
            if self._leader.is_quorum_lost():
                self._become_follower(self._state.term)
            else:
                self._leader.tick()
        elif self._state.now >= self._election.deadline:
            self._become_pre_candidate()

    def deadline(self) -> float:
        """Return when `tick` must be called at the latest; infinity when time changes nothing."""
        if self._leader is not None:
            return self._leader.deadline
        return min(self._election.deadline, self._forwarded.deadline)

    def durable(self, number: int, now: float) -> None:
        """Learn that every write up to `number` is on disk."""
        self._advance(now)
        was_pending = not self._effects.is_term_durable
        self._effects.durable(number)
        if self._leader is not None:
            self._leader.advance_commit()
        elif was_pending and self._effects.is_term_durable:
            # Bug A12: the time that the disk took is not the other servers' fault.
            self._election.reset_timer()
            if self._state.role is Role.CANDIDATE:
                self._continue_election(self._election.own_vote_durable())

    def read_index(self, token: int, now: float) -> None:
        """Ask up to where this server must have applied to serve a linearizable read (§6.4).

        The answer comes as Ready.reads or Ready.reads_lost. Raises Overloaded (pending_reads_max).
        """
        self._advance(now)
        if self._leader is not None:
            self._leader.reads.add(None, token)
        else:
            self._forwarded.add(token)

    def applied(self, index: int) -> None:
        """Learn that the driver has applied everything up to `index`."""
        state = self._state
        limit = min(state.commit_index, self._effects.durable_index)
        assert state.applied_index <= index <= limit, (
            f"applied {index} after {state.applied_index}, committed and durable is {limit}"
        )
        state.applied_index = index
        state.log.applied(index)

    def compact(self, index: int, now: float) -> None:
        """Let go of the log up to `index`, a boundary that is applied here and in the prefix.

        Call it before the storage gives those batches up. Nothing happens where the log starts
        later already.
        """
        self._advance(now)
        if index > self._state.log.start_index:
            self._state.compact(index)
            if self._leader is not None:
                self._leader.log_compacted()

    def install(
        self, index: int, term: int, log_time: int, configuration: Configuration, now: float
    ) -> None:
        """Discard the log, and go on behind the prefix that ends with `index` (figure 5.3).

        Only after `may_install`. It is one write among the others; once that is durable, Ready says
        "apply up to `index`", which here means: restore the prefix. No timer is touched (bug A15):
        the leader, who is there, goes on sending heartbeats.
        """
        self._advance(now)
        assert self.may_install(index, term), (
            f"install of {index} in term {term}, of which {self.status()} has no use"
        )
        self._state.install(PrefixPoint(index, term, log_time), configuration)

    def transfer_leadership(self, target: NodeId | None, now: float) -> None:
        """Start to hand leadership to `target`, or to the best follower (§3.10).

        Proposals are refused until it is over, at most an election timeout. Raises NotLeader,
        UsageError (the target cannot lead), Unavailable (nobody to hand over to, or one is under
        way).
        """
        self._advance(now)
        self._office().transfer(target)

    def set_commit_interest(self, interested: bool) -> None:
        """Say whether clients wait on this server; its leader learns it by the next reply."""
        self._follower.wants_commit = interested

    def log_read(self, peer: NodeId, batches: Sequence[Batch]) -> None:
        """Answer a Ready.log_reads: batches from its first_index on, or none if reading failed."""
        if self._leader is not None:
            self._leader.log_read(peer, batches)

    def ready(self) -> Ready:
        """Take all effects since the last call."""
        if self._leader is not None:
            self._leader.flush()
        else:
            self._forwarded.flush()
        return self._effects.take(self._state.commit_index)

    # -- messages ------------------------------------------------------------------------------

    def _on_append(self, sender: NodeId, message: Append) -> None:
        state = self._state
        if message.term < state.term:
            self._follower.refuse_old_term(sender, message)
            return
        first_new = self._follower.judge(message)
        if message.term > state.term:
            self._become_follower(message.term, sender)
        elif state.role is Role.LEADER or state.leader not in (None, sender):
            # §3.2, election safety. Nothing that could be done here would be right.
            raise AssertionError(
                f"nodes {sender} and {state.leader} both lead term {state.term}, says node "
                f"{state.node_id}"
            )
        elif state.leader is None:
            # §3.4, bug A5: whoever campaigns in this term has lost it.
            self._become_follower(state.term, sender)
        self._election.heard_leader()
        self._follower.accept(sender, message, first_new)

    def _on_append_reply(self, sender: NodeId, reply: AppendReply) -> None:
        if self._leader is not None:
            self._leader.handle_reply(sender, reply)

    def _on_vote_request(self, sender: NodeId, request: VoteRequest) -> None:
        refusal = self._election.refusal(request)
        if refusal:
            self._election.answer(sender, request, refusal)
            return
        # §9.6: a question changes nothing; a request's term is adopted (§3.3).
        if request.term > self._state.term and not request.pre:
            self._become_follower(request.term)
        self._election.consider(sender, request)

    def _on_vote_reply(self, sender: NodeId, reply: VoteReply) -> None:
        if reply.term > self._state.term:
            self._become_follower(reply.term)
        else:
            self._continue_election(self._election.count(sender, reply))

    def _on_timeout_now(self, sender: NodeId, message: TimeoutNow) -> None:
        state = self._state
        if sender == state.leader and state.configuration.may_lead(state.node_id):
            # §3.10: the leader has checked that this log is complete; no pre-vote, no waiting.
            self._become_candidate(transfer=True)
        else:
            event = MessageIgnored(sender, "TimeoutNow", "not from the leader, or not to a voter")
            self._effects.trace.append(event)

    def _on_read_request(self, sender: NodeId, request: ReadIndexRequest) -> None:
        if self._leader is not None:
            try:
                self._leader.reads.add(sender, request.question)
            except Overloaded:
                pass
            else:
                return
        self._effects.send(sender, ReadIndexReply(self._state.term, request.question, 0))

    def _on_read_reply(self, sender: NodeId, reply: ReadIndexReply) -> None:
        if sender == self._state.leader and self._leader is None:
            self._forwarded.answered(reply)

    # -- roles ---------------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: NodeId | None = None) -> None:
        """Follow `leader` in `term`, or wait for one. The vote of a term survives this."""
        state = self._state
        self._leave_office()
        if term > state.term or leader != state.leader:
            self._forwarded.lose()
        if term > state.term:
            state.raise_term(term)
        state.set_role(Role.FOLLOWER)
        state.set_leader(leader)
        self._election.reset_timer()

    def _become_pre_candidate(self) -> None:
        """Ask whether an election would be won, changing nothing that lasts (§9.6)."""
        state = self._state
        self._forwarded.lose()
        state.set_role(Role.PRE_CANDIDATE)
        state.set_leader(None)
        self._continue_election(self._election.campaign(state.term + 1, pre=True))

    def _become_candidate(self, *, transfer: bool = False) -> None:
        """Raise the term, vote for itself, and ask for votes once that is durable (§3.4, §3.8)."""
        state = self._state
        self._forwarded.lose()
        state.raise_term(state.term + 1, state.node_id)
        state.set_role(Role.CANDIDATE)
        state.set_leader(None)
        self._continue_election(self._election.campaign(state.term, pre=False, transfer=transfer))

    def _continue_election(self, result: VoteResult) -> None:
        if result is VoteResult.PENDING:
            return
        if result is VoteResult.LOST:
            self._become_follower(self._state.term)
        elif self._state.role is Role.PRE_CANDIDATE:
            self._become_candidate()
        else:
            self._become_leader()

    def _become_leader(self) -> None:
        state = self._state
        assert state.role is Role.CANDIDATE, f"{state.role} won an election"
        state.set_role(Role.LEADER)
        state.set_leader(state.node_id)
        self._leader = Leader(state, self._newest_round)

    def _leave_office(self) -> None:
        """Forget everything about leading; what was proposed may still be committed by others."""
        if self._leader is not None:
            self._newest_round = self._leader.newest_round
            self._leader.reads.lose()
            self._leader = None

    # -- small ---------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if now > self._state.now:
            self._state.now = now

    def _office(self) -> Leader:
        if self._leader is None:
            leader = self._state.leader
            raise NotLeader(
                f"node {self._state.node_id} does not lead"
                + (f"; node {leader} does" if leader is not None else "; no leader is known")
            )
        return self._leader
