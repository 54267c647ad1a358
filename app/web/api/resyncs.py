"""Replace the members of a cohort: with a full sync, or with a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, g, request
from marshmallow import fields, validate

from app.auth import admin_actions
from app.auth.admin_actions import OtherResync, ResyncRefused
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, requires
from app.auth.member_import import MemberImport
from app.cohorts import Cohort, Resync, ResyncRefusal, ResyncState, Status
from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.cohorts.member_file import MAX_ERRORS, FileFormat, MemberFile
from app.cohorts.member_file import InvalidFile as FileProblem
from app.errors import (
    BodyTimeout,
    CohortBeingDeleted,
    InvalidEncoding,
    InvalidFile,
    InvalidParameter,
    NoResync,
    Problem,
    ResyncEmpty,
    ResyncEnded,
    ResyncFinishing,
    ResyncShrinks,
    ResyncStoreLost,
    ResyncUnfinished,
    UnknownCohort,
    UnsupportedMediaType,
)
from app.services import services
from app.store import ResyncPlace, Store
from app.web.http import fair_queue
from app.web.http.body import load, read_optional_json
from app.web.http.contract import cohort_in_path, describes, parameters, send
from app.web.http.fields import Base, Query, Text, YesOrNo
from app.web.http.replies import ErrorPlace, Reply, count, ms, text
from app.web.http.upload import read_upload

# A reply must come before the time limits of common routers. The background work completes the
# rest.
FINISH_SECONDS = 20.0
_REFUSALS: dict[ResyncRefusal, type[Problem]] = {
    ResyncRefusal.EMPTY: ResyncEmpty,
    ResyncRefusal.SHRINKS: ResyncShrinks,
    ResyncRefusal.STORE_LOST: ResyncStoreLost,
    ResyncRefusal.ENDED: ResyncEnded,
}
_FORMATS = {
    "text/csv": FileFormat.CSV,
    "application/x-ndjson": FileFormat.NDJSON,
}
MAX_QUIET_SECONDS = 24 * 3600


class ResyncBody(Base):
    """Options of a resync."""

    quietSeconds = fields.Integer(
        strict=True,
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, MAX_QUIET_SECONDS),
        metadata={
            "description": "Finish automatically when nothing more has arrived for this long.",
            "example": 600,
        },
    )


class FinishBody(Base):
    """Options of the end of a resync."""

    force = fields.Boolean(
        truthy={True},
        falsy={False},
        load_default=False,
        metadata={
            "description": "Finish even if nobody was confirmed, or most members would leave."
        },
    )


class ImportQuery(Query):
    """Options of an import."""

    column = Text(
        MAX_TRAIT_BYTES,
        load_default=None,
        metadata={"description": "The CSV column with the user ids; by default `user_id`."},
    )
    name = Text(
        MAX_TRAIT_BYTES,
        load_default=None,
        metadata={
            "description": "The name, or whole trait name, with which to create the cohort if it "
            "is unknown."
        },
    )
    dry_run = YesOrNo(load_default=False, metadata={"description": "Compare only; change nothing."})
    force = YesOrNo(
        load_default=False,
        metadata={"description": "Import even if the file is empty, or most members would leave."},
    )


class ResyncReply(Reply):
    """A cohort's current or last resync."""

    state = text(
        "Its stage. Members are confirmed while it is `open`.",
        example="open",
        validate=validate.OneOf([*ResyncState]),
    )
    startedAt = ms("When it began")
    confirmed = count(
        "Members, or users of an import's file, who will stay; 0 once it has finished.",
        example=940_000,
    )
    unconfirmed = count(
        "Members who will leave; 0 once it has finished. Too low if an import has new users.",
        example=60_000,
    )
    removed = count("Members who have left.", example=0)
    members = fields.Integer(
        required=True,
        strict=True,
        allow_none=True,
        metadata={"description": "How many members there were when it finished.", "example": None},
    )
    lastReceived = fields.Integer(
        required=True,
        strict=True,
        allow_none=True,
        metadata={
            "description": "When the cohort was last received since the resync began, ms since the "
            "epoch; null if it was not.",
            "example": None,
        },
    )
    quietSeconds = fields.Integer(
        required=True,
        strict=True,
        allow_none=True,
        metadata={
            "description": "It finishes automatically when nothing more has arrived for this long.",
            "example": 600,
        },
    )
    refused = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "Why it did not finish: the `reason` of the refusal, or "
            "`resync_requests_failed`; else null.",
            "example": None,
        },
    )


class ImportReply(Reply):
    """What an import has done, or would do."""

    added = count(
        "Users who entered. A dry run also counts suppressed users and, with USER_POLICY=known, "
        "those who are not registered.",
        example=12,
    )
    removed = count("Members who left.", example=3)
    unchanged = count("Users who were members already.", example=6500)
    rejected = count("Rows without a usable user id, and users who are not registered.", example=0)
    errors = fields.List(
        fields.Nested(ErrorPlace),
        required=True,
        metadata={
            "description": "Rejected rows, each with its line. Then, without a line: whether an "
            "import would be refused, the number of rows without a user id, and the number of "
            "users who are not registered. At most 50 entries."
        },
    )


blueprint = Blueprint("resyncs", __name__, url_prefix="/api/v1")

_RESYNC, _FINISH, _IMPORT = ResyncBody(), FinishBody(), ImportQuery()


@blueprint.post("/cohorts/<segment:cohort_id>/resync")
@requires(ADMIN)
@describes(
    *(InvalidParameter, UnknownCohort, CohortBeingDeleted, ResyncUnfinished),
    body=(_RESYNC,),
    reply=ResyncReply(),
    status=202,
)
def open_resync(cohort_id: str) -> Response:
    """Begin a resync: from now on, everybody reported as a member is confirmed."""
    quiet_seconds = load(_RESYNC, read_optional_json())["quietSeconds"]
    store = services().readable_store()
    place = _known(store, cohort_id)
    try:
        resync = admin_actions.open_resync(
            store, Operator.of_request(), place, quiet_seconds and quiet_seconds * 1000
        )
    except OtherResync:
        raise ResyncUnfinished() from None
    return _reply(store, place, store.resyncs.find(place) or resync, 202)


@blueprint.get("/cohorts/<segment:cohort_id>/resync")
@requires(ADMIN)
@describes(InvalidParameter, NoResync, reply=ResyncReply())
def get_resync(cohort_id: str) -> Response:
    """The cohort's resync, or the last one for a day after it finished."""
    store = services().readable_store()
    return _reply(store, *_found(store, cohort_id))


@blueprint.post("/cohorts/<segment:cohort_id>/resync/finish")
@requires(ADMIN)
@describes(
    *(InvalidParameter, NoResync, ResyncUnfinished),
    *(ResyncEmpty, ResyncShrinks, ResyncStoreLost),
    body=(_FINISH,),
    reply=ResyncReply(),
)
def finish_resync(cohort_id: str) -> Response:
    """Remove the members who were not confirmed. May be repeated.

    If that takes more than 20 seconds, the reply has the state `finishing`: repeat the call, or
    poll with `GET`.
    """
    force = load(_FINISH, read_optional_json())["force"]
    store = services().readable_store()
    place, resync = _found(store, cohort_id)
    try:
        admin_actions.finish_resync(store, Operator.of_request(), place, resync, force=force)
    except OtherResync:
        raise ResyncUnfinished("This is an import whose file has not arrived yet.") from None
    except ResyncRefused as error:
        raise _REFUSALS[error.reason]() from None
    ends = time.monotonic() + FINISH_SECONDS
    for _ in fair_queue.in_pieces(store.resyncs.steps(place)):
        if time.monotonic() > ends:
            break
    store.replication.confirm(place.app_id)
    return _reply(store, place, store.resyncs.find(place) or resync)


@blueprint.delete("/cohorts/<segment:cohort_id>/resync")
@requires(ADMIN)
@describes(InvalidParameter, NoResync, ResyncFinishing, reply=ResyncReply())
def abort_resync(cohort_id: str) -> Response:
    """Abort a resync, as if it had never begun."""
    store = services().readable_store()
    place, resync = _found(store, cohort_id)
    if not admin_actions.abort_resync(store, Operator.of_request(), place, resync):
        raise ResyncFinishing()
    return _reply(store, place, resync._replace(state=ResyncState.ABORTING))


@blueprint.put("/cohorts/<segment:cohort_id>/members")
@requires(ADMIN)
@describes(
    *(InvalidParameter, InvalidFile, InvalidEncoding, BodyTimeout, UnsupportedMediaType),
    *(UnknownCohort, CohortBeingDeleted, ResyncUnfinished),
    *(ResyncEmpty, ResyncShrinks, ResyncStoreLost, ResyncEnded),
    query=_IMPORT,
    upload={
        "text/csv": "user_id\nuser1@example.com\n",
        "application/x-ndjson": '{"userId": "user1@example.com"}\n',
    },
    reply=ImportReply(),
)
def import_members(cohort_id: str) -> Response:
    """Replace the members with those of a file of any size, plain or gzip.

    CSV has a header line and a column `user_id`; other columns are ignored. Newline-delimited JSON
    has `{"userId": …}` or a string on each line. The files that Amplitude writes are accepted.
    Nothing is changed until the whole file has arrived.
    """
    asked = parameters(_IMPORT)
    file_format = _FORMATS.get(request.mimetype)
    if file_format is None:
        raise UnsupportedMediaType(f"Content-Type must be {' or '.join(_FORMATS)}.")
    store = services().readable_store()
    new_name = None
    try:
        place = _known(store, cohort_id)
    except UnknownCohort:
        if asked["name"] is None:
            raise UnknownCohort("There is no such cohort. To create it, add ?name=.") from None
        place = ResyncPlace(g.caller.app_id, cohort_in_path(cohort_id))
        try:
            new_name = Cohort.given(asked["name"], cohort_id).trait
        except ValueError as error:
            raise InvalidParameter(errors=[{"place": "name", "message": str(error)}]) from None
    file = MemberFile(file_format, asked["column"])
    try:
        with MemberImport(store, Operator.of_request(), place, new_name=new_name) as importing:
            for users in file.read(read_upload()):
                with services().fair_queue.piece(place.app_id):
                    importing.stage(users)
            _run(importing.compare())
            result, refusal = importing.preview, importing.refusal
            if not asked["dry_run"]:
                _run(importing.apply(force=asked["force"]))
                result = importing.result()
    except FileProblem as error:
        raise InvalidFile(str(error)) from None
    except OtherResync:
        raise ResyncUnfinished() from None
    except ResyncRefused as error:
        raise _REFUSALS[error.reason]() from None
    errors = [{"place": f"line.{line}", "message": message} for line, message in file.errors]
    notes = []
    if asked["dry_run"] and refusal is not None and not asked["force"]:
        notes.append(f"The import would be refused: {refusal}.")
    if file.without_id:
        noun = "row has" if file.without_id == 1 else "rows have"
        notes.append(f"{file.without_id} {noun} no user id.")
    if result.unknown:
        noun = "user is" if result.unknown == 1 else "users are"
        notes.append(f"{result.unknown} {noun} not registered.")
    errors = errors[: MAX_ERRORS - len(notes)]
    errors += [{"place": "", "message": message} for message in notes]
    return send(
        {
            "added": result.added,
            "removed": result.removed,
            "unchanged": result.unchanged,
            "rejected": file.rejected + result.unknown,
            "errors": errors,
        }
    )


def _known(store: Store, cohort_id: str) -> ResyncPlace:
    """The place of a cohort. Raises UnknownCohort, CohortBeingDeleted."""
    place = ResyncPlace(g.caller.app_id, cohort_in_path(cohort_id))
    g.event["cohorts"] = [cohort_id]
    found = store.registry.find(*place)
    if found is None:
        raise UnknownCohort()
    if found.status is Status.DELETING:
        raise CohortBeingDeleted()
    return place


def _found(store: Store, cohort_id: str) -> tuple[ResyncPlace, Resync]:
    place = ResyncPlace(g.caller.app_id, cohort_in_path(cohort_id))
    g.event["cohorts"] = [cohort_id]
    resync = store.resyncs.find(place)
    if resync is None:
        raise NoResync()
    return place, resync


def _run(steps: Iterator[Any]) -> None:
    for _ in fair_queue.in_pieces(steps):
        pass


def _reply(store: Store, place: ResyncPlace, resync: Resync, status: int = 200) -> Response:
    response = send(
        {
            "state": resync.state,
            "startedAt": resync.started_ms,
            "confirmed": resync.confirmed,
            "unconfirmed": resync.unconfirmed,
            "removed": resync.removed,
            "members": resync.members,
            "lastReceived": store.resyncs.last_received_ms(place, resync),
            "quietSeconds": resync.quiet_ms and resync.quiet_ms // 1000,
            "refused": resync.refused,
        }
    )
    response.status_code = status
    return response
