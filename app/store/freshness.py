"""When each cohort last arrived, and whether that is long ago for it.

What is kept about a cohort lies in its home partition, which its id gives: so it is one key, and
the same for all, however its members are spread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import redis

from app.cohorts import Freshness, FreshnessState
from app.store.connection.calls import Call
from app.store.connection.scripts import call_partitions, load_script
from app.store.errors import StoreError, translated
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

# Cohorts that a process remembers to have noted, and that one script call takes.
_REMEMBERED, _COHORTS_PER_CALL = 10_000, 200
_FIELDS = ("last_received", "cadence", "cadence_source", "late_after")


class FreshnessStore:
    """Keeps and tells how fresh cohorts are. Raises StoreError, where not said otherwise."""

    def __init__(self, client: redis.Redis, keys: Keys, tuning: Tuning = DEFAULT) -> None:
        self._client = client
        self._keys = keys
        self._noted_seconds = tuning.freshness_noted_seconds
        self._script = load_script(client, "freshness.lua")
        self._noted: dict[tuple[str, str], float] = {}

    def received(self, app_id: str, cohort_ids: Collection[str]) -> None:
        """Note that users of these cohorts came in. Raises nothing.

        Their changes were acknowledged by then, and the next arrival is noted again.
        """
        now = time.monotonic()
        new = [
            cohort_id
            for cohort_id in cohort_ids
            if now - self._noted.get((app_id, cohort_id), -math.inf) >= self._noted_seconds
        ]
        if not new:
            return
        if len(self._noted) + len(new) > _REMEMBERED:
            self._noted.clear()
        with suppress(StoreError):
            self._call(app_id, "received", new)
            self._noted.update({(app_id, cohort_id): now for cohort_id in new})

    def known(self, app_id: str, cohort_id: str) -> None:
        """Count a cohort among those that never arrived, unless it did."""
        self._call(app_id, "known", [cohort_id])

    def set_cadence(self, app_id: str, cohort_id: str, cadence_ms: int | None) -> None:
        """Say how often a cohort arrives; None to learn it from its history."""
        self._call(app_id, "set" if cadence_ms else "learn", [cohort_id], cadence_ms or "")

    def of(self, app_id: str, cohort_ids: Collection[str]) -> list[Freshness]:
        """How fresh each of some cohorts is."""
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                pipeline.hmget(self._keys.freshness(app_id, cohort_id), *_FIELDS)
            return [freshness_of(fields) for fields in pipeline.execute()]

    def counts(self, app_ids: Collection[str]) -> dict[FreshnessState, int]:
        """How many cohorts of some apps are in each state."""
        places = [(app, p) for app in app_ids for p in range(self._keys.partitions)]
        now_ms = time.time_ns() // 1_000_000
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for app_id, partition in places:
                due = self._keys.due(app_id, partition)
                pipeline.zcount(due, f"({now_ms}", "+inf")
                pipeline.zcount(due, "(0", now_ms)
                pipeline.zcount(due, 0, 0)
            found: list[int] = pipeline.execute()
        states = FreshnessState.FRESH, FreshnessState.LATE, FreshnessState.NEVER
        return {state: sum(found[n::3]) for n, state in enumerate(states)}

    def longest_late_ms(self, app_ids: Collection[str]) -> float:
        """For how long the cohort of some apps that is most overdue has been late; 0 for none."""
        places = [(app, p) for app in app_ids for p in range(self._keys.partitions)]
        now_ms = time.time_ns() // 1_000_000
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for app_id, partition in places:
                due = self._keys.due(app_id, partition)
                pipeline.zrange(due, "(0", now_ms, byscore=True, offset=0, num=1, withscores=True)
            found = pipeline.execute()
        return max((now_ms - due_ms for rows in found for _, due_ms in rows), default=0)

    def _call(
        self, app_id: str, action: str, cohort_ids: Collection[str], cadence: int | str = ""
    ) -> None:
        homes: dict[int, list[str]] = {}
        for cohort_id in cohort_ids:
            homes.setdefault(self._keys.partition(cohort_id), []).append(cohort_id)
        calls = [
            Call(
                self._keys.changes(app_id, home),
                [action, cadence, *ids[start : start + _COHORTS_PER_CALL]],
            )
            for home, ids in homes.items()
            for start in range(0, len(ids), _COHORTS_PER_CALL)
        ]
        with translated():
            call_partitions(self._script, calls)


def freshness_of(fields: list[Any]) -> Freshness:
    """Freshness from the hash's fields of the contract, in their order."""
    last, cadence, source, late = fields
    return Freshness(
        last and int(last), cadence and int(cadence), source == b"set", late and int(late)
    )
