"""A machine that does a bit of everything, and a log of one server to drive a multiplexer with.

The log encodes every batch and applies what it decodes from the bytes, as a follower does, and
keeps the bytes, so that a second multiplexer can be brought to the same state.
"""

from collections.abc import Mapping
from typing import Any

from folkmoot.core.applied import Applied, Results
from folkmoot.core.batch import Group, Kind, decode_batch, encode_batch
from folkmoot.core.config import LimitsConfig
from folkmoot.core.errors import ConditionFailed, ConfigError, NotHeld
from folkmoot.core.machine import Context, Machine, QueryContext, Registry, command, query
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.requests import encode_commands
from folkmoot.core.sessions import (
    Session,
    encode_close,
    encode_expire,
    encode_keep_alive,
    encode_open,
)
from folkmoot.transport.codec import unpack
from tests.core.prefix_twin import PrefixTwin, finish, restore


class Scratch(Machine):
    """A total, a list, a grant with waiters, subscribers, deadlines. Configured by `start`.

    - Whoever waits, waits behind a holder; nobody waits or holds twice.
    """

    type_name = "scratch"
    type_version = 2

    def __init__(self, config: Mapping[str, Any]) -> None:
        unknown = sorted(set(config) - {"start", "note"})
        if unknown:
            raise ConfigError(f"scratch is configured by start, not by {unknown}")
        self.total: int = config.get("start", 0)
        self.items: list[Any] = []
        self.queue: list[list[int]] = []  # [session, token]; the first holds
        self.watchers: dict[int, None] = {}
        self.waiting_deadlines = 0

    @command
    def add(self, context: Context, number: int) -> int:
        if number == 0:
            raise ConditionFailed("nothing to add", [self.total])
        self.total += number
        context.publish(self.watchers, "added", [number, self.total])
        return self.total

    @command
    def push(self, context: Context, item: Any) -> list[Any]:
        """Return the very list that goes on being changed."""
        self.items.append(item)
        return self.items

    @command
    def refuse(self, context: Context) -> None:
        raise ConditionFailed("not with these", self.items)

    @command
    def echo(self, context: Context, item: Any, size: int = 1) -> Any:
        return item * size if size != 1 else item

    @command
    def who(self, context: Context) -> list[Any]:
        return [context.index, context.time, context.session, context.client_name(context.session)]

    @command
    def hold(self, context: Context) -> int:
        if any(session == context.session for session, _ in self.queue):
            raise ConditionFailed(f"session {context.session} holds or waits")
        self.queue.append([context.session, 0])
        return self._grant(context, silent=True)

    @command
    def release(self, context: Context) -> None:
        if not self.queue or self.queue[0][0] != context.session:
            raise NotHeld(f"session {context.session} does not hold")
        del self.queue[0]
        self._grant(context)

    @command
    def watch(self, context: Context) -> int:
        self.watchers[context.session] = None
        return self.total

    @command
    def tell(
        self, context: Context, sessions: list[int], kind: str, payload: Any, keep: bool
    ) -> None:
        context.publish(sessions, kind, payload, keep=keep)

    @command
    def later(self, context: Context, key: str, time: int) -> None:
        context.set_deadline(key, time)

    @command
    def never(self, context: Context, key: str) -> None:
        context.clear_deadline(key)

    @command
    def fault(self, context: Context, how: str) -> Any:
        """Do what no machine may."""
        match how:
            case "raise":
                raise KeyError("a bug")
            case "publish":
                context.publish(context.session, "half", None)
                raise ConditionFailed("too late")
            case "deadline":
                context.set_deadline("half", context.time + 1)
                raise ConditionFailed("too late")
            case "clear":
                context.clear_deadline("half")
                raise ConditionFailed("too late")
            case "retain":
                context.retain()
            case "data":
                raise ConditionFailed("with what cannot travel", {1})
        answers = {"set": {1}, "large": 1 << 64, "nan": float("nan"), "object": object()}
        return answers[how] if how != "deep" else [[[[[[[]]]]]]]

    @query
    def get(self, context: QueryContext) -> int:
        return self.total

    @query
    def state(self, context: QueryContext) -> list[Any]:
        return [
            self.total,
            self.items,
            self.queue,
            list(self.watchers),
            context.index,
            context.time,
        ]

    @query
    def bad(self, context: QueryContext, how: str) -> Any:
        answers = {"set": {1}, "large": 1 << 64, "flat": [0, -(1 << 64)], "deep": [[[[[[[]]]]]]]}
        more = {"text": "\ud800", "nan": [float("nan")]}
        return self.items[1000] if how == "raise" else (answers | more)[how]

    def on_deadline(self, context: Context, key: str) -> None:
        """What fires depends on the key: most are just reported."""
        context.publish(self.watchers, "due", [key, context.session])
        name, _, rest = key.partition(":")
        if name == "again":
            context.set_deadline(key, context.time)
        elif name == "set":
            context.set_deadline(rest, context.time)
        elif name == "clear":
            context.clear_deadline(rest)
        elif name == "release" and self.queue:
            del self.queue[0]
            self._grant(context)
        elif name == "empty":
            self.total = 0
        elif name == "fault":
            raise ConditionFailed("a deadline answers nobody")

    def session_ended(self, context: Context, session: int) -> None:
        self.watchers.pop(session, None)
        if any(waiting == session for waiting, _ in self.queue):
            self.queue = [claim for claim in self.queue if claim[0] != session]
            self._grant(context)
        context.publish(self.watchers, "left", session)

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        had = session in self.watchers
        self.watchers.pop(session, None)
        return had

    def holds_grant(self, token: int) -> bool:
        return bool(self.queue) and self.queue[0][1] == token

    def idle(self) -> bool:
        return not (self.total or self.items or self.queue or self.watchers)

    def snapshot(self) -> Any:
        return [self.total, self.items, self.queue, list(self.watchers)]

    def restore(self, data: Any) -> None:
        self.total, self.items, self.queue, watchers = data
        self.watchers = dict.fromkeys(watchers)

    def _grant(self, context: Context, *, silent: bool = False) -> int:
        """Give the grant to the first, if he has none; return the token if it is he who asks."""
        if not self.queue or self.queue[0][1]:
            return 0
        self.queue[0][1] = context.index
        if not silent:
            context.publish(self.queue[0][0], "grant", context.index, keep=True)
        return context.index


class Other(Scratch):
    type_name = "other"


REGISTRY = Registry.of([Scratch, Other])
SMALL = LimitsConfig(session_window=8, session_events_max=16, session_event_bytes_max=4096)


class Log:
    """A log with one server. `time` is the log time of the next batch.

    - `mux` has applied all of `batches`, and `prefix` has all that it froze.
    """

    def __init__(self, limits: LimitsConfig = SMALL, registry: Registry = REGISTRY) -> None:
        self.limits = limits
        self.registry = registry
        self.mux = Multiplexer(registry, limits)
        self.batches: list[bytes] = []
        self.prefix = PrefixTwin()
        self.time = 0

    def batch(self, *groups: Group) -> Applied:
        """Append one batch, and apply it."""
        batch = encode_batch(1, self.mux.index + 1, self.time, groups)
        self.batches.append(batch.data)
        self.prefix.batch(decode_batch(batch.data))
        return self.mux.apply(decode_batch(batch.data))

    def restart(self) -> None:
        """Go on with what the compacted prefix holds."""
        before = self.mux.digest()
        self.prefix.take(finish(self.mux.freeze()))
        self.mux = restore(self.prefix, self.registry, self.limits)
        assert self.mux.digest() == before, "the restored state's digest differs"

    def replay(self) -> Multiplexer:
        """Apply the whole log from the start, on a new server."""
        mux = Multiplexer(self.registry, self.limits)
        for data in self.batches:
            mux.apply(decode_batch(data))
        return mux

    def client(self, name: str = "", timeout_ms: int = 1000) -> "Client":
        """Open a session."""
        secret = b"secret-%d" % (self.mux.index + 1)
        (opened,) = self.batch(encode_open(secret, timeout_ms, name)).opened
        assert opened.refused is None, opened.refused
        return Client(self, opened.session_id)

    def tick(self, ms: int = 0) -> Applied:
        """Let log time pass, and append a Tick."""
        self.time += ms
        return self.batch(Group(Kind.TICK, 1, b""))

    def initialize(self) -> Applied:
        return self.batch(Group(Kind.INITIALIZE, 1, b""))

    def expire(self, session_id: int) -> Applied:
        return self.batch(encode_expire(session_id))

    def query(self, reference: Any, name: str, *args: Any, session: int = 0) -> Any:
        return self.mux.query(session, [reference, name, list(args)])


class Client:
    """A client that numbers its commands and acknowledges nothing by itself."""

    def __init__(self, log: Log, session_id: int) -> None:
        self.log = log
        self.id = session_id
        self.sequence = 0
        self.low_water = 0
        self.event_index = 0

    def group(self, *operations: Any, first: int | None = None) -> Group:
        """Make a group of commands: the next ones, or those from sequence `first`."""
        if first is None:
            first = self.sequence + 1
            self.sequence += len(operations)
        body = encode_commands(self.id, first, self.low_water, self.event_index, list(operations))
        return Group(Kind.COMMANDS, len(operations), body)

    def send(self, *operations: Any, first: int | None = None) -> list[Results]:
        """Send commands in a batch of their own; return the results."""
        return self.log.batch(self.group(*operations, first=first)).results

    def do(self, reference: Any, name: str, *args: Any, fence: Any = None) -> Any:
        """Send one command; return its value, or [code, message, data] of its error."""
        operation = [reference, name, list(args)] + ([fence] if fence else [])
        (results,) = self.send(operation)
        if results.errors:
            return results.errors[0][1:]
        return results.values[0]

    def open(self, name: str, type_name: str = "scratch", **config: Any) -> int:
        """Open or create a resource; return its id."""
        resource_id: int = self.do(0, "open", name, type_name, 1, config)[0]
        return resource_id

    def keep_alive(self, number: int = 1) -> Applied:
        return self.log.batch(
            encode_keep_alive([[self.id, self.low_water, self.event_index, number]])
        )

    def close(self) -> Applied:
        return self.log.batch(encode_close(self.id))

    def events(self, after: int = 0) -> list[list[Any]]:
        """Return the pending events as [index, previous, resource, kind, payload]."""
        session = self.log.mux.sessions.get(self.id)
        assert session is not None, f"session {self.id} is gone"
        return [
            [index, previous, *unpack(event)]
            for index, previous, events in session.events_after(after)
            for event in events
        ]

    def kinds(self) -> list[str]:
        """Return the kinds of the pending events."""
        return [event[3] for event in self.events()]


def named(name: str, type_name: str = "scratch", version: int = 1, **config: Any) -> list[Any]:
    """Refer to a resource by name."""
    return [name, type_name, version, config]


def codes(results: list[Results]) -> list[str | None]:
    """Return the error code of each answer, None for those that went well."""
    out: list[str | None] = []
    for part in results:
        found = {error[0]: error[1] for error in part.errors or ()}
        out += [found.get(offset) for offset in range(len(part.values))]
    return out


def session_of(client: Client) -> Session:
    session = client.log.mux.sessions.get(client.id)
    assert session is not None
    return session
