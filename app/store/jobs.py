"""Long work on cohorts, in small steps: renames and deletions.

Each step is one script call. Steps may be repeated, and may run beside requests and beside another
process that works on the same job.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import redis

from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys

# Half of the store time that a batch of a thousand users takes.
USERS_PER_STEP = 500
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
        changes_max_entries: int,
        spread_name: Callable[[str, str], str],
    ) -> None:
        self._client = client
        self._keys = keys
        self._max_entries = changes_max_entries
        self._spread_name = spread_name
        # The name that all partitions have, by rename in progress.
        self._names: dict[Job, str] = {}
        self._move = load_script(client, "move.lua")
        self._delete = load_script(client, "delete.lua")
        self._lease = load_script(client, "lease.lua")
        self._token = secrets.token_hex(8)

    def pending(self) -> list[Job]:
        """All unfinished jobs of all apps."""
        with store_errors():
            known: set[Any] = self._client.smembers(self._keys.apps())
            apps = sorted(app.decode() for app in known)
            places = [(app, p) for app in apps for p in range(self._keys.partitions)]
            with self._client.pipeline(transaction=False) as pipeline:
                for app_id, partition in places:
                    pipeline.smembers(self._keys.jobs(app_id, partition))
                found: list[set[bytes]] = pipeline.execute()
        return [
            Job(app_id, partition, cohort_id.decode())
            for (app_id, partition), cohort_ids in zip(places, found, strict=True)
            for cohort_id in sorted(cohort_ids)
        ]

    def lease(self, job: Job) -> bool:
        """Acquire or renew the lease of a job. False while another process holds it."""
        key = self._keys.cohort(*job, "lease")
        with store_errors():
            return bool(self._lease(keys=[key], args=[self._token, LEASE_MS]))

    def step(self, job: Job) -> int | None:
        """Work on a job for one step.

        Returns:
            The number of users looked at; None when the job is done.
        """
        with store_errors():
            state = self._keys.cohort(*job, "state")
            deletion, drained = self._client.hmget(state, "deleting", "drained")
            if not deletion:
                return self._step_rename(job)
            return self._step_deletion(job, deletion, bool(drained))

    def _step_rename(self, job: Job) -> int | None:
        done, looked_at = self._move_users(job)
        if done < 0:
            self._names[job] = self._spread_name(job.app_id, job.cohort_id)
            done, looked_at = self._move_users(job)
        if done > 0:
            self._names.pop(job, None)
            return None
        return looked_at

    def _move_users(self, job: Job) -> tuple[int, int]:
        args: list[str | int] = [job.cohort_id, USERS_PER_STEP]
        if self._keys.partitions > 1:
            args.append(self._names.get(job, ""))
        done, looked_at = self._move(keys=[self._stream(job)], args=args)
        return done, looked_at

    def _step_deletion(self, job: Job, deletion: bytes | str, drained: bool) -> int | None:
        """Remove some users; when no partition has any left, finish in all of them.

        The first partition is the first to be marked and the first to finish, so its mark decides
        whether the deletion is still in progress.
        """
        first, *others = self._all_partitions(job)
        in_progress = deletion if job == first else self._deletion(first)
        if not drained:
            if in_progress != deletion:
                self._call_delete("unmark", job, deletion)
                return None
            removed = int(self._call_delete("step", job, USERS_PER_STEP))
            if removed:
                return removed
        if in_progress:
            # The process that began the deletion may have ended before it marked all partitions.
            for other in others:
                self._call_delete("mark", other, in_progress)
        # Partitions finish together, so that none accepts the cohort again before the others.
        if all(self._is_drained(place) for place in (first, *others)):
            for place in (first, *others):
                is_home = place.partition == self._keys.partition(job.cohort_id)
                self._call_delete("finish", place, "home" if is_home else "")
        return None

    def begin_deletion(self, app_id: str, cohort_id: str) -> bool:
        """Mark a cohort for deletion: requests for it are refused from now on.

        Returns:
            False if the cohort is unknown.
        """
        with store_errors():
            first, *others = places = self._all_partitions(Job(app_id, 0, cohort_id))
            if not any(self._client.exists(self._keys.cohort(*job, "state")) for job in places):
                return False
            deletion = self._call_delete("begin", first, secrets.token_hex(8))
            for other in others:
                self._call_delete("mark", other, deletion)
            return True

    def users_to_delete(self, app_id: str, cohort_id: str) -> int:
        """The number of users that a deletion still has to remove from a cohort."""
        places = self._all_partitions(Job(app_id, 0, cohort_id))
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.zcard(self._keys.cohort(*place, "members"))
                pipeline.zcard(self._keys.cohort(*place, "left"))
            return sum(pipeline.execute())

    def delete_cohort(self, app_id: str, cohort_id: str) -> Iterator[int]:
        """Delete a cohort in this process; yields the number of users removed by each step."""
        if not self.begin_deletion(app_id, cohort_id):
            return
        for job in self._all_partitions(Job(app_id, 0, cohort_id)):
            while (removed := self.step(job)) is not None:
                yield removed

    def _stream(self, job: Job) -> str:
        return self._keys.changes(job.app_id, job.partition)

    def _call_delete(self, action: str, job: Job, value: str | bytes | int = "") -> Any:
        args: list[str | bytes | int] = [action, job.cohort_id, value, self._max_entries]
        return self._delete(keys=[self._stream(job)], args=args)

    def _all_partitions(self, job: Job) -> list[Job]:
        return [job._replace(partition=p) for p in range(self._keys.partitions)]

    def _deletion(self, job: Job) -> Any:
        """The id of the deletion in progress in one partition, if any."""
        return self._client.hget(self._keys.cohort(*job, "state"), "deleting")

    def _is_drained(self, job: Job) -> bool:
        deletion, drained = self._client.hmget(
            self._keys.cohort(*job, "state"), "deleting", "drained"
        )
        return bool(drained) or not deletion
