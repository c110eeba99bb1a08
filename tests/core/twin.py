"""A deliberately dumb twin of the multiplexer: no heap, no short way; it scans everything.

It takes entries as plain Python data and remembers every answer that it ever gave. Its machines are
the same `Scratch`, for they are not what is tested. It does not know of bytes, batches or groups.
"""

import copy
from collections.abc import Iterable
from typing import Any

import attrs

from folkmoot.core.config import LimitsConfig
from folkmoot.core.errors import CommandError
from folkmoot.core.machine import Machine
from folkmoot.transport.codec import pack
from tests.core.scratch import REGISTRY


@attrs.define(eq=False)
class TwinSession:
    secret: bytes
    timeout: int
    seen: int
    sequence: int = 0
    low_water: int = 0
    acked: int = 0
    answers: dict[int, list[Any]] = attrs.field(factory=dict)
    """Sequence -> [index, value, error code or None]."""
    batches: list[list[Any]] = attrs.field(factory=list)
    """Pending: [index, previous, [[event, resource id or 0 for kept], ...]]."""
    last: int = 0


@attrs.define(eq=False)
class TwinResource:
    name: str
    type_name: str
    config: dict[str, Any]
    machine: Machine
    sessions: set[int] = attrs.field(factory=set)


class Refused(Exception):
    """An answer with this code, where the real one raises some CommandError."""

    def __init__(self, code: str) -> None:
        self.code = code


class Twin:
    """All state, and the context that its machines see."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self.index = self.time = self.floor = self.session = self.resource = 0
        self.sessions: dict[int, TwinSession] = {}
        self.resources: dict[int, TwinResource] = {}
        self.deadlines: dict[tuple[int, str], int] = {}
        self.overflowed: dict[int, set[int]] = {}
        self.ended: list[list[Any]] = []

    # -- what a machine sees

    def publish(
        self, sessions: int | Iterable[int], kind: str, payload: Any = None, *, keep: bool = False
    ) -> None:
        event = pack([self.resource, kind, payload])
        for session_id in [sessions] if isinstance(sessions, int) else list(sessions):
            session = self.sessions.get(session_id)
            if session is None:
                continue
            if session_id in self.overflowed and not keep:
                self.overflowed[session_id].add(self.resource)
                continue
            if not session.batches or session.batches[-1][0] != self.index:
                session.batches.append([self.index, session.last, []])
                session.last = self.index
            session.batches[-1][2].append([event, 0 if keep else self.resource])
            if self.over(session):
                self.overflowed.setdefault(session_id, set())

    def set_deadline(self, key: str, time: int) -> None:
        self.deadlines[self.resource, key] = max(0, time)

    def clear_deadline(self, key: str) -> None:
        self.deadlines.pop((self.resource, key), None)

    def retain(self, count: int = 1) -> None:
        raise AssertionError("Scratch owns no items")

    def supersede(self, index: int, ordinal: int = 0) -> None:
        raise AssertionError("Scratch owns no items")

    def supersede_all(self, indexes: Iterable[int]) -> None:
        raise AssertionError("Scratch owns no items")

    def client_name(self, session: int) -> str:
        return "" if session not in self.sessions else "name"

    # -- entries

    def entry(self, time: int) -> None:
        """Begin an entry: what is due fires."""
        self.index += 1
        self.time = time
        self.session = 0
        due = sorted((at, rid, key) for (rid, key), at in self.deadlines.items() if at <= time)
        for at, resource_id, key in due:
            if self.deadlines.get((resource_id, key)) == at:
                del self.deadlines[resource_id, key]
                self.resource = resource_id
                self.resources[resource_id].machine.on_deadline(self, key)

    def settle(self) -> None:
        """End an entry."""
        while self.overflowed:
            self._cut(min(self.overflowed))
        for resource_id, resource in sorted(self.resources.items()):
            if not resource.sessions and resource.machine.idle():
                self._remove(resource_id)

    def open(self, secret: bytes, timeout: int) -> int:
        for session_id, session in self.sessions.items():
            if session.secret == secret:
                session.seen = self.time
                return session_id
        if len(self.sessions) >= self.limits.sessions_max:
            return 0
        self.sessions[self.index] = TwinSession(secret, timeout, self.time)
        return self.index

    def marks(self, session_id: int, low_water: int, event_index: int) -> bool:
        session = self.sessions.get(session_id)
        if session is None:
            return False
        session.seen = self.time
        session.low_water = max(session.low_water, min(low_water, session.sequence))
        session.acked = max(session.acked, min(event_index, session.last, self.index - 1))
        session.batches = [batch for batch in session.batches if batch[0] > session.acked]
        return True

    def expiry(self, session: TwinSession) -> int:
        return max(session.seen, self.floor) + session.timeout

    def end(self, session_id: int, reason: str) -> None:
        if session_id not in self.sessions:
            return
        del self.sessions[session_id]
        self.overflowed.pop(session_id, None)
        mine = [r for r in sorted(self.resources) if session_id in self.resources[r].sessions]
        for resource_id in mine:
            self._lose(resource_id, session_id)
        for resource_id in mine:
            self.resources[resource_id].sessions.discard(session_id)
        self.ended.append([session_id, reason, self.index])

    def command(self, session_id: int, sequence: int, operation: list[Any]) -> list[Any]:
        """Apply one command, or say what it gets instead: [index, value, error code]."""
        session = self.sessions.get(session_id)
        if session is None:
            return [self.index, None, "session_expired"]
        if sequence > session.sequence + 1:  # as one before it in its group was refused
            return [self.index, None, "overloaded"]
        if sequence <= session.low_water:
            return [self.index, None, "result_expired"]
        if sequence <= session.sequence:
            return session.answers[sequence]
        if session.sequence - session.low_water >= self.limits.session_window:
            return [self.index, None, "overloaded"]
        self.session = session_id
        try:
            answer = [self.index, copy.deepcopy(self._do(operation)), None]
        except (CommandError, Refused) as error:
            answer = [self.index, None, error.code]
        session.sequence = sequence
        session.answers[sequence] = answer
        return answer

    # -- commands

    def _do(self, operation: list[Any]) -> Any:
        reference, name, args, *fence = operation
        for resource_id, token in fence:
            if resource_id not in self.resources:
                raise Refused("fenced")
            if not self.resources[resource_id].machine.holds_grant(token):
                raise Refused("fenced")
        if reference == 0:
            return self._directory(name, args)
        if type(reference) is int:
            if reference not in self.resources:
                raise Refused("resource_deleted")
            return self._call(reference, name, args)
        resource_id = self._find(reference[0], reference[1])
        if resource_id:
            return [resource_id, self._call(resource_id, name, args), None]
        self._create(reference[0], reference[1], reference[3])
        try:
            return [self.index, self._call(self.index, name, args), None]
        except CommandError:
            del self.resources[self.index]
            raise

    def _call(self, resource_id: int, name: str, args: list[Any]) -> Any:
        self.resource = resource_id
        resource = self.resources[resource_id]
        operation = resource.machine.commands[name]
        operation.check(args)
        answer = operation.function(resource.machine, self, *copy.deepcopy(args))
        resource.sessions.add(self.session)
        return answer

    def _find(self, name: str, type_name: str) -> int:
        for resource_id, resource in self.resources.items():
            if resource.name == name:
                if resource.type_name != type_name:
                    raise Refused("resource_type")
                return resource_id
        return 0

    def _create(self, name: str, type_name: str, config: dict[str, Any]) -> None:
        if len(self.resources) >= self.limits.resources_max:
            raise Refused("limit_exceeded")
        machine = REGISTRY.machines[type_name](config)
        self.resources[self.index] = TwinResource(name, type_name, config, machine)

    def _directory(self, command: str, args: list[Any]) -> Any:
        if command == "open":
            resource_id = self._find(args[0], args[1])
            if not resource_id:
                self._create(args[0], args[1], args[3])
                resource_id = self.index
            self.resources[resource_id].sessions.add(self.session)
            return [resource_id, None, None]
        if command == "close":
            for resource_id in sorted(set(args[0])):
                resource = self.resources.get(resource_id)
                if resource is not None and self.session in resource.sessions:
                    self._lose(resource_id, self.session)
                    resource.sessions.discard(self.session)
            return None
        if args[0] not in self.resources:
            raise Refused("resource_deleted")
        self.resource = args[0]
        self.publish(sorted(self.resources[args[0]].sessions), "deleted", keep=True)
        self._remove(args[0])
        return None

    # -- the rest

    def over(self, session: TwinSession) -> bool:
        events = [event for batch in session.batches for event, _ in batch[2]]
        too_many = len(events) > self.limits.session_events_max
        return too_many or sum(map(len, events)) > self.limits.session_event_bytes_max

    def _lose(self, resource_id: int, session_id: int) -> None:
        before, self.session, self.resource = self.session, 0, resource_id
        self.resources[resource_id].machine.session_ended(self, session_id)
        self.session = before

    def _remove(self, resource_id: int) -> None:
        del self.resources[resource_id]
        self.deadlines = {k: at for k, at in self.deadlines.items() if k[0] != resource_id}

    def _cut(self, session_id: int) -> None:
        session = self.sessions[session_id]
        resources = self.overflowed.pop(session_id)
        session.last = session.acked
        batches, session.batches = session.batches, []
        for index, _, events in batches:
            resources |= {resource for _, resource in events if resource}
            kept = [[event, 0] for event, resource in events if not resource]
            if kept:
                session.batches.append([index, session.last, kept])
                session.last = index
        for resource_id, resource in self.resources.items():
            self.resource = resource_id
            machine = resource.machine
            if session_id in resource.sessions and machine.cut_subscriptions(self, session_id):
                resources.add(resource_id)
        for resource_id in sorted(resources & set(self.resources)):
            self.resource = resource_id
            self.publish(session_id, "resync", keep=True)
        self.overflowed.pop(session_id, None)
        if self.over(session):
            self.end(session_id, "expired")
