"""Golden scripts of the log: commands, and what is on the disk after them. `--rewrite` makes them
anew.

term 2 [vote 1]      a new hard state
append 3 [size 500]  one batch of 3 entries (in the present term), of about so many bytes
after 4              cut everything behind index 4
write                hand what was said since the last write to the log, as one write
sync                 make it durable
kill · cut lose|keep end the process, or the power: what was not synced is lost, or stays
tear 7               the last record's file loses its last 7 written bytes
flip 100             a bit of the first segment rots at this offset
fail write|sync      the next one fails
full 3000            the disk has no more room than this many bytes
open                 recover
show                 what the log holds
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from folkmoot.core.batch import Batch, Group, Kind, encode_batch
from folkmoot.core.config import StorageConfig
from folkmoot.core.errors import StorageError
from folkmoot.core.prefix_table import Point
from folkmoot.core.storage.log_store import HardState, Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.types import NodeId

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts" / "log").glob("*.txt"))
IDENTITY = Identity(b"c" * 16, NodeId(1), b"bootstrap")


@attrs.define
class Write:
    number: int
    hard_state: HardState | None = None
    install: Point | None = None
    truncate_after: int | None = None
    batches: list[Batch] = attrs.field(factory=list)


class Player:
    """Runs one script."""

    def __init__(self) -> None:
        self.files = MemoryFiles()
        self.config = StorageConfig(segment_bytes=4096)
        self.lines: list[str] = []
        self.number = 0
        self.term = 0
        self.last = 0
        self.saying = Write(0)
        self.store: LogStore | None = None
        self.commands: dict[str, Callable[..., None]] = {
            name.removeprefix("do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("do_")
        }
        self.do_open()
        self.lines.clear()

    def play(self, line: str) -> list[str]:
        self.lines.clear()
        name, *arguments = line.split()
        try:
            self.commands[name](*arguments)
        except StorageError as error:
            self.lines.append(f"{type(error).__name__}: {error}")
        return list(self.lines)

    @property
    def log(self) -> LogStore:
        assert self.store is not None, "the log is not open"
        return self.store

    def do_term(self, term: str, *vote: str) -> None:
        self.term = int(term)
        self.saying.hard_state = HardState(self.term, NodeId(int(vote[1])) if vote else None)

    def do_append(self, count: str, *size: str) -> None:
        payload = b"x" * (int(size[1]) if size else 10)
        groups = [Group(Kind.COMMANDS, 1, payload) for _ in range(int(count))]
        self.saying.batches.append(encode_batch(self.term, self.last + 1, self.last, groups))
        self.last += int(count)

    def do_after(self, index: str) -> None:
        self.saying.truncate_after = self.last = int(index)

    def do_write(self) -> None:
        self.number += 1
        self.saying.number = self.number
        said, self.saying = self.saying, Write(0)
        self.log.write([said])
        self.lines.append(f"written to {self.log.last_index}, durable to {self.log.durable_index}")

    def do_sync(self) -> None:
        number = self.log.sync()
        self.lines.append(f"write {number} is durable, to index {self.log.durable_index}")

    def do_kill(self) -> None:
        self.files.kill()
        self.store = None

    def do_cut(self, what: str) -> None:
        self.files.crash(random.Random(1), survive=0.0 if what == "lose" else 1.0)
        self.store = None

    def do_tear(self, size_bytes: str) -> None:
        contents = self.files.contents()
        name = max(name for name in contents if name.startswith("log/"))
        data = contents[name].rstrip(b"\0")
        kept = len(data) - int(size_bytes)
        contents[name] = data[:kept].ljust(len(contents[name]), b"\0")
        self.files = MemoryFiles(contents)

    def do_flip(self, offset: str) -> None:
        name = min(name for name in self.files.contents() if name.startswith("log/"))
        self.files.flip_bit(name, int(offset))

    def do_fail(self, operation: str) -> None:
        self.files.fail(operation)

    def do_full(self, size_bytes: str) -> None:
        used = sum(len(data) for data in self.files.contents().values())
        self.files.capacity_bytes = used + int(size_bytes)

    def do_open(self) -> None:
        self.store = LogStore.open(self.files, self.config, IDENTITY)
        found = self.store.recovered
        self.number, self.last, self.saying = 0, self.store.last_index, Write(0)
        self.term = self.store.hard_state.term
        if found.torn_tail is not None:
            torn = found.torn_tail
            self.lines.append(f"cut {torn.size_bytes} bytes at {torn.offset} of {torn.file}")
        self.lines += found.repaired
        self.lines.append(f"recovered to {self.store.last_index} in {found.segments} segments")

    def do_show(self) -> None:
        state = self.log.hard_state
        vote = f", vote for {state.voted_for}" if state.voted_for else ""
        self.lines.append(f"term {state.term}{vote}")
        self.lines += [
            f"{batch.first_index}..{batch.last_index} t{batch.term}" for batch in self.log.batches()
        ]
        self.lines.append("files " + " ".join(sorted(self.files.list("log"))))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path, rewrite: bool) -> None:
    player = Player()
    played: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            continue
        played.append(line)
        if line and not line.startswith("#"):
            played += [f"    {said}" for said in player.play(line)]
    text = "\n".join(played) + "\n"
    if rewrite:
        path.write_text(text)
    assert path.read_text() == text


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 5
