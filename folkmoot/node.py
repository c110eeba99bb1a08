"""A member of a cluster, to embed in an application or to run as a process.

    async with Node(NodeConfig(node_id=1, members=(...), data_dir="data-1")) as node:
        await node.wait_stopped()

Without `members` it is a cluster of one, reached in memory by clients of the same process
(`node.transport`); without `data_dir` it keeps everything in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup, TaskStatus

from folkmoot.core.config import NodeConfig
from folkmoot.core.errors import UsageError
from folkmoot.core.machine import Machine, Registry
from folkmoot.core.progress import Progress
from folkmoot.core.server import Server
from folkmoot.core.storage.files import DirectoryFiles, Files
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.primitives import BUILTIN_MACHINES
from folkmoot.transport.link import Transport
from folkmoot.transport.memory import MemoryNetwork, MemoryTransport
from folkmoot.transport.tcp import TcpTransport


class Node:
    """One member, running from `__aenter__` to `__aexit__`.

    Leaving the context stops it gracefully: leadership is handed over, what is under way is
    finished, the log is flushed. Where the server had to stop by itself (StorageError, or a machine
    that raised), that error is raised out of the context.
    """

    def __init__(
        self,
        config: NodeConfig | None = None,
        *,
        machines: Iterable[type[Machine]] = (),
        transport: Transport | None = None,
        files: Files | None = None,
    ) -> None:
        self.config = config if config is not None else NodeConfig()
        self.failed: BaseException | None = None
        self._registry = Registry.of([*BUILTIN_MACHINES, *machines])
        self._given_transport = transport
        self._files = files
        self._tasks: TaskGroup | None = None
        self._stopped: anyio.Event | None = None

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise UsageError(
                f"node {self.config.node_id} was started before: make a new Node to start again"
            )
        config = self.config
        transport = self._given_transport
        if transport is None:
            transport = (
                TcpTransport(send_buffer_bytes_max=config.limits.send_buffer_bytes_max)
                if config.members
                else MemoryTransport(MemoryNetwork())
            )
        self.transport = transport
        files = self._files
        if files is None:
            files = (
                DirectoryFiles(os.fspath(config.data_dir))
                if config.data_dir is not None
                else MemoryFiles()
            )
        self.server = Server(config, self._registry, files, transport)
        self._stopped = anyio.Event()
        self._shelter = anyio.CancelScope(shield=True)
        if self._given_transport is None:
            await transport.__aenter__()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        try:
            await self._tasks.start(self._run)
        except BaseException as error:
            self._shelter.cancel()
            await self._leave(type(error), error, error.__traceback__)
            raise
        return self

    async def _run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        assert self._stopped is not None
        try:
            # A cancelled body still leaves in order: its clients, then this server (`stop`).
            with self._shelter:
                await self.server.run(task_status=task_status)
        except Exception as error:
            self.failed = error
            raise
        finally:
            self._stopped.set()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        with anyio.CancelScope(shield=True):
            if self.failed is None:
                await self.stop()
        return await self._leave(kind, error, trace)

    async def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        try:
            return await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if self.failed is not None:
                raise self.failed from None
            if group.exceptions == (error,):
                return False  # the body's own exception passes through as it is
            raise
        finally:
            if self._given_transport is None:
                await self.transport.__aexit__(None, None, None)

    async def stop(self) -> None:
        """Stop gracefully. Repeating it is allowed."""
        if self._stopped is not None and not self._stopped.is_set():
            await self.server.stop()
            await self._stopped.wait()

    async def wait_stopped(self) -> None:
        """Wait until the server has stopped, for whatever reason.

        `failed` says why where it had to.
        """
        if self._stopped is None:
            raise UsageError(f"node {self.config.node_id} has not been started")
        await self._stopped.wait()

    @property
    def client_address(self) -> str:
        """Where clients reach this member."""
        return self.server.client_address

    @property
    def peer_address(self) -> str:
        """Where other members reach this member."""
        return self.server.peer_address

    @property
    def progress(self) -> Progress | None:
        """What takes long at the moment, if anything: restoring the state, or receiving it.

        Also while it is being started.
        """
        return None if self._tasks is None else self.server.progress.present

    def status(self) -> dict[str, Any]:
        """This member's view of the cluster and of itself."""
        return self.server.status()

    def __repr__(self) -> str:
        where = self.config.data_dir or "memory"
        return f"<Node {self.config.node_id} of cluster {self.config.cluster!r} in {where}>"
