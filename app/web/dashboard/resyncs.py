"""Replacing the members of a cohort: the forms of a resync, and what the page shows of it."""

from __future__ import annotations

from typing import Any

from flask import abort, g, redirect, url_for
from werkzeug.wrappers import Response as BaseResponse

from app.auth import admin_actions
from app.auth.admin_actions import OtherResync, ResyncRefused
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, requires
from app.cohorts import Resync, ResyncKind, ResyncState, Status
from app.errors import (
    CohortBeingDeleted,
    NoResync,
    ResyncFinishing,
    ResyncUnfinished,
    UnknownCohort,
)
from app.services import services
from app.store import ResyncPlace, Store
from app.web.api.lookup import store
from app.web.dashboard.forms import decoded_id, read_signed_form
from app.web.dashboard.pages import blueprint

# Seconds without a request after which a resync finishes automatically; 0 for never.
QUIET_SECONDS = (0, 600, 3600)
_DONE = {"start": "resync-started", "finish": "resync-finishing", "abort": "resync-aborted"}


def resync_of(cohort_id: str) -> dict[str, Any]:
    """What the page of a cohort shows administrators of its resync."""
    if not g.session.caller.may(ADMIN):
        return {"resync": None}
    place = ResyncPlace(g.caller.app_id, cohort_id)
    resync = store().resyncs.find(place)
    received = resync and store().resyncs.last_received_ms(place, resync)
    return {"resync": resync, "resync_received_ms": received}


@blueprint.post("/cohort/resync")
@requires(ADMIN, by_session=True)
def resync_cohort() -> BaseResponse:
    """Start, finish or abort a resync."""
    form = read_signed_form()
    current, place = services().readable_store(), ResyncPlace(g.caller.app_id, decoded_id(form))
    record = current.registry.find(*place) if place.cohort_id else None
    if record is None:
        raise UnknownCohort()
    g.event["cohorts"] = [place.cohort_id]
    action = form.get("action")
    if action == "start":
        if record.status is Status.DELETING:
            raise CohortBeingDeleted()
        _start(current, place, form)
    elif action == "finish":
        try:
            admin_actions.finish_resync(
                current,
                Operator.of_request(),
                place,
                _found(current, place, form),
                force=form.get("force") == "true",
            )
        except ResyncRefused as refusal:
            return redirect(_page(place, refused=refusal.reason), 303)
    elif action == "abort":
        resync = _found(current, place, form)
        if not admin_actions.abort_resync(current, Operator.of_request(), place, resync):
            raise ResyncFinishing()
    else:
        abort(400, "Invalid form.")
    return redirect(_page(place, done=_DONE[action]), 303)


def _start(current: Store, place: ResyncPlace, form: dict[str, str]) -> None:
    quiet = form.get("quiet", "0")
    if quiet not in map(str, QUIET_SECONDS):
        abort(400, "Invalid form.")
    try:
        admin_actions.open_resync(current, Operator.of_request(), place, int(quiet) * 1000 or None)
    except OtherResync:
        raise ResyncUnfinished() from None


def _found(current: Store, place: ResyncPlace, form: dict[str, str]) -> Resync:
    """The resync that the page showed, not one that began since."""
    resync = current.resyncs.find(place)
    if resync is None or resync.kind is not ResyncKind.RESYNC or resync.id != form.get("resync"):
        raise NoResync()
    if resync.state is ResyncState.ABORTING:
        raise NoResync()
    return resync


def _page(place: ResyncPlace, **query: Any) -> str:
    return url_for(".cohort", id=place.cohort_id, _anchor="replace", **query)
