"""Freezing and restoring: what is noted as changed, when it is serialised, what is refused."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from folkmoot.core import freeze
from folkmoot.core.applied import Ended
from folkmoot.core.batch import Group, Kind
from folkmoot.core.config import LimitsConfig
from folkmoot.core.errors import ConfigError, StorageCorrupt, UsageError
from folkmoot.core.machine import Machine, Registry, RestoreContext
from folkmoot.core.multiplexer import MachineFault, Multiplexer
from folkmoot.core.prefix import Items, Ledger, RecordKey, RecordKind
from folkmoot.core.sessions import encode_open, encode_restored
from folkmoot.transport.codec import pack, unpack
from tests.core.prefix_twin import PrefixTwin, expected_records, finish, restore
from tests.core.scratch import SMALL, Client, Log, Scratch, named, session_of
from tests.core.shelf import Shelf, Tally

REGISTRY = Registry.of([Scratch, Shelf, Tally])


def new_log(limits: LimitsConfig = SMALL) -> Log:
    return Log(limits, REGISTRY)


def ledger(log: Log) -> Ledger:
    return finish(log.mux.freeze()).ledger


# -- what machines say ----------------------------------------------------------------------------


def test_the_ledger_says_what_is_owned_and_what_is_gone() -> None:
    log = new_log()
    client = log.client()
    shelf = client.open("s", "shelf")  # 2
    client.do(shelf, "put", "a", 1)  # 3
    client.do(shelf, "put_many", [["a", 2], ["b", 2], ["b", 3]])  # 4
    client.do(shelf, "put", "b", 4)  # 5
    assert client.do(shelf, "swap", "b", 5, 6)[0] == "condition_failed"  # 6
    client.do(named("t", "tally"), "put", "x", 1)  # 7
    client.do(named("t", "tally"), "take", "x")  # 8
    found = ledger(log)
    assert list(found.retained) == [3, 5, 7]
    assert found.retained_many == {4: 3}
    assert list(found.superseded) == [3, 7]
    assert found.superseded_parts == [(4, 1), (4, 2)]
    assert found.named == {7: 7}
    assert found.deleted == []
    assert ledger(log) == Ledger() or not ledger(log).retained


def test_what_is_superseded_after_a_freeze_is_in_the_next_ledger() -> None:
    log = new_log()
    client = log.client()
    shelf = client.open("s", "shelf")
    client.do(shelf, "put", "a", 1)
    frozen = log.mux.freeze()
    client.do(shelf, "put", "a", 2)
    first = finish(frozen).ledger
    assert (list(first.retained), list(first.superseded)) == ([3], [])
    second = ledger(log)
    assert (list(second.retained), list(second.superseded)) == ([4], [3])


def test_only_deleting_what_may_own_items_is_noted() -> None:
    log = new_log()
    client = log.client()
    shelf, idle, plain = (client.open("s", "shelf"), client.open("i", "shelf"), client.open("p"))
    client.do(shelf, "put", "a", 1)
    client.do(0, "delete", shelf)
    client.do(0, "delete", plain)
    client.do(0, "close", [idle])
    assert log.query(0, "count") == 0
    assert ledger(log).deleted == [shelf]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("twice", "raised UsageError: retain() twice in one entry"),
        ("many twice", "raised UsageError: retain() twice in one entry"),
        ("none", "raised UsageError: retain(0): an entry owns one item at least"),
        ("refuse", "raised ConditionFailed after it had published, retained, superseded or "),
        ("refuse many", "raised ConditionFailed after it had published, retained, superseded or "),
        ("supersede", "raised ConditionFailed after it had published, retained, superseded or "),
        ("supersede all", "raised ConditionFailed after it had published, retained, superseded "),
    ],
)
def test_retaining_wrongly_is_a_fault(how: str, text: str) -> None:
    client = new_log().client()
    shelf = client.open("s", "shelf")
    client.do(shelf, "put", "a", 1)
    with pytest.raises(MachineFault) as fault:
        client.do(shelf, "fault", how)
    assert str(fault.value).startswith(f"entry 4: 'fault' of shelf 's' (resource 2) {text}")


def tick(client: Client, shelf: int) -> Any:
    return client.log.tick(5)


def close_it(client: Client, shelf: int) -> Any:
    return client.do(0, "close", [shelf])


def overflow(client: Client, shelf: int) -> Any:
    return client.do(named("p"), "tell", [client.id] * 99, "x", 0, False)


@pytest.mark.parametrize(
    ("how", "entry", "where"),
    [
        ("later", tick, "on_deadline('!')"),
        ("end", lambda client, shelf: client.close(), "session_ended(1)"),
        ("end", close_it, "session_ended(1)"),
        ("end", overflow, "cut_subscriptions(1)"),
    ],
)
def test_retaining_outside_of_a_command_is_a_fault(
    how: str, entry: Callable[[Client, int], Any], where: str
) -> None:
    client = new_log().client()
    shelf = client.open("s", "shelf")
    client.do(shelf, "fault", how)
    with pytest.raises(MachineFault) as fault:
        entry(client, shelf)
    assert where in str(fault.value)
    assert "shelf 's' (resource 2)" in str(fault.value)
    assert str(fault.value).endswith("raised UsageError: retain() outside of a command")


def test_a_command_may_retain_after_what_was_no_command_in_the_same_group() -> None:
    """A session left another resource, or a deadline fired, just before."""
    log = new_log()
    client = log.client()
    shelf, other = client.open("s", "shelf"), client.open("t", "shelf")
    client.do(other, "put", "late", 1, 5)
    log.time = 5
    client.send([shelf, "put", ["a", 1]], [0, "close", [[other]]], [shelf, "put", ["b", 1]])
    assert log.query(0, "count") == 1, "the deadline has fired, and so the other is collected"
    assert list(ledger(log).retained) == [4, 5, 7]


# -- what is touched ------------------------------------------------------------------------------

Action = Callable[[Log, Client, Client, int], Any]
"""Of a log with two clients and a Scratch that both have open."""


def refused(log: Log, a: Client, b: Client, scratch: int) -> Any:
    return a.send([scratch, "add", [1]], first=99)


def acknowledged(log: Log, a: Client, b: Client, scratch: int) -> Any:
    a.event_index, a.low_water = log.mux.index, a.sequence
    return a.keep_alive()


def opened_again(log: Log, a: Client, b: Client, scratch: int) -> Any:
    return log.batch(encode_open(session_of(a).secret_hash, 9, ""))


def passed(log: Log, a: Client, b: Client, scratch: int) -> Any:
    """A deadline that only moves the machine (the total is 1: it is idle then, and stays)."""
    return log.tick(50)


def expired(log: Log, a: Client, b: Client, scratch: int) -> Any:
    log.time += 2000
    return log.expire(a.id)


ACTIONS: dict[str, Action] = {
    "a command": lambda log, a, b, scratch: a.do(scratch, "add", 0),
    "a refused command": refused,
    "a keep-alive": lambda log, a, b, scratch: a.keep_alive(),
    "an acknowledgement": acknowledged,
    "opening again": opened_again,
    "opening": lambda log, a, b, scratch: log.client(),
    "an event to another": lambda log, a, b, scratch: a.do(scratch, "tell", [b.id], "x", 0, True),
    "a cut of another": lambda log, a, b, s: a.do(s, "tell", [b.id] * 99, "x", 0, False),
    "a deadline": passed,
    "a deadline set": lambda log, a, b, scratch: a.do(scratch, "later", "y", 99),
    "a deadline cleared": lambda log, a, b, scratch: a.do(scratch, "never", "empty:"),
    "a command by name": lambda log, a, b, scratch: a.do(named("s"), "hold"),
    "a command of one who has it not open": lambda log, a, b, s: log.client().do(s, "hold"),
    "opening a resource": lambda log, a, b, scratch: a.do(named("new"), "add", 1),
    "leaving": lambda log, a, b, scratch: b.do(0, "close", [scratch]),
    "deleting": lambda log, a, b, scratch: a.do(0, "delete", scratch),
    "closing": lambda log, a, b, scratch: b.close(),
    "expiring": expired,
    "an Initialize": lambda log, a, b, scratch: log.initialize(),
    "a restored backup": lambda log, a, b, scratch: log.batch(encode_restored(3)),
}


def two_clients() -> tuple[Log, Client, Client, int]:
    log = new_log()
    log.time = 5
    a, b = log.client(), log.client()
    scratch = a.open("s")
    a.do(scratch, "watch")
    a.do(scratch, "add", 1)
    a.do(scratch, "later", "empty:", 50)
    b.do(scratch, "hold")
    b.do(scratch, "watch")
    a.do(scratch, "hold")
    log.time = 10
    return log, a, b, scratch


@pytest.mark.parametrize("action", ACTIONS.values(), ids=list(ACTIONS))
def test_what_an_entry_changes_is_frozen_next_time(action: Action) -> None:
    log, a, b, scratch = two_clients()
    log.prefix.take(finish(log.mux.freeze()))
    assert finish(log.mux.freeze()).records.keys() == {(RecordKind.CORE, 0)}
    action(log, a, b, scratch)
    log.prefix.take(finish(log.mux.freeze()))
    assert log.prefix.kept == expected_records(log.mux)


@pytest.mark.parametrize("action", ACTIONS.values(), ids=list(ACTIONS))
def test_what_an_entry_changes_is_frozen_as_it_was_before(action: Action) -> None:
    log, a, b, scratch = two_clients()
    before = expected_records(log.mux)
    frozen = log.mux.freeze()
    action(log, a, b, scratch)
    log.prefix.take(finish(frozen))
    assert log.prefix.kept == before
    log.prefix.take(finish(log.mux.freeze()))
    assert log.prefix.kept == expected_records(log.mux)


def changed(log: Log) -> dict[RecordKey, bytes | None]:
    records = finish(log.mux.freeze()).records
    del records[RecordKind.CORE, 0]
    return records


def test_what_is_all_owed_to_entries_is_recorded_when_it_is_made_and_when_it_goes() -> None:
    log = new_log()
    client = log.client()
    shelf, tally = client.open("s", "shelf"), client.open("t", "tally")
    session = (RecordKind.SESSION, client.id)
    shelf_key, tally_key = (RecordKind.RESOURCE, shelf), (RecordKind.RESOURCE, tally)
    first = changed(log)
    assert list(map(bool, first.values())) == [True] * 3
    assert unpack(first[shelf_key] or b"") == [shelf, "s", "shelf", 1, {}, client.id, None, None]
    for resource in (shelf, tally):
        client.do(resource, "put", "a", 1)
        client.do(resource, "put", "a", 1)
    second = changed(log)
    assert second.keys() == {session, tally_key}
    assert unpack(second[tally_key] or b"")[6:] == [pack(1), None]
    client.do(0, "delete", shelf)
    assert changed(log)[shelf_key] is None
    assert changed(log) == {}


def test_what_comes_and_goes_within_a_period_leaves_nothing() -> None:
    log = new_log()
    changed(log)
    for _ in range(3):
        client = log.client()
        client.open("s")
        client.close()
    assert changed(log) == {}


# -- steps ----------------------------------------------------------------------------------------


def test_a_freeze_serialises_nothing_and_a_step_about_what_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = new_log()
    clients = [log.client() for _ in range(9)]
    made: list[int] = []
    record_of = freeze.record_of

    def counted(thing: Any, deadlines: Any) -> bytes:
        made.append(thing.id)
        return record_of(thing, deadlines)

    monkeypatch.setattr(freeze, "record_of", counted)
    found = log.mux.freeze()
    assert log.mux.freezing is found
    assert made == []
    assert not found.step(1)
    assert len(made) == 1
    clients[0].keep_alive()
    assert made[1:] == [clients[0].id], "copy on write"
    assert not found.step(400)
    assert 3 < len(made) < 9
    assert found.step(1 << 20)
    assert sorted(made) == [client.id for client in clients]
    assert found.step(1)
    found.result()
    assert log.mux.freezing is None


def test_there_is_one_freeze_at_a_time_and_it_ends_complete() -> None:
    log = new_log()
    log.client()
    found = log.mux.freeze()
    with pytest.raises(AssertionError, match="a freeze at 1 while that at 1 is under way"):
        log.mux.freeze()
    with pytest.raises(AssertionError, match="1 records of 1 are pending"):
        found.result()
    finish(found)
    with pytest.raises(AssertionError, match="the freeze at 1 has ended"):
        found.result()
    log.mux.freeze()


def test_what_goes_while_it_is_pending_was_there() -> None:
    log = new_log()
    client = log.client()
    client.open("s")
    expected = expected_records(log.mux)
    found = log.mux.freeze()
    client.close()
    records = finish(found).records
    assert records == expected
    assert changed(log) == {(RecordKind.SESSION, 1): None, (RecordKind.RESOURCE, 2): None}


def test_an_entry_is_trimmed_by_its_machine_while_there_is_one() -> None:
    log = new_log()
    client = log.client()
    shelf, plain = client.open("s", "shelf"), client.open("p")
    frozen = finish(log.mux.freeze())
    many = [["a", 1], ["b", 2]]
    assert frozen.trim(shelf, "put_many", [many], [1]) == ("put_many", [[None, ["b", 2]]])
    assert frozen.trim(shelf, "swap", ["a", 1, 2], [0]) == ("put", ["a", 2])
    assert frozen.trim(plain, "add", [1], [0]) == ("add", [1])
    client.do(0, "delete", shelf)
    assert frozen.trim(shelf, "put_many", [many], [1]) == ("put_many", [many])


# -- restoring ------------------------------------------------------------------------------------


def test_restoring_goes_step_by_step() -> None:
    log = new_log(LimitsConfig())
    client = log.client()
    shelf = client.open("s", "shelf")
    for number in range(4):
        client.do(shelf, "put_many", [[f"{number}.{at}", at] for at in range(2)])
        client.do(shelf, "put", f"{number}", 0)
    log.prefix.take(finish(log.mux.freeze()))
    assert list(Multiplexer.restoring(REGISTRY, SMALL, log.prefix)) == [0, 0, 0, 5, 8]
    mux = restore(log.prefix, REGISTRY, SMALL)
    assert mux.digest() == log.mux.digest()
    frozen = finish(mux.freeze())
    assert frozen.records.keys() == {(RecordKind.CORE, 0)}, "all of it counts as unchanged"
    assert not frozen.ledger.retained


def test_an_empty_state_restores() -> None:
    twin = PrefixTwin()
    mux = Multiplexer(REGISTRY, SMALL)
    twin.take(finish(mux.freeze()))
    assert restore(twin, REGISTRY, SMALL).digest() == mux.digest()


def test_items_of_resources_that_are_gone_are_passed_over() -> None:
    log = new_log()
    client = log.client()
    shelf = client.open("s", "shelf")
    client.do(shelf, "put", "a", 1)
    client.do(0, "delete", shelf)
    log.prefix.take(finish(log.mux.freeze()))
    log.prefix.live[3] = {0}
    assert restore(log.prefix, REGISTRY, SMALL).digest() == log.mux.digest()


CORE = pack([1, 1, 0, 0, 0])
SESSION = pack([5, b"x", 100, "", 0, 0, 0, 0, [], [0, 0, []], [77]])
IDLE = pack([5, b"x", 100, "", 0, 0, 0, 0, [], [0, 0, []], []])
RESOURCE = [2, "s", "scratch", 1, {}, 1, pack([0, [], [], []]), []]


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([], "without a record of the core"),
        ([(2, 2, pack(RESOURCE))], r"record 2 of kind 2 stands behind \(0, 0\)"),
        ([(1, 0, CORE), (1, 0, CORE)], r"record 0 of kind 1 stands behind \(1, 0\)"),
        ([(1, 0, CORE), (3, 5, IDLE), (2, 2, pack(RESOURCE))], r"stands behind \(3, 5\)"),
        ([(1, 0, b"")], "record 0 of kind 1, 0 bytes, is none"),
        ([(1, 0, b"\xc1")], "record 0 of kind 1, 1 bytes, is none"),
        ([(1, 0, pack([]))], "is none: ValueError"),
        ([(1, 0, pack([1, 2]))], "is none: ValueError"),
        ([(1, 0, pack([2, 1, 0, 0, 0]))], "version 2, this program knows 1"),
        ([(1, 0, CORE), (9, 0, CORE)], "record 0 of kind 9"),
        ([(1, 0, CORE), (2, 2, pack(3))], "is none: TypeError"),
        ([(1, 0, CORE), (2, 2, pack(RESOURCE[:5]))], "is none: TypeError"),
        ([(1, 0, CORE), (3, 5, SESSION)], "record 5 of kind 3, .* is none: KeyError: 77"),
        ([(1, 0, CORE), (3, 5, pack([5, b"x"]))], "is none: ValueError"),
    ],
)
def test_what_is_no_prefix_is_refused(records: list[tuple[int, int, bytes]], text: str) -> None:
    class Source(PrefixTwin):
        def records(self) -> Any:
            return iter(records)

    with pytest.raises(StorageCorrupt, match=text):
        restore(Source(), REGISTRY, SMALL)


class Stateful(Scratch):
    """What `Shelf` may have been before somebody changed it."""

    type_name = "shelf"


class Choosy(Shelf):
    def __init__(self, config: Any) -> None:
        raise ConfigError("not any more")


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ([Scratch], "resource 2: no resource type 'shelf' is registered"),
        ([Choosy], "resource 2: configuration of a shelf: not any more"),
        ([Stateful], r"shelf 's' \(resource 2\): its machine had another retention"),
    ],
)
def test_a_server_that_does_not_know_a_type_refuses_naming_it(
    kinds: list[type[Machine]], text: str
) -> None:
    log = new_log()
    log.client().open("s", "shelf")
    log.prefix.take(finish(log.mux.freeze()))
    with pytest.raises(UsageError, match=text):
        restore(log.prefix, Registry.of(kinds), SMALL)


def broken(*_: Any) -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("kind", "method", "text"),
    [
        (Scratch, "restore", r"restore\(\) of scratch 'p' \(resource 2\)"),
        (Tally, "restore_remainder", r"restore_remainder\(\) of tally 't' \(resource 4\)"),
        (Shelf, "restore_item", r"restore_item\('put'\) at entry 5 of shelf 's' \(resource 3\)"),
    ],
)
def test_a_machine_is_at_fault_where_it_cannot_be_restored(
    kind: type[Machine], method: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log()
    client = log.client()
    client.open("p")
    shelf = client.open("s", "shelf")
    client.open("t", "tally")
    client.do(shelf, "put", "a", 1)
    log.prefix.take(finish(log.mux.freeze()))
    monkeypatch.setattr(kind, method, broken)
    with pytest.raises(MachineFault, match=text + " failed: KeyError: 'a bug'"):
        restore(log.prefix, REGISTRY, SMALL)


def test_a_machine_at_fault_in_a_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log()
    log.client().open("t", "tally")
    monkeypatch.setattr(Tally, "remainder", broken)
    with pytest.raises(MachineFault, match=r"remainder\(\) of tally 't' .* KeyError: 'a bug'"):
        finish(log.mux.freeze())


# -- a backup, restored ---------------------------------------------------------------------------


def test_a_restored_backup_ends_all_sessions_and_begins_an_epoch() -> None:
    log = new_log()
    a, b, c = log.client(), log.client(), log.client()
    shelf = a.open("s", "shelf")
    a.do(shelf, "put", "a", 1)
    lock = a.open("lock")
    for client in (a, b, c):
        client.do(lock, "hold")
    applied = log.batch(encode_restored(7))
    index = log.mux.index
    assert applied.ended == [Ended(client.id, "restored", index) for client in (a, b, c)]
    assert not applied.dirty
    assert (log.mux.epoch, len(log.mux.sessions)) == (7, 0)
    assert log.query(0, "find", "lock") is None, "nobody needs it any more"
    assert log.query(shelf, "get", "a") == 1
    log.restart()
    assert log.mux.epoch == 7


@pytest.mark.parametrize("payload", [b"", b"\xc1", pack([]), pack([-1]), pack([True]), pack(["x"])])
def test_an_epoch_that_does_not_decode_is_ignored(payload: bytes) -> None:
    log = new_log()
    log.client()
    log.batch(Group(Kind.RESTORED, 1, payload))
    assert (log.mux.epoch, len(log.mux.sessions), log.mux.index) == (0, 1, 2)


class Store(Shelf):
    """Nothing but a dict."""

    def restore_item(
        self, context: RestoreContext, name: str, args: list[Any], ordinals: Sequence[int]
    ) -> None:
        self.things[args[0]] = args[1]


def test_items_are_restored_from_blocks_of_any_size() -> None:
    """What the storage gives: thousands of entries at once, and no `ordinals` among them."""

    class Large(PrefixTwin):
        def items(self) -> Any:
            for first in (10, 5010):
                rising = range(first, first + 5000)
                operations = [["put", [str(at), at]] for at in rising]
                yield Items(rising, [0] * 5000, [1] * 5000, [2] * 5000, operations, {})

    twin = Large()
    twin.kept[RecordKind.CORE, 0] = CORE
    shelf = pack([2, "s", "shelf", 1, {}, 1, None, None])
    twin.kept[RecordKind.RESOURCE, 2] = shelf
    mux = restore(twin, Registry.of([Store]), SMALL)
    machine = mux.directory.resources[2].machine
    assert isinstance(machine, Store)
    assert len(machine.things) == 10_000
