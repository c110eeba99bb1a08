"""Saving a backup from a member while traffic goes on; and what is refused and given up."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from folkmoot.core import backups
from folkmoot.core.backups import BACKUPS_MAX, READ_BYTES_MAX, READS_MAX, SILENCE_S
from folkmoot.core.batch import Group, Kind
from folkmoot.core.connection import ClientConnection
from folkmoot.core.multiplexer import Multiplexer
from folkmoot.core.prefix_table import ArchiveTable
from folkmoot.core.requests import PROTOCOL_VERSION, FrameType, decode, encode, encode_commands
from folkmoot.core.storage.backup import Backup, BackupWriter
from folkmoot.core.storage.memory import MemoryFiles
from folkmoot.transport.frame import FrameReader
from tests.core.members import REGISTRY, STORAGE, Members, OneMember, finish


class Link:
    """Keeps what was sent."""

    frame_bytes_max = 1 << 20

    def __init__(self) -> None:
        self.sent = bytearray()
        self.is_closed = False

    def send(self, data: bytes) -> None:
        self.sent += data

    def close(self, reason: str = "") -> None:
        self.is_closed = True


class Operator:
    """Somebody who asks a member, on a connection of his own."""

    def __init__(self, world: Members, member: OneMember) -> None:
        self.world = world
        self.member = member
        self.link = Link()
        self.front = member.replica.front
        self.connection = ClientConnection(self.link, self.front.unflushed)
        member.replica.add_connection(self.connection)
        self.tell(encode(FrameType.HELLO, PROTOCOL_VERSION, "client", b"", 0, "operator"))
        self.asked = 0
        self.answers: dict[int, tuple[str | None, Any]] = {}

    def tell(self, data: bytes) -> None:
        frames = FrameReader(1 << 20).feed(data)
        self.front.frames(self.connection, frames, self.world.now)
        self.front.flush()

    def send(self, operation: str, *arguments: Any) -> int:
        """Ask; return the question's number."""
        self.asked += 1
        self.tell(encode(FrameType.ADMIN, self.asked, operation, list(arguments)))
        return self.asked

    def answer(self, number: int) -> tuple[str | None, Any] | None:
        """The answer to a question, if there is one: error code and result."""
        for frame_type, _, body in FrameReader(1 << 24).feed(bytes(self.link.sent)):
            if frame_type == FrameType.ADMIN_RESULT:
                found, code, result = decode(frame_type, body)
                self.answers[found] = code, result
        self.link.sent.clear()
        return self.answers.get(number)

    def ask(self, operation: str, *arguments: Any) -> tuple[str | None, Any]:
        """Ask, and wait for the answer."""
        number = self.send(operation, *arguments)
        self.world.until(lambda: self.answer(number) is not None)
        return self.answers[number]

    def begin(self, index: int) -> bytes:
        """Ask until the prefix is there; return its table."""
        for _ in range(100):
            code, answer = self.ask("snapshot_begin", index)
            assert code is None, answer
            if answer["phase"] == "ready":
                table: bytes = answer["table"]
                return table
            self.world.step()
        raise AssertionError("it does not become ready")

    def save(self, index: int) -> Backup:
        """Save a whole backup."""
        files = MemoryFiles()
        writer = BackupWriter(files, "partial", self.begin(index))
        for number, one in enumerate(writer.table.files):
            for offset in range(0, one.entry.end, 700):
                size_bytes = min(700, one.entry.end - offset)
                code, data = self.ask("snapshot_read", number, offset, size_bytes)
                assert code is None, data
                writer.append(number, data)
        assert self.ask("snapshot_end") == (None, True)
        writer.finish("backup", "now", "a test", 0, [])
        backup = Backup.open(files, "backup")
        finish(backup.verify())
        return backup


def cluster(count: int = 1) -> Members:
    world = Members(count)
    world.start()
    world.elect()
    world.open()
    return world


def pins(member: OneMember) -> dict[str, int]:
    return member.desk.store.prefix._pins


class Traffic:
    """A put in every step in which none is under way; the digest at every index is noted."""

    def __init__(self, world: Members) -> None:
        self.world = world
        self.written = 0
        self.digests: dict[int, bytes] = {}
        self._step = world.step
        world.step = self.step  # type: ignore[method-assign]

    def step(self) -> None:
        self._step()
        world, replica = self.world, self.world.leader.replica
        for member in world.up:
            state = member.replica.multiplexer
            self.digests[state.index] = state.digest()
        if replica.raft.last_index == replica.multiplexer.index:
            self.written += 1
            world.sequence += 1
            operation = [["shelf", "shelf", 1, {}], "put", [f"k{self.written % 7}", self.written]]
            first = world.sequence
            body = encode_commands(world.session, first, first - 1, 0, [operation])
            replica.raft.propose([Group(Kind.COMMANDS, 1, body)], world.now)

    def stop(self) -> None:
        self.world.step = self._step  # type: ignore[method-assign]


def test_what_was_acknowledged_before_is_in_it_while_traffic_goes_on() -> None:
    world = cluster(3)
    for at in range(60):
        world.put(f"k{at}", "." * 100)
    acknowledged = world.leader.replica.multiplexer.index
    operator = Operator(world, world.leader)
    traffic = Traffic(world)
    backup = operator.save(acknowledged)
    traffic.stop()
    point = backup.table.point
    assert point.index >= acknowledged
    assert traffic.written > 5
    limits = world.leader.replica.config.limits
    state = finish(Multiplexer.restoring(REGISTRY, limits, backup.source()))
    assert state.digest() == traffic.digests[point.index]
    world.settle()
    assert not pins(world.leader)


def test_a_prefix_that_is_there_is_enough() -> None:
    world = cluster()
    world.put("a", 1)
    operator = Operator(world, world.leader)
    first = operator.save(world.leader.replica.multiplexer.index)
    again = operator.save(first.table.point.index)
    assert again.id == first.id, "equal ids mean equal content"


def test_a_follower_can_be_asked_too() -> None:
    world = cluster(3)
    world.put("a", 1)
    index = world.leader.replica.multiplexer.index
    follower = next(one for one in world.up if one is not world.leader)
    backup = Operator(world, follower).save(index)
    assert backup.table.point.index >= index


def test_what_was_begun_stays_readable_while_compactions_go_on() -> None:
    world = cluster()
    for at in range(30):
        world.put(f"k{at}", "." * 100)
    member = world.leader
    operator = Operator(world, member)
    writer = BackupWriter(
        MemoryFiles(), "partial", operator.begin(member.replica.multiplexer.index)
    )
    before = set(member.files.list("prefix"))
    for at in range(300):
        world.put(f"k{at % 30}", "," * 100)
    assert member.replica.compacting.index > writer.table.point.index, "nothing was compacted"
    for number, one in enumerate(writer.table.files):
        _, data = operator.ask("snapshot_read", number, 0, one.entry.end)
        writer.append(number, data)
    state = finish(Multiplexer.restoring(REGISTRY, member.replica.config.limits, writer.source()))
    assert state.index == writer.table.point.index
    assert before <= set(member.files.list("prefix"))
    operator.front.closed(operator.connection)
    world.run(0.1)
    assert not before & set(member.files.list("prefix")), "nobody needs them any more"


def test_a_read_under_way_when_its_backup_ends_finds_its_file() -> None:
    """Reproduces a server that stopped: 1. a read is posted, then its connection closes; 2. a
    compaction that replaces the files is installed; 3. the read finds no file.
    """
    world = cluster()
    for at in range(30):
        world.put(f"k{at}", at)
    member = world.leader
    operator = Operator(world, member)
    operator.begin(member.replica.multiplexer.index)
    member.desk.holds_compactions = True
    while member.desk.compaction is None:
        world.put("k", "." * 500)
    operator.send("snapshot_read", 0, 0, 100)
    member.turn()
    operator.front.closed(operator.connection)
    member.desk.finish_compaction()
    member.desk.work()
    assert not pins(member)


def test_so_many_at_once_and_no_more() -> None:
    world = cluster()
    world.put("a", 1)
    index = world.leader.replica.multiplexer.index
    operators = [Operator(world, world.leader) for _ in range(BACKUPS_MAX + 1)]
    for one in operators[:-1]:
        one.begin(index)
    code, text = operators[-1].ask("snapshot_begin", index)
    assert (code, text) == (
        "overloaded",
        f"{BACKUPS_MAX} backups are being saved from this server already",
    )
    operators[0].front.closed(operators[0].connection)
    operators[-1].begin(index)


def test_one_that_nobody_reads_is_given_up() -> None:
    world = cluster()
    world.put("a", 1)
    operator = Operator(world, world.leader)
    operator.begin(world.leader.replica.multiplexer.index)
    world.run(SILENCE_S - 1)
    assert operator.ask("snapshot_read", 0, 0, 10)[0] is None
    assert pins(world.leader)
    world.run(SILENCE_S + 1)
    assert not pins(world.leader)
    code, text = operator.ask("snapshot_read", 0, 0, 10)
    assert (code, "closed" in text) == ("bad_command", True)


def test_one_whose_connection_goes_while_it_is_opened_is_closed() -> None:
    world = cluster()
    world.put("a", 1)
    member = world.leader
    index = member.replica.multiplexer.index
    Operator(world, member).save(index)
    operator = Operator(world, member)
    operator.send("snapshot_begin", index)
    operator.front.closed(operator.connection)
    world.run(0.1)
    assert not pins(member)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([0, 0], "takes a file's number, an offset, a size in bytes"),
        ([0, 0, "10"], "takes a file's number"),
        ([0, -1, 10], "takes a file's number"),
        ([0, 0, 0], "0 bytes at 0 of file 0"),
        ([0, 0, READ_BYTES_MAX + 1], f"1 to {READ_BYTES_MAX} are allowed"),
        ([0, 1 << 40, 1], "of file 0"),
        ([99, 0, 1], "of file 99"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments: list[Any], said: str) -> None:
    world = cluster()
    world.put("a", 1)
    operator = Operator(world, world.leader)
    assert operator.ask("snapshot_read", 0, 0, 10)[0] == "bad_command", "none is open"
    operator.begin(world.leader.replica.multiplexer.index)
    code, text = operator.ask("snapshot_read", *arguments)
    assert code == "bad_command"
    assert said in text


def test_reads_that_wait_are_limited() -> None:
    world = cluster()
    world.put("a", 1)
    operator = Operator(world, world.leader)
    operator.begin(world.leader.replica.multiplexer.index)
    numbers = [operator.send("snapshot_read", 0, 0, 1) for _ in range(READS_MAX + 1)]
    assert operator.answer(numbers[-1]) == (
        "overloaded",
        f"{READS_MAX} reads of this backup wait already",
    )
    world.run(0.5)
    assert all(operator.answer(number) is not None for number in numbers)


def test_no_faster_than_the_rate() -> None:
    world = Members(1, storage=attrs.evolve(STORAGE, transfer_bytes_per_s=1 << 10))
    world.start()
    world.elect()
    world.open()
    for at in range(10):
        world.put(f"k{at}", "." * 400)
    operator = Operator(world, world.leader)
    begun = world.now
    backup = operator.save(world.leader.replica.multiplexer.index)
    least_s = backup.table.size_bytes / 1024 - 1.0
    assert least_s > 2
    assert world.now - begun > least_s


def test_what_waits_for_the_rate_is_not_taken_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "SILENCE_S", 3.0)
    world = Members(1, storage=attrs.evolve(STORAGE, transfer_bytes_per_s=1 << 10))
    world.start()
    world.elect()
    world.open()
    for at in range(30):
        world.put(f"k{at}", "." * 1000)
    operator = Operator(world, world.leader)
    table = ArchiveTable.decode(operator.begin(world.leader.replica.multiplexer.index))
    sizes = [one.entry.end for one in table.files]
    number = sizes.index(max(sizes))
    assert sizes[number] > 5 * 1024, "the second read waits for longer than the silence allowed"
    numbers = [operator.send("snapshot_read", number, 0, size) for size in (sizes[number], 1)]
    world.run(20)
    answers = [operator.answer(one) for one in numbers]
    assert [answer and (answer[0], len(answer[1])) for answer in answers] == [
        (None, sizes[number]),
        (None, 1),
    ]


def test_one_that_is_begun_anew_lets_its_first_files_go() -> None:
    world = cluster()
    world.put("a", 1)
    member = world.leader
    operator = Operator(world, member)
    first = operator.begin(member.replica.multiplexer.index)
    world.put("b", 2)
    assert operator.begin(member.replica.multiplexer.index) != first
    assert operator.ask("snapshot_end") == (None, True)
    world.run(0.1)
    assert not pins(member)


def test_an_index_that_is_not_committed_is_waited_for_and_nothing_is_compacted_for_it() -> None:
    world = cluster()
    world.put("a", 1)
    member = world.leader
    operator = Operator(world, member)
    code, answer = operator.ask("snapshot_begin", 1 << 50)
    assert (code, answer["phase"]) == (None, "preparing")
    world.run(1.0)
    assert member.replica.compacting.index == 0
    assert not member.replica.compacting.is_due


def test_a_full_disk_is_told_instead_of_waiting_for_ever() -> None:
    world = cluster()
    world.put("a", 1)
    member = world.leader
    index = member.replica.multiplexer.index
    member.desk.store.roll()
    member.files.capacity_bytes = 0
    operator = Operator(world, member)
    assert operator.ask("snapshot_begin", index)[1]["phase"] == "preparing"
    world.run(0.1)
    code, text = operator.ask("snapshot_begin", index)
    assert code == "storage_full"
    assert "too full for the compaction" in text


def test_status_says_how_many_there_are() -> None:
    world = cluster()
    world.put("a", 1)
    operator = Operator(world, world.leader)
    assert operator.ask("status")[1]["backups"] == 0
    operator.begin(world.leader.replica.multiplexer.index)
    assert operator.ask("status")[1]["backups"] == 1


def test_an_operation_that_is_not_known_is_told_with_those_that_are() -> None:
    world = cluster()
    code, text = Operator(world, world.leader).ask("snapshot")
    assert code == "bad_command"
    assert "snapshot_begin" in text
    assert "status" in text
