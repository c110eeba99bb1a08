"""What servers say to one another about consensus, and its bytes.

Pure: no I/O, no clock, no randomness. Not the frame: length, type and flags around these bytes
belong to the transport; the type number here is the number in that frame.

An `Append` is a fixed header and then the batches' own bytes as the leader made them: nothing is
encoded again on the way, and what a follower verifies is what it stores. The others are small
structs. All integers are little-endian and below 2**62, so that sums stay within 64 bits.

Every message carries a `term`; what a receiver does about a higher or lower one is the node's
business. `decode_message` trusts nothing: sizes, flags, ranges and batches are checked, and only
RemoteProtocolError comes out.

Source: figure 3.1 (§3), §9.6 (pre-vote), §6.4 (read index), §3.10 (TimeoutNow).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import attrs

from folkmoot.core.batch import Batch, decode_batch
from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt

INTEGER_MAX = (1 << 62) - 1
"""Terms, indexes, rounds and questions on the wire lie below this."""
NO_ROUND = 0
"""Rounds are counted from 1; this one is never asked and never awaited."""


@attrs.define
class Append:
    """Leader to follower: what follows `prev_index` (§3.5). Without batches it is a heartbeat."""

    term: int
    prev_index: int
    prev_term: int
    commit_index: int
    round: int
    """The leader's newest round when this was sent; echoed. Reads and leases count on it (§6.4)."""
    batches: Sequence[Batch] = ()


@attrs.define
class AppendReply:
    """Follower to leader: what of that very request is verified and durable, or where it failed."""

    term: int
    round: int
    """The request's; NO_ROUND when an older term was refused."""
    success: bool
    prev_index: int
    """The request's: a refusal counts only while it answers the leader's present position."""
    match_index: int
    """On success, the last index verified by that request and durable here; else 0."""
    last_index: int
    """The end of the follower's log: a hint for people and for the prefix transfer."""
    conflict_index: int
    """On refusal, where to try next: the conflicting term's first index (§3.5), or the end + 1."""
    conflict_term: int
    """On refusal, the term found at `prev_index`; 0 when the log is too short to have one."""
    wants_commit: bool
    """Clients wait on this follower: tell it about commits at once."""


@attrs.define
class VoteRequest:
    """Candidate to voter (§3.4); with `pre` only asks whether it would be granted (§9.6)."""

    term: int
    """The term to be elected for. A pre-candidate has not entered it."""
    last_index: int
    last_term: int
    pre: bool
    transfer: bool
    """The old leader asked for this election (§3.10), so stickiness does not apply."""


@attrs.define
class VoteReply:
    """Voter to candidate. It counts only for exactly (election_term, pre)."""

    term: int
    """The voter's own term."""
    election_term: int
    pre: bool
    granted: bool


@attrs.define
class TimeoutNow:
    """Leader to its chosen successor: campaign at once (§3.10)."""

    term: int


@attrs.define
class ReadIndexRequest:
    """Follower to leader: up to where must I have applied to answer my reads (§6.4)?"""

    term: int
    question: int
    """The asker's number for it, never used twice, not even after a restart."""


@attrs.define
class ReadIndexReply:
    """Leader to follower. `index` 0 refuses: not the leader, or too many reads wait."""

    term: int
    question: int
    index: int


Message = (
    Append | AppendReply | VoteRequest | VoteReply | TimeoutNow | ReadIndexRequest | ReadIndexReply
)

_APPEND = struct.Struct("<QQQQQ")
_APPEND_REPLY = struct.Struct("<QQQQQQQB")
_VOTE_REQUEST = struct.Struct("<QQQB")
_VOTE_REPLY = struct.Struct("<QQB")
_TIMEOUT_NOW = struct.Struct("<Q")
_READ_REQUEST = struct.Struct("<QQ")
_READ_REPLY = struct.Struct("<QQQ")


def encode_message(message: Message) -> bytes:
    """Return the body of the frame for `message`; its type number is `message_type(message)`."""
    return _ENCODERS[type(message)](message)


def decode_message(number: int, data: bytes) -> Message:
    """Rebuild a message from its type number and body. Raises RemoteProtocolError, only that."""
    decoder = _DECODERS.get(number)
    if decoder is None:
        raise RemoteProtocolError(
            f"message type {number} is unknown; this program knows {sorted(_DECODERS)}"
        )
    return decoder(data)


def message_type(message: Message) -> int:
    """Return the type number of `message` in a frame."""
    return MESSAGE_TYPES[type(message)]


def _encode_append(m: Append) -> bytes:
    header = _APPEND.pack(m.term, m.prev_index, m.prev_term, m.commit_index, m.round)
    return b"".join([header, *[batch.data for batch in m.batches]])


def _decode_append(data: bytes) -> Append:
    if len(data) < _APPEND.size:
        raise RemoteProtocolError(f"append: {len(data)} bytes, its header has {_APPEND.size}")
    fields = _APPEND.unpack_from(data)
    _check_range("append", fields)
    batches: list[Batch] = []
    offset = _APPEND.size
    while offset < len(data):
        try:
            batch = decode_batch(data, offset)
        except StorageCorrupt as error:
            raise RemoteProtocolError(f"append: {error}") from error
        _check_range("batch", (batch.term, batch.last_index, batch.log_time))
        batches.append(batch)
        offset += len(batch.data)
    term, prev_index, prev_term, commit_index, round_number = fields
    return Append(term, prev_index, prev_term, commit_index, round_number, batches)


def _encode_append_reply(m: AppendReply) -> bytes:
    return _APPEND_REPLY.pack(
        m.term,
        m.round,
        m.prev_index,
        m.match_index,
        m.last_index,
        m.conflict_index,
        m.conflict_term,
        m.success | m.wants_commit << 1,
    )


def _decode_append_reply(data: bytes) -> AppendReply:
    *fields, flags = _unpack(_APPEND_REPLY, "append reply", data, flags_max=3)
    term, round_number, prev, match, last, conflict_index, conflict_term = fields
    return AppendReply(
        term,
        round_number,
        bool(flags & 1),
        prev,
        match,
        last,
        conflict_index,
        conflict_term,
        bool(flags & 2),
    )


def _encode_vote_request(m: VoteRequest) -> bytes:
    return _VOTE_REQUEST.pack(m.term, m.last_index, m.last_term, m.pre | m.transfer << 1)


def _decode_vote_request(data: bytes) -> VoteRequest:
    term, last_index, last_term, flags = _unpack(_VOTE_REQUEST, "vote request", data, flags_max=3)
    return VoteRequest(term, last_index, last_term, bool(flags & 1), bool(flags & 2))


def _encode_vote_reply(m: VoteReply) -> bytes:
    return _VOTE_REPLY.pack(m.term, m.election_term, m.pre | m.granted << 1)


def _decode_vote_reply(data: bytes) -> VoteReply:
    term, election_term, flags = _unpack(_VOTE_REPLY, "vote reply", data, flags_max=3)
    return VoteReply(term, election_term, bool(flags & 1), bool(flags & 2))


def _encode_timeout_now(m: TimeoutNow) -> bytes:
    return _TIMEOUT_NOW.pack(m.term)


def _decode_timeout_now(data: bytes) -> TimeoutNow:
    return TimeoutNow(*_unpack(_TIMEOUT_NOW, "timeout now", data))


def _encode_read_request(m: ReadIndexRequest) -> bytes:
    return _READ_REQUEST.pack(m.term, m.question)


def _decode_read_request(data: bytes) -> ReadIndexRequest:
    return ReadIndexRequest(*_unpack(_READ_REQUEST, "read request", data))


def _encode_read_reply(m: ReadIndexReply) -> bytes:
    return _READ_REPLY.pack(m.term, m.question, m.index)


def _decode_read_reply(data: bytes) -> ReadIndexReply:
    return ReadIndexReply(*_unpack(_READ_REPLY, "read reply", data))


def _unpack(
    layout: struct.Struct, name: str, data: bytes, *, flags_max: int | None = None
) -> tuple[int, ...]:
    """Unpack a message of fixed size; `flags_max` is given where the last field holds flags."""
    if len(data) != layout.size:
        raise RemoteProtocolError(f"{name}: {len(data)} bytes, it has {layout.size}")
    fields: tuple[int, ...] = layout.unpack(data)
    if flags_max is not None and fields[-1] > flags_max:
        raise RemoteProtocolError(f"{name}: flags {fields[-1]:#x} are unknown")
    _check_range(name, fields)
    return fields


def _check_range(name: str, values: Sequence[int]) -> None:
    if max(values) > INTEGER_MAX:
        raise RemoteProtocolError(f"{name}: {max(values)} is out of range")


MESSAGE_TYPES: dict[type, int] = {
    Append: 1,
    AppendReply: 2,
    VoteRequest: 3,
    VoteReply: 4,
    TimeoutNow: 5,
    ReadIndexRequest: 6,
    ReadIndexReply: 7,
}
"""Class -> type number. The numbers are on the wire: they never change their meaning."""

_ENCODERS: dict[type, Callable[..., bytes]] = {
    Append: _encode_append,
    AppendReply: _encode_append_reply,
    VoteRequest: _encode_vote_request,
    VoteReply: _encode_vote_reply,
    TimeoutNow: _encode_timeout_now,
    ReadIndexRequest: _encode_read_request,
    ReadIndexReply: _encode_read_reply,
}

_DECODERS: dict[int, Callable[[bytes], Message]] = {
    1: _decode_append,
    2: _decode_append_reply,
    3: _decode_vote_request,
    4: _decode_vote_reply,
    5: _decode_timeout_now,
    6: _decode_read_request,
    7: _decode_read_reply,
}
