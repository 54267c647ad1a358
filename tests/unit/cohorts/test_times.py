from __future__ import annotations

import math

import pytest

from app.cli.group import when
from app.cohorts.times import utc, whole_ms
from app.web.dashboard import formatting

YEAR_1 = -62_135_596_800_000
YEAR_10000 = 253_402_300_800_000


@pytest.mark.parametrize("ms", [YEAR_1 - 1, YEAR_1 - 14 * 3_600_000, -(2**63), -1e300, -math.inf])
def test_time__before_the_year_1__is_shown_as_its_beginning(ms: float) -> None:
    assert formatting.iso(ms) == "0001-01-01T00:00:00.000Z"  # type: ignore[arg-type]
    assert formatting.exactly(ms) == "0001-01-01 00:00:00 UTC"  # type: ignore[arg-type]
    assert formatting.to_minute(ms) == "0001-01-01 00:00 UTC"  # type: ignore[arg-type]
    assert when(ms) == "0001-01-01T00:00:00Z"  # type: ignore[arg-type]


@pytest.mark.parametrize("ms", [YEAR_10000, 2**53, 2**63, 1e300, math.inf])
def test_time__after_the_year_9999__is_shown_as_its_end(ms: float) -> None:
    assert formatting.iso(ms) == "9999-12-31T23:59:59.999Z"  # type: ignore[arg-type]
    assert when(ms) == "9999-12-31T23:59:59Z"  # type: ignore[arg-type]


@pytest.mark.parametrize("ms", [YEAR_1, -1, 0, 1, 1_767_225_600_123, YEAR_10000 - 1000])
def test_time__with_a_date__is_shown_as_it_is(ms: int) -> None:
    assert round(utc(ms).timestamp() * 1000) == ms


@pytest.mark.parametrize("ms", [YEAR_1 - 1, -(2**53), 2**53, YEAR_10000])
def test_ago__of_any_time__is_said(ms: int) -> None:
    assert formatting.ago(ms)


def test_score__of_any_size__is_a_whole_number() -> None:
    assert [whole_ms(score) for score in (-math.inf, math.inf, 1.75, -1.75)] == [
        *(-(2**53), 2**53),
        *(1, -1),
    ]
