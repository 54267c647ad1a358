"""What all sources share: from identify calls to the store, and the reply."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from flask import Response, g
from orjson import dumps

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
from app.errors import BodyTooLarge, CohortBeingDeleted, Problem, SuppressedUser, UnknownUser
from app.services import services
from app.store import Applied
from app.web.http.body import MAX_ERRORS

# What a call that sends cohorts can be refused for.
PROBLEMS = (UnknownUser, CohortBeingDeleted)
# Rejected users that are told apart in a request's history.
MAX_REJECTIONS = 20


class NotKnown(Exception):
    """A cohort is not known, or no more."""


def apply(
    calls: Sequence[Identify],
    *,
    source: str,
    place: str = "batch.{}.userId",
    numbers: Sequence[int] | None = None,
    left_out: Sequence[tuple[str, type[Problem]]] = (),
    message_id: str = "",
    as_known: bool = False,
) -> Response:
    """Apply what calls say and tell what happened, once the store has acknowledged it.

    Args:
        calls: each about one user.
        source: the source of the request: identify, list, webhook or segment.
        place: where in the body the user of a call stands, with the call's number for ``{}``.
        numbers: of the calls, where others stood between them; else 0, 1, 2 …
        left_out: the places of these others, and why.
        message_id: the sender's id of the whole message, where it has one.
        as_known: the trait names may be out of date.

    Raises:
        NotKnown: with ``as_known``, a cohort is not known.
        BodyTooLarge: of too many cohorts.
        UnknownUser, CohortBeingDeleted: nothing could be applied, for this reason.
        StoreError: the store could not be had.
    """
    parts, now = services(), g._get_current_object()
    event = now.event
    try:
        changes = membership_changes(calls)
    except TooManyCohortsInRequest:
        raise BodyTooLarge(
            f"The body may name at most {MAX_COHORTS_PER_REQUEST} cohorts."
        ) from None
    outcome = now.outcome = Outcome({change.cohort.id: change.cohort.trait for change in changes})
    event.update(source=source, cohorts=list(outcome.traits)[:10])
    started = time.perf_counter()
    applied = parts.store.apply(
        now.caller.app_id,
        changes,
        source=source,
        message_id=message_id,
        known_only=parts.settings.user_policy == "known",
        as_known=as_known,
    )
    if applied.not_known:
        del now.outcome
        raise NotKnown
    event["store_ms"] = round((time.perf_counter() - started) * 1000, 2)
    outcome.moves = applied.moves
    refused, rejected, in_part = [], [*left_out], []
    for n, problem, trait in _left_out(calls, applied):
        where = place.format(numbers[n] if numbers else n)
        if trait is None:
            refused.append((n, problem))
            rejected.append((where, problem))
        else:  # only calls whose user stands in `userId` have several
            in_part.append((f"{where.removesuffix('userId')}traits.{trait}", problem))
    counts = {
        "accepted": len(calls) - len(refused),
        "changed": applied.changed,
        "rejected": len(rejected),
    }
    event.update(counts, repeated=applied.repeated)
    if rejected:
        event["rejected_by"] = Counter(problem.reason for _, problem in rejected)
        outcome.rejections = [
            Rejection(user_hash(calls[n].user_id), problem.reason)
            for n, problem in refused[:MAX_REJECTIONS]
        ]
    # Whoever was erased for good is to be left out: that alone is no error.
    reasons = [problem for _, problem in refused if problem is not SuppressedUser]
    if reasons and not counts["accepted"]:
        raise reasons[0]
    errors = [
        {"place": where, "reason": problem.reason, "message": problem.detail}
        for where, problem in [*rejected, *in_part][:MAX_ERRORS]
    ]
    return Response(dumps({**counts, "errors": errors}), mimetype="application/json")


def _left_out(
    calls: Sequence[Identify], applied: Applied
) -> Iterator[tuple[int, type[Problem], str | None]]:
    """What was left out, and why: the number of a call, and the trait if it is not all of it."""
    if not (applied.unknown or applied.suppressed or applied.refused):
        return
    for n, call in enumerate(calls):
        if call.user_id in applied.unknown:
            yield n, UnknownUser, None
        elif call.user_id in applied.suppressed:
            yield n, SuppressedUser, None
        elif applied.refused:
            traits = [t for t in call.traits if Cohort.from_trait(t).id in applied.refused]
            for trait in traits if len(traits) < len(call.traits) else [None]:
                yield n, CohortBeingDeleted, trait
