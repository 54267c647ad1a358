"""Points in time in ms since the epoch, whatever their value.

Senders choose some of them: a call may be from the year 1, east of Greenwich. Other programs may
have written scores.
"""

from __future__ import annotations

from datetime import UTC, datetime

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# What a float holds exactly, as JSON numbers do in most languages.
_MAX_MS = 2**53


def utc(ms: float) -> datetime:
    """The time in UTC; the nearest one that there is a date for, from the year 1 to 9999."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return _FIRST if ms < 0 else _LAST


def whole_ms(score: float) -> int:
    """A score as a time, without the fraction of a ms that the atomic step may add."""
    return int(min(max(score, -_MAX_MS), _MAX_MS))
