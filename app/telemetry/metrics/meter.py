"""Count requests, and render all metrics for Prometheus."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from app.telemetry.metrics import definitions, exited_workers
from app.telemetry.metrics.multiprocess_dir import VARIABLE
from app.telemetry.metrics.process_gauges import ProcessGauges


class _Observations:
    """What the next flush adds to a histogram."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(definitions.BUCKETS_SECONDS) + 1)  # the last one has no bound
        self.sum = 0.0


class Meter:
    """Counts requests in private memory, and flushes the counts to the metrics every second.

    A killed process loses the counts since its last flush.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[Any, ...], int] = defaultdict(int)
        self._observed: dict[tuple[Any, ...], _Observations] = defaultdict(_Observations)
        # The library takes longer to look these up than to count. They are few: labels are bounded.
        self._children: dict[tuple[Any, ...], Any] = {}

    def request(
        self, method: str, route: str, status: int, reason: str, source: str, seconds: float
    ) -> None:
        """Count a finished request."""
        self._counted[definitions.REQUESTS, method, route, status, reason] += 1
        self._observe(definitions.REQUEST_SECONDS, source, seconds)

    def declare_request(self, method: str, route: str, status: int, reason: str) -> None:
        """Create a counter of requests at 0, so that Prometheus sees the first increase."""
        definitions.REQUESTS.labels(method, route, status, reason)

    def declare_source(self, source: str, reasons: Iterable[str]) -> None:
        """The same for the users of a source, and those rejected for some reasons."""
        definitions.USERS_ACCEPTED.labels(source)
        definitions.USERS_CHANGED.labels(source)
        for reason in reasons:
            definitions.USERS_REJECTED.labels(source, reason)

    def users(self, source: str, accepted: int, changed: int, rejected: Mapping[str, int]) -> None:
        """Count the users of a request; ``rejected`` has the number of rejected ones by reason."""
        self._counted[definitions.USERS_ACCEPTED, source] += accepted
        self._counted[definitions.USERS_CHANGED, source] += changed
        for reason, count in rejected.items():
            self._counted[definitions.USERS_REJECTED, source, reason] += count

    def store(self, source: str, seconds: float) -> None:
        """Count a request that the store has applied."""
        self._observe(definitions.STORE_SECONDS, source, seconds)

    def background_failed(self) -> None:
        """Count a failure of the background work."""
        self._counted[definitions.BACKGROUND_FAILURES,] += 1

    def upstream_failed(self, reason: str) -> None:
        """Count a poll of Amplitude's API that failed."""
        self._counted[definitions.UPSTREAM_FAILURES, reason] += 1

    def _observe(self, metric: Histogram, source: str, seconds: float) -> None:
        observed = self._observed[metric, source]
        observed.buckets[bisect_left(definitions.BUCKETS_SECONDS, seconds)] += 1
        observed.sum += seconds

    def flush(self) -> None:
        """Add the counts to the metrics."""
        # Swapped first: other greenlets may count during the flush.
        counted, self._counted = self._counted, defaultdict(int)
        observed, self._observed = self._observed, defaultdict(_Observations)
        for key, count in counted.items():
            self._child(key).inc(count)
        for key, values in observed.items():
            histogram = self._child(key)
            # The library only takes single values; this is what it does with each.
            histogram._sum.inc(values.sum)
            for bucket, count in zip(histogram._buckets, values.buckets, strict=True):
                if count:
                    bucket.inc(count)

    def _child(self, key: tuple[Any, ...]) -> Any:
        child = self._children.get(key)
        if child is None:
            metric, *labels = key
            child = self._children[key] = metric.labels(*labels) if labels else metric
        return child


class _AllWorkersCollector(MultiProcessCollector):
    """The counts of all workers, including exited ones."""

    def collect(self) -> Iterable[Metric]:
        with exited_workers.reading(Path(self._path)):
            found: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
        return found


def exposition(gauges: Collector) -> bytes:
    """All metrics, of all workers, in Prometheus' text format."""
    registry = CollectorRegistry()
    if os.environ.get(VARIABLE):
        _AllWorkersCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(definitions.REGISTRY)
    registry.register(gauges)
    registry.register(ProcessGauges())
    return generate_latest(registry)
