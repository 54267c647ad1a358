"""Counting requests, and telling all that was counted."""

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


class _Observed:
    """What a histogram is to be told at the next flush."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(definitions.SECONDS) + 1)  # the last one has no bound
        self.sum = 0.0


class Meter:
    """Counts requests, and tells the metrics about them now and then.

    To count one thing in memory that processes share takes 1.5 µs, a time 3: with all that is
    counted, a request would be slower by 13 µs. Noting it here takes one or two. What was noted
    since the last flush is lost with a process that is killed.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[Any, ...], int] = defaultdict(int)
        self._observed: dict[tuple[Any, ...], _Observed] = defaultdict(_Observed)
        # Labels are bounded, so these are few; looking them up takes longer than counting.
        self._children: dict[tuple[Any, ...], Any] = {}

    def request(
        self, method: str, route: str, status: int, reason: str, source: str, seconds: float
    ) -> None:
        """Note a request that was answered."""
        self._counted[definitions.REQUESTS, method, route, status, reason] += 1
        self._observe(definitions.REQUEST_SECONDS, source, seconds)

    def users(self, source: str, accepted: int, changed: int, rejected: Mapping[str, int]) -> None:
        """Note the users of a request, those who were rejected by the reason."""
        self._counted[definitions.USERS_ACCEPTED, source] += accepted
        self._counted[definitions.USERS_CHANGED, source] += changed
        for reason, count in rejected.items():
            self._counted[definitions.USERS_REJECTED, source, reason] += count

    def store(self, source: str, seconds: float) -> None:
        """Note changes that the store has applied."""
        self._observe(definitions.STORE_SECONDS, source, seconds)

    def background_failed(self) -> None:
        """Note that background work ended in an unexpected error."""
        self._counted[definitions.BACKGROUND_FAILURES,] += 1

    def _observe(self, metric: Histogram, source: str, seconds: float) -> None:
        observed = self._observed[metric, source]
        observed.buckets[bisect_left(definitions.SECONDS, seconds)] += 1
        observed.sum += seconds

    def flush(self) -> None:
        """Tell the metrics what was noted."""
        # Taken out first, and nothing waits in between: requests go on noting.
        counted, self._counted = self._counted, defaultdict(int)
        observed, self._observed = self._observed, defaultdict(_Observed)
        for key, count in counted.items():
            self._child(key).inc(count)
        for key, values in observed.items():
            histogram = self._child(key)
            # The library takes times one by one only; this is what it does for each.
            histogram._sum.inc(values.sum)
            for bucket, count in zip(histogram._buckets, values.buckets, strict=True):
                if count:
                    bucket.inc(count)

    def _child(self, key: tuple[Any, ...]) -> Any:
        known = self._children.get(key)
        if known is None:
            metric, *labels = key
            known = self._children[key] = metric.labels(*labels) if labels else metric
        return known


class _Together(MultiProcessCollector):
    """What all workers have counted, those that are no more too."""

    def collect(self) -> Iterable[Metric]:
        with exited_workers.reading(Path(self._path)):
            found: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
        return found


def exposition(gauges: Collector) -> bytes:
    """All metrics, in Prometheus' text format: of all workers, where these count together."""
    registry = CollectorRegistry()
    if os.environ.get(VARIABLE):
        _Together(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(definitions.COUNTED)
    registry.register(gauges)
    return generate_latest(registry)
