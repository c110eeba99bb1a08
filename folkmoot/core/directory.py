"""The directory: which names there are, and the machine behind each.

Pure: no I/O, no clock, no randomness. Part of the replicated state, and itself a machine: what is
said to the resource id 0 is said to the directory.

Opening. An operation may name its resource by `[name, type, type version, configuration]`: that
opens it, or creates it with this entry's index as its id, and does the operation, in one entry.
`open` does so without an operation. A name has one type for as long as it exists; another type is
refused, naming both. Another configuration is no error: the first one holds, and the answer's note
says where they differ.

AN OPERATION THAT FAILS CHANGES NOTHING: it neither creates nor opens its resource, so its error
tells no id; the client names the resource by name again next time.

Leaving. `close` gives up what the session has in a resource, as if the session had ended there.
`delete` ends the resource for everybody; those who have it open are told by a "deleted" event.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from folkmoot.core.config import LimitsConfig
from folkmoot.core.context import EntryContext, ReadContext, fault
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.errors import (
    BadCommand,
    CommandError,
    ConfigError,
    LimitExceeded,
    ResourceDeleted,
    ResourceTypeError,
    StorageFull,
    UsageError,
)
from folkmoot.core.freeze import Changes
from folkmoot.core.machine import Machine, Operation, Registry, command, frees, query
from folkmoot.core.requests import DIRECTORY
from folkmoot.core.resource import Resource
from folkmoot.core.room import Shortage
from folkmoot.core.sessions import Session, SessionTable
from folkmoot.transport.codec import pack

LIST_MAX = 1000
"""Resources on one page of `list`."""

# Spelt out here, because inside the class `list` is the query.
_Ids = list[int]
_Names = list[str]
_Plain = list[Any]
_Records = list[bytes]


class _NoRoom(CommandError):
    """StorageFull as the answer of an entry."""

    code = StorageFull.code


class Directory(Machine):
    """All named resources, by id and by name.

    - `resources` and `_by_name` hold the same objects; ids rise in the order of creation.
    - `_names` without `_removed`, then with `_added`, are the names; they are worked in when
      somebody lists.
    """

    type_name = "directory"

    def __init__(
        self,
        registry: Registry,
        limits: LimitsConfig,
        sessions: SessionTable,
        deadlines: Deadlines,
        changes: Changes,
    ) -> None:
        self.resources: dict[int, Resource] = {}
        self.itself = Resource(DIRECTORY, "", self.type_name, 1, {}, 0, self)
        self._registry = registry
        self._limits = limits
        self._sessions = sessions
        self._deadlines = deadlines
        self._changes = changes
        self._by_name: dict[str, Resource] = {}
        self._names: list[str] = []
        self._added: set[str] = set()
        self._removed: set[str] = set()

    @command
    def open(
        self, context: EntryContext, name: str, type_name: str, version: int, config: dict[str, Any]
    ) -> _Plain:
        """Open or create a resource; return [id, None, note], as an operation by name does."""
        resource, note = self.resolve(name, type_name, version, config)
        if resource is None:
            resource = self.make(context, name, type_name, version, config)
            self.add(resource)
        self.mark_open(resource, context.session)
        return [resource.id, None, note]

    @command
    @frees
    def close(self, context: EntryContext, ids: _Ids) -> None:
        """Leave the resources with these ids; passes over what the session has not open."""
        if not all(type(resource_id) is int for resource_id in ids):
            raise BadCommand("close: a list of resource ids is needed")
        session = self._session(context)
        self._changes.touch_session(session)
        for resource_id in sorted(set(ids)):
            resource = session.opened.pop(resource_id, None)
            if resource is not None:
                context.lose(resource, session.id)
                resource.sessions.discard(session.id)

    @command
    @frees
    def delete(self, context: EntryContext, resource_id: int) -> None:
        """Delete a resource and all that is in it; tell the sessions that have it open."""
        resource = self.resources.get(resource_id)
        if resource is None:
            raise deleted(resource_id)
        context.publish_for(resource, sorted(resource.sessions), "deleted")
        if resource.by_entries:
            self._changes.ledger.deleted.append(resource_id)
        self.remove(resource)

    @command
    def no_room(
        self, context: EntryContext, node_id: int, free_bytes: int, reserve_bytes: int
    ) -> None:
        """Answer for a command that was refused for want of room (see core/room.py)."""
        raise _NoRoom(Shortage(node_id, free_bytes, reserve_bytes).message())

    @query
    def find(self, context: ReadContext, name: str) -> _Plain | None:
        """Return [name, id, type, version, config, how many sessions have it open], or None."""
        resource = self._by_name.get(name)
        return None if resource is None else _row(resource)

    @query
    def list(self, context: ReadContext, prefix: str, after: str, limit: int) -> _Plain:
        """Return rows as `find` does, in order of name, of names with the prefix behind `after`."""
        if not 1 <= limit <= LIST_MAX:
            raise BadCommand(f"list: a limit of {limit}; it must lie between 1 and {LIST_MAX}")
        names = self._sorted_names()
        at = bisect_left(names, prefix) if after < prefix else bisect_right(names, after)
        rows = []
        for name in names[at : at + limit]:
            if not name.startswith(prefix):
                break
            rows.append(_row(self._by_name[name]))
        return rows

    @query
    def count(self, context: ReadContext) -> int:
        """Return how many resources there are."""
        return len(self.resources)

    def is_freeing(self, operation: _Plain) -> bool:
        """Say whether a command frees something.

        So does, in effect, one for a resource that is gone: it changes nothing, and must hear so.
        """
        reference, name = operation[:2]
        if type(reference) is list:
            kind = self._registry.machines.get(reference[1])
            commands: Mapping[str, Operation] = {} if kind is None else kind.commands
        elif reference == DIRECTORY:
            commands = self.commands
        else:
            resource = self.resources.get(reference)
            if resource is None:
                return True
            commands = resource.commands
        found = commands.get(name)
        return found is not None and found.frees

    def resolve(
        self, name: str, type_name: str, version: int, config: Mapping[str, Any]
    ) -> tuple[Resource | None, str | None]:
        """Find what a name refers to, with a note where it was made differently.

        Returns (None, None) where there is none yet. Raises ResourceTypeError where the name has
        another type, LimitExceeded for a name that may not be, and BadCommand for an unknown type.
        """
        size_bytes = len(name.encode())
        if not 1 <= size_bytes <= self._limits.name_bytes_max:
            raise LimitExceeded(
                f"a name of {size_bytes} bytes: 1 to {self._limits.name_bytes_max} are allowed"
            )
        resource = self._by_name.get(name)
        if resource is not None and resource.type_name != type_name:
            raise ResourceTypeError(f"{name!r} is a {resource.type_name}, not a {type_name[:64]}")
        self._check_type(type_name, version)
        if resource is None:
            return None, None
        if resource.config == config and resource.version == version:
            return resource, None
        return resource, _difference(resource, version, config)

    def make(
        self, context: EntryContext, name: str, type_name: str, version: int, config: dict[str, Any]
    ) -> Resource:
        """Make a new resource with this entry's index as id. `add` enters it, or it never was."""
        if len(self.resources) >= self._limits.resources_max:
            raise LimitExceeded(
                f"there are {len(self.resources)} resources, as many as resources_max allows"
            )
        try:
            pack([[[[config]]]])  # as deep as it stands in an answer of `list`
        except UsageError as error:
            raise BadCommand(f"configuration of {name!r}: {error}") from error
        machine = self.new_machine(type_name, config)
        return Resource(context.index, name, type_name, version, config, context.session, machine)

    def new_machine(self, type_name: str, config: dict[str, Any]) -> Machine:
        """Make an empty machine. Raises BadCommand where it refuses its configuration."""
        try:
            return self._registry.machines[type_name](config)
        except (ConfigError, CommandError) as error:
            raise BadCommand(f"configuration of a {type_name}: {error}") from error

    def add(self, resource: Resource) -> None:
        """Enter a new resource."""
        assert resource.name not in self._by_name, f"{resource.name!r} is in the directory twice"
        self._changes.add_resource(resource)
        self.resources[resource.id] = resource
        self._by_name[resource.name] = resource
        self._added.add(resource.name)

    def remove(self, resource: Resource) -> None:
        """Take a resource out, with its deadlines and its marks on sessions."""
        self._changes.remove_resource(resource)
        del self.resources[resource.id]
        del self._by_name[resource.name]
        if resource.name in self._added:
            self._added.discard(resource.name)
        else:
            self._removed.add(resource.name)
        self._deadlines.drop(resource.id)
        for session_id in sorted(resource.sessions):
            session = self._sessions.get(session_id)
            assert session is not None, (
                f"{resource.describe()} is open to session {session_id}, which is gone"
            )
            self._changes.touch_session(session)
            del session.opened[resource.id]
        resource.sessions.clear()

    def mark_open(self, resource: Resource, session_id: int) -> None:
        """Note that a session has a resource open: it will be told when the session ends."""
        session = self._sessions.get(session_id)
        assert session is not None, f"session {session_id} opens {resource.describe()} and is gone"
        self._changes.touch_session(session)
        session.opened[resource.id] = resource
        resource.sessions.add(session_id)

    def collect(self, resource_ids: set[int], index: int) -> None:
        """Remove those of the resources that nobody has open and that have nothing to keep."""
        for resource_id in sorted(resource_ids):
            resource = self.resources.get(resource_id)
            if resource is None or resource.sessions:
                continue
            try:
                idle = resource.machine.idle()
            except Exception as error:
                raise fault(index, resource.describe(), "idle", error) from error
            if idle:
                self.remove(resource)

    def snapshot(self) -> _Records:
        """Return the whole state of each resource, in order of id."""
        rising = [self.resources[resource_id] for resource_id in sorted(self.resources)]
        return [pack([*one.identity(), one.pack_state("snapshot")]) for one in rising]

    def revive(
        self,
        resource_id: int,
        name: str,
        type_name: str,
        version: int,
        config: dict[str, Any],
        creator: int,
    ) -> Resource:
        """Enter a resource that is restored, with an empty machine yet.

        Raises UsageError where its type is not registered, or does not take its configuration.
        """
        try:
            self._check_type(type_name, version)
            machine = self.new_machine(type_name, config)
        except BadCommand as error:
            raise UsageError(f"this server cannot serve resource {resource_id}: {error}") from error
        resource = Resource(resource_id, name, type_name, version, config, creator, machine)
        self.add(resource)
        return resource

    def trim_entry(
        self, resource_id: int, name: str, args: _Plain, ordinals: Sequence[int]
    ) -> tuple[str, _Plain]:
        """Leave out of an entry what its live items do not need. May be called by any thread."""
        resource = self.resources.get(resource_id)
        if resource is None:
            return name, args
        return type(resource.machine).trim(name, args, ordinals)

    def _check_type(self, type_name: str, version: int) -> None:
        kind = self._registry.machines.get(type_name)
        if kind is None:
            raise BadCommand(f"no resource type {type_name[:64]!r} is registered on the servers")
        if not 1 <= version <= kind.type_version:
            raise BadCommand(
                f"version {version} of resource type {type_name!r}: "
                f"the servers know 1 to {kind.type_version}"
            )

    def _session(self, context: EntryContext) -> Session:
        session = self._sessions.get(context.session)
        assert session is not None, f"session {context.session} commands and is gone"
        return session

    def _sorted_names(self) -> _Names:
        if self._removed:
            self._names = [name for name in self._names if name not in self._removed]
            self._removed.clear()
        if self._added:
            self._names += sorted(self._added)
            self._names.sort()  # two sorted runs: merged in one pass
            self._added.clear()
        return self._names


def deleted(resource_id: int) -> ResourceDeleted:
    """Say that there is no resource with this id."""
    return ResourceDeleted(
        f"there is no resource {resource_id}: it was deleted, or never was; open it by name"
    )


def _difference(resource: Resource, version: int, config: Mapping[str, Any]) -> str:
    found: list[str] = []
    if resource.version != version:
        found.append(f"version is {resource.version}, not {version}")
    for key in sorted({*resource.config, *config}, key=str):
        if key not in config:
            found.append(f"{key} is {resource.config[key]!r}, and was not asked for")
        elif key not in resource.config:
            found.append(f"{key} is not set, and {config[key]!r} was asked for")
        elif resource.config[key] != config[key]:
            found.append(f"{key} is {resource.config[key]!r}, not {config[key]!r}")
    return f"{resource.type_name} {resource.name!r} exists: " + "; ".join(found)


def _row(resource: Resource) -> list[Any]:
    return [
        *(resource.name, resource.id, resource.type_name, resource.version, resource.config),
        len(resource.sessions),
    ]
