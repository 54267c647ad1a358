"""Deleting a cohort from all partitions.

A deletion marks the cohort in all partitions. The first partition's mark is set first and, once no
partition has users of the cohort left, removed first: the deletion is in progress while that mark
exists. So a mark that the first partition lacks is left over from a completed deletion, or arrived
too late; the process that finds it removes it. docs/decisions/deletion.md has the reasons.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import redis

from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys

# Half of the store time that a batch of a thousand users takes.
USERS_PER_STEP = 500


class _Place(NamedTuple):
    """One partition's share of a cohort."""

    app_id: str
    partition: int
    cohort_id: str


class Deletions:
    """Begins, continues and completes deletions. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, changes_max_entries: int) -> None:
        self._client = client
        self._keys = keys
        self._max_entries = changes_max_entries
        self._script = load_script(client, "delete.lua")

    def begin(self, app_id: str, cohort_id: str) -> bool:
        """Mark a cohort in all its partitions: requests for it are refused from now on.

        Returns:
            False if the cohort is unknown.
        """
        first, *others = places = self._places(app_id, cohort_id)
        with store_errors():
            if not any(self._client.exists(self._state(place)) for place in places):
                return False
            mark = self._call("begin", first, secrets.token_hex(8))
            for other in others:
                self._call("mark", other, mark)
        return True

    def step(
        self, app_id: str, partition: int, cohort_id: str, mark: bytes | str, drained: bool
    ) -> int | None:
        """Remove some users from one of the partitions.

        Args:
            mark, drained: as read from this partition.

        Returns:
            The number of users removed; 0 if other partitions still have some; None if the work in
            this partition is done.
        """
        first, *others = places = self._places(app_id, cohort_id)
        here = places[partition]
        # The first partition's mark is read after ``mark``. If they differ, the deletion with
        # ``mark`` is over.
        if here != first and self._mark(first) != mark:
            self._end(here, mark)
            return None
        if here == first:
            # The process that began the deletion may have ended before it marked all partitions.
            self._mark_missing(others, mark)
        if not drained:
            removed = int(self._call("step", here, USERS_PER_STEP, self._max_entries))
            if removed:
                return removed
        if not all(self._is_drained(place, mark) for place in places):
            return 0
        for place in places:
            self._end(place, mark)
        return None

    def settle(self, app_id: str, cohort_id: str) -> bool:
        """Help complete a deletion that caused requests to be refused.

        Returns:
            True if it is in progress; all partitions are marked then. False if it is over; no
            partition refuses requests because of it then.
        """
        first, *others = self._places(app_id, cohort_id)
        with store_errors():
            # Read before the mark of the first partition, as in `step`.
            marks = self._marks(others)
            in_progress = self._mark(first)
            if in_progress:
                self._mark_missing(others, in_progress)
                return True
            for place, mark in zip(others, marks, strict=True):
                if mark:
                    self._end(place, mark)
            return False

    def _mark_missing(self, others: list[_Place], mark: bytes | str) -> None:
        for other, found in zip(others, self._marks(others), strict=True):
            if found != mark:
                self._call("mark", other, mark)

    def _end(self, place: _Place, mark: bytes | str) -> None:
        is_home = place.partition == self._keys.partition(place.cohort_id)
        self._call("end", place, mark, "home" if is_home else "")

    def _call(
        self, action: str, place: _Place, value: str | bytes | int, option: str | int = ""
    ) -> Any:
        stream = self._keys.changes(place.app_id, place.partition)
        args: list[str | bytes | int] = [action, place.cohort_id, value, option]
        return self._script(keys=[stream], args=args)

    def _places(self, app_id: str, cohort_id: str) -> list[_Place]:
        return [_Place(app_id, p, cohort_id) for p in range(self._keys.partitions)]

    def _state(self, place: _Place) -> str:
        return self._keys.cohort(*place, "state")

    def _mark(self, place: _Place) -> Any:
        return self._client.hget(self._state(place), "deleting")

    def _marks(self, places: list[_Place]) -> list[Any]:
        if not places:
            return []
        with self._client.pipeline(transaction=False) as pipeline:
            for place in places:
                pipeline.hget(self._state(place), "deleting")
            return list(pipeline.execute())

    def _is_drained(self, place: _Place, mark: bytes | str) -> bool:
        found, drained = self._client.hmget(self._state(place), "deleting", "drained")
        return bool(drained) and found == mark
