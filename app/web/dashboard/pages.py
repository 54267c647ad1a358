"""What all pages share: the blueprint, its headers, error pages, assets and template filters."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    Response,
    g,
    make_response,
    render_template,
    request,
    send_from_directory,
    url_for,
)
from werkzeug.exceptions import HTTPException, NotFound

from app.auth.authenticate import ADMIN, PUBLIC, requires
from app.errors import InternalError, Problem, StoreUnavailable, log_unexpected, note
from app.services import services
from app.store import Loss, StoreError
from app.web.dashboard import formatting
from app.web.dashboard.advice import advice, incomplete_advice
from app.web.ingest import source_title

blueprint = Blueprint("dashboard", __name__, template_folder="templates")

for _filter in (
    advice,
    incomplete_advice,
    formatting.ago,
    formatting.cohort_name,
    formatting.duration,
    formatting.every,
    formatting.exactly,
    formatting.iso,
    formatting.memory,
    formatting.number,
    formatting.plural,
    formatting.span,
    formatting.to_minute,
    formatting.visible,
    source_title,
):
    blueprint.add_app_template_filter(_filter)

_STATIC = Path(str(files("app.web.dashboard"))) / "static"
_ASSETS = {"style.css", "dashboard.js", "icon.svg"}
_YEAR_SECONDS = 365 * 86400
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer", browsers send `Origin: null` with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Sent by dashboard.js when it refreshes an open page, which must not extend the session.
_AUTO_REFRESH = "X-Auto-Refresh"
# Messages after a redirect, by the value of `done` in its query.
_DONE = {
    "deleting": "The cohort is being deleted. Its members are removed in the background.",
    "reconciling": "The cohort is being compared with Amplitude. That takes some minutes.",
    "loss-acknowledged": "The loss is acknowledged. Cohorts stay incomplete until repaired.",
    "loss-forgotten": "The loss is forgotten. No cohort is incomplete because of it.",
    "resync-started": "The resync has begun. Now make Amplitude send everybody.",
    "resync-finishing": "The resync is finishing. Members who were not confirmed leave.",
    "resync-aborted": "The resync was aborted. Nothing has changed.",
    "notification-sent": "The test notification was delivered.",
    "erased": "The user was erased.",
    "suppressed": "The user was erased and will be skipped in later syncs.",
    "logged-out": "You are logged out.",
}


def render(template: str, status: int = 200, **context: Any) -> Response:
    return make_response(render_template(template, **context), status)


@blueprint.context_processor
def shared_context() -> dict[str, Any]:
    """What every template may use."""
    session = g.get("session")
    loss = None
    if session is not None:
        with suppress(StoreError):  # the page itself says so
            loss = unacknowledged_loss(session.caller.app_id)
    return {
        "loss": loss,
        "session": session,
        "is_admin": session is not None and session.caller.may(ADMIN),
        "asset_url": _asset_url,
        "now": formatting.now_ms(),
        "done": _DONE.get(request.args.get("done", "")),
        "base_url": request.url_root.rstrip("/"),
    }


def unacknowledged_loss(app_id: str) -> Loss | None:
    """A loss of the store's data that nobody has acknowledged yet."""
    losses = services().store.losses.of([app_id])
    return next((loss for loss in losses if not loss.acknowledged), None)


@blueprint.after_request
def finish(response: Response) -> Response:
    """Add the security headers, and extend a session in use."""
    if request.endpoint == "dashboard.asset" and response.status_code < 400:
        return response
    response.headers.extend(_HEADERS)
    response.headers["Cache-Control"] = "no-store"
    session = g.get("session")
    if session is not None and response.status_code < 500 and _AUTO_REFRESH not in request.headers:
        services().sessions.renew(session, request, response)
    return response


@blueprint.get("/assets/<string:name>")
@requires(PUBLIC)
def asset(name: str) -> Response:
    """The style sheet, script or icon. The URL contains a hash of the content."""
    if name not in _ASSETS:
        raise NotFound()
    response = send_from_directory(_STATIC, name, max_age=_YEAR_SECONDS)
    response.cache_control.immutable = True
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@cache
def _content_hash(name: str) -> str:
    return blake2b((_STATIC / name).read_bytes(), digest_size=6).hexdigest()


def _asset_url(name: str) -> str:
    return url_for("dashboard.asset", name=name, v=_content_hash(name))


@blueprint.errorhandler(Problem)
def show_problem(problem: Problem) -> Response:
    note(problem)
    document = problem.document("")
    response = render(
        "problem.html",
        problem.status,
        title=document["title"],
        detail=document["detail"],
        reason=problem.reason,
        store_fails=isinstance(problem, StoreUnavailable),
    )
    response.headers.extend(problem.headers)
    return response


@blueprint.errorhandler(StoreError)
def show_store_error(error: StoreError) -> Response:
    return show_problem(StoreUnavailable(error))


@blueprint.errorhandler(HTTPException)
def show_http_error(error: HTTPException) -> Response:
    return show_problem(Problem.of_status(error.code or 500, error.description))


@blueprint.errorhandler(Exception)
def show_unexpected(error: Exception) -> Response:
    log_unexpected(error)
    return show_problem(InternalError())
