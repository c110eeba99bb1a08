"""What a leader that sends a prefix holds, bounds and lets go: followers are played by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest

from folkmoot.core.compacting import CompactionPort
from folkmoot.core.jobs import ArchivePort, CloseArchive, Job, OpenArchive, ReadArchive
from folkmoot.core.prefix_frames import Ask, Chunk, Offer, PrefixMessage
from folkmoot.core.prefix_sender import ASKS_MAX, SILENCE_S, PrefixSender
from folkmoot.core.prefix_table import Point
from folkmoot.core.raft import Raft, Role
from folkmoot.core.types import NodeId

TERM = 3
TWO, THREE = NodeId(2), NodeId(3)


@attrs.frozen
class Entry:
    end: int = 100_000


@attrs.frozen
class File:
    entry: Entry = Entry()


@attrs.frozen
class Table:
    point: Point
    size_bytes: int = 100_000
    files: tuple[File, ...] = (File(),)


@attrs.frozen(eq=False)
class Archive:
    id: bytes
    table: Table
    encoded: bytes = b"table"


@attrs.define
class Log:
    start_index: int = 100


@attrs.define
class Consensus:
    """As much of Raft as a sender asks for."""

    below: set[NodeId]
    log: Log = attrs.field(factory=Log)
    term: int = TERM
    role: Role = Role.LEADER

    def followers_below_log(self) -> list[NodeId]:
        return sorted(self.below)

    def needs_prefix(self, peer: NodeId) -> bool:
        return peer in self.below


class Leader:
    """A sender, with jobs that are done when the test says so."""

    def __init__(self, *followers: NodeId) -> None:
        self.raft = Consensus(set(followers))
        self.index = 100
        self.open: list[Archive] = []
        self.jobs: list[tuple[Job, Callable[[Any], None]]] = []
        self.sent: list[tuple[NodeId, PrefixMessage]] = []
        self.sender = PrefixSender(
            cast("Raft", self.raft),
            cast("CompactionPort", self),
            1 << 30,
            lambda peer, message: self.sent.append((peer, message)),
        )

    def post(self, job: Job, then: Callable[[Any], None]) -> None:
        self.jobs.append((job, then))

    def work(self) -> None:
        """Do what was posted."""
        jobs, self.jobs = self.jobs, []
        for job, then in jobs:
            answer: Any = None
            if isinstance(job, OpenArchive):
                answer = Archive(b"to %d" % self.index, Table(Point(self.index, TERM)))
                self.open.append(answer)
            elif isinstance(job, CloseArchive):
                self.open.remove(cast("Archive", job.archive))
            elif isinstance(job, ReadArchive):
                answer = bytes(job.size_bytes)
            then(answer)

    def turns(self, now: float, count: int = 3) -> None:
        for _ in range(count):
            self.sender.tick(now)
            self.work()

    def ask(self, peer: NodeId, offset: int, now: float) -> None:
        archive = cast("ArchivePort", self.open[-1])
        self.sender.heard(peer, Ask(TERM, archive.id, 0, offset, 100, 0), now)

    def sent_to(self, peer: NodeId, kind: type) -> list[Any]:
        return [message for to, message in self.sent if to == peer and type(message) is kind]


def test_an_archive_that_two_are_sent_is_closed_when_the_second_goes() -> None:
    leader = Leader(TWO, THREE)
    leader.turns(1.0)
    assert len(leader.open) == 1, "both are sent the same"
    assert leader.sent_to(TWO, Offer)
    assert leader.sent_to(THREE, Offer)
    leader.raft.below.remove(TWO)
    leader.turns(1.1)
    assert len(leader.open) == 1
    leader.raft.below.remove(THREE)
    leader.turns(1.2)
    assert not leader.open
    assert leader.sender.is_idle


def test_an_archive_that_nobody_needs_once_it_is_open_is_closed() -> None:
    leader = Leader(TWO)
    leader.sender.tick(1.0)
    leader.raft.below.clear()
    leader.work()
    assert leader.open
    leader.turns(1.1)
    assert not leader.open
    assert leader.sender.is_idle
    assert not leader.sent


def test_where_the_log_goes_on_from_it_no_more_the_prefix_of_now_is_offered() -> None:
    leader = Leader(TWO)
    leader.turns(1.0)
    leader.raft.log.start_index = leader.index = 200
    leader.turns(1.1)
    assert [one.id for one in leader.open] == [b"to 200"]
    assert leader.sent_to(TWO, Offer)[-1].log_start == 200
    assert leader.sender.oldest == 200


def test_no_more_is_read_for_one_follower_than_the_bound() -> None:
    leader = Leader(TWO)
    leader.turns(1.0)
    for number in range(3 * ASKS_MAX):
        leader.ask(TWO, number * 100, 1.1)
        leader.sender.tick(1.1)
    reads = [job for job, _ in leader.jobs if isinstance(job, ReadArchive)]
    assert len(reads) == ASKS_MAX, "also what the disk has not answered counts"
    leader.turns(1.2)
    assert len(leader.sent_to(TWO, Chunk)) == ASKS_MAX


@pytest.mark.parametrize("why", ["it needs no prefix", "it is silent"])
def test_what_was_read_for_one_that_is_given_up_is_not_sent(why: str) -> None:
    leader = Leader(TWO)
    leader.turns(1.0)
    leader.ask(TWO, 0, 1.1)
    leader.sender.tick(1.1)
    if why == "it needs no prefix":
        leader.raft.below.clear()
        leader.sender.tick(1.2)
    else:
        leader.sender.tick(1.1 + SILENCE_S)
    leader.work()
    assert not leader.sent_to(TWO, Chunk)
