"""Links inside of one process, with the faults of a network.

For tests, simulations, and programs that run all members of a cluster in one process. Frames go
through the same reader, buffers and limits as over TCP, and nothing is ever called from `send`.

A `MemoryNetwork` connects `MemoryTransport`s of one event loop. Each stands for one HOST; faults
are between hosts:

    network.cut("n1", "n2")          nothing passes, either way, until heal; like a pulled cable,
    network.cut("n1", "n2", one_way=True)      what is sent waits, and connecting waits as well
    network.heal("n1", "n2")         what has waited arrives, in order; heal() heals everything
    network.delay("n1", "n2", 0.01)  seconds from the one to the other, that way only
    network.drop("n1", "n2")         the links between them break, what was under way is lost
    network.pause("n1")              cut off from all others, like a stopped process; resume("n1")

All is deterministic: no chance, and no clock but the event loop's, which may be a mocked one. A
link never reorders, loses or repeats: TCP does not either. Loss is cut plus drop.
"""

from __future__ import annotations

import itertools
from typing import Self

import anyio

from folkmoot.core.errors import ConfigError, ConnectionLost
from folkmoot.transport.address import format_address, parse_address
from folkmoot.transport.link import (
    CLOSE_TIMEOUT_S,
    SEND_BUFFER_BYTES_MAX,
    Link,
    Listener,
    OnLink,
    Receiver,
)
from folkmoot.transport.memory_link import Host, Lane, MemoryLink
from folkmoot.transport.turns import start_turns

_PORTS_FROM = 40_000


class MemoryNetwork:
    """What connects the transports of one process, and its faults (see the module)."""

    def __init__(self) -> None:
        self._listeners: dict[str, _MemoryListener] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._paused: set[str] = set()
        self._delays: dict[tuple[str, str], float] = {}
        self._lanes: dict[Lane, None] = {}  # in order of making, which a set would not keep
        self._ports = itertools.count(_PORTS_FROM)
        self._healed = anyio.Event()

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Let nothing pass from `a` to `b`, nor back unless `one_way`."""
        self._cuts.add((a, b))
        if not one_way:
            self._cuts.add((b, a))

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Undo cuts: between `a` and `b`, of `a`, or all. Paused hosts stay paused."""
        named = {host for host in (a, b) if host is not None}
        self._cuts = {cut for cut in self._cuts if not named <= set(cut)}
        self._move_on()

    def pause(self, host: str) -> None:
        """Let nothing reach or leave `host`."""
        self._paused.add(host)

    def resume(self, host: str) -> None:
        """Undo `pause`; what has waited arrives."""
        self._paused.discard(host)
        self._move_on()

    def delay(self, a: str, b: str, seconds: float) -> None:
        """Let everything sent from now on travel `seconds` from `a` to `b`; 0 undoes it."""
        self._delays[a, b] = seconds

    def drop(self, a: str, b: str | None = None) -> None:
        """Break all links between `a` and `b` (or of `a`), at both ends."""
        named = {host for host in (a, b) if host is not None}
        for lane in list(self._lanes):
            if named <= set(lane.hosts):
                lane.source.break_off("connection lost: the network dropped it")
                lane.target.break_off("connection lost: the network dropped it")

    def passes(self, source: str, target: str) -> bool:
        """Tell whether anything gets from `source` to `target` now."""
        return (source, target) not in self._cuts and not {source, target} & self._paused

    def delay_of(self, source: str, target: str) -> float:
        """Seconds that something sent now travels."""
        return self._delays.get((source, target), 0.0)

    def bind(self, listener: _MemoryListener) -> None:
        """Let `listener` be found at its address. Raises ConfigError when another one is."""
        if listener.address in self._listeners:
            raise ConfigError(f"cannot listen on {listener.address}: it is taken in this network")
        self._listeners[listener.address] = listener

    def unbind(self, listener: _MemoryListener) -> None:
        """Let `listener` be found no more."""
        self._listeners.pop(listener.address, None)

    def free_port(self) -> int:
        """Give a port that was not given before."""
        return next(self._ports)

    def enter(self, lane: Lane) -> None:
        """Know of a lane (see Route)."""
        self._lanes[lane] = None

    def leave(self, lane: Lane) -> None:
        """Forget a lane (see Route)."""
        self._lanes.pop(lane, None)

    def join(self, link: MemoryLink, peer: MemoryLink) -> None:
        """Make the two lanes of a connection."""
        for source, target in ((link, peer), (peer, link)):
            source.lane = Lane(self, source, target)

    async def reach(self, source: MemoryTransport, address: str) -> _MemoryListener:
        """Travel to the listener of `address` and back; wait while there is no way."""
        await anyio.lowlevel.checkpoint()
        while True:
            listener = self._listeners.get(address)
            target = listener.owner.host if listener else parse_address(address)[0]
            there, back = (source.host, target), (target, source.host)
            if self.passes(*there) and self.passes(*back):
                await anyio.sleep(self.delay_of(*there) + self.delay_of(*back))
                listener = self._listeners.get(address)
                if listener is None:
                    raise ConnectionLost(f"cannot connect to {address}: nobody listens there")
                return listener
            await self._healed.wait()

    def _move_on(self) -> None:
        healed, self._healed = self._healed, anyio.Event()
        healed.set()
        for lane in list(self._lanes):
            lane.move_soon()


class MemoryTransport(Host):
    """Links of one host in a `MemoryNetwork`.

    Args:
        network: what it is connected by.
        host: its name in the network's faults; without one, it is called after the host in the
            first address that it listens on.
        send_buffer_bytes_max: unsent bytes per link; a link that passes it is closed.
        close_timeout_s: how long a closing link waits for the other side.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        host: str = "",
        *,
        send_buffer_bytes_max: int = SEND_BUFFER_BYTES_MAX,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        super().__init__(
            send_buffer_bytes_max=send_buffer_bytes_max, close_timeout_s=close_timeout_s
        )
        self.network = network
        self.host = host

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.turns = start_turns(self._running())
        return self

    async def connect(self, address: str, receiver: Receiver, *, frame_bytes_max: int) -> Link:
        """Connect to `address` (see Transport.connect). While it is cut off, this waits."""
        self._open()
        parse_address(address)
        listener = await self.network.reach(self, address)
        self._open()
        own_address = format_address(self.host or "memory", self.network.free_port())
        link = MemoryLink(self, address, frame_bytes_max)
        peer = MemoryLink(listener.owner, own_address, listener.frame_bytes_max)
        self.network.join(link, peer)
        link.hand_out(receiver)
        listener.owner.accept(peer, listener.on_link, listener.address)
        return link

    async def listen(self, address: str, on_link: OnLink, *, frame_bytes_max: int) -> Listener:
        """Accept links at `address` (see Transport.listen)."""
        self._open()
        host, port = parse_address(address)
        address = format_address(host, port or self.network.free_port())
        listener = _MemoryListener(self, address, on_link, frame_bytes_max)
        self.network.bind(listener)
        self.add_listener(listener)
        self.host = self.host or host
        await anyio.lowlevel.checkpoint()
        return listener


class _MemoryListener:
    def __init__(
        self, owner: MemoryTransport, address: str, on_link: OnLink, frame_bytes_max: int
    ) -> None:
        self.owner = owner
        self.address = address
        self.on_link = on_link
        self.frame_bytes_max = frame_bytes_max

    async def aclose(self) -> None:
        self.owner.network.unbind(self)
        self.owner.discard_listener(self)
        await anyio.lowlevel.checkpoint()
