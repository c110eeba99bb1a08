"""What an exit code means, and how an error becomes one line, a hint and an exit code.

The only such table of the command line; docs/command-line.md shows it to users. Codes from 64 to 78
mean what sysexits.h says; 126 and above are the shell's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from folkmoot.core import errors


class ExitCode(enum.IntEnum):
    """How a command ended."""

    OK = 0
    REFUSED = 1
    """The cluster answered no: the key is absent, a condition did not hold, the resource is of
    another type."""
    USAGE = 2
    """The command line, the environment or the configuration file is wrong. Nothing was sent."""
    UNAVAILABLE = 69
    """No server was reached, none leads, or it is overloaded. Nothing was applied: repeating is
    safe."""
    INTERNAL = 70
    """A bug: in a state machine, which stops the server at that entry, or in this program."""
    CANNOT_START = 73
    """The server cannot start: its address is in use, or another process has its data directory."""
    STORAGE = 74
    """The disk failed, is full or holds damaged data, and the server stopped; or the leader's is
    so nearly full that the write was refused."""
    NOT_GRANTED = 75
    """The lock or the leadership was not granted in time; the command was not run."""
    PROTOCOL = 76
    """What answered does not speak this protocol version, or belongs to another cluster."""
    GRANT_LOST = 79
    """The lock or the leadership was lost while the command ran; the command was stopped."""
    OUTCOME_UNKNOWN = 80
    """Sent, and no answer came: it was applied once or not at all."""
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


class CannotStart(errors.FolkmootError):
    """What the configuration asks for cannot be had here and now."""

    code = "cannot_start"


class ServerDied(errors.FolkmootError):
    """A server process ended that should be running. The message has its last lines."""

    code = "server_died"


class Failure(NamedTuple):
    """An error as the user sees it."""

    exit_code: int
    code: str
    """The error's stable word, as in `folkmoot.core.errors`."""
    message: str
    hint: str
    applied: str
    """Whether the operation may have been applied: "no", "maybe" or "yes"."""


# First match wins: a class stands above its base.
_TABLE: tuple[tuple[type[errors.FolkmootError], ExitCode, str], ...] = (
    (
        errors.ConnectionLost,
        ExitCode.UNAVAILABLE,
        "`folkmoot up` starts a cluster here; --url or FOLKMOOT_URL names another; "
        "`folkmoot status` shows which members are up",
    ),
    (errors.NoLeader, ExitCode.UNAVAILABLE, "`folkmoot status` shows which members are up"),
    (errors.Overloaded, ExitCode.UNAVAILABLE, "nothing was applied: try again later"),
    (errors.Unavailable, ExitCode.UNAVAILABLE, "nothing was applied: it is safe to try again"),
    (
        errors.LockTimeout,
        ExitCode.NOT_GRANTED,
        "`folkmoot inspect NAME` shows who holds it and who waits",
    ),
    (errors.ElectionTimeout, ExitCode.NOT_GRANTED, "`folkmoot inspect NAME` shows who leads"),
    (errors.OperationTimeout, ExitCode.UNAVAILABLE, "`folkmoot status` shows which members are up"),
    (errors.GrantLost, ExitCode.GRANT_LOST, ""),
    (errors.SessionEnded, ExitCode.GRANT_LOST, ""),
    (
        errors.OutcomeUnknown,
        ExitCode.OUTCOME_UNKNOWN,
        "it was applied once or not at all: look before you repeat it",
    ),
    (errors.ResourceTypeError, ExitCode.REFUSED, "`folkmoot ls` shows the type of each name"),
    (errors.CommandError, ExitCode.REFUSED, ""),
    (
        errors.RemoteProtocolError,
        ExitCode.PROTOCOL,
        "is that the client address of a folkmoot server?",
    ),
    (errors.DirectoryLocked, ExitCode.CANNOT_START, ""),
    (CannotStart, ExitCode.CANNOT_START, ""),
    (
        errors.StorageFull,
        ExitCode.STORAGE,
        "`folkmoot status` shows how much each server has free",
    ),
    (errors.StorageError, ExitCode.STORAGE, ""),
    (errors.UsageError, ExitCode.USAGE, ""),
    (errors.FolkmootError, ExitCode.REFUSED, ""),
)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors themselves, without the groups that task groups wrap around them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def failure_of(error: BaseException) -> Failure | None:
    """Describe an error that can happen to a user; None for what only a bug can raise.

    Of several that were raised together the first one of ours is told: the others are mostly its
    consequences.
    """
    found = list(leaves(error))
    for leaf in found:
        if isinstance(leaf, errors.FolkmootError):
            for kind, exit_code, hint in _TABLE:
                if isinstance(leaf, kind):
                    message = Exception.__str__(leaf)
                    return Failure(exit_code, leaf.code, message, leaf.hint or hint, leaf.applied)
    for leaf in found:
        # By name: its module has much to import, only to say this.
        if type(leaf).__name__ == "MachineFault":
            return Failure(ExitCode.INTERNAL, "machine_fault", str(leaf), "", "maybe")
        if isinstance(leaf, OSError) and not isinstance(leaf, BrokenPipeError):
            where = f"{leaf.filename}: " if leaf.filename else ""
            message = f"{where}{leaf.strerror or leaf}"
            return Failure(ExitCode.CANNOT_START, "os", message, "", "no")
    return None
