"""What follows from Amplitude's record of a cohort."""

from __future__ import annotations

import pytest

from app.cohorts.upstream import CountCheck, UpstreamCohort, awaits_sync

MINUTE = 60_000
HOUR = 60 * MINUTE
AT = 1767225600000


@pytest.mark.parametrize(
    ("cohort", "period_ms", "behind_ms"),
    [
        (UpstreamCohort("a", "n", frequency="minute", last_success_ms=AT), None, AT + 6 * MINUTE),
        (UpstreamCohort("a", "n", frequency="hourly", last_success_ms=AT), None, AT + 90 * MINUTE),
        (UpstreamCohort("a", "n", frequency="daily", last_success_ms=AT), None, AT + 36 * HOUR),
        (UpstreamCohort("a", "n", frequency="hourly", last_success_ms=AT), 2 * HOUR, AT + 3 * HOUR),
        (UpstreamCohort("a", "n", frequency="other", last_success_ms=AT), None, None),
        (UpstreamCohort("a", "n", frequency="other", last_success_ms=AT), HOUR, AT + 90 * MINUTE),
        (UpstreamCohort("a", "n", frequency="hourly", last_failure_ms=AT), None, AT),
        (UpstreamCohort("a", "n", frequency="hourly"), None, None),
        (UpstreamCohort("a", "n", last_success_ms=AT), None, None),
    ],
)
def test_sync__is_behind_a_period_and_a_half_after_its_last_success(
    cohort: UpstreamCohort, period_ms: int | None, behind_ms: int | None
) -> None:
    assert cohort.behind_since_ms(period_ms) == behind_ms


@pytest.mark.parametrize(
    ("expected", "members", "differs", "is_exact"),
    [
        (0, 0, False, True),
        (0, 1, True, False),
        (3, 2, True, False),
        (100, 99, False, False),
        (100, 101, False, False),
        (100, 98, True, False),
        (1_000_000, 990_000, False, False),
        (1_000_000, 989_999, True, False),
    ],
)
def test_counts__differ_by_more_than_a_hundredth(
    expected: int, members: int, differs: bool, is_exact: bool
) -> None:
    check = CountCheck(expected, members)
    assert (check.differs, check.is_exact) == (differs, is_exact)


@pytest.mark.parametrize(
    ("computed_ms", "success_ms", "now_ms", "awaits"),
    [
        (AT + 1, AT, AT + HOUR, True),
        (AT + 1, AT, AT + 2 * HOUR, False),  # overdue
        (AT, AT, AT + HOUR, False),
        (None, AT, AT + HOUR, False),
        (AT, None, AT + HOUR, False),
    ],
)
def test_count__newer_than_the_last_sync__awaits_the_next_one(
    computed_ms: int | None, success_ms: int | None, now_ms: int, awaits: bool
) -> None:
    cohort = UpstreamCohort(
        "a", "n", computed_at_ms=computed_ms, frequency="hourly", last_success_ms=success_ms
    )
    assert awaits_sync(cohort, now_ms) is awaits
