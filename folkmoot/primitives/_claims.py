"""How a grant is asked for in the client, and how it hears what becomes of it.

There is one `Claims` per resource and client, shared by all proxies of that name. It listens to the
resource while anybody of this client waits or holds, and hands each event to the claim that it is
about, by its request number.

    asked --answer: a token--------------------------> held (see `_grant.py`)
      +-----answer: 0--> waiting --event: grant---------+
                           +--timed out, ended, deleted, or the session is over: `obtain` raises

NO GHOST GRANTS (bugs: I4). Whoever stops waiting, by cancellation or by a timeout, sends `withdraw`
at once. It is a command of the same session, so it stands behind the claim in the log whatever
happens to the connection; and in that one entry the machine takes out a claim that waits, or gives
back one that was granted meanwhile. Nobody has to wait for its answer: it is issued until it is
applied or the session ends, which ends the claim as well.

    1. acquire is sent            it waits
    2. the holder releases        it is granted, the event is on its way
    3. the task is cancelled      withdraw is sent, and will give the lock to the next
    4. the event arrives          nobody here has this request any more: it is passed over

A TIMEOUT runs on log time and is decided in the log. The client gives up by itself a little later:
log time stands still where there is no leader, and nothing arrives where there is no connection.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import attrs

from folkmoot.core.errors import (
    FolkmootError,
    OperationTimeout,
    OutcomeUnknown,
    ResourceDeleted,
    SessionClosed,
    SessionEnded,
    SessionExpired,
    UsageError,
)
from folkmoot.core.handle import Call, Resource
from folkmoot.core.types import ConnectionState, Duration, seconds
from folkmoot.core.wakeup import Waiter
from folkmoot.primitives._grant import Ending, Holding

GRACE_S = 0.25
"""So much later than the log should have decided, the client gives up a wait by itself."""


@attrs.define(eq=False)
class _Claim:
    """One claim that could still hear something."""

    holding: Holding
    task: tuple[int, str]
    """Who asked for what: the task, and the seat of the resource."""
    waiter: Waiter[None] = attrs.field(factory=Waiter)
    """Done once it is granted, or will never be."""
    call: Call | None = None

    def take(self, token: int) -> None:
        """It is granted; the answer or the event says so."""
        if not self.holding.token:
            assert self.call is not None, f"{self.holding.title} is granted and was not asked for"
            self.holding.take(token, self.call.session_id)
            self.waiter.set_result(None)


class Claims:
    """The claims of one client on one resource that wait or are held.

    - It listens exactly while there is one.
    - Events about requests that are not here are of claims that were withdrawn.
    - A task has at most one claim on a seat: it would wait for itself.
    """

    def __init__(self) -> None:
        self._claims: dict[int, _Claim] = {}
        self._tasks: set[tuple[int, str]] = set()
        self._requests = itertools.count(1)

    def number(self) -> int:
        """Return a request number that this client has not used on the resource."""
        return next(self._requests)

    async def obtain(
        self, holding: Holding, timeout: Duration | None, operation: str, *args: Any
    ) -> None:
        """Make a claim with a command, and wait until it is granted.

        The command gets the seat if there are several, the request number, `args`, and, where the
        primitive has one, the timeout in milliseconds or None.
        Cancelled, the claim is withdrawn, and a grant that crosses this is given back.
        Raises the primitive's timeout, UsageError where this task holds or waits already,
        SessionEnded, ResourceDeleted, and GrantLost where somebody else ended the claim.
        """
        timeout_s = None if timeout is None else seconds(timeout)
        if timeout_s is not None and not timeout_s >= 0:
            raise UsageError(f"timeout={timeout!r}: seconds from 0 on, or None for no limit")
        claim = self._add(holding)
        try:
            # Rounded up, so that nobody times out early.
            timeout_ms = None if timeout_s is None else -int(-timeout_s * 1000 // 1)
            last = () if holding.words.timeout is None else (timeout_ms,)
            claim.call = holding.send_claim(operation, *args, *last)
            answer = await self._answer(claim, claim.call, timeout_s)
            holding.answer = answer
            token = holding.words.token(answer)
            if token:
                claim.take(token)
            elif timeout_ms == 0:
                holding.forget()  # it does not wait, so there is nothing to withdraw
                raise _timed_out(holding)
            await self._outcome(claim, timeout_s)
            holding.check()
        except BaseException:
            self._give_up(claim)
            raise

    def held(self) -> Holding | None:
        """The one that holds, if this client has it."""
        holdings = (claim.holding for claim in self._claims.values())
        return next((one for one in holdings if one.counts and one.end_now() is None), None)

    def remove(self, holding: Holding) -> None:
        """Forget a claim that nothing can be heard about any more. Idempotent."""
        claim = self._claims.pop(holding.request, None)
        if claim is not None:
            self._tasks.discard(claim.task)
            if not self._claims:
                holding.resource.unlisten(self)

    def _add(self, holding: Holding) -> _Claim:
        task = (anyio.get_current_task().id, holding.seat)
        if task in self._tasks:
            raise UsageError(
                f"this task holds or awaits {holding.title} already: it would wait for itself"
            )
        if not self._claims:
            holding.resource.listen(self)
        claim = self._claims[holding.request] = _Claim(holding, task)
        self._tasks.add(task)
        return claim

    async def _answer(self, claim: _Claim, call: Call, timeout_s: float | None) -> Any:
        """Wait for the answer to the command, which says whether it is granted or waits."""
        holding = claim.holding
        if timeout_s is not None and holding.resource.client.state is ConnectionState.CONNECTED:
            timeout_s += GRACE_S
        try:
            return await call.wait(timeout_s)
        except (SessionEnded, OutcomeUnknown, OperationTimeout) as error:
            if claim.waiter.done:  # the session is over, and the claim with it
                await claim.waiter.wait()
            if isinstance(error, SessionEnded):
                raise
            raise _timed_out(holding, f": {error}") from error

    async def _outcome(self, claim: _Claim, timeout_s: float | None) -> None:
        """Wait until it is granted. Raises what ended it."""
        if claim.waiter.done or timeout_s is None:
            return await claim.waiter.wait()
        with anyio.move_on_after(timeout_s + GRACE_S):
            return await claim.waiter.wait()
        raise _timed_out(claim.holding)

    def _give_up(self, claim: _Claim) -> None:
        """Withdraw, unless the claim was never sent, was refused, or has ended."""
        holding, call = claim.holding, claim.call
        was_here = holding.request in self._claims
        holding.forget()
        if was_here and call is not None and call.sequence and call.error is None:
            holding.send_withdraw()

    # The resource's Listener: called from the session's loop.

    def on_event(self, index: int, kind: str, payload: Any) -> None:
        """Hand an event to the claim that it is about."""
        if kind == "deleted":
            for claim in list(self._claims.values()):
                text = f"{claim.holding.title} was deleted while this waited for it"
                _end(claim, Ending("deleted", index), ResourceDeleted(text))
            return
        if kind not in ("grant", "timed_out", "ended", "revoked"):
            return
        found = self._claims.get(payload[0])
        if found is None:
            return
        if kind == "grant":
            found.holding.note = payload[2]
            found.take(payload[1])
        elif kind == "timed_out":
            _end(found, Ending("timed out", index), _timed_out(found.holding))
        elif kind == "ended":
            ending = Ending(payload[2], index)
            _end(found, ending, found.holding.error(ending))
        else:
            found.holding.revoke(Ending(payload[2], index))

    def on_state(self, state: ConnectionState, cause: str) -> None:
        """End what waits together with its session. Who holds hears it as the client's guard."""
        if state not in (ConnectionState.EXPIRED, ConnectionState.CLOSED):
            return
        kind = SessionExpired if state is ConnectionState.EXPIRED else SessionClosed
        for claim in [claim for claim in self._claims.values() if not claim.holding.token]:
            error = kind(f"{claim.holding.title} was not granted before the session ended: {cause}")
            _end(claim, Ending(state.value), error)


def _end(claim: _Claim, ending: Ending, error: FolkmootError) -> None:
    """End a claim: who waits for it gets the error, who holds it has lost it."""
    claim.holding.lose(ending)
    claim.waiter.set_exception(error)


def _timed_out(holding: Holding, why: str = "") -> OperationTimeout:
    kind = holding.words.timeout or OperationTimeout
    return kind(f"{holding.title} was not granted in time, and is not waited for any more{why}")


_CLAIMS: WeakKeyDictionary[Resource, Claims] = WeakKeyDictionary()


def claims_of(resource: Resource) -> Claims:
    """Return the claims on a resource, which all proxies of its name in a client share."""
    claims = _CLAIMS.get(resource)
    if claims is None:
        claims = _CLAIMS[resource] = Claims()
    return claims
