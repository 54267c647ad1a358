"""The sync history, and cohort sizes over time."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g

from app.auth.authenticate import READ, requires
from app.cohorts import RequestRecord, Sync
from app.errors import InvalidParameter, UnknownCohort, UnknownSync
from app.web.api.lookup import known_cohort, known_sync, store
from app.web.api.sync_schemas import (
    RequestsQuery,
    RequestsReply,
    SizesReply,
    SyncReply,
    SyncsQuery,
    SyncsReply,
)
from app.web.http.contract import cohort_in_path, describes, parameters, send, sync_in_path
from app.web.http.cursors import request_cursor, sync_cursor

blueprint = Blueprint("syncs", __name__, url_prefix="/api/v1")

_SYNCS_QUERY, _REQUESTS_QUERY = SyncsQuery(), RequestsQuery()


@blueprint.get("/syncs")
@requires(READ)
@describes(InvalidParameter, query=_SYNCS_QUERY, reply=SyncsReply(), paged=True)
def get_syncs() -> Response:
    """The sync history, the latest first: requests for one cohort, close in time, are one sync."""
    asked = parameters(_SYNCS_QUERY)
    page = store().sync_history.syncs(
        g.caller.app_id,
        cohort_id=asked.get("cohort"),
        problems=asked["problems"],
        before=asked.get("cursor"),
        limit=asked["limit"],
    )
    cursor = sync_cursor(page.after)
    return send({"syncs": list(map(_shown, page.syncs)), "next": cursor}, next_cursor=cursor)


@blueprint.get("/syncs/<segment:sync_id>")
@requires(READ)
@describes(InvalidParameter, UnknownSync, reply=SyncReply(), tagged=True)
def get_sync(sync_id: str) -> Response:
    """One sync."""
    return send(_shown(known_sync(sync_in_path(sync_id))), tagged=True)


@blueprint.get("/syncs/<segment:sync_id>/requests")
@requires(READ)
@describes(InvalidParameter, UnknownSync, query=_REQUESTS_QUERY, reply=RequestsReply(), paged=True)
def get_requests(sync_id: str) -> Response:
    """The stored requests of a sync, oldest first."""
    asked = parameters(_REQUESTS_QUERY)
    skip, limit = asked.get("cursor", 0), asked["limit"]
    sync = known_sync(sync_in_path(sync_id))
    found = store().sync_history.requests(
        g.caller.app_id, sync.id, problems=asked["problems"], skip=skip, limit=limit + 1
    )
    cursor = request_cursor(skip + limit if len(found) > limit else None)
    document = {"requests": list(map(_shown_request, found[:limit])), "next": cursor}
    return send(document, next_cursor=cursor)


@blueprint.get("/cohorts/<segment:cohort_id>/sizes")
@requires(READ)
@describes(InvalidParameter, UnknownCohort, reply=SizesReply(), tagged=True)
def get_sizes(cohort_id: str) -> Response:
    """A cohort's number of members over time."""
    cohort_id = known_cohort(cohort_in_path(cohort_id))
    (sizes,) = store().size_history.of(g.caller.app_id, [cohort_id])
    return send({"sizes": [{"at": at, "members": members} for at, members in sizes]}, tagged=True)


def _shown(sync: Sync) -> dict[str, Any]:
    return {
        "id": str(sync.id),
        "cohortId": sync.cohort_id or None,
        "trait": sync.trait or None,
        "began": sync.began_ms,
        "last": sync.last_ms,
        "requests": sync.requests,
        "failed": sync.failed,
        "repeated": sync.repeated,
        "accepted": sync.accepted,
        "changed": sync.changed,
        "entered": sync.entered,
        "left": sync.left,
        "rejected": sync.rejected,
        "tookMs": round(sync.took_ms),
        "slowestMs": round(sync.slowest_ms),
        "reasons": sync.reasons,
        "failures": sync.failures,
        "sources": sync.sources,
        "keys": sync.keys,
    }


def _shown_request(record: RequestRecord) -> dict[str, Any]:
    return {
        "at": record.at_ms,
        "tookMs": record.took_ms,
        "status": record.status,
        "source": record.source,
        "key": record.key,
        "requestId": record.request_id,
        "accepted": record.accepted,
        "changed": record.changed,
        "entered": record.entered,
        "left": record.left,
        "rejected": record.rejected,
        "repeated": record.repeated,
        "reason": record.reason or None,
        "detail": record.detail or None,
        "unknownCohort": record.unknown_cohort or None,
        "rejections": [
            {"user": user or None, "reason": reason} for user, reason in record.rejections
        ],
    }
