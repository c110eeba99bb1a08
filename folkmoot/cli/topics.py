"""`pub` and `sub`: topics from a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.exits import ExitCode
from folkmoot.cli.options import Command, Options

if TYPE_CHECKING:
    from folkmoot.cluster import Cluster


@click.command(cls=Command)
@click.option("--raw", is_flag=True, help="The message is bytes, not text.")
@click.argument("topic")
@click.argument("message")
@click.pass_obj
def pub(options: Options, raw: bool, topic: str, message: str) -> int:
    """Publish MESSAGE, a text ("-": what comes in on standard input). Prints the revision."""
    from folkmoot.cli.connect import with_cluster
    from folkmoot.cli.data import value_of

    content = value_of(message, raw=raw)

    async def use(cluster: Cluster) -> int:
        found = cluster.topic(topic, codec="bytes") if raw else cluster.topic(topic)
        revision = await found.publish(content, timeout=options.timeout)
        options.out.revision({"topic": topic, "revision": revision})
        return ExitCode.OK

    return with_cluster(options, use)


@click.command(cls=Command)
@click.option("--raw", is_flag=True, help="Messages are bytes, not text.")
@click.option(
    "--since",
    type=click.IntRange(min=0),
    metavar="REVISION",
    help="Begin behind this revision, as far as the topic keeps it; 0: with the first kept.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@click.argument("topic")
@click.pass_obj
def sub(options: Options, raw: bool, since: int | None, count: int | None, topic: str) -> int:
    """Follow the messages of a topic until Ctrl-C, each exactly once and in order.

    In a pipe: revision, message. Where the topic no longer keeps what was missed: revision, resync.
    """
    from folkmoot.cli.connect import with_cluster

    async def use(cluster: Cluster) -> int:
        told = 0
        found: Any = cluster.topic(topic, codec="bytes") if raw else cluster.topic(topic)
        async with found.subscribe(since=since) as messages:
            async for message in messages:
                told += tell_message(options, message)
                if told == count:
                    break
        return ExitCode.OK

    return with_cluster(options, use)


def tell_message(options: Options, message: Any) -> bool:
    """Print one message; say whether it was one, and no Resync."""
    out, revision = options.out, message.revision
    if type(message).__name__ == "Resync":
        out.event({"revision": revision, "event": "resync"}, (revision, "resync"))
        return False
    data = {"revision": revision, "event": "message", "value": message.value}
    if out.is_terminal:
        out.value(message.value)
    else:
        out.event(data, (revision, message.value))
    return True
