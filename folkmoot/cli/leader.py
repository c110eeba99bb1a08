"""`folkmoot leader show` and `folkmoot leader transfer`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from folkmoot.cli.options import Group, Options

if TYPE_CHECKING:
    from folkmoot.cli.members import ClusterView, MemberView

POLL_INTERVAL_S = 0.05


@click.group(cls=Group)
def leader() -> None:
    """Show or move the cluster's leadership."""


@leader.command()
@click.pass_obj
def show(options: Options) -> None:
    """Print who leads: node, client address, term."""
    _run(_show, options)


@leader.command()
@click.argument("node", type=click.IntRange(min=1), required=False)
@click.pass_obj
def transfer(options: Options, node: int | None) -> None:
    """Hand leadership to the member NODE, or to the best follower, and wait until it leads.

    Nothing is lost by it; writes wait for a few milliseconds.
    """
    _run(_transfer, options, node or 0)


def _run(command: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    import anyio

    anyio.run(command, *arguments)


async def _show(options: Options) -> None:
    found, view = await _leader(options)
    _print(options, found, view)


async def _transfer(options: Options, node: int) -> None:
    import anyio

    from folkmoot.cli.members import ask
    from folkmoot.core.errors import UsageError

    before, view = await _leader(options)
    known = [member.node_id for member in view.members]
    if node and node not in known:
        raise UsageError(f"there is no member {node}: members are {known}")
    if node != before.node_id:
        address = before.client_address
        await ask(address, "transfer_leader", node, timeout_s=options.timeout)
        with anyio.move_on_after(options.timeout):
            while True:
                await anyio.sleep(POLL_INTERVAL_S)
                view = await _look(options)
                if view.leader is not None and _moved(view.leader.node_id, before.node_id, node):
                    break
    found = view.leader
    if found is None or not _moved(found.node_id, before.node_id, node):
        from folkmoot.core.errors import Unavailable

        raise Unavailable(f"leadership did not move within {options.timeout:g} s")
    _print(options, found, view)


def _moved(now: int, before: int, wanted: int) -> bool:
    return now == wanted if wanted else now != before


async def _look(options: Options) -> ClusterView:
    from folkmoot.cli.members import look
    from folkmoot.cluster import addresses_of

    return await look(addresses_of(options.url), timeout_s=min(options.timeout, 2.0))


async def _leader(options: Options) -> tuple[MemberView, ClusterView]:
    from folkmoot.core.errors import NoLeader

    view = await _look(options)
    if view.leader is None:
        raise NoLeader(f"{view.up} of {len(view.members)} members answer, and none leads")
    return view.leader, view


def _print(options: Options, member: MemberView, view: ClusterView) -> None:
    term = view.best.get("term")
    data = {"leader": member.node_id, "client_address": member.client_address, "term": term}
    if options.out.is_terminal:
        text = f"node {member.node_id} at {member.client_address} leads in term {term}"
    else:
        text = f"{member.node_id}\t{member.client_address}\t{term}"
    options.out.show(data, text)
