"""What clients and servers say to one another: the frames of a client's connection.

Pure: no I/O, no clock, no randomness. `transport/frame.py` splits the bytes into frames; this
module says what a frame's type means, and checks every body before anybody looks at it. Wrong
bodies raise RemoteProtocolError, nothing else.

A connection begins with HELLO and WELCOME (or REFUSED, then close). A client has one session on it:

    client                                   server
    OPEN_SESSION secret, timeout, name  ->
                                        <-   SESSION id, timeout, index, sequence
    COMMANDS id, first sequence, ...    ->   (the very group that goes into the log)
                                        <-   EVENTS [index, previous index, events]
                                        <-   RESULTS first sequence, index, values, errors
    KEEP_ALIVE                          ->
                                        <-   KEPT number, index

THE ORDER ON THE WIRE IS THE ORDER OF DELIVERY: an event of index i comes before the result of any
command with an index above i, and of one entry the result comes before its events. A read's answer
with index r comes after all events up to r.

An OPERATION is `[resource, name, args]`, or `[resource, name, args, [fence resource id, fence
token]]`. `resource` is the id, or, until the client has learned it, `[name, type, type version,
configuration]`: open (or create) and do, in one entry. The answer to such a command is `[resource
id, answer, note]` (note: nil, or how the configuration differs).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Any

from folkmoot.core.batch import COMMANDS_HEADER
from folkmoot.core.errors import FolkmootError, RemoteProtocolError, from_wire
from folkmoot.transport.codec import pack, unpack
from folkmoot.transport.frame import encode_frame

PROTOCOL_VERSION = 1
SECRET_BYTES = 16
DIRECTORY = 0
"""The resource id of the directory itself."""


class FrameType(enum.IntEnum):
    """Types of frames on any connection. The numbers never change their meaning."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    OPEN_SESSION = 4
    RESUME_SESSION = 5
    SESSION = 6
    CLOSE_SESSION = 7
    SESSION_ENDED = 8
    COMMANDS = 9
    RESULTS = 10
    EVENTS = 11
    KEEP_ALIVE = 12
    KEPT = 13
    READ = 14
    READ_RESULTS = 15
    LEADER = 16
    ADMIN = 17
    ADMIN_RESULT = 18
    REFUSED_COMMANDS = 19
    # 32 and above: between members, see core/peer.py and core/raft/messages.py


_NONE = type(None)

BODIES: dict[int, tuple[tuple[type, ...], ...]] = {
    FrameType.HELLO: ((int,), (str,), (bytes,), (int,), (str,)),
    FrameType.WELCOME: ((int,), (bytes,), (int,), (int,), (str,)),
    FrameType.REFUSED: ((str,), (str,)),
    FrameType.OPEN_SESSION: ((bytes,), (int,), (str,)),
    FrameType.RESUME_SESSION: ((int,), (bytes,), (int,), (int,)),
    FrameType.SESSION: ((int,), (int,), (int,), (int,)),
    FrameType.CLOSE_SESSION: ((int,),),
    FrameType.SESSION_ENDED: ((int,), (str,), (int,)),
    FrameType.RESULTS: ((int,), (int,), (list,), (list, _NONE)),
    FrameType.EVENTS: ((list,),),
    FrameType.KEEP_ALIVE: ((int,), (int,), (int,), (int,)),
    FrameType.KEPT: ((int,), (int,)),
    FrameType.READ: ((int,), (str,), (int,), (int,), (list,)),
    FrameType.READ_RESULTS: ((int,), (int,), (list,), (list, _NONE)),
    FrameType.LEADER: ((int,), (str,)),
    FrameType.ADMIN: ((int,), (str,), (list,)),
    FrameType.REFUSED_COMMANDS: ((int,), (str,), (str,)),
    FrameType.ADMIN_RESULT: ((int,), (str, _NONE), (str, bytes, list, dict, int, bool, _NONE)),
}
"""The body of each frame that is a msgpack array: the types of its fields, in this order:

HELLO           protocol version, role ("client" or "peer"), cluster id (empty: any), node id (0: a
                client), name
WELCOME         protocol version, cluster id, node id, leader's node id (0: none known), leader's
                client address
REFUSED         error code, message; the connection closes behind it
OPEN_SESSION    secret (16 random bytes, made by the client: repeating it opens no second session),
                timeout ms, client name
RESUME_SESSION  session id, secret, last event index received, first unanswered sequence
SESSION         session id, timeout ms, applied index, last applied sequence
CLOSE_SESSION   session id
SESSION_ENDED   session id, reason ("expired", "closed", "restored", "unknown"), index (0: unknown)
RESULTS         first sequence, index of the last, values, errors: [[offset, code, message, data],
                ...] (nil: none)
EVENTS          list of [index, previous event index of this session, [event bytes, ...]]; event:
                pack([resource id, kind, payload]). One that has received all up to `last` takes a
                batch with previous <= last < index, has had one with index <= last, and has missed
                something where previous > last (see core/events.py)
KEEP_ALIVE      session id, low water (highest sequence up to which all answers arrived), last event
                index, number
KEPT            the number of the keep-alive, index
READ            request id, consistency, at least this index, after this sequence of the session,
                operations
READ_RESULTS    request id, index, values, errors (as RESULTS)
LEADER          leader's node id (0: none), leader's client address
ADMIN           request id, operation, arguments
ADMIN_RESULT    request id, error code (nil: none), result or message
REFUSED_COMMANDS first sequence, error code, message: it and all commands of this connection behind
                it were not taken and never will be; the client goes on from that sequence
COMMANDS is not an array: COMMANDS_HEADER (see core/batch.py) and a msgpack array of operations, as
it goes into the log.
"""


def encode(frame_type: FrameType, *fields: Any) -> bytes:
    """One frame with a msgpack array as its body."""
    return encode_frame(frame_type, pack(fields))


def decode(frame_type: int, body: bytes) -> list[Any]:
    """Decode and check the body of any array frame.

    Raises RemoteProtocolError naming the frame and the field.
    """
    shape = BODIES.get(frame_type)
    if shape is None:
        raise RemoteProtocolError(
            f"frame type {frame_type} is not known to protocol version {PROTOCOL_VERSION}"
        )
    fields = unpack(body)
    name = FrameType(frame_type).name
    if type(fields) is not list or len(fields) != len(shape):
        raise RemoteProtocolError(f"{name}: an array of {len(shape)} fields is needed")
    for position, allowed in enumerate(shape):
        value = fields[position]
        if type(value) not in allowed:
            raise RemoteProtocolError(f"{name}: field {position + 1} is {type(value).__name__}")
        if type(value) is int and value < 0:
            raise RemoteProtocolError(f"{name}: field {position + 1} is {value}, below zero")
    return list(fields)


def encode_commands(
    session_id: int, first_sequence: int, low_water: int, event_index: int, operations: list[Any]
) -> bytes:
    """The body of a COMMANDS frame, which is also the payload of a COMMANDS group."""
    return COMMANDS_HEADER.pack(session_id, first_sequence, low_water, event_index) + pack(
        operations
    )


_LEAVES = frozenset({type(None), bool, int, float, str, bytes})


def pack_operation(name: str, args: Sequence[Any], fence: tuple[int, int] | None = None) -> bytes:
    """An operation without its resource: what stands behind the resource in its array.

    Raises UsageError for arguments that are not plain data or that nest too deep to arrive.
    """
    fields = (name, args) if fence is None else (name, args, fence)
    if _LEAVES.issuperset(map(type, args)):
        return pack(fields)[1:]
    # Packed at the depth that it has in a READ, so that what passes here passes the server's gate.
    return pack(((fields,),))[3:]


def pack_resource(resource: Any, *, fenced: bool = False) -> bytes:
    """The head of an operation's array, with its resource.

    Put before what `pack_operation` gave.
    """
    return (b"\x94" if fenced else b"\x93") + pack(resource)


def _array(items: Sequence[bytes]) -> bytes:
    """The msgpack array of items that are packed already."""
    count = len(items)
    if count < 16:
        header = bytes((0x90 | count,))
    elif count < 1 << 16:
        header = struct.pack(">BH", 0xDC, count)
    else:
        header = struct.pack(">BI", 0xDD, count)
    return header + b"".join(items)


def commands_frame(
    session_id: int,
    first_sequence: int,
    low_water: int,
    event_index: int,
    operations: Sequence[bytes],
) -> bytes:
    """A COMMANDS frame of operations that are packed already (see `pack_operation`)."""
    header = COMMANDS_HEADER.pack(session_id, first_sequence, low_water, event_index)
    return encode_frame(FrameType.COMMANDS, header + _array(operations))


def read_frame(
    request_id: int,
    consistency: str,
    at_least: int,
    after_sequence: int,
    operations: Sequence[bytes],
) -> bytes:
    """A READ frame of operations that are packed already (see `pack_operation`)."""
    fields = (pack(request_id), pack(consistency), pack(at_least), pack(after_sequence))
    return encode_frame(FrameType.READ, _array((*fields, _array(operations))))


def decode_operations(payload: bytes) -> list[Any]:
    """The operations of a COMMANDS body. Raises RemoteProtocolError unless each has the shape of an
    operation.

    Whether resource, operation and arguments make sense is the multiplexer's to say.
    """
    if len(payload) <= COMMANDS_HEADER.size:
        raise RemoteProtocolError(
            f"COMMANDS: {len(payload)} bytes, the header alone has {COMMANDS_HEADER.size}"
        )
    operations = unpack(payload[COMMANDS_HEADER.size :])
    if type(operations) is not list or not operations:
        raise RemoteProtocolError("COMMANDS: a list of at least one operation is needed")
    for operation in operations:
        if type(operation) is list and len(operation) == 3:  # the usual one, checked in place
            resource, name, args = operation
            if type(resource) is int and resource >= 0 and type(name) is str and type(args) is list:
                continue
        check_operation(operation)
    return operations


def check_operation(operation: Any) -> None:
    """Raise RemoteProtocolError unless `operation` is `[resource, name, args]` or that with a
    fence.
    """
    if (
        type(operation) is not list
        or not 3 <= len(operation) <= 4
        or type(operation[1]) is not str
        or type(operation[2]) is not list
    ):
        raise RemoteProtocolError("an operation is [resource, name, arguments] or that and a fence")
    resource = operation[0]
    if type(resource) is not int:
        if type(resource) is not list or tuple(map(type, resource)) != (str, str, int, dict):
            raise RemoteProtocolError(
                "a resource is an id or [name, type, type version, configuration]"
            )
    elif resource < 0:
        raise RemoteProtocolError(f"resource id {resource} is below zero")
    if len(operation) == 4:
        fence = operation[3]
        if type(fence) is not list or tuple(map(type, fence)) != (int, int):
            raise RemoteProtocolError("a fence is [resource id, token]")


def error_fields(error: FolkmootError) -> list[Any]:
    """An error as it travels: [code, message, data]."""
    return [error.code, Exception.__str__(error), getattr(error, "data", None)]


def error_from_fields(fields: Any) -> FolkmootError:
    """The error that `error_fields` described. Raises RemoteProtocolError where it is malformed."""
    if (
        type(fields) is not list
        or len(fields) != 3
        or type(fields[0]) is not str
        or type(fields[1]) is not str
    ):
        raise RemoteProtocolError("an error is [code, message, data]")
    return from_wire(fields[0], fields[1], fields[2])
