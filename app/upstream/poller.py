"""Reads Amplitude's record of every cohort periodically, and compares it with what arrived.

docs/decisions/upstream.md has the reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import structlog

from app.cohorts import (
    Completeness,
    CompletenessState,
    Freshness,
    IncompleteReason,
    Status,
    Upstream,
    VerifiedBy,
)
from app.cohorts.upstream import CountCheck, UpstreamCohort, awaits_sync
from app.store import Store, StoreError, Tuning
from app.store.upstream import POLL, Verdict
from app.upstream.errors import UpstreamError

if TYPE_CHECKING:
    from app.upstream.client import Client

# How often a process checks whether a poll is due.
LOOK_SECONDS = 10.0
# A judgement holds until two polls in a row have failed.
_HOLDS_POLLS = 2
_HOLDS_MORE_MS = 300_000
# A sync has ended once nothing has arrived for this long.
_SYNC_PAUSE_MS = 300_000
_ABSENT_KEPT = 100
_COHORTS_AT_ONCE = 200


class Poller:
    """Polls Amplitude for some apps; one process at a time does it for each.

    Args:
        clients: by app id.
        known_only: only registered users are added.
        failed: called with the reason of each poll that failed.
    """

    def __init__(
        self,
        store: Store,
        clients: Mapping[str, Client],
        *,
        minutes: float,
        known_only: bool = False,
        failed: Callable[[str], None] = lambda _: None,
        tuning: Tuning,
    ) -> None:
        self._store = store
        self._clients = clients
        self._seconds = minutes * 60
        self._known_only = known_only
        self._failed = failed
        self._now = tuning.now
        self._look_due = 0.0
        self._log = structlog.get_logger()

    def work(self) -> None:
        """Poll for each app for which a poll is due, unless another process does."""
        if time.monotonic() < self._look_due:
            return
        self._look_due = time.monotonic() + LOOK_SECONDS
        upstream = self._store.upstream
        for app_id in self._clients:
            try:
                if upstream.is_turn_taken(app_id, POLL, self._seconds):
                    continue
                with upstream.lease(app_id, POLL) as is_ours:
                    if is_ours and upstream.take_turn(app_id, POLL, self._seconds):
                        failure = self.poll(app_id)
                        if failure:
                            self._log.warning(
                                "upstream poll failed", app=app_id, reason=failure.reason
                            )
            except StoreError as error:
                self._log.warning("upstream poll paused", app=app_id, **error.log_fields)

    def poll(self, app_id: str) -> UpstreamError | None:
        """Poll for one app now. Returns why it failed, or None. Raises StoreError."""
        try:
            listed = self._clients[app_id].cohorts()
        except UpstreamError as error:
            self._failed(error.reason)
            self._store.upstream.note_failure(app_id, error.reason)
            return error
        missing = {cohort.id: cohort for cohort in listed}
        behind = 0
        for cohort_ids in self._known(app_id):
            found = [missing.pop(cohort_id, None) for cohort_id in cohort_ids]
            behind += self._compare(app_id, dict(zip(cohort_ids, found, strict=True)))
        absent = [c for c in missing.values() if c.is_synced and not c.archived]
        self._store.upstream.note_poll(
            app_id,
            listed=len(listed),
            absent=[_described(cohort) for cohort in absent[:_ABSENT_KEPT]],
            total=len(absent),
            behind=behind,
        )
        return None

    def _known(self, app_id: str) -> Iterator[list[str]]:
        """The ids of all cohorts here, some at a time."""
        after = ""
        while ids := self._store.registry.ids(app_id, after=after, limit=_COHORTS_AT_ONCE):
            yield ids
            after = ids[-1]

    def _compare(self, app_id: str, found: Mapping[str, UpstreamCohort | None]) -> int:
        """Note and judge Amplitude's record of some cohorts.

        Args:
            found: the record of each cohort; None if Amplitude does not list it.

        Returns:
            The number of cohorts whose sync is overdue.
        """
        ids = list(found)
        completeness = dict(zip(ids, self._store.completeness.of(app_id, ids), strict=True))
        for cohort_id, cohort in found.items():
            if cohort is None and completeness[cohort_id].upstream is not None:
                self._store.completeness.set_upstream(app_id, cohort_id, None)
                self._store.upstream.judge(app_id, cohort_id, Verdict())
        listed = {cohort_id: cohort for cohort_id, cohort in found.items() if cohort}
        ids = list(listed)
        members = {
            record.id: record.members
            for record in self._store.registry.records(app_id, ids)
            if record.status is not Status.DELETING
        }
        rows = zip(
            ids,
            self._store.freshness.of(app_id, ids),
            self._store.upstream.differed(app_id, ids),
            self._store.upstream.excluded(app_id, ids),
            strict=True,
        )
        behind = 0
        for cohort_id, freshness, differed, excluded in rows:
            cohort, known = listed[cohort_id], completeness[cohort_id]
            self._store.completeness.set_upstream(app_id, cohort_id, _record(cohort))
            check = None
            if cohort.size is not None and freshness.last_received_ms and cohort_id in members:
                anonymous = (known.upstream and known.upstream.anonymous) or 0
                most = max(0, cohort.size - anonymous)
                expected = max(0, most - excluded)
                check = CountCheck(expected, members[cohort_id], most if self._known_only else None)
            differs = self._judge_count(app_id, cohort, known, freshness, check, differed)
            verdict = self._verdict(cohort, freshness, differs)
            self._store.upstream.judge(app_id, cohort_id, verdict)
            behind += verdict.behind_ms is not None
        return behind

    def _judge_count(
        self,
        app_id: str,
        cohort: UpstreamCohort,
        known: Completeness,
        freshness: Freshness,
        check: CountCheck | None,
        differed: str | None,
    ) -> str | None:
        """Raise or clear a reason, or verify a cohort, by its count.

        Returns:
            What identifies the last sync if the counts differ; None if they agree, are unknown, or
            await a sync.
        """
        if check is None:
            return None
        completeness = self._store.completeness
        reasons = {open.reason for open in known.reasons}
        if not check.differs:
            if IncompleteReason.COUNT_DIFFERS in reasons:
                completeness.clear_reason(app_id, cohort.id, IncompleteReason.COUNT_DIFFERS)
            is_verified = known.state is CompletenessState.VERIFIED
            if check.is_exact and not is_verified and not self._awaits_sync(cohort):
                completeness.verify(app_id, cohort.id, VerifiedBy.UPSTREAM)
            return None
        if self._awaits_sync(cohort) or self._first_sync_goes_on(cohort, freshness):
            return None
        # A sync between two polls changes one of the two times.
        state = f"{freshness.last_received_ms}:{cohort.last_success_ms}"
        if state == differed and IncompleteReason.COUNT_DIFFERS not in reasons:
            completeness.raise_reason(app_id, cohort.id, IncompleteReason.COUNT_DIFFERS)
            self._log.warning(
                "upstream count differs",
                app=app_id,
                cohort=cohort.id,
                expected=check.expected,
                members=check.members,
            )
        return state

    def _verdict(
        self, cohort: UpstreamCohort, freshness: Freshness, differs: str | None
    ) -> Verdict:
        period_ms = freshness.cadence_ms if freshness.cadence_is_set else None
        behind_ms = cohort.behind_since_ms(period_ms)
        if behind_ms is None or cohort.archived:  # no sync of an archived one is expected
            return Verdict(differs=differs)
        holds_ms = int(self._seconds * 1000) * _HOLDS_POLLS + _HOLDS_MORE_MS
        return Verdict(holds_ms, behind_ms if behind_ms < self._now_ms() else None, differs)

    def _awaits_sync(self, cohort: UpstreamCohort) -> bool:
        return awaits_sync(cohort, self._now_ms())

    def _first_sync_goes_on(self, cohort: UpstreamCohort, freshness: Freshness) -> bool:
        """Whether a cohort's first sync may still be arriving.

        Even two polls may come before its end: the command ``cohorts upstream`` polls at any time.
        """
        last_ms = freshness.last_received_ms or 0
        has_ended = cohort.last_success_ms or cohort.last_failure_ms or not cohort.is_synced
        return not has_ended and self._now_ms() - last_ms < _SYNC_PAUSE_MS

    def _now_ms(self) -> int:
        return int(self._now() * 1000)


def _record(cohort: UpstreamCohort) -> Upstream:
    return Upstream(
        size=cohort.size,
        computed_at_ms=cohort.computed_at_ms,
        frequency=cohort.frequency,
        last_success_ms=cohort.last_success_ms,
        last_failure_ms=cohort.last_failure_ms,
    )


def _described(cohort: UpstreamCohort) -> dict[str, str | int | None]:
    return {
        "id": cohort.id,
        "name": cohort.name,
        "size": cohort.size,
        "frequency": cohort.frequency,
        "lastSuccess": cohort.last_success_ms,
        "lastFailure": cohort.last_failure_ms,
        "targets": ", ".join(cohort.targets),
    }
