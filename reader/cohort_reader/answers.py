"""What readers return."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Final

from cohort_reader.keys import cohort_id_from_trait


class Unset(Enum):
    """The type of :data:`UNSET`."""

    UNSET = "unset"


# No default: an error is raised.
UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True)
class Membership:
    """Whether a user is in a cohort. Its truth value is ``is_member``.

    Attributes:
        since_ms: when the user became a member; None for other users.
        age_seconds: the age of the answer; 0 if it comes from the store.
        stale: the store is unavailable and the answer older than ``cache_seconds``.
    """

    since_ms: int | None
    age_seconds: float = 0.0
    stale: bool = False

    @property
    def is_member(self) -> bool:
        return self.since_ms is not None

    def __bool__(self) -> bool:
        return self.is_member


@dataclass(frozen=True, slots=True)
class Profile:
    """The traits of a user.

    Attributes:
        traits: whether the user has each trait, by trait name. Empty for an unknown user.
        age_seconds, stale: as in :class:`Membership`.
    """

    traits: dict[str, bool]
    age_seconds: float = 0.0
    stale: bool = False

    @property
    def cohorts(self) -> set[str]:
        """The ids of the cohorts that the user is in."""
        return {cohort_id_from_trait(trait) for trait, member in self.traits.items() if member}


class FreshnessState(StrEnum):
    """Whether a cohort is still being received."""

    FRESH = "fresh"
    LATE = "late"  # overdue, by its cadence or by Amplitude's own record
    NEVER = "never"  # no users of it received yet


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a cohort was last received, and when it becomes late.

    Attributes:
        state: as of now, by the store's clock.
        last_received_ms: when users of it were last received, changed or not; None if never.
        cadence_ms: time between syncs, learned or set; None if unknown.
        late_after_ms: when it becomes late; None if unknown.
    """

    state: FreshnessState
    last_received_ms: int | None = None
    cadence_ms: int | None = None
    late_after_ms: int | None = None


class CompletenessState(StrEnum):
    """What is known about a cohort's members."""

    VERIFIED = "verified"  # confirmed, and nothing has gone wrong since
    UNVERIFIED = "unverified"  # no known gap, but no proof either
    INCOMPLETE = "incomplete"  # members are missing, or some should have left


@dataclass(frozen=True, slots=True)
class IncompleteReason:
    """Why a cohort is incomplete.

    Attributes:
        reason: ``store_lost``, ``store_set_back``, ``sync_failed``, ``deleted_here``,
            ``count_differs``, or one of a later version of the receiver.
        since_ms: since when, in ms since the epoch.
        count: how many events caused it.
    """

    reason: str
    since_ms: int
    count: int


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether the members are known to be right: none missing, none stale.

    ``docs/completeness.md`` explains the states.

    Attributes:
        reasons: why it is incomplete; empty in the other states.
        verified_at_ms: when it was last verified, in ms since the epoch; None for never.
        verified_by: what verified it then: ``resync``, ``import``, ``reconcile`` or ``upstream``.
        left_out: number of users skipped since then, by reason.
        upstream: Amplitude's own record, with the members of ``upstream`` in the HTTP API; None if
            the receiver has not read it.
    """

    state: CompletenessState = CompletenessState.UNVERIFIED
    reasons: tuple[IncompleteReason, ...] = ()
    verified_at_ms: int | None = None
    verified_by: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    upstream: dict[str, Any] | None = None


# The fields of the freshness hash that say how complete a cohort is.
COMPLETENESS_FIELDS = (
    "completeness",
    "reasons",
    "verified_at",
    "verified_by",
    "left_out",
    "upstream",
)


def completeness_of(fields: Sequence[str | None]) -> Completeness:
    """The completeness of a cohort, from :data:`COMPLETENESS_FIELDS` in the store."""
    state, reasons, verified_at, verified_by, left_out, upstream = fields
    return Completeness(
        state=_state(state),
        reasons=tuple(
            IncompleteReason(item["reason"], int(item["since"]), int(item["count"]))
            for item in json.loads(reasons or "[]")
        ),
        verified_at_ms=None if verified_at is None else int(verified_at),
        verified_by=verified_by,
        left_out=json.loads(left_out or "{}"),
        upstream=None if upstream is None else json.loads(upstream),
    )


def _state(word: str | None) -> CompletenessState:
    """A state; UNVERIFIED for one that only a later version of the receiver knows."""
    return next(
        (state for state in CompletenessState if state == word), CompletenessState.UNVERIFIED
    )


def freshness_at(
    now_ms: int, last_received: int | None, cadence: int | None, late_after: int | None
) -> Freshness:
    """The freshness of a cohort at a time, from the fields in the store."""
    if last_received is None:
        return Freshness(FreshnessState.NEVER)
    is_late = late_after is not None and now_ms > late_after
    state = FreshnessState.LATE if is_late else FreshnessState.FRESH
    return Freshness(state, last_received, cadence, late_after)
