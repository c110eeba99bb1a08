"""Drives one machine directly: a fake log around it, no consensus, no sessions, no wire.

It stands in for the multiplexer as `core/machine.py` describes it, and checks on every step what
every machine must keep:

- arguments, answers, events and snapshots are plain data (they travel through the codec here too);
- a CommandError and a query leave the state as it was;
- what the entries of the log own is what the machine says that they own (`FakeLog`);
- a machine that was restored, from its snapshot or from its items, cannot be told from the old one
  (`restart`).

`play` runs a golden script: one step per line, followed by the indented trace that it causes.

    config {'low': 0}          before all others: the resource's configuration
    s1 add 3                   session 1 issues a command: name, then arguments as Python literals
        -> [3, 1]              its answer, or `!! code: message data`
        s2 @1 changed [3, 0]   an event: to whom, index, kind, payload
    s1 ? get                   session 1 asks a query
    advance 1000               log time goes on by so many milliseconds; what is due happens
    end s1                     the session ends
    cut s1                     its subscriptions are cut
    restart                    from a snapshot on, or from the items that live
    items                      tells the items that live: {index: ordinals}
    # anything                 a remark
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from folkmoot.core.errors import CommandError
from folkmoot.core.machine import Machine, Retention
from folkmoot.transport.codec import pack, unpack
from tests.primitives.fake_log import FakeLog

SCRIPTS = Path(__file__).parent.parent / "scripts"


@attrs.frozen
class Event:
    """What one session was told."""

    session: int
    index: int
    kind: str
    payload: Any = None
    keep: bool = False


class Harness:
    """One machine with a log of its own.

    - `context` is what the machine gets: `index`, `time` and `session` are those of the last entry.
    - `events` holds all that was published to sessions that live; `take` empties it.
    - Unless it is `thorough`, the whole state is compared only at a restart: for large states.
    """

    def __init__(
        self,
        kind: type[Machine],
        config: Mapping[str, Any] | None = None,
        *,
        thorough: bool = True,
    ) -> None:
        self.kind = kind
        self.thorough = thorough
        self.log = FakeLog(kind)
        self.config = dict(config or {})
        self.machine = kind(self.config)
        self.index = 0
        self.time = 0
        self.session = 0
        self.deadlines: dict[str, int] = {}
        self.events: list[Event] = []
        self.ended: set[int] = set()

    def command(self, session: int, name: str, *args: Any) -> Any:
        """Apply one command as an entry of its own. Raises the CommandError that it answers."""
        self.index += 1
        self.session = session
        before = self.digest()
        self.log.begin(self.index, self.time, session, name, args)
        try:
            answer = self._call(self.machine.commands[name], args)
        except CommandError:
            assert self.digest() == before, f"{name}{args} was refused and changed the state"
            raise
        finally:
            self.log.end()
        self._check()
        return answer

    def query(self, session: int, name: str, *args: Any) -> Any:
        """Ask a query."""
        self.session = session
        before = self.digest()
        try:
            return self._call(self.machine.queries[name], args)
        finally:
            assert self.digest() == before, f"the query {name}{args} changed the state"

    def advance(self, milliseconds: int) -> None:
        """Let log time pass: one entry per moment at which something is due, in order."""
        end = self.time + milliseconds
        while self.deadlines and min(self.deadlines.values()) <= end:
            self.index += 1
            self.session = 0
            self.time = min(self.deadlines.values())
            for key in sorted(key for key, at in self.deadlines.items() if at <= self.time):
                if self.deadlines.get(key, end + 1) <= self.time:
                    del self.deadlines[key]
                    self.machine.on_deadline(self, key)
            self._check()
        self.time = end

    def end(self, session: int) -> None:
        """End a session, as one entry."""
        self.index += 1
        self.session = 0
        self.ended.add(session)
        self.machine.session_ended(self, session)
        self._check()

    def cut(self, session: int) -> bool:
        """Cut a session's subscriptions, as the multiplexer does when it does not read."""
        self.session = 0
        was = self.machine.cut_subscriptions(self, session)
        self._check()
        return was

    def restart(self) -> None:
        """Go on with a new machine, restored from what of this one survives a compaction."""
        before = self.digest(always=True)
        if self.kind.retention is Retention.STATE:
            data = pack(self.machine.snapshot())
            self.machine = self.kind(self.config)
            self.machine.restore(unpack(data))
        else:
            remainder = pack(self.machine.remainder()) if self.kind.has_record else None
            self.machine, self.deadlines = self.log.restore(self.config, remainder)
            assert self.digest(always=True) == before, "restored from items, it is another one"
            self.log.trim()
            self.machine, self.deadlines = self.log.restore(self.config, remainder)
        assert self.digest(always=True) == before, "the restored machine is another one"

    def digest(self, *, always: bool = False) -> bytes:
        """Return all that the machine is, as bytes; nothing where nobody is thorough."""
        if not (self.thorough or always):
            return b""
        parts = [sorted(self.deadlines.items()), len(self.events), self.log.items()]
        return pack([self.machine.snapshot(), *parts])

    def take(self) -> list[Event]:
        """Return the events since the last time."""
        taken, self.events = self.events, []
        return taken

    # What the machine sees of it, as `core.machine.Context`:

    def publish(
        self, sessions: int | Iterable[int], kind: str, payload: Any = None, *, keep: bool = False
    ) -> None:
        for session in [sessions] if isinstance(sessions, int) else sessions:
            if session not in self.ended:
                copy = unpack(pack(payload))
                self.events.append(Event(session, self.index, kind, copy, keep))

    def set_deadline(self, key: str, time: int) -> None:
        self.deadlines[key] = time

    def clear_deadline(self, key: str) -> None:
        self.deadlines.pop(key, None)

    def retain(self, count: int = 1) -> None:
        self.log.retain(self.index, count)

    def supersede(self, index: int, ordinal: int = 0) -> None:
        self.log.supersede(index, ordinal)

    def supersede_all(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            self.log.supersede(index, 0)

    def client_name(self, session: int) -> str:
        return "" if session in self.ended else f"client-{session}"

    def _call(self, operation: Any, args: tuple[Any, ...]) -> Any:
        plain = unpack(pack(list(args)))
        operation.check(plain)
        return unpack(pack(operation.function(self.machine, self, *plain)))

    def _check(self) -> None:
        if self.thorough and self.kind.retention is Retention.ENTRIES:
            self.log.check(self.machine)


def play(kind: type[Machine], script: str) -> str:
    """Run a script; return it with the trace that it causes now."""
    harness = Harness(kind)
    out: list[str] = []
    for line in script.splitlines():
        if line.startswith(" "):
            continue  # the trace of an earlier run
        out.append(line)
        words = line.split(None, 1)
        if not words or line.startswith("#"):
            continue
        if words[0] == "config":
            harness = Harness(kind, ast.literal_eval(words[1]))
            continue
        out += [f"    {answer}" for answer in _step(harness, words[0], words[1:])]
        out += [
            f"    s{event.session} @{event.index} {event.kind} {event.payload}"
            + (" kept" if event.keep else "")
            for event in harness.take()
        ]
    return "\n".join(out) + "\n"


def _step(harness: Harness, who: str, rest: list[str]) -> list[str]:
    match who, rest:
        case "restart", []:
            harness.restart()
        case "items", []:
            return [str({index: harness.log.ordinals(index) for index in sorted(harness.log.live)})]
        case "advance", [text]:
            harness.advance(int(text))
        case "end", [text]:
            harness.end(int(text.removeprefix("s")))
        case "cut", [text]:
            return [f"-> {harness.cut(int(text.removeprefix('s')))}"]
        case _, [text] if who.startswith("s"):
            is_query = text.startswith("? ")
            name, _, literals = text.removeprefix("? ").partition(" ")
            args = ast.literal_eval(f"({literals},)") if literals else ()
            call = harness.query if is_query else harness.command
            try:
                return [f"-> {call(int(who[1:]), name, *args)}"]
            except CommandError as error:
                data = "" if error.data is None else f" {error.data}"
                return [f"!! {error.code}: {error}{data}"]
        case _:
            raise ValueError(f"no such step: {who} {rest}")
    return []


def scripts(folder: str) -> list[Any]:
    """Return the golden scripts in `tests/scripts/<folder>`, to parametrize a test with."""
    found = sorted((SCRIPTS / folder).glob("*.txt"))
    assert found, f"no scripts in {SCRIPTS / folder}"
    return [pytest.param(path, id=path.stem) for path in found]


def check_script(kind: type[Machine], path: Path, rewrite: bool) -> None:
    """Compare a golden script with what it causes now, or write it anew."""
    text = path.read_text(encoding="utf-8")
    now = play(kind, text)
    if rewrite:
        path.write_text(now, encoding="utf-8")
        return
    assert now == text, f"{path} tells something else now: --rewrite, and review the diff"
