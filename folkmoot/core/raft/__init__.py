"""Consensus: one Raft log, as a pure state machine with effects as data.

Start with `node.py` (what drives what), then follow the question: `known`, `election`, `follower`,
`leader`, `replication`, `progress`, `rounds`, `reads`, `transfer`, `quorum`, `membership`, `log`,
`effects`, `messages`.
"""

from __future__ import annotations

from folkmoot.core.raft.effects import (
    HardState,
    LogRead,
    PrefixPoint,
    ReadState,
    Ready,
    Write,
)
from folkmoot.core.raft.log import LogView
from folkmoot.core.raft.membership import Configuration
from folkmoot.core.raft.messages import (
    MESSAGE_TYPES,
    Append,
    AppendReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode_message,
    encode_message,
    message_type,
)
from folkmoot.core.raft.node import Raft
from folkmoot.core.raft.state import Role
from folkmoot.core.raft.trace import TraceEvent

__all__ = [
    "MESSAGE_TYPES",
    "Append",
    "AppendReply",
    "Configuration",
    "HardState",
    "LogRead",
    "LogView",
    "Message",
    "PrefixPoint",
    "Raft",
    "ReadIndexReply",
    "ReadIndexRequest",
    "ReadState",
    "Ready",
    "Role",
    "TimeoutNow",
    "TraceEvent",
    "VoteReply",
    "VoteRequest",
    "Write",
    "decode_message",
    "encode_message",
    "message_type",
]
