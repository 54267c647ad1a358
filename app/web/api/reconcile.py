"""Compare a cohort with Amplitude's own record."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, g
from marshmallow import fields, validate

from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, READ, requires
from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.errors import (
    ExportsUsedUp,
    InvalidParameter,
    NoReconcile,
    Problem,
    ReconcileUnfinished,
    UnknownCohort,
    UpstreamUnset,
)
from app.services import services
from app.upstream import errors
from app.upstream.reconcile import DONE, FAILED, INTERRUPTED, REFUSED, RUNNING, Order, Report
from app.web.api.lookup import known_cohort
from app.web.http.body import load, read_optional_json
from app.web.http.contract import cohort_in_path, describes, send
from app.web.http.fields import Base, Text
from app.web.http.replies import Reply, count, ms, text, yes_or_no

# Pause every few ms of work, so that requests come first.
_PAUSE_SECONDS = 0.005
_PROBLEMS: dict[type[errors.UpstreamError], type[Problem]] = {
    errors.UpstreamNotConfigured: UpstreamUnset,
    errors.ReconcileRunning: ReconcileUnfinished,
    errors.ExportBudgetSpent: ExportsUsedUp,
}


def _flag(description: str) -> fields.Boolean:
    return fields.Boolean(
        truthy={True}, falsy={False}, load_default=False, metadata={"description": description}
    )


class ReconcileBody(Base):
    """Options of a reconcile."""

    apply = _flag("Replace the members with those in Amplitude.")
    force = _flag("Proceed even if nobody, or fewer than half of the members, would stay.")
    column = Text(
        MAX_TRAIT_BYTES,
        load_default=None,
        allow_none=True,
        metadata={
            "description": "The user property that the sync sends in place of the user id, if any.",
            "example": "email",
        },
    )


class ExportsReply(Reply):
    """The exports of this month."""

    used = count("Exports of this app, this one included.", allow_none=True, example=3)
    limit = count("AMPLITUDE_EXPORTS_PER_MONTH.", allow_none=True, example=100)
    amplitudeUsed = count(
        "Amplitude's own count, without this one; null if unknown.", allow_none=True
    )
    amplitudeLimit = count("Amplitude's own limit; null if unknown.", allow_none=True, example=500)


class ReconcileReply(Reply):
    """A cohort's current or last reconcile. Until they are known, counts are null or 0."""

    state = text(
        "`running`, `done`, `refused`, `failed` or `interrupted`.",
        example=DONE,
        validate=validate.OneOf([RUNNING, DONE, REFUSED, FAILED, INTERRUPTED]),
    )
    apply = yes_or_no("Whether the members are replaced.", example=False)
    requestedAt = ms("When it was requested")
    finishedAt = ms("When it ended; null while it runs", allow_none=True)
    reason = text("Why it did not succeed; else null.", allow_none=True, example=None)
    detail = text("The reason in words; else null.", allow_none=True, example=None)
    size = count("The cohort's size in Amplitude's list.", allow_none=True, example=6512)
    computedAt = ms("When Amplitude computed that size", allow_none=True)
    rows = count("Users in the export.", allow_none=True, example=6512)
    anonymous = count("Of them, users without an id.", example=12)
    unusable = count("Of them, users with an id that is not accepted.", example=0)
    suppressed = count("Of them, users who are suppressed.", example=0)
    unregistered = count("Of them, users who are neither registered nor members.", example=0)
    members = count("Members here, before anything was changed.", allow_none=True, example=6499)
    missing = count("Other users of the export who are not members.", allow_none=True, example=2)
    extra = count("Members who are not in the export.", allow_none=True, example=1)
    missingIds = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata={
            "description": "Some of the missing users, at most 100; null without scope admin.",
            "example": ["user1@example.com", "user2@example.com"],
        },
    )
    extraIds = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata={
            "description": "Some of the extra users, at most 100; null without scope admin.",
            "example": ["user3@example.com"],
        },
    )
    syncArrived = yes_or_no("Whether a sync arrived during the comparison.", example=False)
    added = count("Users who entered; null unless applied.", allow_none=True)
    removed = count("Users who left; null unless applied.", allow_none=True)
    exports = fields.Nested(ExportsReply, required=True)


blueprint = Blueprint("reconcile", __name__, url_prefix="/api/v1")

_RECONCILE = ReconcileBody()


@blueprint.post("/cohorts/<segment:cohort_id>/reconcile")
@requires(ADMIN)
@describes(
    *(InvalidParameter, UnknownCohort, UpstreamUnset, ReconcileUnfinished, ExportsUsedUp),
    body=(_RECONCILE,),
    reply=ReconcileReply(),
    status=202,
)
def reconcile(cohort_id: str) -> Response:
    """Begin to compare a cohort with an export from Amplitude, which takes some minutes.

    `GET` returns the result. The export counts against the monthly limit. With `apply`, a cohort
    that never arrived here, or is lost, is created under its name in Amplitude.
    """
    asked = load(_RECONCILE, read_optional_json())
    cohort_in_path(cohort_id)
    if not asked["apply"]:
        known_cohort(cohort_id)
    return _reply(begin_reconcile(cohort_id, **asked), 202)


@blueprint.get("/cohorts/<segment:cohort_id>/reconcile")
@requires(READ)
@describes(InvalidParameter, UnknownCohort, NoReconcile, reply=ReconcileReply())
def get_reconcile(cohort_id: str) -> Response:
    """The running reconcile of a cohort, or the last one, for a day after it ended."""
    report = services().reconciler.report(g.caller.app_id, cohort_in_path(cohort_id))
    if report is None:
        known_cohort(cohort_id)
        raise NoReconcile()
    return _reply(report)


def begin_reconcile(
    cohort_id: str, *, apply: bool, force: bool = False, column: str | None = None
) -> Report:
    """Begin a reconcile in the background of this process.

    Raises:
        UpstreamUnset, ReconcileUnfinished, ExportsUsedUp
    """
    parts, operator = services(), Operator.of_request()
    order = Order(operator, g.caller.app_id, cohort_id, apply=apply, force=force, column=column)
    try:
        report = parts.reconciler.begin(order)
    except errors.UpstreamError as error:
        raise _PROBLEMS[type(error)]() from None

    def run() -> None:
        # If another one began at the same moment, its report counts.
        with suppress(errors.ReconcileRunning):
            parts.reconciler.run(order, report, breathe=lambda: time.sleep(_PAUSE_SECONDS))

    parts.background.spawn(run)
    return report


def _reply(report: Report, status: int = 200) -> Response:
    response = send(_shown(report, with_ids=g.caller.may(ADMIN)))
    response.status_code = status
    return response


def _shown(report: Report, *, with_ids: bool) -> dict[str, Any]:
    return {
        "state": report.state,
        "apply": report.apply,
        "requestedAt": report.requested_ms,
        "finishedAt": report.finished_ms,
        "reason": report.reason,
        "detail": report.detail,
        "size": report.size,
        "computedAt": report.computed_at_ms,
        "rows": report.rows,
        "anonymous": report.anonymous,
        "unusable": report.unusable,
        "suppressed": report.suppressed,
        "unregistered": report.unregistered,
        "members": report.members,
        "missing": report.missing,
        "extra": report.extra,
        "missingIds": report.missing_ids if with_ids else None,
        "extraIds": report.extra_ids if with_ids else None,
        "syncArrived": report.sync_arrived,
        "added": report.added,
        "removed": report.removed,
        "exports": {
            "used": report.exports,
            "limit": report.exports_most,
            "amplitudeUsed": report.amplitude_exports,
            "amplitudeLimit": report.amplitude_most,
        },
    }
