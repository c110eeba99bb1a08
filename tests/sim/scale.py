"""Constants of the product that are made smaller for a run, so that much is done in many steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

from folkmoot.core import compacting, prefix_frames, prefix_receiver, replica
from folkmoot.core.storage import compaction, items_output, state_file
from tests.sim.options import Options


@contextlib.contextmanager
def scaled(options: Options) -> Iterator[None]:
    """Run the block with what the options say in the place of the constants."""
    values: list[tuple[ModuleType, str, float]] = [
        (compacting, "SLICE_BYTES", options.slice_bytes),
        (compacting, "RETRY_S", 1.0),
        (prefix_receiver, "PAUSE_S", 1.0),
        (replica, "APPLY_BYTES_PER_TURN", options.apply_bytes),
        (compaction, "STEP_COUNT", max(2, options.block_bytes // 64)),
        (items_output, "BLOCK_BYTES", options.block_bytes),
        (state_file, "BLOCK_BYTES", options.block_bytes),
        (prefix_frames, "CHUNK_BYTES", options.block_bytes),
        (prefix_receiver, "CHUNK_BYTES", options.block_bytes),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, value in values:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
