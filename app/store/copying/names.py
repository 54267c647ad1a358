"""What a key of the store is, by its name."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How a key is brought to another store."""

    USER = "user"  # with all that is kept about the user's cohorts
    COHORT = "cohort"  # a part of what a partition keeps about a cohort
    USERS = "users"  # a set of user ids
    AT_APP = "app"  # as it is, in the partition that the app id gives
    AT_COHORT = "at cohort"  # as it is, in the partition that the cohort id gives
    MESSAGE = "message"  # as it is, where the partitions are the same
    ALONE = "alone"  # as it is: it belongs to no partition
    MADE = "made"  # not brought, but made anew or not needed
    UNKNOWN = "unknown"


class Name(NamedTuple):
    """A key's name, taken apart.

    Attributes:
        app_id: empty where it belongs to no app.
        partition: of the app.
        id: of the user or cohort.
        rest: what follows the hash tag; the whole name where there is none.
    """

    kind: Kind
    app_id: str = ""
    partition: int = 0
    id: bytes = b""
    rest: bytes = b""


_COHORT_PARTS = {
    b"members": Kind.COHORT,
    b"left": Kind.COHORT,
    b"seen": Kind.COHORT,
    b"state": Kind.COHORT,
    b"lease": Kind.MADE,
    b"freshness": Kind.AT_COHORT,
    b"sizes": Kind.AT_COHORT,
    b"syncs": Kind.AT_APP,
}
_PARTS = {
    b"registered": Kind.USERS,
    b"suppressed": Kind.USERS,
    b"syncs": Kind.AT_APP,
    b"failures": Kind.AT_APP,
    b"problems": Kind.AT_APP,
    b"history": Kind.AT_APP,
    b"open": Kind.AT_APP,
    b"cohorts": Kind.MADE,
    b"jobs": Kind.MADE,
    b"due": Kind.MADE,
    b"erased": Kind.MADE,
    b"changes": Kind.MADE,
}
_HEADS = {
    b"sync": Kind.AT_APP,
    b"message": Kind.MESSAGE,
    b"added": Kind.MADE,
    b"changes": Kind.MADE,  # its last id, and what the followers of a consumer group keep
}
_ALONE_MADE = {b"layout", b"copy", b"id", b"apps"}


def name_of(key: bytes, prefix: str) -> Name:
    """Take a key's name apart; it begins with ``prefix``."""
    rest = key[len(prefix) + 1 :]
    if not rest.startswith(b"{"):
        head = rest.partition(b"/")[0].partition(b":")[0]
        made = rest in _ALONE_MADE or head == b"rates"
        return Name(Kind.MADE if made else Kind.ALONE, rest=key)
    tag, closed, rest = rest[1:].partition(b"}:")
    app, _, number = tag.partition(b":")
    if not closed or (number and not number.isdigit()):
        return Name(Kind.UNKNOWN, rest=key)
    place = app.decode(errors="replace"), int(number or 0)
    head, colon, following = rest.partition(b":")
    if head == b"user" and colon:
        return Name(Kind.USER, *place, following, rest)
    if head == b"cohort" and colon:
        cohort_id, _, part = following.rpartition(b":")
        return Name(_COHORT_PARTS.get(part, Kind.UNKNOWN), *place, cohort_id, rest)
    kind = _HEADS.get(head) if colon else _PARTS.get(rest)
    return Name(kind or Kind.UNKNOWN, *place, b"", rest)
