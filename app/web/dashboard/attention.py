"""What is wrong now, shown above the list of cohorts. All of it is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from app.cohorts import CohortRecord, FreshnessState, IncompleteReason, Sync
from app.errors import CohortBeingDeleted, UnknownUser
from app.services import services
from app.store import FirstProblems, StoreError
from app.web.api.lookup import store
from app.web.dashboard.formatting import now_ms

# Cohorts and syncs named for each problem; the list has the others.
NAMED = 5
# Failed requests that name no stored cohort are shown for this long.
FAILED_SHOWN_MS = 24 * 3_600_000
_SYNCS_SEARCHED = 50
_SYNCS_OF_COHORT_SEARCHED = 10
_FULL_SHARE = 0.9


class Affected(NamedTuple):
    """Cohorts with a problem: how many, and some of them with the time it began, in ms."""

    total: int
    cohorts: list[tuple[CohortRecord, int]]


class Attention(NamedTuple):
    """What is wrong now.

    Attributes:
        store_problem: why the store accepts no writes; empty if it does.
        memory_share: how much of the store's memory limit is used, if that is nearly all.
        incomplete: by reason.
        failed_syncs: the latest failed sync of each cohort named under SYNC_FAILED, by cohort id.
        failed: syncs of the last day whose requests failed and name no stored cohort, so no
            cohort's page shows them.
        followed: ids of those in ``failed`` that were followed by a success: a sync of each cohort
            that they name or, if they name none, a sync from the same source with the same key.
        left_out: for each cohort whose last sync left out users who are not registered, that sync.
            Only the latest syncs with problems are searched, so some may be missing.
        problems: what the first failed requests of the failed syncs say, by sync id.
    """

    store_problem: str
    memory_share: float | None
    incomplete: dict[IncompleteReason, Affected]
    late: Affected
    never: Affected
    failed_syncs: dict[str, Sync]
    failed: list[Sync]
    followed: set[int]
    left_out: list[Sync]
    problems: dict[int, FirstProblems]

    @property
    def size(self) -> int:
        """The number of problems."""
        single = (self.store_problem or self.memory_share, self.left_out)
        return (
            sum(map(bool, (*single, self.late.total, self.never.total)))
            + len(self.incomplete)
            + sum(len(sync.failures) for sync in self.failed)
        )

    def __bool__(self) -> bool:
        return self.size > 0


def attention(app_id: str, counts: dict[FreshnessState, int]) -> Attention:
    """What is wrong now in an app whose cohorts have these states."""
    current = store()
    _, reasons = current.completeness.counts([app_id])
    incomplete = {
        reason: current.completeness.with_reason(app_id, reason, NAMED)
        for reason, count in reasons.items()
        if count
    }
    states = {
        state: current.freshness.with_state(app_id, state, NAMED) if counts[state] else []
        for state in (FreshnessState.LATE, FreshnessState.NEVER)
    }
    ids = {one for found in (*incomplete.values(), *states.values()) for one, _ in found}
    records = {record.id: record for record in current.registry.records(app_id, sorted(ids))}

    def affected(total: int, found: list[tuple[str, int]]) -> Affected:
        return Affected(total, [(records[one], at) for one, at in found if one in records])

    problem, share = _store_state()
    problems = current.sync_history.syncs(app_id, problems=True, limit=_SYNCS_SEARCHED).syncs
    failed = _failed_without_cohort(app_id, problems)
    failed_syncs = {
        cohort_id: sync
        for cohort_id, _ in incomplete.get(IncompleteReason.SYNC_FAILED, ())
        if (sync := _latest_failed(app_id, cohort_id))
    }
    first_problems = current.sync_history.first_problems(app_id, [*failed, *failed_syncs.values()])
    return Attention(
        problem,
        share,
        {reason: affected(reasons[reason], found) for reason, found in incomplete.items()},
        affected(counts[FreshnessState.LATE], states[FreshnessState.LATE]),
        affected(counts[FreshnessState.NEVER], states[FreshnessState.NEVER]),
        failed_syncs,
        failed,
        _followed(app_id, failed, first_problems),
        _left_out(app_id, problems),
        first_problems,
    )


def _store_state() -> tuple[str, float | None]:
    """Why the store accepts no writes, and how full it is if it is nearly full."""
    current = services().store
    try:
        problem = current.check().refuses_writes
    except StoreError as error:
        problem = error.reason
    if problem:
        return problem, None
    try:
        memory = current.server_info.memory()
    except StoreError:  # some hosted stores do not allow INFO
        return "", None
    share = memory.used / memory.limit if memory and memory.limit else 0
    return "", share if share >= _FULL_SHARE else None


def _latest_failed(app_id: str, cohort_id: str) -> Sync | None:
    page = store().sync_history.syncs(app_id, cohort_id=cohort_id, limit=_SYNCS_OF_COHORT_SEARCHED)
    return next((sync for sync in page.syncs if sync.failed), None)


def _failed_without_cohort(app_id: str, syncs: Iterable[Sync]) -> list[Sync]:
    """The latest failed requests that name no stored cohort, one for each id, source and reason.

    They may name a cohort that the store has lost, but none that was deleted since.
    """
    oldest = now_ms() - FAILED_SHOWN_MS
    failed = [sync for sync in syncs if sync.failed and sync.last_ms > oldest]
    ids = sorted({sync.cohort_id for sync in failed} - {""})
    known = {record.id for record in store().registry.records(app_id, ids)}
    deleted = store().registry.deleted_ms(app_id, ids)
    found: dict[tuple[str, ...], Sync] = {}
    for sync in failed:
        is_gone = deleted.get(sync.cohort_id, 0) > sync.last_ms
        if (
            sync.cohort_id not in known
            and not is_gone
            and set(sync.failures) != {CohortBeingDeleted.reason}
        ):
            found.setdefault((sync.cohort_id, *sync.sources, "", *sync.failures), sync)
    return list(found.values())[:NAMED]


def _followed(app_id: str, failed: list[Sync], problems: dict[int, FirstProblems]) -> set[int]:
    """Ids of the failed syncs that were followed by a success."""
    if not failed:
        return set()
    history = store().sync_history
    latest = history.syncs(app_id, limit=_SYNCS_SEARCHED).syncs
    named = {sync.id: problems[sync.id].unknown_cohorts for sync in failed if not sync.cohort_id}
    ids = sorted({one for found in named.values() for one in found})
    arrived = {sync.cohort_id: sync for sync in history.latest_of(app_id, ids)}

    def is_followed(sync: Sync) -> bool:
        if found := named.get(sync.id):
            later = [arrived.get(one) for one in found]
            return all(one and one.began_ms > sync.last_ms and not one.failed for one in later)
        return any(
            one.accepted and one.began_ms > sync.last_ms and not one.failed
            and one.sources.keys() >= sync.sources.keys() and one.keys.keys() >= sync.keys.keys()
            for one in latest
        )  # fmt: skip

    return {sync.id for sync in failed if not sync.cohort_id and is_followed(sync)}


def _left_out(app_id: str, syncs: Iterable[Sync]) -> list[Sync]:
    """The latest sync of each cohort whose latest sync left out unregistered users."""
    found = [sync for sync in syncs if sync.cohort_id and UnknownUser.reason in sync.reasons]
    latest = store().sync_history.latest_ids(app_id, [sync.cohort_id for sync in found])
    return [sync for sync in found if latest.get(sync.cohort_id) == sync.id]
