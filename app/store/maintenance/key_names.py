"""Parse key names, and find out how a copy treats each key."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from app.store.keys import Keys


class Kind(Enum):
    """How a key is copied."""

    WHOLE = "whole"  # unchanged, into the partition of its owner
    SPREAD = "spread"  # a set or sorted set: each element into the partition of its own id
    STATE = "state"  # a cohort's record, of which every partition has a share
    GLOBAL = "global"  # unchanged; belongs to no partition
    LIVE = "live"  # like GLOBAL, but not compared: it changes during a hold
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


def _compiled(forms: dict[bytes, bytes]) -> list[tuple[bytes, re.Pattern[bytes]]]:
    return [(name, re.compile(form, re.DOTALL)) for name, form in forms.items()]


_SPREAD = {
    b"registered": Kind.SPREAD,
    b"suppressed": Kind.SPREAD,
    b"due": Kind.SPREAD,
    b"deleted": Kind.SPREAD,
}
_HISTORY = dict.fromkeys(
    (b"syncs", b"failures", b"problems", b"history", b"open", b"loss", b"left-out"), Kind.WHOLE
)
_EXPORTS = {b"upstream-exports": Kind.WHOLE}
_REBUILT = dict.fromkeys(
    (
        *(b"cohorts", b"jobs", b"resyncs", b"changes", b"erased", b"hold", b"transitions"),
        *(b"mark", b"looked-through", b"upstream", b"notified", b"notifier-lease"),
        b"failed-requests",
    ),
    Kind.SKIPPED,
)
_OF_PARTITION = {**_SPREAD, **_HISTORY, **_EXPORTS, **_REBUILT}
_OF_COHORT = {
    **dict.fromkeys((b"members", b"left", b"seen", b"seen-before"), Kind.SPREAD),
    **dict.fromkeys((b"freshness", b"sizes", b"syncs"), Kind.WHOLE),
    b"state": Kind.STATE,
    # A copy ends the resyncs that are open.
    **dict.fromkeys(
        (b"lease", b"resync", b"resync-lease", b"confirmed", b"confirmed-of"), Kind.SKIPPED
    ),
    b"reconcile": Kind.SKIPPED,
}
_BY_HEAD = {
    b"sync": Kind.WHOLE,
    b"completeness": Kind.SPREAD,
    **dict.fromkeys(
        (b"message", b"added", b"changes", b"loss", b"upstream-lease", b"notified"), Kind.SKIPPED
    ),
}
_GLOBAL = {
    **dict.fromkeys((b"keys", b"audit"), Kind.GLOBAL),
    b"keys:used": Kind.LIVE,
    **dict.fromkeys(
        (b"layout", b"apps", b"hold", b"session-secret", b"unknown-callers"), Kind.SKIPPED
    ),
}


# The type of each key by the part of its name after the hash tag, or after the prefix.
_STRINGS = (
    rb"cohort:.*:(?:lease|resync-lease|confirmed-of|sizes|reconcile)|message:.*|added:.*|changes:last"
    rb"|changes:begun|changes:.*:(?:lease|lost)|loss:lease|upstream-lease:.*|looked-through|hold"
    rb"|notifier-lease"
)
_SORTED_SETS = (
    rb"cohort:.*:(?:members|left|seen|seen-before|syncs)|due|deleted|cohorts|resyncs"
    rb"|completeness:.*|syncs|failures|problems|failed-requests|left-out"
)
_HASHES = (
    rb"user:.*|cohort:.*:(?:state|freshness|resync)|sync:[0-9]+(?::left-out)?|mark|loss|erased|open|history"
    rb"|upstream|upstream-exports|notified"
)
_TYPES_IN_PARTITION = _compiled(
    {
        b"string": _STRINGS,
        b"zset": _SORTED_SETS,
        b"hash": _HASHES,
        b"set": rb"cohort:.*:confirmed|jobs|registered|suppressed|notified:late",
        b"list": rb"sync:[0-9]+:(?:requests|problems)",
        b"stream": rb"changes|changes:.*:failed|transitions",
    }
)
_GLOBAL_TYPES = _compiled(
    {
        b"string": rb"layout|hold|session-secret|session:.*|rates:.*",
        b"zset": rb"keys:used",
        b"hash": rb"keys|unknown-callers",
        b"set": rb"apps",
        b"list": rb"audit",
    }
)


class KeyName(NamedTuple):
    """A parsed key name.

    Attributes:
        key: the full name.
        app_id: empty for global keys.
        owner: the user, cohort or app id that determines the partition of a WHOLE key; for a
            cohort's other keys, the cohort id.
        rest: the part after the hash tag, or after the prefix of a global key.
        what: a human-readable description of the content.
    """

    kind: Kind
    key: bytes
    app_id: str = ""
    owner: bytes = b""
    rest: bytes = b""
    what: str = ""

    @property
    def expected_type(self) -> bytes | None:
        """The type that the key should have; None if its form is unknown."""
        types = _TYPES_IN_PARTITION if self.app_id else _GLOBAL_TYPES
        return next((name for name, form in types if form.fullmatch(self.rest)), None)

    @property
    def is_set(self) -> bool:
        """Whether a SPREAD key is a set rather than a sorted set."""
        return self.rest in (b"registered", b"suppressed")

    def in_store(self, keys: Keys) -> bytes:
        """The name of a WHOLE or global key in a store with these keys."""
        if self.kind in (Kind.GLOBAL, Kind.LIVE):
            return f"{keys.prefix}:".encode() + self.rest
        return self.in_partition(keys, keys.partition_of(self.owner))

    def stream(self, keys: Keys) -> str:
        """The change stream in the partition of a WHOLE key."""
        return keys.changes(self.app_id, keys.partition_of(self.owner))

    def in_partition(self, keys: Keys, partition: int) -> bytes:
        return keys.base(self.app_id, partition).encode() + self.rest


def parse(key: bytes, prefix: str) -> KeyName:
    """Parse a key name that begins with ``prefix``."""
    rest = key[len(prefix) + 1 :]
    if not rest.startswith(b"{"):
        skipped = rest.startswith((b"rates:", b"session:"))
        kind = Kind.SKIPPED if skipped else _GLOBAL.get(rest, Kind.UNKNOWN)
        return KeyName(kind, key, rest=rest, what=rest.decode(errors="replace"))
    tag, closed, rest = rest[1:].partition(b"}:")
    app, _, number = tag.partition(b":")
    if not closed or (number and not number.isdigit()):
        return KeyName(Kind.UNKNOWN, key)
    app_id = app.decode(errors="replace")
    head, colon, following = rest.partition(b":")
    if head == b"user" and colon:
        return KeyName(Kind.WHOLE, key, app_id, following, rest, "user")
    if head == b"cohort" and colon:
        cohort_id, _, part = following.rpartition(b":")
        kind = _OF_COHORT.get(part, Kind.UNKNOWN)
        owner = app if part == b"syncs" else cohort_id
        return KeyName(kind, key, app_id, owner, rest, f"cohort {part.decode(errors='replace')}")
    kind = (_BY_HEAD if colon else _OF_PARTITION).get(head, Kind.UNKNOWN)
    return KeyName(kind, key, app_id, app, rest, head.decode(errors="replace"))
