"""Long work on cohorts, in small steps: renames and deletions.

Each step is one script call that is safe to repeat, and to run concurrently with requests and with
another process that works on the same job.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import redis

from app.store.connection.scripts import load_script
from app.store.deletion import USERS_PER_STEP, Deletions
from app.store.errors import StoreError, store_errors
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

# How long a process keeps a job after its last step.
LEASE_MS = 5000


class Job(NamedTuple):
    """Work to do on one cohort in one partition."""

    app_id: str
    partition: int
    cohort_id: str


class Jobs:
    """Finds jobs and works on them. Raises StoreError; finished steps stay finished."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        apps: Callable[[], list[str]],
        deletions: Deletions,
        spread_name: Callable[[str, str], int],
        tuning: Tuning = DEFAULT,
    ) -> None:
        self._listed_at_once = tuning.jobs_listed
        self._client = client
        self._keys = keys
        self._apps = apps
        self._deletions = deletions
        self._spread_name = spread_name
        # For each rename in progress, how many renames of the cohort have reached all partitions.
        self._spread: dict[Job, int] = {}
        self._move = load_script(client, "move.lua")
        self._lease = load_script(client, "lease.lua")
        self._token = secrets.token_hex(8)

    def pending(self, app_ids: Sequence[str] | None = None) -> list[Job]:
        """Unfinished jobs, by default of all apps; a random selection where there are very many.

        Jobs of unavailable partitions are left out.

        Raises:
            StoreError: none is available.
        """
        places = self._partitions(app_ids)
        # A random selection, so that all get their turn.
        listed = self._ask("SRANDMEMBER", places, self._listed_at_once)
        jobs = [
            Job(app_id, partition, cohort_id.decode())
            for (app_id, partition), cohort_ids in zip(places, listed, strict=True)
            for cohort_id in sorted(cohort_ids or ())
        ]
        if app_ids is None:  # forget those that another process has completed
            self._spread = {job: self._spread[job] for job in jobs if job in self._spread}
        return jobs

    def count(self, app_ids: Sequence[str] | None = None) -> int:
        """How many unfinished jobs there are, without those of unavailable partitions."""
        return sum(count or 0 for count in self._ask("SCARD", self._partitions(app_ids)))

    def _partitions(self, app_ids: Sequence[str] | None) -> list[tuple[str, int]]:
        apps = self._apps() if app_ids is None else app_ids
        return [(app, p) for app in apps for p in range(self._keys.partitions)]

    def _ask(self, command: str, places: list[tuple[str, int]], *args: Any) -> list[Any]:
        """The replies to a command about the jobs of each partition; None if it is unavailable."""
        client: Any = self._client
        try:
            with store_errors(), client.pipeline(transaction=False) as pipeline:
                for place in places:
                    pipeline.execute_command(command, self._keys.jobs(*place), *args)
                replies: list[Any] = pipeline.execute()
                return replies
        except StoreError as error:
            # One by one, so that an unavailable partition does not hide the jobs of the others.
            found: list[Any] = []
            for place in places:
                try:
                    with store_errors():
                        key = self._keys.jobs(*place)
                        found.append(client.execute_command(command, key, *args))
                except StoreError:
                    found.append(None)
            if all(reply is None for reply in found):
                raise error
            return found

    def lease(self, job: Job) -> bool:
        """Acquire or renew the lease of a job. False while another process holds it."""
        key = self._keys.cohort(*job, "lease")
        with store_errors():
            return bool(self._lease(keys=[key], args=[self._token, LEASE_MS]))

    def step(self, job: Job) -> int | None:
        """Work on a job for one step.

        Returns:
            The number of users looked at; 0 while a deletion waits for other partitions; None when
            the job is done.
        """
        with store_errors():
            state = self._keys.cohort(*job, "state")
            mark, drained = self._client.hmget(state, "deleting", "drained")
            if not mark:
                return self._step_rename(job)
            return self._deletions.step(*job, mark, bool(drained))

    def _step_rename(self, job: Job) -> int | None:
        done, looked_at = self._move_users(job)
        if done < 0:
            self._spread[job] = self._spread_name(job.app_id, job.cohort_id)
            done, looked_at = self._move_users(job)
        if done > 0:
            self._spread.pop(job, None)
            if self._keys.partitions > 1:
                # A newer name may have had to wait for this rename; see UNMOVED_NAMES in apply.lua.
                self._spread_name(job.app_id, job.cohort_id)
            return None
        return looked_at

    def _move_users(self, job: Job) -> tuple[int, int]:
        args: list[str | int] = [job.cohort_id, USERS_PER_STEP]
        if self._keys.partitions > 1:
            args.append(self._spread.get(job, -1))
        done, looked_at = self._move(keys=[self._stream(job)], args=args)
        return done, looked_at

    def begin_deletion(self, app_id: str, cohort_id: str) -> bool:
        """Mark a cohort for deletion: requests for it are refused from now on.

        Returns:
            False if the cohort is unknown.
        """
        return self._deletions.begin(app_id, cohort_id)

    def users_to_delete(self, app_id: str, cohort_id: str) -> int:
        """The number of users that a deletion still has to remove from a cohort."""
        places = self._places(Job(app_id, 0, cohort_id))
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.zcard(self._keys.cohort(*place, "members"))
                pipeline.zcard(self._keys.cohort(*place, "left"))
            return sum(pipeline.execute())

    def delete_cohort(self, app_id: str, cohort_id: str) -> Iterator[int]:
        """Delete a cohort in this process; yields the number of users removed by each step."""
        if not self.begin_deletion(app_id, cohort_id):
            return
        for job in self._places(Job(app_id, 0, cohort_id)):
            while removed := self.step(job):
                yield removed

    def _stream(self, job: Job) -> str:
        return self._keys.changes(job.app_id, job.partition)

    def _places(self, job: Job) -> list[Job]:
        """The same cohort in all partitions."""
        return [job._replace(partition=p) for p in range(self._keys.partitions)]
