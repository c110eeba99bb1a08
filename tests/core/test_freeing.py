"""Which commands are taken while the disk is almost full: the whole table, machine by machine."""

from __future__ import annotations

from typing import Any

import pytest

from folkmoot.core.batch import Group, Kind
from folkmoot.core.config import LimitsConfig
from folkmoot.core.errors import UsageError
from folkmoot.core.machine import Context, Machine, QueryContext, Registry, command, frees, query
from folkmoot.core.requests import encode_commands
from folkmoot.core.room import Shortage, sift
from folkmoot.primitives import BUILTIN_MACHINES
from tests.core.scratch import Log

FREEING = {
    "counter": {"withdraw", "unsubscribe"},
    "election": {"withdraw", "release", "resign", "evict", "unsubscribe"},
    "lock": {"withdraw", "release", "break_lock", "unsubscribe"},
    "map": {"delete", "pop", "clear", "unsubscribe"},
    "topic": {"unsubscribe", "acknowledge", "withdraw", "delete_cursor"},
}
GROWING = {
    "counter": {"add", "set", "compare_and_set", "wait_for", "subscribe"},
    "election": {"campaign", "proclaim", "promote", "transfer", "subscribe"},
    "lock": {"acquire", "subscribe"},
    "map": {"set", "create", "replace", "set_many", "touch", "subscribe"},
    "topic": {"publish", "subscribe", "consume"},
}


@pytest.mark.parametrize("kind", BUILTIN_MACHINES, ids=lambda kind: kind.type_name)
def test_every_command_of_a_primitive_is_known_to_free_or_not_to(kind: type[Machine]) -> None:
    found = {name for name, operation in kind.commands.items() if operation.frees}
    assert found == FREEING[kind.type_name]
    assert kind.commands.keys() - found == GROWING[kind.type_name]


class Shelf(Machine):
    """Puts and drops."""

    type_name = "shelf"

    def __init__(self, config: Any) -> None:
        self.items: list[str] = []

    @command
    def put(self, context: Context, item: str) -> int:
        self.items.append(item)
        return context.index

    @frees
    @command
    def drop(self, context: Context, item: str) -> bool:
        if item not in self.items:
            return False
        self.items.remove(item)
        return True

    @query
    def all(self, context: QueryContext) -> list[str]:
        return self.items

    def snapshot(self) -> Any:
        return self.items

    def restore(self, data: Any) -> None:
        self.items = list(data)


class Boxes(Shelf):
    """Inherits what frees, unless it says otherwise."""

    type_name = "boxes"

    @command
    def drop(self, context: Context, item: str) -> bool:
        self.items.append("dropped " + item)
        return True


def log() -> Log:
    return Log(LimitsConfig(), Registry.of([Shelf, Boxes]))


def test_it_is_the_method_that_is_called_that_frees_or_does_not() -> None:
    assert [Shelf.commands[name].frees for name in ("put", "drop")] == [False, True]
    assert not Boxes.commands["drop"].frees


def test_only_a_command_can_be_marked_as_freeing() -> None:
    with pytest.raises(UsageError, match=r"Wrong\.look is marked @frees and is no @command"):

        class Wrong(Machine):
            @frees
            @query
            def look(self, context: QueryContext) -> None: ...


def test_an_operation_is_looked_up_by_id_by_name_or_in_the_directory() -> None:
    world = log()
    client = world.client()
    shelf, boxes = client.open("s", "shelf"), client.open("b", "boxes")
    is_freeing = world.mux.directory.is_freeing
    assert is_freeing([shelf, "drop", ["x"]])
    assert not is_freeing([shelf, "put", ["x"]])
    assert not is_freeing([shelf, "no such", []])
    assert not is_freeing([boxes, "drop", ["x"]])
    assert is_freeing([["new", "shelf", 1, {}], "drop", ["x"]])
    assert not is_freeing([["new", "shelf", 1, {}], "put", ["x"]])
    assert not is_freeing([["new", "no such", 1, {}], "drop", ["x"]])
    assert [is_freeing([0, name, []]) for name in ("open", "close", "delete", "no_room")] == [
        *(False, True, True, False)
    ]
    assert is_freeing([shelf, "drop", ["x"], [9, 9]]), "with a fence, too"


def test_what_is_for_a_resource_that_is_gone_goes_on_to_hear_so() -> None:
    """Else a client would try to release a deleted lock for as long as the disk is low."""
    assert log().mux.directory.is_freeing([77, "put", ["x"]])


def test_a_marker_uses_its_sequence_changes_nothing_and_answers_storage_full() -> None:
    world = log()
    client = world.client()
    shelf = client.open("s", "shelf")
    client.do(shelf, "put", "a")
    operations = [[shelf, "put", ["b"]], [shelf, "drop", ["a"]], [["t", "shelf", 1, {}], "put", []]]
    group = client.group(*operations)
    group.decoded = operations
    short = Shortage(2, 900, 1000)
    taken = sift(group, short, world.mux.directory.is_freeing, is_new=True)
    assert taken is not None
    (results,) = world.batch(taken).results
    assert results.values == [None, True, None]
    assert results.errors == [[at, "storage_full", short.message(), None] for at in (0, 2)]
    assert world.query(shelf, "all") == []
    assert world.query(0, "find", "t") is None
    assert client.do(shelf, "put", "c") == world.mux.index, "the next sequence is the next"
    world.restart()
    (again,) = client.send(*operations, first=3)
    assert (again.values, again.errors) == (results.values, results.errors), "kept like any answer"


def test_of_a_command_and_its_marker_the_first_in_the_log_counts() -> None:
    """A client sends again, through another server, what the log may have already."""
    world = log()
    short = Shortage(2, 900, 1000)

    def both(marker_first: bool) -> list[Any]:
        client = world.client()
        shelf = client.open("s", "shelf")
        payload = encode_commands(client.id, 2, 0, 0, [[shelf, "put", ["x"]]])
        real = Group(Kind.COMMANDS, 1, payload, [[shelf, "put", ["x"]]])
        marker = sift(real, short, world.mux.directory.is_freeing, is_new=False)
        assert marker is not None
        pair = [marker, real] if marker_first else [real, marker]
        found = [results for group in pair for results in world.batch(group).results]
        assert found[0].values == found[1].values
        assert found[0].errors == found[1].errors
        return [len(world.query(shelf, "all")), bool(found[0].errors)]

    assert both(marker_first=True) == [0, True]
    assert both(marker_first=False) == [1, False]
