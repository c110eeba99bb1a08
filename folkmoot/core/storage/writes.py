"""The shape of a write, so that storage needs nothing of consensus.

What it is: structural types. Consensus hands over its own objects; whatever has these attributes
fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from folkmoot.core.batch import Batch


class HardStateLike(Protocol):
    """Term and vote, whatever class they come in."""

    @property
    def term(self) -> int:
        """The current term."""

    @property
    def voted_for(self) -> int | None:
        """Who got the vote in it."""


class PointLike(Protocol):
    """A place in the log."""

    @property
    def index(self) -> int:
        """An entry's index."""

    @property
    def term(self) -> int:
        """Its term."""

    @property
    def log_time(self) -> int:
        """Its log time."""


class WriteLike(Protocol):
    """One write of consensus: in this order, all of it or a part that was never acknowledged."""

    @property
    def number(self) -> int:
        """Rises from write to write; comes back from `sync`."""

    @property
    def hard_state(self) -> HardStateLike | None:
        """A new term or vote, or None."""

    @property
    def install(self) -> PointLike | None:
        """Give the whole log up for the prefix that was received, which ends here; or None."""

    @property
    def truncate_after(self) -> int | None:
        """The last index that stays, or None."""

    @property
    def batches(self) -> Sequence[Batch]:
        """What to append, without a gap."""
