"""What can go wrong in one run, and how often: drawn from the seed, printed before the run.

SWARM TESTING: each fault has probability zero in some runs. A run in which everything fails all the
time never gets far enough to meet what is rare, and faults mask one another; so each run has its
own mixture, and many have only one or two kinds.

Rates are events per true second. Times of the product are scaled so that much happens in a few
simulated seconds: sessions time out after 1.5 to 6 s.
"""

from __future__ import annotations

import random
from typing import Any

import attrs

from folkmoot.core.config import LimitsConfig, RaftConfig, StorageConfig


@attrs.frozen(kw_only=True)
class Options:
    """One run. All zeros is a quiet run, which scripted schedules start from."""

    seed: int = 0
    nodes: int = 3
    clients: int = 3
    duration_s: float = 10.0

    # the network
    datagrams: bool = False
    """Members' frames are lost, repeated and overtaken one by one, as if there were no TCP."""
    drop: float = 0.0
    repeat: float = 0.0
    latency_s: float = 0.001
    tail: float = 0.0
    """The part of frames that take much longer, up to `tail_s`."""
    tail_s: float = 0.5
    break_rate: float = 0.0
    """Connections lost, with the frames that were under way from some point on."""
    partition_rate: float = 0.0
    one_way_rate: float = 0.0

    # servers
    crash_rate: float = 0.0
    power_cut: float = 0.5
    """The part of crashes in which what was not synced may be lost, in any subset and parts."""
    instant_restart: float = 0.5
    pause_rate: float = 0.0
    transfer_rate: float = 0.0
    stop_rate: float = 0.0
    clock_spread: float = 0.0
    """Clocks run at rates within 1 +- this; beyond what leases allow for, nothing uses leases."""
    clock_change_rate: float = 0.0
    loop_s: float = 0.0
    """How long a server's loop takes before it looks at what has arrived."""

    # disks
    inline_sync: bool = False
    sync_s: float = 0.001
    slow_disk_rate: float = 0.0
    disk_failure_rate: float = 0.0

    # compaction
    compacts: bool = False
    """Every server compacts, as its own draw of `storage` says."""
    step_s: float = 0.001
    """How long a step of a compaction takes, or a small job beside the log."""
    want_rate: float = 0.0
    """Somebody wants a server's prefix to speak for the present."""
    full_disk_rate: float = 0.0
    """A server's disk has next to nothing free for a while."""
    away_rate: float = 0.0
    """A server is down so long that the others' logs do not reach back to it."""
    transfer_crash: float = 0.0
    """The part of chunks of a prefix at which who sends or receives them crashes."""
    rot: float = 0.0
    """The part of what is received of a prefix in which a bit flips on the disk."""
    slice_bytes: int = 64 << 10
    """So many bytes of records are serialised in one turn."""
    apply_bytes: int = 1 << 20
    """About so many bytes of log are applied in one turn."""
    block_bytes: int = 64 << 10
    """A block of a prefix file, and a chunk of one that is sent."""

    # clients
    work_rate: float = 12.0
    """Steps of all clients together; a step is one or a few operations."""
    burst: int = 3
    session_timeout_s: float = 2.0
    client_crash_rate: float = 0.0
    client_pause_rate: float = 0.0
    abandon: float = 0.0
    """The part of calls that the application gives up on."""
    prefer_leader: float = 0.7
    """The part of clients that move to the leader."""
    read_part: float = 0.3
    hold_s: float = 0.3
    """How long locks are held and elections led, at most."""

    # limits
    small_limits: bool = False
    segment_bytes: int = 1 << 14
    padding: int = 0
    """Bytes by which some values are longer than they need be."""

    @property
    def uses_leases(self) -> bool:
        """Whether the clocks keep within what leases and local deadlines allow for."""
        return self.clock_spread <= 0.045

    def raft(self) -> RaftConfig:
        """The servers' configuration of consensus."""
        if not self.small_limits:
            return RaftConfig()
        return RaftConfig(
            append_bytes_max=1 << 10,
            window_batches=2,
            window_bytes=1 << 12,
            uncommitted_bytes_max=1 << 16,
            cache_bytes=1 << 12,
            pending_reads_max=4,
        )

    def limits(self) -> LimitsConfig:
        """The servers' and clients' limits."""
        if not self.small_limits:
            return LimitsConfig()
        return LimitsConfig(
            session_window=6,
            session_events_max=16,
            pending_bytes_max=1 << 16,
            pending_reads_per_client=4,
        )

    def storage(self, node_id: int) -> StorageConfig:
        """A server's configuration of its disk: each compacts at indexes of its own."""
        if not self.compacts:
            return StorageConfig(segment_bytes=self.segment_bytes)
        rng = random.Random(f"folkmoot storage {self.seed} {node_id}")
        keep_bytes = rng.choice((0, 0, 0, 1 << 13))
        return StorageConfig(
            segment_bytes=rng.randint(1 << 12, 1 << 13),
            compaction_log_bytes=rng.choice((1 << 10, 1 << 12, 1 << 13)),
            compaction_dead_share=rng.choice((0.05, 0.4, 0.95)),
            log_keep_bytes=keep_bytes,
            log_keep_bytes_max=rng.choice((0, 1 << 12, 1 << 15)),
            transfer_bytes_per_s=rng.choice((1 << 11, 1 << 13, 1 << 15)),
            reserve_bytes=rng.choice((0, 1 << 15)),
        )

    def describe(self) -> str:
        """All values that differ from a quiet run's."""
        quiet = Options()
        fields = [field.name for field in attrs.fields(Options)]
        shown = [
            f"{name}={_short(getattr(self, name))}"
            for name in fields
            if name in ("seed", "nodes", "clients", "duration_s")
            or getattr(self, name) != getattr(quiet, name)
        ]
        return " ".join(shown)

    @classmethod
    def draw(cls, seed: int, nodes: int | None = None) -> Options:
        """The options of a seed; `nodes` overrides what it says about them."""
        rng = random.Random(f"folkmoot options {seed}")
        maybe = Maybe(rng)
        drawn_nodes = rng.choice((3, 3, 5))
        network = _draw_network(rng, maybe)
        servers = _draw_servers(rng, maybe)
        return cls(
            seed=seed,
            nodes=nodes or drawn_nodes,
            clients=rng.randint(2, 5),
            duration_s=round(rng.uniform(10.0, 30.0), 1),
            **network,
            **servers,
            work_rate=rng.choice((1.5, 6.0, 12.0, 20.0)),
            burst=rng.choice((1, 2, 4, 8)),
            session_timeout_s=rng.choice((1.5, 2.0, 3.0, 6.0)),
            client_crash_rate=maybe.rate(0.3, 0.02, 0.15),
            client_pause_rate=maybe.rate(0.4, 0.05, 0.3),
            abandon=maybe.rate(0.5, 0.02, 0.3),
            prefer_leader=rng.choice((0.0, 0.5, 1.0)),
            read_part=rng.choice((0.1, 0.3, 0.5)),
            hold_s=rng.choice((0.05, 0.5, 5.0)),
            small_limits=maybe.happens(0.25),
            segment_bytes=rng.choice((1 << 12, 1 << 14, 1 << 18)),
            **_draw_compaction(rng, maybe),
        )


class Maybe:
    """Draws that are zero in some runs."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def happens(self, probability: float) -> bool:
        """Draw yes or no."""
        return self._rng.random() < probability

    def rate(self, probability: float, low: float, high: float) -> float:
        """Draw zero, or a value between two."""
        value = round(self._rng.uniform(low, high), 3)
        return value if self.happens(probability) else 0.0


def _draw_network(rng: random.Random, maybe: Maybe) -> dict[str, Any]:
    datagrams = maybe.happens(0.3)
    drop, repeat = maybe.rate(0.7, 0.01, 0.15), maybe.rate(0.7, 0.01, 0.2)
    return {
        "datagrams": datagrams,
        "drop": drop if datagrams else 0.0,
        "repeat": repeat if datagrams else 0.0,
        "latency_s": rng.choice((0.0005, 0.002, 0.01)),
        "tail": maybe.rate(0.4, 0.005, 0.1),
        "tail_s": rng.choice((0.1, 0.4, 1.0)),
        "break_rate": maybe.rate(0.4, 0.2, 1.5),
        "partition_rate": maybe.rate(0.5, 0.1, 0.5),
        "one_way_rate": maybe.rate(0.3, 0.1, 0.5),
    }


def _draw_servers(rng: random.Random, maybe: Maybe) -> dict[str, Any]:
    return {
        "crash_rate": maybe.rate(0.6, 0.1, 0.9),
        "power_cut": rng.choice((0.0, 0.5, 1.0)),
        "instant_restart": rng.choice((0.2, 0.8)),
        "pause_rate": maybe.rate(0.4, 0.1, 0.5),
        "transfer_rate": maybe.rate(0.3, 0.1, 0.5),
        "stop_rate": maybe.rate(0.2, 0.05, 0.2),
        "clock_spread": rng.choice((0.0, 0.04, 0.04, 0.5)),
        "clock_change_rate": maybe.rate(0.3, 0.2, 1.0),
        "loop_s": rng.choice((0.0, 0.0005, 0.003)),
        "inline_sync": maybe.happens(0.3),
        "sync_s": rng.choice((0.0003, 0.002, 0.01)),
        "slow_disk_rate": maybe.rate(0.4, 0.1, 0.4),
        "disk_failure_rate": maybe.rate(0.2, 0.05, 0.2),
    }


def _draw_compaction(rng: random.Random, maybe: Maybe) -> dict[str, Any]:
    compacts = maybe.happens(0.7)
    want_rate, full_disk_rate = maybe.rate(0.6, 0.2, 1.5), maybe.rate(0.3, 0.05, 0.3)
    away_rate, transfer_crash = maybe.rate(0.5, 0.05, 0.3), maybe.rate(0.4, 0.01, 0.15)
    rot = maybe.rate(0.2, 0.01, 0.1)
    return {
        "compacts": compacts,
        "step_s": rng.choice((0.0, 0.001, 0.01, 0.05)),
        "want_rate": want_rate if compacts else 0.0,
        "full_disk_rate": full_disk_rate if compacts else 0.0,
        "away_rate": away_rate if compacts else 0.0,
        "transfer_crash": transfer_crash if compacts else 0.0,
        "rot": rot if compacts else 0.0,
        "slice_bytes": rng.choice((1, 256, 64 << 10)),
        "apply_bytes": rng.choice((1, 1 << 12, 1 << 20)),
        "block_bytes": rng.choice((128, 1 << 10, 64 << 10)),
        "padding": rng.choice((0, 0, 100, 500)),
    }


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
