"""What is asked of the store when Prometheus asks for the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.store import Store, StoreError, StoreFull
from app.telemetry.metrics import definitions
from app.telemetry.metrics.definitions import Asked

# However often the metrics are asked for, the store is asked no more than every so many seconds.
CACHE_SECONDS = 5.0
# After these nothing more is asked: each further question could take as long as the time-out.
_GONE = {"store_unreachable", "store_timeout", "store_loading"}


class StoreGauges(Collector):
    """Gauges of the store. Where it can't be had they are left out, but for ``store_up 0``.

    Args:
        key_expiry: when the first key in use expires, in seconds since the epoch, if any does.
    """

    def __init__(self, store: Store, key_expiry: Callable[[], float | None]) -> None:
        self._store = store
        self._key_expiry = key_expiry
        self._families: list[GaugeMetricFamily] = []
        self._asked_at: float | None = None
        self._freshness: dict[str, int] = {}
        self._counted_at: float | None = None
        self._log = structlog.get_logger()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if self._asked_at is None or time.monotonic() - self._asked_at >= CACHE_SECONDS:
            self._families = self._ask()
            self._asked_at = time.monotonic()
        expiry = self._key_expiry()
        return self._families + ([_gauge(definitions.KEY_EXPIRES, expiry)] if expiry else [])

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # or it would be asked when it is registered

    def freshness(self) -> dict[str, int]:
        """How many cohorts are fresh, late, or never arrived, some seconds ago at most. Raises
        StoreError.
        """
        if self._counted_at is None or time.monotonic() - self._counted_at >= CACHE_SECONDS:
            counts = self._store.freshness_counts()
            self._freshness = {state.value: count for state, count in counts.items()}
            self._counted_at = time.monotonic()
        return self._freshness

    def _ask(self) -> list[GaugeMetricFamily]:
        families: list[GaugeMetricFamily] = []
        up = True
        for part in (self._ping, self._cohorts, self._jobs, self._memory):
            try:
                families += part()
            except StoreError as error:
                self._log.warning("metrics are incomplete", reason=error.reason)
                # A store that is full answers, and tells of its memory all the same.
                if error.reason in _GONE or (part == self._ping and type(error) is not StoreFull):
                    up = False
                    break
        return [_gauge(definitions.STORE_UP, up), *families]

    def _ping(self) -> list[GaugeMetricFamily]:
        return [_gauge(definitions.STORE_PING_SECONDS, self._store.check())]

    def _cohorts(self) -> list[GaugeMetricFamily]:
        family = _gauge(definitions.COHORTS)
        for state, count in self.freshness().items():
            family.add_metric([state], count)
        return [family, _gauge(definitions.LONGEST_LATE, self._store.longest_late_ms() / 1000)]

    def _jobs(self) -> list[GaugeMetricFamily]:
        return [_gauge(definitions.JOBS, len(self._store.jobs.pending()))]

    def _memory(self) -> list[GaugeMetricFamily]:
        memory = self._store.server_info.memory()
        return [
            _gauge(definitions.STORE_MEMORY, memory.used),
            _gauge(definitions.STORE_MEMORY_LIMIT, memory.limit),
            _gauge(definitions.STORE_EVICTED, memory.evicted),
            _gauge(definitions.STORE_EVICTS, memory.may_evict),
        ]


def _gauge(asked: Asked, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(asked.name, asked.help, value, asked.labels or None)
