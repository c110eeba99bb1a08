"""A client's clock counts the time in which the machine slept (bugs C8)."""

from __future__ import annotations

import anyio
import pytest

from folkmoot.core.clock import SUSPENDED, Suspension, loop_clock


def test_suspension_is_counted_and_noise_is_not() -> None:
    found = [0.0]
    suspension = Suspension(lambda: found[0])
    assert suspension() == 0.0
    found[0] = 0.01
    assert suspension() == 0.0, "two clocks are never read at the same moment"
    found[0] = 3600.0
    assert suspension() == 3600.0
    found[0] = 3599.99
    assert suspension() == 3600.0, "it never falls"


@pytest.mark.anyio
async def test_the_clock_jumps_by_the_time_in_suspension() -> None:
    slept = [0.0]
    clock = loop_clock(lambda: slept[0])
    before = clock()
    assert abs(before - anyio.current_time()) < 1.0
    slept[0] = 3600.0
    assert 3600.0 <= clock() - before < 3601.0


def test_this_system_tells_it() -> None:
    assert SUSPENDED() >= 0.0
