"""When the next sync of a cohort is expected, and when it is late."""

from __future__ import annotations

import pytest

from app.cohorts.freshness import Freshness, FreshnessState


@pytest.mark.parametrize(
    ("freshness", "expected"),
    [
        (Freshness(), None),
        (Freshness(last_received_ms=1000), None),
        (Freshness(cadence_ms=600), None),
        (Freshness(last_received_ms=1000, cadence_ms=600), 1600),
    ],
)
def test_next_sync__is_expected_a_cadence_after_the_last(
    freshness: Freshness, expected: int | None
) -> None:
    assert freshness.next_ms == expected


@pytest.mark.parametrize(
    ("freshness", "expected"),
    [
        (Freshness(), FreshnessState.NEVER),
        (Freshness(last_received_ms=1000), FreshnessState.FRESH),
        (Freshness(last_received_ms=1000, late_after_ms=2000), FreshnessState.FRESH),
        (Freshness(last_received_ms=1000, late_after_ms=1999), FreshnessState.LATE),
    ],
)
def test_state__is_late_once_its_time_has_passed(
    freshness: Freshness, expected: FreshnessState
) -> None:
    assert freshness.state(2000) is expected
