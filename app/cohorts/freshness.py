"""Whether a cohort still arrives: told from when it last did, and how often it does."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

# A cadence that is set: a minute to a year, in seconds.
LEAST_CADENCE, MOST_CADENCE = 60, 366 * 86400


class FreshnessState(StrEnum):
    """Whether a cohort still arrives."""

    FRESH = "fresh"
    LATE = "late"  # nothing came for longer than its cadence lets expect
    NEVER = "never"  # it is known, but nobody was ever said to be in it or not


class Freshness(NamedTuple):
    """When a cohort arrived, and when it should. Times are in ms since the epoch.

    Attributes:
        last_received_ms: when users of it last came in, to the second; None for never.
        cadence_ms: time from the start of one sync to the next; None while that isn't known.
        cadence_is_set: by an administrator, rather than learned.
        late_after_ms: from when on it is late; None where that can't be told.
    """

    last_received_ms: int | None = None
    cadence_ms: int | None = None
    cadence_is_set: bool = False
    late_after_ms: int | None = None

    def state(self, now_ms: int) -> FreshnessState:
        """What it is at a time."""
        if self.last_received_ms is None:
            return FreshnessState.NEVER
        if self.late_after_ms is not None and now_ms > self.late_after_ms:
            return FreshnessState.LATE
        return FreshnessState.FRESH
