"""What the machine contract checks before any machine runs."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from folkmoot.core.errors import BadCommand, ConfigError, UsageError
from folkmoot.core.machine import (
    Context,
    Machine,
    QueryContext,
    Registry,
    RestoreContext,
    Retention,
    command,
    query,
)


class Base(Machine):
    type_name = "base"

    @command
    def typed(self, context: Context, text: str, number: int | None, rest: list[int]) -> None: ...

    @command
    def optional(self, context: Context, value: Any, flag: bool = False) -> None: ...

    @query
    def read(self, context: QueryContext) -> int:
        return 0

    def snapshot(self) -> Any:
        return None

    def restore(self, data: Any) -> None: ...


class Derived(Base):
    type_name = "derived"

    @command
    def more(self, context: Context) -> None: ...


def test_commands_and_queries_are_found_and_inherited() -> None:
    assert sorted(Base.commands) == ["optional", "typed"]
    assert sorted(Derived.commands) == ["more", "optional", "typed"]
    assert sorted(Derived.queries) == ["read"]
    assert "more" not in Base.commands


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("typed", ["x", 1, []]),
        ("typed", ["x", None, [1]]),
        ("optional", [object()]),
        ("optional", [None, True]),
    ],
)
def test_arguments_that_fit_are_taken_again_and_again(name: str, args: list[Any]) -> None:
    for _ in range(3):
        Base.commands[name].check(args)


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("typed", ["x", 1], "typed takes 3 to 3 arguments, got 2"),
        ("typed", ["x", 1, [], 4], "typed takes 3 to 3 arguments, got 4"),
        ("typed", [b"x", 1, []], "typed: argument 1 is bytes, not str"),
        ("typed", ["x", True, []], "typed: argument 2 is bool, not NoneType or int"),
        ("typed", ["x", 1.0, []], "typed: argument 2 is float, not NoneType or int"),
        ("typed", ["x", 1, {}], "typed: argument 3 is dict, not list"),
        ("optional", [], "optional takes 1 to 2 arguments, got 0"),
        ("optional", [1, 0], "optional: argument 2 is int, not bool"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_again_and_again(
    name: str, args: list[Any], text: str
) -> None:
    for _ in range(3):
        with pytest.raises(BadCommand) as error:
            Base.commands[name].check(args)
        assert str(error.value) == text


def test_remembered_signatures_are_bounded() -> None:
    class Any64(Base):
        @command
        def many(
            self, context: Context, a: Any = 0, b: Any = 0, c: Any = 0, d: Any = 0
        ) -> None: ...

    operation = Any64.commands["many"]
    values = [1, "x", b"x", 1.0, None]
    for a in values:
        for b in values:
            for c in values:
                operation.check([a, b, c])
    assert len(operation.fitting) == 64


def test_an_operation_takes_plain_positional_arguments_only() -> None:
    def variable(self: Any, context: Any, *rest: Any) -> None: ...
    def keyword(self: Any, context: Any, *, key: int) -> None: ...
    def untyped(self: Any, context: Any, key) -> None: ...  # type: ignore[no-untyped-def]
    def exotic(self: Any, context: Any, key: set[int]) -> None: ...
    def bare() -> None: ...

    for function in (variable, keyword, untyped, exotic, bare):
        with pytest.raises(UsageError):
            type("Wrong", (Base,), {function.__name__: command(function)})


def test_a_machine_takes_no_configuration_unless_it_says_so() -> None:
    Base({})
    with pytest.raises(ConfigError, match=r"base takes no configuration, got \['size'\]"):
        Base({"size": 1})


def test_the_registry_names_what_is_wrong_with_a_class() -> None:
    class Nameless(Base):
        type_name = ""

    class Twin(Base):
        pass

    class Forgetful(Machine):
        type_name = "forgetful"

        def __init__(self, config: Mapping[str, Any]) -> None: ...
        def snapshot(self) -> Any: ...

    for kinds, text in (
        ([Nameless], "Nameless has no type_name"),
        ([Base, Twin], "Twin and Base are both 'base'"),
        ([Forgetful], r"Forgetful \(retention STATE\) does not define restore\(\)"),
    ):
        with pytest.raises(UsageError, match=text):
            Registry.of(kinds)
    assert Registry.of([Base, Derived]).machines == {"base": Base, "derived": Derived}


def test_a_plain_machine_holds_nothing_and_is_never_idle() -> None:
    machine = Base({})
    assert not machine.holds_grant(1)
    assert not machine.idle()
    assert not machine.cut_subscriptions(cast("Context", None), 1)


class Owner(Machine):
    """What a machine of ENTRIES needs, and no more."""

    type_name = "owner"
    retention = Retention.ENTRIES

    def snapshot(self) -> Any: ...

    def restore_item(
        self, context: RestoreContext, name: str, args: list[Any], ordinals: Sequence[int]
    ) -> None: ...


def test_a_machine_has_a_record_unless_all_of_it_is_owed_to_entries() -> None:
    class Both(Owner):
        def remainder(self) -> Any: ...
        def restore_remainder(self, data: Any) -> None: ...

    Registry.of([Owner])
    assert (Base.has_record, Owner.has_record, Both.has_record) == (True, False, True)


def method(*_: Any) -> None: ...


@pytest.mark.parametrize(
    ("base", "members", "text"),
    [
        (Owner, {"retention": "entries"}, "retention is 'entries'; it is Retention.STATE"),
        (Owner, {"retention": Retention.STATE}, r"\(retention STATE\) does not define restore\(\)"),
        (Base, {"retention": Retention.ENTRIES}, r"does not define restore_item\(\)"),
        (Owner, {"restore": method}, r"defines restore\(\), which is never called with it"),
        (Base, {"restore_item": method}, r"defines restore_item\(\), which is never called"),
        (Base, {"trim": method}, r"defines trim\(\), which is never called"),
        (Base, {"remainder": method}, r"defines remainder\(\), which is never called"),
        (Owner, {"remainder": method}, r"one of remainder\(\) and restore_remainder\(\)"),
        (Owner, {"restore_remainder": method}, r"one of remainder\(\) and restore_remainder\(\)"),
    ],
)
def test_the_registry_refuses_what_does_not_fit_the_retention(
    base: type[Machine], members: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        Registry.of([type("Wrong", (base,), {"type_name": "wrong", **members})])
