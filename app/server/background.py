"""Background work: renames and deletions, slow enough not to disturb requests.

Every web worker runs it as a greenlet, so no separate process is needed; a lease in the store keeps
two workers off the same job. docs/decisions/background-work.md has the reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import gevent
import structlog

from app.store import Job, Store, StoreError, StoreFull
from app.telemetry import sentry

JOBS_POLL_SECONDS = 2.0
PERIODIC_SECONDS = 1.0
TRIM_HISTORY_SECONDS = 60.0
# Pause after each step, as a multiple of its duration. That includes the wait for a busy store, so
# background work gets about the share of one more sender: enough to overtake a growing cohort.
PAUSE_FACTOR = 2
# How long to work on one job while others wait. Shorter than a lease.
TURN_SECONDS = 1.0


@dataclass
class _Progress:
    """A job, the users it has processed in this worker, and since when."""

    job: Job
    users: int = 0
    started: float = field(default_factory=time.monotonic)


class Background:
    """Works on jobs until the process ends.

    Args:
        failed: called after an unexpected error.
        periodic: functions to call every second in each worker.
    """

    def __init__(
        self,
        store: Store,
        failed: Callable[[], None] = lambda: None,
        periodic: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._store = store
        self._failed = failed
        self._periodic = periodic
        self._trim_due = 0.0
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Run in greenlets of this process."""
        gevent.spawn(self.run)
        for function in self._periodic:
            # In separate greenlets: one that waits for the store must not block the others.
            gevent.spawn(self._repeat, function)

    def _repeat(self, function: Callable[[], None]) -> None:
        while True:
            try:
                function()
            except Exception as error:  # noqa: BLE001
                self._fail(error)
            time.sleep(PERIODIC_SECONDS)

    def _fail(self, error: Exception) -> None:
        self._failed()
        self._log.error("background work failed", exc_info=error)
        sentry.report(error, {"task": "background"})

    def run(self) -> None:
        """Work forever. While the store is unavailable, try again."""
        while True:
            try:
                self.work()
            except StoreError as error:
                self._log.warning("background work paused", reason=error.reason)
            except Exception as error:  # noqa: BLE001
                # A bug in one job must not stop the others permanently.
                self._fail(error)
            time.sleep(JOBS_POLL_SECONDS)

    def work(self) -> None:
        """Do all pending work that no other process has leased.

        Jobs take turns, so that a large job of one app does not block those of other apps.
        """
        if time.monotonic() >= self._trim_due:
            self._trim_due = time.monotonic() + TRIM_HISTORY_SECONDS
            for app_id in self._store.apps():  # including those that have stopped sending
                self._store.sync_history.trim(app_id)
        for app_id, cohort_id in {
            (job.app_id, job.cohort_id) for job in self._store.jobs.pending()
        }:
            with suppress(StoreFull):  # retried later, like the rename itself
                self._store.memberships.spread_name(app_id, cohort_id)
        unfinished = [_Progress(job) for job in self._store.jobs.pending()]
        while unfinished:
            unfinished = [progress for progress in unfinished if self._advance_if_room(progress)]

    def _advance_if_room(self, progress: _Progress) -> bool:
        """As :meth:`_advance`. A rename that a full store refuses is retried later: the other jobs
        continue, since deletions make room.
        """
        try:
            return self._advance(progress)
        except StoreFull as error:
            self._log.warning(
                "background work paused", reason=error.reason, cohort=progress.job.cohort_id
            )
            return False

    def _advance(self, progress: _Progress) -> bool:
        """Work on a job for one turn. Returns whether it is unfinished and still leased."""
        job, turn_ends = progress.job, time.monotonic() + TURN_SECONDS
        while self._store.jobs.lease(job):
            before = time.monotonic()
            users = self._store.jobs.step(job)
            if users is None:
                self._log.info(
                    "background job done",
                    app=job.app_id,
                    cohort=job.cohort_id,
                    partition=job.partition,
                    users=progress.users,
                    seconds=round(time.monotonic() - progress.started, 2),
                )
                return False
            progress.users += users
            time.sleep((time.monotonic() - before) * PAUSE_FACTOR)
            if time.monotonic() > turn_ends:
                return True
        return False
