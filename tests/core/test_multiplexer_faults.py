"""Faults of machines: what no machine may do stops the server; what fails leaves no half behind."""

from collections.abc import Callable
from typing import Any

import pytest

from folkmoot.core.commands import CHANGED
from folkmoot.core.errors import CommandError
from folkmoot.core.machine import Registry
from folkmoot.core.multiplexer import MachineFault
from folkmoot.transport.codec import unpack
from tests.core.scratch import SMALL, Client, Log, Other, Scratch, named


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raise", "raised KeyError: 'a bug'"),
        ("publish", f"raised ConditionFailed after it had {CHANGED}"),
        ("deadline", f"raised ConditionFailed after it had {CHANGED}"),
        ("clear", f"raised ConditionFailed after it had {CHANGED}"),
        ("retain", "raised UsageError: retain() by a machine whose retention is STATE"),
        ("data", "raised condition_failed with data: this set cannot be encoded"),
        ("set", "raised UsageError: this set cannot be encoded"),
        ("object", "raised UsageError: this object cannot be encoded"),
        ("large", "answered: this list cannot be encoded"),
        ("nan", "answered: "),
        ("deep", "answered: this list "),
    ],
)
@pytest.mark.parametrize("others", [0, 2])
def test_bug_j2_a_machine_at_fault_stops_the_server_naming_entry_resource_and_operation(
    how: str, text: str, others: int
) -> None:
    log = Log()
    client = log.client()
    resource = client.open("sum")
    add = [resource, "add", [1]]
    with pytest.raises(MachineFault) as fault:
        client.send(*[add] * others, [resource, "fault", [how]], *[add] * others)
    assert str(fault.value).startswith(
        f"entry {3 + others}: 'fault' of scratch 'sum' (resource 2) {text}"
    )
    with pytest.raises(AssertionError, match="used after a fault"):
        log.tick()
    with pytest.raises(AssertionError, match="used after a fault"):
        log.mux.snapshot()


class Broken(Scratch):
    """At fault wherever a machine is called, if its total says so."""

    type_name = "broken"

    def session_ended(self, context: Any, session: int) -> None:
        raise CommandFault

    def cut_subscriptions(self, context: Any, session: int) -> bool:
        raise CommandFault

    def holds_grant(self, token: int) -> bool:
        raise KeyError(token)

    def idle(self) -> bool:
        raise CommandFault

    def snapshot(self) -> Any:
        raise CommandFault


class CommandFault(CommandError):
    """Even an error that a command may raise is a fault elsewhere."""

    def __init__(self) -> None:
        super().__init__("a bug")


def overflow(client: Client, resource: int) -> Any:
    return client.do(resource, "tell", [client.id] * 99, "x", 0, False)


def let_deadline_fail(client: Client, resource: int) -> Any:
    client.do(resource, "later", "fault", 5)
    return client.log.tick(5)


@pytest.mark.parametrize(
    ("where", "do"),
    [
        ("session_ended", lambda client, resource: client.close()),
        ("session_ended", lambda client, resource: client.do(0, "close", [resource])),
        ("cut_subscriptions", overflow),
        ("on_deadline('fault')", let_deadline_fail),
        ("snapshot()", lambda client, resource: client.log.mux.snapshot()),
        ("holds_grant", lambda client, resource: client.do(0, "open", fence=[resource, 1])),
    ],
)
def test_a_machine_is_at_fault_wherever_it_raises(
    where: str, do: Callable[[Client, int], Any]
) -> None:
    client = Log(registry=Registry.of([Broken]), limits=SMALL).client()
    resource = client.open("b", "broken")
    with pytest.raises(MachineFault) as fault:
        do(client, resource)
    assert where in str(fault.value)
    assert f"broken 'b' (resource {resource})" in str(fault.value)


def test_idle_may_not_raise_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "session_ended", lambda *_: None)
    client = Log(registry=Registry.of([Broken])).client()
    client.open("b", "broken")
    with pytest.raises(MachineFault, match="'idle' of broken 'b'"):
        client.close()


def test_a_constructor_at_fault_stops_the_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Any, config: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Other, "__init__", crash)
    client = Log().client()
    with pytest.raises(MachineFault, match="entry 2: 'add' of other 'x' raised ZeroDivisionError"):
        client.do(named("x", "other"), "add", 1)


def test_bug_j4_an_error_leaves_no_half_of_the_command_behind() -> None:
    log = Log()
    client = log.client()
    resource = client.open("sum")
    client.do(resource, "add", 1)
    before = unpack(log.mux.snapshot())
    for operation in (
        [resource, "add", [0]],
        [resource, "add", ["x"]],
        [named("new"), "add", [0]],
        [named("sum", "other"), "add", [1]],
        [0, "delete", [99]],
        [0, "close", [[resource, "x"]]],
        [resource, "add", [1], [resource, 5]],
    ):
        (results,) = client.send(operation)
        assert results.errors is not None, operation
    after = unpack(log.mux.snapshot())
    assert (after[4], after[6]) == (before[4], before[6]), "machines and deadlines are as they were"
    assert log.query(0, "list", "", "", 10) == [["sum", resource, "scratch", 1, {}, 1]]
