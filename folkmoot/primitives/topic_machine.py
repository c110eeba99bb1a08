"""The topic's replicated half: messages, retention, who subscribes, and the cursors.

Pure: no I/O, no clock, no randomness. Driven by the multiplexer; `topic.py` is the other half, and
says what a user may rely on.

Messages are bytes that nobody here looks into. A message's REVISION is the index of its entry. What
stays RETAINED is the newest `count` of them, for whoever comes late, and before those all that some
cursor has not acknowledged: these are HELD. Nothing of it is beyond `bytes`, the age, if one is
configured, or HELD_MAX: those bound what a topic takes, whatever subscribers and cursors do.
`floor` is the revision of the newest message that has gone.

A CURSOR is a name and the revision up to which its messages are acknowledged. One consumer at a
time sits on it (see `_seat.py`); others wait, so that they stand by. It holds also while nobody
consumes, until it is deleted.

    commands   publish(message) -> revision    subscribe/unsubscribe(kind, text)
               consume(cursor, request, since or nil) -> [token, acknowledged] or [0, 0]
               acknowledge(cursor, token, revision)    withdraw(cursor, request)
               delete_cursor(cursor)
    queries    read(after, limit)    subscribers()    describe()
    events     message [revision, time, message], to each session that subscribed, its own included;
               to a consumer, as `_seat.py` says; a grant's note is the acknowledged revision

A retained message is owed to the entry that published it, a subscription to the one that made it.
The remainder is small: head and floor, which outlive all messages, the cursors and the last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from folkmoot.core.errors import BadCommand, ConfigError, LimitExceeded, NotHeld
from folkmoot.core.machine import (
    Context,
    Machine,
    QueryContext,
    RestoreContext,
    Retention,
    command,
    frees,
    query,
)
from folkmoot.primitives._cursors import Cursor, Cursors
from folkmoot.primitives._retained import Retained
from folkmoot.primitives._seat import Claim, Seat, Tokens
from folkmoot.primitives._subscriptions import Subscriptions

COUNT_DEFAULT, COUNT_MAX = 1000, 1_000_000
BYTES_DEFAULT, BYTES_MAX = 16 << 20, 1 << 30
AGE_MAX_MS = 10 * 365 * 24 * 3600 * 1000
HELD_MAX = 100_000
"""Messages that are retained at most while cursors hold, where `count` is not more: what a message
costs beside its bytes is bounded, too. The oldest goes, and its reader is told of a gap."""
CURSORS_MAX = 10_000
"""Cursors of one topic; one more is answered with LimitExceeded. Delete those not needed."""
CURSOR_NAME_MAX = 512
PAGE_MESSAGES_MAX = 1000
"""Messages in one page of `read`; the client asks for the next."""
LISTED_MAX = 1000
"""Subscribers are listed up to so many, and cursors, those furthest behind first; `describe` says
how many there are."""
_AGE = "age"


@attrs.frozen
class Limits:
    """What a topic keeps, as its configuration says it."""

    count: int = COUNT_DEFAULT
    """Kept whoever has acknowledged them; what cursors hold comes on top."""
    bytes: int = BYTES_DEFAULT
    age_ms: int | None = None

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Limits:
        """Check a configuration. Raises ConfigError naming the field, the value and the bound."""
        bounds = {"count": COUNT_MAX, "bytes": BYTES_MAX, "age_ms": AGE_MAX_MS}
        unknown = sorted(set(config) - set(bounds))
        if unknown:
            raise ConfigError(f"a topic is configured by {sorted(bounds)}, not by {unknown}")
        for name, value in sorted(config.items()):
            if type(value) is not int or not 1 <= value <= bounds[name]:
                raise ConfigError(f"topic: {name} is {value!r}, not from 1 to {bounds[name]}")
        return cls(**config)


class TopicMachine(Machine):
    """The replicated state of one topic.

    - After every entry the retained messages keep to the bytes and to `_count_max`, and the oldest
      of more than `count` is one that some cursor has not acknowledged.
    - Where an age is set, the deadline is that of the oldest retained message, and there is none
      without one.
    """

    type_name = "topic"
    retention = Retention.ENTRIES

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Take `count`, `bytes` and `age_ms`: how many messages are retained, and how long."""
        self._limits = Limits.parse(config)
        self._held_max = max(HELD_MAX - self._limits.count, 0)
        self._messages = Retained()
        self._subscriptions = Subscriptions()
        self._tokens = Tokens()
        self._cursors = Cursors()

    @command
    def publish(self, context: Context, message: bytes) -> int:
        """Publish to all who subscribe, and retain. Returns the revision."""
        messages, limits, revision = self._messages, self._limits, context.index
        context.retain()
        messages.append((revision, context.time, message))
        if len(messages) == 1:
            self._set_age(context)
        if len(messages) > limits.count or messages.size_bytes > limits.bytes:
            self._let_go(context)
        if self._subscriptions:
            payload = [revision, context.time, message]
            context.publish(self._subscriptions.matching(), "message", payload)
        return revision

    @command
    def subscribe(self, context: Context, kind: str, text: str) -> int:
        """Send the session what is published after the index that this returns."""
        if self._subscriptions.add(context.session, kind, text, context.index):
            context.retain()
        return context.index

    @command
    @frees
    def unsubscribe(self, context: Context, kind: str, text: str) -> bool:
        """Stop that; say whether it was so."""
        gone = self._subscriptions.remove(context.session, kind, text)
        context.supersede_all(gone)
        return bool(gone)

    @command
    def consume(
        self, context: Context, cursor: str, request: int, since: int | None = None
    ) -> list[int]:
        """Become the cursor's consumer, or wait for it; a new cursor starts at `since`, or now."""
        if since is not None and since < 0:
            raise BadCommand(f"since is {since}: a revision, or 0 for all that is retained")
        found = self._cursors.get(cursor)
        is_new = found is None
        if found is None:
            if not 0 < len(cursor) <= CURSOR_NAME_MAX:
                raise BadCommand(f"a cursor's name has 1 to {CURSOR_NAME_MAX} characters")
            if len(self._cursors) >= CURSORS_MAX:
                raise LimitExceeded(f"the topic has {CURSORS_MAX} cursors: delete one")
            found = Cursor(self._messages.head if since is None else since, Seat(self._tokens))
        claim = found.seat.claim(context, request, None)
        if is_new:
            self._cursors.add(cursor, found)
        assert claim is not None, f"a claim on cursor {cursor!r} neither holds nor waits"
        return [claim.token, found.acknowledged if claim.token else 0]

    @command
    @frees
    def acknowledge(self, context: Context, cursor: str, token: int, revision: int) -> int:
        """Move the cursor forward, by its consumer; never back. Returns where it stands."""
        found = self._cursors.get(cursor)
        holder = found.seat.holder if found is not None else None
        if found is None or holder is None or not _is_held_by(holder, context.session, token):
            raise NotHeld(f"token {token} does not consume cursor {cursor!r}")
        if revision > max(self._messages.head, found.acknowledged):
            raise BadCommand(f"revision {revision} is above the newest, {self._messages.head}")
        if revision > found.acknowledged:
            found.acknowledged = revision
            self._let_go(context)
        return found.acknowledged

    @command
    @frees
    def withdraw(self, context: Context, cursor: str, request: int) -> bool:
        """End the session's claim on a cursor, waiting or consuming; False where there is none."""
        found = self._cursors.get(cursor)
        claim = None if found is None else found.seat.find(context.session, request)
        if found is None or claim is None:
            return False
        found.seat.remove(context, claim)
        found.seat.grant_next(context, found.acknowledged)
        return True

    @command
    @frees
    def delete_cursor(self, context: Context, cursor: str) -> bool:
        """Forget a cursor, and tell its consumer and those who wait; False where there is none."""
        found = self._cursors.delete(cursor)
        if found is None:
            return False
        for claim in list(found.seat):
            found.seat.eject(context, claim, "deleted")
        self._let_go(context)
        return True

    @query
    def read(self, context: QueryContext, after: int, limit: int) -> list[Any]:
        """Return [floor, head, the oldest retained messages above `after`], as one page."""
        messages = self._messages
        limit = max(1, min(limit, PAGE_MESSAGES_MAX))
        return [messages.floor, messages.head, messages.after(after, limit)]

    @query
    def subscribers(self, context: QueryContext) -> list[Any]:
        """Return [session, client's name] of each session that subscribes, in rising order."""
        sessions = self._subscriptions.everybody()[:LISTED_MAX]
        return [[session, context.client_name(session)] for session in sessions]

    @query
    def describe(self, context: QueryContext) -> dict[str, Any]:
        """Say what is retained, and who is subscribed or consumes."""
        messages = self._messages
        cursors = sorted(self._cursors.items(), key=lambda item: (item[1].acknowledged, item[0]))
        return {
            "time": context.time,
            "head": messages.head,
            "floor": messages.floor,
            "retained": len(messages),
            "retained_bytes": messages.size_bytes,
            "retention": list(attrs.astuple(self._limits)),
            "subscribers": len(self._subscriptions.everybody()),
            "cursors": [_describe(context, name, cursor) for name, cursor in cursors[:LISTED_MAX]],
            "cursor_count": len(self._cursors),
        }

    def on_deadline(self, context: Context, key: str) -> None:
        """Drop what is older than the retention's age."""
        age_ms, messages = self._limits.age_ms, self._messages
        assert age_ms is not None, f"deadline {key!r} without an age"
        while messages and messages.oldest[1] + age_ms <= context.time:
            context.supersede(messages.drop_oldest())
        self._set_age(context)

    def session_ended(self, context: Context, session: int) -> None:
        """Forget that the session subscribed; its cursors pass to who waits."""
        context.supersede_all(self._subscriptions.drop(session))
        for cursor in self._cursors:
            if cursor.seat.drop_session(context, session) is not None:
                cursor.seat.grant_next(context, cursor.acknowledged)

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        """Forget that the session subscribed; its claims on cursors stay."""
        gone = self._subscriptions.drop(session)
        context.supersede_all(gone)
        return bool(gone)

    def holds_grant(self, token: int) -> bool:
        """Say whether a cursor is consumed under this token."""
        return any(
            cursor.seat.holder is not None and cursor.seat.holder.token == token
            for cursor in self._cursors
        )

    def idle(self) -> bool:
        """Say whether nothing was ever published and nobody subscribes or has a cursor."""
        return not (self._messages.head or self._subscriptions or self._cursors)

    def snapshot(self) -> list[Any]:
        """Return the remainder, messages and subscriptions."""
        return [self.remainder(), self._messages.snapshot(), self._subscriptions.snapshot()]

    def remainder(self) -> list[Any]:
        """Return head, floor, the last token, and the cursors in order of creation."""
        cursors = [
            [name, cursor.acknowledged, cursor.seat.snapshot()]
            for name, cursor in self._cursors.items()
        ]
        return [self._messages.head, self._messages.floor, self._tokens.last, cursors]

    def restore_remainder(self, data: list[Any]) -> None:
        """Take what `remainder` gave."""
        head, floor, last_token, cursors = data
        self._messages.restore(head, floor)
        for name, acknowledged, claims in cursors:
            seat = Seat(self._tokens)
            seat.restore(claims)
            self._cursors.add(name, Cursor(acknowledged, seat))
        self._tokens.last = last_token

    def restore_item(
        self, context: RestoreContext, name: str, args: list[Any], ordinals: Sequence[int]
    ) -> None:
        """Take back a message or a subscription."""
        if name == "subscribe":
            kind, text = args
            self._subscriptions.add(context.session, kind, text, context.index)
            return
        self._messages.restore_message((context.index, context.time, args[0]))
        age_ms = self._limits.age_ms
        if age_ms is not None and len(self._messages) == 1:
            context.set_deadline(_AGE, context.time + age_ms)

    def _let_go(self, context: Context) -> None:
        """Drop what is beyond the count and acknowledged by all, or beyond the other bounds.

        Wherever a message comes, a cursor moves or a cursor goes. A new one only holds more.
        """
        messages, limits = self._messages, self._limits
        before, lowest = messages.floor, self._cursors.lowest()
        above = len(messages) - limits.count
        while above > 0 or messages.size_bytes > limits.bytes:
            is_held = lowest is not None and messages.oldest[0] > lowest
            if is_held and above <= self._held_max and messages.size_bytes <= limits.bytes:
                break  # and all behind it is held, too
            context.supersede(messages.drop_oldest())
            above -= 1
        if messages.floor != before:
            self._set_age(context)

    def _set_age(self, context: Context) -> None:
        """Let the deadline be that of the oldest message, which is another one now."""
        age_ms, messages = self._limits.age_ms, self._messages
        if age_ms is None:
            return
        if messages:
            context.set_deadline(_AGE, messages.oldest[1] + age_ms)
        else:
            context.clear_deadline(_AGE)


def _describe(context: QueryContext, name: str, cursor: Cursor) -> list[Any]:
    """[name, acknowledged, consumer's session (0: none), client's name, how many wait]."""
    holder = cursor.seat.holder
    session = 0 if holder is None else holder.session
    client = "" if holder is None else context.client_name(session)
    return [name, cursor.acknowledged, session, client, len(cursor.seat.queue)]


def _is_held_by(holder: Claim, session: int, token: int) -> bool:
    return holder.session == session and holder.token == token
