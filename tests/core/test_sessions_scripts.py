"""Golden scripts of sessions: a few entries, and all that they cause. `--rewrite` writes them anew.

open a [ms]             open a session, known as `a` from here on
a lock.hold             a command of session a on the resource `lock`; by name the first time
a lock.hold; lock.add 1 several of them in one group
a #3 lock.add 1         from sequence 3, instead of the next
a ^2,14 lock.add 1      with the marks: answers up to sequence 2, events up to index 14 received
a keep [^2,14]          a keep-alive
a close · expire a · tick · init
time 500                log time of the entries from here on
? lock.get              a query
$lock                   the resource's id, within arguments
show                    the sessions, what is due, and the names in the directory
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from folkmoot.core.applied import Applied, Results
from folkmoot.core.errors import CommandError
from folkmoot.core.sessions import encode_open
from folkmoot.transport.codec import unpack
from tests.core.scratch import Client, Log, named

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts" / "sessions").glob("*.txt"))


class Player:
    """Runs the steps of one script."""

    def __init__(self, *, restarting: bool) -> None:
        self.log = Log()
        self.clients: dict[str, Client] = {}
        self.names: dict[int, str] = {}
        self.resources: dict[str, int] = {}
        self.restarting = restarting
        self.seen = 0

    def step(self, line: str) -> list[str]:
        if self.restarting:
            self.log.restart()
        head, _, rest = line.partition(" ")
        match head:
            case "open":
                return self._open(*rest.split())
            case "time":
                self.log.time = int(rest)
                return []
            case "tick":
                return self._trace(self.log.tick())
            case "init":
                return self._trace(self.log.initialize())
            case "expire":
                return self._trace(self.log.expire(self.clients[rest].id))
            case "?":
                return [self._query(rest)]
            case "show":
                return self._show()
        return self._session(self.clients[head], rest)

    def _open(self, name: str, timeout_ms: str = "1000") -> list[str]:
        applied = self.log.batch(encode_open(name.encode(), int(timeout_ms), name))
        (opened,) = applied.opened
        if name not in self.clients and opened.refused is None:
            self.clients[name] = Client(self.log, opened.session_id)
            self.names[opened.session_id] = name
        return [f"session {opened.session_id}, {opened.timeout_ms} ms"]

    def _session(self, client: Client, rest: str) -> list[str]:
        first = None
        if rest.startswith("#"):
            word, _, rest = rest.partition(" ")
            first = int(word[1:])
        words = rest.split()
        for word in words:
            if word.startswith("^"):
                client.low_water, client.event_index = ast.literal_eval(word[1:])
        rest = " ".join(word for word in words if not word.startswith("^"))
        if rest == "keep":
            return self._trace(client.keep_alive())
        if rest == "close":
            return self._trace(client.close())
        operations = [self._operation(text.strip()) for text in rest.split(";")]
        out = self._trace(self.log.batch(client.group(*operations, first=first)))
        session = self.log.mux.sessions.get(client.id)
        client.sequence = session.sequence if session is not None else client.sequence
        return out

    def _operation(self, text: str) -> list[Any]:
        target, _, literals = text.partition(" ")
        name, _, command = target.rpartition(".")
        literals = re.sub(r"\$(\w+)", lambda found: str(self.resources[found[1]]), literals)
        args = list(ast.literal_eval(f"({literals},)")) if literals else []
        if name == "directory":
            return [0, command, args]
        return [self.resources.get(name, named(name)), command, args]

    def _query(self, text: str) -> str:
        reference, name, args = self._operation(text)
        try:
            return f"-> {self.log.query(reference, name, *args)}"
        except CommandError as error:
            return f"!! {error.code}: {error}"

    def _trace(self, applied: Applied) -> list[str]:
        out = []
        before, self.seen = self.seen, self.log.mux.index
        for results in applied.results:
            out += self._results(results)
        out += [f"{self.names[kept.session_id]} kept @{kept.index}" for kept in applied.kept]
        out += [f"{self.names[end.session_id]} {end.reason} @{end.index}" for end in applied.ended]
        for session_id in applied.dirty:
            session = self.log.mux.sessions.get(session_id)
            assert session is not None
            for index, previous, events in session.events_after(before):
                for event in events:
                    resource_id, kind, payload = unpack(event)
                    name = self._name(resource_id)
                    out.append(
                        f"{self.names[session_id]} @{previous}..{index} {name} {kind} {payload}"
                    )
        return out

    def _results(self, results: Results) -> list[str]:
        errors = {error[0]: error[1:] for error in results.errors or ()}
        first = results.index - len(results.values) + 1
        out = []
        for offset, value in enumerate(results.values):
            where = (
                f"{self.names[results.session_id]} "
                f"#{results.first_sequence + offset} @{first + offset}"
            )
            if offset in errors:
                code, message, data = errors[offset]
                out.append(f"{where} !! {code}: {message}" + ("" if data is None else f" {data}"))
            else:
                out.append(f"{where} -> {value}")
            if type(value) is list and len(value) == 3:
                for resource in self.log.mux.directory.resources.values():
                    self.resources.setdefault(resource.name, resource.id)
        return out

    def _name(self, resource_id: int) -> str:
        return next((name for name, id_ in self.resources.items() if id_ == resource_id), "?")

    def _show(self) -> list[str]:
        mux = self.log.mux
        out = [
            f"{self.names[s.id]}: seen {s.last_seen}, #{s.sequence}, answers above {s.low_water}, "
            f"events above {s.events.acked}: {s.events.count}, open {sorted(s.opened)}"
            for s in mux.sessions
        ]
        due = [self.names[session_id] for session_id in mux.due_sessions(self.log.time)]
        out.append(f"next expiry {mux.next_expiry()}, due {due}, deadline {mux.next_deadline()}")
        rows = self.log.query(0, "list", "", "", 100)
        out += [f"{name}: {type_} {id_}, open to {count}" for name, id_, type_, _, _, count in rows]
        return out


def play(script: str, *, restarting: bool = False) -> str:
    player = Player(restarting=restarting)
    out: list[str] = []
    for line in script.splitlines():
        if line.startswith(" "):
            continue  # the trace of an earlier run
        out.append(line)
        if line and not line.startswith("#"):
            out += [f"    {text}" for text in player.step(line)]
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path, rewrite: bool) -> None:
    text = path.read_text(encoding="utf-8")
    now = play(text)
    if rewrite:
        path.write_text(now, encoding="utf-8")
        return
    assert now == text, f"{path} tells something else now: --rewrite, and review the diff"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_with_a_restart_before_every_entry(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert play(text, restarting=True) == text
