"""Members of a cluster without threads, sockets or clocks: real Replicas on disks in memory.

Time is what the test says; frames, jobs beside the loop and writes lie in lists, in order, so that
a test can lose, repeat, reorder or hold any of them. One `step` of a `Members` is one turn of each
member that is up. What it is not: the simulator (tests/sim), which has faults and chance of its
own.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from folkmoot.core.batch import Batch, Group, Kind
from folkmoot.core.config import Member as MemberConfig
from folkmoot.core.config import NodeConfig, StorageConfig
from folkmoot.core.errors import StorageFull
from folkmoot.core.jobs import Job
from folkmoot.core.machine import Registry
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix import Frozen
from folkmoot.core.raft import Configuration, Raft, Role, Write
from folkmoot.core.replica import Replica
from folkmoot.core.requests import encode_commands
from folkmoot.core.restart import recovered_raft, restored
from folkmoot.core.sessions import encode_open
from folkmoot.core.storage.compaction import Compaction
from folkmoot.core.storage.log_store import Identity, LogStore
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.core.storage.stored_prefix import StoredPrefix
from folkmoot.core.types import NodeId
from folkmoot.primitives import BUILTIN_MACHINES
from folkmoot.transport.codec import pack
from folkmoot.transport.frame import FrameReader
from tests.core.scratch import Scratch
from tests.core.shelf import Shelf, Tally

REGISTRY = Registry.of([*BUILTIN_MACHINES, Scratch, Shelf, Tally])
CLUSTER_ID = b"cluster-of-tests"
STEP_S = 0.01
STORAGE = StorageConfig(
    segment_bytes=4096,
    compaction_log_bytes=8192,
    log_keep_bytes=0,
    log_keep_bytes_max=1 << 20,
    reserve_bytes=0,
)
Then = Callable[[Any], None]


@attrs.frozen
class Wired:
    """One frame on its way."""

    sender: int
    target: int
    frame_type: int
    body: bytes = attrs.field(repr=False)


class Desk:
    """A member's disk, as its replica sees it: what is asked of it is done when the test says."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.writes: list[Write] = []
        self.jobs: deque[tuple[Job | Frozen | None, Then]] = deque()
        self.done: deque[tuple[Then, Any]] = deque()
        self.frozen: list[Frozen] = []
        self.compaction: Compaction | None = None
        self.holds_compactions = False
        """A compaction that has begun does not go on."""
        self.holds_jobs = False
        """Nothing beside the loop goes on."""
        self._compacted: Then = lambda _: None
        self.boundary_from = store.boundary_from
        self.trim_target = store.trim_target
        self.received: Callable[[], StoredPrefix] = store.incoming.read_back
        self.free_bytes = store.free_bytes
        self.status = store.status
        self.read: Callable[[int, int], list[Batch]] = store.read

    def submit(self, writes: Sequence[Write]) -> None:
        self.writes.extend(writes)

    def post(self, job: Job, then: Then) -> None:
        self.jobs.append((job, then))

    def compact(self, frozen: Frozen, then: Then) -> None:
        self.jobs.append((frozen, then))

    def stop_compaction(self, then: Then) -> None:
        self.jobs.append((None, then))

    def take_done(self) -> None:
        while self.done:
            then, answer = self.done.popleft()
            then(answer)

    def work(self) -> None:
        """Do all that was asked for, and a compaction to its end."""
        while self.jobs and not self.holds_jobs:
            self.work_once()
        is_held = self.holds_jobs or self.holds_compactions
        if self.compaction is not None and not is_held:
            self.finish_compaction()

    def work_once(self) -> None:
        """Do the next job."""
        job, then = self.jobs.popleft()
        if job is None:
            self._give_up()
            self.done.append((then, None))
        elif isinstance(job, Frozen):
            self._begin(job, then)
        else:
            self.done.append((then, job.run(self.store)))

    def finish_compaction(self) -> None:
        assert self.compaction is not None
        try:
            finish(self.compaction.steps())
        except StorageFull:
            self._give_up()
            return
        self.store.install(self.compaction)
        self.store.sweep()
        self.compaction = None
        self.frozen.clear()
        self.done.append((self._compacted, self.store.prefix.state_bytes))

    def _begin(self, frozen: Frozen, then: Then) -> None:
        assert self.compaction is None, "a compaction during another"
        installed = self.store.compaction.index
        self.frozen = [one for one in (*self.frozen, frozen) if one.index > installed]
        self._compacted = then
        self.compaction = self.store.compact(self.frozen)

    def _give_up(self) -> None:
        if self.compaction is not None:
            self.compaction.give_up()
            self.compaction = None
            self.store.sweep()
            self.done.append((self._compacted, None))


class OneMember:
    """A server over all its lives."""

    def __init__(self, world: Members, node_id: int, files: MemoryFiles) -> None:
        self.world = world
        self.node_id = node_id
        self.files = files
        self.is_up = False
        self.inbox: list[Wired] = []
        self.trace: list[Any] = []
        self.desk: Desk
        self.replica: Replica

    def start(self) -> None:
        world = self.world
        config = NodeConfig(
            node_id=NodeId(self.node_id), members=world.configs, storage=world.storage[self.node_id]
        )
        configuration = Configuration.bootstrap(world.configs)
        identity = Identity(world.cluster_id, config.node_id, pack(configuration.encode()))
        store = LogStore.open(self.files, config.storage, identity)
        multiplexer, configuration = finish(restored(store, config, world.registry, Multiplexer))
        raft = recovered_raft(
            store, config, configuration, Raft, rng=random.Random(self.node_id), now=world.now
        )
        self.desk = Desk(store)
        self.inbox = []
        self.replica = Replica(
            config=config,
            cluster_id=world.cluster_id,
            raft=raft,
            multiplexer=multiplexer,
            storage=self.desk,
            peers=self,
            clock=lambda: self.world.now,
        )
        self.replica.trace = self.trace.append
        self.is_up = True

    def kill(self) -> None:
        """End the process; what it wrote is still seen."""
        self.is_up = False
        self.files.kill()

    def cut_power(self, rng: random.Random) -> None:
        """End the machine: what was not synced may be lost."""
        self.is_up = False
        self.files.crash(rng)

    def send(self, node_id: NodeId, data: bytes) -> None:
        for frame_type, _, body in FrameReader(64 << 20).feed(data):
            self.world.wire.append(Wired(self.node_id, node_id, frame_type, body))

    def turn(self) -> None:
        now, replica = self.world.now, self.replica
        self.desk.take_done()
        inbox, self.inbox = self.inbox, []
        for one in inbox:
            replica.peer_frame(NodeId(one.sender), one.frame_type, one.body, now)
        replica.turn(now)

    def write(self) -> None:
        """Make durable what was submitted."""
        writes, self.desk.writes = self.desk.writes, []
        if writes:
            self.desk.store.write(writes)
            self.replica.durable(self.desk.store.sync(), self.world.now)

    @property
    def receiving(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.replica.prefixes.status()["receiving"]
        return found

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.trace if type(event) is kind]


class Members:
    """A cluster. `pass_on` says what becomes of each frame: a test replaces it."""

    def __init__(
        self,
        count: int = 3,
        storage: StorageConfig = STORAGE,
        disks: dict[int, dict[str, bytes]] | None = None,
        registry: Registry = REGISTRY,
    ) -> None:
        self.now = 100.0
        self.cluster_id = CLUSTER_ID
        self.storage = dict.fromkeys(range(1, count + 1), storage)
        self.registry = registry
        self.configs = tuple(
            MemberConfig(node_id=NodeId(n), peer_address=f"p{n}:1", client_address=f"c{n}:1")
            for n in range(1, count + 1)
        )
        found = disks or {}
        self.members = {
            n: OneMember(self, n, MemoryFiles(found.get(n))) for n in range(1, count + 1)
        }
        self.wire: list[Wired] = []
        self.pass_on: Callable[[Wired], Sequence[Wired]] = lambda one: [one]
        self.session = 0
        self.sequence = 0

    def __getitem__(self, node_id: int) -> OneMember:
        return self.members[node_id]

    def start(self, *node_ids: int) -> None:
        for node_id in node_ids or self.members:
            self.members[node_id].start()

    @property
    def up(self) -> list[OneMember]:
        return [member for member in self.members.values() if member.is_up]

    @property
    def leader(self) -> OneMember:
        found = self._leading()
        assert found is not None, "nobody leads"
        return found

    @property
    def leader_id(self) -> int:
        """Who leads; 0: nobody."""
        leading = self._leading()
        return 0 if leading is None else leading.node_id

    def _leading(self) -> OneMember | None:
        leading = [one for one in self.up if one.replica.raft.role is Role.LEADER]
        return max(leading, key=lambda one: one.replica.raft.term, default=None)

    # -- time ------------------------------------------------------------------------------------

    def step(self) -> None:
        """Deliver what is on the wire, then one turn of each, then its jobs and writes."""
        self.now += STEP_S
        self.deliver()
        for member in self.up:
            member.turn()
            member.write()
            member.desk.work()

    def deliver(self) -> None:
        wire, self.wire = self.wire, []
        for sent in wire:
            for one in self.pass_on(sent):
                member = self.members[one.target]
                if member.is_up:
                    member.inbox.append(one)

    def until(self, holds: Callable[[], Any], seconds: float = 20.0) -> None:
        end = self.now + seconds
        while not holds():
            assert self.now < end, f"it did not come to hold within {seconds} s"
            self.step()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()

    def elect(self) -> OneMember:
        """Wait for a leader that can serve."""

        def is_ready() -> bool:
            leading = self._leading()
            return leading is not None and leading.replica.raft.is_leader_ready

        self.until(is_ready)
        return self.leader

    # -- a client --------------------------------------------------------------------------------

    def open(self) -> None:
        """Open a session, whose commands are proposed by the leader at once."""
        secret = b"secret %d" % self.elect().replica.raft.last_index
        self.propose(encode_open(secret, 10**9, "client"))
        self.session, self.sequence = self.leader.replica.raft.last_index, 0
        assert self.leader.replica.multiplexer.sessions.get(self.session) is not None

    def do(self, *operations: Any) -> None:
        """Have commands applied."""
        first = self.sequence + 1
        self.sequence += len(operations)
        body = encode_commands(self.session, first, first - 1, 0, list(operations))
        self.propose(Group(Kind.COMMANDS, len(operations), body))

    def put(self, key: str, value: Any) -> None:
        self.do([["shelf", "shelf", 1, {}], "put", [key, value]])

    def take(self, key: str) -> None:
        self.do([["shelf", "shelf", 1, {}], "take", [key]])

    def propose(self, group: Group) -> None:
        """Propose, and wait until it is applied by the leader."""
        leader = self.elect()
        leader.replica.raft.propose([group], self.now)
        index = leader.replica.raft.last_index
        self.until(lambda: leader.replica.multiplexer.index >= index)

    # -- comparing -------------------------------------------------------------------------------

    def are_equal(self) -> bool:
        """Whether all that are up have applied the same, and nothing is left to apply."""
        leading = self._leading()
        if leading is None or not leading.replica.raft.is_leader_ready:
            return False
        index = leading.replica.raft.last_index
        return all(one.replica.multiplexer.index == index for one in self.up)

    def settle(self, seconds: float = 30.0) -> None:
        """Run until all have everything, and check that it is the same."""
        self.until(self.are_equal, seconds)
        assert len({one.replica.multiplexer.digest() for one in self.up}) == 1

    def disks(self) -> dict[int, dict[str, bytes]]:
        """Copy all disks, as they would be after a graceful end."""
        return {n: one.files.contents() for n, one in self.members.items()}


def finish(steps: Any) -> Any:
    """Take all steps of a generator; return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
