"""The three forms of output: a terminal, a pipe, JSON."""

import io
import json
from typing import Any

import pytest

from folkmoot.cli.output import Output, duration, jsonable, printable, size

ROWS: list[dict[str, Any]] = [
    {"name": "a\tb", "size": 1, "more": b"\xff"},
    {"name": "c", "size": None, "more": b"x"},
]
COLUMNS = {"name": "name", "size": "size"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(file: io.StringIO, *, as_json: bool = False) -> str:
    Output(as_json=as_json, file=file).table(ROWS, COLUMNS, right=["size"])
    return file.getvalue()


def test_a_pipe_gets_tab_separated_lines_without_headings() -> None:
    assert written(io.StringIO()) == "a\\tb\t1\nc\t\n"


def test_json_has_all_keys_of_the_rows() -> None:
    assert json.loads(written(io.StringIO(), as_json=True)) == [
        {"name": "a\tb", "size": 1, "more": {"base64": "/w=="}},
        {"name": "c", "size": None, "more": {"base64": "eA=="}},
    ]


def test_a_terminal_gets_a_table_with_headings() -> None:
    lines = written(Terminal()).splitlines()
    assert any("name" in line and "size" in line for line in lines[:2])


def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Output(as_json=False, file=Terminal()).use_colour
    assert not Output(as_json=False, file=io.StringIO()).use_colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output(as_json=False, file=Terminal()).use_colour
    assert "\x1b[3" not in written(Terminal())


def test_a_value_cannot_drive_the_terminal_but_is_whole_in_a_pipe() -> None:
    evil = "a\x1b]0;title\x07\nb"
    terminal, pipe = Terminal(), io.StringIO()
    Output(as_json=False, file=terminal).value(evil)
    Output(as_json=False, file=pipe).value(evil)
    assert terminal.getvalue() == "a\\x1b]0;title\\x07\nb\n"
    assert pipe.getvalue() == evil + "\n"


def test_a_stream_has_one_line_for_each_event() -> None:
    for as_json, line in ((True, '{"key": "k", "value": [1]}\n'), (False, "k\t[1]\n")):
        file = io.StringIO()
        Output(as_json=as_json, file=file).event({"key": "k", "value": [1]}, ("k", [1]))
        assert file.getvalue() == line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x00", {"base64": "AA=="}),
        ({1: (1, 2), b"k": None}, {"1": [1, 2], "k": None}),
        (float("inf"), None),
        ({"a": [b""]}, {"a": [{"base64": ""}]}),
    ],
)
def test_anything_that_a_map_can_hold_becomes_json(value: Any, expected: Any) -> None:
    assert json.loads(json.dumps(jsonable(value))) == expected


def test_printable_text_can_be_told_from_escapes() -> None:
    assert printable("plain ünïcode") == "plain ünïcode"
    assert printable("a\\tb") == "a\\\\tb"
    assert printable("a\tb") == "a\\tb"
    assert printable("\u202e\x9b") == "\\u202e\\x9b"


def test_sizes_have_their_unit() -> None:
    sizes = (None, 1 << 62, 0, 9, 1023, 1536, 95 << 20, 1023 << 20, 12 << 40)
    assert [size(count) for count in sizes] == [
        "-", "-", "0 B", "9 B", "1023 B", "1.5 KiB", "95 MiB", "1023 MiB", "12 TiB",
    ]  # fmt: skip


def test_durations_have_their_unit() -> None:
    assert [duration(s) for s in (None, 0.0042, 1.25, 59, 200, 7200, 200_000)] == [
        "", "4 ms", "1.2 s", "59 s", "3.3 min", "2.0 h", "2.3 d",
    ]  # fmt: skip
