"""Members' answers put together."""

from typing import Any

from folkmoot.cli.members import ClusterView, merge
from folkmoot.cli.status import Rate, rows
from folkmoot.core.errors import ConnectionLost

MEMBERS = [
    {
        "node_id": n,
        "client_address": f"c:{n}",
        "peer_address": f"p:{n}",
        "voter": True,
        "match_index": match,
    }
    for n, match in ((1, 10), (2, 7), (3, None))
]


def answer(node_id: int, role: str, term: int, commit: int = 10) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "role": role,
        "term": term,
        "commit_index": commit,
        "applied_index": commit,
        "last_index": 10,
        "members": MEMBERS,
        "sessions": 2,
        "resources": 1,
        "connections": 1,
        "uptime_s": 1.0,
        "cluster": "c",
        "cluster_id": "00",
    }


def view(*answers: dict[str, Any], trouble: str = "") -> ClusterView:
    given: list[Any] = [(f"c:{found['node_id']}", found) for found in answers]
    if trouble:
        given.append(("c:3", ConnectionLost(trouble)))
    return merge(MEMBERS, given)


def test_a_member_that_does_not_answer_is_shown_as_down_with_the_reason() -> None:
    found = view(answer(1, "leader", 2), answer(2, "follower", 2), trouble="c:3: refused")
    assert found.health == "degraded"
    assert [member.role for member in found.members] == ["leader", "follower", "down"]
    assert rows(found)[2]["trouble"] == "refused"
    assert found.as_data()["leader"] == 1


def test_lag_is_what_the_leader_has_not_heard_confirmed() -> None:
    found = view(answer(1, "leader", 2), answer(2, "follower", 2, commit=3))
    assert [member.lag for member in found.members] == [0, 3, None]


def test_of_two_that_lead_the_one_with_the_higher_term_counts() -> None:
    found = view(answer(1, "leader", 2), answer(2, "leader", 3))
    assert found.leader is not None
    assert found.leader.node_id == 2


def test_without_a_leader_the_best_informed_speaks() -> None:
    found = view(answer(1, "follower", 2, commit=9), answer(2, "follower", 2, commit=10))
    assert found.leader is None
    assert found.health == "no leader"
    assert found.best["node_id"] == 2


def test_everybody_up_is_healthy() -> None:
    assert (
        view(*(answer(n, "leader" if n == 1 else "follower", 1) for n in (1, 2, 3))).health
        == "healthy"
    )


def test_the_rate_is_measured_between_two_looks() -> None:
    rate = Rate()
    assert rate.of(view(answer(1, "leader", 1, commit=10)), 1.0) is None
    assert rate.of(view(answer(1, "leader", 1, commit=30)), 3.0) == 10.0


def test_a_disk_that_is_low_is_shown_and_the_leaders_is_the_clusters_trouble() -> None:
    low = {"storage": {"free_bytes": 95 << 20, "reserve_bytes": 128 << 20, "low": True}}
    roomy = {"storage": {"free_bytes": 1 << 62, "reserve_bytes": 128 << 20, "low": False}}
    found = view(answer(1, "leader", 2) | low, answer(2, "follower", 2) | roomy, answer(3, "x", 2))
    assert found.health == "disk low"
    shown = [(row["free"], row["trouble"], row["disk_low"]) for row in rows(found)]
    assert shown == [("95 MiB", "disk low", True), ("-", None, False), ("-", None, False)]
    found = view(answer(1, "leader", 2) | roomy, answer(2, "follower", 2) | low, answer(3, "x", 2))
    assert found.health == "healthy", "writes go on"
    assert rows(found)[1]["trouble"] == "disk low"
