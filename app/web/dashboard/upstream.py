"""What Amplitude's own record says, and the form that compares a cohort with it."""

from __future__ import annotations

from typing import Any

from flask import abort, g, redirect, url_for
from werkzeug.wrappers import Response as BaseResponse

from app.auth.authenticate import ADMIN, requires
from app.errors import UnknownCohort
from app.services import services
from app.web.api.lookup import store
from app.web.api.reconcile import begin_reconcile
from app.web.api.upstream import poll_status
from app.web.dashboard.forms import decoded_id, read_signed_form
from app.web.dashboard.pages import blueprint


def upstream_of(cohort_id: str) -> dict[str, Any]:
    """What the page of a cohort shows of Amplitude's record."""
    app_id, parts = g.caller.app_id, services()
    (completeness,) = store().completeness.of(app_id, [cohort_id])
    return {
        "upstream": completeness.upstream,
        "reconcile": parts.reconciler.report(app_id, cohort_id),
        "may_reconcile": parts.reconciler.is_configured(app_id),
        "poll_minutes": parts.settings.amplitude_poll_minutes,
    }


def polls() -> dict[str, Any]:
    """What the page about the service's health shows of Amplitude's record."""
    app_id, parts = g.caller.app_id, services()
    if not parts.reconciler.is_configured(app_id):
        return {"polls": None}
    return {
        "polls": poll_status(app_id),
        "exports": store().upstream.exports(app_id),
    }


@blueprint.post("/cohort/reconcile")
@requires(ADMIN, by_session=True)
def reconcile_cohort() -> BaseResponse:
    """Compare a cohort with Amplitude, and replace its members if asked to."""
    form = read_signed_form()
    cohort_id = decoded_id(form)
    if not cohort_id or store().registry.trait(g.caller.app_id, cohort_id) is None:
        raise UnknownCohort()
    if form.get("apply") not in (None, "true"):
        abort(400, "Invalid form.")
    g.event["cohorts"] = [cohort_id]
    begin_reconcile(cohort_id, apply="apply" in form)
    return redirect(url_for(".cohort", id=cohort_id, done="reconciling", _anchor="upstream"), 303)
