"""Random faults on small clusters, from a seed; the invariants are checked by the network itself.

The simulator does this on a larger scale, with sessions and real segments; these few seeds are here
so that a change of the core is refuted within seconds. A failing seed replays exactly.
"""

from __future__ import annotations

import contextlib
import random

import pytest

from folkmoot.core.errors import Unavailable
from folkmoot.core.raft import HardState, Role
from tests.core.raft.network import Envelope, Network


class Chaos:
    """One run: some seconds of faults, then healing, then progress is demanded."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.network = Network(count, seed=seed)
        self.network.latency = lambda a, b: self.rng.expovariate(200)
        self.network.fate = self.fate
        self.network.transfer_takes = lambda: self.rng.expovariate(4)
        self.loss = self.rng.choice([0.0, 0.02, 0.2])
        self.repeat = self.rng.choice([0.0, 0.05, 0.3])
        self.slow_disk = self.rng.choice([0.0, 0.005, 0.2])
        self.proposed = 0
        self.token = 0
        self.expected: dict[tuple[int, int], int] = {}
        """(node, token) -> the least index that its read may be given."""

    def run(self, seconds: float) -> None:
        network, rng = self.network, self.rng
        end = network.now + seconds
        while network.now < end:
            network.run(rng.expovariate(20))
            self.check_leases()
            acts = [self.propose, self.read, self.crash, self.cut, self.heal, self.hand_over]
            acts += [self.change_disk, self.compact, self.change_interest]
            rng.choices(acts, [10, 5, 0.5, 1, 1, 0.3, 1, 2, 1])[0]()
            self.check_reads()

    def demand_progress(self) -> None:
        network = self.network
        network.heal()
        self.network.fate = self.fate
        self.loss = self.repeat = 0.0
        for node_id, node in network.nodes.items():
            network.release_disk(node_id)
            if not node.is_up:
                network.restart(node_id)
        network.run(10.0)
        leader = network.run_until_led()
        network.run(2.0)
        network.propose(leader, "last")
        network.run(1.0)
        applied = [node.applied for node in network.nodes.values()]
        assert all(a == applied[0] and a[-1] == "last" for a in applied)
        network.check_logs()
        self.check_reads()

    # -- faults --------------------------------------------------------------------------------

    def fate(self, envelope: Envelope) -> list[Envelope]:
        if self.rng.random() < self.loss:
            return []
        if self.rng.random() < self.repeat:
            late = self.network.now + self.rng.expovariate(3)
            return [envelope, Envelope(late, envelope.sender, envelope.receiver, envelope.message)]
        return [envelope]

    def crash(self) -> None:
        node = self.rng.choice(list(self.network.nodes.values()))
        if node.is_up:
            self.network.crash(node.node_id)
            self.expected = {k: v for k, v in self.expected.items() if k[0] != node.node_id}
            node.reads = {}
        else:
            self.network.restart(node.node_id)

    def cut(self) -> None:
        a, b = self.rng.sample(list(self.network.nodes), 2)
        self.network.cut.add((a, b))
        if self.rng.random() < 0.5:
            self.network.cut.add((b, a))

    def heal(self) -> None:
        self.network.heal()

    def change_disk(self) -> None:
        node = self.rng.choice(list(self.network.nodes.values()))
        if node.is_up and not node.disk.pending:
            node.disk.delay_s = self.rng.choice([0.0, self.slow_disk])

    def change_interest(self) -> None:
        node = self.rng.choice(list(self.network.nodes.values()))
        node.raft.set_commit_interest(self.rng.random() < 0.5)

    def compact(self) -> None:
        """Make a prefix on some node, and let its log start anywhere below the end of it."""
        node = self.rng.choice(list(self.network.nodes.values()))
        start, applied_index = node.raft.log.start_index, node.applied_index
        if node.is_up and start < applied_index:
            ends = [b.last_index for b in node.disk.batches if b.last_index <= applied_index]
            self.network.compact(int(node.node_id), self.rng.choice([start, *ends]))

    # -- work ----------------------------------------------------------------------------------

    def propose(self) -> None:
        for node_id, node in self.network.nodes.items():
            if node.is_up and node.raft.role is Role.LEADER:
                self.proposed += 1
                texts = [f"{self.proposed}.{i}" for i in range(self.rng.randint(1, 3))]
                with contextlib.suppress(Unavailable):
                    self.network.propose(node_id, *texts)

    def read(self) -> None:
        node = self.rng.choice(list(self.network.nodes.values()))
        if node.is_up:
            self.token += 1
            self.expected[int(node.node_id), self.token] = max(self.network.committed, default=0)
            self.network.read(node.node_id, self.token)

    def hand_over(self) -> None:
        leader = self.network.leader
        if leader is not None:
            with contextlib.suppress(Unavailable):
                self.network[leader].transfer_leadership(None, self.network.now)
            self.network.turn(leader)

    # -- checks --------------------------------------------------------------------------------

    def check_reads(self) -> None:
        """§6.4: a read sees everything that anybody had applied when it began."""
        for node_id, node in self.network.nodes.items():
            for token, index in node.reads.items():
                least = self.expected.pop((node_id, token), 0)
                assert index is None or index >= least, (node_id, token, index, least)
            node.reads = {}

    def check_leases(self) -> None:
        """§6.4.1: while a lease holds, its leader has applied all that anybody has."""
        newest = max(self.network.committed, default=0)
        for node in self.network.nodes.values():
            if node.is_up and node.raft.lease_valid(self.network.now):
                assert node.applied_index >= newest, (node.node_id, node.applied_index, newest)


@pytest.mark.parametrize("seed", range(60))
def test_random_faults(seed: int) -> None:
    chaos = Chaos(seed, 3 if seed % 3 else 5)
    chaos.run(15.0)
    chaos.demand_progress()


def test_the_same_seed_gives_the_same_trace() -> None:
    def trace() -> list[str]:
        lines: list[str] = []
        chaos = Chaos(7, 3)
        chaos.network.note = lines.append
        chaos.run(5.0)
        return lines

    first = trace()
    assert len(first) > 100
    assert trace() == first


def test_states_are_restored() -> None:
    network = Network(3, hard_states={1: HardState(5, None)})
    assert network[1].term == 5
