"""All that a server has to do with prefixes of other servers: sent, received, installed.

Pure: no I/O, no clock, no randomness. `core/replica.py` hands in frames and turns; see
`prefix_sender`, `prefix_receiver` and `prefix_install` for what they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from folkmoot.core.compacting import Compacting, CompactionPort
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix_events import PrefixDiscarded
from folkmoot.core.prefix_frames import Ask, Chunk, Damaged, Offer, decode_prefix, encode_prefix
from folkmoot.core.prefix_install import InstallPort, InstallState, PrefixInstall
from folkmoot.core.prefix_receiver import PrefixReceiver
from folkmoot.core.prefix_sender import PrefixSender
from folkmoot.core.raft import Raft
from folkmoot.core.raft.trace import TraceEvent
from folkmoot.core.types import NodeId


class PrefixPort(CompactionPort, InstallPort, Protocol):
    """What all of this needs of the storage."""


class PrefixExchange:
    """The three parts, as one."""

    def __init__(
        self,
        raft: Raft,
        compacting: Compacting,
        storage: PrefixPort,
        bytes_per_s: int,
        post: Callable[[NodeId, bytes], None],
        tell: Callable[[TraceEvent], None],
    ) -> None:
        """`post` sends a frame to another member, `tell` says what an operator should know."""
        self.sender = PrefixSender(raft, storage, bytes_per_s, self._send)
        self.receiver = PrefixReceiver(raft, storage, self._send, tell)
        self.install = PrefixInstall(raft, self.receiver, compacting, storage)
        self._post = post
        self._tell = tell

    def _send(self, node_id: NodeId, message: Any) -> None:
        self._post(node_id, encode_prefix(message))

    def heard(self, sender: NodeId, frame_type: int, body: bytes, now: float) -> None:
        """Take a frame of another member. Raises RemoteProtocolError."""
        message = decode_prefix(frame_type, body)
        if type(message) is Ask:
            self.sender.heard(sender, message, now)
        elif type(message) is Offer:
            self.receiver.offered(sender, message, now)
        elif type(message) is Chunk:
            self.receiver.arrived(sender, message, now)
        elif type(message) is Damaged:
            self.sender.damaged(sender, message)

    def turn(self, present: Multiplexer, now: float) -> None:
        """Do what is due."""
        self.sender.tick(now)
        self.receiver.tick(now)
        wrong = self.install.step(present, now)
        if wrong is not None:
            self._tell(PrefixDiscarded(wrong))

    @property
    def is_busy(self) -> bool:
        """Whether the next turn is due at once."""
        return self.install.is_restoring

    def deadline(self, now: float) -> float:
        """When `turn` must be called even if nothing arrives."""
        return min(self.sender.deadline(now), self.receiver.deadline(now))

    def status(self) -> dict[str, Any]:
        """What an operator wants to know: transfers under way, in bytes and entries."""
        receiver, install = self.receiver, self.install
        receiving = None
        if receiver.table is not None:
            is_begun = install.phase is not InstallState.IDLE
            receiving = {
                "index": receiver.table.point.index,
                "received_bytes": receiver.received_bytes,
                "size_bytes": receiver.size_bytes,
                "phase": str(install.phase) if is_begun else "receiving",
                "restored_entries": install.restored,
                "live_entries": install.live_count,
            }
        return {"receiving": receiving, "sending": self.sender.status()}
