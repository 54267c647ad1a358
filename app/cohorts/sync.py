"""What is remembered of each request, and of the requests that belong to one sync."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

HASH_BYTES = 6


class Moves(NamedTuple):
    """How many users really entered and left a cohort."""

    entered: int = 0
    left: int = 0


class Rejection(NamedTuple):
    """A user who was left out of a request, by :func:`user_hash`, and the reason."""

    user: str
    reason: str


class RequestRecord(NamedTuple):
    """One request. It is kept as a JSON array of these in their order.

    Attributes:
        at_ms: when it was answered, ms since the epoch.
        took_ms: how long that took.
        status: of the answer.
        source: identify, list, webhook or segment.
        key: the label of the key that it came with.
        request_id: as in the answer and in the log.
        accepted: users, or identify calls, that were taken.
        changed: users for whom something is different now.
        entered, left: users who really did, in this cohort.
        rejected: users, or calls, that were left out.
        repeated: the message had been applied before.
        reason: why the request failed; empty where it did not.
        detail: the first error and its place, where there is one.
        rejections: some of the users who were left out.
    """

    at_ms: int
    took_ms: float
    status: int
    source: str
    key: str
    request_id: str
    accepted: int = 0
    changed: int = 0
    entered: int = 0
    left: int = 0
    rejected: int = 0
    repeated: bool = False
    reason: str = ""
    detail: str = ""
    rejections: tuple[Rejection, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether all that was sent was taken."""
        return self.status < 400 and not self.rejected


@dataclass
class Sync:
    """Requests for one cohort, close in time. Times are in ms since the epoch.

    Attributes:
        id: a number; greater for what began later.
        cohort_id: empty where the requests name none, as those that can't be read, or many.
        trait: the cohort's trait name then.
        began_ms, last_ms: its first and its latest request.
        requests: how many there were.
        failed: requests that were answered with an error.
        repeated: messages that had been applied before.
        accepted, changed, entered, left, rejected: sums of those of the requests.
        took_ms: the time that all requests took together; ``slowest_ms`` that of the slowest.
        reasons: why users were rejected, with how many.
        failures: why requests failed, with how many.
        sources, keys: how many requests came from each source, and with each key.
        kept: how many of the clean requests are still there to be read.
        kept_problems: the same of those that failed or rejected somebody.
    """

    id: int
    cohort_id: str
    trait: str
    began_ms: int
    last_ms: int
    requests: int = 0
    failed: int = 0
    repeated: int = 0
    accepted: int = 0
    changed: int = 0
    entered: int = 0
    left: int = 0
    rejected: int = 0
    took_ms: float = 0
    slowest_ms: float = 0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    kept_problems: int = 0

    @property
    def has_problems(self) -> bool:
        """Whether a request failed, or somebody was left out."""
        return bool(self.failed or self.rejected)


@dataclass
class Outcome:
    """What a request has done.

    Attributes:
        traits: the cohorts that it is about, and their trait names.
        moves: who entered and left, by cohort id.
        rejections: some of the users who were left out.
    """

    traits: dict[str, str]
    moves: dict[str, Moves] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)


def user_hash(user_id: str) -> str:
    """What stands for a user where the id may not: 12 hexadecimal digits, the same each time.

    It lets somebody who knows the id find it again, and tells it to nobody else.
    """
    return blake2b(user_id.encode(), digest_size=HASH_BYTES, person=b"history").hexdigest()
