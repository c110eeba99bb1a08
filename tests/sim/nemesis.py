"""The nemesis: draws faults from the seed, at the rates that the options say, and undoes them.

It knows nothing of what the cluster does, except who leads: some faults aim at the leader, where
they hurt most.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from folkmoot.core.errors import FolkmootError, StorageFull
from folkmoot.core.raft import Role
from tests.sim.network import Way

if TYPE_CHECKING:
    from tests.sim.client import SimClient
    from tests.sim.member import Member
    from tests.sim.simulation import Simulation

POINTS = ("after a send", "before a sync", "after a sync")
COMPACTING = ("between steps", "inside a step", "inside an install")


class Nemesis:
    """All faults of one run."""

    def __init__(self, world: Simulation, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        options = world.options
        rates: list[tuple[float, Callable[[], None]]] = [
            (options.crash_rate, self.crash),
            (options.partition_rate, self.partition),
            (options.one_way_rate, self.one_way),
            (options.break_rate, self.break_connection),
            (options.pause_rate, self.pause),
            (options.transfer_rate, self.transfer),
            (options.stop_rate, self.stop),
            (options.clock_change_rate, self.change_clock),
            (options.slow_disk_rate, self.slow_disk),
            (options.disk_failure_rate, self.fail_disk),
            (options.full_disk_rate, self.fill_disk),
            (options.want_rate, self.want_prefix),
            (options.away_rate, self.send_away),
            (options.client_crash_rate, self.crash_client),
            (options.client_pause_rate, self.pause_client),
        ]
        self._acts = [(rate, act) for rate, act in rates if rate]
        self._rate = sum(rate for rate, _ in self._acts)
        self.is_over = False

    def start(self) -> None:
        """Begin."""
        if self._rate:
            self._later()

    def _later(self) -> None:
        self.world.scheduler.after(self.rng.expovariate(self._rate), self._strike)

    def _strike(self) -> None:
        if self.is_over:
            return
        self._later()
        self.rng.choices([act for _, act in self._acts], [rate for rate, _ in self._acts])[0]()

    # -- who -----------------------------------------------------------------------------------

    def _victim(self) -> Member | None:
        """A server that is up; more often than not the leader."""
        up = [member for member in self.world.members.values() if member.is_up]
        if not up:
            return None
        leading = [member for member in up if member.raft.role is Role.LEADER]
        return self.rng.choice(leading if leading and self.rng.random() < 0.5 else up)

    def _a_client(self) -> SimClient | None:
        living = [client for client in self.world.clients.values() if client.is_alive]
        return self.rng.choice(living) if living else None

    # -- servers -------------------------------------------------------------------------------

    def crash(self) -> None:
        """Crash a server: now, or at a point inside its work."""
        member = self._victim()
        if member is None:
            return
        kind = self.rng.random()
        if kind < 0.3:
            member.crash(power_cut=self.world.power_cut())
        elif kind < 0.65:
            member.strike = self.rng.choice(POINTS)
        elif kind < 0.9 and self.world.options.compacts:
            member.strike = self.rng.choice(COMPACTING)
        else:
            member.disk.cut_power_soon(4)

    def stop(self) -> None:
        """Ask a server to stop gracefully."""
        member = self._victim()
        if member is not None and not member.is_paused:
            member.stop()

    def pause(self) -> None:
        """Let a server stand still, for a moment or beyond all timeouts."""
        member = self._victim()
        if member is not None and not member.is_paused:
            self.world.trace.count("pauses")
            member.pause()
            self.world.scheduler.after(self._while(), member.resume)

    def transfer(self) -> None:
        """Ask the leader to hand over, to anybody or to somebody."""
        for member in self.world.members.values():
            if member.is_up and not member.is_paused and member.raft.role is Role.LEADER:
                others = [node_id for node_id in self.world.members if node_id != member.node_id]
                target = self.rng.choice([None, *others])
                try:
                    member.raft.transfer_leadership(target, member.local_now())
                except FolkmootError:
                    return
                self.world.trace.add("transfer", member.name, int(target or 0))
                member.wake()
                return

    def change_clock(self) -> None:
        """Let a server's or a client's clock run at another rate."""
        spread = self.world.options.clock_spread
        everybody: list[Member | SimClient] = [
            *self.world.members.values(),
            *self.world.clients.values(),
        ]
        somebody = self.rng.choice(everybody)
        somebody.clock.set_rate(self.world.draw_rate(self.rng))
        if spread:
            self.world.trace.count("clock changes")
        somebody.wake()

    # -- disks ---------------------------------------------------------------------------------

    def slow_disk(self) -> None:
        """Let a server's syncs take long for a while."""
        member = self._victim()
        if member is not None:
            self.world.trace.count("slow disks")
            member.disk.slow_s = self.rng.choice((0.02, 0.2, 0.7))
            self.world.trace.add("slow disk", member.name, member.disk.slow_s)

            def quick() -> None:
                member.disk.slow_s = 0.0

            self.world.scheduler.after(self._while(), quick)

    def fail_disk(self) -> None:
        """Let one of a server's next operations on its disk fail: it must stop, save that a full
        disk only ends a compaction.
        """
        member = self._victim()
        if member is not None:
            operation = self.rng.choice(("write", "sync"))
            error = StorageFull("the disk is full") if self.rng.random() < 0.5 else None
            member.disk.files.fail(operation, self.rng.randint(1, 3), error)
            self.world.trace.add("failing disk", member.name, operation)

    def fill_disk(self) -> None:
        """Let next to nothing be free on a server's disk for a while."""
        member = self._victim()
        if member is not None:
            free_bytes = self.rng.randint(0, 1 << 13)
            member.disk.limit(free_bytes)
            self.world.trace.add("full disk", member.name, free_bytes)
            self.world.scheduler.after(self._while(), member.disk.limit, None)

    # -- compaction ----------------------------------------------------------------------------

    def want_prefix(self) -> None:
        """Want a prefix that speaks for what a server has applied, as a backup does."""
        member = self._victim()
        if member is not None and not member.is_paused:
            self.world.trace.add("want", member.name, member.multiplexer.index)
            member.replica.compacting.want(member.multiplexer.index)
            member.wake()

    def send_away(self) -> None:
        """Let a server be down for long."""
        member = self._victim()
        if member is not None:
            self.world.trace.count("long absences")
            member.away_until = self.world.scheduler.now + self.rng.uniform(2.0, 6.0)
            member.crash(power_cut=self.world.power_cut())

    # -- network -------------------------------------------------------------------------------

    def partition(self) -> None:
        """Divide the servers, in one of the ways that are known to hurt, for a while."""
        names = [member.name for member in self.world.members.values()]
        self.rng.shuffle(names)
        leader = self.world.leader()
        if leader is not None and self.rng.random() < 0.5:
            names.remove(leader.name)
            names.insert(0, leader.name)
        shape = self.rng.choice((isolate_one, halves, bridge, ring, at_random))
        ways = shape(names, self.rng)
        for client in self.world.clients.values():
            if self.rng.random() < 0.3:  # it is on one server's side, whoever else that reaches
                reached = self.rng.choice(names)
                cut_off = [name for name in names if (reached, name) in ways]
                ways |= {way for name in cut_off for way in both(client.name, name)}
        self._block(ways, shape.__name__)

    def one_way(self) -> None:
        """Let one server, or one way between two, be heard of no more, though it hears."""
        names = [member.name for member in self.world.members.values()]
        one, other = self.rng.sample(names, 2)
        leader = self.world.leader()
        if leader is not None and self.rng.random() < 0.5:
            one = leader.name
        ways = {(one, name) for name in names if name != one}
        if self.rng.random() < 0.5:
            ways = {(receiver, sender) for sender, receiver in ways}
        if self.rng.random() < 0.5:
            ways = {(one, other)} if one != other else ways
        self.world.trace.count("one-way blocks")
        self._block(ways, "one way")

    def _block(self, ways: set[Way], shape: str) -> None:
        world = self.world
        world.trace.count("partitions")
        world.trace.add("block", shape, str(sorted(ways)))
        number = world.network.block(ways)
        world.scheduler.after(self._while(), self._unblock, number)

    def _unblock(self, number: int) -> None:
        self.world.trace.add("unblock", number)
        self.world.network.unblock(number)

    def break_connection(self) -> None:
        """Lose a connection."""
        member = self._victim()
        if member is not None:
            self.world.trace.count("links broken")
            self.world.trace.add("break", member.name)
            member.break_a_connection(self.rng)

    # -- clients -------------------------------------------------------------------------------

    def crash_client(self) -> None:
        """Let a client vanish; another one starts later."""
        client = self._a_client()
        if client is not None:
            client.crash()
            self.world.scheduler.after(self._while(), self.world.start_client, client.number)

    def pause_client(self) -> None:
        """Let a client stand still, for a moment or until its session expires."""
        client = self._a_client()
        if client is not None and not client.is_paused:
            client.pause()
            self.world.scheduler.after(2 * self._while(), client.resume)

    def _while(self) -> float:
        """How long a fault lasts: some moments, or beyond the timeouts."""
        return self.rng.choice((0.1, 0.6, 2.0)) * (0.5 + self.rng.random())


def both(one: str, other: str) -> set[Way]:
    """Both ways between two."""
    return {(one, other), (other, one)}


def isolate_one(names: list[str], rng: random.Random) -> set[Way]:
    """The first is alone."""
    return {way for name in names[1:] for way in both(names[0], name)}


def halves(names: list[str], rng: random.Random) -> set[Way]:
    """Two sides, the first with a friend if there are five."""
    size = rng.randint(1, len(names) // 2)
    return {way for a in names[:size] for b in names[size:] for way in both(a, b)}


def bridge(names: list[str], rng: random.Random) -> set[Way]:
    """Two sides that do not talk, and one that talks to both."""
    middle = (len(names) + 1) // 2
    left, right = names[1:middle], names[middle:]
    return {way for a in left for b in right for way in both(a, b)}


def ring(names: list[str], rng: random.Random) -> set[Way]:
    """Each talks to its two neighbours only; of three, one pair does not talk."""
    if len(names) == 3:
        return both(names[0], names[1])
    count = len(names)
    return {
        way
        for i in range(count)
        for j in range(i + 1, count)
        if (j - i) % count not in (1, count - 1)
        for way in both(names[i], names[j])
    }


def at_random(names: list[str], rng: random.Random) -> set[Way]:
    """Each way is open or not, for itself."""
    return {(a, b) for a in names for b in names if a != b and rng.random() < 0.4}
