"""The rules of session events, one test each, and the bugs that others have had with them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.applied import Ended
from folkmoot.core.config import LimitsConfig
from folkmoot.core.events import KEPT, PendingEvents
from folkmoot.transport.codec import unpack
from tests.core.scratch import Client, Log, named

SUM = named("sum")
MAX = 16


def watcher_and_writer() -> tuple[Client, Client, int]:
    log = Log(LimitsConfig(session_events_max=MAX))
    watcher, writer = log.client("watcher"), log.client("writer")
    resource = watcher.open("sum")
    watcher.do(resource, "watch")
    return watcher, writer, resource


def test_all_events_for_a_session_at_one_index_form_one_batch() -> None:
    watcher, writer, resource = watcher_and_writer()
    writer.do(resource, "tell", [watcher.id, watcher.id], "x", 1, False)
    session = watcher.log.mux.sessions.get(watcher.id)
    assert session is not None
    ((index, previous, events),) = session.events_after(0)
    assert (index, previous, len(events)) == (5, 0, 2)
    assert unpack(events[0]) == [resource, "x", 1]


def test_events_are_kept_until_acknowledged_by_a_keep_alive_or_by_any_command() -> None:
    watcher, writer, resource = watcher_and_writer()
    indexes = [writer.do(resource, "who")[0] for _ in range(1)]
    for _ in range(3):
        writer.do(resource, "add", 1)
    indexes = [event[0] for event in watcher.events()]
    watcher.event_index = indexes[0]
    watcher.keep_alive()
    assert [event[0] for event in watcher.events()] == indexes[1:]
    watcher.event_index = indexes[1]
    watcher.do(resource, "who")
    assert [event[0] for event in watcher.events()] == indexes[2:]
    assert watcher.events()[0][1] == indexes[1], "chained to the batch before"


def test_events_go_to_living_sessions_only() -> None:
    watcher, writer, resource = watcher_and_writer()
    writer.do(resource, "tell", [77, watcher.id], "x", None, True)
    assert watcher.kinds() == ["x"]
    watcher.close()
    assert writer.do(resource, "tell", [watcher.id], "x", None, True) is None


def test_a_payload_that_goes_to_many_is_encoded_once() -> None:
    log = Log()
    clients = [log.client() for _ in range(5)]
    clients[0].do(SUM, "tell", [client.id for client in clients], "x", b"payload", False)
    events = [session.events_after(0)[0][2][0] for session in log.mux.sessions]
    assert all(event is events[0] for event in events)


def test_sets_of_sessions_are_published_in_order() -> None:
    log = Log()
    clients = [log.client() for _ in range(8)]
    resource = clients[0].open("sum")
    context = log.mux._frame.context
    context.resource = log.mux.directory.resources[resource]
    log.mux._frame.begin(0)
    context.index = log.mux.index + 1
    assert list({1, 8}) == [8, 1], "the order that a small set happens to have"
    context.publish({1, 8}, "x")
    assert list(context.dirty) == [1, 8]


def test_bug_h3_a_new_leader_has_the_same_events_and_no_others() -> None:
    watcher, writer, resource = watcher_and_writer()
    for number in range(1, 5):
        writer.do(resource, "add", number)
    before = watcher.events()
    watcher.log.restart()
    assert watcher.events() == before
    watcher.log.mux = watcher.log.replay()
    assert watcher.events() == before


def test_bug_h6_a_session_that_does_not_read_is_cut_and_nobody_else_is_slowed() -> None:
    watcher, writer, resource = watcher_and_writer()
    reader = watcher.log.client("reader")
    reader.do(resource, "watch")
    got: list[int] = []
    for _ in range(10 * MAX):
        writer.low_water = writer.sequence
        writer.do(resource, "add", 1)
        got += [event[4][1] for event in reader.events(reader.event_index)]
        reader.event_index = reader.events()[-1][0]
        reader.keep_alive()
    assert got == list(range(1, 10 * MAX + 1))
    assert watcher.kinds() == ["resync"]
    watcher.do(resource, "watch")
    writer.do(resource, "add", 1)
    assert watcher.kinds() == ["resync", "added"], "it may subscribe again"


def test_a_cut_keeps_grants_and_names_every_resource_that_lost_something() -> None:
    watcher, writer, resource = watcher_and_writer()
    other = watcher.open("other")
    watcher.do(other, "watch")
    silent = watcher.open("silent")
    unsubscribed = watcher.open("unsubscribed")
    writer.do(unsubscribed, "tell", [watcher.id], "stray", 0, False)
    writer.do(resource, "tell", [watcher.id], "grant", 1, True)
    writer.do(silent, "tell", [watcher.id], "grant", 2, True)
    writer.do(resource, "tell", [watcher.id] * (MAX - 2), "noise", 0, False)
    assert [event[2:4] for event in watcher.events()] == [
        [resource, "grant"],
        [silent, "grant"],
        [resource, "resync"],
        [other, "resync"],
        [unsubscribed, "resync"],
    ]


def test_a_session_is_cut_by_bytes_as_well_as_by_number() -> None:
    log = Log(LimitsConfig(session_event_bytes_max=4096))
    client = log.client()
    resource = client.open("sum")
    client.do(resource, "tell", [client.id] * 4, "x", b"x" * 1000, False)
    assert client.kinds() == ["x"] * 4
    client.do(resource, "tell", [client.id], "x", b"x" * 1000, False)
    assert client.kinds() == ["resync"]


def test_events_of_a_deleted_resource_are_dropped_without_a_resync() -> None:
    watcher, writer, resource = watcher_and_writer()
    writer.do(resource, "tell", [watcher.id] * MAX, "x", 0, False)
    writer.do(0, "delete", resource)
    assert watcher.kinds() == ["deleted"]


def test_one_entry_cannot_fill_memory_before_it_is_settled() -> None:
    log = Log(LimitsConfig(session_events_max=MAX))
    client = log.client()
    resource = client.open("sum")
    session = log.mux.sessions.get(client.id)
    context = log.mux._frame.context
    assert session is not None
    log.mux._frame.begin(0)
    context.index = log.mux.index + 1
    context.resource = log.mux.directory.resources[resource]
    context.publish([client.id] * 1000, "x")
    assert session.events.count == MAX + 1
    assert context.overflowed == {client.id: {resource}}
    context.publish([client.id] * 3, "grant", keep=True)
    assert session.events.count == MAX + 4, "what may not be dropped is not"


def test_what_is_published_after_the_overflow_in_the_same_entry_is_dropped_too() -> None:
    watcher, writer, resource = watcher_and_writer()
    writer.do(resource, "tell", [watcher.id] * 100, "x", 0, False)
    assert watcher.kinds() == ["resync"]
    assert watcher.events()[0][1] == 0


def test_a_session_that_cannot_take_its_grants_is_expired_in_that_entry_after_its_command() -> None:
    log = Log(LimitsConfig(session_events_max=MAX))
    lazy, next_one, writer = log.client(), log.client(), log.client()
    resource = lazy.open("lock")
    lazy.do(resource, "hold")
    next_one.do(resource, "hold")
    operation = [resource, "tell", [[lazy.id] * (MAX + 1), "grant", 0, True]]
    applied = log.batch(writer.group(operation, [resource, "add", [1]]))
    assert applied.ended == [Ended(lazy.id, "expired", 7)]
    assert list(applied.dirty) == [next_one.id]
    assert [event[0::3] for event in next_one.events()] == [[7, "grant"]]
    assert applied.results[0].values == [None, 1]


def test_a_session_that_overflows_by_its_own_command_loses_the_rest_of_its_group() -> None:
    log = Log(LimitsConfig(session_events_max=MAX))
    client = log.client()
    resource = client.open("sum")
    add = [resource, "add", [1]]
    flood = [resource, "tell", [[client.id] * (MAX + 1), "grant", 0, True]]
    applied = log.batch(client.group(add, flood, add, add))
    assert applied.ended == [Ended(client.id, "expired", 4)]
    done, refused = applied.results
    assert (done.values, done.index) == ([1, None], 4)
    assert [(error[0], error[1]) for error in refused.errors or ()] == [
        (0, "session_expired"),
        (1, "session_expired"),
    ]
    assert (refused.first_sequence, refused.index) == (4, 6)
    assert log.query(SUM, "get") == 1
    assert applied.dirty == {}


def test_sessions_that_overflow_one_another_while_they_end_all_settle_in_one_entry() -> None:
    """Each end publishes to the others, which are at their bounds: they fall one after another."""
    log = Log(LimitsConfig(session_events_max=MAX))
    clients = [log.client() for _ in range(6)]
    writer = log.client()
    resource = clients[0].open("lock")
    for client in clients:
        client.do(resource, "hold")
    for client in clients:
        writer.do(resource, "tell", [client.id] * MAX, "grant", 0, True)
    applied = clients[0].close()
    assert [(ended.session_id, ended.reason) for ended in applied.ended] == [
        (clients[0].id, "closed"),
        *[(client.id, "expired") for client in clients[1:]],
    ]
    assert applied.dirty == {}
    assert log.query(SUM, "get") == 0


def test_sessions_that_overflow_in_one_entry_are_settled_in_order_of_their_ids() -> None:
    log = Log(LimitsConfig(session_events_max=MAX))
    a, b, c = log.client(), log.client(), log.client()
    flood = [b.id] * (MAX + 1) + [a.id] * (MAX + 1)
    applied = log.batch(c.group([SUM, "tell", [flood, "grant", 0, True]]))
    assert [ended.session_id for ended in applied.ended] == [a.id, b.id]


def test_an_overflow_by_a_deadline_is_settled_in_its_entry_even_if_that_does_nothing_else() -> None:
    watcher, writer, resource = watcher_and_writer()
    writer.do(resource, "tell", [watcher.id] * MAX, "x", 0, False)
    writer.do(resource, "later", "due", 50)
    watcher.log.time = 50
    refused = writer.group([SUM, "add", [1]], first=99)
    index = watcher.log.mux.index
    watcher.log.batch(refused, writer.group([SUM, "who", []]))
    assert [event[0::3] for event in watcher.events()] == [[index + 1, "resync"]]


def test_a_session_that_ends_at_a_repeated_command_does_nothing_with_the_new_ones_behind() -> None:
    log = Log(LimitsConfig(session_events_max=MAX))
    holder, waiter = log.client(), log.client()
    lock = holder.open("lock")
    holder.do(lock, "hold")
    waiter.do(lock, "hold")
    holder.do(lock, "tell", [waiter.id] * MAX, "grant", 0, True)
    holder.do(lock, "later", "release", 50)
    log.time = 50
    repeated, new = [lock, "hold", []], [lock, "add", [1]]
    applied = log.batch(waiter.group(repeated, new, first=1))
    assert applied.ended == [Ended(waiter.id, "expired", log.mux.index - 1)]
    cached, refused = applied.results
    assert (cached.values, refused.first_sequence) == ([0], 2)
    assert [error[1] for error in refused.errors or ()] == ["session_expired"]
    assert log.query(lock, "get") == 0


def test_bug_h8_nothing_of_a_dead_session_is_left_anywhere() -> None:
    log = Log()
    dead, other = log.client(timeout_ms=10), log.client()
    for name in ("a", "b", "c"):
        resource = dead.open(name)
        for command in ("hold", "watch"):
            dead.do(resource, command)
        other.do(resource, "hold")
    log.time = 10
    log.expire(dead.id)
    assert log.mux.sessions.get(dead.id) is None
    for entry in log.mux.directory.resources.values():
        assert entry.sessions == {other.id}
        _, _, queue, watchers, index, _ = log.query(entry.id, "state")
        assert (queue, watchers, index) == ([[other.id, index]], [], log.mux.index)
    assert other.kinds() == ["grant"] * 3


# -- the chain, with a client at its end ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_bug_h1_over_reconnects_and_cuts_no_event_is_lost_or_repeated(seed: int) -> None:
    """A client takes batches by the rule of `core/events.py`, and reconnects at will."""
    generator = random.Random(seed)
    pending = PendingEvents()
    last = index = 0
    kept_sent: list[int] = []
    kept_got: list[int] = []
    loose_sent: list[int] = []
    loose_got: list[int] = []
    resynced = 0
    for _ in range(300):
        index += generator.randint(1, 3)
        match generator.randrange(8):
            case 0 | 1 | 2:
                pending.add(index, b"kept %d" % index, KEPT)
                kept_sent.append(index)
            case 3 | 4:
                pending.add(index, b"loose %d" % index, 7)
                loose_sent.append(index)
            case 5:
                pending.acknowledge(generator.choice([last, last, 0, last // 2]))
            case 6 if generator.random() < 0.3:
                if pending.drop():
                    pending.add(index, b"resync %d" % index, KEPT)
            case _:
                # It reconnects, names what it has, and some of what comes reaches it.
                batches = pending.after(generator.choice([last, max(0, last - 3)]))
                batches = [b for b in batches if b[0] > pending.acked]
                for at, previous, events in batches[: generator.randint(0, 9)]:
                    assert previous <= last or at <= last, f"a false gap: {previous} after {last}"
                    if at <= last:
                        continue
                    last = at
                    for event in events:
                        kind, number = event.split()
                        if kind == b"kept":
                            kept_got.append(int(number))
                        elif kind == b"resync":
                            resynced = at
                        else:
                            missed = {n for n in loose_sent if resynced < n < at}
                            assert missed <= set(loose_got), "dropped, and nobody said so"
                            loose_got.append(int(number))
        assert kept_got == kept_sent[: len(kept_got)], "lost, repeated or out of order"
        assert loose_got == sorted(set(loose_got)), "repeated or out of order"
    for _, _, events in pending.after(last):
        kept_got += [int(event.split()[1]) for event in events if event.startswith(b"kept")]
    assert kept_got == kept_sent


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "add", "ack", "drop"]), st.integers(0, 40), st.booleans())
    )
)
def test_pending_events_keep_their_invariants(steps: list[tuple[str, int, bool]]) -> None:
    pending = PendingEvents()
    index = 0
    for what, number, same_entry in steps:
        if what == "add":
            index += 0 if same_entry and index else 1
            pending.add(index, b"x" * number, number % 3)
        elif what == "ack":
            pending.acknowledge(min(number, index - 1))
        else:
            assert KEPT not in pending.drop()
        batches = pending.after(0)
        assert pending.count == sum(len(events) for _, _, events in batches)
        assert pending.size_bytes == sum(len(event) for _, _, events in batches for event in events)
        below = pending.acked
        for at, previous, events in batches:
            assert previous <= below < at or previous == below
            assert events
            below = at
        assert pending.acked <= below <= max(pending.last, below)
        copy = PendingEvents()
        copy.restore(pending.snapshot())
        assert copy.snapshot() == pending.snapshot()
        assert (copy.count, copy.size_bytes) == (pending.count, pending.size_bytes)
