"""The events of a session: each exactly once, in log order, and none before an answer it lies
behind.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`.

THE CHAIN. A batch of events names its index and an index above which there is nothing else that we
have not got. What was received already is passed over; where something is missing, the connection
is given up, and the server sends it again on the next (bugs: H1, H3).

THE ORDER OF DELIVERY is that of the wire, but for one moment. After a resume the server sends
missed events at once, while answers come only when their commands have arrived there again:

    1. acquire is sent; the server applies it at index 7, and its answer is lost with the connection
    2. at index 9 the lock is granted
    3. the client resumes: the event of index 9 comes first, then acquire is sent again, then its
    answer

So events are HELD until no answer of a lower index can be missing (bugs: H2). This cannot stall:
every command is answered as soon as it is applied.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError
from folkmoot.core.targets import Target, Targets
from folkmoot.transport.codec import unpack

DELETED = "deleted"
"""The directory's last event about a resource; it has no payload."""


@attrs.frozen
class Event:
    """What a machine has published to this session."""

    target: Target
    index: int
    kind: str
    payload: Any


class EventChain:
    """What has been received, what of it is held, and whose it is.

    - `last` is the index of the newest batch received, held or not: what is acknowledged.
    - Held batches are in order, and newer than all that were delivered.
    """

    def __init__(self, targets: Targets) -> None:
        self.last = 0
        self._held: deque[tuple[int, list[Any]]] = deque()
        self._targets = targets

    def session_ended(self) -> None:
        """Nothing of it comes any more, nor is delivered."""
        self._held.clear()
        self.last = 0

    def receive(self, batches: list[Any]) -> tuple[int, int]:
        """Take the batches of one frame; return how many events, and how many bytes, were new.

        They are held until `deliver` lets them pass. Raises RemoteProtocolError where they are
        malformed, or some are missing; those before are taken.
        """
        count = size_bytes = 0
        for batch in batches:
            if type(batch) is not list or tuple(map(type, batch)) != (int, int, list):
                raise RemoteProtocolError("EVENTS: a batch is [index, previous index, events]")
            index, previous, events = batch
            if index <= self.last:
                continue
            if previous > self.last:
                raise RemoteProtocolError(
                    f"EVENTS: batch {index} follows {previous}, {self.last} was received last: "
                    "some are missing"
                )
            self._held.append((index, [_decode(data) for data in events]))
            self.last = index
            count += len(events)
            size_bytes += sum(map(len, events))
        return count, size_bytes

    @property
    def is_holding(self) -> bool:
        """Whether something waits for `deliver`."""
        return bool(self._held)

    def deliver(self, up_to: int | None = None) -> list[Event]:
        """Let pass what is held, up to an index (None: everything)."""
        passed = []
        held = self._held
        while held and (up_to is None or held[0][0] <= up_to):
            index, events = held.popleft()
            for resource_id, kind, payload in events:
                target = self._targets.of(resource_id)
                if target is None:
                    continue  # its last holder has let it go
                if kind == DELETED and payload is None:
                    target.deleted = True
                passed.append(Event(target, index, kind, payload))
        return passed


def _decode(data: Any) -> list[Any]:
    event = unpack(data) if type(data) is bytes else None
    if type(event) is not list or tuple(map(type, event))[:2] != (int, str) or len(event) != 3:
        raise RemoteProtocolError("an event is [resource id, kind, payload]")
    return event
