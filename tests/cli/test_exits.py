"""Errors as a user sees them: one line, a hint, an exit code."""

import errno
import os

import pytest

from folkmoot.cli.exits import ExitCode, failure_of
from folkmoot.core import errors


def instance(kind: type[errors.FolkmootError]) -> errors.FolkmootError:
    return kind("said")


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_an_exit_code(kind: type[errors.FolkmootError]) -> None:
    failure = failure_of(instance(kind))
    assert failure is not None
    assert failure.exit_code != ExitCode.OK
    assert (failure.code, failure.message, failure.applied) == (kind.code, "said", kind.applied)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, ExitCode.USAGE),
        (errors.ConnectionLost, ExitCode.UNAVAILABLE),
        (errors.NoLeader, ExitCode.UNAVAILABLE),
        (errors.LockTimeout, ExitCode.NOT_GRANTED),
        (errors.ElectionTimeout, ExitCode.NOT_GRANTED),
        (errors.OperationTimeout, ExitCode.UNAVAILABLE),
        (errors.LockLost, ExitCode.GRANT_LOST),
        (errors.LeadershipLost, ExitCode.GRANT_LOST),
        (errors.OutcomeUnknown, ExitCode.OUTCOME_UNKNOWN),
        (errors.ResourceTypeError, ExitCode.REFUSED),
        (errors.StorageCorrupt, ExitCode.STORAGE),
        (errors.StorageFull, ExitCode.STORAGE),
        (errors.DirectoryLocked, ExitCode.CANNOT_START),
        (errors.RemoteProtocolError, ExitCode.PROTOCOL),
    ],
)
def test_exit_codes_are_an_interface(kind: type[errors.FolkmootError], code: ExitCode) -> None:
    failure = failure_of(instance(kind))
    assert failure is not None
    assert failure.exit_code == code


def test_safe_to_repeat_means_not_applied() -> None:
    for kind in errors.BY_CODE.values():
        failure = failure_of(instance(kind))
        assert failure is not None
        if failure.exit_code == ExitCode.UNAVAILABLE:
            assert kind.applied == "no", kind


def test_our_error_is_found_among_those_raised_with_it() -> None:
    lost = errors.LockLost("gone", cause="expired")
    group = BaseExceptionGroup("", [ValueError("x"), ExceptionGroup("", [lost])])
    failure = failure_of(group)
    assert failure is not None
    assert failure.message == "gone"


def test_an_error_of_the_operating_system_is_told_in_its_words() -> None:
    failure = failure_of(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data"))
    assert failure is not None
    assert failure.message == "data: Permission denied"


def test_a_machine_that_raised_is_told_as_what_it_is() -> None:
    from folkmoot.core.resource import MachineFault

    failure = failure_of(MachineFault("entry 7: greeter.greet raised"))
    assert failure is not None
    assert (failure.exit_code, failure.code) == (ExitCode.INTERNAL, "machine_fault")


def test_a_bug_is_not_dressed_up() -> None:
    assert failure_of(AssertionError("x")) is None
    assert failure_of(TypeError("x")) is None
