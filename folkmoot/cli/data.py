"""`get`, `set`, `del`, `keys`, `watch` and `counter`: maps and counters from a shell.

What is typed is text and is stored as such, the same as a `Map[str]` of a program stores it; with
--raw it is bytes, as a map with `codec="bytes"` stores them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster
    from folkmoot.primitives.map import Map

_map = click.argument("map_name", metavar="MAP")
_key = click.argument("key")
_raw = click.option("--raw", is_flag=True, help="Values are bytes, and nothing is added to them.")
_prefix = click.option("--prefix", default="", metavar="TEXT", help="Only keys that begin so.")


def _open(cluster: Cluster, name: str, raw: bool) -> Map[Any]:
    return cluster.map(name, codec="bytes") if raw else cluster.map(name)


@click.command(cls=Command)
@_raw
@_map
@_key
@click.pass_obj
def get(options: Options, raw: bool, map_name: str, key: str) -> int:
    """Print the value of KEY. Exits with 1 when it is absent.

    Text is printed as it is and other values as JSON. With --json: key, value, version, ttl.
    """
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        entry = await _open(cluster, map_name, raw).entry(key, timeout=options.timeout)
        if entry is None:
            return _absent(map_name, key)
        if raw and not options.json:
            sys.stdout.buffer.write(entry.value)
        else:
            data = {"key": key, "value": entry.value, "version": entry.version, "ttl": entry.ttl}
            options.out.show(data) if options.json else options.out.value(entry.value)
        return ExitCode.OK

    return with_cluster(options, use)


def _absent(map_name: str, key: str) -> ExitCode:
    click.echo(f"folkmoot: {key!r} is not in map {map_name!r}", err=True)
    return ExitCode.REFUSED


@click.command("set", cls=Command)
@_raw
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Delete it again after so long.",
)
@click.option(
    "--if-version",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only over this version; 0: only where it is absent.",
)
@_map
@_key
@click.argument("value")
@click.pass_obj
def set_(
    options: Options,
    raw: bool,
    ttl: float | None,
    if_version: int | None,
    map_name: str,
    key: str,
    value: str,
) -> int:
    """Set KEY to VALUE, a text ("-": what comes in on standard input). Prints the revision.

    Exits with 1 when --if-version did not hold.
    """
    from folkmoot.cli.connect import with_cluster

    content = value_of(value, raw=raw)

    async def use(cluster: Cluster) -> int:
        revision = await _open(cluster, map_name, raw).set(
            key, content, ttl=ttl, if_version=if_version, timeout=options.timeout
        )
        options.out.revision({"key": key, "revision": revision})
        return ExitCode.OK

    return with_cluster(options, use)


def value_of(text: str, *, raw: bool) -> str | bytes:
    """What is stored for VALUE. Raises UsageError for bytes that are no text, without --raw."""
    from folkmoot.core.errors import UsageError

    data = sys.stdin.buffer.read() if text == "-" else os.fsencode(text)
    if raw:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the value is no UTF-8 text ({error.reason}): use --raw") from None


@click.command("del", cls=Command)
@click.option("--if-version", type=click.IntRange(min=1), metavar="N", help="Only this version.")
@_map
@_key
@click.pass_obj
def delete(options: Options, if_version: int | None, map_name: str, key: str) -> int:
    """Delete KEY. Prints the revision; exits with 1 when it was absent."""
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        revision = await cluster.map(map_name).delete(
            key, if_version=if_version, timeout=options.timeout
        )
        if revision is None:
            return _absent(map_name, key)
        options.out.revision({"key": key, "revision": revision})
        return ExitCode.OK

    return with_cluster(options, use)


@click.command(cls=Command)
@_prefix
@_map
@click.pass_obj
def keys(options: Options, prefix: str, map_name: str) -> int:
    """List the keys of a map, in order, as they were at one revision."""
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        found = await cluster.map(map_name, codec="bytes").keys(
            prefix=prefix, timeout=options.timeout
        )
        if options.json:
            options.out.show(list(found))
        else:
            for key in found:
                options.out.value(key)
        return ExitCode.OK

    return with_cluster(options, use)


@click.command(cls=Command)
@_prefix
@click.option("--initial", is_flag=True, help="Begin with what is there.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@_raw
@_map
@click.pass_obj
def watch(
    options: Options, prefix: str, initial: bool, count: int | None, raw: bool, map_name: str
) -> int:
    """Follow the changes of a map until Ctrl-C, missing none.

    \b
    In a pipe:  revision  set                  key  value
                revision  removed or expired   key  value before
                revision  resync               and a line "state" for each key there is
    """
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        values, told = _open(cluster, map_name, raw), 0
        async with values.watch(prefix=prefix or None, initial=initial) as changes:
            async for change in changes:
                tell_change(options, change)
                told += 1
                if told == count:
                    break
        return ExitCode.OK

    return with_cluster(options, use)


def tell_change(options: Options, change: Any) -> None:
    """Print one change of a map."""
    from folkmoot.primitives.map import Changed, Deleted

    out, revision = options.out, change.revision
    if isinstance(change, Changed):
        data = {"revision": revision, "event": "set", "key": change.key, "value": change.value}
        out.event({**data, "old": change.old}, (revision, "set", change.key, change.value))
    elif isinstance(change, Deleted):
        data = {"revision": revision, "event": change.reason, "key": change.key, "old": change.old}
        out.event(data, (revision, change.reason, change.key, change.old))
    elif options.json:
        out.event({"revision": revision, "event": "resync", "items": change.snapshot}, ())
    else:
        out.event({}, (revision, "resync", len(change.snapshot)))
        for key, value in change.snapshot.items():
            out.event({}, (revision, "state", key, value))


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("action", type=click.Choice(["get", "add", "set"]), default="get")
@click.argument("number", metavar="[N]", type=int, required=False)
@click.pass_obj
def counter(options: Options, name: str, action: str, number: int | None) -> int:
    """Print the counter NAME, add N (1; it may be negative) to it, or set it to N."""
    from folkmoot.cli.connect import with_cluster

    if action == "get" and number is not None:
        raise click.UsageError("get takes no number")
    if action == "set" and number is None:
        raise click.UsageError("set needs a number")

    async def use(cluster: Cluster) -> int:
        found = cluster.counter(name)
        if action == "add":
            value = await found.add(1 if number is None else number, timeout=options.timeout)
        elif action == "set":
            assert number is not None, "checked above"
            await found.set(number, timeout=options.timeout)
            value = number
        else:
            value = await found.get(timeout=options.timeout)
        options.out.show({"name": name, "value": value}, str(value))
        return ExitCode.OK

    return with_cluster(options, use)
