"""Which event loop runs here.

anyio works out the backend anew for every call, and offers no cheap public way to ask. The few
places that go around anyio for speed (links on asyncio, wake-ups) ask here. trio is never
imported: where it runs, somebody else has imported it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from folkmoot.core.errors import UsageError

Backend = Literal["asyncio", "trio"]


def running_backend() -> Backend:
    """Name the event loop that runs the calling task or callback (uvloop counts as asyncio).

    trio is asked first: in its guest mode an asyncio loop runs underneath it.

    Raises UsageError when no event loop runs in this thread.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return "trio"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "no event loop runs in this thread: call this from a coroutine under asyncio or trio"
        ) from None
    return "asyncio"
