"""How the time for an orderly end is found within the session's timeout."""

import pytest

from folkmoot.cli.guard import client_config
from folkmoot.core.config import ClientConfig
from folkmoot.core.errors import ConfigError


def test_the_local_deadline_leaves_room_for_the_grace_and_for_drift() -> None:
    config = client_config(ClientConfig(), session_timeout_s=10, grace_s=2)
    assert config.session_timeout_s == 10
    local_deadline_s = config.session_timeout_s * (1 - config.drift_margin)
    assert local_deadline_s + 2 == pytest.approx(9.0), "a tenth is left for clocks that drift"


def test_a_grace_that_does_not_fit_is_refused_with_the_bound() -> None:
    with pytest.raises(ConfigError, match=r"it must be at most 0\.4"):
        client_config(ClientConfig(), session_timeout_s=1, grace_s=0.5)
