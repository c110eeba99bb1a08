"""One attempt of a client to connect, and the link that comes of it.

It is the link's receiver. What the link brings goes into the client's inbox, from which the
client's loop takes it; an attachment that the client has dropped may go on putting things there,
and is passed over. Nothing is decided here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from folkmoot.transport.frame import Frame
from folkmoot.transport.link import Link

Inbox = deque["tuple[Attachment, list[Frame] | None, str]"]
"""(whose, frames, ""): received. (whose, [], text): connected. (whose, None, reason): ended."""


class Attachment:
    """One attempt to connect, and the link that came of it. What it brings goes into the client's
    inbox.
    """

    __slots__ = ("_attempt", "_inbox", "_take_inbox", "_unwanted", "link")

    def __init__(self, inbox: Inbox, take_inbox: Callable[[], None]) -> None:
        self._inbox = inbox
        self._take_inbox = take_inbox
        self._unwanted = ""
        self._attempt: anyio.CancelScope | None = None
        self.link: Link | None = None

    def attempt(self) -> anyio.CancelScope:
        """What the attempt runs in; entered at once. Only a task may make it, a callback cannot."""
        self._attempt = anyio.CancelScope()
        if self._unwanted:
            self._attempt.cancel()
        return self._attempt

    def opened(self) -> None:
        """The attempt is over: with a link, or because it is not wanted any more."""
        if self.link is None:
            return
        if self._unwanted:
            self.link.close(self._unwanted)
        else:
            self._put([], self.link.remote or "link")

    def drop(self, reason: str) -> None:
        """Nobody wants it any more."""
        self._unwanted = reason
        if self.link is not None:
            self.link.close(reason)
        elif self._attempt is not None:
            self._attempt.cancel()

    def on_frames(self, link: Link, frames: list[Frame]) -> None:
        """Take what a link has received."""
        self._put(frames, "")

    def on_closed(self, link: Link | None, reason: str) -> None:
        """Take the end of a link, or of the attempt."""
        self._put(None, reason)

    def _put(self, frames: list[Frame] | None, text: str) -> None:
        self._inbox.append((self, frames, text))
        self._take_inbox()
