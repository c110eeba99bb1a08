"""What comes out of a client's session: effects, notices; and what the session itself is.

Pure: no I/O, no clock, no randomness. Made by `core/session_client.py`, performed by
`core/client.py`.
"""

from __future__ import annotations

import attrs

from folkmoot.core.event_chain import Event
from folkmoot.core.pipeline import Operation
from folkmoot.core.queries import AdminRequest
from folkmoot.core.types import ConnectionState


@attrs.frozen
class StateChange:
    """The client has entered `state`."""

    state: ConnectionState
    cause: str
    session_id: int
    """The session that it is about; 0: there was none yet."""
    index: int = 0
    """The log index that ended the session, where it is known."""


@attrs.define
class Effects:
    """What shall happen now, in the order of the fields."""

    send: list[bytes] = attrs.field(factory=list)
    """Frames for the present connection."""
    disconnect: str | None = None
    """Drop the present connection (or attempt), for this reason."""
    connect: str | None = None
    """Start an attempt at this address; `connected` or `disconnected` tells what became of it."""
    answers: list[Operation] = attrs.field(factory=list)
    """Commands and reads that are done."""
    admin: list[AdminRequest] = attrs.field(factory=list)
    """Admin requests that are done."""
    notices: list[StateChange | Event] = attrs.field(factory=list)
    """In the order in which they happened."""


@attrs.define
class Session:
    """One session, from when it is wanted to its end.

    - `id` is 0 until the first SESSION frame.
    - `announced`: the application knows of it, so may own something through it.
    - `doomed`: its local deadline has passed; the cluster is still to be told.
    """

    secret: bytes
    asked_at: float | None = None
    """When it was asked for first: a later asking may find it open since then."""
    id: int = 0
    announced: bool = False
    doomed: bool = False

    @property
    def owns(self) -> bool:
        """Whether anything may be owned through it."""
        return self.announced and not self.doomed
