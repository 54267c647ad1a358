"""Gauges that are read from the store when the metrics are scraped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.store import LossKind, Store, StoreError, StoreFull, StoreReadOnly
from app.telemetry.metrics import definitions

# However often the metrics are scraped, the store is queried at most this often.
CACHE_SECONDS = 5.0
# After these errors it is not queried further: each query could take as long as the timeout.
_NO_REPLY = {"store_unreachable", "store_timeout", "store_loading"}


class StoreGauges(Collector):
    """Gauges of the store. While it is unavailable, ``store_up`` is 0, and most others are absent.

    Args:
        key_expiry: returns when the first key in use expires, in seconds since the epoch.
        upstream_apps: the apps for which Amplitude's own record is read.
    """

    def __init__(
        self,
        store: Store,
        key_expiry: Callable[[], float | None],
        upstream_apps: Collection[str] = (),
    ) -> None:
        self._store = store
        self._upstream_apps = upstream_apps
        self._key_expiry = key_expiry
        self._families: list[GaugeMetricFamily] = []
        self._queried_at: float | None = None
        self._freshness: dict[str, int] = {}
        self._counted_at: float | None = None
        self._warnings: list[str] = []
        self._warned_at: float | None = None
        self._log = structlog.get_logger()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if self._queried_at is None or time.monotonic() - self._queried_at >= CACHE_SECONDS:
            self._families = self._query()
            self._queried_at = time.monotonic()
        expiry = self._key_expiry()
        return self._families + ([definitions.KEY_EXPIRES.family(expiry)] if expiry else [])

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # otherwise registration would query the store

    def freshness(self) -> dict[str, int]:
        """Number of cohorts by freshness, at most :data:`CACHE_SECONDS` old.

        They may be older while the store can't count, for example while a node of a cluster is
        down. Raises StoreError if it never could.
        """
        if self._counted_at is None or time.monotonic() - self._counted_at >= CACHE_SECONDS:
            try:
                counts = self._store.freshness_counts()
                self._freshness = {state.value: count for state, count in counts.items()}
            except StoreError:
                if self._counted_at is None:
                    raise
            self._counted_at = time.monotonic()
        return self._freshness

    def warnings(self) -> list[str]:
        """What endangers the data, at most :data:`CACHE_SECONDS` old. Raises StoreError."""
        if self._warned_at is None or time.monotonic() - self._warned_at >= CACHE_SECONDS:
            found = {f"store_{loss.kind}" for loss in self._store.unacknowledged_losses()}
            with suppress(StoreError):  # some hosted stores refuse INFO
                if self._store.server_info.memory().may_evict:
                    found.add("store_may_evict")
                if self._store.server_info.is_persistent() is False:
                    found.add("store_not_persistent")
            self._warnings = sorted(found)
            self._warned_at = time.monotonic()
        return self._warnings

    def _query(self) -> list[GaugeMetricFamily]:
        families: list[GaugeMetricFamily] = []
        up = True
        for part in (self._ping, self._cohorts, self._jobs, self._memory, self._upstream):
            try:
                families += part()
            except StoreError as error:
                self._log.warning("metrics are incomplete", **error.log_fields)
                if error.reason in _NO_REPLY or part == self._ping:
                    up = False
                    break
        return [definitions.STORE_UP.family(up), *families]

    def _ping(self) -> list[GaugeMetricFamily]:
        found = self._store.check()
        refuses = definitions.STORE_REFUSES_WRITES.family()
        for kind in (StoreFull, StoreReadOnly):
            refuses.add_metric([kind.reason], kind.reason == found.refuses_writes)
        return [definitions.STORE_PING_SECONDS.family(found.seconds), refuses]

    def _cohorts(self) -> list[GaugeMetricFamily]:
        family = definitions.COHORTS.family()
        for state, count in self.freshness().items():
            family.add_metric([state], count)
        return [
            family,
            *self._completeness(),
            definitions.LONGEST_LATE.family(self._store.longest_late_ms() / 1000),
        ]

    def _completeness(self) -> list[GaugeMetricFamily]:
        states, reasons = self._store.completeness_counts()
        by_state, by_reason = definitions.COMPLETENESS.family(), definitions.INCOMPLETE.family()
        for state, count in states.items():
            by_state.add_metric([state], count)
        for reason, count in reasons.items():
            by_reason.add_metric([reason], count)
        losses = definitions.STORE_LOSSES.family()
        found = Counter(loss.kind for loss in self._store.unacknowledged_losses())
        for kind in LossKind:
            losses.add_metric([kind], found[kind])
        return [by_state, by_reason, losses]

    def _jobs(self) -> list[GaugeMetricFamily]:
        return [definitions.JOBS.family(self._store.jobs.count())]

    def _memory(self) -> list[GaugeMetricFamily]:
        memory = self._store.server_info.memory()
        persistent = self._store.server_info.is_persistent()
        known = [] if persistent is None else [definitions.STORE_PERSISTENT.family(persistent)]
        return [
            *known,
            definitions.STORE_MEMORY.family(memory.used),
            definitions.STORE_MEMORY_LIMIT.family(memory.limit),
            definitions.STORE_EVICTED.family(memory.evicted),
            definitions.STORE_EVICTS.family(memory.may_evict),
        ]

    def _upstream(self) -> list[GaugeMetricFamily]:
        if not self._upstream_apps:
            return []
        upstream = self._store.upstream
        polls = [upstream.poll_status(app_id) for app_id in self._upstream_apps]
        exports = max(upstream.exports(app_id) for app_id in self._upstream_apps)
        polled = min((status.polled_ms or 0) / 1000 for status in polls)
        return [
            definitions.UPSTREAM_POLLED.family(polled),
            definitions.UPSTREAM_EXPORTS.family(exports),
            definitions.UPSTREAM_ABSENT.family(sum(status.absent_total for status in polls)),
            definitions.UPSTREAM_BEHIND.family(sum(status.behind for status in polls)),
        ]
