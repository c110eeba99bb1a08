"""Members of a cluster inside the application itself: no servers beside it.

    python examples/embedded_member.py                       three members in this process
    python examples/embedded_member.py ID DIRECTORY          one of three, in three terminals

An application that runs three times or more can be its own cluster: each process embeds a `Node`,
and its clients use all of them. Here they talk over TCP, on the loopback address; in earnest the
list of members names three machines, and is the same on each.

Leaving the `async with` stops a member gracefully: it hands leadership over first. The others go
on, as long as they are a majority.
"""

import sys
import tempfile
from contextlib import suppress

import anyio
from anyio.abc import TaskStatus

import folkmoot

MEMBERS = tuple(
    folkmoot.Member(
        node_id=node_id,
        peer_address=f"127.0.0.1:{7440 + node_id}",
        client_address=f"127.0.0.1:{7430 + node_id}",
    )
    for node_id in (1, 2, 3)
)


class Application:
    """One process of the application: a member, and a client of the whole cluster."""

    def __init__(self, members: tuple[folkmoot.Member, ...], node_id: int, directory: str) -> None:
        self.node = folkmoot.Node(
            folkmoot.NodeConfig(
                node_id=node_id,
                cluster="embedded",
                members=members,
                data_dir=f"{directory}/node-{node_id}",
            )
        )
        self.cluster = folkmoot.open(
            "folkmoot://" + ",".join(member.client_address for member in members),
            name=f"application {node_id}",
        )

    async def run(self, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
        """Run until cancelled; report the scope to cancel once the cluster is there."""
        with anyio.CancelScope() as scope:
            async with self.node, self.cluster as cluster:
                await cluster.wait_ready()
                starts = await cluster.counter("starts").add()
                print(f"member {self.node.config.node_id} is up, start number {starts}")
                task_status.started(scope)
                await anyio.sleep_forever()


async def three_members(members: tuple[folkmoot.Member, ...] = MEMBERS) -> None:
    with tempfile.TemporaryDirectory() as directory:
        applications = [Application(members, member.node_id, directory) for member in members]
        scopes: dict[int, anyio.CancelScope] = {}
        async with anyio.create_task_group() as tasks:

            async def start(application: Application) -> None:
                node_id = application.node.config.node_id
                scopes[node_id] = await tasks.start(application.run)

            async with anyio.create_task_group() as starting:  # a majority has to be there first
                for application in applications:
                    starting.start_soon(start, application)

            leader = (await applications[0].cluster.status())["leader"]
            print(f"member {leader} leads, and leaves")
            scopes[leader].cancel()
            others = [one for one in applications if one.node.config.node_id != leader]
            jobs = others[0].cluster.map("jobs")
            await jobs.set("nightly", "done")
            print("the other two go on:", await others[1].cluster.map("jobs").get("nightly"))
            tasks.cancel_scope.cancel()


async def one_member(node_id: int, directory: str) -> None:
    async with anyio.create_task_group() as tasks:
        await tasks.start(Application(MEMBERS, node_id, directory).run)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        with suppress(KeyboardInterrupt):
            anyio.run(one_member, int(sys.argv[1]), sys.argv[2])
    else:
        anyio.run(three_members)
