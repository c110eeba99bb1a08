"""Elections: the timer, the questions, the answers, the count.

Pure: no I/O, no clock; randomness is the injected generator. It decides about votes and reports how
an election stands; changing the role is the node's business.

Three things together keep elections both live and quiet (any one alone loses liveness when servers
are partially connected: Cloudflare, 2020; bug A8):

- PRE-VOTE (§9.6). Before raising its term a server asks whether it would win. Nothing durable
  changes on either side, so a server that comes back from a partition disturbs nobody (bug A7).
- LEADER STICKINESS (§4.2.3). Who heard a leader within the minimum election timeout refuses both
  kinds of votes, whatever the term, except when the old leader itself asked for the election.
- CHECK QUORUM (§6.2), which is the leader's part: see leader.py.

What stickiness would block for ever is let out elsewhere: a server at a higher term answers an old
leader with its own term, and the leader steps down and catches up (bug A9).

A restart forgets when a leader was last heard, and leases count on that memory, so a server with a
term stays silent for one minimum election timeout (bug C7):

    1. leader L holds a lease from a heartbeat that F acknowledged; the third server is away
    2. F restarts within 5 ms and has forgotten the heartbeat; L is cut off
    3. the third server comes back and asks F: were F to grant, a new leader could write while L
       still serves reads from its lease

Time runs from the disk, not from the decision: while a term or vote is not yet durable the timer
stands still, and it is drawn anew when it is (bug A12: a 200 ms fsync under a 150 ms timeout).

Source: §3.4, §3.6.1, §3.8, §4.2.3, §9.6; §3.10 for transfers.
"""

from __future__ import annotations

import math

from folkmoot.core.raft.messages import VoteReply, VoteRequest
from folkmoot.core.raft.quorum import VoteResult, vote_result
from folkmoot.core.raft.state import Role, State
from folkmoot.core.raft.trace import VoteAnswered
from folkmoot.core.types import NodeId

_GOLDEN_RATIO = 0.6180339887498949
"""Its multiples spread evenly over [0, 1) when taken modulo 1."""


class Election:
    """One server's side of all elections.

    - A vote counts only for exactly the term and kind of the election that is under way, once per
      voter (bug A3), and only voters of the configuration count.
    - The own real vote counts when it is durable, like everybody else's.
    - At most one candidate per term gets this server's vote (§3.4).
    """

    __slots__ = ("_deadline", "_heard_leader", "_silent_until", "_state", "_votes")

    def __init__(self, state: State) -> None:
        self._state = state
        self._votes: dict[NodeId, bool] = {}
        self._heard_leader = -math.inf
        alone = state.configuration.is_alone(state.node_id)
        self._silent_until = -math.inf
        if state.term > 0 and not alone:
            self._silent_until = state.now + state.config.election_timeout_s
        self._deadline = state.now if alone else state.now + self._draw()

    # -- the timer -----------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When to campaign; never for who may not lead, leads, or waits for its own disk."""
        state = self._state
        if (
            state.role is Role.LEADER
            or not state.configuration.may_lead(state.node_id)
            or not state.effects.is_term_durable
        ):
            return math.inf
        return self._deadline

    def reset_timer(self) -> None:
        """Draw a new timeout (§3.4: a fresh one each time keeps votes from splitting for ever)."""
        self._deadline = self._state.now + self._draw()

    def heard_leader(self) -> None:
        """Note a sign of life from the leader of this term."""
        self._heard_leader = self._state.now
        self._deadline = self._state.now + self._draw()

    def _draw(self) -> float:
        """Return a timeout; two servers differ even where their generators do not (bug A12)."""
        state = self._state
        spread = (state.rng.random() + state.node_id * _GOLDEN_RATIO) % 1.0
        if state.term == 0:
            # Nobody ever led: there is no leader to be patient with, only others who also start.
            return state.config.heartbeat_s * (0.5 + spread)
        return state.config.election_timeout_s * (1.0 + spread)

    # -- asking --------------------------------------------------------------------------------

    def campaign(self, term: int, *, pre: bool, transfer: bool = False) -> VoteResult:
        """Ask every other voter for its (pre-)vote in `term`, and return how it stands."""
        state = self._state
        self._votes = {state.node_id: True} if pre else {}
        self.reset_timer()
        request = VoteRequest(term, state.log.last_index, state.log.last_term, pre, transfer)
        for voter in sorted(state.configuration.voters | state.configuration.outgoing):
            if voter != state.node_id:
                state.effects.send(voter, request)
        return self.result()

    def own_vote_durable(self) -> VoteResult:
        """Count the vote for itself, now that it survives a crash (§3.8, bug A13)."""
        state = self._state
        assert state.voted_for == state.node_id, f"own vote counted, given to {state.voted_for}"
        self._votes[state.node_id] = True
        return self.result()

    def count(self, sender: NodeId, reply: VoteReply) -> VoteResult:
        """Count one reply. Stale ones, of another term or kind, change nothing (bug A3)."""
        state = self._state
        expected = {
            Role.PRE_CANDIDATE: (state.term + 1, True),
            Role.CANDIDATE: (state.term, False),
        }.get(state.role)
        if expected != (reply.election_term, reply.pre):
            return VoteResult.PENDING
        # A late refusal of an earlier round of questions does not take a grant back.
        self._votes[sender] = reply.granted or self._votes.get(sender, False)
        return self.result()

    def result(self) -> VoteResult:
        """Return how the present election stands."""
        return vote_result(self._votes, self._state.configuration.quorums)

    # -- answering -----------------------------------------------------------------------------

    def refusal(self, request: VoteRequest) -> str:
        """Return why `request` is refused whatever its term, or "" when it must be considered."""
        state = self._state
        timeout_s = state.config.election_timeout_s
        if request.term < state.term:
            return "old term"
        if state.now < self._silent_until:
            return "restarted"  # bug C7
        # §4.2.3, except for §3.10. A leader is its own sign of life; check-quorum ends that.
        is_led = state.role is Role.LEADER or state.now < self._heard_leader + timeout_s
        if is_led and not request.transfer:
            return "leader is alive"
        return ""

    def consider(self, sender: NodeId, request: VoteRequest) -> None:
        """Grant or refuse by term, vote and log (§3.4, §3.6.1). The term is already adopted."""
        state = self._state
        if not state.is_up_to_date(request.last_index, request.last_term):
            reason = "log is behind"
        elif request.pre:
            # §9.6: would it be granted? Only an election above this server's term could be.
            reason = "" if request.term > state.term else "old term"
        elif state.voted_for not in (None, sender):
            reason = f"voted for {state.voted_for}"
        elif state.leader is not None and state.leader != sender:
            reason = f"led by {state.leader}"
        else:
            reason = ""
        if not reason and not request.pre:
            state.vote_for(sender)
            self.reset_timer()
        self.answer(sender, request, reason)

    def answer(self, sender: NodeId, request: VoteRequest, reason: str) -> None:
        """Reply; an empty reason grants. The reply waits until the vote is durable."""
        state = self._state
        granted = not reason
        state.effects.send(sender, VoteReply(state.term, request.term, request.pre, granted))
        state.effects.trace.append(
            VoteAnswered(sender, request.term, request.pre, granted, reason or "granted")
        )
