"""The messages that a topic keeps: a list that is cut off at the front.

Pure: no I/O, no clock, no randomness. What to keep is the topic's to say.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

PAGE_BYTES_MAX = 256 << 10
"""Bytes of messages in one page (at least one message comes in any case)."""

Message = tuple[int, int, bytes]
"""revision, log time (ms), what was published."""


class Retained:
    """The retained messages, oldest first.

    - Revisions strictly rise; `floor` lies below the oldest, `head` is the newest ever published.
    - `_start` messages at the front are dead: cut off once they are half, so dropping costs O(1).
    """

    __slots__ = ("_messages", "_start", "floor", "head", "size_bytes")

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._start = 0
        self.size_bytes = 0
        self.floor = 0
        self.head = 0

    def __len__(self) -> int:
        return len(self._messages) - self._start

    @property
    def oldest(self) -> Message:
        return self._messages[self._start]

    def append(self, message: Message) -> None:
        assert message[0] > self.head, f"revision {message[0]} after {self.head}"
        self._messages.append(message)
        self.head = message[0]
        self.size_bytes += len(message[2])

    def drop_oldest(self) -> int:
        """Drop the oldest message; return its revision."""
        revision, _, payload = self._messages[self._start]
        self.floor = revision
        self.size_bytes -= len(payload)
        self._start += 1
        if self._start * 2 >= len(self._messages):
            del self._messages[: self._start]
            self._start = 0
        return revision

    def after(self, revision: int, limit: int) -> list[Message]:
        """Return the oldest messages above a revision, as many as one page takes."""
        first = bisect_right(self._messages, revision, lo=self._start, key=lambda m: m[0])
        page: list[Message] = []
        size_bytes = 0
        for message in self._messages[first : first + limit]:
            size_bytes += len(message[2])
            if page and size_bytes > PAGE_BYTES_MAX:
                break
            page.append(message)
        return page

    def snapshot(self) -> list[Any]:
        return [self.head, self.floor, [list(message) for message in self._messages[self._start :]]]

    def restore(self, head: int, floor: int) -> None:
        """Take what is not owed to messages; `restore_message` comes next, in order."""
        self.head, self.floor = head, floor

    def restore_message(self, message: Message) -> None:
        newest = self._messages[-1][0] if self._messages else self.floor
        assert newest < message[0] <= self.head, (
            f"revision {message[0]} is not above {newest}, or is above the head, {self.head}"
        )
        self._messages.append(message)
        self.size_bytes += len(message[2])
