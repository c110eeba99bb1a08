"""Where the client connects next, when, and whether the other end is who it should be.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`.

Addresses are tried in ROUNDS, each in a new random order, so that many clients spread over the
servers and do not come back in step. Within a round there is no delay; between rounds it is random
between zero and a bound that doubles (bugs: K3). A connection that has carried a session for a
while resets the bound, so that after a leader's crash the next server is tried at once.

Servers say who leads, and the client moves there if it prefers to. That hint may be stale: the
leader may have crashed a moment ago, or listen on an address that cannot be reached from here. So a
leader is DISTRUSTED for a while after a connection to it failed or was lost, for twice as long each
time; meanwhile the client stays with the server that answers, which forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from folkmoot.core.config import ClientConfig
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.requests import PROTOCOL_VERSION

NEVER = float("inf")
_CAUSES_MAX = 32
_DISTRUST_MAX_S = 300.0
_STABLE_S = 1.0
"""A connection that carried a session for this long was a good one."""


class Connector:
    """Addresses, hints and what went wrong where.

    - `address` is where the client is connected or is connecting to; empty: nowhere.
    - `cluster_id` is that of the first server that said WELCOME, for ever.
    """

    def __init__(self, addresses: Sequence[str], config: ClientConfig, rng: Random) -> None:
        self.addresses = list(dict.fromkeys(addresses))
        self.address = ""
        self.cluster_id = b""
        self.node_id = 0
        self.leader_id = 0
        self.leader_address = ""
        self.attempts = 0
        self.causes: dict[str, str] = {}
        """Address -> why it failed last."""
        self._config = config
        self._rng = rng
        self._round: list[str] = []
        self._next: tuple[int, str] | None = None
        self._moving_to = 0
        self._moves = 0
        self._moved_at = -NEVER
        self._at = 0.0
        self._delay_s = 0.0
        self._ready_at: float | None = None
        self._distrust: dict[int, tuple[float, float]] = {}

    def attempt(self, now: float) -> str | None:
        """Start the next attempt if it is due; give its address."""
        if self.address or now < self._at:
            return None
        if self._next is not None:
            (self._moving_to, self.address), self._next = self._next, None
        else:
            if not self._round:
                self._new_round()
            self.address = self._round.pop()
            self._moving_to = 0
        self.attempts += 1
        return self.address

    def deadline(self) -> float:
        """When `attempt` or `move` must be looked at next."""
        if not self.address:
            return self._at
        return self._trusted_at() if self._wants_leader() else NEVER

    def welcomed(
        self, version: int, cluster_id: bytes, node_id: int, leader_id: int, leader_address: str
    ) -> None:
        """A server has introduced itself. Raises RemoteProtocolError if it is not one of ours."""
        if version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"{self.address} speaks protocol version {version}, this client {PROTOCOL_VERSION}"
            )
        if self.cluster_id and cluster_id != self.cluster_id:
            raise RemoteProtocolError(
                f"{self.address} belongs to cluster {cluster_id.hex()}, this client to "
                f"{self.cluster_id.hex()}: the list of addresses mixes clusters"
            )
        self.cluster_id = cluster_id
        self.node_id = node_id
        self._moving_to = 0
        self.told_leader(leader_id, leader_address)

    def told_leader(self, leader_id: int, leader_address: str) -> None:
        """The connected server says who leads (0: it does not know)."""
        self.leader_id, self.leader_address = leader_id, leader_address

    def ready(self, now: float) -> None:
        """The connection carries the session."""
        self._ready_at = now
        self.causes.pop(self.address, None)

    def should_move(self, now: float) -> bool:
        """Whether the leader is elsewhere, wanted, and trusted to be reachable."""
        return bool(self.address) and self._wants_leader() and now >= self._trusted_at()

    def move(self, now: float) -> None:
        """Leave the connected server for the leader."""
        self._next = (self.leader_id, self.leader_address)
        self._at = now
        self._moves = 1 if now > self._moved_at + 10 * _STABLE_S else self._moves + 1
        self._moved_at = now
        if self._was_stable(now):
            self._delay_s = 0.0
        self._leave()

    def failed(self, reason: str, now: float) -> None:
        """The attempt failed, or the connection was lost."""
        if len(self.causes) < _CAUSES_MAX or self.address in self.causes:
            self.causes[self.address] = reason
        suspect = self.node_id or self._moving_to
        if self._was_stable(now):
            self._delay_s = 0.0
            self._distrust.pop(suspect, None)
        if suspect:
            self._doubt(suspect, now)
        lost, was_ready = self.address, self._ready_at is not None
        self._leave()
        if was_ready:
            self._new_round()
            if len(self._round) > 1 and lost in self._round:
                self._round.remove(lost)
                self._round.insert(0, lost)  # the very last one to try: attempts pop from the end
        if was_ready or not self._round:
            self._at = now + self._rng.uniform(0.0, self._delay_s)
            self._lengthen()
        else:
            self._at = now

    def describe(self) -> str:
        """Where the client has tried to connect, and what became of it."""
        tried = [f"{address} ({cause})" for address, cause in self.causes.items()]
        tried += [address for address in self.addresses if address not in self.causes]
        text = "addresses: " + ", ".join(tried)
        return f"{text}; connected to {self.address}" if self._ready_at is not None else text

    def _was_stable(self, now: float) -> bool:
        return self._ready_at is not None and now - self._ready_at >= _STABLE_S

    def _leave(self) -> None:
        self._ready_at = None
        self.address = ""
        self.node_id = self.leader_id = self._moving_to = 0
        self.leader_address = ""

    def _new_round(self) -> None:
        self._round = list(self.addresses)
        self._rng.shuffle(self._round)

    def _lengthen(self) -> None:
        config = self._config
        self._delay_s = min(
            max(2 * self._delay_s, config.reconnect_delay_s), config.reconnect_delay_max_s
        )

    def _wants_leader(self) -> bool:
        return (
            self._config.prefer_leader
            and self.node_id != 0
            and self.leader_id not in (0, self.node_id)
            and bool(self.leader_address)
        )

    def _trusted_at(self) -> float:
        """When to follow the hint: not too soon after trouble there, nor from hint to hint for ever
        (K5).
        """
        pause_s = (
            0.0 if self._moves < 3 else min(_STABLE_S * 2 ** (self._moves - 3), _DISTRUST_MAX_S)
        )
        return max(self._distrust.get(self.leader_id, (0.0, 0.0))[0], self._moved_at + pause_s)

    def _doubt(self, node_id: int, now: float) -> None:
        if len(self._distrust) >= _CAUSES_MAX:
            self._distrust.clear()
        _, last_s = self._distrust.get(node_id, (0.0, 0.0))
        length_s = min(max(2 * last_s, _STABLE_S), _DISTRUST_MAX_S)
        self._distrust[node_id] = (now + length_s, length_s)
