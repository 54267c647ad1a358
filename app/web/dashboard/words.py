"""What the dashboard says in words: times, numbers, and what to do about each reason."""

from __future__ import annotations

import time
import unicodedata
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
# Letters and symbols that look like nothing.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
_SHORT = {"day": "d", "hour": "h", "minute": "min", "second": "s"}


class Advice(NamedTuple):
    """What a reason means, and what to do about it; of the store, also while it is so."""

    meaning: str
    to_do: str
    now: str = ""


# Every reason that a request that brings cohorts can fail for, or a user can be left out for.
ADVICE = {
    "invalid_json": Advice(
        "The body is not JSON.",
        "Look at the webhook's template in Amplitude: a quote or comma may be missing, or a "
        "cohort's name holds a quote that the template does not escape.",
    ),
    "invalid_encoding": Advice(
        "The body was cut off, or is not the gzip that it says.",
        "If it goes on, look for a proxy in front of the service that changes or cuts bodies.",
    ),
    "invalid_payload": Advice(
        "The body is JSON, but not what this call takes. Nothing of it was written.",
        "Compare the destination's template in Amplitude with the set-up guide.",
    ),
    "invalid_parameter": Advice(
        "The address holds an id that can't be one.",
        "Look at the addresses that are entered in Amplitude's destination.",
    ),
    "unsupported_type": Advice(
        "It is not an identify call, so it says nothing about cohorts.",
        "This is harmless. Send only identify calls to save the traffic.",
    ),
    "missing_credentials": Advice(
        "No key was sent.",
        "Enter the key in Amplitude's destination: as the username, without a password.",
    ),
    "invalid_credentials": Advice(
        "The key is not known here, or does not belong to the app that was named.",
        "Compare the key in Amplitude's destination with API_KEYS. Was a key rotated?",
    ),
    "expired_key": Advice(
        "The key has expired.", "Make a new key and enter it in Amplitude's destination."
    ),
    "revoked_key": Advice(
        "The key was revoked.",
        "If that was meant, remove the sender; else make a new key and enter it there.",
    ),
    "https_required": Advice(
        "The call came by plain HTTP.",
        "Enter the address with https:// in Amplitude's destination, and a new key there.",
    ),
    "missing_scope": Advice(
        "The key is good, but may not send cohorts.",
        "Enter a key with the scope ingest in Amplitude's destination, not one that reads.",
    ),
    "not_found": Advice(
        "There is no such address here.",
        "Look at the addresses that are entered in Amplitude's destination.",
    ),
    "method_not_allowed": Advice(
        "The address is right, the method isn't.", "Cohorts are sent with POST."
    ),
    "unknown_user": Advice(
        "The user is not registered, and only registered users are let in (USER_POLICY=known).",
        "Register the users (flask --app wsgi users register), or set USER_POLICY=open.",
    ),
    "suppressed_user": Advice(
        "The user was erased for good, and is kept out.",
        "This is as it should be. To take somebody in again, lift the suppression.",
    ),
    "unknown_cohort": Advice(
        "There is no list with this id.",
        "Amplitude creates a list before it fills it. If the store was emptied meanwhile, set the "
        "destination up anew, so that it creates the list again.",
    ),
    "cohort_being_deleted": Advice(
        "The cohort is being deleted, so nothing is taken for it.",
        "What is sent when that is done starts it afresh. If it is not to come back, remove the "
        "sync in Amplitude.",
    ),
    "body_timeout": Advice(
        "The body did not arrive in time.",
        "If it goes on, the network between is slow or BODY_TIMEOUT_SECONDS too short.",
    ),
    "body_too_large": Advice(
        "The body is larger than the service takes.",
        "Lower the batch size in Amplitude's destination, or raise MAX_BODY_BYTES.",
    ),
    "unsupported_media_type": Advice(
        "The body is not announced as JSON in UTF-8.",
        "Set the header Content-Type: application/json in Amplitude's destination.",
    ),
    "rate_limited": Advice(
        "More requests came than RATE_LIMIT lets through.",
        "Amplitude sends them again later, so nothing is lost. If syncs take too long, raise "
        "RATE_LIMIT or the batch size.",
    ),
    "internal_error": Advice(
        "An error in the service.",
        "Amplitude sends the request again. Search the log for the request id and report it.",
    ),
    "store_unreachable": Advice(
        "The store could not be reached.",
        "Amplitude sends the request again, so nothing is lost if it does not go on. See Health.",
        "Look whether it runs, and whether REDIS_URL leads to it.",
    ),
    "store_timeout": Advice(
        "The store did not answer in time.",
        "Amplitude sends the request again. If it goes on, the store is too small or too far.",
        "If it goes on, the store is too small or too far.",
    ),
    "store_loading": Advice(
        "The store was starting, or failing over.",
        "Amplitude sends the request again. This ends by itself.",
        "This ends by itself.",
    ),
    "store_held": Advice(
        "Writes are on hold while the store is copied or moved.",
        "Amplitude sends the request again. If nobody is moving the store, run `store release`.",
        "If nobody is moving the store, run `store release`.",
    ),
    "store_full": Advice(
        "The store is full and takes no writes.",
        "Give it more memory, or delete cohorts that nobody needs. See Health.",
        "Give it more memory, or delete cohorts that nobody needs.",
    ),
    "store_misconfigured": Advice(
        "The store can't be used as it is set up.",
        "Look in the log: it says what is wrong with its rights, its partitions or its keys.",
        "The log says what is wrong with its rights, its partitions or its keys.",
    ),
    "store_not_replicated": Advice(
        "The store took the write, but too few replicas had it in time.",
        "Amplitude sends the request again. If it goes on, look at the store's replicas.",
        "If it goes on, look at the store's replicas.",
    ),
    "store_error": Advice(
        "The store refused a command.",
        "Search the log for the request id: it says which.",
        "The log says which.",
    ),
}
_OTHER = Advice("See the log.", "Search the log for the request id.")


def advice(reason: str) -> Advice:
    """What a reason means, and what to do about it."""
    return ADVICE.get(reason, _OTHER)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def ago(at_ms: int) -> str:
    """How long ago, or in how long, a time is: ``3 min ago``, ``in 2 h``."""
    seconds = (now_ms() - at_ms) / 1000
    if abs(seconds) < 5:
        return "just now"
    return f"{span(seconds * 1000)} ago" if seconds > 0 else f"in {span(-seconds * 1000)}"


def span(ms: float) -> str:
    """A length of time, to one unit: ``93 ms``, ``42 s``, ``3 min``, ``2 h``, ``5 d``."""
    seconds = ms / 1000
    if seconds < 1:
        return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
    for size, unit in _UNITS:
        # 90 minutes are more than "1 h" says, so a unit begins at twice its size.
        if seconds >= 2 * size or (unit == "second"):
            return f"{seconds / size:.0f} {_SHORT[unit]}"
    return ""


def exactly(at_ms: int) -> str:
    """A time in full, UTC."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(at_ms: int) -> str:
    """A time for machines."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def number(value: float) -> str:
    """A number with its thousands apart: ``1,204``."""
    return f"{value:,}"


def size(value: int) -> str:
    """An amount of memory: ``12.3 MB``."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its word: ``1 user``, ``1,204 users``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def name(trait: str, cohort_id: str) -> str:
    """A cohort's name as people know it: the trait name without Amplitude's frame.

    Where nothing of it can be seen, the id.
    """
    text = trait.removeprefix("[Amplitude]").strip()
    head, colon, tail = text.rpartition(":")
    if colon and tail.strip() == cohort_id:
        text = head.strip()
    return text if is_seen(text) else seen(cohort_id)


def is_seen(text: str) -> bool:
    """Whether any character of a text can be seen."""
    return any(unicodedata.category(char)[0] not in "CMZ" and char not in _BLANK for char in text)


def seen(text: str) -> str:
    """A text as it can be seen: itself, or where nothing of it can, ``%20`` and the like."""
    return text if is_seen(text) else quote(text)
