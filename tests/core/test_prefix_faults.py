"""Transfers of a prefix with disks that are damaged or full; and what an install interrupts."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from folkmoot.core import compacting
from folkmoot.core.batch import Group, Kind
from folkmoot.core.connection import ClientConnection
from folkmoot.core.errors import StorageCorrupt, StorageFull
from folkmoot.core.jobs import BeginReceiving, Receive
from folkmoot.core.prefix_events import (
    PrefixDelayed,
    PrefixDiscarded,
    PrefixRefused,
    PrefixTaken,
)
from folkmoot.core.prefix_frames import Ask, Chunk, Offer, decode_prefix, encode_prefix, is_prefix
from folkmoot.core.prefix_table import ArchiveTable, archive_id
from folkmoot.core.requests import (
    PROTOCOL_VERSION,
    SECRET_BYTES,
    FrameType,
    decode,
    encode,
    encode_commands,
)
from folkmoot.core.storage.stored_prefix import file_names
from folkmoot.transport.codec import unpack
from folkmoot.transport.frame import FrameReader
from tests.core.members import Members, OneMember, Wired
from tests.core.test_connection import FakeLink
from tests.core.transfers import (
    KEEPS_LITTLE,
    WINDOW_BYTES,
    Recorder,
    grow,
    grown,
    halfway,
    isolated,
    set_chunk_bytes,
    used_bytes,
    world_of,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_bytes(monkeypatch)


def test_what_was_received_damaged_is_sent_anew_once() -> None:
    """And the rest is not."""
    world = world_of()
    recorder = Recorder(world)
    hold_complete(world)
    follower, leader = world[3], world.leader
    sent_bytes = recorder.sent_bytes()
    name = max(n for n in follower.files.list("incoming") if "whole" in n)
    size_bytes = follower.files.size(f"incoming/{name}")
    follower.files.flip_bit(f"incoming/{name}", size_bytes // 2)
    world.settle()
    assert recorder.sent_bytes() == sent_bytes + size_bytes
    (said,) = follower.events(PrefixDiscarded)
    assert "damaged" in said.why
    assert name in said.why
    assert len(follower.events(PrefixTaken)) == 1
    assert leader.is_up, "its own copy is good"


def hold_complete(world: Members) -> None:
    """Run until the last byte is here, and nothing of it is read yet."""
    receiver = world[3].replica.prefixes.receiver
    world.until(lambda: world[3].receiving)
    world.until(lambda: receiver.received_bytes == receiver.size_bytes)


def test_a_leader_whose_own_prefix_is_damaged_stops() -> None:
    """A follower finds it out; no byte of it is ever believed."""
    world = world_of()
    leader, follower = world.elect(), world[3]
    damage(leader, largest(leader))
    with pytest.raises(StorageCorrupt, match=r"prefix/\d+\.items at offset \d+"):
        world.run(20)
    assert not follower.events(PrefixTaken)
    leader.kill()
    world.settle()
    assert len(follower.events(PrefixTaken)) == 1, "from another"


def largest(one: OneMember) -> str:
    return max(file_names(one.desk.store.prefix.entries), key=one.files.size)


def damage(one: OneMember, name: str) -> None:
    one.files.flip_bit(name, one.files.size(name) // 2)


def test_a_leader_whose_file_is_too_short_stops() -> None:
    world = world_of()
    leader = world.elect()
    name = largest(leader)
    leader.files.truncate(name, leader.files.size(name) - 10)
    with pytest.raises(StorageCorrupt, match="the file ends here"):
        world.run(20)


def test_what_is_wrong_and_whole_is_refused_after_a_second_try() -> None:
    """Every checksum fits, and it is no prefix: it would be sent for ever."""
    world = world_of()
    recorder = Recorder(world)
    follower, leader = world[3], world.elect()
    install = follower.replica.prefixes.install

    def wrong(state: Any, source: Any) -> Any:
        raise StorageCorrupt("as if it were of another index")

    install._checked = wrong  # type: ignore[method-assign]
    world.run(15)
    assert recorder.sent_bytes() == leader.desk.store.prefix.size_bytes, "once"
    assert len(follower.events(PrefixRefused)) == 1
    assert not follower.files.list("incoming")
    del install._checked
    grow_whole(world)
    world.settle()
    assert len(follower.events(PrefixTaken)) == 1, "the next prefix is another"


def test_a_state_of_another_entry_is_refused() -> None:
    """The leader's table says one thing, and its files, which are sound, another."""
    world = world_of()
    ids: dict[bytes, bytes] = {}

    def lie(one: Wired) -> list[Wired]:
        if not is_prefix(one.frame_type):
            return [one]
        message = decode_prefix(one.frame_type, one.body)
        if type(message) is Offer:
            table = ArchiveTable.decode(message.table)
            point = attrs.evolve(table.point, log_time=table.point.log_time + 1)
            encoded = attrs.evolve(table, point=point).encode()
            ids[archive_id(message.table)] = archive_id(encoded)
            ids[archive_id(encoded)] = archive_id(message.table)
            message = attrs.evolve(message, table=encoded)
        else:
            assert isinstance(message, Ask | Chunk)
            message = attrs.evolve(message, archive_id=ids[message.archive_id])
        ((frame_type, _, body),) = FrameReader(1 << 20).feed(encode_prefix(message))
        return [attrs.evolve(one, frame_type=frame_type, body=body)]

    world.pass_on = lie
    world.run(10)
    (said,) = world[3].events(PrefixDiscarded)
    assert "a state of entry" in said.why
    assert len(world[3].events(PrefixRefused)) == 1
    assert not world[3].events(PrefixTaken)


def grow_whole(world: Members) -> None:
    """Grow until the leader offers another prefix."""
    world.storage[1] = world.storage[2] = KEEPS_LITTLE
    for one in (world[1], world[2]):
        one.kill()
        one.start()
    world.elect()
    grow(world, 60)


def test_a_full_disk_makes_a_pause() -> None:
    world = world_of()
    recorder = Recorder(world)
    follower = world[3]
    halfway(world)
    follower.files.capacity_bytes = used_bytes(follower)
    world.run(15)
    assert follower.events(PrefixDelayed)
    assert follower.is_up
    assert not follower.events(PrefixTaken)
    follower.files.capacity_bytes = None
    world.settle()
    assert len(follower.events(PrefixTaken)) == 1
    entries = world.leader.desk.store.prefix.entries
    again = recorder.sent_bytes() - sum(entry.end for entry in entries)
    assert again <= max(entry.end for entry in entries) + WINDOW_BYTES, "one file came again"


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
def test_a_file_for_which_there_is_no_room_is_begun_anew(operation: str) -> None:
    """What a sync could not write is called clean, and would be believed (bugs F2)."""
    world = Members(disks=grown())
    world.start(1, 3)
    archive = world[1].desk.store.archive()
    assert archive is not None
    store, files = world[3].desk.store, world[3].files
    data = archive.read(0, 0, archive.table.files[0].entry.end)
    half = len(data) // 2
    assert BeginReceiving(archive.encoded).run(store) == [0] * len(archive.table.files)
    if operation not in ("create", "write"):
        assert Receive(0, 0, data[:half]).run(store) == half
    rest = data[half:] if store.incoming.have[0] else data
    files.fail(operation, 1, StorageFull("no room"))
    answer = Receive(0, len(data) - len(rest), rest).run(store)
    assert isinstance(answer, StorageFull)
    assert store.incoming.have[0] == 0
    assert files.list("incoming") == ["TABLE"]
    assert Receive(0, half, data[half:]).run(store) == 0, "it does not follow what is here"
    assert Receive(0, 0, data).run(store) == len(data)
    assert store.incoming.check() == []


def test_a_prefix_for_which_there_is_no_room_is_not_begun() -> None:
    world = world_of()
    recorder = Recorder(world)
    follower = world[3]
    follower.files.capacity_bytes = used_bytes(follower) + 5000
    world.run(25)
    assert not recorder.sent_bytes()
    assert "are free here" in follower.events(PrefixDelayed)[0].why
    assert len(follower.events(PrefixDelayed)) in (2, 3)
    follower.files.capacity_bytes = None
    world.settle()


# -- what the follower was doing -------------------------------------------------------------


def test_a_compaction_that_is_under_way_gives_way() -> None:
    """And nothing that was frozen of the old state goes into a later one."""
    world = Members()
    world.start()
    world.elect()
    world.open()
    for number in range(100):
        world.put(f"key {number % 60}", [number, "." * 100])
    world.settle()
    follower = next(one for one in world.up if one.node_id != world.leader_id)
    follower.desk.holds_compactions = True
    for number in range(100):
        world.put(f"key {number % 60}", [number, ":" * 100])
    world.settle()
    assert follower.desk.compaction is not None
    isolated(world, follower.node_id)
    churn_beyond(world, follower)
    world.pass_on = lambda one: [one]
    world.settle()
    assert len(follower.events(PrefixTaken)) == 1
    assert follower.desk.compaction is None
    follower.desk.holds_compactions = False
    grow(world, 60)
    world.settle()
    before = follower.desk.store.compaction.index
    assert before > follower.events(PrefixTaken)[0].index, "it compacts again"
    check_prefix(world, follower)


def churn_beyond(world: Members, follower: OneMember) -> None:
    """Write until the leader's log starts behind what the follower has."""
    last_index = follower.replica.raft.last_index
    world.open()
    leader = world.leader
    while leader.replica.raft.log.start_index <= last_index:
        for number in range(20):
            world.put(f"key {number}", ";" * 100)
        world.run(1.1)


@pytest.mark.parametrize("is_handed_over", [False, True])
def test_a_compaction_that_was_stopped_for_nothing_is_done_later(
    is_handed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had frozen must not get lost: items would live that are dead."""
    monkeypatch.setattr(compacting, "SLICE_BYTES", 1)
    world = Members(2)
    world.start()
    world.elect()
    world.open()
    one = world.leader
    one.desk.holds_compactions = True

    def is_under_way() -> bool:
        if is_handed_over:
            return one.desk.compaction is not None
        return one.replica.compacting.is_slicing

    for number in range(60):  # a record each, and a slice
        world.do([[f"scratch {number}", "scratch", 1, {}], "add", [1]])
    while not is_under_way():
        assert world.sequence < 500, "nothing was frozen"
        world.put(f"key {world.sequence % 20}", [world.sequence, "!" * 100])
    policy = one.replica.compacting
    policy.is_stopped = True
    one.desk.stop_compaction(lambda _: None)
    world.run(1)
    for _ in range(40):
        world.put(f"key {world.sequence % 20}", [world.sequence, "?" * 100])
    policy.is_stopped = False
    one.desk.holds_compactions = False
    world.run(12)
    assert policy.index > 0
    check_prefix(world, one)


def check_prefix(world: Members, one: OneMember) -> None:
    """Compact up to the end: exactly what is there lives, and nothing else."""
    replica = one.replica
    index = replica.multiplexer.index
    world.until(lambda: replica.compacting.want(index))
    machines = [one.machine for one in replica.multiplexer.directory.resources.values()]
    things = sum(len(getattr(machine, "things", ())) for machine in machines)
    assert one.desk.store.prefix.status()["live_entries"] == things
    one.kill()
    one.start()
    world.settle()


# -- clients of the follower -------------------------------------------------------------------


class Client:
    """A client that speaks to one server in frames."""

    def __init__(self, one: OneMember, now: float) -> None:
        self.one = one
        self.now = now
        self.link = ClosedLink()
        self.connection = ClientConnection(self.link, one.replica.front.unflushed)
        one.replica.add_connection(self.connection)
        self.send(FrameType.HELLO, PROTOCOL_VERSION, "client", b"", 0, "test")

    def send(self, frame_type: FrameType, *fields: Any) -> None:
        for kind, _, body in FrameReader(1 << 20).feed(encode(frame_type, *fields)):
            self.one.replica.front.frames(self.connection, [(kind, 0, body)], self.now)

    def commands(self, session: int, first: int, *operations: Any, low_water: int = 0) -> None:
        body = encode_commands(session, first, low_water, 0, list(operations))
        self.one.replica.front.frames(self.connection, [(FrameType.COMMANDS, 0, body)], self.now)

    def heard(self, frame_type: FrameType) -> list[list[Any]]:
        frames = FrameReader(1 << 20).feed(b"".join(self.link.writes))
        return [decode(kind, body) for kind, _, body in frames if kind == frame_type]


class ClosedLink(FakeLink):
    """May be closed."""

    reason = ""

    def close(self, reason: str = "") -> None:
        self.reason = reason


SECRET = b"s" * SECRET_BYTES
PUSH = [["scratch", "scratch", 1, {}], "push", ["once"]]
WATCH = [["scratch", "scratch", 1, {}], "watch", []]


def test_clients_of_the_follower_are_sent_away_and_resume() -> None:
    """What they sent takes effect once, and what they are owed is still owed."""
    world = Members()
    world.start()
    world.elect()
    follower = world[3] if world.leader_id != 3 else world[2]
    client = Client(follower, world.now)
    client.send(FrameType.OPEN_SESSION, SECRET, 100_000, "client")
    world.until(lambda: client.heard(FrameType.SESSION))
    session = client.heard(FrameType.SESSION)[0][0]
    client.commands(session, 1, WATCH, PUSH)
    world.until(lambda: client.heard(FrameType.RESULTS))
    world.settle()
    isolated(world, follower.node_id)
    client.commands(session, 3, PUSH, low_water=2)
    world.run(0.1)
    # It is forwarded once more than it is answered: the leader applies it meanwhile.
    world.open()
    world.do([["scratch", "scratch", 1, {}], "add", [5]])
    world.propose(group_of(session, 3, PUSH))
    churn_beyond(world, follower)
    world.pass_on = lambda one: [one]
    world.until(lambda: follower.events(PrefixTaken))
    assert "newer state" in client.link.reason
    assert not follower.replica.front.connections
    assert follower.replica.intake.size_bytes == 0
    world.settle()

    client = Client(follower, world.now)
    client.send(FrameType.RESUME_SESSION, session, SECRET, 0, 3)
    world.until(lambda: client.heard(FrameType.SESSION))
    assert client.heard(FrameType.SESSION)[0][3] == 3, "the last sequence that took effect"
    client.commands(session, 3, PUSH, low_water=2)
    world.until(lambda: client.heard(FrameType.RESULTS))
    assert client.heard(FrameType.RESULTS)[-1][0] == 3
    assert client.heard(FrameType.RESULTS)[-1][2][0][1] == ["once", "once"]
    kinds = [unpack(one)[1] for e in client.heard(FrameType.EVENTS) for b in e[0] for one in b[2]]
    assert kinds == ["added"]
    world.settle()


def group_of(session: int, first: int, *operations: Any) -> Group:
    body = encode_commands(session, first, 2, 0, list(operations))
    return Group(Kind.COMMANDS, len(operations), body)
