"""Configuration from a file, the environment and flags, onto the classes of `core/config.py`.

Pure: texts and mappings in, checked objects out; reading files and the environment is the caller's.
The fields are not listed here: they are read from the attrs classes, so there is no second list
that could disagree.

A setting has one path, "raft.heartbeat_s". It comes, in rising order of precedence, from its
default, from the file (table `[raft]`, key `heartbeat_s`), from the environment
(FOLKMOOT_RAFT_HEARTBEAT_S), from a flag. Whatever is unknown is refused with a suggestion, and what
is wrong is told with the place that it came from.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from folkmoot.core.config import ClientConfig, Member, NodeConfig
from folkmoot.core.errors import ConfigError
from folkmoot.core.types import NodeId
from folkmoot.transport.address import parse_address

DEFAULT = "default"
ROOTS: tuple[tuple[str, type], ...] = (("", NodeConfig), ("client", ClientConfig))
"""Which class stands at which table of the file: a node's own settings at the top, a client's under
[client]."""
ENV_PREFIX = "FOLKMOOT_"
ENV_OTHERS = frozenset({"URL", "CONFIG", "TOKEN", "LOCK", "ELECTION"})
"""Variables of ours that are not settings."""
# Kubernetes puts such variables into every container of a namespace with a service named
# "folkmoot...".
_ENV_KUBERNETES = re.compile(
    r"(^|_)(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)


@attrs.frozen
class Setting:
    """One leaf of the configuration."""

    path: str
    owner: type
    """The attrs class that the field belongs to."""
    field: attrs.Attribute[Any]
    kind: Any
    """The field's type: int, float, bool, str, `str | None`, or a tuple of members."""

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.path.replace(".", "_").upper()

    @property
    def default(self) -> Any:
        """The value where nobody gives one."""
        return self.field.default


@attrs.frozen
class Given:
    """A value and the place that it came from, in words for the user."""

    value: Any
    origin: str


@attrs.frozen
class Loaded:
    """A whole configuration, checked, with the origin of each value."""

    node: NodeConfig
    client: ClientConfig
    given: Mapping[str, Given]
    """By path, in order; a value that nobody gave has the origin "default"."""


def _settings(owner: type, prefix: str, prefixes: dict[type, str]) -> Iterator[Setting]:
    prefixes[owner] = prefix
    hints = typing.get_type_hints(owner)
    for field in attrs.fields(owner):
        kind, path = hints[field.name], prefix + field.name
        if not attrs.has(kind):
            yield Setting(path, owner, field, getattr(kind, "__supertype__", kind))
        elif kind not in prefixes:
            yield from _settings(kind, path + ".", prefixes)


_PREFIXES: dict[type, str] = {}
"""Where each class stands. One that is part of two others stands once, for both: limits hold for
node and client alike."""
SETTINGS: Mapping[str, Setting] = {
    setting.path: setting
    for table, owner in ROOTS
    for setting in _settings(owner, table + "." if table else "", _PREFIXES)
}
TABLES = frozenset(path.rpartition(".")[0] for path in SETTINGS) - {""}


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


# --- the three sources ----------------------------------------------------------------------------


def from_document(text: str, source: str) -> dict[str, Given]:
    """Read a TOML text. Raises ConfigError naming the file and the line, table or key that is
    wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    return dict(_flatten(document, "", source))


def _flatten(table: Mapping[str, Any], prefix: str, source: str) -> Iterator[tuple[str, Given]]:
    for key, value in table.items():
        path = prefix + key
        if path in SETTINGS:
            origin = f"{source}, {path}"
            yield path, Given(_checked(SETTINGS[path], value, origin), origin)
        elif path in TABLES and isinstance(value, dict):
            yield from _flatten(value, path + ".", source)
        elif path in TABLES:
            raise ConfigError(f"{source}: {path} is a table: write [{path}] and its keys below it")
        else:
            known = [*TABLES, *SETTINGS] if isinstance(value, dict) else SETTINGS
            raise ConfigError(f"{source}: there is no setting {path}{_nearest(path, known)}")


def from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    """Read the FOLKMOOT_* variables. Raises ConfigError naming the one that is unknown or wrong."""
    by_name = {setting.env: setting for setting in SETTINGS.values()}
    found = {}
    for name, text in sorted(environment.items()):
        rest = name.removeprefix(ENV_PREFIX)
        if rest == name or rest in ENV_OTHERS:
            continue
        if name in by_name:
            setting, origin = by_name[name], f"environment, {name}"
            found[setting.path] = Given(from_text(setting, text, origin), origin)
        elif not _ENV_KUBERNETES.search(rest):
            known = [*by_name, *(ENV_PREFIX + other for other in ENV_OTHERS)]
            raise ConfigError(f"environment: there is no setting {name}{_nearest(name, known)}")
    return found


def from_assignments(assignments: typing.Iterable[str], flag: str) -> dict[str, Given]:
    """Read "path=value" texts, as the flag `flag` brings them."""
    found = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{flag} {assignment}: write {flag} NAME=VALUE")
        if path not in SETTINGS:
            raise ConfigError(
                f"{flag} {assignment}: there is no setting {path}{_nearest(path, SETTINGS)}"
            )
        origin = f"flag {flag} {path}"
        found[path] = Given(from_text(SETTINGS[path], text, origin), origin)
    return found


def from_flags(values: Mapping[str, Any]) -> dict[str, Given]:
    """Take the flags that are named after a setting, such as --data-dir; None is a flag that was
    not given."""
    found = {}
    for path, value in values.items():
        if value is not None and value != ():
            origin = "flag --" + path.replace("_", "-")
            found[path] = Given(_checked(SETTINGS[path], value, origin), origin)
    return found


# --- one value ------------------------------------------------------------------------------------


def parse_member(text: str) -> Member:
    """Read "1=host:peerport,host:clientport". Raises ConfigError."""
    number, equals, addresses = text.partition("=")
    peer, comma, client = addresses.partition(",")
    if not equals or not comma or not number.strip().isdecimal():
        raise ConfigError(f"member {text!r}: write NODE_ID=HOST:PEER_PORT,HOST:CLIENT_PORT")
    return _member(int(number), peer.strip(), client.strip())


def _member(node_id: Any, peer_address: Any, client_address: Any) -> Member:
    if type(node_id) is not int or node_id < 1:
        raise ConfigError(f"a member's node_id is {node_id!r}: it must be a positive integer")
    for address in (peer_address, client_address):
        if not isinstance(address, str):
            raise ConfigError(f"member {node_id}: {address!r} is not an address, HOST:PORT")
        try:
            _, port = parse_address(address)
        except ConfigError as error:
            raise ConfigError(f"member {node_id}: {error}") from None
        if port == 0:
            raise ConfigError(
                f"member {node_id}: address {address!r} needs a port that others know"
            )
    return Member(node_id=NodeId(node_id), peer_address=peer_address, client_address=client_address)


def from_text(setting: Setting, text: str, origin: str) -> Any:
    """Make the value that a text of the environment or of a flag stands for."""
    value: Any = text
    if setting.kind is bool:
        value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
            text.strip().lower(), text
        )
    elif setting.kind in (int, float):
        value = _number(text, setting.kind)
    elif typing.get_origin(setting.kind) is tuple:
        try:
            value = tuple(parse_member(part) for part in re.split(r"[;\s]+", text.strip()) if part)
        except ConfigError as error:
            raise ConfigError(f"{error} (from {origin})") from None
    elif _optional(setting.kind):
        value = text or None
    return _checked(setting, value, origin)


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text  # refused below, where the words for it are


def _optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)


_NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _checked(setting: Setting, value: Any, origin: str) -> Any:
    """The value, if its type and bounds are right. Raises ConfigError with field, value, bound and
    origin."""
    kind: Any = str if _optional(setting.kind) else setting.kind
    if typing.get_origin(kind) is tuple:
        return value if isinstance(value, tuple) else _members(value, origin)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits and not (value is None and _optional(setting.kind)):
        raise ConfigError(f"{setting.path} is {value!r}: {_NEEDED[kind]} is needed (from {origin})")
    if setting.field.validator is not None:
        try:
            setting.field.validator(object.__new__(setting.owner), setting.field, value)
        except ConfigError as error:
            message = str(error).replace(
                f"{setting.owner.__name__}.{setting.field.name}", setting.path, 1
            )
            raise ConfigError(f"{message} (from {origin})") from None
    return float(value) if kind is float else value


def _members(value: Any, origin: str) -> tuple[Member, ...]:
    names = [field.name for field in attrs.fields(Member)]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError(
            f"members is {value!r}: write one [[members]] table for each (from {origin})"
        )
    found = []
    for item in value:
        for key in item:
            if key not in names:
                raise ConfigError(
                    f"a member has no setting {key}{_nearest(key, names)} (from {origin})"
                )
        if missing := [name for name in names if name not in item]:
            raise ConfigError(f"a member lacks {', '.join(missing)} (from {origin})")
        try:
            found.append(_member(**item))
        except ConfigError as error:
            raise ConfigError(f"{error} (from {origin})") from None
    return tuple(found)


# --- the whole ------------------------------------------------------------------------------------


def build(*sources: Mapping[str, Given]) -> Loaded:
    """Put the sources together, later ones winning, and make the objects.

    Raises ConfigError; for a rule between fields it says where each field that the rule names came
    from.
    """
    given = {path: Given(setting.default, DEFAULT) for path, setting in SETTINGS.items()}
    for source in sources:
        given.update(source)
    return Loaded(_make(NodeConfig, given), _make(ClientConfig, given), given)


def _make(owner: type, given: Mapping[str, Given]) -> Any:
    prefix, hints = _PREFIXES[owner], typing.get_type_hints(owner)
    values = {}
    for field in attrs.fields(owner):
        kind = hints[field.name]
        values[field.name] = (
            _make(kind, given) if attrs.has(kind) else given[prefix + field.name].value
        )
    try:
        return owner(**values)
    except ConfigError as error:
        named = [
            f"{prefix}{name} from {given[prefix + name].origin}"
            for name in values
            if prefix + name in given and re.search(rf"\b{name}\b", str(error))
        ]
        raise ConfigError(f"{error} ({'; '.join(named)})" if named else str(error)) from None
