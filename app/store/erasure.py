"""Erasing a user: the hash, all memberships, and the user's own entries of the change stream.

Each step is one script call that is safe to repeat and to run concurrently with requests.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import orjson
import redis

from app.cohorts import Cohort
from app.store.connection.scripts import load_script
from app.store.errors import StoreError, store_errors
from app.store.keys import Keys
from app.store.retention import given_up
from app.store.size_history import SizeHistory
from app.store.sync_history import SyncHistory

ENTRIES_PER_READ = 50
# About 2 ms of the store's time.
TRAITS_PER_STEP = 250
# About 1 ms of the store's time.
COHORTS_PER_STEP = 250
# How many steps may fail because the user's traits have changed since they were read.
MAX_FAILED_STEPS = 100


class Erased(NamedTuple):
    """The result of erasing a user.

    ``traits`` includes memberships whose trait was missing in the hash. ``stream_entries_kept``
    contain other users too: they can't be changed, and leave the stream by age.
    """

    traits: int
    stream_entries_removed: int
    stream_entries_kept: int


class Erasure:
    """Erases users. Raises StoreError; finished steps stay finished."""

    def __init__(
        self, client: redis.Redis, keys: Keys, size_history: SizeHistory, sync_history: SyncHistory
    ) -> None:
        self._client = client
        self._keys = keys
        self._size_history = size_history
        self._sync_history = sync_history
        self._erase = load_script(client, "erase.lua")
        self._erase_memberships = load_script(client, "erase_memberships.lua")
        self._erase_entries = load_script(client, "erase_entries.lua")
        self._remove_users = load_script(client, "remove_users.lua")

    def stream_entries(self, app_id: str, user_id: str) -> int:
        """How many entries of the change stream :meth:`erase` will read for a user."""
        with store_errors():
            return int(self._client.xlen(self._keys.changes(app_id, self._keys.partition(user_id))))

    def erase(
        self,
        app_id: str,
        user_id: str,
        *,
        suppress: bool = False,
        progress: Callable[[int], None] = lambda entries: None,
    ) -> Erased:
        """Erase a user; if interrupted, a repeat completes it.

        Args:
            suppress: also ignore the user in all future requests.
            progress: called with the number of stream entries read since the last call.
        """
        place = app_id, self._keys.partition(user_id)
        with store_errors():
            traits, last_entry = self._erase_traits(app_id, user_id, suppress)
            traits += self._erase_orphans(place, user_id)
            stream = self._keys.changes(*place)
            removed, kept = self._erase_from_stream(stream, user_id, last_entry, progress)
            for one in given_up(self._client, stream):
                self._erase_from_stream(one, user_id, "+", lambda entries: None)
        self._sync_history.erase(app_id, user_id)
        return Erased(traits, removed, kept)

    def unsuppress(self, app_id: str, user_id: str) -> bool:
        """Accept a user again. False if the user was not suppressed."""
        stream = self._keys.changes(app_id, self._keys.partition(user_id))
        with store_errors():
            return bool(self._remove_users(keys=[stream], args=["suppressed", user_id]))

    def _erase_traits(self, app_id: str, user_id: str, suppress: bool) -> tuple[int, str]:
        """Erase a user's traits, with their memberships, some at a time.

        Returns:
            The number of traits, and the id of the stream's last entry at the end.
        """
        stream = self._keys.changes(app_id, self._keys.partition(user_id))
        options = (user_id, "suppress" if suppress else "", TRAITS_PER_STEP)
        erased = failed_steps = 0
        while True:
            traits = self._some_traits(self._keys.user(app_id, user_id))
            args: list[str | bytes | int] = [*options]
            for trait in traits:
                args += (trait, Cohort.from_trait(trait.decode()).id)
            rest, last_entry = self._erase(keys=[stream], args=args)
            if rest >= 0:
                erased += len(traits)
                left = {Cohort.from_trait(t.decode()).id for t, v in traits.items() if v == b"true"}
                self._size_history.record(app_id, sorted(left))
            if rest == 0:
                return erased, last_entry.decode()
            # All other steps make progress, so only failed ones are limited.
            failed_steps += rest < 0 or not traits
            if failed_steps > MAX_FAILED_STEPS:
                raise StoreError("The user's traits kept changing.")

    def _some_traits(self, key: str) -> dict[bytes, bytes]:
        """All traits of a user, or some if there are very many."""
        if self._client.hlen(key) <= TRAITS_PER_STEP:
            found: Any = self._client.hgetall(key)
            return dict(found)
        cursor: Any = 0
        while True:
            scanned: Any = self._client.hscan(key, cursor, count=TRAITS_PER_STEP)
            cursor, some = scanned
            if some or not cursor:
                return dict(islice(some.items(), TRAITS_PER_STEP))

    def _erase_orphans(self, place: tuple[str, int], user_id: str) -> int:
        """Erase memberships whose trait is missing in the user's hash. Returns their number."""
        erased, start, stream = 0, "-", self._keys.changes(*place)
        while True:
            cohort_ids: Any = self._client.zrange(
                self._keys.cohorts(*place), start, "+", bylex=True, offset=0, num=COHORTS_PER_STEP
            )
            if not cohort_ids:
                return erased
            found = self._erase_memberships(keys=[stream], args=[user_id, *cohort_ids])
            self._size_history.record(place[0], [cohort_id.decode() for cohort_id in found])
            erased += len(found)
            start = f"({cohort_ids[-1].decode()}"

    def _erase_from_stream(
        self, stream: str, user_id: str, last: str, progress: Callable[[int], None]
    ) -> tuple[int, int]:
        """Remove the entries up to ``last`` that contain this user alone.

        Later ones are about a user who was received again, and stay.

        Returns:
            How many were removed, and how many were kept as they contain other users too.
        """
        removed = kept = 0
        start = "-"
        while True:
            entries: Any = self._client.xrange(stream, start, last, count=ENTRIES_PER_READ)
            if not entries:
                return removed, kept
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
