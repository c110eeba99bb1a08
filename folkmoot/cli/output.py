"""What a command prints: tables and colour on a terminal, tab-separated lines in a pipe, JSON where
asked for.

The three forms say the same. Columns and keys are an interface: they are added to, and never change
their meaning. What comes out of the cluster was written by others, so on a terminal and in tables
control characters are shown, not obeyed.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def jsonable(value: Any) -> Any:
    """Plain data as JSON can carry it: bytes become {"base64": ...}, keys become text, NaN becomes
    null."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else plain(key): jsonable(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """One JSON document."""
    return json.dumps(jsonable(value), ensure_ascii=False, indent=indent)


def plain(value: Any) -> str:
    """A value as a person reads it: text as it is, nothing as "", the rest as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return to_json(value)
    return to_json(value)


_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def printable(text: str, *, keep: str = "") -> str:
    """Show control characters (and a backslash, which shows them) instead of sending them; those in
    `keep` stay."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        character
        if character in keep or (character.isprintable() and character != "\\")
        else _SHORT.get(character) or character.encode("unicode_escape").decode()
        for character in text
    )


def size(count_bytes: int | None) -> str:
    """A size in bytes for people; "-" where it is unknown, or has no end (in memory)."""
    if count_bytes is None or count_bytes >= 1 << 60:
        return "-"
    amount, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}" if amount < 10 and unit != "B" else f"{amount:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """A duration with its unit: "4 ms", "1.2 s", "3 min", "5 h", "2 d"."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    count, unit = seconds, "s"
    for limit, divisor, larger in ((100, 60, "min"), (100, 60, "h"), (48, 24, "d")):
        if count < limit:
            break
        count, unit = count / divisor, larger
    return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"


class Output:
    """Where one command writes its results. Errors and logs go to stderr, never here."""

    def __init__(self, *, as_json: bool, file: IO[str] | None = None) -> None:
        self.file = file or sys.stdout
        self.as_json = as_json
        self.is_terminal = not as_json and self.file.isatty()

    @property
    def use_colour(self) -> bool:
        """Colour is for terminals that want it (https://no-color.org)."""
        return (
            self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )

    def console(self) -> Console:
        """A rich console on the same file."""
        from rich.console import Console

        return Console(file=self.file, no_color=not self.use_colour, highlight=False)

    def line(self, text: str) -> None:
        """Write one line at once: whoever follows a pipe must not wait for a full buffer."""
        self.file.write(text + "\n")
        self.file.flush()

    def show(self, data: Any, text: str | None = None) -> None:
        """One result: `data` as JSON, else `text`, which is empty for what needs no words in a
        pipe."""
        if self.as_json:
            self.line(to_json(data, indent=2 if self.file.isatty() else None))
        elif text is None:
            self.value(data)
        elif text:
            self.line(text)

    def field(self, label: str, value: Any) -> None:
        """One of several fields of one thing: aligned on a terminal, tab-separated in a pipe."""
        text = printable(plain(value))
        self.line(f"{label:<28} {text or '-'}" if self.is_terminal else f"{label}\t{text}")

    def revision(self, data: Mapping[str, Any]) -> None:
        """What a change answers: its revision."""
        revision = data["revision"]
        self.show(data, f"revision {revision}" if self.is_terminal else str(revision))

    def value(self, value: Any) -> None:
        """A value itself: unchanged in a pipe, made harmless on a terminal."""
        text = plain(value)
        self.line(printable(text, keep="\t\n\\") if self.is_terminal else text)

    def event(self, data: Mapping[str, Any], fields: Sequence[Any]) -> None:
        """One of a stream of results: a JSON object per line, else tab-separated fields."""
        if self.as_json:
            self.line(to_json(data))
        else:
            self.line("\t".join(printable(plain(field)) for field in fields))

    def table(
        self,
        rows: Iterable[Mapping[str, Any]],
        columns: Mapping[str, str],
        *,
        right: Iterable[str] = (),
        empty: str = "",
        note: str = "",
    ) -> None:
        """Rows as a table. `columns` maps each key to its heading; a heading stands on terminals
        only.

        JSON has all keys of the rows. `right` names columns that are aligned to the right; `empty`
        is said (on a terminal) when there are no rows, and `note` below the table.
        """
        found = list(rows)
        if self.as_json:
            self.line(to_json(found, indent=2 if self.file.isatty() else None))
        elif not self.is_terminal:
            for row in found:
                self.line("\t".join(printable(plain(row.get(key))) for key in columns))
        elif not found:
            self.line(empty)
        else:
            self.console().print(_rich_table(found, columns, frozenset(right)))
            if note:
                self.line(note)


def _rich_table(
    rows: list[Mapping[str, Any]], columns: Mapping[str, str], right: frozenset[str]
) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for key, heading in columns.items():
        table.add_column(heading, justify="right" if key in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(plain(row.get(key)))) for key in columns))
    return table
