"""A client's resource over a bare machine: what `core/handle.py` promises proxies, and no more.

It decides when other sessions act: `meanwhile` is called before a command or query takes effect,
and again when its answer is there and the caller has not run yet. So a test can put whatever it
likes into every gap that there is. Events are delivered as promised: in log order, before any
answer of a greater index, and before reads at their index.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from anyio.lowlevel import checkpoint

from folkmoot.core.config import ClientConfig
from folkmoot.core.errors import OutcomeUnknown, SessionExpired
from folkmoot.core.machine import Machine
from folkmoot.core.types import ConnectionState, Consistency
from tests.primitives.harness import Harness


class FakeResource:
    """One session's view of a machine; several of them may share a harness."""

    def __init__(self, harness: Harness, session: int = 1, name: str = "fake") -> None:
        self.harness = harness
        self.session = session
        self.name = name
        self.type_name = harness.kind.type_name
        self.client = SimpleNamespace(config=ClientConfig())
        self.listeners: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.events_seen = 0
        """How many events were on the wire."""
        self.issued: list[str] = []
        self._delivered = 0

    def listen(self, listener: Any) -> None:
        assert listener not in self.listeners
        self.listeners.append(listener)

    def unlisten(self, listener: Any) -> None:
        self.listeners.remove(listener)

    async def command(
        self, operation: str, *args: Any, timeout: Any = None, fence: Any = None
    ) -> Any:
        session = self.session
        self.issued.append(operation)
        self.meanwhile()
        if session != self.session:  # lost before it was sent
            await checkpoint()
            raise SessionExpired("the session ended before this was sent")
        answer = self.harness.command(session, operation, *args)
        self.deliver()
        self.meanwhile()
        await checkpoint()
        if session != self.session:  # lost before the answer came
            raise OutcomeUnknown("the session ended before the answer came")
        return answer

    async def query(
        self,
        operation: str,
        *args: Any,
        consistency: Consistency = Consistency.LINEARIZABLE,
        at_least: int = 0,
        timeout: Any = None,
    ) -> tuple[Any, int]:
        self.meanwhile()
        assert self.harness.index >= at_least
        answer = self.harness.query(self.session, operation, *args), self.harness.index
        self.deliver()
        self.meanwhile()
        await checkpoint()
        return answer

    def send(self, operation: str, *args: Any, fence: Any = None) -> None:
        self.issued.append(operation)
        self.harness.command(self.session, operation, *args)
        self.deliver()

    # What happens to it:

    def deliver(self) -> None:
        """Deliver what was published to the session and has not been."""
        events = self.harness.events
        while self._delivered < len(events):
            event = events[self._delivered]
            self._delivered += 1
            if event.session == self.session:
                self.tell(event.index, event.kind, event.payload)

    def tell(self, index: int, kind: str, payload: Any = None) -> None:
        self.events_seen += 1
        for listener in list(self.listeners):
            listener.on_event(index, kind, payload)

    def cut(self) -> None:
        """The servers cut the session's subscriptions: what it has not received is dropped."""
        self._delivered = len(self.harness.events)
        self.harness.cut(self.session)
        self.tell(self.harness.index, "resync")

    def lose_session(self) -> None:
        """The session ends, and the client opens another one."""
        self._delivered = len(self.harness.events)
        self.harness.end(self.session)
        self.session += 100
        self.state(ConnectionState.EXPIRED)
        self.state(ConnectionState.CONNECTED)

    def state(self, state: ConnectionState) -> None:
        for listener in list(self.listeners):
            listener.on_state(state, "the test")


def resource_of(kind: type[Machine]) -> Any:
    """Return a fake resource with a machine of its own; typed for proxies to take."""
    return FakeResource(Harness(kind))
