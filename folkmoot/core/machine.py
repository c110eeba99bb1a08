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

import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def retain(self, count: int = 1) -> None:
        """Say that this command's entry owns items: the ordinals 0 to `count` - 1. Once at most.

        Only in a command, and only of a machine whose retention is ENTRIES.
        """
        ...

    def supersede(self, index: int, ordinal: int = 0) -> None:
        """Say that the item `ordinal` of the entry `index` is gone. Once per item.

        Allowed wherever a machine is called with a context that is not a query's.
        """
        ...

    def supersede_all(self, indexes: Iterable[int]) -> None:
        """`supersede` the item 0 of each of these entries."""
        ...


class RestoreContext(Protocol):
    """What `restore_item` sees: the entry that owned the item, and deadlines to set.

    `index`, `time` and `session` are those of the entry, as they were when it was applied.
    """

    index: int
    time: int
    session: int

    def set_deadline(self, key: str, time: int) -> None:
        """Set the deadline that goes with the item."""
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
    frees: bool = False
    """Taken even while the disk is almost full (see `frees`)."""
    fitting: set[tuple[type, ...]] = attrs.field(factory=set, init=False, eq=False, repr=False)
    """Types of arguments that were found to fit: the next such call is checked by one look-up."""

    def check(self, args: list[Any]) -> None:
        """Raise BadCommand unless `args` fits the signature."""
        signature = tuple(map(type, args))
        if signature not in self.fitting:
            self._check(args)
            if len(self.fitting) < _FITTING_MAX:
                self.fitting.add(signature)

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


def frees(function: F) -> F:
    """Mark a command that makes the state smaller, or gives something back.

    It is taken while others are refused with StorageFull, so it must not be able to grow the state:
    what it takes is for nothing, if it is called again and again.
    """
    function.folkmoot_frees = True  # type: ignore[attr-defined]
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
    required = len(names) - len(function.__defaults__ or ())
    marked = hasattr(function, "folkmoot_frees")
    return Operation(function.__name__, function, allowed, required, marked)


class Retention(enum.Enum):
    """How a machine's state survives the compaction of the log."""

    STATE = "state"
    """The state is small and not owed to single entries (a counter, a lock): `snapshot` and
    `restore` carry all of it, whenever it changed. The default.
    """
    ENTRIES = "entries"
    """The state is a set of items, each owed to an entry (a map): the machine says which items an
    entry owns and which it supersedes, and takes them back one by one with `restore_item`.
    """


class Machine:
    """Base of every replicated state machine. One object is one resource on one server.

    - Equal entries give equal state, answers and events on every server: nothing else may flow in.
    - A machine that was restored goes on exactly as the old one would.
    - A `CommandError` is raised before anything has changed.

    A machine with `retention = Retention.ENTRIES` says, in the command that makes an item,
    `context.retain()`, and, wherever an item goes, `context.supersede(index)`. What an item needs
    must follow from its own entry (name, arguments, index, log time, session) and from the fact
    that it took effect.
    """

    type_name: ClassVar[str] = ""
    type_version: ClassVar[int] = 1
    retention: ClassVar[Retention] = Retention.STATE
    commands: ClassVar[Mapping[str, Operation]] = {}
    queries: ClassVar[Mapping[str, Operation]] = {}
    has_record: ClassVar[bool] = True
    """Whether something of the state is not owed to entries. Found out by `Registry`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        commands, queries = dict(cls.commands), dict(cls.queries)
        for name, function in vars(cls).items():
            marked = getattr(function, "folkmoot_operation", None)
            if marked != "command" and hasattr(function, "folkmoot_frees"):
                raise UsageError(f"{cls.__name__}.{name} is marked @frees and is no @command")
            if marked:
                (commands if marked == "command" else queries)[name] = _operation(
                    cls.__name__, function
                )
        cls.commands, cls.queries = commands, queries
        by_entries = cls.retention is Retention.ENTRIES
        cls.has_record = not by_entries or cls.remainder is not Machine.remainder

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

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        """Drop what the session subscribed to, as it does not read; say whether there was any."""
        return False

    def holds_grant(self, token: int) -> bool:
        """Whether the grant with this token is held; else writes fenced with it are refused."""
        return False

    def idle(self) -> bool:
        """Whether an empty new machine would do as well: it is removed once nobody has it open.

        A machine that is idle owns no items.
        """
        return False

    def snapshot(self) -> Any:
        """The whole state as plain data, in an order that depends on nothing but the state.

        For `restore` (STATE), and to compare servers with one another (both retentions): it names
        the owner of each item, too.
        """
        raise NotImplementedError(f"{type(self).__name__}.snapshot")

    def restore(self, data: Any) -> None:
        """STATE only. Take the state that `snapshot` gave. Called once, on a new machine.

        Publishes nothing. The deadlines are restored by who calls this.
        """
        raise NotImplementedError(f"{type(self).__name__}.restore")

    def remainder(self) -> Any:
        """ENTRIES only: what of the state is not owed to entries, as plain data. It is small."""
        return None

    def restore_remainder(self, data: Any) -> None:
        """ENTRIES only. Take what `remainder` gave: once, on a new machine, before the items."""
        raise NotImplementedError(f"{type(self).__name__}.restore_remainder")

    def restore_item(
        self, context: RestoreContext, name: str, args: list[Any], ordinals: Sequence[int]
    ) -> None:
        """ENTRIES only. Take back what the entry `name(*args)` still owns: items `ordinals`.

        Called in order of index, on a machine without any other items. The entry took effect, so no
        condition is looked at; it publishes and answers nothing. What the entry owned besides is
        superseded, and `args` may be what `trim` made of them.
        """
        raise NotImplementedError(f"{type(self).__name__}.restore_item")

    @classmethod
    def trim(cls, name: str, args: list[Any], ordinals: Sequence[int]) -> tuple[str, list[Any]]:
        """ENTRIES only: leave out of an entry what its items `ordinals` do not need.

        Pure, and called from another thread. The result is only ever given to `restore_item`, and
        to `trim` again when still fewer of its items live; ordinals keep their numbers.
        """
        return name, args


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
            _check_retention(kind)
            machines[kind.type_name] = kind
        return cls(machines)


_NEEDED = {
    Retention.STATE: ("snapshot", "restore"),
    Retention.ENTRIES: ("snapshot", "restore_item"),
}
_FOREIGN = {
    Retention.STATE: ("remainder", "restore_remainder", "restore_item", "trim"),
    Retention.ENTRIES: ("restore",),
}


def _check_retention(kind: type[Machine]) -> None:
    """Raise UsageError where a class lacks what its retention needs, or has what nobody calls."""
    if not isinstance(kind.retention, Retention):
        raise UsageError(
            f"{kind.__name__}.retention is {kind.retention!r}; "
            "it is Retention.STATE (the default) or Retention.ENTRIES"
        )
    where = f"{kind.__name__} (retention {kind.retention.name})"
    for method in _NEEDED[kind.retention]:
        if not _defines(kind, method):
            raise UsageError(f"{where} does not define {method}()")
    for method in _FOREIGN[kind.retention]:
        if _defines(kind, method):
            raise UsageError(f"{where} defines {method}(), which is never called with it")
    if _defines(kind, "remainder") != _defines(kind, "restore_remainder"):
        raise UsageError(f"{where} defines one of remainder() and restore_remainder(), not both")


def _defines(kind: type[Machine], method: str) -> bool:
    """Say whether a class has a method of its own. (Class methods are made anew at each look.)"""
    return any(method in vars(base) for base in kind.__mro__[: kind.__mro__.index(Machine)])
