"""Two small machines whose state is owed to entries, as a user might write them.

`Shelf` is nothing but items: each entry owns what it put, touched or watched. `Tally` counts
besides how many things ever left it, which no entry is owed to: its remainder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from folkmoot.core.errors import ConditionFailed
from folkmoot.core.machine import (
    Context,
    Machine,
    QueryContext,
    RestoreContext,
    Retention,
    command,
    query,
)


@attrs.define
class Thing:
    """What lies under a key: the item (`index`, `ordinal`), perhaps with a later `touch`."""

    value: Any
    index: int
    ordinal: int = 0
    expiry: int = 0
    touch: int = 0


class Shelf(Machine):
    """Things by key, some for a time only; and who watches.

    - A key has a deadline exactly when its thing has an expiry.
    """

    type_name = "shelf"
    retention = Retention.ENTRIES

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.things: dict[str, Thing] = {}
        self.watchers: dict[int, int] = {}

    @command
    def put(self, context: Context, key: str, value: Any, ttl: int = 0) -> list[Any]:
        """Return the index, and the value before."""
        before = self.things.get(key)
        context.retain()
        expiry = context.time + ttl if ttl else 0
        self._place(context, key, Thing(value, context.index, 0, expiry))
        return [context.index, None if before is None else before.value]

    @command
    def swap(self, context: Context, key: str, old: Any, new: Any) -> int:
        thing = self.things.get(key)
        if thing is None or thing.value != old:
            raise ConditionFailed(f"{key!r} is not {old!r}")
        context.retain()
        self._place(context, key, Thing(new, context.index))
        return context.index

    @command
    def put_many(self, context: Context, pairs: list[Any]) -> int:
        """Put all in order; a key may come twice."""
        if pairs:
            context.retain(len(pairs))
        for ordinal, (key, value) in enumerate(pairs):
            self._place(context, key, Thing(value, context.index, ordinal))
        return len(self.things)

    @command
    def touch(self, context: Context, key: str, ttl: int) -> int | None:
        """Let a thing stay for so long from now on."""
        thing = self.things.get(key)
        if thing is None:
            return None
        context.retain()
        if thing.touch:
            context.supersede(thing.touch)
        thing.touch, thing.expiry = context.index, context.time + ttl
        context.set_deadline(key, thing.expiry)
        return thing.expiry

    @command
    def take(self, context: Context, key: str) -> Any:
        if key not in self.things:
            raise ConditionFailed(f"there is no {key!r}")
        value = self.things[key].value
        self._drop(context, key, "taken")
        return value

    @command
    def clear(self, context: Context) -> int:
        count = len(self.things)
        for key in sorted(self.things):
            self._drop(context, key, "taken")
        return count

    @command
    def watch(self, context: Context) -> int:
        context.retain()
        self._leave(context, context.session)
        self.watchers[context.session] = context.index
        return len(self.watchers)

    @command
    def fault(self, context: Context, how: str) -> None:
        """Do what no machine may."""
        if how == "twice":
            context.retain()
            context.retain()
        elif how == "none":
            context.retain(0)
        elif how == "many twice":
            context.retain(2)
            context.retain(2)
        elif how == "refuse":
            context.retain()
            raise ConditionFailed("too late")
        elif how == "refuse many":
            context.retain(2)
            raise ConditionFailed("too late")
        elif how == "supersede":
            context.supersede(self.things["a"].index)
            raise ConditionFailed("too late")
        elif how == "supersede all":
            context.supersede_all([self.things["a"].index])
            raise ConditionFailed("too late")
        elif how == "later":
            context.set_deadline("!", context.time + 1)
        elif how == "end":
            self.watchers[context.session] = -1

    @query
    def get(self, context: QueryContext, key: str) -> Any:
        return None if key not in self.things else self.things[key].value

    def on_deadline(self, context: Context, key: str) -> None:
        if key == "!":
            context.retain()
        self._drop(context, key, "expired")

    def session_ended(self, context: Context, session: int) -> None:
        if self.watchers.get(session) == -1:
            context.retain()
        self._leave(context, session)

    def cut_subscriptions(self, context: Context, session: int) -> bool:
        if self.watchers.get(session) == -1:
            context.retain()
        return self._leave(context, session)

    def idle(self) -> bool:
        return not self.things and not self.watchers

    def snapshot(self) -> Any:
        things = [[key, *attrs.astuple(thing)] for key, thing in sorted(self.things.items())]
        return [things, sorted(map(list, self.watchers.items()))]

    def restore_item(
        self, context: RestoreContext, name: str, args: list[Any], ordinals: Sequence[int]
    ) -> None:
        index = context.index
        if name == "watch":
            self.watchers[context.session] = index
        elif name == "touch":
            thing = self.things[args[0]]
            thing.touch, thing.expiry = index, context.time + args[1]
            context.set_deadline(args[0], thing.expiry)
        elif name == "put_many":
            for ordinal in ordinals:
                key, value = args[0][ordinal]
                self.things[key] = Thing(value, index, ordinal)
        elif name == "swap":
            self.things[args[0]] = Thing(args[2], index)
        else:
            key, value, *ttl = args
            thing = self.things[key] = Thing(value, index)
            if ttl and ttl[0]:
                thing.expiry = context.time + ttl[0]
                context.set_deadline(key, thing.expiry)

    @classmethod
    def trim(cls, name: str, args: list[Any], ordinals: Sequence[int]) -> tuple[str, list[Any]]:
        """A condition goes, and so do the dead ones of many."""
        if name == "swap":
            return "put", [args[0], args[2]]
        if name == "put_many":
            pairs = [pair if at in ordinals else None for at, pair in enumerate(args[0])]
            return name, [pairs]
        return name, args

    def _place(self, context: Context, key: str, thing: Thing) -> None:
        if key in self.things:
            self._discard(context, key)
        self.things[key] = thing
        if thing.expiry:
            context.set_deadline(key, thing.expiry)
        context.publish(sorted(self.watchers), "put", [key, thing.value])

    def _drop(self, context: Context, key: str, kind: str) -> None:
        self._discard(context, key)
        context.publish(sorted(self.watchers), kind, key)

    def _discard(self, context: Context, key: str) -> None:
        thing = self.things.pop(key)
        context.supersede(thing.index, thing.ordinal)
        if thing.touch:
            context.supersede(thing.touch)
        if thing.expiry:
            context.clear_deadline(key)

    def _leave(self, context: Context, session: int) -> bool:
        index = self.watchers.pop(session, 0)
        if index:
            context.supersede_all([index])
        return bool(index)


class Tally(Shelf):
    type_name = "tally"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.gone = 0

    def idle(self) -> bool:
        return super().idle() and not self.gone

    def snapshot(self) -> Any:
        return [super().snapshot(), self.gone]

    def remainder(self) -> Any:
        return self.gone

    def restore_remainder(self, data: Any) -> None:
        self.gone = data

    def _discard(self, context: Context, key: str) -> None:
        super()._discard(context, key)
        self.gone += 1
