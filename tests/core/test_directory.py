"""The rules of the directory and of multiplexing, one test each."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.config import LimitsConfig
from folkmoot.core.deadlines import Deadlines
from folkmoot.core.directory import LIST_MAX, Directory
from folkmoot.core.errors import BadCommand, CommandError
from folkmoot.core.freeze import Changes
from folkmoot.core.resource import Resource
from folkmoot.core.sessions import SessionTable
from tests.core.scratch import REGISTRY, Client, Log, named


def rows(log: Log) -> list[list[Any]]:
    found: list[list[Any]] = log.query(0, "list", "", "", LIST_MAX)
    return found


def code(answer: Any) -> str:
    """Return the code of an answer that is [code, message, data]."""
    assert type(answer) is list, answer
    assert type(answer[0]) is str, answer
    return answer[0]


# -- opening --------------------------------------------------------------------------------------


def test_a_resources_id_is_the_index_of_the_entry_that_created_it() -> None:
    client = Log().client()
    assert client.do(0, "open", "a", "scratch", 1, {}) == [2, None, None]
    assert client.do(0, "open", "b", "scratch", 1, {}) == [3, None, None]


def test_opening_is_idempotent_and_rides_along_with_the_first_operation() -> None:
    log = Log()
    a, b = log.client(), log.client()
    assert a.do(named("x"), "add", 5) == [3, 5, None]
    assert a.do(named("x"), "add", 5) == [3, 10, None]
    assert b.do(0, "open", "x", "scratch", 1, {}) == [3, None, None]
    assert rows(log) == [["x", 3, "scratch", 1, {}, 2]]


def test_a_name_with_another_type_is_refused_naming_both_types() -> None:
    client = Log().client()
    client.open("x")
    answers = [
        client.do(named("x", "other"), "add", 1),
        client.do(0, "open", "x", "other", 1, {}),
        client.do(0, "open", "x", "no such type", 1, {}),
    ]
    for answer in answers:
        assert code(answer) == "resource_type"
        assert "'x' is a scratch, not a" in answer[1]
    with pytest.raises(CommandError, match="'x' is a scratch, not a other"):
        client.log.query(named("x", "other"), "get")


def test_an_unknown_type_or_version_is_refused() -> None:
    client = Log().client()
    for type_name, version in (("nothing", 1), ("scratch", 3), ("scratch", 0)):
        assert code(client.do(0, "open", "x", type_name, version, {})) == "bad_command"
        with pytest.raises(BadCommand):
            client.log.query(named("x", type_name, version), "get")
    assert rows(client.log) == []


def test_a_differing_configuration_is_a_note_that_names_the_difference() -> None:
    client = Log().client()
    first = {"start": 1, "note": "n"}
    assert client.do(0, "open", "x", "scratch", 1, first) == [2, None, None]
    assert client.do(0, "open", "x", "scratch", 1, first) == [2, None, None]
    answer = client.do(0, "open", "x", "scratch", 2, first)
    assert answer == [2, None, "scratch 'x' exists: version is 1, not 2"]
    answer = client.do(["x", "scratch", 2, {"start": 2, "extra": 0}], "add", 1)
    assert answer == [
        2,
        2,
        "scratch 'x' exists: version is 1, not 2; extra is not set, and 0 was asked for; "
        "note is 'n', and was not asked for; start is 1, not 2",
    ]
    assert rows(client.log) == [["x", 2, "scratch", 1, first, 1]]


def test_a_configuration_that_the_machine_refuses_creates_nothing() -> None:
    client = Log().client()
    answer = client.do(named("x", "scratch", bad=1), "add", 1)
    assert code(answer) == "bad_command"
    assert "scratch is configured by start, not by ['bad']" in answer[1]
    assert rows(client.log) == []


@pytest.mark.parametrize(("depth", "taken"), [(3, True), (4, True), (5, False)])
def test_a_configuration_is_no_deeper_than_a_listing_can_carry(depth: int, taken: bool) -> None:
    config: Any = 0
    for _ in range(depth - 1):
        config = [config]
    client = Log().client()
    answer = client.do(named("x", note=config), "add", 1)
    assert (answer[1] == 1) if taken else (code(answer) == "bad_command")
    assert len(rows(client.log)) == taken


@pytest.mark.parametrize(
    ("name", "taken"),
    [("", False), ("x" * 16, True), ("x" * 17, False), ("ä" * 8, True), ("ä" * 9, False)],
)
def test_a_name_has_a_length_limit_in_bytes(name: str, taken: bool) -> None:
    client = Log(LimitsConfig(name_bytes_max=16)).client()
    answer = client.do(named(name), "add", 1)
    assert (answer == [2, 1, None]) if taken else (code(answer) == "limit_exceeded")
    assert len(rows(client.log)) == taken


def test_no_more_resources_than_the_limit() -> None:
    client = Log(LimitsConfig(resources_max=2)).client()
    a = client.open("a")
    client.open("b")
    assert code(client.do(0, "open", "c", "scratch", 1, {})) == "limit_exceeded"
    assert code(client.do(named("c"), "add", 1)) == "limit_exceeded"
    assert client.do(named("a"), "add", 1)[0] == a
    client.do(0, "delete", a)
    assert client.do(named("c"), "add", 1)[1] == 1


def test_an_operation_that_fails_neither_creates_nor_opens() -> None:
    log = Log()
    a, b = log.client(), log.client()
    assert code(a.do(named("x"), "add", 0)) == "condition_failed"
    assert code(a.do(named("x"), "no such command")) == "bad_command"
    assert code(a.do(named("x"), "add", "no number")) == "bad_command"
    assert rows(log) == []
    resource = a.open("x")
    assert code(b.do(resource, "add", 0)) == "condition_failed"
    assert code(b.do(named("x"), "add", 0)) == "condition_failed"
    assert rows(log)[0][5] == 1


# -- closing, deleting, collecting ----------------------------------------------------------------


def test_a_command_by_id_opens_so_that_the_machine_hears_of_the_end() -> None:
    log = Log()
    a, b = log.client(), log.client()
    resource = a.open("x")
    assert b.do(resource, "hold") == 4
    a.do(resource, "hold")
    b.close()
    assert a.kinds() == ["grant"]


def test_closing_gives_up_what_the_session_has_in_the_resource_and_nothing_else() -> None:
    log = Log()
    a, b = log.client(), log.client()
    x, y = a.open("x"), a.open("y")
    for resource in (x, y):
        a.do(resource, "hold")
        b.do(resource, "hold")
    assert a.do(0, "close", [x, x, 99]) is None
    assert [event[2:4] for event in b.events()] == [[x, "grant"]]
    assert [row[5] for row in rows(log)] == [1, 2]
    assert code(a.do(0, "close", ["x"])) == "bad_command"


def test_deleting_tells_all_who_have_it_open_and_later_operations_say_so() -> None:
    log = Log()
    a, b, c = log.client(), log.client(), log.client()
    x = a.open("x")
    b.open("x")
    a.do(x, "later", "x", 50)
    assert c.do(0, "delete", x) is None
    assert (a.kinds(), b.kinds(), c.kinds()) == (["deleted"], ["deleted"], [])
    assert a.events()[0][2] == x
    assert code(a.do(x, "add", 1)) == "resource_deleted"
    assert code(a.do(0, "delete", x)) == "resource_deleted"
    with pytest.raises(CommandError, match=f"no resource {x}"):
        log.query(x, "get")
    assert log.mux.next_deadline() is None
    log.tick(100)
    assert a.kinds() == ["deleted"]


def test_bug_i6_a_name_made_anew_is_another_resource_of_any_type() -> None:
    log = Log()
    a, b = log.client(), log.client()
    old = a.open("x")
    token = a.do(old, "hold")
    b.do(0, "delete", old)
    new = b.open("x", "other")
    assert new > old
    assert code(a.do(old, "add", 1)) == "resource_deleted"
    assert code(a.do(new, "add", 1, fence=[old, token])) == "fenced"
    assert b.do(new, "hold") > token
    assert rows(log) == [["x", new, "other", 1, {}, 1]]


def test_what_nobody_has_open_and_nobody_needs_is_collected_in_that_entry() -> None:
    log = Log()
    a, b = log.client(), log.client()
    x, full = a.open("x"), a.open("full")
    a.do(full, "add", 1)
    b.open("x")
    a.do(0, "close", [x, full])
    assert [row[0] for row in rows(log)] == ["full", "x"]
    b.close()
    assert [row[0] for row in rows(log)] == ["full"]


def test_a_deadline_that_empties_what_nobody_has_open_collects_it() -> None:
    log = Log()
    client = log.client()
    x = client.open("x")
    client.do(x, "add", 1)
    client.do(x, "later", "empty:", 100)
    client.do(x, "later", "more", 200)
    client.close()
    assert len(rows(log)) == 1
    log.tick(100)
    assert rows(log) == []
    assert log.mux.next_deadline() is None, "its other deadlines went with it"
    log.tick(500)


def test_collecting_looks_at_nothing_but_what_was_left() -> None:
    log = Log()
    client = log.client()
    for number in range(50):
        client.low_water = client.sequence
        client.open(f"r{number}")
    asked = 0
    for resource in log.mux.directory.resources.values():

        def idle() -> bool:
            nonlocal asked
            asked += 1
            return False

        resource.machine.idle = idle  # type: ignore[method-assign]
    other = log.client()
    other.do(named("r1"), "add", 1)
    log.tick(10)
    assert asked == 0
    other.close()
    assert asked == 0, "the first client has it open still"
    client.do(0, "close", [log.query(0, "find", "r7")[1]])
    assert asked == 1
    client.do(0, "close", [log.query(0, "find", "r8")[1]])
    assert asked == 2


# -- looking --------------------------------------------------------------------------------------


def test_find_and_count() -> None:
    log = Log()
    client = log.client()
    client.open("x", start=3)
    assert log.query(0, "find", "x") == ["x", 2, "scratch", 1, {"start": 3}, 1]
    assert log.query(0, "find", "y") is None
    assert log.query(0, "count") == 1


@pytest.mark.parametrize("limit", [0, -1, LIST_MAX + 1])
def test_a_page_has_a_limit(limit: int) -> None:
    with pytest.raises(BadCommand, match=str(limit)):
        Log().query(0, "list", "", "", limit)


NAMES = st.text("abé\U0001f600", min_size=1, max_size=3)


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "list"]), NAMES, NAMES | st.just(""))),
    st.integers(1, 4),
)
def test_listing_agrees_with_sorting_all_names(
    steps: list[tuple[str, str, str]], limit: int
) -> None:
    deadlines = Deadlines()
    directory = Directory(REGISTRY, LimitsConfig(), SessionTable(), deadlines, Changes(deadlines))
    plain: dict[str, Resource] = {}
    for index, (what, name, after) in enumerate(steps, 1):
        if what == "add" and name not in plain:
            machine = directory.new_machine("scratch", {})
            plain[name] = Resource(index, name, "scratch", 1, {}, 0, machine)
            directory.add(plain[name])
        elif what == "remove" and name in plain:
            directory.remove(plain.pop(name))
        elif what == "list":
            prefix = name[:-1]
            found = directory.list(None, prefix, after, limit)  # type: ignore[arg-type]
            right = sorted(n for n in plain if n.startswith(prefix) and n > after)[:limit]
            assert [row[0] for row in found] == right


def test_pages_follow_one_another_to_the_end() -> None:
    log = Log(LimitsConfig(session_window=1000))
    client = log.client()
    names = [f"{letter}{number}" for letter in "ba" for number in range(10)]
    client.send(*[[named(name), "add", [1]] for name in names])
    found: list[str] = []
    while page := log.query(0, "list", "a", found[-1] if found else "", 3):
        found += [row[0] for row in page]
    assert found == sorted(name for name in names if name[0] == "a")


def test_the_directory_checks_its_arguments_like_any_machine() -> None:
    client: Client = Log().client()
    for args in (
        [],
        ["x"],
        ["x", "scratch", "1", {}],
        ["x", "scratch", 1, []],
        [1, "scratch", 1, {}],
    ):
        assert code(client.do(0, "open", *args)) == "bad_command"
    assert code(client.do(0, "close", 3)) == "bad_command"
    assert code(client.do(0, "delete", "x")) == "bad_command"
    assert code(client.do(0, "find", "x")) == "bad_command"
    with pytest.raises(BadCommand, match="'open' of the directory is no query: it writes"):
        client.log.query(0, "open", "x", "scratch", 1, {})
