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

from folkmoot.core.compacting import decode_members
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
) -> Generator[tuple[int, int | None], None, tuple[M, Configuration]]:
    """Make the state and the members as of the compaction index.

    Yields how many entries are restored, and of how many, once that is known. Raises
    StorageCorrupt, or UsageError where a resource's type is not registered.
    """
    if not store.compaction.index:
        configuration = Configuration.decode(unpack(store.identity.bootstrap), 0)
        return kind(registry, config.limits), configuration
    source = store.prefix.read_back()
    steps = kind.restoring(registry, config.limits, source)
    multiplexer: M | None = None
    while multiplexer is None:
        try:
            yield next(steps), source.live_count
        except StopIteration as end:
            multiplexer = end.value
    store.prefix.loaded(source)
    return multiplexer, decode_members(source.configuration)


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
