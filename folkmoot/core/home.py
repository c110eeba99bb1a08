"""Where a client lives: the process, thread and event loop that it was entered in.

Used anywhere else it would corrupt itself in silence; so every use looks, and says what is wrong.
The look costs a quarter of a microsecond.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from asyncio import _get_running_loop  # what `asyncio` offers to event loops; None under trio
from typing import Any

from folkmoot.core.errors import UsageError


class Home:
    """The place where it was made."""

    __slots__ = ("_place",)

    def __init__(self) -> None:
        self._place = _here()

    def check(self) -> None:
        """Raise UsageError, saying which, in another process, thread or event loop."""
        if self._place != (os.getpid(), threading.get_ident(), _get_running_loop()):
            raise UsageError(self._misuse())

    def _misuse(self) -> str:
        pid, thread, _ = self._place
        if os.getpid() != pid:
            return (
                f"this client belongs to process {pid} and was used in its fork {os.getpid()}: "
                "open a cluster in each process, after the fork"
            )
        if threading.get_ident() != thread:
            return (
                "this client was used from another thread than the one that it runs in: "
                "use anyio.from_thread, or open a cluster in that thread"
            )
        return "this client was used from another event loop than the one that it runs in"


def _here() -> tuple[int, int, Any]:
    return os.getpid(), threading.get_ident(), _get_running_loop()


def default_name() -> str:
    """What a client is called that has no name: host, program and process."""
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    return f"{socket.gethostname()} {program} {os.getpid()}"
