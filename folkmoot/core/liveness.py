"""Signs of life: when the session needs one, which were acknowledged, and how long it can be
trusted.

Pure: no I/O, no clock, no randomness. Driven by `core/session_client.py`.

Commands and keep-alives are signs of life alike. One is due a third of the timeout after the last
one was sent. Only ACKNOWLEDGED ones count, and by the time at which they were SENT: the cluster
counts the session's silence from when the sign got into the log, which is later. So

    local deadline = send time of the last acknowledged sign + timeout - drift margin

lies before the moment at which the cluster may end the session, whatever the network does.
"""

from __future__ import annotations

from collections import deque

from folkmoot.core.config import LimitsConfig
from folkmoot.core.connector import NEVER


class SignsOfLife:
    """The signs of one session.

    - `alive_at` never falls while the session lives.
    - Numbers of keep-alives rise for ever; those of a lost connection are forgotten.
    """

    def __init__(self, drift_margin: float, limits: LimitsConfig) -> None:
        self.timeout_s = 0.0
        self.alive_at = 0.0
        """Send time of the last acknowledged sign."""
        self._drift_margin = drift_margin
        self._events_max = limits.session_events_max // 8
        self._event_bytes_max = limits.session_event_bytes_max // 8
        self._sent_at = 0.0
        self._number = 0
        self._keep_alives: deque[tuple[int, float]] = deque()
        self._events = 0
        self._event_bytes = 0

    def begin(self, timeout_s: float, opened_at: float) -> None:
        """A new session, which was asked for at `opened_at`."""
        self.timeout_s = timeout_s
        self.alive_at = self._sent_at = opened_at

    def resume(self, timeout_s: float) -> None:
        """Another connection: a sign is due at once, as the last ones may be lost."""
        self.timeout_s = timeout_s
        self._sent_at = -NEVER

    @property
    def local_deadline(self) -> float:
        """When the session must be taken as lost."""
        return self.alive_at + self.timeout_s * (1.0 - self._drift_margin)

    @property
    def doubtful_at(self) -> float:
        """When so many signs have gone unacknowledged that something must be wrong."""
        return self.alive_at + self.timeout_s * 2 / 3

    @property
    def due_at(self) -> float:
        """When the next sign is due."""
        return self._sent_at + self.timeout_s / 3

    def is_due(self, now: float) -> bool:
        """Whether to send a sign now: it is time, or there are many events to acknowledge."""
        many = self._events > self._events_max or self._event_bytes > self._event_bytes_max
        return many or now >= self.due_at

    def sent(self, now: float) -> None:
        """A sign goes out, and with it the acknowledgement of all events so far."""
        self._sent_at = now
        self._events = self._event_bytes = 0

    def refused(self) -> None:
        """Commands that went out were refused: they were no sign, and none may come of others.

        Else a client whose commands are refused again and again would never send a keep-alive.
        """
        last = self._keep_alives[-1][1] if self._keep_alives else self.alive_at
        self._sent_at = min(self._sent_at, max(last, self.alive_at))

    def number_keep_alive(self, now: float) -> int:
        """Number the keep-alive that goes out now."""
        self._number += 1
        self._keep_alives.append((self._number, now))
        self.sent(now)
        return self._number

    def kept(self, number: int) -> None:
        """The keep-alive of that number was acknowledged, and so were those before it."""
        while self._keep_alives and self._keep_alives[0][0] <= number:
            self.acknowledged(self._keep_alives.popleft()[1])

    def acknowledged(self, sent_at: float) -> None:
        """A sign that was sent then was acknowledged."""
        self.alive_at = max(self.alive_at, sent_at)

    def received_events(self, count: int, size_bytes: int) -> None:
        """These events are to be acknowledged with the next sign."""
        self._events += count
        self._event_bytes += size_bytes

    def forget(self) -> None:
        """The connection is lost, and whatever was under way on it."""
        self._keep_alives.clear()
        self._events = self._event_bytes = 0


class Patience:
    """How long the other end of a connection may owe an answer before it is given up.

    It needs no answer to be the one that is owed: any frame shows that the connection works.
    """

    def __init__(self) -> None:
        self.limit_s = 0.0
        self._since: float | None = None

    def owe(self, now: float) -> None:
        """Something that must be answered goes out."""
        if self._since is None:
            self._since = now

    def heard(self) -> None:
        """A frame has come, or there is no connection any more."""
        self._since = None

    @property
    def ends_at(self) -> float:
        """When to give up."""
        return NEVER if self._since is None else self._since + self.limit_s
