"""Failed requests that may be retried. If no retry succeeds, the cohort is incomplete."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

import redis

from app.store.connection.scripts import load_script
from app.store.errors import store_errors
from app.store.keys import Keys
from app.store.layout import Layout

# More than a sender retries at once. What exceeds it is not remembered.
_MAX_KEPT = 10_000
_KEPT_MS = 3600 * 1000
# About 1 ms of the store's time.
_REQUESTS_PER_CALL = 500


class FailedRequest(NamedTuple):
    """What a request and its retries have in common.

    Attributes:
        content: a number derived from the body; 0 if there is none, for example because the body
            was not read.
    """

    cohort_id: str
    content: int


class FailedRequests:
    """The failed requests of each app that no retry has settled yet. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, layout: Layout) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._add = load_script(client, "failed_requests.lua")

    def add(self, app_id: str, failed: Mapping[FailedRequest, int]) -> None:
        """Remember requests, each with the time at which its last failed attempt began.

        Times are in ms since the epoch.
        """
        key = self._keys.failed_requests(app_id)
        rows = [(at_ms, f"{one.content:x}:{one.cohort_id}") for one, at_ms in failed.items()]
        with store_errors():
            self._layout.check_writable(app_id)
            for start in range(0, len(rows), _REQUESTS_PER_CALL):
                some = chain.from_iterable(rows[start : start + _REQUESTS_PER_CALL])
                self._add(keys=[key], args=[_MAX_KEPT, _KEPT_MS, *some])

    def all(self, app_id: str) -> dict[FailedRequest, int]:
        """The requests, each with the time at which its last failed attempt began."""
        with store_errors():
            rows: Any = self._client.zrange(
                self._keys.failed_requests(app_id), 0, _MAX_KEPT, withscores=True
            )
        found = {}
        for row, at_ms in rows:
            content, _, cohort_id = row.decode().partition(":")
            found[FailedRequest(cohort_id, int(content, 16))] = int(at_ms)
        return found

    def forget(self, app_id: str, cohort_id: str, before_ms: int) -> None:
        """Forget a cohort's requests that failed earlier: its members were confirmed since."""
        old = [one for one, at_ms in self.all(app_id).items() if at_ms < before_ms]
        self.take(app_id, [one for one in old if one.cohort_id == cohort_id])

    def take(self, app_id: str, requests: Collection[FailedRequest]) -> list[FailedRequest]:
        """Remove requests. Returns those that no other process had removed."""
        key = self._keys.failed_requests(app_id)
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for one in requests:
                pipeline.zrem(key, f"{one.content:x}:{one.cohort_id}")
            removed = pipeline.execute()
        return [one for one, count in zip(requests, removed, strict=True) if count]
