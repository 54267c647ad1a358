"""Amplitude's own record of a cohort, and what follows from it."""

from __future__ import annotations

from typing import NamedTuple

FREQUENCIES_MS = {"minute": 60_000, "hourly": 3_600_000, "daily": 86_400_000}
# A sync is overdue one period plus a grace period after its last success. The grace period is half
# a period, but at least this long.
MIN_GRACE_MS = 300_000
# Counts that differ by at most this share of Amplitude's are considered equal: users enter and
# leave between its count and the sync.
COUNT_TOLERANCE = 0.01


class UpstreamCohort(NamedTuple):
    """A cohort as Amplitude lists it. Times are in ms since the epoch.

    Attributes:
        size: users in it, those without an id included; None if Amplitude does not say.
        computed_at_ms: when the size was computed.
        frequency: of its sync: a key of FREQUENCIES_MS, or another word; None without a sync.
        last_success_ms, last_failure_ms: of its sync.
        targets: the destinations that it is synced to.
    """

    id: str
    name: str
    size: int | None = None
    computed_at_ms: int | None = None
    archived: bool = False
    frequency: str | None = None
    last_success_ms: int | None = None
    last_failure_ms: int | None = None
    targets: tuple[str, ...] = ()

    @property
    def is_synced(self) -> bool:
        """Whether Amplitude reports a recurring sync of it."""
        return self.frequency is not None

    def behind_since_ms(self, period_ms: int | None = None) -> int | None:
        """When the sync became, or becomes, overdue; None if Amplitude does not say.

        Args:
            period_ms: replaces the sync's own period.
        """
        period = period_ms or FREQUENCIES_MS.get(self.frequency or "")
        if period is None:
            return None
        if self.last_success_ms is None:
            # Never synced: overdue only if it has failed.
            return self.last_failure_ms
        return self.last_success_ms + period + max(period // 2, MIN_GRACE_MS)


class CountCheck(NamedTuple):
    """How Amplitude's count of a cohort compares with the members here.

    Attributes:
        expected: members that there should be.
        members: members that there are.
        most: with ``USER_POLICY=known``, the most members that there can be, if everybody were
            registered; else None. Registrations change, so fewer members prove nothing.
    """

    expected: int
    members: int
    most: int | None = None

    @property
    def differs(self) -> bool:
        """Whether the counts differ by more than the tolerance.

        With ``most``, only a surplus of members counts.
        """
        if self.most is not None:
            return self.members - self.most > self.most * COUNT_TOLERANCE
        return abs(self.expected - self.members) > self.expected * COUNT_TOLERANCE

    @property
    def is_exact(self) -> bool:
        """Whether the counts are the same.

        Equal counts confirm the members even if the number of anonymous users is unknown. These are
        never sent: if there are some, as many members must be stale, which is unlikely.
        """
        return self.expected == self.members


def awaits_sync(cohort: UpstreamCohort, now_ms: int) -> bool:
    """Whether Amplitude counted a cohort after its last sync, and the next sync is not overdue."""
    if cohort.computed_at_ms is None or cohort.last_success_ms is None:
        return False
    behind_ms = cohort.behind_since_ms()
    return cohort.computed_at_ms > cohort.last_success_ms and (
        behind_ms is not None and behind_ms > now_ms
    )
