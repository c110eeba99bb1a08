"""Reading batches back from the log's segments.

What it is: which segments hold an index, and the verified batches from there on. What it is not: no
cache, and no opinion about what of it is durable.

Who drives it: `LogStore`, from any thread: it is given a list of segments that nobody changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from folkmoot.core.batch import Batch
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.segment import Segment, read_records


def read_batches(
    files: Files, segments: Sequence[Segment], first_index: int, bytes_max: int
) -> list[Batch]:
    """Return batches from the one that holds `first_index`: about `bytes_max`, at least one."""
    found: list[Batch] = []
    for one in _from_index(segments, first_index):
        start, end = one.span(first_index, bytes_max)
        if found and end - start > bytes_max:
            break
        bytes_max -= end - start
        if start < end:
            data = files.read(one.name, start, end - start)
            found += read_records(data, one.tag, start, files.describe(one.name))
        if end < one.end:
            break  # else a small batch of the next segment would fit, and leave a hole
    return found


def _from_index(segments: Sequence[Segment], first_index: int) -> Sequence[Segment]:
    """Return the segments that hold batches which end at or after `first_index`."""
    at = len(segments)
    while at and segments[at - 1].last_index >= first_index:
        at -= 1
    return segments[at:]
