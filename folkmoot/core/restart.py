"""Starting again from the disk: the prefix becomes the state, the log behind it consensus's.

What it is: the one place that puts together what a server begins with. What it is not: the reading
itself (`core/restore.py`, `storage/prefix_store.py`), nor the applying of the log behind the
prefix, which the loop does as it always does.

Who drives it: `core/server.py` and the simulator, step by step, as a large state takes seconds.
"""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from typing import TypeVar

from folkmoot.core.config import NodeConfig
from folkmoot.core.machine import Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.raft import Configuration, HardState, Raft
from folkmoot.core.raft.log import LogView
from folkmoot.core.storage.log_store import LogStore
from folkmoot.core.types import NodeId
from folkmoot.transport.codec import unpack

R = TypeVar("R", bound=Raft)
M = TypeVar("M", bound=Multiplexer)


def restored(
    store: LogStore, config: NodeConfig, registry: Registry, kind: type[M]
) -> Generator[int, None, tuple[M, Configuration]]:
    """Make the state and the members as of the compaction index; yield how many items so far.

    Raises StorageCorrupt, or UsageError where a resource's type is not registered.
    """
    if not store.compaction.index:
        configuration = Configuration.decode(unpack(store.identity.bootstrap), 0)
        return kind(registry, config.limits), configuration
    source = store.prefix.read_back()
    multiplexer = yield from kind.restoring(registry, config.limits, source)
    store.prefix.loaded(source)
    index, members = unpack(source.configuration)
    return multiplexer, Configuration.decode(members, index)


def recovered_raft(
    store: LogStore,
    config: NodeConfig,
    configuration: Configuration,
    kind: type[R],
    *,
    rng: Random,
    now: float,
) -> R:
    """Make consensus as it was: the term and the vote, and the log from where it starts."""
    state, start = store.hard_state, store.start
    voted_for = None if state.voted_for is None else NodeId(state.voted_for)
    return kind(
        node_id=config.node_id,
        config=config.raft,
        configuration=configuration,
        hard_state=HardState(state.term, voted_for),
        log=LogView.recovered(
            start.index,
            start.term,
            store.batches(start.index + 1),
            start_log_time=start.log_time,
            cache_bytes=config.raft.cache_bytes,
        ),
        committed_index=store.compaction.index,
        rng=rng,
        now=now,
    )
