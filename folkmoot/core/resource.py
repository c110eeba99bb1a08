"""One named resource: its machine, what the directory knows of it, and how it is called.

Pure: no I/O, no clock, no randomness. Resources are made and kept by `core/directory.py`; the
multiplexer calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from folkmoot.core.errors import BadCommand
from folkmoot.core.machine import Context, Machine, Operation, QueryContext, Retention
from folkmoot.transport.codec import pack

UNTRACKED = 1 << 63
"""A period that never begins: whoever was touched in it is not noted as changed."""


class MachineFault(Exception):
    """A machine did what no machine may: every replica stops at this entry.

    The message names the index, the resource, its type and the operation; `__cause__` is what the
    machine raised.
    """


@attrs.define(eq=False)
class Resource:
    """A machine with its name.

    - `id` is the index of the entry that created it: a name that is deleted and made anew has
      another id.
    - `sessions` are those that have it open, all of them alive; each of them has it in
      `Session.opened`. A session opens a resource by its first command that succeeds, so a machine
      knows of no session that has not.
    - `touched` is UNTRACKED where all that changes of the machine is owed to entries.
    """

    id: int
    name: str
    type_name: str
    version: int
    config: dict[str, Any]
    creator: int
    machine: Machine = attrs.field(repr=False)
    sessions: set[int] = attrs.field(factory=set, repr=False)
    commands: Mapping[str, Operation] = attrs.field(init=False, repr=False)
    by_entries: bool = attrs.field(init=False, repr=False)
    """Whether the machine's retention is ENTRIES."""
    touched: int = attrs.field(init=False, repr=False)
    """The period (see core/freeze.py) in which it changed last."""

    def __attrs_post_init__(self) -> None:
        self.commands = self.machine.commands
        self.by_entries = self.machine.retention is Retention.ENTRIES
        self.touched = 0 if self.machine.has_record else UNTRACKED

    def call(self, context: Context, name: str, args: list[Any]) -> Any:
        """Apply a command. Raises BadCommand for an unknown one, and what the machine raises."""
        operation = self.commands.get(name)
        if operation is None:
            raise self._unknown(name, "command")
        if tuple(map(type, args)) not in operation.fitting:  # in place, as this is the hot path
            operation.check(args)
        return operation.function(self.machine, context, *args)

    def ask(self, context: QueryContext, name: str, args: list[Any]) -> Any:
        """Answer a query. Raises as `call` does."""
        operation = self.machine.queries.get(name)
        if operation is None:
            raise self._unknown(name, "query")
        operation.check(args)
        return operation.function(self.machine, context, *args)

    def identity(self) -> list[Any]:
        """Return all of it that never changes, as a record begins with it."""
        return [self.id, self.name, self.type_name, self.version, self.config, self.creator]

    def pack_state(self, method: str) -> bytes:
        """Encode what the machine's `snapshot` or `remainder` gives. Raises MachineFault."""
        try:
            return pack(getattr(self.machine, method)())
        except Exception as error:
            text = f"{method}() of {self.describe()} failed: {type(error).__name__}: {error}"
            raise MachineFault(text) from error

    def describe(self) -> str:
        """Name the resource in an error or a fault."""
        if not self.id:
            return "the directory"
        return f"{self.type_name} {self.name!r} (resource {self.id})"

    def _unknown(self, name: str, wanted: str) -> BadCommand:
        other = self.machine.queries if wanted == "command" else self.commands
        if name in other:
            does = "reads" if wanted == "command" else "writes"
            return BadCommand(f"{name!r} of {self.describe()} is no {wanted}: it {does}")
        return BadCommand(f"{self.describe()} has no {wanted} {name[:64]!r}")
