"""The size of cohorts over time, for their charts."""

from __future__ import annotations

from collections.abc import Sequence
from struct import iter_unpack
from typing import Any, NamedTuple

import redis

from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.tuning import DEFAULT, Tuning

_COHORTS_PER_CALL = 100


class Size(NamedTuple):
    """A cohort's number of members from ``at_ms`` (ms since the epoch) until the next Size."""

    at_ms: int
    members: int


class SizeHistory:
    """Records and reads cohorts' sizes. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, tuning: Tuning = DEFAULT) -> None:
        self._client = client
        self._keys = keys
        self._store_now = tuning.store_now
        self._script = load_script(client, "sizes.lua")

    def record(self, app_id: str, cohort_ids: Sequence[str]) -> None:
        """Record the current sizes of cohorts."""
        for start in range(0, len(cohort_ids), _COHORTS_PER_CALL):
            part = cohort_ids[start : start + _COHORTS_PER_CALL]
            at = int(self._store_now()) if self._store_now else ""
            with store_errors():
                members = self._count(app_id, part)
                homes: dict[int, list[str | int]] = {}
                for cohort_id, size in zip(part, members, strict=True):
                    home = homes.setdefault(self._keys.partition(cohort_id), [])
                    home += [cohort_id, size]
                for partition, args in homes.items():
                    self._script(keys=[self._keys.changes(app_id, partition)], args=[at, *args])

    def of(self, app_id: str, cohort_ids: Sequence[str]) -> list[list[Size]]:
        """The sizes of cohorts, in the same order; each oldest first."""
        homes = self._keys.by_partition(cohort_ids)
        found: dict[str, list[Size]] = {}
        with store_errors():
            for ids in homes.values():
                packed: Any = self._client.mget([self._keys.sizes(app_id, c) for c in ids])
                for cohort_id, sizes in zip(ids, packed, strict=True):
                    found[cohort_id] = [
                        Size(at * 1000, members) for at, members in iter_unpack(">II", sizes or b"")
                    ]
        return [found[cohort_id] for cohort_id in cohort_ids]

    def _count(self, app_id: str, cohort_ids: Sequence[str]) -> list[int]:
        """The current number of members of cohorts, over all partitions."""
        sizes = [0] * len(cohort_ids)
        for partition in range(self._keys.partitions):
            with self._client.pipeline(transaction=False) as pipeline:
                for cohort_id in cohort_ids:
                    pipeline.zcard(self._keys.cohort(app_id, partition, cohort_id, "members"))
                shares: list[int] = pipeline.execute()
            sizes = [size + share for size, share in zip(sizes, shares, strict=True)]
        return sizes
