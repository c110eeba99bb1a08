"""Ask the members of a cluster how they are, each for itself, and put their answers together.

No session is opened, no leader is needed and a member that is down is part of the answer: this is
for looking at clusters that may be in trouble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import attrs

from folkmoot.cli.catching_up import prefix_of, words
from folkmoot.cli.conversation import conversation
from folkmoot.core.errors import ConnectionLost, FolkmootError


async def ask(address: str, operation: str, *arguments: Any, timeout_s: float) -> Any:
    """Ask the one server at `address`; return its answer.

    Raises ConnectionLost naming the address, RemoteProtocolError for what is no folkmoot server,
    and what the server itself answered with.
    """
    try:
        with anyio.fail_after(timeout_s):
            async with conversation(address, timeout_s=timeout_s) as talk:
                return await talk.ask(operation, *arguments)
    except TimeoutError:
        raise ConnectionLost(f"{address} did not answer within {timeout_s:g} s") from None


@attrs.frozen
class MemberView:
    """One member: what it says of itself, or why it does not."""

    node_id: int
    client_address: str
    peer_address: str
    voter: bool
    status: Mapping[str, Any] | None
    """Its own answer; None when it is down."""
    trouble: str = ""
    """Why there is no answer."""
    lag: int | None = None
    """Entries of the leader's log that it has not confirmed to the leader; None where unknown."""
    sent: Mapping[str, Any] | None = None
    """What the leader says of a prefix that it sends to it."""

    @property
    def prefix(self) -> dict[str, Any] | None:
        """How far the prefix is that it gets, if it gets one."""
        own = self.status.get("receiving") if self.status else None
        return prefix_of(own, self.sent, is_up=self.status is not None)

    @property
    def storage(self) -> Mapping[str, Any]:
        """What it says of its disk; empty when it is down."""
        return self.status.get("storage", {}) if self.status else {}

    @property
    def is_low(self) -> bool:
        """Whether its disk has less free than its reserve."""
        return bool(self.storage.get("low"))

    @property
    def role(self) -> str:
        """Its role in its own words, or "down"."""
        return str(self.status["role"]) if self.status else "down"

    def row(self) -> dict[str, Any]:
        """The stable shape of one member in tables and JSON."""
        status = self.status or {}
        return {
            "node_id": self.node_id,
            "role": self.role,
            "client_address": self.client_address,
            "peer_address": self.peer_address,
            "voter": self.voter,
            "term": status.get("term"),
            "commit_index": status.get("commit_index"),
            "applied_index": status.get("applied_index"),
            "last_index": status.get("last_index"),
            "lag": self.lag,
            "clients": status["connections"] - 1
            if status
            else None,  # one of them is this question
            "uptime_s": status.get("uptime_s"),
            "version": status.get("version"),
            "free_bytes": self.storage.get("free_bytes"),
            "disk_low": self.is_low,
            "trouble": self.trouble or ("disk low" if self.is_low else None),
            "prefix": self.prefix,
            "catching_up": words(self.prefix) or None,
        }


@attrs.frozen
class ClusterView:
    """All members at about one time."""

    members: tuple[MemberView, ...]
    leader: MemberView | None
    """The member that leads in the highest term that anybody knows."""

    @property
    def best(self) -> Mapping[str, Any]:
        """The best-informed member's answer; empty when nobody answered."""
        if self.leader is not None and self.leader.status is not None:
            return self.leader.status
        answers = [member.status for member in self.members if member.status is not None]
        return max(answers, key=_newness, default={})

    @property
    def up(self) -> int:
        """How many members answered."""
        return sum(member.status is not None for member in self.members)

    @property
    def health(self) -> str:
        """One word on the whole.

        "healthy", "degraded" (a member is down), "disk low" (the leader's: writes are refused),
        "no leader" or "down".
        """
        if not self.up:
            return "down"
        if self.leader is None:
            return "no leader"
        if self.leader.is_low:
            return "disk low"
        return "healthy" if self.up == len(self.members) else "degraded"

    def as_data(self) -> dict[str, Any]:
        """The stable shape in JSON."""
        best = self.best
        return {
            "cluster": best.get("cluster"),
            "cluster_id": best.get("cluster_id"),
            "health": self.health,
            "leader": self.leader.node_id if self.leader else None,
            "term": best.get("term"),
            "epoch": best.get("epoch"),
            "commit_index": best.get("commit_index"),
            "sessions": best.get("sessions"),
            "resources": best.get("resources"),
            "members": [member.row() for member in self.members],
        }


def _newness(status: Mapping[str, Any]) -> tuple[int, int]:
    return int(status["term"]), int(status["commit_index"])


async def look(addresses: Sequence[str], *, timeout_s: float) -> ClusterView:
    """Ask all members. The first address that answers says who they are.

    Raises ConnectionLost naming every address when none answers.
    """
    answers = await _ask_all(addresses, timeout_s)
    known = [answer for answer in answers.values() if isinstance(answer, Mapping)]
    if not known:
        raise ConnectionLost("no server answers: " + "; ".join(str(e) for e in answers.values()))
    newest = max(known, key=_newness)
    others = {str(member["client_address"]) for member in newest["members"]} - {*addresses}
    answers |= await _ask_all(sorted(others), timeout_s)
    return merge(newest["members"], list(answers.items()))


async def _ask_all(
    addresses: Sequence[str], timeout_s: float
) -> dict[str, Mapping[str, Any] | FolkmootError]:
    answers: dict[str, Mapping[str, Any] | FolkmootError] = {}

    async def one(address: str) -> None:
        try:
            answers[address] = await ask(address, "status", timeout_s=timeout_s)
        except FolkmootError as error:
            answers[address] = error

    async with anyio.create_task_group() as group:
        for address in addresses:
            group.start_soon(one, address)
    return answers


def merge(
    members: Sequence[Mapping[str, Any]],
    answers: Sequence[tuple[str, Mapping[str, Any] | FolkmootError]],
) -> ClusterView:
    """Put the answers together. Pure."""
    statuses = {status["node_id"]: status for _, status in answers if isinstance(status, Mapping)}
    troubles = {
        address: str(error).removeprefix(address).lstrip(": ")
        for address, error in answers
        if isinstance(error, Exception)
    }
    leaders = [status for status in statuses.values() if status["role"] == "leader"]
    leading = max(leaders, key=_newness) if leaders else None
    lags = _lags(leading) if leading else {}
    sent = {one["node_id"]: one.get("prefix") for one in leading["members"]} if leading else {}
    views = tuple(
        MemberView(
            node_id=member["node_id"],
            client_address=member["client_address"],
            peer_address=member["peer_address"],
            voter=member["voter"],
            status=statuses.get(member["node_id"]),
            trouble=""
            if member["node_id"] in statuses
            else troubles.get(member["client_address"], "another server answers at its address"),
            lag=lags.get(member["node_id"]),
            sent=sent.get(member["node_id"]),
        )
        for member in members
    )
    leader = next((view for view in views if leading and view.node_id == leading["node_id"]), None)
    return ClusterView(views, leader)


def _lags(leading: Mapping[str, Any]) -> dict[int, int]:
    return {
        member["node_id"]: max(0, leading["last_index"] - member["match_index"])
        for member in leading["members"]
        if member["match_index"] is not None
    }
