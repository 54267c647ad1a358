"""Requests that failed and may be repeated: what no retry makes good leaves a cohort incomplete."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import redis

from app.store.errors import store_errors
from app.store.hold import Hold
from app.store.keys import Keys
from app.store.layout import Layout

# More than a sender retries at once. What exceeds it is not remembered.
_MAX_KEPT = 10_000
_KEPT_SECONDS = 3600


class FailedRequest(NamedTuple):
    """A request, as a retry of it is recognised.

    Attributes:
        content: a number that a retry has too; 0 if the body was not read.
    """

    cohort_id: str
    content: int


class FailedRequests:
    """The requests of each app that have failed and not been made good. Raises StoreError."""

    def __init__(self, client: redis.Redis, keys: Keys, layout: Layout, hold: Hold) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._hold = hold

    def add(self, app_id: str, failed: Mapping[FailedRequest, int]) -> None:
        """Remember requests, with the time of their last failure in ms since the epoch."""
        key = self._keys.failed_requests(app_id)
        rows = {f"{one.content:x}:{one.cohort_id}": at_ms for one, at_ms in failed.items()}
        with store_errors():
            self._layout.check_writable(app_id)
            self._hold.check_partition(app_id, self._keys.partition(app_id))
            if self._client.zcard(key) < _MAX_KEPT:
                self._client.zadd(key, rows, gt=True)
                self._client.expire(key, _KEPT_SECONDS)

    def all(self, app_id: str) -> dict[FailedRequest, int]:
        """The requests, with the time of their last failure."""
        with store_errors():
            rows: Any = self._client.zrange(
                self._keys.failed_requests(app_id), 0, _MAX_KEPT, withscores=True
            )
        found = {}
        for row, at_ms in rows:
            content, _, cohort_id = row.decode().partition(":")
            found[FailedRequest(cohort_id, int(content, 16))] = int(at_ms)
        return found

    def take(self, app_id: str, requests: Collection[FailedRequest]) -> list[FailedRequest]:
        """Remove requests. Returns those that no other process had removed."""
        key = self._keys.failed_requests(app_id)
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for one in requests:
                pipeline.zrem(key, f"{one.content:x}:{one.cohort_id}")
            removed = pipeline.execute()
        return [one for one, count in zip(requests, removed, strict=True) if count]
