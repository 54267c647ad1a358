"""Records of requests and of syncs, for the sync history."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

HASH_BYTES = 6


class Moves(NamedTuple):
    """How many users entered and left a cohort, repeats not counted."""

    entered: int = 0
    left: int = 0


class Rejection(NamedTuple):
    """A rejected user, by :func:`user_hash`, and the reason.

    ``user`` is "" for users without a usable id; a request has one such entry for all of them.
    """

    user: str
    reason: str


class RequestRecord(NamedTuple):
    """One request. Stored as a JSON array of these fields in this order.

    Attributes:
        at_ms: when the reply was ready, ms since the epoch.
        took_ms: processing time.
        status: HTTP status of the reply.
        source: the source's name, such as ``identify``.
        key: the label of the API key.
        request_id: as in the reply and in the log.
        accepted: users, or identify calls, that were applied.
        changed: users whose traits or memberships changed.
        entered, left: users who entered and left this cohort.
        rejected: users, or calls, that were not applied, not counting suppressed users.
        repeated: the message had been applied before.
        reason: why the request failed; empty if it succeeded.
        detail: the first error and its place; empty if there is none.
        rejections: some of the rejected users.
        unknown_cohort: the cohort id that a failed request names, if no such cohort was known.
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
    unknown_cohort: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether the request succeeded and rejected nobody, apart from suppressed users."""
        return self.status < 400 and not self.rejected


@dataclass
class Sync:
    """Requests for one cohort, close in time. Times are in ms since the epoch.

    Attributes:
        id: a number; later syncs have greater ones.
        cohort_id: empty if the requests name no cohort (such as invalid ones) or many.
        trait: the cohort's trait name at the time.
        began_ms, last_ms: time of the first and the latest request.
        requests: number of requests.
        failed: requests that got an error reply.
        repeated: messages that had been applied before.
        accepted, changed, entered, left, rejected: totals over the requests.
        took_ms: total processing time; ``slowest_ms`` is that of the slowest request.
        reasons: rejected users by reason, including suppressed ones.
        failures: failed requests by reason.
        sources, keys: requests by source and by API key.
        kept: clean requests that are still stored.
        kept_problems: stored requests that failed or rejected users.
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
        """Whether a request failed or rejected a user."""
        return bool(self.failed or self.rejected)


@dataclass
class Outcome:
    """What a request did.

    Attributes:
        traits: trait names by cohort id, of the cohorts that the request names.
        moves: how many users entered and left, by cohort id.
        rejections: some of the rejected users.
        left_out: ids of some users who are not registered.
        content: a checksum by which a retry is recognised; 0 if there is none, for example because
            the body was not read.
        unverified: ids of cohorts that a failed request names, if it failed before it was known
            whether they exist.
    """

    traits: dict[str, str]
    moves: dict[str, Moves] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    content: int = 0
    unverified: tuple[str, ...] = ()


def user_hash(user_id: str) -> str:
    """A stable pseudonym of a user id, 12 hexadecimal digits, for logs and history.

    Whoever knows or guesses the id can find its entries; the hash alone does not reveal it.
    """
    return blake2b(user_id.encode(), digest_size=HASH_BYTES, person=b"history").hexdigest()
