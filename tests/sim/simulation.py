"""One run: a cluster, its clients and its faults, from the options; then healing and rest.

    faults   for `duration_s`: the nemesis strikes, applications work
    healing  everything is up, all ways are open, nothing is slow; applications begin nothing new
    rest     within ten election timeouts there is a leader, a command commits, all servers have
             applied the same, and every call has ended as ok, failed or unknown; compactions end,
             logs are trimmed, and so once more for whatever is left

A SCRIPT may take the place of the nemesis: a function that is called with the simulation when it
has begun, and schedules what it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, TypeVar

import attrs

from folkmoot.core.config import Member as MemberConfig
from folkmoot.core.machine import Registry
from folkmoot.core.raft import Role
from folkmoot.core.types import NodeId
from folkmoot.primitives import BUILTIN_MACHINES
from tests.sim.checks import Checker, Checks, Violation
from tests.sim.checks.catalogue import CHECKERS
from tests.sim.checks.consensus import StateMachineSafety
from tests.sim.checks.ledger import Ledger
from tests.sim.checks.sessions import ExactlyOnce
from tests.sim.client import SimClient
from tests.sim.member import Member
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.options import Options
from tests.sim.scale import scaled
from tests.sim.scheduler import Clock, Scheduler
from tests.sim.trace import Trace

if TYPE_CHECKING:
    from typing import Self

Script = Callable[["Simulation"], None]
C = TypeVar("C", bound=Checker)
REGISTRY = Registry.of(BUILTIN_MACHINES)
REST_TIMEOUTS = 10
"""So many election timeouts after healing there is a leader and everybody has caught up."""
TRANSFER_S = 20.0
"""So much longer it may take where a server must be sent a prefix."""
COMPACTED_S = 20.0
"""So long after that no compaction is due or under way, and the log is trimmed."""


@attrs.frozen
class Outcome:
    """A run without a violation."""

    options: Options
    digest: str
    events: int
    simulated_s: float
    counts: dict[str, int]


class Failure(AssertionError):
    """A run with a violation: what, how to replay it, and the last part of the trace."""


class Simulation:
    """Everything of one run."""

    def __init__(self, options: Options, script: Script | None = None) -> None:
        self.options = options
        self.registry = REGISTRY
        self.scheduler = Scheduler()
        self.trace = Trace(self.scheduler)
        self.network = Network(options, self.scheduler, self.trace, self.random("network"))
        self.checks = Checks(self, CHECKERS)
        self.ledger = self.checker(Ledger)
        self.safety = self.checker(StateMachineSafety)
        self.exactly_once = self.checker(ExactlyOnce)
        self.is_healing = False
        self._script = script
        self._world_rng = self.random("world")
        self.members: dict[NodeId, Member] = {}
        self.by_address: dict[str, Member] = {}
        self.clients: dict[int, SimClient] = {}
        self._lives: dict[int, int] = {}
        self.nemesis = Nemesis(self, self.random("nemesis"))
        self._make_members()

    def random(self, purpose: str) -> Random:
        """A generator for one purpose, so that no purpose disturbs another."""
        return Random(f"folkmoot {self.options.seed} {purpose}")

    def checker(self, kind: type[C]) -> C:
        """The checker of this kind."""
        return next(one for one in self.checks.checkers if isinstance(one, kind))

    def _make_members(self) -> None:
        ids = [NodeId(i) for i in range(1, self.options.nodes + 1)]
        configs = tuple(
            MemberConfig(node_id=i, peer_address=f"peer-{i}:1", client_address=f"node-{i}:1")
            for i in ids
        )
        for node_id in ids:
            member = Member(self, node_id, self._new_clock())
            member.configure(configs)
            self.members[node_id] = member
            self.by_address[f"node-{node_id}:1"] = member
        for source in self.members.values():
            for target in self.members.values():
                if source is not target:
                    source.connect_to(target)

    def _new_clock(self) -> Clock:
        rng = self._world_rng
        return Clock(self.scheduler, self.draw_rate(rng), rng.uniform(10.0, 10_000.0))

    def draw_rate(self, rng: Random) -> float:
        """A clock's rate within the spread; a wide spread goes from half to double."""
        spread = self.options.clock_spread
        rate = 1.0 + rng.uniform(-spread, spread)
        return rate if spread < 0.5 or rate < 1.0 else 1.0 + 2 * (rate - 1.0)

    # -- what happens to members and clients ---------------------------------------------------

    def power_cut(self) -> bool:
        """Whether the next crash takes what was not synced."""
        return self._world_rng.random() < self.options.power_cut

    def crashed(self, member: Member) -> None:
        """A server is down; it starts again, at once or later."""
        rng = self._world_rng
        if self.is_healing or rng.random() < self.options.instant_restart:
            delay_s = rng.random() * 0.03
        else:
            delay_s = rng.uniform(0.3, 3.0)
        if self.options.crash_rate and not self.is_healing and rng.random() < 0.2:
            # The power goes again while it recovers.
            member.disk.files.cut_power_at = member.disk.files.operations + rng.randint(1, 4)
        self.scheduler.after(delay_s, member.start)

    def start_client(self, number: int) -> None:
        """Start a client under a number, unless one lives."""
        old = self.clients.get(number)
        if old is None or not old.is_alive:
            life = self._lives[number] = self._lives.get(number, 0) + 1
            clock = self._new_clock() if old is None else old.clock
            self.clients[number] = SimClient(self, number, life, clock)
            if self.is_healing:
                self.clients[number].application.drain()

    def leader(self) -> Member | None:
        """The leader of the highest term among those that are up."""
        leading = [m for m in self.members.values() if m.is_up and m.raft.role is Role.LEADER]
        return max(leading, key=lambda member: member.raft.term, default=None)

    def some_member(self) -> Member:
        """A server that has applied everything."""
        up = [member for member in self.members.values() if member.is_up]
        return max(up, key=lambda member: member.multiplexer.index)

    # -- the run -------------------------------------------------------------------------------

    def run(self) -> Self:
        """Run to the end. Raises Violation, or whatever the product raises."""
        for member in self.members.values():
            self.scheduler.after(self._world_rng.random() * 0.05, member.start)
        for number in range(self.options.clients):
            self.scheduler.after(self._world_rng.random() * 0.5, self.start_client, number)
        if self._script is not None:
            self._script(self)
        else:
            self.nemesis.start()
        self.scheduler.run(self.options.duration_s)
        self._heal()
        self._demand_rest()
        self.checks.finished()
        self.trace.count("segments sealed", self._segments())
        return self

    def _heal(self) -> None:
        """Undo everything that the nemesis did."""
        self.trace.add("healing")
        self.is_healing = self.nemesis.is_over = self.network.calm = True
        self.network.heal()
        for member in self.members.values():
            member.clock.set_rate(1.0)
            member.disk.slow_s = 0.0
            member.strike = ""
            member.disk.calm()
            if not member.is_up:
                member.start()
            member.resume()
            member.wake()
        for number, client in list(self.clients.items()):
            client.clock.set_rate(1.0)
            client.resume()
            if client.is_alive:
                client.application.drain()
            else:
                self.start_client(number)

    def _demand_rest(self) -> None:
        timeout_s = next(iter(self.members.values())).config.raft.election_timeout_s
        self._within(REST_TIMEOUTS * timeout_s, self._is_led, "there is no leader")
        for client in self.clients.values():
            client.application.probe()
        patience_s = REST_TIMEOUTS * timeout_s + 2 * self.options.session_timeout_s
        self._within(patience_s, self._calls_ended, "calls have not ended")
        patience_s = REST_TIMEOUTS * timeout_s + (TRANSFER_S if self.options.compacts else 0.0)
        self._within(patience_s, self._is_level, "servers have not caught up")
        self._within(COMPACTED_S, self._is_compacted, "servers have not compacted their logs")
        for member in self.members.values():
            self.checks.settled(member)
        if self.options.compacts:
            self._compact_everything()

    def _compact_everything(self) -> None:
        """Once more, and now up to the end: what is left of the log is what is to be kept."""
        for member in self.members.values():
            member.replica.compacting.want(member.multiplexer.index)
            member.wake()
        self._within(
            COMPACTED_S, self._is_compacted, "servers have not compacted all of their logs"
        )
        for member in self.members.values():
            self.checks.rested(member)

    def _within(self, limit_s: float, done: Callable[[], bool], otherwise: str) -> None:
        if not (done() or self.scheduler.run(self.scheduler.now + limit_s, done)):
            raise Violation(f"Liveness: {otherwise} {limit_s:g} s after healing\n{self.state()}")

    def _is_led(self) -> bool:
        leader = self.leader()
        return leader is not None and leader.raft.is_leader_ready

    def _calls_ended(self) -> bool:
        return all(client.application.is_idle for client in self.clients.values())

    def _is_level(self) -> bool:
        indexes = {
            (m.multiplexer.index, m.raft.last_index) if m.is_up else (0, 0)
            for m in self.members.values()
        }
        return len(indexes) == 1 and all(a == b > 0 for a, b in indexes)

    def _is_compacted(self) -> bool:
        return all(member.is_up and member.is_at_rest for member in self.members.values())

    def state(self) -> str:
        """Where everybody stands, for a failure."""
        lines = []
        for member in self.members.values():
            if member.is_up:
                raft = member.raft
                where = f"{raft.role} term {raft.term} leader {raft.leader}"
                what = f"applied {member.multiplexer.index} committed {raft.commit_index}"
                lines.append(f"server {member.name}: {where} {what} last {raft.last_index}")
            else:
                lines.append(f"server {member.name}: down")
        for client in self.clients.values():
            calls = [f"{one.name}:{one.body[:40]!r}" for one in client.application.pending]
            claims = [f"{one.target.name}={one.state}" for one in client.application.claims]
            where = f"{client.core.state} {client.core.session} at {client.core.connector.address}"
            lines.append(f"client {client.name}: {where} {calls} {claims}")
        return "\n".join(lines)

    def _segments(self) -> int:
        stores = [member.disk.store for member in self.members.values()]
        return sum(len(store._log.segments) - 1 for store in stores)

    def outcome(self) -> Outcome:
        """What came of it."""
        scheduler = self.scheduler
        return Outcome(
            self.options,
            self.trace.digest(),
            scheduler.events,
            scheduler.now,
            self.trace.counts,
        )


def simulate(options: Options, script: Script | None = None, *, tail: int = 60) -> Outcome:
    """Run to the end. Raises Failure, with the line that replays it, for whatever goes wrong."""
    simulation = Simulation(options, script)
    try:
        with scaled(options):
            return simulation.run().outcome()
    except Exception as error:
        scripted = "" if script is None else f" with script {getattr(script, '__name__', script)}"
        raise Failure(
            f"{type(error).__name__}: {error}\n"
            f"--- options: {options.describe()}\n"
            f"--- the last {tail} records, up to {simulation.scheduler.now:.6f} s\n"
            f"{simulation.trace.last(tail)}\n"
            f"--- replay: make sim SEED={options.seed}{scripted}"
        ) from error
