"""What all tests share: both anyio backends, `--rewrite`, and settings for Hypothesis."""

from typing import Any

import pytest
from hypothesis import settings

# A deadline per example would measure the machine, not the code; pytest-timeout catches hangs.
settings.register_profile("folkmoot", deadline=None, print_blob=True)
settings.load_profile("folkmoot")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write what golden scripts and files get into them, to be reviewed as a diff",
    )


@pytest.fixture(scope="session")
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written rather than compared."""
    return bool(request.config.getoption("--rewrite"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run every test marked `anyio` once on asyncio and once on trio."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend
