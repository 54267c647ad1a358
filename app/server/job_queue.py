"""The order in which a worker turns to pending jobs."""

from __future__ import annotations

from collections.abc import Iterable

from app.store import Job

# Pause before a failed job is tried again, doubled with each failure in a row.
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 30.0


class JobQueue:
    """Apps take turns, and so do the jobs of each app.

    A job that failed, or has to wait, returns to the queue after its pause; the others go on.
    Times are those of a monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        # Apps and their jobs in the order of their turns. Apps without jobs are left out.
        self._apps: dict[str, dict[Job, None]] = {}
        self._waiting: dict[Job, float] = {}
        self._failures: dict[Job, int] = {}

    def update(self, pending: Iterable[Job], now: float) -> None:
        """Update the pending jobs. New ones and those whose pause is over get a turn.

        Args:
            pending: all pending jobs, or a random selection if there are very many.
        """
        listed = dict.fromkeys(pending)
        self._waiting = {
            job: until for job, until in self._waiting.items() if until > now and job in listed
        }
        self._failures = {job: n for job, n in self._failures.items() if job in listed}
        known = [job for jobs in self._apps.values() for job in jobs if job in listed]
        # An app keeps its place even if all of its queued jobs are done, and new ones replace them.
        self._apps = {app_id: {} for app_id in self._apps}
        for job in (*known, *listed):
            if job not in self._waiting:
                self._apps.setdefault(job.app_id, {})[job] = None
        self._apps = {app_id: jobs for app_id, jobs in self._apps.items() if jobs}

    @property
    def apps(self) -> int:
        """How many apps have jobs in the queue."""
        return len(self._apps)

    def next(self) -> Job | None:
        """Take the next job out of the queue; None if there is none for now."""
        for app_id, jobs in self._apps.items():
            job = next(iter(jobs))
            del jobs[job], self._apps[app_id]
            if jobs:
                self._apps[app_id] = jobs  # behind the other apps
            return job
        return None

    def put_back(self, job: Job) -> None:
        """The job has had its turn, and needs another."""
        self._failures.pop(job, None)
        self._apps.setdefault(job.app_id, {})[job] = None

    def wait(self, job: Job, until: float) -> None:
        """Skip the job until then."""
        self._waiting[job] = until

    def fail(self, job: Job, now: float) -> float:
        """Skip the job for a while: longer after each failure in a row.

        Returns:
            The pause in seconds.
        """
        failures = self._failures[job] = self._failures.get(job, 0) + 1
        # The exponent is limited: a float cannot hold 2**1024.
        pause = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10), LONGEST_RETRY_SECONDS)
        self.wait(job, now + pause)
        return pause
