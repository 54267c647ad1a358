"""What operators do to cohorts and users. Each action is recorded in the audit trail first.

The admin API, the dashboard and the commands all call these. Each raises StoreError.
"""

from __future__ import annotations

from collections.abc import Callable

from app.auth.audit_trail import Operator, record
from app.cohorts import user_hash
from app.store import Erased, Store


def begin_cohort_deletion(store: Store, operator: Operator, app_id: str, cohort_id: str) -> bool:
    """Begin to delete a cohort; the background work completes it.

    Returns:
        False if the cohort is unknown.
    """
    record(store, operator, "delete_cohort", app_id, cohort=cohort_id)
    return store.jobs.begin_deletion(app_id, cohort_id)


def erase_user(
    store: Store,
    operator: Operator,
    app_id: str,
    user_id: str,
    *,
    suppress: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> Erased:
    """Erase a user, known or not.

    Args:
        suppress: also skip the user in all later syncs.
        progress: called with the number of change stream entries that were examined.
    """
    record(store, operator, "erase_user", app_id, user=user_hash(user_id), suppress=suppress)
    return store.erasure.erase(app_id, user_id, suppress=suppress, progress=progress)


def unsuppress_user(store: Store, operator: Operator, app_id: str, user_id: str) -> bool:
    """Accept a suppressed user again. Returns False if the user was not suppressed."""
    record(store, operator, "unsuppress_user", app_id, user=user_hash(user_id))
    return store.erasure.unsuppress(app_id, user_id)


def set_cadence(
    store: Store, operator: Operator, app_id: str, cohort_id: str, cadence_ms: int | None
) -> None:
    """Set how often a cohort is expected to arrive; None learns it from the cohort's history."""
    seconds = (cadence_ms or 0) // 1000
    record(store, operator, "set_cadence", app_id, cohort=cohort_id, seconds=seconds)
    store.freshness.set_cadence(app_id, cohort_id, cadence_ms)
