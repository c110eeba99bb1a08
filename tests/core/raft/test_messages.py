"""The messages' bytes: what goes in comes out, and rubbish raises only RemoteProtocolError."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.raft import (
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
from folkmoot.core.raft.messages import INTEGER_MAX
from tests.core.raft.single import batches

numbers = st.integers(0, INTEGER_MAX)
flags = st.booleans()
shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=4)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Append, numbers, numbers, numbers, numbers, numbers, shapes.map(lambda s: batches(*s))
    ),
    st.builds(
        AppendReply, numbers, numbers, flags, numbers, numbers, numbers, numbers, numbers, flags
    ),
    st.builds(VoteRequest, numbers, numbers, numbers, flags, flags),
    st.builds(VoteReply, numbers, numbers, flags, flags),
    st.builds(TimeoutNow, numbers),
    st.builds(ReadIndexRequest, numbers, numbers),
    st.builds(ReadIndexReply, numbers, numbers, numbers),
)


@given(messages)
def test_every_message_survives_its_bytes(message: Message) -> None:
    again = decode_message(message_type(message), encode_message(message))
    assert again == message
    assert type(again) is type(message)


def test_an_append_carries_the_batches_own_bytes() -> None:
    held = batches((1, 2), (2, 1))
    data = encode_message(Append(2, 0, 0, 0, 1, held))
    assert data.endswith(held[0].data + held[1].data)


@given(st.integers(0, 10), st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_the_protocol_error(number: int, data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_message(number, data)


@given(messages, st.data())
def test_damaged_bytes_raise_only_the_protocol_error(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode_message(message))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(body)))
    for damaged in (bytes(body), bytes(body[:cut]), bytes(body) + b"\0"):
        with contextlib.suppress(RemoteProtocolError):
            decode_message(message_type(message), damaged)


def test_a_flipped_bit_in_a_batch_is_always_found() -> None:
    data = encode_message(Append(1, 0, 0, 0, 1, batches((1, 1))))
    for bit in range(8 * 40, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            decode_message(1, bytes(damaged))


@pytest.mark.parametrize("number", [0, 8, 255])
def test_an_unknown_type_names_what_is_known(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"type {number} is unknown.*\[1, 2, 3, 4, 5"):
        decode_message(number, b"")


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="out of range"):
        decode_message(5, struct.pack("<Q", INTEGER_MAX + 1))


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="flags 0x4"):
        decode_message(4, struct.pack("<QQB", 1, 1, 4))


def test_type_numbers_never_change() -> None:
    """They are on the wire: a change here is a decision, not an accident."""
    assert {kind.__name__: number for kind, number in MESSAGE_TYPES.items()} == {
        "Append": 1,
        "AppendReply": 2,
        "VoteRequest": 3,
        "VoteReply": 4,
        "TimeoutNow": 5,
        "ReadIndexRequest": 6,
        "ReadIndexReply": 7,
    }


GOLDEN: list[tuple[Message, str]] = [
    (
        Append(7, 6, 5, 4, 3, []),
        "07000000000000000600000000000000050000000000000004000000000000000300000000000000",
    ),
    (
        AppendReply(7, 6, True, 5, 4, 3, 2, 1, True),
        "0700000000000000"
        "0600000000000000"
        "0500000000000000"
        "0400000000000000"
        "0300000000000000"
        "0200000000000000"
        "0100000000000000"
        "03",
    ),
    (VoteRequest(3, 2, 1, True, False), "03000000000000000200000000000000010000000000000001"),
    (VoteReply(3, 4, False, True), "0300000000000000040000000000000002"),
    (TimeoutNow(9), "0900000000000000"),
    (ReadIndexRequest(2, 5), "02000000000000000500000000000000"),
    (ReadIndexReply(2, 5, 8), "020000000000000005000000000000000800000000000000"),
]


@pytest.mark.parametrize(("message", "expected"), GOLDEN, ids=lambda v: type(v).__name__)
def test_the_wire_format_is_what_it_was(message: Message, expected: str) -> None:
    assert encode_message(message).hex() == expected
    assert decode_message(message_type(message), bytes.fromhex(expected)) == message
