"""The one error tree, and the one table that maps errors to wire codes.

Ground layer: imports nothing of the package and may be imported by every layer.

Each class says WHO is at fault and WHETHER THE OPERATION MAY HAVE BEEN APPLIED (`applied`): "no" is
safe to repeat, "maybe" may be repeated only under the same session and sequence, "yes" means that
it took effect and this is its answer. A message names the thing, the value, and what to do.

    FolkmootError
      UsageError            you misused the library; never retried
      CommandError          a deterministic answer of a state machine; nothing changed unless it
                            says so
      Unavailable           certainly not applied; safe to retry
      OutcomeUnknown        sent, no answer: it may or may not have been applied
      SessionEnded          SessionExpired, SessionClosed
      GrantLost             LockLost, LeadershipLost
      RemoteProtocolError   the peer's bytes were refused; that connection closes
      StorageError          the server stops; StorageFull may also be the answer to a command, which
                            was refused so that it need not
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Applied = Literal["no", "maybe", "yes"]


class FolkmootError(Exception):
    """Base of every error that the package raises on purpose."""

    code: ClassVar[str] = "error"
    applied: ClassVar[Applied] = "no"
    hint: ClassVar[str] = ""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(FolkmootError):
    """The caller misused the library. Nothing was sent."""

    code = "usage"


class ClosedError(UsageError):
    """The cluster object (or the watch, or the grant) was closed before this call."""

    code = "closed"


class WouldBlock(FolkmootError):
    """A `*_nowait` call could not be satisfied at once. Nothing changed."""

    code = "would_block"


class ConfigError(UsageError):
    """A configuration value is unknown, of the wrong type, out of bounds or contradicts another."""

    code = "config"


class TooLarge(UsageError):
    """A value, key, name or frame is over its limit. Refused before anything was sent."""

    code = "too_large"


class CommandError(FolkmootError):
    """A state machine's deterministic answer: the command was applied, refused, and changed
    nothing.

    `code` is stable and travels on the wire; `data` is plain msgpack data that goes with it.
    """

    code = "command"
    applied = "yes"

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.data = data


class BadCommand(CommandError):
    """The operation is not known to this resource's type, or its arguments are malformed."""

    code = "bad_command"


class ResourceTypeError(CommandError):
    """The name exists with another type. The message names both types."""

    code = "resource_type"


class ResourceDeleted(CommandError):
    """The resource was deleted (and perhaps made anew: open it by name to use the new one)."""

    code = "resource_deleted"


class ConditionFailed(CommandError):
    """A condition of the command (version, value, absence) did not hold; nothing changed."""

    code = "condition_failed"


class OutOfBounds(CommandError):
    """The result would leave the resource's bounds; nothing changed."""

    code = "out_of_bounds"


class Fenced(CommandError):
    """The write named a grant that has ended; nothing changed."""

    code = "fenced"


class LimitExceeded(CommandError):
    """A replicated limit (resources, waiters, items) is reached; nothing changed."""

    code = "limit_exceeded"


class ResultExpired(CommandError):
    """The answer to this sequence was acknowledged before, so it is gone.

    A protocol error of the client.
    """

    code = "result_expired"


class SequenceGap(CommandError):
    """A command arrived ahead of its turn; nothing changed.

    `data` is the sequence that is expected.
    """

    code = "sequence_gap"


class NotHeld(CommandError):
    """Release, resign or proclaim by somebody who does not hold the grant; nothing changed."""

    code = "not_held"


class Unavailable(FolkmootError):
    """The cluster could not take the operation. It was certainly not applied; retrying is safe."""

    code = "unavailable"


class NotLeader(Unavailable):
    """This server does not lead."""

    code = "not_leader"


class NoLeader(Unavailable):
    """No leader is known: an election is under way or a majority is unreachable."""

    code = "no_leader"


class Overloaded(Unavailable):
    """A named limit is reached; the message says which. Slow down and try again."""

    code = "overloaded"


class ConnectionLost(Unavailable):
    """No server could be reached. The message names the addresses that were tried."""

    code = "connection_lost"


class OutcomeUnknown(FolkmootError):
    """Sent, and no answer will come: the operation may or may not have been applied."""

    code = "outcome_unknown"
    applied = "maybe"


class SessionEnded(FolkmootError):
    """The session is gone, and everything that it owned with it."""

    code = "session_ended"


class SessionExpired(SessionEnded):
    """The cluster (or the conservative local deadline) ended the session.

    This operation was not applied.
    """

    code = "session_expired"


class SessionClosed(SessionEnded):
    """The client closed the session; this operation was not applied."""

    code = "session_closed"


class GrantLost(FolkmootError):
    """A grant ended before the guarded code did. The guarded code was cancelled.

    `cause` says why (a word: "expired", "suspended", "released", "evicted", "deleted"), `index` is
    the log index that ended the grant where it is known, else 0. Work that the body sent before may
    have been applied.
    """

    code = "grant_lost"
    applied = "maybe"

    def __init__(self, message: str, *, cause: str = "", index: int = 0) -> None:
        super().__init__(message)
        self.cause = cause
        self.index = index


class LockLost(GrantLost):
    """The lock was lost while the body ran."""

    code = "lock_lost"


class LeadershipLost(GrantLost):
    """The leadership was lost while the body ran."""

    code = "leadership_lost"


class OperationTimeout(FolkmootError, TimeoutError):
    """The caller's `timeout=` ran out before the operation was sent; it was not applied."""

    code = "timeout"


class LockTimeout(OperationTimeout):
    """The lock was not granted in time; the waiter has been withdrawn."""

    code = "lock_timeout"


class ElectionTimeout(OperationTimeout):
    """Leadership was not won in time; the candidacy has been withdrawn."""

    code = "election_timeout"


class RemoteProtocolError(FolkmootError):
    """The peer's bytes were refused (malformed, too large, unknown version, wrong cluster).

    The connection closes.
    """

    code = "protocol"


class StorageError(FolkmootError):
    """The data directory cannot be used safely; the server stops."""

    code = "storage"


class StorageCorrupt(StorageError):
    """Durable bytes do not verify. The message names file and offset.

    Nothing was cut or repaired.
    """

    code = "storage_corrupt"


class StorageFull(StorageError):
    """The disk is full, or so nearly full that the command was refused; it was not applied.

    A command that is refused leaves everything as it was: the session lives, reads go on, and so do
    commands that free something. The message names the server. A server that a full disk stopped
    has acknowledged nothing that was not durable.
    """

    code = "storage_full"


class DirectoryLocked(StorageError):
    """Another process has this data directory open; the message says which."""

    code = "directory_locked"


def _tree(root: type[FolkmootError]) -> list[type[FolkmootError]]:
    return [root] + [found for child in root.__subclasses__() for found in _tree(child)]


BY_CODE: dict[str, type[FolkmootError]] = {error.code: error for error in _tree(FolkmootError)}
"""Wire code -> class. Codes are unique (checked below) and never change their meaning."""

assert len(BY_CODE) == len(_tree(FolkmootError)), "two errors share a wire code"


def from_wire(code: str, message: str, data: Any = None) -> FolkmootError:
    """Build the error that a server sent.

    A code from a newer server becomes its nearest known relative.
    """
    kind = BY_CODE.get(code)
    if kind is None:
        return CommandError(f"{message} [{code}]", data)
    if issubclass(kind, CommandError):
        return kind(message, data)
    return kind(message)
