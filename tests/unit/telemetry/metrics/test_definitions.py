"""Every metric is listed once, so that the documentation and the ops files have all of them."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from app.telemetry.metrics import definitions
from app.telemetry.metrics.definitions import COUNTED, PROCESS_GAUGES, STORE_GAUGES, ScrapedGauge


def test_lists__contain_every_declared_metric() -> None:
    declared = vars(definitions).values()
    assert list(COUNTED) == [value for value in declared if isinstance(value, Counter | Histogram)]
    scraped = [value for value in declared if isinstance(value, ScrapedGauge)]
    assert [*STORE_GAUGES, *PROCESS_GAUGES] == scraped


def test_registry__contains_every_counted_metric() -> None:
    families = {family.name for metric in COUNTED for family in metric.describe()}
    assert {family.name for family in definitions.REGISTRY.collect()} == families
