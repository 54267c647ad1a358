"""Background work: goes through the waiting jobs, slowly enough not to be felt.

Every web worker runs it as a greenlet, so that renames and deletions finish without a process of
their own; a lease in the store keeps two from doing the same. docs/decisions/background-work.md
says why.
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

# Seconds between two looks for work.
POLL_SECONDS = 2.0
# Seconds between two rounds of the small things that each worker does for itself.
ROUND_SECONDS = 1.0
# Seconds between two looks at what has become too old in each app's sync history.
TRIM_SECONDS = 60.0
# Rest after each step, as a multiple of the time that it took. That includes its wait for a busy
# store: there it gets about as many turns as one more sender, and never so few that a cohort which
# grows meanwhile is not caught up with.
REST = 2
# How long one job goes on while others wait, in seconds. Shorter than a lease.
TURN_SECONDS = 1.0


@dataclass
class _Progress:
    """A job, users that it has looked at here, and since when."""

    job: Job
    users: int = 0
    started: float = field(default_factory=time.monotonic)


class Background:
    """Works on jobs until the process ends.

    Args:
        failed: called when work has ended in an unexpected error.
        chores: small things that each worker does for itself every second.
    """

    def __init__(
        self,
        store: Store,
        failed: Callable[[], None] = lambda: None,
        chores: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._store = store
        self._failed = failed
        self._chores = chores
        self._trim_due = 0.0
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Begin, beside the requests of this process."""
        gevent.spawn(self.run)
        for chore in self._chores:
            # Each on its own: one that waits for the store must not hold up the others.
            gevent.spawn(self._repeat, chore)

    def _repeat(self, chore: Callable[[], None]) -> None:
        while True:
            try:
                chore()
            except Exception as error:  # noqa: BLE001
                self._fail(error)
            time.sleep(ROUND_SECONDS)

    def _fail(self, error: Exception) -> None:
        self._failed()
        self._log.error("background work failed", exc_info=error)
        sentry.report(error, {"task": "background"})

    def run(self) -> None:
        """Work for ever. A store that can't be had is waited for."""
        while True:
            try:
                self.work()
            except StoreError as error:
                self._log.warning("background work waits", reason=error.reason)
            except Exception as error:  # noqa: BLE001
                # A bug in one job must not end the others' work for good.
                self._fail(error)
            time.sleep(POLL_SECONDS)

    def work(self) -> None:
        """Do all the work that is waiting and that no other process has.

        The jobs go on in turns, so that a large one of one app does not keep another app waiting.
        """
        if time.monotonic() >= self._trim_due:
            self._trim_due = time.monotonic() + TRIM_SECONDS
            for app_id in self._store.apps():  # also of those that send nothing any more
                self._store.sync_history.trim(app_id)
        for app_id, cohort_id in {
            (job.app_id, job.cohort_id) for job in self._store.jobs.pending()
        }:
            with suppress(StoreFull):  # to be done when there is room, as the rename itself
                self._store.memberships.spread_name(app_id, cohort_id)
        going_on = [_Progress(job) for job in self._store.jobs.pending()]
        while going_on:
            going_on = [progress for progress in going_on if self._advance_if_room(progress)]

    def _advance_if_room(self, progress: _Progress) -> bool:
        """As :meth:`_advance`. A rename that a full store refuses is left for the next look: the
        others go on, as deletions make room.
        """
        try:
            return self._advance(progress)
        except StoreFull as error:
            self._log.warning(
                "background work waits", reason=error.reason, cohort=progress.job.cohort_id
            )
            return False

    def _advance(self, progress: _Progress) -> bool:
        """Work on a job for one turn. Whether there is more of it to do here."""
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
            time.sleep((time.monotonic() - before) * REST)
            if time.monotonic() > turn_ends:
                return True
        return False
