"""What the storage did since it was opened: for measurements and status."""

from __future__ import annotations

import attrs


@attrs.define
class Counters:
    """What the storage did since it was opened. For measurements and status."""

    log_syncs: int = 0
    hard_state_changes: int = 0
    log_writes: int = 0
    bytes_written: int = 0
    segments_started: int = 0
    truncations: int = 0
    compactions: int = 0
