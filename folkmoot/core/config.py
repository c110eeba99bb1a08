"""Every setting and every limit, with unit, default, reason and bound.

Ground layer: imports nothing of the package but errors and types.

All classes are frozen and keyword-only. Values are checked once, when an object is made; a wrong
one raises `ConfigError` naming the field, the value and the bound. Durations are seconds (float),
sizes are bytes; the unit stands last in the name. A limit's comment says what happens at it:
nothing grows without end and nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from folkmoot.core.errors import ConfigError
from folkmoot.core.types import NodeId


def _between(low: float, high: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        where = f"{type(instance).__name__}.{attribute.name}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where} is {value!r}: a number is needed")
        if not low <= value <= high:
            raise ConfigError(f"{where} is {value}: it must lie between {low} and {high}")

    return check


def _number(default: Any, low: float, high: float) -> Any:
    return attrs.field(default=default, validator=_between(low, high))


@attrs.frozen(kw_only=True)
class RaftConfig:
    """Consensus. Times are seconds on the server's monotonic clock."""

    heartbeat_s: float = _number(0.1, 0.001, 60)
    """A leader speaks to each follower at least this often.

    Idle cost is proportional to 1 / heartbeat.
    """
    election_timeout_s: float = _number(0.5, 0.01, 600)
    """T: a follower that hears no leader for a time drawn from [T, 2T) asks for (pre-)votes
    (§3.4).
    """
    clock_drift: float = _number(0.1, 0.0, 0.5)
    """Largest assumed relative drift between two servers' clocks; shortens leases (§6.4.1)."""
    append_bytes_max: int = _number(1 << 20, 1 << 10, 1 << 26)
    """Bytes of batches in one append message; a larger single batch travels alone."""
    window_batches: int = _number(256, 1, 1 << 16)
    """Batches in flight per follower; then the leader waits for a reply."""
    window_bytes: int = _number(8 << 20, 1 << 12, 1 << 30)
    """Bytes in flight per follower; then the leader waits for a reply."""
    uncommitted_bytes_max: int = _number(64 << 20, 1 << 16, 1 << 32)
    """Bytes proposed and not yet committed; beyond it proposals are refused with Overloaded."""
    cache_bytes: int = _number(32 << 20, 1 << 12, 1 << 34)
    """Bytes of recent batches kept in memory; older ones are read back from the log."""
    pending_reads_max: int = _number(100_000, 1, 1 << 24)
    """Reads waiting for a read index; beyond it reads are refused with Overloaded."""

    def __attrs_post_init__(self) -> None:
        if self.heartbeat_s * 2 > self.election_timeout_s:
            raise ConfigError(
                f"heartbeat_s is {self.heartbeat_s}, "
                f"election_timeout_s {self.election_timeout_s}: "
                "at least two heartbeats must fit into an election timeout"
            )


@attrs.frozen(kw_only=True)
class StorageConfig:
    """The log on disk."""

    segment_bytes: int = _number(8 << 20, 1 << 12, 1 << 30)
    """A segment is preallocated to this size, zero-filled, and sealed when the next batch does not
    fit.
    """
    batch_bytes_max: int = _number(8 << 20, 1 << 10, 1 << 28)
    """A leader's turn makes no larger batch (one entry may always stand alone)."""
    compaction_log_bytes: int = _number(6 << 20, 1 << 10, 1 << 40)
    """So much log is written behind the compaction index before the next compaction begins, but
    never less than what the last one wrote of records (sessions, locks): how far it stays behind.
    """
    compaction_dead_share: float = _number(0.4, 0.05, 0.95)
    """A file of the prefix is rewritten once this part of it is dead: less disk, more copying."""
    compaction_duty: float = _number(0.1, 0.01, 1.0)
    """The part of one core's time that a compaction takes, while it runs: more only where the log
    grows faster than that.
    """
    compaction_bytes_per_s: int = _number(32 << 20, 1 << 10, 1 << 40)
    """A compaction writes no faster, so that it does not compete with the log for the disk."""
    log_keep_bytes: int = _number(32 << 20, 0, 1 << 40)
    """Log that is kept although the prefix speaks for it: a follower that was away briefly is
    brought up to date from it.
    """
    log_keep_bytes_max: int = _number(256 << 20, 0, 1 << 40)
    """The same, while a follower that answers still needs it. Beyond it, it is sent the prefix."""
    transfer_bytes_per_s: int = _number(16 << 20, 1 << 10, 1 << 40)
    """A leader sends prefixes no faster, to all followers together; and a server no faster into all
    backups that are being saved from it.
    """
    fsync: bool = True
    """False only for tests and measurements: an acknowledgement then survives no power cut."""
    inline_sync_max_s: float = _number(0.002, 0.0, 0.1)
    """Syncs are done in the loop itself while they have lately been faster than this and nothing
    else waits.
    """
    reserve_bytes: int = _number(128 << 20, 0, 1 << 40)
    """While the leader's disk has less free than this, commands are refused with StorageFull,
    except those that free something. At least 4 segments; 0: none, the disk may fill up, which
    stops the server.
    """

    def __attrs_post_init__(self) -> None:
        least = 4 * self.segment_bytes
        if 0 < self.reserve_bytes < least:
            raise ConfigError(
                f"reserve_bytes is {self.reserve_bytes}: it must be at least 4 segments "
                f"(segment_bytes is {self.segment_bytes}, so {least}), or 0 for none"
            )


@attrs.frozen(kw_only=True)
class LimitsConfig:
    """What one cluster takes on. Replicated limits must be equal on all members.

    They decide answers.
    """

    frame_bytes_max: int = _number(1 << 20, 1 << 12, 1 << 26)
    """A client's frame; a larger one closes the connection."""
    hello_bytes_max: int = _number(16 << 10, 256, 1 << 20)
    """The first frame of a connection, before it has said who it is."""
    hello_timeout_s: float = _number(5.0, 0.01, 600)
    """A connection that has not said who it is by then is closed."""
    connections_max: int = _number(4096, 1, 1 << 20)
    """Client connections per server; a further one is refused with Overloaded and closed."""
    send_buffer_bytes_max: int = _number(64 << 20, 1 << 16, 1 << 32)
    """Unsent bytes per connection.

    A client that does not read is closed (its events stay in its session).
    """
    sessions_max: int = _number(100_000, 1, 1 << 24)
    """Replicated. Open sessions; opening a further one is answered with LimitExceeded."""
    session_window: int = _number(4096, 1, 1 << 20)
    """Replicated. Commands of a session in flight, and cached results.

    Refused with Overloaded beyond it.
    """
    session_result_bytes_max: int = _number(64 << 20, 1 << 12, 1 << 32)
    """Replicated. Bytes of a session's cached results, about; refused with Overloaded beyond it."""
    session_timeout_min_s: float = _number(0.1, 0.01, 3600)
    session_timeout_max_s: float = _number(3600.0, 0.1, 1e7)
    """A session's timeout is brought between these two; the reply says what it is."""
    session_events_max: int = _number(65_536, 16, 1 << 24)
    """Replicated. Unacknowledged events per session.

    Beyond it its subscriptions are cut with a Resync.
    """
    session_event_bytes_max: int = _number(16 << 20, 1 << 12, 1 << 32)
    """Replicated. The same in bytes."""
    resources_max: int = _number(1_000_000, 1, 1 << 26)
    """Replicated. Named resources; creating a further one is answered with LimitExceeded."""
    name_bytes_max: int = _number(512, 1, 1 << 16)
    """Replicated. A resource's name, encoded as UTF-8."""
    key_bytes_max: int = _number(4096, 1, 1 << 20)
    """Replicated. A key."""
    value_bytes_max: int = _number(512 << 10, 1, 1 << 26)
    """Replicated. A value or message."""
    pending_bytes_max: int = _number(64 << 20, 1 << 16, 1 << 32)
    """Commands of a server's clients that wait for the log.

    Beyond it commands are refused with Overloaded.
    """
    pending_reads_per_client: int = _number(16_384, 1, 1 << 20)
    """Reads of one connection that wait; refused with Overloaded beyond it."""

    def __attrs_post_init__(self) -> None:
        room = self.frame_bytes_max - 4096
        if self.value_bytes_max + self.key_bytes_max + self.name_bytes_max > room:
            raise ConfigError(
                f"value_bytes_max {self.value_bytes_max} with key and name does not fit into "
                f"frame_bytes_max {self.frame_bytes_max} (less 4096 bytes of overhead)"
            )


@attrs.frozen(kw_only=True)
class Member:
    """One member of the cluster: its stable id and where it listens."""

    node_id: NodeId = attrs.field(converter=NodeId)
    peer_address: str
    """host:port where the other members reach it."""
    client_address: str
    """host:port where clients reach it."""


@attrs.frozen(kw_only=True)
class NodeConfig:
    """One member."""

    node_id: NodeId = attrs.field(default=NodeId(1), converter=NodeId)
    cluster: str = "default"
    """The cluster's name. With the first members' list it makes the cluster id, which guards every
    connection.
    """
    members: tuple[Member, ...] = ()
    """The first members, the same list on each. Empty: a cluster of this one node.

    Once the data directory exists, its list holds: other client addresses are ignored, and said so;
    other node ids or peer addresses are those of another cluster, and refused.
    """
    peer_listen: str = ""
    """host:port to listen on for members; empty: this member's own peer_address."""
    client_listen: str = ""
    """host:port to listen on for clients; empty: this member's own client_address."""
    data_dir: str | None = None
    """None keeps everything in memory: gone when the process ends."""
    raft: RaftConfig = attrs.field(factory=RaftConfig)
    storage: StorageConfig = attrs.field(factory=StorageConfig)
    limits: LimitsConfig = attrs.field(factory=LimitsConfig)

    def __attrs_post_init__(self) -> None:
        if self.node_id < 1:
            raise ConfigError(f"node_id is {self.node_id}: it must be a positive integer")
        ids = [member.node_id for member in self.members]
        if len(set(ids)) != len(ids):
            raise ConfigError(f"members name a node id twice: {sorted(ids)}")
        if self.members and self.node_id not in ids:
            raise ConfigError(f"node_id {self.node_id} is not among the members {sorted(ids)}")

    def member(self) -> Member:
        """This member's own line of the list.

        Without a list it is reached in memory, by its name.
        """
        for member in self.members:
            if member.node_id == self.node_id:
                return member
        return Member(
            node_id=self.node_id,
            peer_address=f"peer-{self.node_id}:1",
            client_address=f"node-{self.node_id}:1",
        )


@attrs.frozen(kw_only=True)
class ClientConfig:
    """A client's session and connection."""

    session_timeout_s: float = _number(5.0, 0.01, 3600)
    """The cluster ends the session after this long without a sign of life.

    The client stops guarded code before that.
    """
    drift_margin: float = _number(0.1, 0.0, 0.5)
    """Part of the timeout that the local deadline lies before the cluster's, for clock drift and
    scheduling.
    """
    name: str = ""
    """Shown in describe() and status; empty: host name, program and process id."""
    connect_timeout_s: float = _number(2.0, 0.01, 600)
    """One attempt at one address."""
    reconnect_delay_s: float = _number(0.02, 0.0, 60)
    reconnect_delay_max_s: float = _number(1.0, 0.0, 600)
    """Delay between rounds over all addresses.

    Doubled from the first to the second, with full jitter.
    """
    prefer_leader: bool = True
    """Move the connection to the leader when another server says who leads."""
    frame_bytes: int = _number(256 << 10, 1 << 10, 1 << 26)
    """Commands are gathered into frames of about this size."""
    window_bytes: int = _number(16 << 20, 1 << 12, 1 << 30)
    """Bytes of commands in flight; then further ones wait here for answers."""
    outbox_max: int = _number(65_536, 1, 1 << 24)
    """Operations of this client that wait to be sent; a further one is refused with Overloaded."""
    limits: LimitsConfig = attrs.field(factory=LimitsConfig)


def replicated_limits(limits: LimitsConfig) -> Mapping[str, int]:
    """The limits that decide replicated answers, so must be equal on all members."""
    return {
        name: getattr(limits, name)
        for name in (
            "sessions_max",
            "session_window",
            "session_result_bytes_max",
            "session_events_max",
            "session_event_bytes_max",
            "resources_max",
            "name_bytes_max",
            "key_bytes_max",
            "value_bytes_max",
        )
    }
