"""What operators ask of one server: its status, its sessions, and to hand leadership over.

Pure: no I/O, no clock, no randomness. Each server answers for itself; whoever wants the cluster's
view asks every member. What takes longer than a turn, saving a backup, is `core/backups.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import BadCommand, FolkmootError, NotLeader
from folkmoot.core.requests import FrameType
from folkmoot.core.types import NodeId

if TYPE_CHECKING:
    from folkmoot.core.replica import Replica

SESSIONS_MAX = 1000
"""Sessions in one answer."""


def status(replica: Replica, arguments: list[Any], now: float) -> dict[str, Any]:
    """This server's view of the cluster and of itself. Times in seconds, sizes in bytes."""
    raft, multiplexer = replica.raft, replica.multiplexer
    leader, leader_address = replica.leader_fields()
    prefixes = replica.prefixes.status()
    return {
        "node_id": replica.node_id,
        "version": replica.version,
        "cluster": replica.config.cluster,
        "cluster_id": replica.cluster_id.hex(),
        "role": raft.role.value,
        "term": raft.term,
        "epoch": multiplexer.epoch,
        "leader": leader or None,
        "leader_address": leader_address or None,
        "commit_index": raft.commit_index,
        "applied_index": multiplexer.index,
        "last_index": raft.last_index,
        "log_time": multiplexer.time,
        "uptime_s": round(now - replica.started_at, 3),
        "members": _members(replica, prefixes["sending"]),
        "sessions": len(multiplexer.sessions),
        "resources": len(multiplexer.directory.resources),
        "connections": len(replica.front.connections),
        "backups": len(replica.backups),
        "receiving": prefixes["receiving"],
        "storage": {**replica.storage.status(), **replica.room.status()},
        "loop": _loop(replica),
    }


def _members(replica: Replica, sending: Mapping[int, Any]) -> list[dict[str, Any]]:
    """Each member, with what a leader knows of it; `sending` are prefixes under way."""
    raft = replica.raft
    progress = raft.status().get("progress", {})
    members = []
    for node_id, (peer_address, client_address) in sorted(raft.configuration.members.items()):
        known = progress.get(node_id, {})
        is_self = node_id == replica.node_id
        members.append(
            {
                "node_id": node_id,
                "peer_address": peer_address,
                "client_address": client_address,
                "voter": node_id in raft.configuration.voters,
                "match_index": raft.last_index if is_self else known.get("match_index"),
                "state": "self" if is_self else known.get("state"),
                "last_contact_s": known.get("silent_s"),
                "prefix": sending.get(node_id),
            }
        )
    return members


def _loop(replica: Replica) -> dict[str, Any]:
    """What the loop has done, and how long its turns took."""
    counts = replica.counts
    return {
        "turns": counts.turns,
        "turn_ms_p99": counts.turn_ms(0.99),
        "turn_ms_p999": counts.turn_ms(0.999),
        "turns_by_ms": list(counts.turns_by_ms),
        "longest_turn_ms": round(counts.longest_turn_s * 1000, 3),
        "busy_s": round(counts.busy_s, 3),
        "entries_applied": counts.entries_applied,
        "batches_proposed": counts.batches_proposed,
        "groups_dropped": counts.groups_dropped,
        "stalls": counts.stalls,
        "reads_waiting": replica.reads.waiting(),
        "commands_waiting_bytes": replica.intake.size_bytes,
    }


def transfer_leader(replica: Replica, arguments: list[Any], now: float) -> int:
    """Hand leadership to a member (0: the best one).

    The answer is the index at which it was asked for.
    """
    if len(arguments) != 1 or type(arguments[0]) is not int:
        raise BadCommand("transfer_leader takes a node id (0: the best follower)")
    leader, address = replica.leader_fields()
    if leader != replica.node_id:
        raise NotLeader(
            f"server {replica.node_id} does not lead; "
            f"the leader is {leader or 'unknown'} at {address or '-'}"
        )
    target = arguments[0]
    if target and target not in replica.raft.configuration.voters:
        raise BadCommand(
            f"member {target} is no voter; voters are {sorted(replica.raft.configuration.voters)}"
        )
    replica.raft.transfer_leadership(NodeId(target) if target else None, now)
    return replica.raft.last_index


def sessions(replica: Replica, arguments: list[Any], now: float) -> list[dict[str, Any]]:
    """The first open sessions by id, at most SESSIONS_MAX."""
    limit = arguments[0] if arguments and type(arguments[0]) is int else SESSIONS_MAX
    multiplexer = replica.multiplexer
    return [
        {
            "session_id": session.id,
            "name": session.client_name,
            "timeout_ms": session.timeout_ms,
            "silent_ms": max(multiplexer.time - session.last_seen, 0),
            "pending_events": session.events.count,
            "open_resources": len(session.opened),
        }
        for session in islice(multiplexer.sessions, min(limit, SESSIONS_MAX))
    ]


ADMIN_OPERATIONS: Mapping[str, Callable[[Replica, list[Any], float], Any]] = {
    "status": status,
    "transfer_leader": transfer_leader,
    "sessions": sessions,
}


def answer(replica: Replica, connection: ClientConnection, question: list[Any], now: float) -> None:
    """Answer an ADMIN frame, at once or, for what takes longer, when it is done."""
    request_id, operation, arguments = question

    def reply(result: Any) -> None:
        connection.send(FrameType.ADMIN_RESULT, request_id, None, result)

    backups = replica.backups.operations
    try:
        if operation in ADMIN_OPERATIONS:
            reply(ADMIN_OPERATIONS[operation](replica, arguments, now))
        elif operation in backups:
            backups[operation](connection, arguments, reply, now)
        else:
            known = sorted([*ADMIN_OPERATIONS, *backups])
            raise BadCommand(f"no such operation: {operation!r}; known are {known}")
    except FolkmootError as error:
        text = Exception.__str__(error)
        connection.send(FrameType.ADMIN_RESULT, request_id, error.code, text)
