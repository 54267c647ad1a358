"""Cohorts and their cadence."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, Response, g

from app.auth.admin_actions import set_cadence
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, READ, requires
from app.cohorts import CohortRecord, CohortSummary, Completeness, Freshness
from app.errors import InvalidParameter, TooManyCohortsToSort, UnknownCohort
from app.store import CohortFilter
from app.web.api.lookup import known_cohort, store
from app.web.api.schemas import (
    CadenceBody,
    CohortDetailReply,
    CohortsQuery,
    CohortsReply,
    FreshnessReply,
)
from app.web.http.body import load, read_json
from app.web.http.contract import cohort_in_path, describes, parameters, send
from app.web.http.cursors import list_cursor

blueprint = Blueprint("cohorts", __name__, url_prefix="/api/v1")

_COHORTS_QUERY, _CADENCE = CohortsQuery(), CadenceBody()


@blueprint.get("/cohorts")
@requires(READ)
@describes(
    *(InvalidParameter, TooManyCohortsToSort),
    query=_COHORTS_QUERY,
    reply=CohortsReply(),
    tagged=True,
    paged=True,
)
def get_cohorts() -> Response:
    """Cohorts, a page at a time."""
    asked = parameters(_COHORTS_QUERY)
    listing = store().cohort_list.page(
        g.caller.app_id,
        CohortFilter(
            asked.get("name"),
            asked.get("status"),
            asked.get("freshness"),
            asked.get("completeness"),
            asked.get("reason"),
        ),
        sort=asked["sort"].lstrip("-"),
        descending=asked["sort"].startswith("-"),
        after=asked["cursor"][1:] if "cursor" in asked else None,
        limit=asked["limit"],
    )
    cursor = list_cursor(asked["sort"], listing.after)
    found = [_shown(cohort, cohort.freshness, cohort.completeness) for cohort in listing.cohorts]
    return send({"cohorts": found, "next": cursor}, tagged=True, next_cursor=cursor)


@blueprint.get("/cohorts/<segment:cohort_id>")
@requires(READ)
@describes(InvalidParameter, UnknownCohort, reply=CohortDetailReply(), tagged=True)
def get_cohort(cohort_id: str) -> Response:
    """A cohort with its counts, sources and earlier names."""
    record = store().registry.find(g.caller.app_id, cohort_in_path(cohort_id))
    if record is None:
        raise UnknownCohort()
    (freshness,) = store().freshness.of(g.caller.app_id, [cohort_id])
    (completeness,) = store().completeness.of(g.caller.app_id, [cohort_id])
    return send(_shown(record, freshness, completeness) | _history(record), tagged=True)


@blueprint.put("/cohorts/<segment:cohort_id>/cadence")
@requires(ADMIN)
@describes(InvalidParameter, UnknownCohort, body=(_CADENCE,), reply=FreshnessReply())
def put_cadence(cohort_id: str) -> Response:
    """Set how often a cohort is expected to arrive."""
    seconds = load(_CADENCE, read_json())["seconds"]
    return _set_cadence(cohort_id, seconds * 1000)


@blueprint.delete("/cohorts/<segment:cohort_id>/cadence")
@requires(ADMIN)
@describes(InvalidParameter, UnknownCohort, reply=FreshnessReply())
def delete_cadence(cohort_id: str) -> Response:
    """Remove a set cadence, and learn it from the cohort's history instead."""
    return _set_cadence(cohort_id, None)


def _set_cadence(cohort_id: str, cadence_ms: int | None) -> Response:
    app_id = g.caller.app_id
    known_cohort(cohort_in_path(cohort_id))
    set_cadence(store(), Operator.of_request(), app_id, cohort_id, cadence_ms)
    return send(_shown_freshness(store().freshness.of(app_id, [cohort_id])[0]))


def _shown(
    cohort: CohortSummary | CohortRecord, freshness: Freshness, completeness: Completeness
) -> dict[str, Any]:
    return {
        "id": cohort.id,
        "trait": cohort.trait,
        "status": cohort.status,
        "members": cohort.members,
        "freshness": _shown_freshness(freshness),
        "completeness": _shown_completeness(completeness),
    }


def _history(record: CohortRecord) -> dict[str, Any]:
    return {
        "firstSeen": record.first_ms,
        "entered": record.entered,
        "left": record.left,
        "sources": record.sources,
        "earlierNames": [
            {"trait": trait, "until": until} for trait, until in record.earlier_names.items()
        ],
    }


def _shown_freshness(freshness: Freshness) -> dict[str, Any]:
    source = "set" if freshness.cadence_is_set else "learned"
    return {
        "state": freshness.state(time.time_ns() // 1_000_000),
        "lastReceived": freshness.last_received_ms,
        "cadence": freshness.cadence_ms,
        "cadenceSource": source if freshness.cadence_ms else None,
        "lateAfter": freshness.late_after_ms,
    }


def _shown_completeness(completeness: Completeness) -> dict[str, Any]:
    upstream = completeness.upstream
    return {
        "state": completeness.state,
        "reasons": [
            {"reason": open.reason, "since": open.since_ms, "count": open.count}
            for open in completeness.reasons
        ],
        "verifiedAt": completeness.verified_at_ms,
        "verifiedBy": completeness.verified_by,
        "leftOut": completeness.left_out,
        "upstream": upstream
        and {
            "size": upstream.size,
            "computedAt": upstream.computed_at_ms,
            "anonymous": upstream.anonymous,
            "frequency": upstream.frequency,
            "lastSuccess": upstream.last_success_ms,
            "lastFailure": upstream.last_failure_ms,
        },
    }
