"""The contract between a replicated state machine and the multiplexer that drives it.

Pure: no I/O, no clock, no randomness. This is what built-in primitives and users' own machines are
written against.

A machine is a plain class. Methods marked `@command` change the state and are reached only through
the log; methods marked `@query` read it. The first argument after `self` is a context, the others
are the operation's arguments, which are checked against the method's annotations before it is
called:

    class Greeter(Machine):
        type_name = "example.greeter"

        def __init__(self, config: Mapping[str, Any]) -> None:
            self.names: list[str] = []

        @command
        def greet(self, context: Context, name: str) -> int:
            self.names.append(name)
            return context.index

        @query
        def all(self, context: QueryContext) -> list[str]:
            return self.names

        def snapshot(self) -> Any: return self.names
        def restore(self, data: Any) -> None: self.names = list(data)

What a machine may do while it applies: change its own state, return plain data (what msgpack can
carry; a copy is taken, so it may go on changing what it returned), raise a `CommandError` BEFORE it
has changed anything, publish events to sessions, set and clear deadlines. What it may not do: read
clocks, randomness, the environment or the hash order of strings, or do I/O. Whatever else it raises
is a bug on every replica at once: the server stops at that entry and says which.

A machine hears of a session first by a command of it, and last by `session_ended`: when the session
is closed or expires, or when its client closes this resource alone. Between the two the session has
the resource OPEN. A resource that no session has open and that is `idle` is removed.

Who drives it: `core/multiplexer.py`, on every server alike, one entry after another.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import attrs

from folkmoot.core.errors import BadCommand, ConfigError, UsageError

F = TypeVar("F", bound=Callable[..., Any])


class QueryContext(Protocol):
    """What a query sees. `index` and `time` are those of the last applied entry."""

    index: int
    time: int
    session: int

    def client_name(self, session: int) -> str:
        """The name that the session's client gave itself; empty for a session that is gone."""
        ...


class Context(QueryContext, Protocol):
    """What a command, a deadline or the end of a session sees.

    `index`    the entry's index: strictly increasing over the life of the cluster; use it as
               version, revision, token
    `time`     log time in milliseconds: the only clock; never falls, stands still while there
               is no leader
    `session`  the session that issued the command (0 for a deadline, and for the end of one)
    """

    def publish(
        self, sessions: int | Iterable[int], kind: str, payload: Any = None, *, keep: bool = False
    ) -> None:
        """Publish one event to one or several sessions, in the order given.

        Sessions that are gone are passed over. All of it is encoded once. Where a session does not
        read, its events may be replaced by one "resync" (and `cut_subscriptions` is called, once
        the entry is done); `keep=True`, for grants, is never dropped: a session that cannot even
        take those is expired. The kinds "resync" and "deleted" are not a machine's to use.
        """
        ...

    def set_deadline(self, key: str, time: int) -> None:
        """Call `on_deadline(context, key)` once log time has reached `time` (ms).

        A key has one deadline; the last one that was set holds. It is called before an entry, never
        within one.
        """
        ...

    def clear_deadline(self, key: str) -> None:
        """Forget the key's deadline; nothing happens where it has none."""
        ...


_FITTING_MAX = 64
"""Signatures that are remembered per operation; beyond it each call is checked in full."""


@attrs.frozen
class Operation:
    """One operation of a machine: how it is called and what its arguments must be."""

    name: str
    function: Callable[..., Any]
    allowed: tuple[frozenset[type] | None, ...]
    """Per argument the exact types that are taken; None takes any."""
    required: int
    _fitting: set[tuple[type, ...]] = attrs.field(factory=set, init=False, eq=False, repr=False)
    """Types of arguments that were found to fit: the next such call is checked by one look-up."""

    def check(self, args: list[Any]) -> None:
        """Raise BadCommand unless `args` fits the signature."""
        signature = tuple(map(type, args))
        if signature not in self._fitting:
            self._check(args)
            if len(self._fitting) < _FITTING_MAX:
                self._fitting.add(signature)

    def _check(self, args: list[Any]) -> None:
        allowed = self.allowed
        count = len(args)
        if not self.required <= count <= len(allowed):
            raise BadCommand(
                f"{self.name} takes {self.required} to {len(allowed)} arguments, got {count}"
            )
        for position, value in enumerate(args):
            types_allowed = allowed[position]
            if types_allowed is not None and type(value) not in types_allowed:
                names = " or ".join(sorted(kind.__name__ for kind in types_allowed))
                raise BadCommand(
                    f"{self.name}: argument {position + 1} is {type(value).__name__}, not {names}"
                )


_PLAIN: frozenset[type] = frozenset({str, bytes, int, float, bool, list, dict, type(None)})


def command(function: F) -> F:
    """Mark a method as a command: it goes through the log and may change the state."""
    function.folkmoot_operation = "command"  # type: ignore[attr-defined]
    return function


def query(function: F) -> F:
    """Mark a method as a query: it only reads."""
    function.folkmoot_operation = "query"  # type: ignore[attr-defined]
    return function


def _allowed(owner: str, name: str, annotation: Any) -> frozenset[type] | None:
    if annotation is Any:
        return None
    parts = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    found = frozenset(typing.get_origin(part) or part for part in parts)
    if not found <= _PLAIN:
        raise UsageError(
            f"{owner}.{name}: {annotation} is not plain data; "
            "use str, bytes, int, float, bool, list, dict"
        )
    return found


def _operation(owner: str, function: Callable[..., Any]) -> Operation:
    """Read an operation's signature. Raises UsageError where it cannot be checked."""
    code = function.__code__
    if code.co_flags & 0x0C or code.co_kwonlyargcount:
        raise UsageError(
            f"{owner}.{function.__name__}: an operation takes plain positional arguments only"
        )
    names = code.co_varnames[2 : code.co_argcount]
    hints = typing.get_type_hints(function)
    missing = [name for name in names if name not in hints]
    if missing or code.co_argcount < 2:
        raise UsageError(
            f"{owner}.{function.__name__}: needs (self, context, ...) "
            f"and an annotation for {missing}"
        )
    allowed = tuple(_allowed(owner, function.__name__, hints[name]) for name in names)
    return Operation(
        function.__name__, function, allowed, len(names) - len(function.__defaults__ or ())
    )


class Machine:
    """Base of every replicated state machine. One object is one resource on one server.

    - Equal entries give equal state, answers and events on every server: nothing else may flow in.
    - `snapshot` and `restore` carry the whole state: a restored machine goes on exactly as the old
      one would.
    - A `CommandError` is raised before anything has changed.
    """

    type_name: ClassVar[str] = ""
    type_version: ClassVar[int] = 1
    commands: ClassVar[Mapping[str, Operation]] = {}
    queries: ClassVar[Mapping[str, Operation]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        commands, queries = dict(cls.commands), dict(cls.queries)
        for name, function in vars(cls).items():
            marked = getattr(function, "folkmoot_operation", None)
            if marked:
                (commands if marked == "command" else queries)[name] = _operation(
                    cls.__name__, function
                )
        cls.commands, cls.queries = commands, queries

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Make the empty state. `config` is plain data, fixed when the resource is created; raise
        ConfigError if it is wrong.
        """
        if config:
            raise ConfigError(f"{self.type_name} takes no configuration, got {sorted(config)}")

    def session_ended(self, context: Context, session: int) -> None:
        """A session has ended, or has left this resource: drop all that it owned, and grant to the
        next, in this entry.
        """

    def on_deadline(self, context: Context, key: str) -> None:
        """A deadline set under `key` is due."""

    def cut_subscriptions(self, session: int) -> bool:
        """Drop what the session subscribed to, as it does not read; say whether there was any."""
        return False

    def holds_grant(self, token: int) -> bool:
        """Whether the grant with this token is held; else writes fenced with it are refused."""
        return False

    def idle(self) -> bool:
        """Whether an empty new machine would do as well: it is removed once nobody has it open."""
        return False

    def snapshot(self) -> Any:
        """The whole state as plain data, in an order that depends on nothing but the state."""
        raise NotImplementedError(f"{type(self).__name__}.snapshot")

    def restore(self, data: Any) -> None:
        """Take the state that `snapshot` gave. Called once, on a new machine; publishes nothing."""
        raise NotImplementedError(f"{type(self).__name__}.restore")


@attrs.frozen
class Registry:
    """Which machine serves which type name. Built-ins and users' own take the same road."""

    machines: Mapping[str, type[Machine]]

    @classmethod
    def of(cls, kinds: Iterable[type[Machine]]) -> Registry:
        """Check and register machine classes. Raises UsageError naming class and fault."""
        machines: dict[str, type[Machine]] = {}
        for kind in kinds:
            if not kind.type_name:
                raise UsageError(f"{kind.__name__} has no type_name")
            if kind.type_name in machines:
                other = machines[kind.type_name].__name__
                raise UsageError(f"{kind.__name__} and {other} are both {kind.type_name!r}")
            for method in ("snapshot", "restore"):
                if getattr(kind, method) is getattr(Machine, method):
                    raise UsageError(f"{kind.__name__} does not define {method}()")
            machines[kind.type_name] = kind
        return cls(machines)
