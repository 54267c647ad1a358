"""The pages for logged-in users. Each asks the store for a bounded number of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from flask import Response, abort, g, redirect, request, send_from_directory, url_for
from gevent import Timeout
from marshmallow import ValidationError, fields, validate
from werkzeug.wrappers import Response as BaseResponse

from app.auth import admin_actions
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, READ, requires
from app.cohorts import IncompleteReason, RequestRecord, ResyncRefusal, Sync, user_hash
from app.cohorts.cohort import MAX_USER_ID_BYTES, text_problem
from app.cohorts.sync import HASH_BYTES
from app.errors import UnknownCohort
from app.services import services
from app.store import CohortFilter, StoreError, TooManyToSort
from app.telemetry.notifications import DeliveryFailed
from app.web.api.export import CSV, csv_of_users, stream_members
from app.web.api.lookup import known_cohort, known_sync, store
from app.web.api.schemas import CohortsQuery
from app.web.api.sync_schemas import RequestsQuery, SyncsQuery
from app.web.dashboard import charts, guide
from app.web.dashboard.attention import attention
from app.web.dashboard.formatting import cohort_name, now_ms, visible
from app.web.dashboard.forms import decoded_id, read_signed_form
from app.web.dashboard.pages import blueprint, render, unacknowledged_loss
from app.web.dashboard.resyncs import resync_of
from app.web.dashboard.setup import INTEGRATIONS, TEMPLATES
from app.web.dashboard.upstream import polls, upstream_of
from app.web.http.cursors import (
    MemberCursor,
    list_cursor,
    member_cursor,
    request_cursor,
    sync_cursor,
)
from app.web.http.fields import Query

# Few enough for a phone.
COHORTS_PER_PAGE = MEMBERS_PER_PAGE = SYNCS_PER_PAGE = REQUESTS_PER_PAGE = 20
LATEST_SYNCS = 6
SYNCS_OF_COHORT = 15
JOBS_SHOWN = 50
LEFT_OUT_SHOWN = 50
# Less than the time limits of common routers.
_NOTIFY_SECONDS = 20.0


_USER_HASH = re.compile(f"[0-9a-f]{{{2 * HASH_BYTES}}}")


class _OverviewQuery(CohortsQuery):
    sort = fields.String(
        load_default="-last_received", validate=CohortsQuery._declared_fields["sort"].validate
    )
    setup = fields.String(load_default=None, validate=validate.OneOf(INTEGRATIONS))


class _CohortQuery(Query):
    id = fields.String(required=True, validate=validate.Length(1, 512))
    cursor = MemberCursor()
    refused = fields.String(load_default=None, validate=validate.OneOf([*ResyncRefusal]))


class _SyncQuery(RequestsQuery):
    id = fields.Integer(required=True, validate=validate.Range(0, 1 << 53))


_OVERVIEW_QUERY, _COHORT_QUERY = _OverviewQuery(), _CohortQuery()
_SYNCS_QUERY, _SYNC_QUERY = SyncsQuery(), _SyncQuery()


@blueprint.get("/")
@requires(READ, by_session=True)
def overview() -> BaseResponse:
    """All cohorts, and the latest syncs; how to set up an integration if there are none yet."""
    app_id, query = g.caller.app_id, _query(_OVERVIEW_QUERY)
    where = CohortFilter(
        " ".join(query.get("name", "").split()) or None,
        *(query.get(name) for name in ("status", "freshness", "completeness", "reason")),
    )
    sort, after = query["sort"], query["cursor"][1:] if "cursor" in query else None
    cohorts = store().cohort_list
    try:
        page = cohorts.page(
            app_id,
            where,
            sort=sort.lstrip("-"),
            descending=sort.startswith("-"),
            after=after,
            limit=COHORTS_PER_PAGE,
        )
    except TooManyToSort:
        sort = "id"
        page = cohorts.page(app_id, where, limit=COHORTS_PER_PAGE)
    cohort_ids = [cohort.id for cohort in page.cohorts]
    sizes = store().size_history.of(app_id, cohort_ids)
    lines = [charts.line(points, now_ms()) for points in sizes]
    latest = _latest_syncs(app_id, cohort_ids if sort == "-last_received" else [])
    counts = store().freshness.counts([app_id])
    first_page = where == CohortFilter() and after is None
    is_empty = first_page and not page.cohorts and not sum(counts.values())
    if is_empty and not query["setup"] and not unacknowledged_loss(app_id):
        # The setup guide has its own address, so that it stays open when the first message arrives.
        return redirect(url_for(".overview", setup=INTEGRATIONS[0]), 303)
    return render(
        "overview.html",
        cohorts=list(zip(page.cohorts, lines, strict=True)),
        counts=counts,
        attention=attention(app_id, counts) if first_page else None,
        where=where,
        reasons=list(IncompleteReason),
        sort=sort,
        next=list_cursor(sort, page.after),
        paged="cursor" in query,
        syncs=latest,
        details=store().sync_history.first_details(app_id, latest),
        known=_known_cohorts(sync.cohort_id for sync in latest),
        unknown=store().sync_history.unknown_callers(),
        unknown_recent=store().sync_history.unknown_callers(hours=2),
        setup=query["setup"],
        templates=TEMPLATES,
        known_only=services().settings.user_policy == "known",
        max_batch_users=services().settings.max_batch_users,
    )


def _latest_syncs(app_id: str, cohort_ids: Sequence[str]) -> list[Sync]:
    """The latest syncs by last request: of all, of those with problems, and of some cohorts.

    The history sorts syncs by their start, which may be long ago for a cohort synced every minute.
    """
    history = store().sync_history
    found = history.syncs(app_id, limit=LATEST_SYNCS).syncs
    found += history.syncs(app_id, problems=True, limit=LATEST_SYNCS).syncs
    found += history.latest_of(app_id, cohort_ids[:LATEST_SYNCS])
    by_id = {sync.id: sync for sync in found}
    return sorted(by_id.values(), key=lambda sync: sync.last_ms, reverse=True)[:LATEST_SYNCS]


@blueprint.get("/guide/")
@requires(READ, by_session=True)
def guide_index() -> Response:
    """The list of the documentation's pages."""
    return render("guide_index.html", groups=guide.groups())


@blueprint.get("/guide/<path:name>")
@requires(READ, by_session=True)
def guide_page(name: str) -> BaseResponse:
    """A page of the documentation, or a file that pages link to."""
    if guide.has_file(name):
        return send_from_directory(guide.FOLDER, name, as_attachment=True)
    found = guide.page(name)
    if found is None:
        if guide.page(f"{name}.md"):
            return redirect(url_for(".guide_page", name=f"{name}.md"), 301)
        abort(404, "There is no such page in the documentation.")
    title, content = found
    return render("guide.html", title=title, content=content)


@blueprint.get("/cohort")
@requires(READ, by_session=True)
def cohort() -> Response:
    """One cohort."""
    query = _query(_COHORT_QUERY)
    return _cohort_page(query["id"], query.get("cursor"), refused=query["refused"])


def _cohort_page(
    cohort_id: str,
    cursor: Any = None,
    *,
    error: str | None = None,
    refused: str | None = None,
    status: int = 200,
) -> Response:
    app_id = g.caller.app_id
    record = store().registry.find(app_id, cohort_id)
    if record is None:
        raise UnknownCohort()
    g.event["cohorts"] = [cohort_id]
    (freshness,) = store().freshness.of(app_id, [cohort_id])
    (completeness,) = store().completeness.of(app_id, [cohort_id])
    (sizes,) = store().size_history.of(app_id, [cohort_id])
    found = store().sync_history.syncs(app_id, cohort_id=cohort_id, limit=charts.MAX_BARS)
    latest = found.syncs[:SYNCS_OF_COHORT]
    members, position = store().lookups.members(
        app_id, cohort_id, after=cursor, limit=MEMBERS_PER_PAGE
    )
    return render(
        "cohort.html",
        status,
        record=record,
        freshness=freshness,
        completeness=completeness,
        sizes=sizes,
        line=charts.line(sizes, now_ms()),
        bars=charts.bars(found.syncs),
        syncs=latest,
        details=store().sync_history.first_details(app_id, latest),
        failed_sync=next((sync for sync in found.syncs if sync.failed), None),
        # The newest for each reason.
        left_out_syncs={reason: sync for sync in reversed(found.syncs) for reason in sync.reasons},
        more_syncs=len(found.syncs) > len(latest),
        members=members,
        next=member_cursor(position),
        paged=cursor is not None,
        error=error,
        refused=refused,
        **upstream_of(cohort_id),
        **resync_of(cohort_id),
    )


@blueprint.get("/cohort/members.csv")
@requires(READ, by_session=True)
def download_members() -> Response:
    """All members of a cohort, as a file."""
    cohort_id = _query(_COHORT_QUERY)["id"]
    response = stream_members(known_cohort(cohort_id), CSV)
    response.headers["Content-Disposition"] = 'attachment; filename="members.csv"'
    return response


@blueprint.post("/cohort/delete")
@requires(ADMIN, by_session=True)
def delete_cohort() -> BaseResponse:
    """Begin to delete a cohort, confirmed by typing its name."""
    form = read_signed_form()
    cohort_id = decoded_id(form)
    trait = store().registry.trait(g.caller.app_id, cohort_id) if cohort_id else None
    if trait is None:
        raise UnknownCohort()
    if not _is_confirmed(form, cohort_name(trait, cohort_id)):
        return _cohort_page(cohort_id, error="The name does not match.", status=400)
    g.event["cohorts"] = [cohort_id]
    operator, current = Operator.of_request(), services().checked_store()
    admin_actions.begin_cohort_deletion(current, operator, g.caller.app_id, cohort_id)
    return redirect(url_for(".overview", done="deleting"), 303)


@blueprint.get("/users")
@requires(READ, by_session=True)
def users() -> Response:
    """Look up a user."""
    return _user_page(request.args.get("id", ""))


def _user_page(user_id: str, *, error: str | None = None, status: int = 200) -> Response:
    user = record = known_as = None
    problem = text_problem(user_id, MAX_USER_ID_BYTES) if user_id else None
    if user_id and not problem:
        user = store().lookups.user(g.caller.app_id, user_id)
        if not user.traits and user_id != (trimmed := user_id.strip()) and trimmed:
            # Pasted with white space around it.
            user_id, user = trimmed, store().lookups.user(g.caller.app_id, trimmed)
        record = store().lookups.user_record(g.caller.app_id, user_id)
        if not user.traits and g.caller.may(ADMIN) and _USER_HASH.fullmatch(user_id):
            known_as = store().sync_history.left_out_by_hash(g.caller.app_id, user_id)
    return render(
        "users.html",
        400 if problem else status,
        user_id=user_id,
        user=user,
        record=record,
        problem=problem,
        known_as=known_as,
        hash=user_hash(user_id) if user else "",
        user_policy=services().settings.user_policy,
        error=error,
    )


@blueprint.post("/users/erase")
@requires(ADMIN, by_session=True)
def erase_user() -> BaseResponse:
    """Erase a user, confirmed by typing the user id."""
    form = read_signed_form()
    user_id, suppress = decoded_id(form), form.get("suppress") == "true"
    if text_problem(user_id, MAX_USER_ID_BYTES):
        abort(400, "Invalid user id.")
    if not _is_confirmed(form, visible(user_id)):
        return _user_page(user_id, error="The user id does not match.", status=400)
    operator, current = Operator.of_request(), services().checked_store()
    admin_actions.erase_user(current, operator, g.caller.app_id, user_id, suppress=suppress)
    return redirect(url_for(".users", done="suppressed" if suppress else "erased"), 303)


@blueprint.get("/syncs")
@requires(READ, by_session=True)
def syncs() -> Response:
    """All syncs, or those with problems, newest first."""
    app_id, query = g.caller.app_id, _query(_SYNCS_QUERY)
    page = store().sync_history.syncs(
        app_id,
        cohort_id=query.get("cohort"),
        problems=query["problems"],
        before=query.get("cursor"),
        limit=SYNCS_PER_PAGE,
    )
    return render(
        "syncs.html",
        syncs=page.syncs,
        details=store().sync_history.first_details(app_id, page.syncs),
        known=_known_cohorts([*(sync.cohort_id for sync in page.syncs), query.get("cohort", "")]),
        next=sync_cursor(page.after),
        paged="cursor" in query,
        problems=query["problems"],
        cohort_id=query.get("cohort"),
        unknown=store().sync_history.unknown_callers(),
    )


@blueprint.get("/sync")
@requires(READ, by_session=True)
def sync() -> Response:
    """One sync: its problems and its requests."""
    query = _query(_SYNC_QUERY)
    found, skip = known_sync(query["id"]), query.get("cursor", 0)
    skip_problems = skip if query["problems"] else 0
    skip -= skip_problems
    requests, following = _requests_page(found.id, skip)
    problems, following_problems = _requests_page(found.id, skip_problems, problems=True)
    left_out = _left_out(found.id)
    return render(
        "sync.html",
        sync=found,
        detail=store().sync_history.first_details(g.caller.app_id, [found]).get(found.id, ""),
        known=_known_cohorts([found.cohort_id]),
        left_out=left_out[:LEFT_OUT_SHOWN],
        left_out_kept=len(left_out),
        problems=problems,
        skip_problems=skip_problems,
        next_problems=following_problems,
        requests=requests,
        skip=skip,
        next=following,
    )


def _known_cohorts(cohort_ids: Iterable[str]) -> set[str]:
    """Which of these cohorts have a page.

    A cohort has none if it was deleted, or if none of its users was ever accepted.
    """
    distinct = sorted({*cohort_ids} - {""})
    return {record.id for record in store().registry.records(g.caller.app_id, distinct)}


def _left_out(sync_id: int) -> list[str]:
    """Users whom a sync left out, for administrators."""
    if not g.caller.may(ADMIN):
        return []
    return store().sync_history.left_out(g.caller.app_id, sync_id)


@blueprint.get("/sync/left-out.csv")
@requires(ADMIN, by_session=True)
def download_left_out() -> Response:
    """The users whom a sync left out, as a file."""
    found = known_sync(_query(_SYNC_QUERY)["id"])
    headers = {"Content-Disposition": 'attachment; filename="left-out.csv"'}
    body = csv_of_users(_left_out(found.id), "unknown_user")
    return Response(body, mimetype=CSV, headers=headers)


def _requests_page(
    sync_id: int, skip: int, *, problems: bool = False
) -> tuple[list[RequestRecord], str | None]:
    """Some requests of a sync, and the cursor of the next page."""
    app_id, limit = g.caller.app_id, REQUESTS_PER_PAGE
    found = store().sync_history.requests(
        app_id, sync_id, problems=problems, skip=skip, limit=limit + 1
    )
    return found[:limit], request_cursor(skip + limit if len(found) > limit else None)


@blueprint.get("/health")
@requires(READ, by_session=True)
def health() -> Response:
    """The store's health, background work and retention."""
    return _health_page()


def _health_page(*, notify_error: str | None = None, status: int = 200) -> Response:
    current = store()
    seconds = current.server_info.ping()
    try:
        problem = current.check().refuses_writes
    except StoreError as error:
        problem = error.reason
    memory = persistent = None
    with suppress(StoreError):  # some hosted stores do not allow INFO
        memory = current.server_info.memory()
        persistent = current.server_info.is_persistent()
    app_ids = [g.caller.app_id]
    return render(
        "health.html",
        status,
        notify_error=notify_error,
        seconds=seconds,
        problem=problem,
        memory=memory,
        persistent=persistent,
        counts=current.freshness.counts(app_ids),
        jobs=current.jobs.pending(app_ids)[:JOBS_SHOWN],
        job_count=current.jobs.count(app_ids),
        unknown=current.sync_history.unknown_callers(),
        settings=services().settings,
        **polls(),
    )


@blueprint.post("/health/acknowledge-loss")
@requires(ADMIN, by_session=True)
def acknowledge_loss() -> BaseResponse:
    """Acknowledge that the store lost data; if it was removed on purpose, forget it."""
    intended = read_signed_form().get("intended") == "true"
    operator, current = Operator.of_request(), services().checked_store()
    if intended:
        admin_actions.forgive_loss(current, operator, g.caller.app_id)
    else:
        admin_actions.acknowledge_loss(current, operator, g.caller.app_id)
    done = "loss-forgotten" if intended else "loss-acknowledged"
    return redirect(url_for(".health", done=done), 303)


@blueprint.post("/health/test-notification")
@requires(ADMIN, by_session=True)
def send_test_notification() -> BaseResponse:
    """Send a test to NOTIFY_URL, and show the result."""
    read_signed_form()
    parts, operator = services(), Operator.of_request()
    if parts.settings.notify_url is None:
        abort(404, "NOTIFY_URL is not set.")
    try:
        with Timeout(_NOTIFY_SECONDS):
            admin_actions.send_test_notification(
                parts.checked_store(), operator, g.caller.app_id, parts.notifier.send_test
            )
    except DeliveryFailed as error:
        return _health_page(notify_error=str(error), status=502)
    except Timeout:
        return _health_page(notify_error=f"no answer within {_NOTIFY_SECONDS:g} s", status=504)
    return redirect(url_for(".health", done="notification-sent"), 303)


def _query(schema: Query) -> dict[str, Any]:
    """The query parameters. Browsers also send empty form fields: those count as not sent."""
    given = {name: value for name, value in request.args.items() if value}
    try:
        loaded: dict[str, Any] = schema.load(given)
    except ValidationError:
        abort(400, "This address is not valid.")
    return loaded


def _is_confirmed(form: dict[str, str], shown: str) -> bool:
    """Whether the user typed what the page shows. Browsers show any white space as one space."""
    return form.get("confirm", "").split() == shown.split()
