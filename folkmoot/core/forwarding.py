"""What members say to one another besides consensus.

Pure: no I/O, no clock, no randomness.

    HELLO      the first frame of a link, answered by WELCOME or REFUSED (the shapes are in
               core/requests.py)
    FORWARD    groups for the log (commands, openings, closings, keep-alives) from a server that
               does not lead, as they go into a batch. It carries no answer back: the forwarding
               server answers when it has applied the entry itself.
    ROOM       a leader says whether its disk is low: on a change, to members that come up, and
               again and again while it is (see core/room.py)

Frame types 32 to 63 are the messages of consensus (core/raft/messages.py), 32 above their own
numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence

from folkmoot.core.batch import GROUP_HEADER, Group
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft.messages import (
    Message,
    decode_message,
    encode_message,
    message_type,
)
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, decode
from folkmoot.core.room import Shortage
from folkmoot.core.types import NodeId
from folkmoot.transport.frame import encode_frame

FORWARD = 64
ROOM = 65
_CONSENSUS = 32
_ROOM = struct.Struct("<QBQQ")
"""Term, whether the disk is low, bytes free, bytes of the reserve (both 0 if it is not low)."""


def encode_consensus(message: Message) -> bytes:
    """One frame with a message of consensus."""
    return encode_frame(_CONSENSUS + message_type(message), encode_message(message))


def decode_consensus(frame_type: int, body: bytes) -> Message:
    """The message of consensus in a frame. Raises RemoteProtocolError, only that."""
    return decode_message(frame_type - _CONSENSUS, body)


def encode_forward(groups: Sequence[Group]) -> bytes:
    """One frame with groups in the form that they have in a batch."""
    parts = []
    for group in groups:
        parts.append(GROUP_HEADER.pack(len(group.payload), group.count, group.kind))
        parts.append(group.payload)
    return encode_frame(FORWARD, b"".join(parts))


def decode_forward(body: bytes) -> list[Group]:
    """The groups of a FORWARD frame. Raises RemoteProtocolError where they do not add up."""
    groups = []
    offset = 0
    while offset < len(body):
        if len(body) - offset < GROUP_HEADER.size:
            raise RemoteProtocolError(
                f"FORWARD: {len(body) - offset} bytes left at offset {offset}"
            )
        size_bytes, count, kind = GROUP_HEADER.unpack_from(body, offset)
        offset += GROUP_HEADER.size
        if size_bytes > len(body) - offset or count < 1:
            raise RemoteProtocolError(
                f"FORWARD: a group of {size_bytes} bytes and {count} entries at offset {offset}"
            )
        groups.append(Group(kind, count, body[offset : offset + size_bytes]))
        offset += size_bytes
    return groups


def encode_room(term: int, shortage: Shortage | None) -> bytes:
    """One frame in which the leader of `term` says how its disk is."""
    if shortage is None:
        return encode_frame(ROOM, _ROOM.pack(term, 0, 0, 0))
    body = _ROOM.pack(term, 1, shortage.free_bytes, shortage.reserve_bytes)
    return encode_frame(ROOM, body)


def decode_room(sender: NodeId, body: bytes) -> tuple[int, Shortage | None]:
    """The term and what the sender is short of. Raises RemoteProtocolError, only that."""
    if len(body) != _ROOM.size:
        raise RemoteProtocolError(f"ROOM: {len(body)} bytes, {_ROOM.size} are needed")
    term, is_low, free_bytes, reserve_bytes = _ROOM.unpack(body)
    return term, Shortage(sender, free_bytes, reserve_bytes) if is_low else None


def check_peer_hello(
    body: bytes, *, cluster_id: bytes, node_id: NodeId, members: Collection[NodeId]
) -> NodeId:
    """The member that says hello.

    Raises RemoteProtocolError naming both values where it is none of ours.
    """
    version, role, their_cluster, their_id, meant = decode(FrameType.HELLO, body)
    if version != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"member {their_id} speaks protocol version {version}, this server {PROTOCOL_VERSION}"
        )
    if role != "peer":
        raise RemoteProtocolError(
            f"role {role!r} on the listener for members; clients connect to the client address"
        )
    if their_cluster != cluster_id:
        raise RemoteProtocolError(
            f"member {their_id} belongs to cluster {their_cluster.hex()}, "
            f"this server to {cluster_id.hex()}; "
            "were both started with the same cluster name and the same first members?"
        )
    if meant != str(node_id):
        raise RemoteProtocolError(
            f"member {their_id} wants member {meant} here, this is {node_id}: check the addresses"
        )
    if their_id not in members or their_id == node_id:
        raise RemoteProtocolError(
            f"{their_id} is no other member of this cluster (members: {sorted(members)})"
        )
    return NodeId(their_id)
