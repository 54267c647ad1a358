"""Convert times in ms since the epoch, also those that ``datetime`` cannot represent.

Senders choose some of them: 0001-01-01T00:00+05:00, for example, is in UTC before the first year
that ``datetime`` knows. Times read from sorted sets may have been written by other programs.
"""

from __future__ import annotations

from datetime import UTC, datetime

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# A float, and so a JSON number in most languages, is exact up to this.
_MAX_MS = 2**53


def utc(ms: float) -> datetime:
    """The time in UTC, clamped to the years 1 to 9999."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return _FIRST if ms < 0 else _LAST


def whole_ms(score: float) -> int:
    """The time in a sorted set's score, without the fraction of a ms that apply.lua may add."""
    return int(min(max(score, -_MAX_MS), _MAX_MS))
