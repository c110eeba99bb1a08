"""Framing: any way of cutting gives the same frames, and limits come before memory."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.transport.frame import FRAME_HEADER, Frame, FrameReader, encode_frame

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40)))
LIMIT = 1 << 16


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)]


def read(reader: FrameReader, pieces: list[bytes]) -> list[Frame]:
    return [found for piece in pieces for found in reader.feed(piece)]


def test_a_frame_is_what_the_format_says() -> None:
    data = encode_frame(7, b"body", flags=3)
    assert data == b"\x06\x00\x00\x00\x07\x03body"
    assert FrameReader(LIMIT).feed(data) == [(7, 3, b"body")]


@given(FRAMES, st.lists(st.integers(min_value=0), max_size=20))
def test_any_cutting_gives_the_same_frames(frames: list[Frame], places: list[int]) -> None:
    data = b"".join(encode_frame(kind, body, flags) for kind, flags, body in frames)
    reader = FrameReader(LIMIT)
    found = read(reader, cut(data, places))
    assert found == frames
    assert all(type(body) is bytes for _, _, body in found)
    assert reader.kept_bytes == 0


@given(FRAMES)
def test_byte_by_byte_is_a_cutting_too(frames: list[Frame]) -> None:
    data = b"".join(encode_frame(kind, body, flags) for kind, flags, body in frames)
    assert read(FrameReader(LIMIT), [data[i : i + 1] for i in range(len(data))]) == frames


@given(st.lists(st.binary(max_size=60)), st.integers(2, 100))
def test_arbitrary_bytes_give_frames_within_the_limit_or_a_protocol_error(
    pieces: list[bytes], limit: int
) -> None:
    reader = FrameReader(limit)
    fed = 0
    with contextlib.suppress(RemoteProtocolError):
        for piece in pieces:
            fed += len(piece)
            for _, _, body in reader.feed(piece):
                assert len(body) + 2 <= limit
            assert reader.kept_bytes <= (fed if reader.blocked else limit + 4)


@pytest.mark.parametrize("size_bytes", [101, 1 << 20, 0xFFFF_FFFF])
def test_too_large_is_refused_from_the_header_alone(size_bytes: int) -> None:
    reader = FrameReader(100)
    with pytest.raises(RemoteProtocolError, match=rf"{size_bytes} bytes; the limit is 100"):
        reader.feed(FRAME_HEADER.pack(size_bytes, 1, 0))


def test_the_limit_itself_is_allowed() -> None:
    assert FrameReader(100).feed(encode_frame(1, b"x" * 98)) == [(1, 0, b"x" * 98)]


@pytest.mark.parametrize("size_bytes", [0, 1])
def test_too_small_to_be_a_frame_is_refused(size_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError, match="type and flags alone are 2"):
        FrameReader(100).feed(FRAME_HEADER.pack(size_bytes, 1, 0))


def test_after_a_refusal_every_feed_is_refused() -> None:
    reader = FrameReader(100)
    with pytest.raises(RemoteProtocolError) as first:
        reader.feed(FRAME_HEADER.pack(500, 1, 0))
    reader.frame_bytes_max = 1000
    with pytest.raises(RemoteProtocolError) as second:
        reader.feed(encode_frame(1, b"good"))
    assert str(first.value) == str(second.value)


def test_frames_before_a_refused_one_are_delivered() -> None:
    reader = FrameReader(100)
    assert reader.feed(encode_frame(1, b"good") + encode_frame(1, bytes(200))) == [(1, 0, b"good")]
    assert reader.blocked
    with pytest.raises(RemoteProtocolError, match="202 bytes; the limit is 100"):
        reader.feed(b"")


def test_a_limit_raised_after_the_hello_holds_for_the_frame_right_behind_it() -> None:
    reader = FrameReader(100)
    large = encode_frame(2, bytes(200))
    assert reader.feed(encode_frame(1, b"hello") + large + large[:50]) == [(1, 0, b"hello")]
    reader.frame_bytes_max = 1000
    assert reader.feed(b"") == [(2, 0, bytes(200))]
    assert not reader.blocked
    assert reader.feed(large[50:]) == [(2, 0, bytes(200))]


def test_a_limit_lowered_holds_from_the_next_frame_on() -> None:
    reader = FrameReader(1000)
    large = encode_frame(1, bytes(200))
    assert reader.feed(large[:100]) == []
    reader.frame_bytes_max = 50
    with pytest.raises(RemoteProtocolError, match="limit is 50"):
        reader.feed(large[100:])


@pytest.mark.parametrize("piece_bytes", [2, 1448, 65_536])
def test_memory_and_work_are_linear_in_a_trickling_frame(piece_bytes: int) -> None:
    body = bytes(1 << 20)
    data = encode_frame(1, body)
    pieces = [data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)]
    reader = FrameReader(1 << 21)
    tracemalloc.start()
    try:
        frames = read(reader, pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames == [(1, 0, body)]
    # The kept bytes, their join and the body's slice: however small the pieces are.
    assert peak < 4 * len(data), f"{peak} bytes for a frame of {len(data)}"


def test_what_is_announced_but_not_sent_costs_nothing() -> None:
    readers = [FrameReader(1 << 30) for _ in range(100)]
    tracemalloc.start()
    try:
        for reader in readers:
            reader.feed(FRAME_HEADER.pack(1 << 30, 1, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
