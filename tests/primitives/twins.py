"""Two harnesses of one machine: one is restored from its snapshot now and then, the other never.

Answers, events and whole state of both must stay equal, byte for byte.
"""

from collections.abc import Mapping
from typing import Any

from folkmoot.core.errors import CommandError
from folkmoot.core.machine import Machine
from tests.primitives.harness import Event, Harness


class Twins:
    def __init__(self, kind: type[Machine], config: Mapping[str, Any] | None = None) -> None:
        self.restored = Harness(kind, config)
        self.continued = Harness(kind, config)

    @property
    def index(self) -> int:
        return self.continued.index

    @property
    def time(self) -> int:
        return self.continued.time

    @property
    def machine(self) -> Any:
        return self.continued.machine

    def command(self, session: int, name: str, *args: Any) -> Any:
        """Apply a command to both; a CommandError comes back as its class."""
        answers = []
        for harness in (self.restored, self.continued):
            try:
                answers.append(harness.command(session, name, *args))
            except CommandError as error:
                answers.append(type(error))
        assert answers[0] == answers[1]
        return answers[0]

    def query(self, session: int, name: str, *args: Any) -> Any:
        answer = self.continued.query(session, name, *args)
        assert self.restored.query(session, name, *args) == answer
        return answer

    def advance(self, milliseconds: int) -> None:
        self.restored.advance(milliseconds)
        self.continued.advance(milliseconds)

    def end(self, session: int) -> None:
        self.restored.end(session)
        self.continued.end(session)

    def cut(self, session: int) -> bool:
        cut = self.continued.cut(session)
        assert self.restored.cut(session) is cut
        return cut

    def restart(self) -> None:
        self.restored.restart()

    def take(self) -> list[Event]:
        """Return the events of both since the last time, and compare all that they are."""
        assert self.restored.digest() == self.continued.digest()
        events = self.continued.take()
        assert self.restored.take() == events
        return events
