"""What is in a compacted prefix, counted: resources, what each of them has, sessions.

Pure: no I/O, no clock, no randomness. It reads all of a prefix (so all of it is verified by its
source) without making a state of it, so it needs no machines: the types may be unknown here.

Who drives it: whoever saves or looks at a backup, in steps.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import attrs

from folkmoot.core.errors import RemoteProtocolError, StorageCorrupt
from folkmoot.core.prefix import PrefixSource, RecordKind
from folkmoot.transport.codec import pack, unpack


@attrs.define
class SurveyedResource:
    """One resource, and what of the prefix is its own."""

    id: int
    name: str
    type_name: str
    version: int
    entries: int
    """Live entries, for a state that is owed to entries; else 0."""
    size_bytes: int
    """Of its record and of those entries' operations."""


@attrs.define
class Survey:
    """What there is."""

    resources: dict[int, SurveyedResource] = attrs.field(factory=dict)
    """By id, in rising order."""
    sessions: int = 0


def survey(source: PrefixSource) -> Generator[int, None, Survey]:
    """Count, one record or some items a step; yields how many entries so far.

    Raises StorageCorrupt.
    """
    found = Survey()
    for kind, number, data in source.records():
        if kind == RecordKind.RESOURCE:
            found.resources[number] = _resource(number, data)
        elif kind == RecordKind.SESSION:
            found.sessions += 1
        yield 0
    count = 0
    for items in source.items():
        for resource_id, operation in zip(items.resources, items.operations, strict=True):
            resource = found.resources.get(resource_id)
            if resource is not None:  # else it was deleted, and its entries are dead
                resource.entries += 1
                resource.size_bytes += len(pack(operation))
        count += len(items.indexes)
        yield count
    return found


def _resource(number: int, data: bytes) -> SurveyedResource:
    try:
        fields: list[Any] = unpack(data)
        resource_id, name, type_name, version, *_ = fields
        if [*map(type, fields[:4])] != [int, str, str, int] or resource_id != number:
            raise ValueError(f"it begins with {fields[:4]!r:.80}")
    except (RemoteProtocolError, TypeError, ValueError) as error:
        raise StorageCorrupt(f"the record of resource {number} is none: {error}") from error
    return SurveyedResource(number, name, type_name, version, 0, len(data))
