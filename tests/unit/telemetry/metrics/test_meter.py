"""Counts in private memory, and the metrics after a flush."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from app.telemetry.metrics import definitions
from app.telemetry.metrics.meter import Meter


def value(name: str, **labels: str) -> float:
    return definitions.REGISTRY.get_sample_value(name, labels) or 0.0


def observed(registry: CollectorRegistry, **labels: str) -> dict[str, float]:
    """The samples of the time of requests: by bound, and their sum."""
    return {
        f"{sample.name} {sample.labels.get('le')}": sample.value
        for family in registry.collect()
        if family.name == "cohort_receiver_request_seconds"
        for sample in family.samples
        if labels.items() <= sample.labels.items() and not sample.name.endswith("_created")
    }


@given(st.lists(st.floats(0, 20) | st.sampled_from(definitions.BUCKETS_SECONDS), max_size=30))
def test_flush__of_times__equals_observing_each_with_the_library(times: list[float]) -> None:
    ours, theirs = f"ours {id(times)}", CollectorRegistry()
    plain = Histogram(
        "cohort_receiver_request_seconds", "", buckets=definitions.BUCKETS_SECONDS, registry=theirs
    )
    before = observed(definitions.REGISTRY, source=ours)
    meter = Meter()
    for number, seconds in enumerate(times):
        plain.observe(seconds)
        meter.request("GET", "/", 200, "none", ours, seconds)
        if number % 3 == 0:
            meter.flush()
    meter.flush()
    after = observed(definitions.REGISTRY, source=ours)
    added = {name: after[name] - before.get(name, 0) for name in after}
    if times:
        assert added == pytest.approx(observed(theirs))


def test_flush__twice__counts_once() -> None:
    labels = {"method": "GET", "route": "/x", "status": "418", "reason": "none"}
    before = value("cohort_receiver_requests_total", **labels)
    meter = Meter()
    meter.request("GET", "/x", 418, "none", "other", 0.1)
    meter.users("identify", 5, 3, {"unknown_user": 2})
    meter.flush()
    meter.flush()
    assert value("cohort_receiver_requests_total", **labels) == before + 1


def test_samples__name_every_metric_that_is_defined() -> None:
    kinds = (Counter, Histogram, definitions.ScrapedGauge)
    defined = [value for value in vars(definitions).values() if isinstance(value, kinds)]
    assert len(defined) == len(list(definitions.samples())) > 10
