"""Bugs that cleaned logs have had elsewhere: sessions, events, replicas that differ."""

from random import Random

from folkmoot.core.batch import decode_batch
from folkmoot.core.config import LimitsConfig
from tests.core.prefix_twin import PrefixTwin, finish, restore
from tests.core.scratch import Client, Log, named

NEW = [named("new"), "who", []]


def session_of_cleaned_commands() -> tuple[Log, Client, int]:
    """A client all of whose entries are below a compaction index, and kept by nothing else."""
    log = Log(LimitsConfig(session_window=64))
    client = log.client("cleaned")
    resource = client.open("sum")
    for number in range(1, 6):
        client.do(resource, "add", number)
    log.restart()
    return log, client, resource


def test_bug_e11_the_next_command_of_a_cleaned_session_is_taken_and_counted_once() -> None:
    log, client, resource = session_of_cleaned_commands()
    assert client.do(resource, "add", 100) == 115
    (again,) = client.send([resource, "add", [100]], first=client.sequence)
    assert again.values == [115], "a repeated command got another answer"
    assert client.do(resource, "add", 1) == 116, "it was done again"
    assert log.replay().digest() == log.mux.digest()


def test_bug_e11_a_command_whose_entry_was_cleaned_is_answered_when_it_comes_again() -> None:
    log, client, resource = session_of_cleaned_commands()
    again = client.send([resource, "add", [4]], [resource, "add", [5]], first=5)
    assert [value for results in again for value in results.values] == [10, 15]
    assert not any(results.errors for results in again)
    log.restart()
    assert log.query(resource, "get") == 15, "it was done again"


def test_bug_e12_events_of_cleaned_entries_wait_for_their_client() -> None:
    log = Log()
    watcher, writer = log.client("watcher"), log.client("writer")
    resource = watcher.open("sum")
    watcher.do(resource, "watch")
    for number in (1, 2, 3):
        writer.do(resource, "add", number)
    told = watcher.events()
    assert len(told) == 3
    watcher.event_index = told[0][0]
    watcher.keep_alive()
    for _ in range(3):
        log.restart()
        assert watcher.events() == told[1:], "an event was lost, repeated or renumbered"
    watcher.event_index = told[2][0]
    watcher.keep_alive()
    log.restart()
    assert watcher.events() == []


def test_bug_e15_servers_that_compact_at_other_indexes_stay_equal() -> None:
    rng = Random(15)
    log = Log()
    clients = [log.client(name) for name in ("a", "b", "c")]
    resource = clients[0].open("sum")
    for client in clients:
        client.do(resource, "watch")
    twins = [PrefixTwin() for _ in range(3)]
    servers = [log.replay() for _ in twins]
    for data in log.batches:
        for twin in twins:
            twin.batch(decode_batch(data))
    restarts = 0
    for _ in range(60):
        client = rng.choice(clients)
        operation = rng.choice(([resource, "add", [2]], [resource, "push", [1]], NEW))
        client.send(operation)
        client.event_index = max((event[0] for event in client.events()), default=0)
        for at, server in enumerate(servers):
            server.apply(decode_batch(log.batches[-1]))
            twins[at].batch(decode_batch(log.batches[-1]))
            if rng.random() < 0.2:
                twins[at].take(finish(server.freeze()))
                servers[at] = restore(twins[at], log.registry, log.limits)
                restarts += 1
        assert len({server.digest() for server in servers} | {log.mux.digest()}) == 1
    assert restarts > 20
