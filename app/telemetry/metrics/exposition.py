"""Render all metrics for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from app.telemetry.metrics import definitions, exited_workers
from app.telemetry.metrics.multiprocess_dir import VARIABLE


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
    return generate_latest(registry)
