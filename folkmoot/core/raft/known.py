"""What may be asked of a server's consensus at any time: its role, its log's ends, its followers.

Pure: no I/O, no clock, no randomness. Nothing here changes anything; `Raft` (node.py), which does,
is the only subclass.
"""

from __future__ import annotations

from typing import Any

from folkmoot.core.raft.effects import Effects
from folkmoot.core.raft.leader import Leader
from folkmoot.core.raft.log import LogView
from folkmoot.core.raft.membership import Configuration, as_of
from folkmoot.core.raft.state import Role, State
from folkmoot.core.types import NodeId


class Known:
    """The readable side of one member's consensus."""

    _state: State
    _effects: Effects
    _leader: Leader | None
    """Exists exactly while this server leads."""

    @property
    def node_id(self) -> NodeId:
        """This server."""
        return self._state.node_id

    @property
    def role(self) -> Role:
        """What this server is at the moment."""
        return self._state.role

    @property
    def term(self) -> int:
        """The present term."""
        return self._state.term

    @property
    def leader(self) -> NodeId | None:
        """Who leads this term, as far as is known here."""
        return self._state.leader

    @property
    def log(self) -> LogView:
        """The log; drivers read from it what they apply."""
        return self._state.log

    @property
    def commit_index(self) -> int:
        """The highest index known to be committed; it may be ahead of the own disk."""
        return self._state.commit_index

    @property
    def durable_index(self) -> int:
        """The end of the log's durable part."""
        return self._effects.durable_index

    @property
    def last_index(self) -> int:
        """The end of the log."""
        return self._state.log.last_index

    @property
    def log_time(self) -> int:
        """The log's last time, in milliseconds."""
        return self._state.log.last_log_time

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the last in the log, committed or not (§4.1)."""
        return self._state.configuration

    @property
    def is_leader_ready(self) -> bool:
        """True when this server leads and has applied the `Initialize` of its term."""
        leader = self._leader
        return leader is not None and self._state.applied_index >= leader.initialize_index

    def configuration_at(self, index: int) -> Configuration:
        """Return the last configuration at or below `index`, a boundary: what a prefix up to there
        has to remember.
        """
        log = self._state.log
        assert log.is_boundary(index), (
            f"configuration at {index}, no boundary of a log {log.start_index}..{log.last_index}"
        )
        return as_of(index, self._state.base, log.configuration_batches)

    # -- the compacted prefix ------------------------------------------------------------------

    def may_install(self, index: int, term: int) -> bool:
        """Return whether a prefix that ends with `index` of `term` is of use here (figure 5.3).

        It is not when it is older than what is committed here (bug E3), nor when the log holds its
        last entry: then all entries up to there are the same (§3.5), and appends will do. And it
        must have come from a leader of this very term.
        """
        state = self._state
        if state.leader in (None, state.node_id) or term > state.term:
            return False
        return not self.has_entry(index, term)

    def has_entry(self, index: int, term: int) -> bool:
        """Return whether everything up to the entry `index` of `term` is here: no prefix that ends
        with it will ever be of use again.
        """
        state, log = self._state, self._state.log
        if index <= state.commit_index:
            return True
        return index <= log.last_index and log.term_at(index) == term

    def followers_below_log(self) -> list[NodeId]:
        """Return whom only the prefix can help, of those heard from within an election timeout."""
        return [] if self._leader is None else self._leader.followers_below_log()

    def needs_prefix(self, peer: NodeId) -> bool:
        """Return whether this server leads, and only the prefix can help `peer`."""
        return self._leader is not None and self._leader.needs_prefix(peer)

    def reachable_match(self, now: float) -> int | None:
        """Return up to where all others heard from within an election timeout have the log.

        What lies behind it is still of use to one of them. None when this server does not lead, or
        nobody else is heard from. A new leader knows nothing yet, and says 0.
        """
        return None if self._leader is None else self._leader.reachable_match(now)

    # -- for operators -------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to know, as plain data."""
        state = self._state
        status = {
            "node_id": int(state.node_id),
            "role": str(state.role),
            "term": state.term,
            "voted_for": state.voted_for and int(state.voted_for),
            "leader": state.leader and int(state.leader),
            "commit_index": state.commit_index,
            "applied_index": state.applied_index,
            "durable_index": self._effects.durable_index,
            "first_index": state.log.first_index,
            "last_index": state.log.last_index,
            "log_time": state.log.last_log_time,
            "configuration": {"index": state.configuration.index, **state.configuration.encode()},
        }
        if self._leader is not None:
            status.update(self._leader.status())
        return status
