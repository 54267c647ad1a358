"""Background work: renames, deletions and old data, slow enough not to disturb requests.

Every web worker runs it as a greenlet, so no separate process is needed; a lease in the store keeps
two workers off the same job. docs/decisions/background-work.md has the reasons.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import gevent
import structlog

from app.server.job_queue import JobQueue
from app.store import Job, Store, StoreError
from app.telemetry import sentry

JOBS_POLL_SECONDS = 2.0
PERIODIC_SECONDS = 1.0
REMOVE_OLD_SECONDS = 60.0
# Pause after each step, as a multiple of its duration. The duration includes waiting for a busy
# store, so background work gets about as much of the store's time as one additional sender would:
# enough to finish even while the cohort grows.
PAUSE_FACTOR = 2
# How often to look for new jobs while others are in progress.
LIST_SECONDS = 1.0
# Roughly how long an app waits for its next turn if all other apps use theirs in full.
ROUND_SECONDS = 2.0
# Bounds for the time that a worker stays with one job. Shorter than a lease.
SHORTEST_TURN_SECONDS, LONGEST_TURN_SECONDS = 0.05, 1.0


@dataclass
class _Progress:
    """The users that a job has processed in this worker, and since when."""

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
        self._queue = JobQueue()
        self._progress: dict[Job, _Progress] = {}
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Run in greenlets of this process."""
        gevent.spawn(self._forever, self.work, JOBS_POLL_SECONDS)
        gevent.spawn(self._forever, self.remove_old, REMOVE_OLD_SECONDS)
        for function in self._periodic:
            # In separate greenlets: one that waits for the store must not block the others.
            gevent.spawn(self._forever, function, PERIODIC_SECONDS)

    def spawn(self, function: Callable[[], object]) -> None:
        """Run a function once, in a greenlet of this process."""
        gevent.spawn(self._once, function)

    def _fail(self, error: Exception) -> None:
        self._failed()
        self._log.error("background work failed", exc_info=error)
        sentry.report(error, {"task": "background"})

    def _forever(self, work: Callable[[], None], pause: float) -> None:
        """Repeat the work forever, even while the store is unavailable."""
        while True:
            self._once(work)
            time.sleep(pause)

    def _once(self, work: Callable[[], object]) -> None:
        try:
            work()
        except StoreError as error:
            self._log.warning("background work paused", **error.log_fields)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def remove_old(self) -> None:
        """Remove what is older than its limit, some of each app in turn."""
        for forget in (
            self._store.api_keys.forget_ended,
            self._store.sync_history.forget_unknown_callers,
        ):
            try:
                forget()
            except StoreError as error:
                self._log.warning("old data not removed", **error.log_fields)
        partitions = range(self._store.keys.partitions)
        rest = deque(
            (app_id, self._store.retention.steps(app_id, partition))
            for app_id in self._store.apps()  # including those that have stopped sending
            for partition in partitions
        )
        while rest:
            app_id, steps = rest.popleft()
            before = time.monotonic()
            try:
                for _ in islice(steps, 1):
                    rest.append((app_id, steps))
            except StoreError as error:
                self._log.warning("old data not removed", **error.log_fields, app=app_id)
            time.sleep((time.monotonic() - before) * PAUSE_FACTOR)

    def work(self) -> None:
        """Work on jobs that no other process has leased, until each is done, failed or has to wait.

        New jobs are found while others are in progress, and a failing job does not stop the others.
        """
        list_due, worked = -math.inf, False
        while True:
            now = time.monotonic()
            if now >= list_due:
                self._list_jobs(now)
                list_due = now + LIST_SECONDS
            job = self._queue.next()
            if job is None:
                if not worked:
                    return
                # A rename makes jobs in other partitions.
                worked, list_due = False, now
                continue
            worked = True
            try:
                self._take_turn(job)
            except StoreError as error:
                pause = self._queue.fail(job, time.monotonic())
                self._log.warning(
                    "background work paused", **error.log_fields, seconds=pause, **_labels(job)
                )
            except Exception as error:  # noqa: BLE001
                self._queue.fail(job, time.monotonic())
                self._fail(error)

    def _list_jobs(self, now: float) -> None:
        pending = self._store.jobs.pending()
        self._queue.update(pending, now)
        self._progress = {job: self._progress[job] for job in pending if job in self._progress}

    def _take_turn(self, job: Job) -> None:
        """Work on a job for one turn, and put it back where it belongs in the queue."""
        progress = self._progress.setdefault(job, _Progress())
        seconds = max(SHORTEST_TURN_SECONDS, ROUND_SECONDS / (self._queue.apps + 1))
        turn_ends = time.monotonic() + min(seconds, LONGEST_TURN_SECONDS)
        while self._store.jobs.lease(job):
            before = time.monotonic()
            users = self._store.jobs.step(job)
            if users is None:
                self._log.info(
                    "background job done",
                    users=progress.users,
                    seconds=round(time.monotonic() - progress.started, 2),
                    **_labels(job),
                )
                return
            progress.users += users
            time.sleep((time.monotonic() - before) * PAUSE_FACTOR)
            if not users:
                break
            if time.monotonic() > turn_ends:
                self._queue.put_back(job)
                return
        # Another process has the job, or it waits for other partitions.
        self._queue.wait(job, time.monotonic() + LIST_SECONDS)


def _labels(job: Job) -> dict[str, str | int]:
    return {"app": job.app_id, "cohort": job.cohort_id, "partition": job.partition}
