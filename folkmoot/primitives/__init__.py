"""The resources: commands and queries, a replicated machine, events, and a proxy for each."""

from __future__ import annotations

from folkmoot.core.machine import Machine
from folkmoot.primitives.counter_machine import CounterMachine
from folkmoot.primitives.election_machine import ElectionMachine
from folkmoot.primitives.lock_machine import LockMachine
from folkmoot.primitives.map_machine import MapMachine
from folkmoot.primitives.topic_machine import TopicMachine

BUILTIN_MACHINES: tuple[type[Machine], ...] = (
    MapMachine,
    LockMachine,
    ElectionMachine,
    CounterMachine,
    TopicMachine,
)
"""What every server knows without being told; others are registered beside them."""

__all__ = ["BUILTIN_MACHINES"]
