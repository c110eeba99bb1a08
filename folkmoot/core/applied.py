"""What comes out of applying: what a server must tell its own clients, as data.

Pure: no I/O, no clock, no randomness. Built for every batch alike on every server.
"""

from __future__ import annotations

from typing import Any

import attrs


@attrs.define
class Results:
    """Answers to consecutive commands of one session: what a RESULTS frame says.

    A session keeps these very objects until they are acknowledged: nobody changes one.
    """

    session_id: int
    first_sequence: int
    index: int
    """The index of the last of them."""
    values: list[Any]
    errors: list[list[Any]] | None
    """[[offset into values, code, message, data], ...] in order of offset; None where all went
    well.
    """
    size_bytes: int = 0
    """About what the answers take while they are kept."""

    @property
    def last_sequence(self) -> int:
        """The sequence of the last of them."""
        return self.first_sequence + len(self.values) - 1

    def part(self, first: int, last: int) -> Results:
        """Cut out the answers to the sequences `first` to `last`, as many as are here."""
        begin = max(first - self.first_sequence, 0)
        end = min(last - self.first_sequence + 1, len(self.values))
        if begin == 0 and end == len(self.values):
            return self
        errors = [[e[0] - begin, *e[1:]] for e in self.errors or () if begin <= e[0] < end]
        return Results(
            self.session_id,
            self.first_sequence + begin,
            self.index - (len(self.values) - end),
            self.values[begin:end],
            errors or None,
        )


@attrs.define
class Opened:
    """An OPEN_SESSION was applied: a session for the client that knows the secret, or a refusal."""

    secret_hash: bytes
    session_id: int
    timeout_ms: int
    refused: list[Any] | None
    """Why there is no session: [code, message, data]; then the id is 0."""


@attrs.define
class Kept:
    """A keep-alive of a living session was applied."""

    session_id: int
    number: int
    index: int


@attrs.define
class Ended:
    """A session is no more: expired, closed, restored (the cluster was made anew of a backup), or
    unknown where it was gone when it spoke."""

    session_id: int
    reason: str
    index: int


@attrs.define
class Applied:
    """What a server must tell its own clients of a batch."""

    results: list[Results] = attrs.field(factory=list)
    """In order of the entries; cached answers too."""
    opened: list[Opened] = attrs.field(factory=list)
    kept: list[Kept] = attrs.field(factory=list)
    ended: list[Ended] = attrs.field(factory=list)
    dirty: dict[int, None] = attrs.field(factory=dict)
    """Living sessions with new events, in the order in which they got the first one."""
