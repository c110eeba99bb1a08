"""How far something is: lines now and then in a pipe, a bar on a terminal, nothing with --json."""

import io
from collections.abc import Generator

from folkmoot.cli.progress import SAY_S, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(file: io.StringIO, *, is_quiet: bool = False, unit: str = "bytes") -> str:
    now = [0.0]
    found = Progress(
        "saving", 4 << 20, unit=unit, file=file, is_quiet=is_quiet, clock=lambda: now[0]
    )
    for _ in range(4):
        now[0] += SAY_S * 0.6
        found.update(1 << 20)
    found.close()
    return file.getvalue()


def test_a_pipe_gets_a_line_now_and_then() -> None:
    assert told(io.StringIO()) == "saving: 1.0 MiB of 4.0 MiB\n" * 2
    assert told(io.StringIO(), unit="entries").startswith("saving: 1,048,576 entries of 4,194,304")


def test_a_terminal_gets_a_bar() -> None:
    assert "4.0 MiB" in told(Terminal())
    assert "entries" in told(Terminal(), unit="entries")


def test_json_gets_nothing() -> None:
    assert told(io.StringIO(), is_quiet=True) == told(Terminal(), is_quiet=True) == ""


def test_all_steps_are_taken_and_the_result_returned() -> None:
    def steps() -> Generator[int, None, str]:
        yield 1
        yield 2
        return "done"

    assert Progress("x", 2, file=io.StringIO()).finish(steps()) == "done"
