"""A cluster of pure cores in memory: messages on a wire, disks that finish when told, one clock.

Not a simulator: no faults happen by themselves. A test cuts links, drops or keeps messages, holds
disks and crashes nodes; `run` then lets time pass, event by event, in an order that depends on
nothing but the seed. Every message goes through the codec, and the invariants of §3.2 and of
"persist before you speak" (§3.8) are checked after every turn of every node.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import attrs

from folkmoot.core.batch import Batch, Group, Kind
from folkmoot.core.config import RaftConfig
from folkmoot.core.raft import (
    Configuration,
    HardState,
    LogView,
    Message,
    PrefixPoint,
    Raft,
    Ready,
    Role,
    decode_message,
    encode_message,
    message_type,
)
from folkmoot.core.types import NodeId
from tests.core.raft import invariants
from tests.core.raft.disk import Disk, Prefix, Transfer
from tests.core.raft.notation import show, show_write

Link = tuple[int, int]
NEVER = float("inf")


def voters(*node_ids: int, learners: Iterable[int] = (), index: int = 0) -> Configuration:
    """A configuration with made-up addresses."""
    everyone = [*node_ids, *learners]
    return Configuration(
        voters=frozenset(map(NodeId, node_ids)),
        learners=frozenset(map(NodeId, learners)),
        members={NodeId(i): (f"peer-{i}", f"client-{i}") for i in everyone},
        index=index,
    )


def command(text: str) -> Group:
    """A group of one entry that says `text`."""
    return Group(Kind.COMMANDS, 1, text.encode())


@attrs.define
class Node:
    """One server: its core, its disk, what it has applied, what its reads became."""

    node_id: NodeId
    disk: Disk
    raft: Raft
    is_up: bool = True
    applied: list[str] = attrs.field(factory=list)
    applied_index: int = 0
    reads: dict[int, int | None] = attrs.field(factory=dict)
    """Token -> index, None for a read that was lost."""

    def unapplied(self, last_index: int) -> list[Batch]:
        """The batches up to `last_index` that are not applied."""
        first = self.applied_index + 1
        batches = self.raft.log.slice(first, last_index) if first <= last_index else []
        if batches is None:
            batches = [b for b in self.disk.batches if first <= b.last_index <= last_index]
        return batches


@attrs.define(eq=False)
class Envelope:
    """A message on the wire."""

    deliver_at: float
    sender: NodeId
    receiver: NodeId
    message: Message


class Network:
    """The cluster."""

    def __init__(
        self,
        count: int = 3,
        *,
        configuration: Configuration | None = None,
        config: RaftConfig | None = None,
        seed: int = 0,
        hard_states: dict[int, HardState] | None = None,
        logs: dict[int, list[Batch]] | None = None,
    ) -> None:
        self.configuration = configuration or voters(*range(1, count + 1))
        self.config = config or RaftConfig()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.wire: list[Envelope] = []
        self.cut: set[Link] = set()
        self.latency: Callable[[int, int], float] = lambda sender, receiver: 0.001
        self.fate: Callable[[Envelope], list[Envelope]] = lambda envelope: [envelope]
        """What becomes of a message that is sent: lost, repeated, late."""
        self.transfers: list[Transfer] = []
        self.transfer_takes: Callable[[], float] | None = None
        """How long a leader's prefix travels to who needs it; None: a test calls `install`."""
        self.sent: dict[str, int] = {}
        """Messages sent so far, by class name."""
        self.note: Callable[[str], None] = lambda line: None
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, tuple[int, str]] = {}
        """Index -> (term, what it says) of everything that any node has applied."""
        self.commands: dict[int, str] = {}
        """Those of them that are commands."""
        self.nodes: dict[int, Node] = {}
        for node_id in self.configuration.everyone:
            disk = Disk(
                (hard_states or {}).get(node_id, HardState()),
                list((logs or {}).get(node_id, [])),
                prefix=Prefix(self.configuration),
            )
            self.nodes[node_id] = Node(node_id, disk, self._boot(node_id, disk))

    def __getitem__(self, node_id: int) -> Raft:
        return self.nodes[node_id].raft

    def _boot(self, node_id: int, disk: Disk) -> Raft:
        return Raft(
            node_id=NodeId(node_id),
            config=self.config,
            configuration=disk.prefix.configuration,
            hard_state=disk.hard_state,
            log=LogView.recovered(
                disk.start.index,
                disk.start.term,
                disk.batches,
                start_log_time=disk.start.log_time,
                cache_bytes=self.config.cache_bytes,
            ),
            committed_index=disk.prefix.point.index,
            rng=random.Random(self.rng.random()),
            now=self.now,
        )

    # -- what a test does ----------------------------------------------------------------------

    @property
    def leader(self) -> int | None:
        """The leader of the highest term among the nodes that are up."""
        leading = [n for n in self.nodes.values() if n.is_up and n.raft.role is Role.LEADER]
        return int(max(leading, key=lambda n: n.raft.term).node_id) if leading else None

    def elect(self, node_id: int) -> None:
        """Let `node_id` time out first, and deliver everything until it leads."""
        assert self.wins(node_id), f"node {node_id} does not win: {self[node_id].status()}"

    def wins(self, node_id: int, attempts: int = 20) -> bool:
        """Let `node_id` alone time out, again and again; return whether it comes to lead."""
        for _ in range(attempts):
            if self[node_id].role is not Role.LEADER:
                self.now = max(self.now, self[node_id].deadline())
                self.tick(node_id)
                self.settle()
        return self[node_id].role is Role.LEADER

    def time_out(self, node_id: int) -> None:
        """Make the election timer of `node_id` due now."""
        self[node_id]._election._deadline = self.now
        self.tick(node_id)

    def elect_with_held_disk(self, node_id: int) -> None:
        """Let `node_id` win although its disk is held; its first appends stay on the wire."""
        self.now = max(self.now, self[node_id].deadline())
        self.tick(node_id)
        while self[node_id].role is not Role.LEADER:
            if self.nodes[node_id].disk.pending:
                self.durable(node_id)
            assert self.deliver(), f"node {node_id} does not win"

    def tick(self, node_id: int) -> None:
        self[node_id].tick(self.now)
        self.turn(node_id)

    def propose(self, node_id: int, *texts: str) -> Batch:
        batch = self[node_id].propose([command(text) for text in texts], self.now)
        self.turn(node_id)
        return batch

    def read(self, node_id: int, token: int) -> None:
        self[node_id].read_index(token, self.now)
        self.turn(node_id)

    def send(self, sender: int, receiver: int, message: Message) -> None:
        """Deliver a message of the test's own making at once."""
        self[receiver].step(NodeId(sender), message, self.now)
        self.turn(receiver)

    def partition(self, *groups: Iterable[int]) -> None:
        """Let only nodes of the same group talk; a node in no group is alone."""
        of = {node_id: i for i, group in enumerate(groups) for node_id in group}
        ids = list(self.nodes)
        self.cut = {
            (a, b) for a in ids for b in ids if a != b and (a not in of or of[a] != of.get(b))
        }
        self.wire = [e for e in self.wire if (e.sender, e.receiver) not in self.cut]

    def only_links(self, *pairs: Link) -> None:
        both = {*pairs, *((b, a) for a, b in pairs)}
        self.cut = {(a, b) for a in self.nodes for b in self.nodes if a != b and (a, b) not in both}

    def heal(self) -> None:
        self.cut = set()

    def crash(self, node_id: int) -> None:
        """Stop at once; writes that are not durable are lost, messages on the wire are not."""
        node = self.nodes[node_id]
        node.is_up = False
        node.disk.crash()

    def restart(self, node_id: int) -> None:
        node = self.nodes[node_id]
        node.raft, node.is_up = self._boot(node_id, node.disk), True
        self._restore(node)
        self.turn(node_id)

    def hold_disk(self, node_id: int) -> None:
        self.nodes[node_id].disk.delay_s = None

    def durable(self, node_id: int, number: int | None = None) -> None:
        """Finish the pending writes of `node_id`, up to `number`."""
        node = self.nodes[node_id]
        if node.disk.pending:
            number = number or node.disk.pending[-1].number
            node.disk.finish(number)
            node.raft.durable(number, self.now)
            self.turn(node_id)

    def release_disk(self, node_id: int) -> None:
        self.nodes[node_id].disk.delay_s = 0.0
        self.durable(node_id)

    # -- the compacted prefix ------------------------------------------------------------------

    def compact(self, node_id: int, start: int | None = None) -> None:
        """Make a prefix up to what is applied, and let the log start behind `start`, a boundary."""
        node = self.nodes[node_id]
        log, index = node.raft.log, node.applied_index
        point = PrefixPoint(index, log.term_at(index), log.log_time_at(index))
        configuration = node.raft.configuration_at(index)
        start = index if start is None else start
        node.raft.compact(start, self.now)
        node.disk.prefix = Prefix(configuration, point, tuple(node.applied))
        node.disk.trim(PrefixPoint(start, log.start_term, log.start_log_time))
        self.turn(node_id)

    def install(self, node_id: int, prefix: Prefix) -> bool:
        """Let a prefix arrive whole; return whether the node has a use for it."""
        node = self.nodes[node_id]
        point = prefix.point
        if not node.is_up or not node.raft.may_install(point.index, point.term):
            return False
        node.disk.staged.append(prefix)
        node.raft.install(point.index, point.term, point.log_time, prefix.configuration, self.now)
        self.turn(node_id)
        return True

    def _transfer(self, node: Node) -> None:
        """Send the prefix to whoever needs it, one at a time to each."""
        if self.transfer_takes is None or not node.is_up:
            return
        for peer in node.raft.followers_below_log():
            if all(transfer.receiver != peer for transfer in self.transfers):
                at = self.now + self.transfer_takes()
                self.transfers.append(Transfer(at, node.node_id, peer, node.disk.prefix))

    def _transferred(self, transfer: Transfer) -> None:
        self.transfers.remove(transfer)
        if (transfer.sender, transfer.receiver) not in self.cut:
            self.install(transfer.receiver, transfer.prefix)

    # -- the wire ------------------------------------------------------------------------------

    def take(self, sender: int | None = None, receiver: int | None = None) -> list[Envelope]:
        """Take messages off the wire, to be lost, or put back by the test."""
        wanted = [
            e for e in self.wire if sender in (None, e.sender) and receiver in (None, e.receiver)
        ]
        self.wire = [e for e in self.wire if e not in wanted]
        return wanted

    def deliver(self, sender: int | None = None, receiver: int | None = None) -> int:
        """Deliver what is on the wire now, in order of sending; return how much that was."""
        taken = self.take(sender, receiver)
        for envelope in taken:
            self.deliver_one(envelope)
        return len(taken)

    def deliver_one(self, envelope: Envelope) -> None:
        node = self.nodes[envelope.receiver]
        if node.is_up:
            node.raft.step(envelope.sender, envelope.message, self.now)
            self.turn(envelope.receiver)

    def settle(self) -> None:
        """Deliver until the wire is empty, in no time."""
        for _ in range(10_000):
            if not self.deliver():
                return
        raise AssertionError("the wire does not become quiet")

    # -- time ----------------------------------------------------------------------------------

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Let time pass; stop early when `until` holds."""
        end = self.now + seconds
        while not (until and until()):
            when, act = self._next_event()
            if when > end:
                self.now = end
                return
            self.now = max(self.now, when)
            act()

    def run_until_led(self, seconds: float = 20.0) -> int:
        self.run(
            seconds, lambda: any(n.is_up and n.raft.is_leader_ready for n in self.nodes.values())
        )
        leader = self.leader
        assert leader is not None, f"no leader within {seconds} s"
        return leader

    def _next_event(self) -> tuple[float, Callable[[], None]]:
        best: tuple[float, Callable[[], None]] = (NEVER, lambda: None)
        for envelope in self.wire:
            if envelope.deliver_at < best[0]:
                best = (envelope.deliver_at, lambda e=envelope: self._arrive(e))  # type: ignore[misc]
        for transfer in self.transfers:
            if transfer.deliver_at < best[0]:
                best = (transfer.deliver_at, lambda t=transfer: self._transferred(t))  # type: ignore[misc]
        for node_id, node in self.nodes.items():
            if not node.is_up:
                continue
            if node.disk.due and node.disk.due[0][0] < best[0]:
                due_at, number = node.disk.due[0]
                best = (due_at, lambda i=node_id, n=number: self.durable(i, n))  # type: ignore[misc]
            deadline = node.raft.deadline()
            if deadline < best[0]:
                best = (deadline, lambda i=node_id: self.tick(i))  # type: ignore[misc]
        return best

    def _arrive(self, envelope: Envelope) -> None:
        self.wire.remove(envelope)
        self.deliver_one(envelope)

    # -- a node's turn -------------------------------------------------------------------------

    def turn(self, node_id: int) -> None:
        """Do what the node's core wants done, until it wants nothing."""
        node = self.nodes[node_id]
        said = sum(self.sent.values())
        while ready := node.raft.ready():
            assert sum(self.sent.values()) < said + 1000, f"node {node_id} does not fall silent"
            self._record(node, ready)
            for peer, message in ready.messages:
                invariants.check_spoken(node, peer, message)
                self._put_on_wire(node, peer, message)
            node.disk.pending += ready.writes
            for read in ready.reads:
                node.reads[read.token] = read.index
            for token in ready.reads_lost:
                node.reads[token] = None
            self._apply(node, ready.commit_index)
            for wanted in ready.log_reads:
                found = [b for b in node.disk.batches if b.first_index >= wanted.first_index]
                node.raft.log_read(wanted.peer, found[:2])
            self._write(node, ready)
        invariants.check_node(self, node)
        self._transfer(node)

    def _write(self, node: Node, ready: Ready) -> None:
        if ready.writes and node.disk.delay_s is not None:
            number = ready.writes[-1].number
            if node.disk.delay_s == 0.0:
                node.disk.finish(number)
                node.raft.durable(number, self.now)
            else:
                node.disk.due.append((self.now + node.disk.delay_s, number))

    def _put_on_wire(self, node: Node, peer: NodeId, message: Message) -> None:
        name = type(message).__name__
        self.sent[name] = self.sent.get(name, 0) + 1
        copy = decode_message(message_type(message), encode_message(message))
        if (node.node_id, peer) not in self.cut and peer in self.nodes:
            arrives = self.now + self.latency(node.node_id, peer)
            self.wire += self.fate(Envelope(arrives, node.node_id, peer, copy))

    def _apply(self, node: Node, commit_index: int) -> None:
        if commit_index <= node.applied_index:
            return
        if node.applied_index < node.raft.log.start_index:
            self._restore(node)
            assert node.raft.log.start_index <= node.applied_index <= commit_index
        for batch in node.unapplied(commit_index):
            for offset, group in enumerate(batch.groups):
                text = group.payload.decode(errors="replace")
                entry = (batch.term, text)
                index = batch.first_index + offset
                # §3.2, state machine safety.
                assert self.committed.setdefault(index, entry) == entry, (index, node.node_id)
                if group.kind == Kind.COMMANDS:
                    self.commands[index] = text
                    node.applied.append(text)
        node.applied_index = commit_index
        node.raft.applied(commit_index)

    def _restore(self, node: Node) -> None:
        """Go on from the prefix on the disk: exactly what was committed up to there."""
        prefix = node.disk.prefix
        node.applied, node.applied_index = list(prefix.applied), prefix.point.index
        committed = [text for i, text in sorted(self.commands.items()) if i <= prefix.point.index]
        assert node.applied == committed, (node.node_id, prefix)

    def check_logs(self) -> None:
        """§3.5, log matching, on all disks."""
        invariants.check_logs([node.disk for node in self.nodes.values()])

    # -- what is written down ------------------------------------------------------------------

    def _record(self, node: Node, ready: Ready) -> None:
        for event in ready.trace:
            self.note(f"{node.node_id}: {event}")
        for write in ready.writes:
            self.note(f"{node.node_id}: {show_write(write)}")
        for peer, message in ready.messages:
            lost = "" if (node.node_id, peer) not in self.cut else "  (cut)"
            self.note(f"{node.node_id} -> {peer}: {show(message)}{lost}")
        if ready.advanced:
            self.note(f"{node.node_id}: apply up to {ready.commit_index}")
        for read in ready.reads:
            self.note(f"{node.node_id}: read {read.token} at index {read.index}")
        if ready.reads_lost:
            self.note(f"{node.node_id}: reads lost: {ready.reads_lost}")
