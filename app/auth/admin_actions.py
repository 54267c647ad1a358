"""What operators do to cohorts and users. Each action is recorded in the audit trail first.

The admin API, the dashboard and the commands all call these. They raise StoreError if the store
fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from app.auth.audit_trail import Operator, record
from app.cohorts import Resync, ResyncKind, ResyncRefusal, ResyncState, user_hash
from app.store import Erased, ResyncPlace, Store


class ResyncRefused(Exception):
    """A resync or import is refused; ``reason`` says why."""

    def __init__(self, reason: ResyncRefusal) -> None:
        super().__init__(reason)
        self.reason = reason


class OtherResync(Exception):
    """Another resync or import of the cohort is not finished."""


Place = TypeVar("Place", str, ResyncPlace)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def _confirmed(
    action: Callable[Concatenate[Store, Operator, Place, Rest], Result],
) -> Callable[Concatenate[Store, Operator, Place, Rest], Result]:
    """Make an action wait, before it returns, for STORE_WAIT_REPLICAS replicas."""

    @wraps(action)
    def confirmed(
        store: Store, operator: Operator, place: Place, /, *args: Rest.args, **options: Rest.kwargs
    ) -> Result:
        result = action(store, operator, place, *args, **options)
        store.replication.confirm(place.app_id if isinstance(place, ResyncPlace) else place)
        return result

    return confirmed


@_confirmed
def begin_cohort_deletion(store: Store, operator: Operator, app_id: str, cohort_id: str) -> bool:
    """Begin to delete a cohort; the background work completes it.

    Returns:
        False if the cohort is unknown.
    """
    record(store, operator, "delete_cohort", app_id, cohort=cohort_id)
    return store.jobs.begin_deletion(app_id, cohort_id)


@_confirmed
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
        progress: called with the number of change stream entries examined since the last call.
    """
    record(store, operator, "erase_user", app_id, user=user_hash(user_id), suppress=suppress)
    return store.erasure.erase(app_id, user_id, suppress=suppress, progress=progress)


@_confirmed
def unsuppress_user(store: Store, operator: Operator, app_id: str, user_id: str) -> bool:
    """Accept a suppressed user again. Returns False if the user was not suppressed."""
    record(store, operator, "unsuppress_user", app_id, user=user_hash(user_id))
    return store.erasure.unsuppress(app_id, user_id)


@_confirmed
def set_cadence(
    store: Store, operator: Operator, app_id: str, cohort_id: str, cadence_ms: int | None
) -> None:
    """Set how often a cohort is expected to arrive; None learns it from the cohort's history."""
    seconds = (cadence_ms or 0) // 1000
    record(store, operator, "set_cadence", app_id, cohort=cohort_id, seconds=seconds)
    store.freshness.set_cadence(app_id, cohort_id, cadence_ms)


@_confirmed
def open_resync(
    store: Store, operator: Operator, place: ResyncPlace, quiet_ms: int | None = None
) -> Resync:
    """Begin a resync of a known cohort.

    Args:
        quiet_ms: finish it automatically when nothing more has arrived for this long.

    Raises:
        OtherResync
    """
    record(store, operator, "open_resync", place.app_id, cohort=place.cohort_id)
    resync = store.resyncs.open(place, ResyncKind.RESYNC, quiet_ms=quiet_ms)
    if resync is None:
        raise OtherResync
    return resync


@_confirmed
def finish_resync(
    store: Store, operator: Operator, place: ResyncPlace, resync: Resync, *, force: bool
) -> None:
    """Request to finish a resync; ``Resyncs.steps`` then removes the unconfirmed members.

    Raises:
        ResyncRefused
        OtherResync: it is an import whose file has not arrived yet.
    """
    if resync.is_finished:
        return
    if resync.kind is not ResyncKind.RESYNC and resync.state is ResyncState.OPEN:
        raise OtherResync
    record(store, operator, "finish_resync", place.app_id, cohort=place.cohort_id, forced=force)
    refused = store.resyncs.request_finish(place, resync, force=force)
    if refused is not None:
        raise ResyncRefused(refused)


@_confirmed
def abort_resync(store: Store, operator: Operator, place: ResyncPlace, resync: Resync) -> bool:
    """Abort a resync or import. Returns False if it is finishing or has finished."""
    record(store, operator, "abort_resync", place.app_id, cohort=place.cohort_id)
    if not store.resyncs.request_abort(place, resync):
        return False
    for _ in store.resyncs.steps(place):
        pass
    return True


@_confirmed
def acknowledge_loss(store: Store, operator: Operator, app_id: str) -> bool:
    """Acknowledge that the store lost an app's data. Its cohorts stay incomplete.

    Returns:
        False if there is no unacknowledged loss.
    """
    record(store, operator, "acknowledge_loss", app_id)
    return bool(store.losses.acknowledge([app_id]))


@_confirmed
def forgive_loss(store: Store, operator: Operator, app_id: str) -> int:
    """Forget an intended loss of an app's data: cohorts are no longer incomplete because of it.

    Returns:
        The number of cohorts that were incomplete because of it.
    """
    record(store, operator, "acknowledge_loss", app_id, intended=True)
    return sum(store.losses.forgive([app_id]))


def send_test_notification(
    store: Store, operator: Operator, app_id: str, send: Callable[[], None]
) -> None:
    """Send a test notification."""
    record(store, operator, "test_notification", app_id)
    send()
