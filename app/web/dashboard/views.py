"""The pages. A page asks the store for a bounded part of what there is, whatever there is."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from flask import (
    Blueprint,
    Response,
    abort,
    g,
    make_response,
    redirect,
    render_template,
    request,
    send_from_directory,
    url_for,
)
from marshmallow import ValidationError, fields, validate
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.wrappers import Response as BaseResponse

from app.auth import admin_actions
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, PUBLIC, READ, log_in, requires
from app.cohorts import Freshness, user_hash
from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.errors import (
    ExpiredKey,
    InternalError,
    InvalidCredentials,
    MissingScope,
    NotLoggedIn,
    Problem,
    RateLimited,
    RevokedKey,
    StoreUnavailable,
    UnknownCohort,
    UnknownSync,
    log_unexpected,
)
from app.services import services
from app.store import CohortFilter, StoreError, TooManyToSort
from app.web.api.lookup import store
from app.web.api.schemas import CohortsQuery
from app.web.api.sync_schemas import RequestsQuery, SyncsQuery
from app.web.dashboard import charts, words
from app.web.dashboard.forms import read_form, read_signed_form
from app.web.http.cursors import (
    MemberCursor,
    list_cursor,
    member_cursor,
    request_cursor,
    sync_cursor,
)
from app.web.http.fields import Query
from app.web.ingest import source_title

blueprint = Blueprint("dashboard", __name__, template_folder="templates")
blueprint.add_app_template_filter(source_title)

# Cohorts, members, syncs and requests on a page; and syncs on those that are about other things.
COHORTS, MEMBERS, SYNCS, REQUESTS, LATEST = 50, 50, 50, 100, 6

_STATIC = Path(str(files("app.web.dashboard"))) / "static"
_FILES = {"style.css", "dashboard.js", "icon.svg"}
_YEAR = 365 * 86400
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": browsers then leave out where a form was sent from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# What the script sends when it looks for what is new: nobody has clicked.
_LOOK = "X-Look"
_DONE = {
    "deleting": "The cohort is being deleted. Its users are taken out of it in the background.",
    "erased": "The user was erased.",
    "suppressed": "The user was erased, and is kept out of later syncs.",
    "logged-out": "You are logged out.",
}


class _CohortsPage(CohortsQuery):
    sort = fields.String(
        load_default="-last_received", validate=CohortsQuery._declared_fields["sort"].validate
    )


class _CohortPage(Query):
    id = fields.String(required=True, validate=validate.Length(1, 512))
    cursor = MemberCursor()


class _SyncPage(RequestsQuery):
    id = fields.Integer(required=True, validate=validate.Range(0, 1 << 53))


_COHORTS_PAGE, _COHORT_PAGE = _CohortsPage(), _CohortPage()
_SYNCS_PAGE, _SYNC_PAGE = SyncsQuery(), _SyncPage()


@blueprint.get("/")
@requires(READ, by_session=True)
def overview() -> Response:
    """The cohorts, and what came in lately."""
    app_id = g.caller.app_id
    asked = _asked(_COHORTS_PAGE)
    which = CohortFilter(asked.get("name"), asked.get("status"), asked.get("freshness"))
    sort = asked["sort"]
    try:
        listing = store().cohort_list.page(
            app_id,
            which,
            sort=sort.lstrip("-"),
            descending=sort.startswith("-"),
            after=asked["cursor"][1:] if "cursor" in asked else None,
            limit=COHORTS,
        )
    except TooManyToSort:
        sort = "id"
        listing = store().cohort_list.page(app_id, which, limit=COHORTS)
    sizes = store().size_history.of(app_id, [cohort.id for cohort in listing.cohorts])
    now = words.now_ms()
    latest = store().sync_history.syncs(app_id, limit=LATEST)
    return _page(
        "overview.html",
        cohorts=[
            (cohort, charts.line(points, now))
            for cohort, points in zip(listing.cohorts, sizes, strict=True)
        ],
        counts=store().freshness.counts([app_id]),
        which=which,
        sort=sort,
        next=list_cursor(sort, listing.after),
        paged="cursor" in asked,
        syncs=latest.syncs,
        details=store().sync_history.first_details(app_id, latest.syncs),
        unknown=store().sync_history.unknown(),
        user_policy=services().settings.user_policy,
    )


@blueprint.get("/cohort")
@requires(READ, by_session=True)
def cohort() -> Response:
    """One cohort."""
    asked = _asked(_COHORT_PAGE)
    return _cohort_page(asked["id"], asked.get("cursor"))


def _cohort_page(
    cohort_id: str, cursor: Any = None, *, error: str | None = None, status: int = 200
) -> Response:
    app_id = g.caller.app_id
    record = store().registry.find(app_id, cohort_id)
    if record is None:
        raise UnknownCohort()
    g.event["cohorts"] = [cohort_id]
    (freshness,) = store().freshness.of(app_id, [cohort_id])
    (sizes,) = store().size_history.of(app_id, [cohort_id])
    syncs = store().sync_history.syncs(app_id, cohort_id=cohort_id, limit=charts.MOST_BARS)
    members, position = store().lookups.members(app_id, cohort_id, after=cursor, limit=MEMBERS)
    return _page(
        "cohort.html",
        status,
        record=record,
        freshness=freshness,
        sizes=sizes,
        line=charts.line(sizes, words.now_ms(), from_zero=True),
        bars=charts.bars(syncs.syncs),
        syncs=syncs.syncs[:15],
        details=store().sync_history.first_details(app_id, syncs.syncs[:15]),
        more_syncs=len(syncs.syncs) > 15,
        members=members,
        next=member_cursor(position),
        paged=cursor is not None,
        error=error,
    )


@blueprint.post("/cohort/delete")
@requires(ADMIN, by_session=True)
def delete_cohort() -> BaseResponse:
    """Begin to delete a cohort, whose name was typed."""
    form = read_signed_form()
    cohort_id = _id(form)
    trait = store().registry.trait(g.caller.app_id, cohort_id) if cohort_id else None
    if trait is None:
        raise UnknownCohort()
    if not _same(form.get("confirm", ""), words.name(trait, cohort_id)):
        return _cohort_page(cohort_id, error="The name was not typed as it is.", status=400)
    g.event["cohorts"] = [cohort_id]
    operator, current = Operator.of_request(), services().deletable_store()
    admin_actions.begin_cohort_deletion(current, operator, g.caller.app_id, cohort_id)
    return redirect(url_for(".overview", done="deleting"), 303)


@blueprint.get("/users")
@requires(READ, by_session=True)
def users() -> Response:
    """Look up one user."""
    return _user_page(request.args.get("id", ""))


def _user_page(user_id: str, *, error: str | None = None, status: int = 200) -> Response:
    user = record = None
    problem = text_problem(user_id, MAX_USER_ID_BYTES) if user_id else None
    if user_id and not problem:
        user = store().lookups.user(g.caller.app_id, user_id)
        record = store().lookups.user_record(g.caller.app_id, user_id)
    return _page(
        "users.html",
        400 if problem else status,
        user_id=user_id,
        user=user,
        record=record,
        problem=problem,
        hash=user_hash(user_id) if user else "",
        user_policy=services().settings.user_policy,
        error=error,
    )


@blueprint.post("/users/erase")
@requires(ADMIN, by_session=True)
def erase_user() -> BaseResponse:
    """Erase a user, whose id was typed."""
    form = read_signed_form()
    user_id, suppress = _id(form), form.get("suppress") == "true"
    if text_problem(user_id, MAX_USER_ID_BYTES):
        abort(400, "That can't be a user id.")
    if not _same(form.get("confirm", ""), words.seen(user_id)):
        return _user_page(user_id, error="The user id was not typed as it is.", status=400)
    operator, current = Operator.of_request(), services().deletable_store()
    admin_actions.erase_user(current, operator, g.caller.app_id, user_id, suppress=suppress)
    return redirect(url_for(".users", done="suppressed" if suppress else "erased"), 303)


@blueprint.get("/syncs")
@requires(READ, by_session=True)
def syncs() -> Response:
    """The latest syncs, and what was rejected."""
    asked = _asked(_SYNCS_PAGE)
    page = store().sync_history.syncs(
        g.caller.app_id,
        cohort_id=asked.get("cohort"),
        problems=asked["problems"],
        before=asked.get("cursor"),
        limit=SYNCS,
    )
    return _page(
        "syncs.html",
        syncs=page.syncs,
        details=store().sync_history.first_details(g.caller.app_id, page.syncs),
        next=sync_cursor(page.after),
        paged="cursor" in asked,
        problems=asked["problems"],
        cohort_id=asked.get("cohort"),
        unknown=store().sync_history.unknown(),
    )


@blueprint.get("/sync")
@requires(READ, by_session=True)
def sync() -> Response:
    """One sync: what went wrong, and its requests."""
    asked = _asked(_SYNC_PAGE)
    app_id, skip = g.caller.app_id, asked.get("cursor", 0)
    found = store().sync_history.sync(app_id, asked["id"])
    if found is None:
        raise UnknownSync()
    troubled = store().sync_history.requests(app_id, found.id, problems=True, limit=REQUESTS)
    requests = store().sync_history.requests(app_id, found.id, skip=skip, limit=REQUESTS + 1)
    return _page(
        "sync.html",
        sync=found,
        troubled=troubled,
        requests=requests[:REQUESTS],
        skip=skip,
        next=request_cursor(skip + REQUESTS if len(requests) > REQUESTS else None),
    )


@blueprint.get("/health")
@requires(READ, by_session=True)
def health() -> Response:
    """How the store is."""
    current, trouble = store(), None
    seconds = current.server_info.ping()
    try:
        current.check()
    except StoreError as error:
        trouble = error.reason
    try:
        memory = current.server_info.memory()
    except StoreError:
        memory = None  # some hosts let nobody ask
    return _page(
        "health.html",
        seconds=seconds,
        trouble=trouble,
        memory=memory,
        counts=current.freshness.counts([g.caller.app_id]),
        jobs=[job for job in current.jobs.pending() if job.app_id == g.caller.app_id],
        unknown=current.sync_history.unknown(),
        settings=services().settings,
    )


@blueprint.get("/login")
@requires(PUBLIC)
def login() -> BaseResponse:
    """The page to log in on."""
    if services().sessions.find(request) is not None:
        return redirect(_next(), 303)
    return _page("login.html")


@blueprint.post("/login")
@requires(PUBLIC)
def open_session() -> BaseResponse:
    """Log in with a key that may read."""
    form = read_form()
    try:
        caller = log_in(form.get("key", "").strip())
    except (InvalidCredentials, ExpiredKey, RevokedKey, MissingScope, RateLimited) as problem:
        g.event["reason"] = problem.reason
        refusal = _page("login.html", problem.status, problem=problem)
        if "Retry-After" in problem.headers:
            refusal.headers["Retry-After"] = problem.headers["Retry-After"]
        return refusal
    sessions = services().sessions
    reply = redirect(_next(), 303)
    sessions.set_cookie(sessions.open(caller), request, reply)
    return reply


@blueprint.post("/logout")
@requires(READ, by_session=True)
def close_session() -> BaseResponse:
    """Log out."""
    read_signed_form()
    reply = redirect(url_for(".login", done="logged-out"), 303)
    services().sessions.end(g.pop("session"), request, reply)
    return reply


@blueprint.get("/assets/<string:name>")
@requires(PUBLIC)
def asset(name: str) -> Response:
    """A style sheet, script or picture of the pages. Its address changes with its content."""
    if name not in _FILES:
        raise NotFound()
    response = send_from_directory(_STATIC, name, max_age=_YEAR)
    response.cache_control.immutable = True
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@blueprint.after_request
def protect(response: Response) -> Response:
    """Say what a page may load and do; and keep a session that somebody uses."""
    if request.endpoint == "dashboard.asset" and response.status_code < 400:
        return response
    response.headers.extend(_HEADERS)
    response.headers["Cache-Control"] = "no-store"
    session = g.get("session")
    if session is not None and response.status_code < 500 and _LOOK not in request.headers:
        services().sessions.renew(session, request, response)
    return response


@blueprint.errorhandler(NotLoggedIn)
def ask_to_log_in(_: NotLoggedIn) -> BaseResponse:
    """Send who is not logged in to the page for that, and back afterwards."""
    g.event["reason"] = NotLoggedIn.reason
    wanted = request.full_path.rstrip("?") if request.method == "GET" else "/"
    return redirect(url_for(".login", next=None if wanted == "/" else wanted), 303)


@blueprint.errorhandler(Problem)
def show_problem(problem: Problem) -> Response:
    """A page for what goes wrong."""
    g.event["reason"] = problem.reason
    response = _page(
        "problem.html",
        problem.status,
        title=problem.document("")["title"],
        detail=problem.document("")["detail"],
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
    """A page for what Werkzeug refuses."""
    return show_problem(Problem.of_status(error.code or 500, error.description))


@blueprint.errorhandler(Exception)
def show_unexpected(error: Exception) -> Response:
    """A page for a bug."""
    log_unexpected(error)
    return show_problem(InternalError())


@blueprint.context_processor
def shared() -> dict[str, Any]:
    """What all pages may use."""
    session = g.get("session")
    return {
        "w": words,
        "session": session,
        "is_admin": session is not None and session.caller.may(ADMIN),
        "asset_url": _asset_url,
        "now": words.now_ms(),
        "done": _DONE.get(request.args.get("done", "")),
        "late": _is_late,
        "base_url": request.url_root.rstrip("/"),
    }


def _page(template: str, status: int = 200, **told: Any) -> Response:
    return make_response(render_template(template, **told), status)


def _asked(schema: Query) -> dict[str, Any]:
    """The query's parameters. A form sends also what is left empty: that counts as not sent."""
    given = {name: value for name, value in request.args.items() if value}
    try:
        loaded: dict[str, Any] = schema.load(given)
    except ValidationError:
        abort(400, "This address is not one of the dashboard's.")
    return loaded


def _next() -> str:
    """Where to go once logged in: a page of this site, and nowhere else."""
    wanted = request.args.get("next", "/")
    is_ours = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if is_ours and wanted.isprintable() else "/"


def _id(form: dict[str, str]) -> str:
    """The id that a form is about. It is percent-encoded: browsers change white space in forms."""
    return unquote(form.get("id", ""))


def _same(typed: str, shown: str) -> bool:
    """Whether something was typed as it is shown: browsers show any white space as one space."""
    return typed.split() == shown.split()


def _is_late(freshness: Freshness) -> bool:
    return freshness.state(words.now_ms()) == "late"


@cache
def _version(name: str) -> str:
    return blake2b((_STATIC / name).read_bytes(), digest_size=6).hexdigest()


def _asset_url(name: str) -> str:
    """The address of a file of the pages."""
    return url_for("dashboard.asset", name=name, v=_version(name))
