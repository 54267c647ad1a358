"""Long work on cohorts and users, in small steps: renames, deletions, erasure.

Every step is one script call, may be repeated, and may run beside ingest and beside another
process that does the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import orjson
import redis

from app.cohorts import Cohort
from app.store.connection.scripts import load_script
from app.store.errors import StoreError, translated
from app.store.keys import Keys
from app.store.size_history import Sizes

# Users that one step looks at: about half of what a batch of a thousand takes of the store's time.
USERS_PER_STEP = 500
# Entries of the change stream that are read at a time.
_ENTRIES_PER_READ = 50
# Of one user, traits that a step erases: about two milliseconds of the store's time.
TRAITS_PER_STEP = 250
# Cohorts that a step looks for a user in: about a millisecond.
COHORTS_PER_STEP = 250
# How often the traits of a user who is erased may turn out to be others by now.
_LOOKS = 100
# How long a process keeps a job to itself after its last step.
LEASE_MS = 5000


class Job(NamedTuple):
    """Work to do on one cohort in one partition."""

    app_id: str
    partition: int
    cohort_id: str


class Erased(NamedTuple):
    """What erasing a user has done.

    ``traits`` counts memberships that had lost their trait as well. ``stream_entries_kept`` tell
    about other users too. They can't be changed, and leave the stream by age.
    """

    traits: int
    stream_entries_removed: int
    stream_entries_kept: int


class Lifecycle:
    """Steps of long work. Raises StoreError; what was done till then stays done."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        changes_max_entries: int,
        spread_name: Callable[[str, str], str],
    ) -> None:
        self._client = client
        self._spread_name = spread_name
        # Of jobs that this process works on, the name that all partitions were told of.
        self._told: dict[Job, str] = {}
        self._keys = keys
        self._max_entries = changes_max_entries
        self._move = load_script(client, "move.lua")
        self._delete = load_script(client, "delete.lua")
        self._erase = load_script(client, "erase.lua")
        self._erase_memberships = load_script(client, "erase_memberships.lua")
        self._erase_entries = load_script(client, "erase_entries.lua")
        self._lease = load_script(client, "lease.lua")
        self._remove_users = load_script(client, "remove_users.lua")
        self._sizes = Sizes(client, keys)
        self._token = secrets.token_hex(8)

    def jobs(self) -> list[Job]:
        """All work that is waiting, of all apps."""
        with translated():
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
        """Take a job, or keep it: False while another process works on it."""
        key = self._keys.cohort(*job, "lease")
        with translated():
            return bool(self._lease(keys=[key], args=[self._token, LEASE_MS]))

    def step(self, job: Job) -> int | None:
        """Do a little of a job. Returns the users looked at; None when the job is done."""
        with translated():
            state = self._keys.cohort(*job, "state")
            deleting, drained = self._client.hmget(state, "deleting", "drained")
            if not deleting:
                return self._move_some(job)
            first, *others = self._all_partitions(job)
            # The first partition is the first to be marked and the first to be finished: what it
            # says of a deletion holds for all.
            going_on = deleting if job == first else self._deletion(first)
            if not drained:
                if going_on != deleting:
                    self._delete_call("unmark", job, deleting)
                    return None
                taken_out = int(self._delete_call("step", job, USERS_PER_STEP))
                if taken_out:
                    return taken_out
            if going_on:
                # Whoever began it may have been stopped before all were marked.
                for other in others:
                    self._delete_call("mark", other, going_on)
            # A partition that is empty waits for the others, so that none starts afresh early.
            if all(self._is_drained(place) for place in (first, *others)):
                for place in (first, *others):
                    self._delete_call("finish", place)
            return None

    def _move_some(self, job: Job) -> int | None:
        done, looked_at = self._try_to_move(job)
        if done < 0:
            self._told[job] = self._spread_name(job.app_id, job.cohort_id)
            done, looked_at = self._try_to_move(job)
        if done > 0:
            self._told.pop(job, None)
            return None
        return looked_at

    def _try_to_move(self, job: Job) -> tuple[int, int]:
        args: list[str | int] = [job.cohort_id, USERS_PER_STEP]
        if self._keys.partitions > 1:
            args.append(self._told.get(job, ""))
        done, looked_at = self._move(keys=[self._stream(job)], args=args)
        return done, looked_at

    def begin_delete(self, app_id: str, cohort_id: str) -> bool:
        """Mark a cohort for deletion: pushes are refused from now on. False if it's not known."""
        with translated():
            first, *others = places = self._all_partitions(Job(app_id, 0, cohort_id))
            if not any(self._client.exists(self._keys.cohort(*job, "state")) for job in places):
                return False
            going_on = self._delete_call("begin", first, secrets.token_hex(8))
            for other in others:
                self._delete_call("mark", other, going_on)
            return True

    def remaining(self, app_id: str, cohort_id: str) -> int:
        """Users of a cohort whom a deletion still has to take out, whoever works on it."""
        places = self._all_partitions(Job(app_id, 0, cohort_id))
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.zcard(self._keys.cohort(*place, "members"))
                pipeline.zcard(self._keys.cohort(*place, "left"))
            return sum(pipeline.execute())

    def delete(self, app_id: str, cohort_id: str) -> Iterator[int]:
        """Delete a cohort here and now; yields the number of users of each step."""
        if not self.begin_delete(app_id, cohort_id):
            return
        for job in self._all_partitions(Job(app_id, 0, cohort_id)):
            while (looked_at := self.step(job)) is not None:
                yield looked_at

    def stream_entries(self, app_id: str, user_id: str) -> int:
        """How many entries of the change stream erasing a user will look at."""
        with translated():
            return int(self._client.xlen(self._keys.changes(app_id, self._keys.partition(user_id))))

    def erase(
        self,
        app_id: str,
        user_id: str,
        *,
        suppress: bool = False,
        progress: Callable[[int], None] = lambda entries: None,
    ) -> Erased:
        """Erase a user: hash, memberships, registration, and the stream's entries as far as can be.

        Of a user with very many traits some go at a time; a repeat completes what was cut short.

        Args:
            suppress: refuse the user in later syncs.
            progress: called with a number of entries of the stream that were looked at.
        """
        place = app_id, self._keys.partition(user_id)
        stream, options = self._keys.changes(*place), (user_id, "suppress" if suppress else "")
        traits = looks = 0
        with translated():
            while True:
                args: list[str | bytes | int] = [*options, TRAITS_PER_STEP]
                found = self._some_traits(self._keys.user(app_id, user_id))
                for trait in found:
                    args += (trait, Cohort.from_trait(trait.decode()).id)
                rest, last = self._erase(keys=[stream], args=args)
                if rest >= 0:
                    traits += len(found)
                    was_in = [name for name, value in found.items() if value == b"true"]
                    self._sizes.note(
                        app_id, sorted({Cohort.from_trait(name.decode()).id for name in was_in})
                    )
                if rest == 0:
                    break
                # A step that took some out brings the end nearer; any other is a look in vain.
                looks += rest < 0 or not found
                if looks > _LOOKS:
                    raise StoreError("The user's traits kept changing.")
            traits += self._erase_untold(place, user_id)
            removed, kept = self._erase_from(place, user_id, last.decode(), progress)
        return Erased(traits, removed, kept)

    def _erase_untold(self, place: tuple[str, int], user_id: str) -> int:
        """Erase memberships that the user's hash did not tell of. Returns how many there were."""
        untold, start, stream = 0, "-", self._keys.changes(*place)
        while True:
            cohort_ids: Any = self._client.zrange(
                self._keys.cohorts(*place), start, "+", bylex=True, offset=0, num=COHORTS_PER_STEP
            )
            if not cohort_ids:
                return untold
            found = self._erase_memberships(keys=[stream], args=[user_id, *cohort_ids])
            self._sizes.note(place[0], [cohort_id.decode() for cohort_id in found])
            untold += len(found)
            start = f"({cohort_ids[-1].decode()}"

    def _some_traits(self, key: str) -> dict[bytes, bytes]:
        """All traits of a user; of one with very many, some."""
        if self._client.hlen(key) <= TRAITS_PER_STEP:
            found: Any = self._client.hgetall(key)
            return dict(found)
        cursor: Any = 0
        while True:
            scanned: Any = self._client.hscan(key, cursor, count=TRAITS_PER_STEP)
            cursor, some = scanned
            if some or not cursor:
                return dict(islice(some.items(), TRAITS_PER_STEP))

    def unsuppress(self, app_id: str, user_id: str) -> bool:
        """Take a user in again. False if the user was not suppressed."""
        stream = self._keys.changes(app_id, self._keys.partition(user_id))
        with translated():
            return bool(self._remove_users(keys=[stream], args=["suppressed", user_id]))

    def _erase_from(
        self, place: tuple[str, int], user_id: str, last: str, progress: Callable[[int], None]
    ) -> tuple[int, int]:
        """Remove the entries up to ``last`` that are about this user alone.

        What came later is about a user who was taken in again, and stays.
        """
        stream = self._keys.changes(*place)
        removed = kept = 0
        start = "-"
        while True:
            entries: Any = self._client.xrange(stream, start, last, count=_ENTRIES_PER_READ)
            if not entries:
                break
            alone = []
            for entry_id, entry in entries:
                users = orjson.loads(entry[b"users"])
                if users == [user_id]:
                    alone.append(entry_id)
                else:
                    kept += user_id in users
            if alone:
                removed += self._erase_entries(keys=[stream], args=alone)
            progress(len(entries))
            start = f"({entries[-1][0].decode()}"
        return removed, kept

    def _stream(self, job: Job) -> str:
        return self._keys.changes(job.app_id, job.partition)

    def _delete_call(self, action: str, job: Job, value: str | bytes | int = "") -> Any:
        args: list[str | bytes | int] = [action, job.cohort_id, value, self._max_entries]
        return self._delete(keys=[self._stream(job)], args=args)

    def _all_partitions(self, job: Job) -> list[Job]:
        return [job._replace(partition=p) for p in range(self._keys.partitions)]

    def _deletion(self, job: Job) -> Any:
        return self._client.hget(self._keys.cohort(*job, "state"), "deleting")

    def _is_drained(self, job: Job) -> bool:
        deleting, drained = self._client.hmget(
            self._keys.cohort(*job, "state"), "deleting", "drained"
        )
        return bool(drained) or not deleting
