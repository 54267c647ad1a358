"""Cohorts, changes of membership, freshness and syncs. Pure Python: no Flask, no Redis."""

from app.cohorts.cohort import Cohort
from app.cohorts.freshness import Freshness, FreshnessState
from app.cohorts.membership import (
    MAX_COHORTS_PER_REQUEST,
    Identify,
    MembershipChange,
    TooManyCohortsInRequest,
    UniformIdentifies,
    membership_changes,
)
from app.cohorts.record import CohortRecord, CohortSummary, Status
from app.cohorts.sync import Moves, Outcome, Rejection, RequestRecord, Sync, user_hash

__all__ = [
    "MAX_COHORTS_PER_REQUEST",
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
    "Status",
    "Sync",
    "TooManyCohortsInRequest",
    "UniformIdentifies",
    "membership_changes",
    "user_hash",
]
