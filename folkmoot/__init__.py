"""Folkmoot: distributed primitives on one Raft log.

Each name is imported when it is first used: a client needs no server, and the command line, which
lives in this package, starts without either.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from folkmoot.node import Node
    from folkmoot.primitives.counter import Counter
    from folkmoot.primitives.election import Election
    from folkmoot.primitives.lock import Lock
    from folkmoot.primitives.map import Changed, Deleted, Map, Resync
    from folkmoot.primitives.topic import Topic

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
    "Topic",
    "Unavailable",
    "UsageError",
    "WouldBlock",
    "command",
    "open",
    "query",
]

_HOMES = {
    "BadCommand": "folkmoot.core.errors",
    "Changed": "folkmoot.primitives.map",
    "ClientConfig": "folkmoot.core.config",
    "ClosedError": "folkmoot.core.errors",
    "Cluster": "folkmoot.cluster",
    "CommandError": "folkmoot.core.errors",
    "ConditionFailed": "folkmoot.core.errors",
    "ConfigError": "folkmoot.core.errors",
    "ConnectionLost": "folkmoot.core.errors",
    "ConnectionState": "folkmoot.core.types",
    "Consistency": "folkmoot.core.types",
    "Context": "folkmoot.core.machine",
    "Counter": "folkmoot.primitives.counter",
    "Deleted": "folkmoot.primitives.map",
    "DirectoryLocked": "folkmoot.core.errors",
    "Election": "folkmoot.primitives.election",
    "ElectionTimeout": "folkmoot.core.errors",
    "Fenced": "folkmoot.core.errors",
    "FolkmootError": "folkmoot.core.errors",
    "GrantLost": "folkmoot.core.errors",
    "LeadershipLost": "folkmoot.core.errors",
    "LimitExceeded": "folkmoot.core.errors",
    "LimitsConfig": "folkmoot.core.config",
    "Lock": "folkmoot.primitives.lock",
    "LockLost": "folkmoot.core.errors",
    "LockTimeout": "folkmoot.core.errors",
    "Machine": "folkmoot.core.machine",
    "Map": "folkmoot.primitives.map",
    "Member": "folkmoot.core.config",
    "NoLeader": "folkmoot.core.errors",
    "Node": "folkmoot.node",
    "NodeConfig": "folkmoot.core.config",
    "NotHeld": "folkmoot.core.errors",
    "NotLeader": "folkmoot.core.errors",
    "OperationTimeout": "folkmoot.core.errors",
    "OutOfBounds": "folkmoot.core.errors",
    "OutcomeUnknown": "folkmoot.core.errors",
    "Overloaded": "folkmoot.core.errors",
    "QueryContext": "folkmoot.core.machine",
    "RaftConfig": "folkmoot.core.config",
    "RemoteProtocolError": "folkmoot.core.errors",
    "ResourceDeleted": "folkmoot.core.errors",
    "ResourceInfo": "folkmoot.cluster",
    "ResourceTypeError": "folkmoot.core.errors",
    "Resync": "folkmoot.primitives.map",
    "SessionClosed": "folkmoot.core.errors",
    "SessionEnded": "folkmoot.core.errors",
    "SessionExpired": "folkmoot.core.errors",
    "StateChange": "folkmoot.core.client",
    "StorageConfig": "folkmoot.core.config",
    "StorageCorrupt": "folkmoot.core.errors",
    "StorageError": "folkmoot.core.errors",
    "StorageFull": "folkmoot.core.errors",
    "TooLarge": "folkmoot.core.errors",
    "Topic": "folkmoot.primitives.topic",
    "Unavailable": "folkmoot.core.errors",
    "UsageError": "folkmoot.core.errors",
    "WouldBlock": "folkmoot.core.errors",
    "command": "folkmoot.core.machine",
    "open": "folkmoot.cluster",
    "query": "folkmoot.core.machine",
}
"""Where each name lives: what the imports above say to type checkers."""

assert _HOMES.keys() == {*__all__}, _HOMES.keys() ^ {*__all__}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
