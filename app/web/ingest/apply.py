"""Apply identify calls to the store: the step that all sources share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple
from zlib import crc32

from flask import g

from app.cohorts import (
    MAX_COHORTS_PER_REQUEST,
    Cohort,
    Identify,
    Outcome,
    Rejection,
    TooManyCohortsInRequest,
    all_have_users,
    membership_changes,
    user_hash,
)
from app.errors import (
    BodyTooLarge,
    CohortBeingDeleted,
    InvalidPayload,
    InvalidUserId,
    Problem,
    SuppressedUser,
    UnknownUser,
)
from app.services import services
from app.store import Applied
from app.web.http.body import MAX_ERRORS

# Why a request may be refused as a whole, for the API description of each source.
PROBLEMS = (InvalidUserId, UnknownUser, CohortBeingDeleted)
# Rejected users that the sync history keeps of a request.
MAX_REJECTIONS = 20


class UnknownTrait(Exception):
    """The store does not know the cohort, or no longer does."""


class Skipped(NamedTuple):
    """An item of the body, or one trait of it, that was not applied.

    Attributes:
        place: the place of its user, or of the trait, in the body.
    """

    place: str
    problem: type[Problem]


class Result(NamedTuple):
    """The result of a request.

    Attributes:
        accepted: identify calls that were applied, at least in part.
        changed: users whose traits or memberships changed.
        rejected: identify calls that were not applied, and items rejected by the source.
        skipped: what was not applied, and why; at most 50.
    """

    accepted: int
    changed: int
    rejected: int
    skipped: list[Skipped]


class _Skip(NamedTuple):
    """A call, by its number, or one trait of it, that was not applied.

    ``trait`` is None if nothing of the call was applied.
    """

    call: int
    problem: type[Problem]
    trait: str | None = None


def apply(
    calls: Sequence[Identify],
    *,
    source: str,
    user_place: Callable[[int], str],
    message_id: str = "",
    rejected: Sequence[Skipped] = (),
    as_known: bool = False,
) -> Result:
    """Apply identify calls. Returns once the store has acknowledged all of them.

    Args:
        calls: those without a usable user id are skipped, and nothing else of them counts.
        source: the name of the source.
        user_place: the place of a call's user in the body, by the call's number.
        message_id: the sender's id of the message, to recognise repeats.
        rejected: items that the source itself rejected.
        as_known: the trait names may be out of date.

    Raises:
        UnknownTrait: with ``as_known``.
        InvalidPayload: too many users.
        BodyTooLarge: too many cohorts.
        InvalidUserId, UnknownUser, CohortBeingDeleted: nothing could be applied; the first reason,
            and up to 50 places.
        StoreError
    """
    parts, event = services(), g.event
    max_users = parts.settings.max_batch_users
    if len(calls) > max_users:
        g.refused_body = {"traits": dict(calls[0].traits)}
        message = f"All lists together must hold at most {max_users:,} users."
        raise InvalidPayload(errors=[{"place": "", "message": message}])
    try:
        changes = membership_changes(calls)
    except TooManyCohortsInRequest:
        most = MAX_COHORTS_PER_REQUEST
        raise BodyTooLarge(f"The body may name at most {most:,} cohorts.") from None
    outcome = g.outcome = Outcome(
        {change.cohort.id: change.cohort.trait for change in changes}, content=checksum(calls)
    )
    event.update(source=source, cohorts=list(outcome.traits)[:10])
    some_without_user = not all_have_users(calls)
    if some_without_user:
        # Nothing arrived for a cohort that no usable call names.
        changes = [change for change in changes if change.user_ids]
    started = time.perf_counter()
    applied = parts.store.memberships.apply(
        g.caller.app_id,
        changes,
        source=source,
        message_id=message_id,
        arrived=g.get("arrived"),
        known_only=parts.settings.user_policy == "known",
        as_known=as_known,
    )
    if applied.not_known:
        del g.outcome
        raise UnknownTrait
    event["store_ms"] = round((time.perf_counter() - started) * 1000, 2)
    outcome.moves = applied.moves
    skips = list(_skipped(calls, applied, some_without_user))
    refused = [skip for skip in skips if skip.trait is None]
    traits = [skip for skip in skips if skip.trait is not None]
    reasons = [item.problem for item in rejected] + [skip.problem for skip in refused]
    places = [_placed(skip, user_place) for skip in (refused + traits)[:MAX_ERRORS]]
    result = Result(
        accepted=len(calls) - len(refused),
        changed=applied.changed,
        rejected=len(reasons),
        skipped=[*rejected, *places][:MAX_ERRORS],
    )
    event.update(
        accepted=result.accepted,
        changed=result.changed,
        rejected=result.rejected,
        repeated=applied.repeated,
    )
    if reasons:
        event["rejected_by"] = Counter(problem.reason for problem in reasons)
        outcome.rejections = _rejections(calls, refused)
        outcome.left_out = _left_out(calls, refused, parts.settings.history_left_out_users)
    # Suppressed users are meant to be skipped: a request with no other users is not an error.
    failed = [skip for skip in refused if skip.problem is not SuppressedUser]
    if failed and not result.accepted:
        errors = [_placed(skip, user_place) for skip in failed[:MAX_ERRORS]]
        raise failed[0].problem(errors=[{"place": p, "message": why.detail} for p, why in errors])
    return result


def _placed(skip: _Skip, user_place: Callable[[int], str]) -> Skipped:
    place = user_place(skip.call)
    if skip.trait is not None:
        place = place.removesuffix("userId") + f"traits.{skip.trait}"
    return Skipped(place, skip.problem)


def checksum(calls: Sequence[Identify]) -> int:
    """A checksum by which a retry is recognised; cheap, as it covers only two users."""
    if not calls:
        return 1
    first, last = calls[0], calls[-1]
    start = 2 * len(calls) + sum(first.traits.values())
    return 1 + crc32(last.user_id.encode(), crc32(first.user_id.encode(), start))


def _skipped(
    calls: Sequence[Identify], applied: Applied, some_without_user: bool
) -> Iterator[_Skip]:
    if not (some_without_user or applied.unknown or applied.suppressed or applied.refused):
        return
    traits = {trait for call in calls for trait in call.traits}
    cohort_ids = {trait: Cohort.from_trait(trait).id for trait in traits}
    for n, call in enumerate(calls):
        if not call.user_id:
            yield _Skip(n, InvalidUserId)
        elif call.user_id in applied.suppressed:
            yield _Skip(n, SuppressedUser)
        elif applied.unknown or applied.refused:
            problems: dict[str, type[Problem]] = {}
            for trait in call.traits:
                cohort_id = cohort_ids[trait]
                if call.user_id in applied.unknown.get(cohort_id, ()):
                    problems[trait] = UnknownUser
                elif cohort_id in applied.refused:
                    problems[trait] = CohortBeingDeleted
            if len(problems) < len(call.traits):
                for trait, problem in problems.items():
                    yield _Skip(n, problem, trait)
            else:
                is_unknown = UnknownUser in problems.values()
                yield _Skip(n, UnknownUser if is_unknown else CohortBeingDeleted)


def _rejections(calls: Sequence[Identify], refused: Sequence[_Skip]) -> list[Rejection]:
    """Some of the rejected users. All without a usable id share one entry."""
    rejections: dict[Rejection, None] = {}
    for skip in refused:
        user_id = calls[skip.call].user_id
        rejections[Rejection(user_id and user_hash(user_id), skip.problem.reason)] = None
        if len(rejections) == MAX_REJECTIONS:
            break
    return list(rejections)


def _left_out(calls: Sequence[Identify], refused: Sequence[_Skip], most: int) -> list[str]:
    """The ids of up to ``most`` users who are not registered; never of suppressed ones."""
    unknown = (skip for skip in refused if skip.problem is UnknownUser)
    return [calls[skip.call].user_id for skip in islice(unknown, most)]
