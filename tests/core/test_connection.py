"""The order in which results and events leave on a client's connection (protocol §3, bugs H2)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.connection import ClientConnection
from folkmoot.core.requests import FrameType, decode
from folkmoot.core.sessions import Results
from folkmoot.transport.frame import FrameReader


class FakeLink:
    """Keeps what was sent, one item per write."""

    frame_bytes_max = 1 << 20

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self, reason: str = "") -> None:
        raise AssertionError(reason)


def results(first_sequence: int, first_index: int, count: int, errors: Any = None) -> Results:
    values: list[Any] = [first_index + offset for offset in range(count)]
    return Results(7, first_sequence, first_index + count - 1, values, errors)


def order(link: FakeLink) -> list[tuple[str, int]]:
    """What the client sees: ("result" or "event", index), in the order of the wire."""
    seen: list[tuple[str, int]] = []
    for frame_type, _, body in FrameReader(1 << 20).feed(b"".join(link.writes)):
        fields = decode(frame_type, body)
        if frame_type == FrameType.RESULTS:
            first = fields[1] - len(fields[2]) + 1
            seen += [("result", first + offset) for offset in range(len(fields[2]))]
        else:
            seen += [("event", batch[0]) for batch in fields[0]]
    return seen


def delivered(groups: list[Results], events: list[int]) -> tuple[FakeLink, list[tuple[str, int]]]:
    link = FakeLink()
    unflushed: list[ClientConnection] = []
    connection = ClientConnection(link, unflushed)
    connection.results.extend(groups)
    batches = [(index, 0, [b"e"]) for index in events]
    connection.deliver(batches)
    assert unflushed == ([connection] if groups or events else [])
    connection.flush()
    return link, order(link)


def test_result_then_events_of_one_entry() -> None:
    _, seen = delivered([results(1, 10, 1)], [10])
    assert seen == [("result", 10), ("event", 10)]


def test_an_event_splits_a_group_of_results() -> None:
    link, seen = delivered([results(1, 10, 4)], [9, 11, 20])
    assert seen == [
        ("event", 9), ("result", 10), ("result", 11), ("event", 11),
        ("result", 12), ("result", 13), ("event", 20),
    ]  # fmt: skip
    assert len(link.writes) == 1, "everything of a turn leaves in one write"


def test_errors_stay_with_their_commands_when_a_group_is_split() -> None:
    group = results(5, 10, 3, [[2, "command", "no", None]])
    link, _ = delivered([group], [10])
    frames = FrameReader(1 << 20).feed(b"".join(link.writes))
    parts = [decode(kind, body) for kind, _, body in frames if kind == FrameType.RESULTS]
    assert [part[0] for part in parts] == [5, 6]
    assert parts[0][3] is None
    assert parts[1][3] == [[1, "command", "no", None]]


def test_no_event_is_sent_twice_on_a_connection() -> None:
    connection = ClientConnection(FakeLink(), [])
    connection.deliver([(5, 0, [b"e"])])
    with pytest.raises(AssertionError, match="event 5 again after 5"):
        connection.deliver([(5, 0, [b"e"])])


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=6),
    st.sets(st.integers(1, 40), max_size=12),
)
def test_every_event_leaves_after_its_own_result_and_before_any_later_one(
    groups: list[tuple[int, int]], events: set[int]
) -> None:
    made, sequence, index = [], 1, 1
    for count, gap in groups:
        index += gap
        made.append(results(sequence, index, count))
        sequence += count
        index += count
    _, seen = delivered(made, sorted(events))
    expected = [
        ("result", r.index - len(r.values) + 1 + o) for r in made for o in range(len(r.values))
    ]
    expected += [("event", index) for index in events]
    assert seen == sorted(expected, key=lambda item: (item[1], item[0] == "event"))
