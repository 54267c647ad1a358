"""Whether each cohort is complete: known gaps, proofs, and users who were left out.

They are fields of the cohort's freshness hash, in its home partition, so that a single command
reads both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson
import redis

from app.cohorts import (
    Completeness,
    CompletenessState,
    IncompleteReason,
    OpenReason,
    Upstream,
    VerifiedBy,
)
from app.store.errors import store_errors
from app.store.freshness import FreshnessStore
from app.store.keys import Keys
from app.store.words import known

FIELDS = ("completeness", "reasons", "verified_at", "verified_by", "left_out", "upstream")
_SETTLED_AT_ONCE = 1000
# The members of the stored JSON object, by attribute.
_UPSTREAM = {
    "size": "size",
    "computed_at_ms": "computedAt",
    "anonymous": "anonymous",
    "frequency": "frequency",
    "last_success_ms": "lastSuccess",
    "last_failure_ms": "lastFailure",
}


class CompletenessStore:
    """Changes and reads the completeness of cohorts. Raises StoreError.

    Each change is one atomic step. Unknown cohorts are skipped, so that invented ids cannot
    fill the store.
    """

    def __init__(self, client: redis.Redis, keys: Keys, freshness: FreshnessStore) -> None:
        self._client = client
        self._keys = keys
        self._freshness = freshness

    def verify(
        self, app_id: str, cohort_id: str, by: VerifiedBy, since_ms: int | None = None
    ) -> None:
        """Record that the members were confirmed: clears the reasons and the left-out users.

        Args:
            since_ms: when the resync, import or reconcile that confirmed them began. Reasons since
                then are kept; after a resync or import, also the users left out since then.
        """
        self._call(app_id, "verify", cohort_id, by, "" if since_ms is None else since_ms)

    def raise_reason(
        self, app_id: str, cohort_id: str, reason: IncompleteReason, count: int = 1
    ) -> None:
        """Record that a cohort is incomplete, because of ``count`` events."""
        self._call(app_id, "raise", cohort_id, reason, count)

    def add_failed(self, app_id: str, cohort_id: str, requests: int, last_ms: int) -> None:
        """Record that requests failed permanently, the last of which began at ``last_ms``.

        Does nothing if a resync, import or reconcile that began since has confirmed the members.
        """
        self._call(app_id, "failed", cohort_id, str(last_ms), requests)

    def has_failed(self, app_id: str, cohort_id: str, since_ms: int) -> bool:
        """Whether requests that began at ``since_ms`` or later have failed permanently.

        False once a sync without failures has followed.
        """
        with store_errors():
            reasons: Any = self._client.hget(self._keys.freshness(app_id, cohort_id), "reasons")
        return any(
            one["reason"] == IncompleteReason.SYNC_FAILED
            and one.get("last", one["since"]) >= since_ms
            for one in orjson.loads(reasons or b"[]")
        )

    def clear_reason(self, app_id: str, cohort_id: str, reason: IncompleteReason) -> None:
        """Record that a reason no longer applies. If none is left, the cohort is unverified."""
        self._call(app_id, "clear", cohort_id, reason)

    def settle_failed(self, app_id: str, unsettled: Collection[str], start: int = 0) -> int:
        """Clear ``sync_failed`` for cohorts that have since had a sync without a failure.

        Args:
            unsettled: cohorts with a failed request that may still be retried.
            start: where to continue, as returned by the last call.
        """
        reason, more = IncompleteReason.SYNC_FAILED, False
        for partition in range(self._keys.partitions):
            key = self._keys.completeness(app_id, partition, reason)
            with store_errors():
                found: Any = self._client.zrange(key, start, start + _SETTLED_AT_ONCE - 1)
            more = more or len(found) == _SETTLED_AT_ONCE
            ids = [cohort_id.decode() for cohort_id in found]
            if settled := [cohort_id for cohort_id in ids if cohort_id not in unsettled]:
                self._freshness.call(app_id, "settle", settled)
        return start + _SETTLED_AT_ONCE if more else 0

    def leave_out(self, app_id: str, cohort_id: str, counts: Mapping[str, int]) -> None:
        """Count users who were skipped, by reason."""
        for reason, users in counts.items():
            self._call(app_id, "leave out", cohort_id, reason, users)

    def set_upstream(self, app_id: str, cohort_id: str, upstream: Upstream | None) -> None:
        """Store Amplitude's record of a cohort; None removes it."""
        text = ""
        if upstream:
            values = upstream._asdict()
            text = orjson.dumps({name: values[key] for key, name in _UPSTREAM.items()}).decode()
        self._call(app_id, "upstream", cohort_id, text)

    def of(self, app_id: str, cohort_ids: Collection[str]) -> list[Completeness]:
        """The completeness of cohorts, in the same order."""
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for cohort_id in cohort_ids:
                pipeline.hmget(self._keys.freshness(app_id, cohort_id), *FIELDS)
            return [completeness_of(fields) for fields in pipeline.execute()]

    def counts(
        self, app_ids: Collection[str]
    ) -> tuple[dict[CompletenessState, int], dict[IncompleteReason, int]]:
        """The number of cohorts of some apps in each state, and with each open reason."""
        names: list[CompletenessState | IncompleteReason] = [
            CompletenessState.VERIFIED,
            CompletenessState.INCOMPLETE,
            *IncompleteReason,
        ]
        totals = [0] * (len(names) + 1)
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for app_id in app_ids:
                for partition in range(self._keys.partitions):
                    pipeline.zcard(self._keys.due(app_id, partition))
                    for name in names:
                        pipeline.zcard(self._keys.completeness(app_id, partition, name))
            for n, count in enumerate(pipeline.execute()):
                totals[n % len(totals)] += count
        cohorts, verified, incomplete, *reasons = totals
        states = {
            CompletenessState.VERIFIED: verified,
            CompletenessState.UNVERIFIED: cohorts - verified - incomplete,
            CompletenessState.INCOMPLETE: incomplete,
        }
        return states, dict(zip(IncompleteReason, reasons, strict=True))

    def with_reason(
        self, app_id: str, reason: IncompleteReason, limit: int = 100
    ) -> list[tuple[str, int]]:
        """The ids of cohorts with an open reason, and since when; the latest first."""
        found: list[tuple[bytes, float]] = []
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for partition in range(self._keys.partitions):
                key = self._keys.completeness(app_id, partition, reason)
                # By score: for ranks, redis-py sends ZREVRANGE, which docs/acl/ forbids.
                page: Any = {"byscore": True, "desc": True, "offset": 0, "num": limit}
                pipeline.zrange(key, "+inf", "-inf", withscores=True, **page)
            for rows in pipeline.execute():
                found += rows
        found.sort(key=lambda row: -row[1])
        return [(cohort_id.decode(), int(since)) for cohort_id, since in found[:limit]]

    def _call(
        self, app_id: str, action: str, cohort_id: str, value: str, number: int | str = ""
    ) -> None:
        self._freshness.call(app_id, action, [cohort_id], value, number)


def completeness_of(fields: list[Any]) -> Completeness:
    """Completeness from the documented fields of the hash, in their order."""
    state, reasons, verified_at, verified_by, left_out, upstream = fields
    return Completeness(
        known(CompletenessState, state) or CompletenessState.UNVERIFIED,
        tuple(
            OpenReason(reason, int(open["since"]), int(open["count"]))
            for open in orjson.loads(reasons or b"[]")
            if (reason := known(IncompleteReason, open["reason"]))
        ),
        verified_at and int(verified_at),
        known(VerifiedBy, verified_by),
        {reason: int(users) for reason, users in orjson.loads(left_out or b"{}").items()},
        _upstream(orjson.loads(upstream)) if upstream else None,
    )


def _upstream(document: dict[str, Any]) -> Upstream:
    return Upstream(**{key: document.get(name) for key, name in _UPSTREAM.items()})
