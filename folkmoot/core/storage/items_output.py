"""Where a compaction copies to: blocks of live entries, cut into files of about a segment's size.

What it is: the buffer between single entries and whole files. What it is not: it decides nothing
about what is copied.

Who drives it: `compaction`.
"""

from __future__ import annotations

from folkmoot.core.prefix_table import FileKind
from folkmoot.core.storage.files import Files
from folkmoot.core.storage.prefix_blocks import (
    BLOCK_BYTES,
    ENTRY_BYTES,
    ItemsBlock,
    encode_items,
    fits_behind,
)
from folkmoot.core.storage.prefix_file import PrefixFileWriter
from folkmoot.core.storage.prefix_store import PrefixStore
from folkmoot.core.storage.stored_prefix import ItemsFile

_SYNC_BYTES = 1 << 20
"""So much is synced at once: the log's own syncs wait behind no more than that."""


class ItemsOutput:
    """Makes items files, one after another.

    - Entries come in order of index, so the files' ranges follow one another.
    - `files` are complete and durable, but for the names in their directory; an entry is in one of
      them once `cut` was called behind it.
    """

    def __init__(
        self, files: Files, store: PrefixStore, owner: tuple[bytes, int], file_bytes: int
    ) -> None:
        self.files: list[ItemsFile] = []
        self.written_bytes = 0
        """Bytes of finished blocks so far."""
        self._disk = files
        self._store = store
        self._owner = owner
        self._file_bytes = file_bytes
        self._block = ItemsBlock.empty()
        self._block_bytes = 0
        self._writer: PrefixFileWriter | None = None
        self._begun: ItemsFile
        self._last_index = 0

    def extend(self, more: ItemsBlock) -> None:
        """Add the entries of a block."""
        if not more:
            return
        if not fits_behind(self._block, more.indexes[-1], more.times[-1]):
            self._end_block()
        self._block.extend(more)
        self._block_bytes += sum(map(len, more.operations)) + ENTRY_BYTES * len(more)
        if self._block_bytes >= BLOCK_BYTES:
            self._end_block()

    def flush(self) -> None:
        """Write finished blocks to the disk. One step."""
        if self._writer is not None:
            self._writer.flush(_SYNC_BYTES)
            if self._writer.size_bytes >= self._file_bytes:
                self._end_file(self._last_index)

    def cut(self, last_index: int) -> None:
        """End the file, if there is one: it speaks for everything up to `last_index`."""
        self._end_block()
        if self._writer is not None:
            self._end_file(last_index)
        self._last_index = last_index

    def _end_block(self) -> None:
        block = self._block
        if not block:
            return
        if self._writer is None:
            first_index = self._last_index + 1
            self._writer = PrefixFileWriter(
                self._disk,
                FileKind.ITEMS,
                self._store.begin_file(FileKind.ITEMS),
                first_index,
                self._owner,
            )
            self._begun = ItemsFile(self._writer.entry(0))
        data = encode_items(block)
        self._writer.append(data)
        self._begun.add(block)
        self._last_index = block.indexes[-1]
        self.written_bytes += len(data)
        self._block, self._block_bytes = ItemsBlock.empty(), 0

    def _end_file(self, last_index: int) -> None:
        assert self._writer is not None, f"no file to end at {last_index}"
        self._begun.entry = self._writer.close(last_index)
        self.files.append(self._begun)
        self._writer = None
