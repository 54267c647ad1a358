"""All that speaks to Redis. What each key holds is in ``docs/data-model.md``."""

from app.store.api_keys import ApiKeys, StoredKey
from app.store.change_stream import Change, EntryId, Place, PlaceLost
from app.store.cohort_list import NUMBERS, SORTS, Filter, TooManyToSort
from app.store.connection.client import connect, wait_for
from app.store.erasure import Erased
from app.store.errors import StoreError, StoreFull, StoreRefused
from app.store.jobs import Job
from app.store.lookups import Member, Position, User, UserRecord
from app.store.maintenance.copy import Copy, CopyRefused, CopyReport
from app.store.maintenance.findings import MEANINGS, Report
from app.store.memberships import Applied
from app.store.rates import Rates
from app.store.size_history import Size
from app.store.store import Store
from app.store.sync_history import Batch, Group, HistoryLimits, in_calls

__all__ = [
    "MEANINGS",
    "NUMBERS",
    "SORTS",
    "ApiKeys",
    "Applied",
    "Batch",
    "Change",
    "Copy",
    "CopyRefused",
    "CopyReport",
    "EntryId",
    "Erased",
    "Filter",
    "Group",
    "HistoryLimits",
    "Job",
    "Member",
    "Place",
    "PlaceLost",
    "Position",
    "Rates",
    "Report",
    "Size",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreRefused",
    "StoredKey",
    "TooManyToSort",
    "User",
    "UserRecord",
    "connect",
    "in_calls",
    "wait_for",
]
