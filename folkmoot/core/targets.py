"""How operations name their resource: by name until its id is known, by id from then on.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`.

A TARGET is one holder's resource. Its first command names it by name, type and configuration, which
opens it for the session; the answer tells the id. When the session ends the id is forgotten, and
the next command opens the resource again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from folkmoot.core.errors import TooLarge, UsageError
from folkmoot.core.requests import DIRECTORY, pack_resource


def check_name(name: object, bytes_max: int) -> None:
    """Raise UsageError unless it is text, TooLarge where it is too long."""
    if not isinstance(name, str) or not name:
        raise UsageError(f"a resource's name is {name!r}: it must be text, and not empty")
    size_bytes = len(name.encode(errors="replace"))
    if size_bytes > bytes_max:
        text = f"the name {name[:40]!r}... has {size_bytes} bytes"
        raise TooLarge(f"{text}; {bytes_max} are allowed (name_bytes_max)")


class Target:
    """A resource as operations name it.

    - `id` is valid while `known`; it is forgotten with the session that learned it.
    - `deleted` is for ever: the resource of that id is gone, and its name may mean another one.
    """

    __slots__ = (
        "_heads",
        "by_name",
        "config",
        "deleted",
        "id",
        "known",
        "name",
        "note",
        "owner",
        "type_name",
        "type_version",
    )

    def __init__(self, name: str, type_name: str, type_version: int, config: Mapping[str, Any]):
        self.name = name
        self.type_name = type_name
        self.type_version = type_version
        self.config = dict(config)
        self.by_name = [name, type_name, type_version, self.config]
        self.id = 0
        self.known = False
        self.deleted = False
        self.note = ""
        """How the configuration differs from what the resource was created with; empty: it does
        not.
        """
        self.owner: Any = None
        """Whatever the driver keeps here to find its own object again."""
        self._heads = (pack_resource(self.by_name), pack_resource(self.by_name, fenced=True))

    def learn(self, resource_id: int) -> None:
        """From now on operations name the id."""
        self.id = resource_id
        self.known = True
        self._heads = (pack_resource(resource_id), pack_resource(resource_id, fenced=True))

    def forget(self) -> None:
        """The session that learned the id has ended: the next operation opens it anew, by name."""
        if self.known and self.name:
            self.known = False
            self.id = 0
            self._heads = (pack_resource(self.by_name), pack_resource(self.by_name, fenced=True))

    def head(self, *, fenced: bool) -> bytes:
        """What stands before a packed operation in its array."""
        return self._heads[fenced]

    def __repr__(self) -> str:
        return f"<{self.type_name} {self.name!r} {self.id if self.known else 'not opened'}>"


class Targets:
    """All targets that somebody holds.

    - Per name and type the newest target is known here; older ones go on, but are never closed.
    - `_by_id` holds those that the present session has opened.
    """

    def __init__(self) -> None:
        self.directory = Target("", "directory", 1, {})
        """The directory itself, which is always there."""
        self.directory.learn(DIRECTORY)
        self._by_name: dict[tuple[str, str], Target] = {}
        self._by_id: dict[int, Target] = {}

    def make(self, name: str, type_name: str, version: int, config: Mapping[str, Any]) -> Target:
        """Make a target for a new holder."""
        target = Target(name, type_name, version, config)
        self._by_name[name, type_name] = target
        return target

    def of(self, resource_id: int) -> Target | None:
        """Find whose events those of this resource are."""
        return self._by_id.get(resource_id)

    def learned(self, target: Target) -> None:
        """The session has opened the target's resource."""
        self._by_id[target.id] = target

    def drop(self, target: Target) -> bool:
        """The target has no holder any more; tell whether its resource is to be closed.

        It is not where a newer target names the same resource: closing it would take it from that.
        """
        if self._by_id.get(target.id) is target:
            del self._by_id[target.id]
        key = (target.name, target.type_name)
        if self._by_name.get(key) is not target:
            return False
        del self._by_name[key]
        return target.known and not target.deleted

    def session_ended(self) -> None:
        """Whatever was opened is to be opened again."""
        for target in self._by_id.values():
            target.forget()
        self._by_id.clear()
