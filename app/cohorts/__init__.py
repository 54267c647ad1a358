"""Cohorts, membership, freshness, completeness and syncs. Pure Python: no Flask, no Redis."""

from app.cohorts.cohort import Cohort
from app.cohorts.completeness import (
    Completeness,
    CompletenessState,
    IncompleteReason,
    OpenReason,
    Upstream,
    VerifiedBy,
)
from app.cohorts.freshness import Freshness, FreshnessState
from app.cohorts.membership import (
    MAX_COHORTS_PER_REQUEST,
    Identify,
    MembershipChange,
    TooManyCohortsInRequest,
    UniformIdentifies,
    all_have_users,
    membership_changes,
    usable_user_id,
)
from app.cohorts.record import CohortRecord, CohortSummary, Status
from app.cohorts.resync import (
    Resync,
    ResyncKind,
    ResyncRefusal,
    ResyncState,
    resync_refusal,
)
from app.cohorts.sync import Moves, Outcome, Rejection, RequestRecord, Sync, user_hash

__all__ = [
    "MAX_COHORTS_PER_REQUEST",
    "Cohort",
    "CohortRecord",
    "CohortSummary",
    "Completeness",
    "CompletenessState",
    "Freshness",
    "FreshnessState",
    "Identify",
    "IncompleteReason",
    "MembershipChange",
    "Moves",
    "OpenReason",
    "Outcome",
    "Rejection",
    "RequestRecord",
    "Resync",
    "ResyncKind",
    "ResyncRefusal",
    "ResyncState",
    "Status",
    "Sync",
    "TooManyCohortsInRequest",
    "UniformIdentifies",
    "Upstream",
    "VerifiedBy",
    "all_have_users",
    "membership_changes",
    "resync_refusal",
    "usable_user_id",
    "user_hash",
]
