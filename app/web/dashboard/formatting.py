"""Times, numbers and names as the pages show them. The templates use these as filters."""

from __future__ import annotations

import re
import time
import unicodedata
from urllib.parse import quote

from app.cohorts.times import utc

_SYMBOLS = {"day": "d", "hour": "h", "minute": "min", "second": "s"}
# Letters and symbols without ink.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
# Control characters, and those that reorder the text around them: they can neither be seen nor
# typed, and let a name pass for another one. White space is collapsed by browsers.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def ago(at_ms: int) -> str:
    """A time relative to now: ``just now``, ``3 minutes ago``, ``in 2 hours``.

    ``ago`` in dashboard.js says the same.
    """
    ms = now_ms() - at_ms
    if abs(ms) < 5000:
        return "just now"
    return f"{duration(ms)} ago" if ms > 0 else f"in {duration(-ms)}"


def duration(ms: float) -> str:
    """A duration in words: ``42 seconds``, ``1 hour``, ``90 minutes``, ``5 days``."""
    return plural(*_in_one_unit(ms))


def every(ms: float) -> str:
    """An interval in words: ``every hour``, ``every 21 hours``."""
    count, unit = _in_one_unit(ms)
    return f"every {unit}" if count == 1 else f"every {plural(count, unit)}"


def span(ms: float) -> str:
    """A measured duration: ``93 ms``, ``42 s``, ``3 min``, ``2 h``, ``5 d``."""
    if ms < 0.1:
        return "<0.1 ms"
    if ms < 1000:
        return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
    count, unit = _in_one_unit(ms)
    return f"{count} {_SYMBOLS[unit]}"


def _in_one_unit(ms: float) -> tuple[int, str]:
    """The largest unit that loses little: 61 minutes are 1 hour, but 90 minutes stay 90 minutes."""
    seconds = ms / 1000
    for size, unit in ((86400, "day"), (3600, "hour")):
        count = seconds / size
        if 0.98 <= count < 1.25 or count >= 1.95:
            return round(count), unit
    return (round(seconds / 60), "minute") if seconds >= 59 else (round(seconds), "second")


def exactly(at_ms: int) -> str:
    """A date and time in UTC."""
    return f"{utc(at_ms).replace(tzinfo=None).isoformat(' ', 'seconds')} UTC"


def to_minute(at_ms: int) -> str:
    """A date and time in UTC, without seconds."""
    return f"{utc(at_ms).replace(tzinfo=None).isoformat(' ', 'minutes')} UTC"


def iso(at_ms: int) -> str:
    """A time in ISO 8601, for scripts."""
    return f"{utc(at_ms).replace(tzinfo=None).isoformat('T', 'milliseconds')}Z"


def number(value: float) -> str:
    """A number with thousands separators: ``1,204``."""
    return f"{value:,}"


def memory(value: int) -> str:
    """An amount of memory: ``12.3 MB``."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun: ``1 user``, ``1,204 users``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def cohort_name(trait: str, cohort_id: str) -> str:
    """The name given in Amplitude: the trait name without ``[Amplitude]`` and the id.

    The id if the name has no visible characters.
    """
    text = trait.removeprefix("[Amplitude]").strip()
    head, colon, tail = text.rpartition(":")
    if colon and tail.strip() == cohort_id:
        text = head.strip()
    return visible(text) if is_visible(text) else visible(cohort_id)


def is_visible(text: str) -> bool:
    """Whether a text has a visible character."""
    return any(unicodedata.category(char)[0] not in "CMZ" and char not in _BLANK for char in text)


def visible(text: str) -> str:
    """A text as it can be read and typed.

    Control characters are shown as ``\\u202e``; a text without a visible character is
    percent-encoded.
    """
    if not is_visible(text):
        return quote(text)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
