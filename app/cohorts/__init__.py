"""What a cohort and a change of its membership are. Pure Python: no Flask, no Redis."""

from app.cohorts.cohort import Cohort
from app.cohorts.freshness import Freshness, FreshnessState
from app.cohorts.membership import (
    MOST_COHORTS,
    Alike,
    Identify,
    MembershipChange,
    Statement,
    TooManyCohorts,
    membership_changes,
)
from app.cohorts.record import CohortRecord, CohortSummary, Status
from app.cohorts.sync import Moves, Outcome, Rejection, RequestRecord, Sync, user_hash

__all__ = [
    "MOST_COHORTS",
    "Alike",
    "Cohort",
    "CohortRecord",
    "CohortSummary",
    "Freshness",
    "FreshnessState",
    "Identify",
    "MembershipChange",
    "Moves",
    "Outcome",
    "Rejection",
    "RequestRecord",
    "Statement",
    "Status",
    "Sync",
    "TooManyCohorts",
    "membership_changes",
    "user_hash",
]
