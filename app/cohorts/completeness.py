"""Completeness of a cohort: whether its members are known to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class CompletenessState(StrEnum):
    """What is known about a cohort's members."""

    VERIFIED = "verified"  # confirmed, and nothing has gone wrong since
    UNVERIFIED = "unverified"  # no known gap, but no proof either
    INCOMPLETE = "incomplete"  # members are missing, or some should have left


class IncompleteReason(StrEnum):
    """Why a cohort is incomplete."""

    STORE_LOST = "store_lost"  # the store lost its data; only differences have arrived since
    STORE_SET_BACK = "store_set_back"  # the store returned to an earlier state of itself
    SYNC_FAILED = "sync_failed"  # a request for it failed, and no retry succeeded
    DELETED_HERE = "deleted_here"  # it was deleted, and arrived again
    COUNT_DIFFERS = "count_differs"  # the number of members differs from upstream's count


class VerifiedBy(StrEnum):
    """What confirmed a cohort."""

    RESYNC = "resync"
    IMPORT = "import"
    RECONCILE = "reconcile"
    UPSTREAM = "upstream"  # Amplitude's count matches


@dataclass(frozen=True)
class OpenReason:
    """A reason that has not been cleared: since when (ms since the epoch), and how many events."""

    reason: IncompleteReason
    since_ms: int
    count: int


class Upstream(NamedTuple):
    """Amplitude's own record of a cohort. Times are in ms since the epoch; None if unknown.

    Attributes:
        size: its number of users, including anonymous ones, who are never synced.
        computed_at_ms: when it was counted.
        anonymous: how many of the users are anonymous.
        frequency: of the sync, such as ``minute``, ``hourly`` or ``daily``; None without a sync.
        last_success_ms, last_failure_ms: of the sync.
    """

    size: int | None = None
    computed_at_ms: int | None = None
    anonymous: int | None = None
    frequency: str | None = None
    last_success_ms: int | None = None
    last_failure_ms: int | None = None


class Completeness(NamedTuple):
    """What is known about a cohort's members.

    Attributes:
        reasons: why it is incomplete; empty unless it is.
        verified_at_ms: when it was last confirmed, ms since the epoch; None for never.
        verified_by: what confirmed it then.
        left_out: number of users skipped since then, by reason; all if never confirmed.
        upstream: None if Amplitude's record has not been read.
    """

    state: CompletenessState = CompletenessState.UNVERIFIED
    reasons: tuple[OpenReason, ...] = ()
    verified_at_ms: int | None = None
    verified_by: VerifiedBy | None = None
    left_out: Mapping[str, int] = {}
    upstream: Upstream | None = None
