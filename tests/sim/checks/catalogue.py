"""All checkers, in the order in which they are asked. The ledger comes first."""

from __future__ import annotations

from tests.sim.checks import Checker
from tests.sim.checks.compaction import DiskBounded, OnlyWhatIsListed, PrefixSpeaks
from tests.sim.checks.consensus import (
    CommitRule,
    ElectionSafety,
    LeaderAppendOnly,
    LeaderCompleteness,
    LogMatching,
    Monotone,
    StateMachineSafety,
)
from tests.sim.checks.durability import (
    AcknowledgedIsDurable,
    AppliedIsDurable,
    CommittedIsDurable,
    PersistBeforeSpeaking,
)
from tests.sim.checks.events import EventsOnceInOrder
from tests.sim.checks.ledger import Ledger
from tests.sim.checks.limits import EverythingBounded
from tests.sim.checks.ownership import BelieversExclude, NothingOwnedByTheDead, OneHolder
from tests.sim.checks.reads import LeaseExcludesCommits, ReadsAreTrue, ReadsSeeTheirPast
from tests.sim.checks.replicas import OneDigest, SameAnswers
from tests.sim.checks.sessions import (
    CountedOnce,
    ExactlyOnce,
    NeverMalformed,
    OwnersExpireFirst,
    RefusedMeansNever,
    SilentWhenExpired,
)

CHECKERS: list[type[Checker]] = [
    Ledger,
    ElectionSafety,
    LeaderAppendOnly,
    LogMatching,
    StateMachineSafety,
    LeaderCompleteness,
    CommitRule,
    Monotone,
    PersistBeforeSpeaking,
    AcknowledgedIsDurable,
    CommittedIsDurable,
    AppliedIsDurable,
    SameAnswers,
    OneDigest,
    ExactlyOnce,
    CountedOnce,
    RefusedMeansNever,
    SilentWhenExpired,
    OwnersExpireFirst,
    NeverMalformed,
    EventsOnceInOrder,
    OneHolder,
    NothingOwnedByTheDead,
    BelieversExclude,
    ReadsSeeTheirPast,
    ReadsAreTrue,
    LeaseExcludesCommits,
    EverythingBounded,
    PrefixSpeaks,
    OnlyWhatIsListed,
    DiskBounded,
]
