"""The codec: what pack makes unpack takes, and bytes can cause one error only."""

import contextlib
import math
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.errors import RemoteProtocolError, UsageError
from folkmoot.transport import codec
from folkmoot.transport.codec import DEPTH_MAX, pack, unpack

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)


def nested(depth: int, leaf: Any = None) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def depth_of(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 0


@given(PLAIN)
def test_plain_data_comes_back(value: Any) -> None:
    if depth_of(value) > DEPTH_MAX:
        with pytest.raises(UsageError, match="nested more than 8 deep"):
            pack(value)
    else:
        assert unpack(pack(value)) == value


def test_a_tuple_comes_back_as_a_list() -> None:
    assert unpack(pack((1, (2,)))) == [1, [2]]


def test_bytes_and_str_stay_apart() -> None:
    assert unpack(pack([b"a", "a"])) == [b"a", "a"]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({1, 2}, id="set"),
        pytest.param(object(), id="object"),
        pytest.param(1 << 64, id="65 bits"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param({1: "x"}, id="int key"),
        pytest.param({None: 1}, id="None key"),
        pytest.param([[{"a": {(1, 2): 3}}]], id="tuple key"),
        pytest.param(math.nan, id="NaN"),
        pytest.param([{"a": [math.nan]}], id="NaN inside"),
        pytest.param(nested(DEPTH_MAX + 1), id="deep"),
        pytest.param(nested(600), id="deeper than msgpack goes"),
        pytest.param(["x" * 1000, nested(DEPTH_MAX)], id="deep and long"),
    ],
)
def test_pack_refuses_what_unpack_would(value: Any) -> None:
    with pytest.raises(UsageError, match="cannot be encoded"):
        pack(value)


def test_errors_of_pack_do_not_show_the_value() -> None:
    with pytest.raises(UsageError) as caught:
        pack({"password": {"secret"}})
    assert "password" not in str(caught.value)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_plain_data_or_a_protocol_error(data: bytes) -> None:
    try:
        value = unpack(data)
    except RemoteProtocolError:
        return
    assert depth_of(value) <= DEPTH_MAX
    again = unpack(pack(value))
    assert again == value


@given(PLAIN.filter(lambda value: depth_of(value) <= DEPTH_MAX), st.data())
def test_one_changed_byte_gives_plain_data_or_a_protocol_error(value: Any, data: Any) -> None:
    encoded = bytearray(pack(value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(encoded))
    except RemoteProtocolError:
        return


def array_32(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count)


MALFORMED = {
    "nothing": b"",
    "unused byte": b"\xc1",
    "cut off": pack([1, 2, 3])[:-1],
    "trailing bytes": pack(1) + b"\x00",
    "second value": pack([1]) + pack([2]),
    "one too deep": msgpack.packb(nested(DEPTH_MAX + 1)),
    "one too deep, empty": msgpack.packb(nested(DEPTH_MAX, [])),
    "one too deep, map": msgpack.packb(nested(DEPTH_MAX, {"a": 1})),
    "10,000 deep": b"\x91" * 10_000 + b"\xc0",
    "10,000 maps deep": b"\x81\xa1a" * 10_000 + b"\xc0",
    "huge array": array_32(0xFFFF_FFFF),
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge str": b"\xdb\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xffabc",
    "array longer than the bytes": array_32(100) + b"\xc0" * 99,
    "duplicate keys": b"\x82\xa1a\x01\xa1a\x02",
    "duplicate keys inside": b"\x91\x82\xa1a\x01\xa1a\x02",
    "duplicate keys, two encodings": b"\x82\xa1a\x01\xd9\x01a\x02",
    "int key": b"\x81\x01\x01",
    "nil key": b"\x81\xc0\x01",
    "list key": b"\x81\x90\x01",
    "map key": b"\x81\x80\x01",
    "NaN": b"\xcb\x7f\xf8" + bytes(6),
    "NaN, negative": b"\xcb\xff\xf8" + bytes(6),
    "NaN, signalling": b"\xcb\x7f\xf0" + bytes(5) + b"\x01",
    "NaN of 32 bits": b"\xca\x7f\xc0\x00\x00",
    "NaN of 32 bits, negative": b"\xca\xff\x80\x00\x01",
    "NaN inside": b"\x92\x01\x81\xa1a\xcb\x7f\xf8" + bytes(6),
    "NaN behind a string that looks like one": b"\x92\xc4\x03\xcb\x7f\xff\xcb\x7f\xf8" + bytes(6),
    "extension": b"\xd4\x05\x00",
    "extension of no bytes": b"\xc7\x00\x05",
    "timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "timestamp of no bytes": b"\xc7\x00\xff",
    "extension inside": b"\x91\x81\xa1a\xd4\x05\x00",
    "not UTF-8": b"\xa1\xff",
    "surrogate in UTF-8": b"\xa3\xed\xa0\x80",
    "key not UTF-8": b"\x81\xa1\xff\x01",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes_are_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(MALFORMED[name])


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes_are_refused_inside_of_a_long_frame(name: str) -> None:
    # Short data takes another road through the codec.
    with pytest.raises(RemoteProtocolError):
        unpack(b"\x92\xc5\x02\x00" + bytes(512) + MALFORMED[name])


@pytest.mark.parametrize("name", MALFORMED)
def test_without_msgpacks_parser_in_c_the_same_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_FILLER", b"")
    for behind in (b"", b"\x92\xc5\x02\x00" + bytes(512)):
        with pytest.raises(RemoteProtocolError):
            unpack(behind + MALFORMED[name])


@pytest.mark.parametrize(
    "value",
    [nested(DEPTH_MAX), nested(DEPTH_MAX - 1, {"a": 1}), [b"x" * 600, nested(DEPTH_MAX - 1)]],
)
def test_as_deep_as_allowed_is_allowed(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unpack(pack(value)) == value
    monkeypatch.setattr(codec, "_FILLER", b"")
    assert unpack(pack(value)) == value


def test_what_looks_like_a_nan_inside_of_bytes_is_allowed() -> None:
    value = [b"\xcb\x7f\xf8" + bytes(6), math.inf, -math.inf, "k", {b"\xca\xff\xff": 1}]
    assert unpack(pack(value)) == value


def test_the_parsers_stack_is_known() -> None:
    assert len(codec._FILLER) > 0, "msgpack's C parser is there but its stack was not found"


def many(element: bytes, frame_bytes: int) -> bytes:
    count = (frame_bytes - 5) // len(element)
    return array_32(count) + element * count


def claims(header: bytes, levels: int, frame_bytes: int) -> bytes:
    """Nested headers, each of which announces all bytes of the frame."""
    return (header * levels).ljust(frame_bytes, b"\x90")


FRAME_BYTES = 1 << 17
GREEDY = {
    "empty lists": many(b"\x90", FRAME_BYTES),
    "empty maps": many(b"\x80", FRAME_BYTES),
    "lists of one": many(b"\x91\xc0", FRAME_BYTES),
    "maps of one": many(b"\x81\xa0\xc0", FRAME_BYTES),
    "short strings": many(b"\xa2\xc3\xbf", FRAME_BYTES),
    "short bytes": many(b"\xc4\x01a", FRAME_BYTES),
    "ints": many(b"\xcd\x7f\xff", FRAME_BYTES),
    "floats": many(b"\xca\x00\x00\x00\x00", FRAME_BYTES),
    "one large map": b"\xdf\x00\x00\x4e\x20"
    + b"".join(b"\xa4" + f"{i:04x}".encode() + b"\xc0" for i in range(20_000)),
    "eight arrays of all": claims(array_32(FRAME_BYTES - 40), 8, FRAME_BYTES),
    "a thousand arrays of all": claims(array_32(FRAME_BYTES // 2), 1000, FRAME_BYTES),
    "a thousand short arrays": claims(b"\xdc\xff\xff", 1000, FRAME_BYTES),
    "a thousand maps of all": claims(b"\xdf\x00\x00\xff\xff\xa0", 1000, FRAME_BYTES),
}


@pytest.mark.parametrize("name", GREEDY)
def test_memory_is_at_most_80_times_the_frame(name: str) -> None:
    data = GREEDY[name]
    tracemalloc.start()
    try:
        with contextlib.suppress(RemoteProtocolError):
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 80 * len(data), f"{peak / len(data):.0f} times the frame"


def test_short_greedy_data_stays_small_too() -> None:
    for size_bytes in range(1, 600):
        data = claims(b"\xdc" + struct.pack(">H", size_bytes), 200, size_bytes)[:size_bytes]
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError):
                unpack(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= 80 * size_bytes + (48 << 10), f"{peak} bytes for {size_bytes}"
