"""When each cohort was last received, and whether it is late.

Each cohort has one hash for this, in its home partition, which the cohort id determines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import redis

from app.cohorts import Freshness, FreshnessState
from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import StoreError, store_errors
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

_COHORTS_PER_CALL = 200
_FIELDS = ("last_received", "cadence", "cadence_source", "late_after")


# Registers a cohort in partitions that lack it; see Memberships.introduce.
Introduce = Callable[[str, str, Collection[int]], bool]


class FreshnessStore:
    """Records when cohorts arrive, and reads their freshness. Raises StoreError."""

    def __init__(
        self, client: redis.Redis, keys: Keys, introduce: Introduce, tuning: Tuning = DEFAULT
    ) -> None:
        self._introduce = introduce
        self._client = client
        self._keys = keys
        self._record_seconds = tuning.freshness_noted_seconds
        self._clock = tuning.monotonic
        self._max_remembered = tuning.arrivals_remembered
        self._script = load_script(client, "freshness.lua")
        self._recorded: dict[tuple[str, str], float] = {}

    def record_received(
        self, app_id: str, cohort_ids: Collection[str], created: Collection[str] = ()
    ) -> None:
        """Record that users of these cohorts were received.

        A cohort that was recorded within the last second is not recorded again, unless this request
        has ``created`` it: it was deleted or lost in between, together with its records.

        Ignores a StoreError: the changes have been applied by now, and the next request records
        the cohort again.
        """
        now = self._clock()
        new = [
            cohort_id
            for cohort_id in cohort_ids
            if cohort_id in created
            or now - self._recorded.get((app_id, cohort_id), -math.inf) >= self._record_seconds
        ]
        if not new:
            return
        if len(self._recorded) + len(new) > self._max_remembered:
            self._recorded.clear()
        with suppress(StoreError):
            self.call(app_id, "received", new)
            self._recorded.update({(app_id, cohort_id): now for cohort_id in new})

    def record_known(self, app_id: str, cohort_id: str) -> None:
        """List a cohort as never received, unless it has been; always record its next arrival."""
        self._recorded.pop((app_id, cohort_id), None)
        self.call(app_id, "known", [cohort_id])

    def set_cadence(self, app_id: str, cohort_id: str, cadence_ms: int | None) -> None:
        """Set how often a cohort is expected; None to learn it from the last syncs."""
        action = "set" if cadence_ms else "learn"
        self.call(app_id, action, [cohort_id], number=cadence_ms or "")

    def of(self, app_id: str, cohort_ids: Collection[str]) -> list[Freshness]:
        """The freshness of cohorts, in the same order."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                pipeline.hmget(self._keys.freshness(app_id, cohort_id), *_FIELDS)
            return [freshness_of(fields) for fields in pipeline.execute()]

    def counts(self, app_ids: Collection[str]) -> dict[FreshnessState, int]:
        """The number of cohorts in each state, over some apps."""
        places = [(app, p) for app in app_ids for p in range(self._keys.partitions)]
        now_ms = time.time_ns() // 1_000_000
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for app_id, partition in places:
                due = self._keys.due(app_id, partition)
                pipeline.zcount(due, f"({now_ms}", "+inf")
                pipeline.zcount(due, "(0", now_ms)
                pipeline.zcount(due, 0, 0)
            found: list[int] = pipeline.execute()
        states = FreshnessState.FRESH, FreshnessState.LATE, FreshnessState.NEVER
        return {state: sum(found[n::3]) for n, state in enumerate(states)}

    def with_state(
        self, app_id: str, state: FreshnessState, limit: int = 100
    ) -> list[tuple[str, int]]:
        """The ids of cohorts that are late, the most overdue first, or were never received.

        Returns:
            Each with the time from which it is late, in ms since the epoch; 0 if never received.
        """
        never = state is FreshnessState.NEVER
        now_ms = time.time_ns() // 1_000_000
        first, last = (0, 0) if never else ("(0", now_ms)
        found: list[tuple[bytes, float]] = []
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in range(self._keys.partitions):
                due = self._keys.due(app_id, partition)
                pipeline.zrange(
                    due, first, last, byscore=True, offset=0, num=limit, withscores=True
                )
            for rows in pipeline.execute():
                found += rows
        found.sort(key=lambda row: row[1])
        return [(cohort_id.decode(), int(since)) for cohort_id, since in found[:limit]]

    def longest_late_ms(self, app_ids: Collection[str]) -> float:
        """How long the most overdue cohort of some apps has been late; 0 if none is."""
        places = [(app, p) for app in app_ids for p in range(self._keys.partitions)]
        now_ms = time.time_ns() // 1_000_000
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for app_id, partition in places:
                due = self._keys.due(app_id, partition)
                pipeline.zrange(due, "(0", now_ms, byscore=True, offset=0, num=1, withscores=True)
            found = pipeline.execute()
        return max((now_ms - due_ms for rows in found for _, due_ms in rows), default=0)

    def call(
        self,
        app_id: str,
        action: str,
        cohort_ids: Collection[str],
        value: str = "",
        number: int | str = "",
    ) -> None:
        """Run one of the actions of freshness.lua, for those of the cohorts that exist."""
        unknown = self._call(action, app_id, cohort_ids, value, number)
        # A home partition may have none of the cohort's users, and not know the cohort.
        introduced = [
            cohort_id
            for cohort_id in unknown
            if self._keys.partitions > 1
            and self._introduce(app_id, cohort_id, [self._keys.partition(cohort_id)])
        ]
        if introduced:
            self._call(action, app_id, introduced, value, number)

    def _call(
        self,
        action: str,
        app_id: str,
        cohort_ids: Collection[str],
        value: str,
        number: int | str,
    ) -> list[str]:
        """Returns the ids of the cohorts that their home partition does not know."""
        homes = self._keys.by_partition(list(cohort_ids))
        calls = [
            Call(
                self._keys.changes(app_id, home),
                [action, value, number, *ids[start : start + _COHORTS_PER_CALL]],
            )
            for home, ids in homes.items()
            for start in range(0, len(ids), _COHORTS_PER_CALL)
        ]
        with store_errors():
            replies = call_partitions(self._script, calls)
        return [cohort_id.decode() for unknown, _ in replies for cohort_id in unknown]


def freshness_of(fields: list[Any]) -> Freshness:
    """Freshness from the documented fields of the hash, in their order."""
    last, cadence, source, late = fields
    return Freshness(
        last and int(last), cadence and int(cadence), source == b"set", late and int(late)
    )
