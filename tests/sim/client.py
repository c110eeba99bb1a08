"""A client: the real SessionClient with a loop of its own, and the application that uses it.

The loop mirrors core/client.py: what has arrived is taken, time passes, and everything that shall
happen is performed. A client that crashes is gone with all that it knew; another one starts later
under its number, with a session of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from folkmoot.core.config import ClientConfig, LimitsConfig
from folkmoot.core.effects import Effects
from folkmoot.core.event_chain import Event
from folkmoot.core.session_client import SessionClient
from folkmoot.core.types import ConnectionState
from folkmoot.transport.frame import Frame, FrameReader
from tests.sim.application import Application
from tests.sim.links import Connection
from tests.sim.scheduler import NEVER, Clock, Timer

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

FRAME_BYTES_MAX = 64 << 20


class SimClient:
    """One life of one client."""

    def __init__(self, world: Simulation, number: int, life: int, clock: Clock) -> None:
        self.world = world
        self.number = number
        self.life = life
        self.name = f"c{number}"
        self.clock = clock
        self.is_alive = True
        self.is_paused = False
        rng = world.random(f"client {number}.{life}")
        options = world.options
        config = ClientConfig(
            session_timeout_s=options.session_timeout_s,
            connect_timeout_s=0.5,
            reconnect_delay_max_s=0.5,
            prefer_leader=rng.random() < options.prefer_leader,
            limits=options.limits() if rng.random() < 0.5 else LimitsConfig(),
        )
        addresses = [member.config.member().client_address for member in world.members.values()]
        self.core = SessionClient(
            addresses, config, rng, lambda: rng.randbytes(16), f"{self.name}.{life}"
        )
        self.session_id = 0
        """The session that the present notices are about."""
        self.connection: Connection | None = None
        self._connected_session = 0
        self._reader = FrameReader(FRAME_BYTES_MAX)
        self._inbox: list[tuple[Connection, list[Frame] | None, str]] = []
        self._connect_by = NEVER
        self._timer = Timer(world.scheduler, self._on_timer)
        self.application = Application(self, world.random(f"application {number}.{life}"))
        self.core.start()
        self.application.start()
        self.wake()

    # -- what arrives --------------------------------------------------------------------------

    def on_connected(self, connection: Connection) -> None:
        """An attempt has succeeded."""
        self._inbox.append((connection, None, "connected"))
        self.wake()

    def on_bytes(self, connection: Connection, data: bytes | None) -> None:
        """Bytes have arrived, or the end of the connection."""
        if not self.is_alive or connection is not self.connection:
            return
        if data is None:
            self._inbox.append((connection, None, ""))
        else:
            self.world.trace.frame("", connection.member.name, self.name, data)
            self._inbox.append((connection, self._reader.feed(data), ""))
        self.wake()

    def wake(self) -> None:
        """Something has arrived, or was issued: turn at once."""
        self._timer.set(self.world.scheduler.now)

    # -- the loop ------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        if not self.is_alive or self.is_paused:
            return
        now, core = self.clock.now(), self.core
        self.session_id = core.session.id
        while self._inbox:
            connection, frames, text = self._inbox.pop(0)
            if connection is not self.connection:
                continue
            if frames is not None:
                core.received(frames, now)
            elif text:
                self._connect_by = NEVER
                core.connected(now)
            else:
                self.connection, self._connect_by = None, NEVER
                core.disconnected("the connection was lost", now)
        if self._connect_by <= now and self.connection is not None:
            self.connection.drop()
            self.connection, self._connect_by = None, NEVER
            core.disconnected("no connection in time", now)
        core.tick(now)
        self._perform(core.effects(now))
        self.world.checks.client_turned(self)
        due = min(core.deadline(), self._connect_by)
        if self._inbox:
            due = now
        self._timer.set(self.clock.true(due))

    def _perform(self, effects: Effects) -> None:
        connection = self.connection
        if connection is not None:
            for data in effects.send:
                connection.up.send(data)
        if effects.disconnect is not None and connection is not None:
            self.world.trace.add("leaves", self.name, effects.disconnect)
            self.world.checks.left(self, effects.disconnect)
            connection.drop()
            self.connection, self._connect_by = None, NEVER
        if effects.connect is not None:
            self._connect(effects.connect)
        for operation in effects.answers:
            operation.finished()
        self.session_id = self.session_id or self.core.session.id
        for notice in effects.notices:
            if isinstance(notice, Event):
                self.world.checks.event(self, notice)
                self.application.on_event(notice)
            else:
                self.world.trace.add("state", self.name, notice.state.value, notice.session_id)
                if notice.state is ConnectionState.CONNECTED:
                    again = notice.session_id == self._connected_session
                    self.world.trace.count("sessions resumed", int(again))
                    self._connected_session = notice.session_id
                if notice.state in (ConnectionState.EXPIRED, ConnectionState.CLOSED):
                    self.session_id = self.core.session.id
                    self.application.on_session_lost()

    def _connect(self, address: str) -> None:
        world = self.world
        member = world.by_address[address]
        self._reader = FrameReader(FRAME_BYTES_MAX)
        self._connect_by = self.clock.now() + self.core.config.connect_timeout_s
        self.connection = Connection(world.network, self, member)

    # -- faults --------------------------------------------------------------------------------

    def crash(self) -> None:
        """End at once; the session lives on until it expires."""
        self.is_alive = False
        self.world.trace.add("client crash", self.name)
        self.world.trace.count("clients crashed")
        if self.connection is not None:
            self.connection.client_died()
        self.application.on_crash()

    def pause(self) -> None:
        """Stand still; the session may expire meanwhile."""
        self.is_paused = True
        self.world.trace.add("client pause", self.name)
        self.world.trace.count("clients paused")

    def resume(self) -> None:
        """Go on."""
        if self.is_alive and self.is_paused:
            self.is_paused = False
            self.world.trace.add("client resume", self.name)
            self.wake()

    def is_expired(self) -> bool:
        """Whether its own clock says that whatever the session owned is lost."""
        return self.core.local_deadline <= self.clock.now()
