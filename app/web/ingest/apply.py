"""Apply identify calls to the store: the step that all sources share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flask import g

from app.cohorts import (
    MAX_COHORTS_PER_REQUEST,
    Cohort,
    Identify,
    Outcome,
    Rejection,
    TooManyCohortsInRequest,
    membership_changes,
    user_hash,
)
from app.errors import (
    BodyTooLarge,
    CohortBeingDeleted,
    InvalidPayload,
    Problem,
    SuppressedUser,
    UnknownUser,
)
from app.services import services
from app.store import Applied

# Why a request may be refused as a whole, for the API description of each source.
PROBLEMS = (UnknownUser, CohortBeingDeleted)
# Rejected users that the sync history keeps of a request.
MAX_REJECTIONS = 20


class UnknownTrait(Exception):
    """The store has no cohort with this trait name, or no longer."""


class Skipped(NamedTuple):
    """An identify call, or one trait of it, that was not applied.

    Attributes:
        call: the call's number in the request.
        trait: None for the whole call.
    """

    call: int
    problem: type[Problem]
    trait: str | None = None


class Result(NamedTuple):
    """What became of a request.

    Attributes:
        accepted: identify calls that were applied, at least in part.
        changed: users whose traits or memberships changed.
        rejected: identify calls that were not applied, and items rejected by the source.
        skipped: which calls and traits were not applied, and why.
    """

    accepted: int
    changed: int
    rejected: int
    skipped: list[Skipped]


def apply(
    calls: Sequence[Identify],
    *,
    source: str,
    message_id: str = "",
    rejected: Sequence[type[Problem]] = (),
    as_known: bool = False,
) -> Result:
    """Apply identify calls. Returns once the store has acknowledged all of them.

    Args:
        source: the name of the source.
        message_id: the sender's id of the message, to recognise repeats.
        rejected: the reasons for items that the source itself rejected, one for each.
        as_known: the trait names may be out of date.

    Raises:
        UnknownTrait: with ``as_known``.
        InvalidPayload: too many users.
        BodyTooLarge: too many cohorts.
        UnknownUser, CohortBeingDeleted: nothing could be applied, for this reason.
        StoreError
    """
    parts, event = services(), g.event
    max_users = parts.settings.max_batch_users
    if len(calls) > max_users:
        message = f"All lists together must hold at most {max_users} users."
        raise InvalidPayload(errors=[{"place": "", "message": message}])
    try:
        changes = membership_changes(calls)
    except TooManyCohortsInRequest:
        most = MAX_COHORTS_PER_REQUEST
        raise BodyTooLarge(f"The body may name at most {most} cohorts.") from None
    outcome = g.outcome = Outcome({change.cohort.id: change.cohort.trait for change in changes})
    event.update(source=source, cohorts=list(outcome.traits)[:10])
    started = time.perf_counter()
    applied = parts.store.memberships.apply(
        g.caller.app_id,
        changes,
        source=source,
        message_id=message_id,
        known_only=parts.settings.user_policy == "known",
        as_known=as_known,
    )
    if applied.not_known:
        del g.outcome
        raise UnknownTrait
    event["store_ms"] = round((time.perf_counter() - started) * 1000, 2)
    outcome.moves = applied.moves
    skipped = list(_skipped(calls, applied))
    refused = [skip for skip in skipped if skip.trait is None]
    reasons = [*rejected, *(skip.problem for skip in refused)]
    result = Result(len(calls) - len(refused), applied.changed, len(reasons), skipped)
    event.update(
        accepted=result.accepted,
        changed=result.changed,
        rejected=result.rejected,
        repeated=applied.repeated,
    )
    if reasons:
        event["rejected_by"] = Counter(problem.reason for problem in reasons)
        outcome.rejections = [
            Rejection(user_hash(calls[skip.call].user_id), skip.problem.reason)
            for skip in refused[:MAX_REJECTIONS]
        ]
    # Suppressed users are meant to be skipped: a request with no other users is not an error.
    errors = [skip.problem for skip in refused if skip.problem is not SuppressedUser]
    if errors and not result.accepted:
        raise errors[0]
    return result


def _skipped(calls: Sequence[Identify], applied: Applied) -> Iterator[Skipped]:
    if not (applied.unknown or applied.suppressed or applied.refused):
        return
    for n, call in enumerate(calls):
        if call.user_id in applied.unknown:
            yield Skipped(n, UnknownUser)
        elif call.user_id in applied.suppressed:
            yield Skipped(n, SuppressedUser)
        elif applied.refused:
            traits = [t for t in call.traits if Cohort.from_trait(t).id in applied.refused]
            for trait in traits if len(traits) < len(call.traits) else [None]:
                yield Skipped(n, CohortBeingDeleted, trait)
