"""Everything that accesses Redis. ``docs/data-model.md`` describes the keys."""

from app.store.api_keys import ApiKeys, StoredKey
from app.store.change_stream import ChangeEntry, EntryId, FeedPosition, PositionLost
from app.store.cohort_list import COHORT_SORTS, NUMERIC_SORTS, CohortFilter, TooManyToSort
from app.store.connection.client import connect, wait_for
from app.store.erasure import Erased
from app.store.errors import Attempts, StoreError, StoreFull, StoreReadOnly, StoreRefused
from app.store.failed_requests import FailedRequest
from app.store.jobs import Job
from app.store.lookups import Member, MemberPosition, User, UserRecord
from app.store.losses import Loss, LossKind, Mark, Partition
from app.store.maintenance.copy import Copy, CopyRefused, CopyReport
from app.store.maintenance.findings import MEANINGS, CheckReport
from app.store.memberships import Applied
from app.store.news import Batch, Lateness, Transition, changed_cohorts
from app.store.rate_limiter import RateLimiter
from app.store.resyncs import ConfirmedLost, FileCounts, ResyncPlace
from app.store.size_history import Size
from app.store.store import Store
from app.store.sync_batches import SyncBatch, SyncGroup, split_batches
from app.store.sync_history import FirstProblems, HistoryLimits
from app.store.tuning import Tuning

__all__ = [
    "COHORT_SORTS",
    "MEANINGS",
    "NUMERIC_SORTS",
    "ApiKeys",
    "Applied",
    "Attempts",
    "Batch",
    "ChangeEntry",
    "CheckReport",
    "CohortFilter",
    "ConfirmedLost",
    "Copy",
    "CopyRefused",
    "CopyReport",
    "EntryId",
    "Erased",
    "FailedRequest",
    "FeedPosition",
    "FileCounts",
    "FirstProblems",
    "HistoryLimits",
    "Job",
    "Lateness",
    "Loss",
    "LossKind",
    "Mark",
    "Member",
    "MemberPosition",
    "Partition",
    "PositionLost",
    "RateLimiter",
    "ResyncPlace",
    "Size",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreRefused",
    "StoredKey",
    "SyncBatch",
    "SyncGroup",
    "TooManyToSort",
    "Transition",
    "Tuning",
    "User",
    "UserRecord",
    "changed_cohorts",
    "connect",
    "split_batches",
    "wait_for",
]
