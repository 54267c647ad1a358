"""Freshness of a cohort: when it was last received, and how often it should be."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

# Limits for a cadence that an administrator sets: a minute to a year.
MIN_CADENCE_SECONDS, MAX_CADENCE_SECONDS = 60, 366 * 86400


class FreshnessState(StrEnum):
    """Whether a cohort arrives as often as expected."""

    FRESH = "fresh"
    LATE = "late"  # overdue, by its cadence or by Amplitude's own record
    NEVER = "never"  # registered, but no users received yet


class Freshness(NamedTuple):
    """When a cohort was last received and when it is late. Times are in ms since the epoch.

    Attributes:
        last_received_ms: when users were last received, to the second; None for never.
        cadence_ms: time from the start of one sync to the next; None if unknown.
        cadence_is_set: set by an administrator, rather than learned from history.
        late_after_ms: when the cohort becomes late; None if unknown.
    """

    last_received_ms: int | None = None
    cadence_ms: int | None = None
    cadence_is_set: bool = False
    late_after_ms: int | None = None

    @property
    def next_ms(self) -> int | None:
        """When the next sync is expected; None if unknown."""
        if self.last_received_ms is None or self.cadence_ms is None:
            return None
        return self.last_received_ms + self.cadence_ms

    def state(self, now_ms: int) -> FreshnessState:
        """The state at a point in time."""
        if self.last_received_ms is None:
            return FreshnessState.NEVER
        if self.late_after_ms is not None and now_ms > self.late_after_ms:
            return FreshnessState.LATE
        return FreshnessState.FRESH
