"""Background work: goes through the waiting jobs, slowly enough not to be felt.

Every web worker runs it as a greenlet, so that renames and deletions finish without a process of
their own; a lease in the store keeps two from doing the same. docs/decisions/background-work.md
says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent
import structlog

from app import reporting
from app.store import Store, StoreError

# Seconds between two looks for work.
POLL_SECONDS = 2.0
# Seconds between two rounds of the small things that each worker does for itself.
ROUND_SECONDS = 1.0
# Rest after each step, as a multiple of the time that it took. That includes its wait for a busy
# store: there it gets about as many turns as one more sender, and never so few that a cohort which
# grows meanwhile is not caught up with.
REST = 2


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
        reporting.report(error, {"task": "background"})

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
        """Do all the work that is waiting and that no other process has."""
        for app_id, cohort_id in {
            (job.app_id, job.cohort_id) for job in self._store.lifecycle.jobs()
        }:
            self._store.spread_name(app_id, cohort_id)
        for job in self._store.lifecycle.jobs():
            looked_at, started = 0, time.monotonic()
            while self._store.lifecycle.lease(job):
                before = time.monotonic()
                users = self._store.lifecycle.step(job)
                if users is None:
                    self._log.info(
                        "background job done",
                        app=job.app_id,
                        cohort=job.cohort_id,
                        partition=job.partition,
                        users=looked_at,
                        seconds=round(time.monotonic() - started, 2),
                    )
                    break
                looked_at += users
                time.sleep((time.monotonic() - before) * REST)
