"""Folkmoot: distributed primitives on one Raft log.

`Node` is loaded when it is first used, as a client needs no server.
"""

from typing import TYPE_CHECKING, Any

from folkmoot.cluster import Cluster, ResourceInfo, open
from folkmoot.core.client import StateChange
from folkmoot.core.config import (
    ClientConfig,
    LimitsConfig,
    Member,
    NodeConfig,
    RaftConfig,
    StorageConfig,
)
from folkmoot.core.errors import (
    BadCommand,
    ClosedError,
    CommandError,
    ConditionFailed,
    ConfigError,
    ConnectionLost,
    DirectoryLocked,
    ElectionTimeout,
    Fenced,
    FolkmootError,
    GrantLost,
    LeadershipLost,
    LimitExceeded,
    LockLost,
    LockTimeout,
    NoLeader,
    NotHeld,
    NotLeader,
    OperationTimeout,
    OutcomeUnknown,
    OutOfBounds,
    Overloaded,
    RemoteProtocolError,
    ResourceDeleted,
    ResourceTypeError,
    SessionClosed,
    SessionEnded,
    SessionExpired,
    StorageCorrupt,
    StorageError,
    StorageFull,
    TooLarge,
    Unavailable,
    UsageError,
    WouldBlock,
)
from folkmoot.core.machine import Context, Machine, QueryContext, command, query
from folkmoot.core.types import ConnectionState, Consistency
from folkmoot.primitives.counter import Counter
from folkmoot.primitives.election import Election
from folkmoot.primitives.lock import Lock
from folkmoot.primitives.map import Changed, Deleted, Map, Resync

if TYPE_CHECKING:
    from folkmoot.node import Node

__all__ = [
    "BadCommand",
    "Changed",
    "ClientConfig",
    "ClosedError",
    "Cluster",
    "CommandError",
    "ConditionFailed",
    "ConfigError",
    "ConnectionLost",
    "ConnectionState",
    "Consistency",
    "Context",
    "Counter",
    "Deleted",
    "DirectoryLocked",
    "Election",
    "ElectionTimeout",
    "Fenced",
    "FolkmootError",
    "GrantLost",
    "LeadershipLost",
    "LimitExceeded",
    "LimitsConfig",
    "Lock",
    "LockLost",
    "LockTimeout",
    "Machine",
    "Map",
    "Member",
    "NoLeader",
    "Node",
    "NodeConfig",
    "NotHeld",
    "NotLeader",
    "OperationTimeout",
    "OutOfBounds",
    "OutcomeUnknown",
    "Overloaded",
    "QueryContext",
    "RaftConfig",
    "RemoteProtocolError",
    "ResourceDeleted",
    "ResourceInfo",
    "ResourceTypeError",
    "Resync",
    "SessionClosed",
    "SessionEnded",
    "SessionExpired",
    "StateChange",
    "StorageConfig",
    "StorageCorrupt",
    "StorageError",
    "StorageFull",
    "TooLarge",
    "Unavailable",
    "UsageError",
    "WouldBlock",
    "command",
    "open",
    "query",
]


def __getattr__(name: str) -> Any:
    if name == "Node":
        from folkmoot.node import Node

        return Node
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
