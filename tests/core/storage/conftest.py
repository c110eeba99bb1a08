"""The disks over which the storage's contract is tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from folkmoot.core.storage.files import DirectoryFiles
from folkmoot.core.storage.memory import MemoryFiles
from tests.core.storage.support import Disk


@pytest.fixture(params=["directory", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """Gives the same disk again and again, as a restarted process sees it."""
    if request.param == "directory":
        yield lambda: DirectoryFiles(tmp_path / "data")
    else:
        files = MemoryFiles()
        yield lambda: files
