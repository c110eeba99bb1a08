"""Codecs: what goes in comes out, and what does not fit is said so, with the place."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from folkmoot.core.errors import TooLarge, UsageError
from folkmoot.primitives._values import DecodeError, Values


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Inner:
    numbers: list[int]
    blob: bytes = b""


@attrs.frozen
class Outer:
    name: str
    inner: Inner | None = None
    color: Color = Color.RED
    level: Level = Level.LOW
    ratio: float = 0.5
    tags: frozenset[str] = frozenset()
    pair: tuple[int, str] = (0, "")
    by_name: dict[str, Inner] = attrs.field(factory=dict)
    when: datetime | None = None
    day: date | None = None


@attrs.frozen
class Wider(Outer):
    more: int = 0


FULL = Outer(
    "a",
    Inner([1, 2], b"\xff\x00"),
    tags=frozenset("cab"),
    pair=(3, "x"),
    by_name={"k": Inner([])},
    when=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    day=date(2026, 1, 2),
)


def values(kind: Any = None, codec: Any = "msgpack", bytes_max: int = 10_000) -> Values[Any]:
    return Values(kind, codec, bytes_max=bytes_max, where="map 'm', key")


def plain(infinity: bool) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats(allow_nan=False, allow_infinity=infinity)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_plain_data_comes_back(codec: str) -> None:
    both = values(codec=codec)

    @given(plain(infinity=codec == "msgpack"))
    def check(value: Any) -> None:
        assert both.decode("k", both.encode("k", value)) == value

    check()


@given(st.binary())
def test_bytes_are_stored_as_they_are(data: bytes) -> None:
    codec = values(codec="bytes")
    assert codec.encode("k", data) == data == codec.decode("k", data)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_classes_come_back_and_equal_values_are_equal_bytes(codec: str) -> None:
    typed = values(Outer, codec)
    for value in (FULL, Outer("b"), attrs.evolve(FULL, level=Level.LOW, ratio=2)):
        data = typed.encode("k", value)
        assert typed.decode("k", data) == value
    same = attrs.evolve(FULL, tags=frozenset("bca"))
    assert typed.encode("k", same) == typed.encode("k", FULL)
    many = typed.encode("k", Outer("d", tags=frozenset("hgfedcba")))
    assert values(codec=codec).decode("k", many)["tags"] == list("abcdefgh")
    assert type(typed.decode("k", typed.encode("k", Outer("c", ratio=2))).ratio) is float


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 5),
        (str, "x"),
        (float, 1),
        (bytes, b"x"),
        (list[Inner], [Inner([1])]),
        (dict[str, int], {"a": 1}),
        (Color, Color.RED),
        (int | None, None),
        (Inner | None, Inner([])),
    ],
)
def test_types_other_than_classes_come_back(kind: Any, value: Any) -> None:
    typed = values(kind)
    assert typed.decode("k", typed.encode("k", value)) == value


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"name": 5}, r"expected str @ \$.name"),
        ({"name": "a", "inner": {"numbers": ["1"]}}, r"@ \$.inner"),
        ({"name": "a", "by_name": {"k": {"numbers": [True]}}}, r"@ \$.by_name\['k'\].numbers\[0\]"),
        ({"name": "a", "ratio": "0.5"}, r"expected float @ \$.ratio"),
        ({"name": "a", "color": "blue"}, r"\$.color"),
        ({"name": "a", "level": 2}, r"\$.level"),
        ({}, "required field missing @ .*name"),
        ([], ""),
        ("text", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_what_is_no_such_class_is_refused_with_the_place(codec: str, data: Any, why: str) -> None:
    stored = values(codec=codec).encode("k", data)
    with pytest.raises(DecodeError, match=rf"map 'm', key 'k': .* {codec} of Outer: .*{why}"):
        values(Outer, codec).decode("k", stored)


def test_programs_of_two_versions_share_a_map() -> None:
    old, new = values(Outer), values(Wider)
    assert new.decode("k", old.encode("k", FULL)).more == 0
    assert old.decode("k", new.encode("k", Wider("a", more=5))) == Outer("a")


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (Outer, Wider("a"), "exactly Outer is needed"),  # it would lose `more`, unnoticed
        (Outer, {"name": "a"}, "exactly Outer is needed"),
        (Outer, Outer(5), "str is needed, not int"),  # type: ignore[arg-type]
        (Outer, Outer("a", Inner(["1"])), "int is needed, not str"),  # type: ignore[list-item]
        (int, True, "int is needed, not bool"),
        (int, 1.0, "int is needed, not float"),
        (int, 1 << 64, "cannot be encoded"),
        (dict[str, int], {"a": "b"}, "int is needed, not str"),
        (None, {1, 2}, "cannot be encoded"),
        (None, object(), "cannot be encoded"),
        (None, float("nan"), "NaN"),
        (None, {1: 2}, "int is not allowed for map key"),
        (None, "\ud800", "surrogates"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_key_and_type(
    kind: Any, value: Any, why: str
) -> None:
    place = f"^map 'm', key 'k': a value of type {type(value).__name__} is none for codec .*"
    with pytest.raises(UsageError, match=place + why):
        values(kind).encode("k", value)


@pytest.mark.parametrize("value", [float("inf"), b"x", {1}])
def test_json_takes_what_json_has(value: Any) -> None:
    with pytest.raises(UsageError, match="codec json"):
        values(codec="json").encode("k", value)


@given(st.binary(max_size=20))
def test_any_bytes_are_decoded_or_refused_in_the_one_way(data: bytes) -> None:
    for codec in (values(), values(codec="json"), values(Outer), values(Outer, "json")):
        try:
            codec.decode("k", data)
        except DecodeError as error:
            assert str(error).startswith("map 'm', key 'k': ")  # noqa: PT017  # or it is fine


def test_a_value_may_have_so_many_bytes() -> None:
    codec = values(codec="bytes", bytes_max=3)
    assert codec.encode("k", b"123") == b"123"
    with pytest.raises(TooLarge, match="map 'm', key 'k': a value of 4 bytes; 3 are allowed"):
        codec.encode("k", b"1234")


def test_a_codec_of_ones_own() -> None:
    class Upper:
        def encode(self, value: str) -> bytes:
            return value.upper().encode()

        def decode(self, data: bytes) -> str:
            return data.decode("ascii")

    codec = values(codec=Upper())
    assert codec.name == "Upper"
    assert codec.decode("k", codec.encode("k", "x")) == "X"
    with pytest.raises(UsageError, match=r"a value of type int is none for codec Upper: .*upper"):
        codec.encode("k", 5)
    with pytest.raises(DecodeError, match="1 bytes are no value of codec Upper: 'ascii' codec"):
        codec.decode("k", b"\xff")

    class Text(Upper):
        def encode(self, value: str) -> Any:
            return value

    with pytest.raises(UsageError, match="codec Text encodes into str, not bytes"):
        values(codec=Text()).encode("k", "x")


@pytest.mark.parametrize(
    ("kind", "codec", "why"),
    [
        (None, "pickle", 'codec=\'pickle\': "msgpack", "json", "bytes" or an object'),
        (None, 5, "codec=5"),
        (None, None, "codec=None"),
        (int, "bytes", 'codec="bytes" stores bytes, not int'),
        (object, "msgpack", "type=<class 'object'> cannot be stored"),
        (complex, "json", "type=<class 'complex'> cannot be stored"),
    ],
)
def test_a_wrong_choice_is_refused_at_once(kind: Any, codec: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        values(kind, codec)


def test_data_names_no_class_and_brings_none_in() -> None:
    """Decoding imports nothing; cattrs is loaded only for `type=`."""
    script = (
        "import sys; from folkmoot.primitives._values import Values;"
        "v = Values(bytes_max=99, where='m');"
        "v.decode('k', v.encode('k', {'__class__': 'os.system', 'py/object': 'x'}));"
        "assert 'cattrs' not in sys.modules;"
        "Values(int, bytes_max=99); assert 'cattrs' in sys.modules"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
