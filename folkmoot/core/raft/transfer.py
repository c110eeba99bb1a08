"""Leadership transfer (§3.10): stop accepting, bring the target up to date, tell it to campaign.

Pure: no I/O, no clock, no randomness. It is one attempt by one leader; the leader (leader.py) asks
it whether proposals may come and whether its lease may be used.

The target's election passes over stickiness, on which leases rest, so the lease goes first, and
once TimeoutNow has left it does not come back in this term, even if the attempt is given up (bug
A14):

    1. A leads term 5, sends TimeoutNow to B, hears nothing for an election timeout, gives up
    2. A accepts proposals again; heartbeats are acknowledged; were the lease to hold again ...
    3. the delayed TimeoutNow reaches B, which wins term 6 by votes that skip stickiness, and writes
    4. ... A would serve stale reads until it hears of term 6

Proposals are safe in step 2, for a commit needs a quorum; default reads are, too.
"""

from __future__ import annotations

import attrs

from folkmoot.core.types import NodeId


@attrs.define
class Transfer:
    """One attempt that is under way."""

    target: NodeId
    deadline: float
    """Given up then, an election timeout after the start."""
    told: bool = False
    """TimeoutNow has left at least once."""
