"""What the demo knows at each moment: plain data that the work fills in and the views show."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs

from folkmoot.cli.members import ClusterView


@attrs.define
class Tally:
    """One workload in numbers."""

    title: str
    done: int = 0
    """Operations that were acknowledged."""
    unknown: int = 0
    """Operations without an answer: they took effect once or not at all."""
    detail: str = ""
    """The present state in a few words."""
    verdict: str = ""
    """What the final check found."""
    good: bool | None = None
    """Whether the final check held; None before it."""


@attrs.define
class Happening:
    """Something that is told as it happens."""

    at_s: float
    text: str
    style: str = ""


@attrs.define
class Scene:
    """The whole demo. Times are seconds since its start."""

    tell: Callable[[Happening], None] = lambda happening: None
    """Called with each happening; views that redraw themselves do not need it."""
    phase: str = "starting"
    working: bool = True
    """Workers go on while this is true."""
    view: ClusterView | None = None
    tallies: dict[str, Tally] = attrs.field(factory=dict)
    happenings: list[Happening] = attrs.field(factory=list)
    faults: list[str] = attrs.field(factory=list)
    """What must not be and was seen: any of them fails the demo."""
    killed_node: int = 0
    killed_at_s: float | None = None
    recovered_at_s: float | None = None
    """When the first write that was issued after the kill was acknowledged."""
    ended_at_s: float = 0.0
    """When the workers were told to stop."""
    writes: list[float] = attrs.field(factory=list)
    """When the acknowledged writes were: for the rate, and for the longest silence."""
    _begun: float = attrs.field(factory=time.monotonic)

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    @property
    def recovery_s(self) -> float | None:
        """From the kill to the next acknowledged write; None where there is none yet."""
        if self.killed_at_s is None or self.recovered_at_s is None:
            return None
        return self.recovered_at_s - self.killed_at_s

    @property
    def done(self) -> int:
        """All operations that were acknowledged."""
        return sum(tally.done for tally in self.tallies.values())

    def say(self, text: str, style: str = "") -> None:
        """Tell something."""
        happening = Happening(self.now_s, text, style)
        self.happenings.append(happening)
        self.tell(happening)

    def fault(self, text: str) -> None:
        """Note what must not be."""
        self.faults.append(text)
        self.say(text, "bold red")

    def acknowledged(self, tally: Tally, issued_at_s: float) -> None:
        """Count an operation that was acknowledged just now."""
        now = self.now_s
        tally.done += 1
        self.writes.append(now)
        if (
            self.killed_at_s is not None
            and self.recovered_at_s is None
            and issued_at_s > self.killed_at_s
        ):
            self.recovered_at_s = now
            self.say(f"writes again, {(now - self.killed_at_s) * 1000:,.0f} ms after", "bold green")

    def rate(self, window_s: float = 1.0) -> float:
        """Acknowledged writes per second, lately."""
        since = self.now_s - window_s
        count = 0
        for at in reversed(self.writes):
            if at < since:
                break
            count += 1
        return count / window_s

    def as_data(self) -> dict[str, Any]:
        """The outcome in JSON."""
        recovery_s = self.recovery_s
        return {
            "good": not self.faults,
            "faults": self.faults,
            "seconds": round(self.ended_at_s, 3),
            "operations": self.done,
            "killed_node": self.killed_node,
            "recovery_ms": None if recovery_s is None else round(recovery_s * 1000, 1),
            "workloads": {name: attrs.asdict(tally) for name, tally in self.tallies.items()},
        }
