"""Whole clusters of pure cores: elect, replicate, survive."""

from __future__ import annotations

import pytest

from folkmoot.core.raft import Role
from tests.core.raft.network import Network


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fresh_cluster_elects_and_replicates(count: int) -> None:
    network = Network(count)
    leader = network.run_until_led(2.0)
    assert network.now < 0.5, "a fresh cluster is led soon"
    for i in range(10):
        network.propose(leader, f"x{i}")
    network.run(0.5)
    for node in network.nodes.values():
        assert node.applied == [f"x{i}" for i in range(10)]
    assert [n.raft.role for n in network.nodes.values()].count(Role.LEADER) == 1
    network.check_logs()


def test_a_leader_crash_loses_nothing() -> None:
    network = Network(3)
    leader = network.run_until_led()
    network.propose(leader, "kept")
    network.settle()
    network.crash(leader)
    successor = network.run_until_led()
    network.propose(successor, "more")
    network.restart(leader)
    network.run(3.0)
    for node in network.nodes.values():
        assert node.applied == ["kept", "more"]
