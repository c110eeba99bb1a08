"""Real servers as child processes on this machine, for `up`, `demo` and tests.

Each server has a configuration file and a log of its own, side by side in one directory:

    DIR/node-1.toml   what `folkmoot server --config` takes
    DIR/node-1.log    what the server says
    DIR/node-1/       its data

Only processes that were started here are ever ended, each by its own handle. Should the parent be
killed, its end of each server's standard input closes, and the servers stop by themselves.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import attrs

from folkmoot.cli import config_file
from folkmoot.cli.exits import ServerDied
from folkmoot.core.config import Member
from folkmoot.core.errors import ConfigError, Unavailable
from folkmoot.core.types import NodeId

HOST = "127.0.0.1"
NODES_MAX = 9
PEER_PORT_OFFSET = 10
"""Members reach one another this many ports above the port for clients."""
STOP_TIMEOUT_S = 10.0
"""A server that has not stopped by then is killed."""
_SERVER = (sys.executable, "-P", "-m", "folkmoot.cli", "server")


@attrs.define(eq=False)
class LocalServer:
    """One server process. It may be started again after it has ended."""

    member: Member
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    _read_bytes: int = 0

    @property
    def node_id(self) -> int:
        """The member's id."""
        return self.member.node_id

    @property
    def config_path(self) -> Path:
        """Its configuration file."""
        return self.directory / f"node-{self.node_id}.toml"

    @property
    def log_path(self) -> Path:
        """Where its standard error goes."""
        return self.directory / f"node-{self.node_id}.log"

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self.process.pid if self.process else 0

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process, in a process group of its own: Ctrl-C is for the parent to pass on."""
        assert not self.running, f"server {self.node_id} runs already as {self.pid}"
        self.kill()  # collect an earlier one that ended by itself
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                [*_SERVER, "--config", str(self.config_path), "--stop-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it with SIGKILL, if it still runs, and collect it."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()

    def new_lines(self) -> list[str]:
        """What it has logged since the last call, whole lines only."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(self._read_bytes)
                text, newline, _ = log.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._read_bytes += len(text) + len(newline)
        return text.decode(errors="replace").splitlines()

    def last_words(self, count: int = 5) -> str:
        """How it ended, and the last lines of its log."""
        status = self.process.poll() if self.process else None
        how = "is running" if status is None else _ending(status)
        with contextlib.suppress(FileNotFoundError):
            lines = self.log_path.read_text(errors="replace").splitlines()[-count:]
            return "\n".join([f"server {self.node_id} {how}; the end of {self.log_path}:", *lines])
        return f"server {self.node_id} {how}"


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


@attrs.define(eq=False)
class LocalCluster:
    """Some servers in one directory."""

    directory: Path
    servers: list[LocalServer]
    keep: bool = False
    """Leave a temporary directory behind, for somebody to look into."""

    @property
    def url(self) -> str:
        """What clients are given."""
        return "folkmoot://" + ",".join(self.addresses)

    @property
    def addresses(self) -> list[str]:
        """Where clients reach the servers."""
        return [server.member.client_address for server in self.servers]

    def server(self, node_id: int) -> LocalServer:
        """The server with that id."""
        return next(server for server in self.servers if server.node_id == node_id)

    def start(self) -> None:
        """Start all that do not run."""
        for server in self.servers:
            if not server.running:
                server.start()

    async def wait_ready(self, timeout_s: float) -> int:
        """Wait until a leader serves; return its node id.

        Raises ServerDied as soon as one of them ends, Unavailable when the time is over.
        """
        from folkmoot.cli.members import look

        with anyio.move_on_after(timeout_s):
            while True:
                for server in self.servers:
                    if not server.running:
                        raise ServerDied(server.last_words())
                with contextlib.suppress(Unavailable):
                    view = await look(self.addresses, timeout_s=1.0)
                    if view.leader is not None:
                        return view.leader.node_id
                await anyio.sleep(0.05)
        raise Unavailable(
            f"the servers elected no leader within {timeout_s:g} s; {self.servers[0].last_words()}"
        )

    async def stop(self) -> None:
        """End all processes: ask, wait, and kill what is left. Cannot be cancelled half-way."""
        with anyio.CancelScope(shield=True):
            for server in self.servers:
                server.signal(signal.SIGCONT)
                server.signal(signal.SIGTERM)
            with anyio.move_on_after(STOP_TIMEOUT_S):
                while any(server.running for server in self.servers):  # noqa: ASYNC110 - no event
                    await anyio.sleep(0.02)
            self.kill()

    def kill(self) -> None:
        """Kill what still runs, and collect every process."""
        for server in self.servers:
            server.kill()


@contextlib.contextmanager
def local_cluster(
    *, nodes: int | None = None, port: int | None = None, data: str | None = None
) -> Iterator[LocalCluster]:
    """Lay out a cluster of `nodes` servers (3), clients at `port` and above (0: any free ports).

    In `data` it is kept, and an earlier one there is taken up again; otherwise it lives in a
    temporary directory that is removed at the end. No server outlives the block.
    Raises ConfigError for a port in use, or a layout other than the one in `data`.
    """
    directory = Path(data).absolute() if data else Path(tempfile.mkdtemp(prefix="folkmoot-"))
    cluster: LocalCluster | None = None
    try:
        members = read_layout(directory, nodes, port)
        if not members:
            members = plan(nodes or 3, 7400 if port is None else port)
            write_layout(directory, members)
        check_ports(members)
        cluster = LocalCluster(directory, [LocalServer(member, directory) for member in members])
        yield cluster
    finally:
        if cluster is not None:
            cluster.kill()
        if data is None and not (cluster is not None and cluster.keep):
            shutil.rmtree(directory, ignore_errors=True)


def plan(nodes: int, port: int) -> list[Member]:
    """Say who listens where. Port 0 takes any that are free."""
    if port:
        clients = [port + i for i in range(nodes)]
        peers = [port + PEER_PORT_OFFSET + i for i in range(nodes)]
    else:
        found = free_ports(2 * nodes)
        clients, peers = found[:nodes], found[nodes:]
    return [
        Member(
            node_id=NodeId(i + 1),
            peer_address=f"{HOST}:{peers[i]}",
            client_address=f"{HOST}:{clients[i]}",
        )
        for i in range(nodes)
    ]


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on. Another program may take one before we do."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind((HOST, 0))
        return [int(found.getsockname()[1]) for found in sockets]


def check_ports(members: Sequence[Member]) -> None:
    """Raise ConfigError naming the first port that somebody else listens on."""
    for member in members:
        for address in (member.client_address, member.peer_address):
            host, _, port = address.rpartition(":")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    raise ConfigError(
                        f"port {port} on {host} cannot be used: {os.strerror(error.errno or 0)}; "
                        "is another cluster up? choose other ports with --port"
                    ) from None


def write_layout(directory: Path, members: Sequence[Member]) -> None:
    """Write a configuration file for each server."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    cluster = f"local-{secrets.token_hex(3)}"
    tables = "".join(
        f"\n[[members]]\nnode_id = {member.node_id}\n"
        f'peer_address = "{member.peer_address}"\nclient_address = "{member.client_address}"\n'
        for member in members
    )
    for member in members:
        path = directory / f"node-{member.node_id}.toml"
        path.write_text(
            f"# Start this server by itself:  folkmoot server --config {path.name}\n"
            f'node_id = {member.node_id}\ncluster = "{cluster}"\n'
            f'data_dir = "node-{member.node_id}"  # beside this file\n{tables}'
        )


def read_layout(directory: Path, nodes: int | None, port: int | None) -> list[Member]:
    """Read the members of an earlier layout; empty where there is none.

    Raises ConfigError when it is not what `nodes` and `port` ask for.
    """
    path = directory / "node-1.toml"
    if not path.exists():
        return []
    given = config_file.from_document(path.read_text(), str(path))
    members: list[Member] = list(given["members"].value)
    there = int(members[0].client_address.rpartition(":")[2])
    if nodes not in (None, len(members)) or port not in (None, 0, there):
        raise ConfigError(
            f"{directory} holds a cluster of {len(members)} nodes at port {there}: "
            "leave out --nodes and --port, or name another directory"
        )
    return members
