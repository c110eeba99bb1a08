"""What members say about prefixes: there and back; whatever else there is in a frame is refused."""

from __future__ import annotations

from typing import Any

import pytest

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.prefix_frames import (
    ASK,
    CHUNK,
    CHUNK_BYTES,
    DAMAGED,
    OFFER,
    TABLE_BYTES_MAX,
    Ask,
    Chunk,
    Damaged,
    Offer,
    decode_prefix,
    encode_prefix,
    is_prefix,
)
from folkmoot.transport.codec import pack
from folkmoot.transport.frame import FrameReader

ID = b"i" * 16


@pytest.mark.parametrize(
    "message",
    [
        Offer(3, 170, b"table"),
        Ask(3, ID, 2, 1 << 40, CHUNK_BYTES, (1 << 64) - 1),
        Ask(3, ID, 0, 0, 0, 0),
        Chunk(ID, 2, 1 << 40, b"bytes"),
        Damaged(3, ID, 2),
    ],
)
def test_each_message_comes_back(message: Any) -> None:
    ((frame_type, _, body),) = FrameReader(1 << 20).feed(encode_prefix(message))
    assert is_prefix(frame_type)
    assert decode_prefix(frame_type, body) == message


@pytest.mark.parametrize(
    ("frame_type", "fields"),
    [
        (OFFER, []),
        (OFFER, [3, b"table"]),
        (OFFER, [3, -1, b"table"]),
        (OFFER, [3, 170, "table"]),
        (OFFER, [True, 170, b"table"]),
        (OFFER, [3, 170, bytes(TABLE_BYTES_MAX + 1)]),
        (ASK, [3, ID, 2, 0, CHUNK_BYTES + 1, 0]),
        (ASK, [3, ID, -2, 0, 1, 0]),
        (ASK, [3, ID, 2, 1.0, 1, 0]),
        (CHUNK, [ID, 2, 0, None]),
        (DAMAGED, [3, ID]),
        (DAMAGED, {"term": 3}),
    ],
)
def test_what_is_no_message_is_refused(frame_type: int, fields: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_prefix(frame_type, pack(fields))


def test_bytes_that_are_no_data_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_prefix(OFFER, b"\xc1")
