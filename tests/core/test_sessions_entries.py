"""Entries that are malformed or out of turn: refused alike on every server, and nothing changes."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.batch import Group, Kind
from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.requests import encode_commands
from folkmoot.core.sessions import decode_keep_alive, decode_open, decode_session_id
from folkmoot.transport.codec import pack
from tests.core.scratch import Client, Log, codes, named, session_of

SUM = named("sum")


def commands(client: Client, tail: bytes, count: int = 1, first: int = 1) -> Group:
    header = encode_commands(client.id, first, 0, 0, [[0, "x", []]])[:32]
    return Group(Kind.COMMANDS, count, header + tail)


@pytest.mark.parametrize(
    ("tail", "count"),
    [
        (b"", 1),
        (b"\xc1", 3),
        (pack({}), 1),
        (pack([]), 1),
        (pack([[0, "count"]]), 1),
        (pack([[0, "count", [], [1]]]), 1),
        (pack([[-1, "count", []]]), 1),
        (pack([[0, "open", ["a", "scratch", 1, {}]]]), 2),
        (pack([[0, "open", ["a", "scratch", 1, {}]]] * 2), 1),
    ],
)
def test_a_group_that_does_not_decode_or_add_up_is_refused_entry_by_entry(
    tail: bytes, count: int
) -> None:
    log = Log()
    client = log.client()
    (results,) = log.batch(commands(client, tail, count)).results
    assert codes([results]) == ["bad_command"] * count
    assert results.index == log.mux.index == 1 + count
    assert session_of(client).sequence == 0
    assert log.query(0, "count") == 0
    assert client.do(SUM, "add", 1) == [2 + count, 1, None]


@pytest.mark.parametrize("first", [0, 2, (1 << 64) - 1])
def test_a_sequence_that_is_not_the_next_is_refused(first: int) -> None:
    client = Log().client()
    (results,) = client.send([SUM, "add", [1]], first=first)
    assert results.errors is not None
    assert results.errors[0][1:4:2] == ["sequence_gap", 1]


@pytest.mark.parametrize("kind", sorted(set(Kind) - {Kind.COMMANDS}))
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", pack(None), pack([]), pack([None]), pack([[1]]), pack([b"", 0, ""])],
)
def test_a_malformed_entry_changes_nothing(kind: Kind, payload: bytes) -> None:
    log = Log()
    log.client()
    applied = log.batch(Group(kind, 2, payload))
    assert applied == type(applied)()
    assert log.mux.index == 3
    assert len(log.mux.sessions) == 1


def test_commands_without_a_header_are_passed_over() -> None:
    log = Log()
    applied = log.batch(Group(Kind.COMMANDS, 3, b"short"))
    assert applied == type(applied)()
    assert log.mux.index == 3


LEAVES = st.integers(-9, 1 << 63) | st.binary(max_size=4) | st.text("ab", max_size=3) | st.none()
PLAIN = st.lists(LEAVES | st.lists(LEAVES, max_size=5), max_size=5)


@pytest.mark.parametrize("decode", [decode_open, decode_keep_alive, decode_session_id])
@given(payload=st.binary(max_size=40) | PLAIN.map(pack))
def test_payloads_are_refused_by_one_error(decode: Callable[[bytes], Any], payload: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(payload)
