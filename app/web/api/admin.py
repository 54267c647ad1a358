"""An operator's calls: delete a cohort, erase users, register them."""

from __future__ import annotations

from flask import Blueprint, Response, g
from orjson import dumps

from app.auth import admin_actions
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, requires
from app.errors import InvalidParameter, UnknownCohort
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import cohort_in_path, describes, parameters, user_in_path
from app.web.http.fields import Query, YesOrNo, limited
from app.web.http.replies import Reply, count, text, yes_or_no
from app.web.ingest.list_schema import ListUsersSchema


class EraseQuery(Query):
    """How to erase a user."""

    suppress = YesOrNo(
        load_default=False,
        metadata={"description": "Keep the user out for good, whatever is sent later."},
    )


class DeletingReply(Reply):
    """A cohort whose deletion has begun."""

    cohortId = text("The cohort's id.", example="abc123")
    status = text("Always `deleting`.", example="deleting")


class ErasedReply(Reply):
    """What was erased with a user."""

    traits = count("Traits that the user had.")
    streamEntriesRemoved = count("Entries of the change stream about this user alone.")
    streamEntriesKept = count("Entries that name others too; they leave the stream by age.")
    suppressed = yes_or_no("Whether the user is kept out for good.", example=False)


class UnsuppressedReply(Reply):
    """A user who may come in again."""

    removed = yes_or_no("Whether the user was suppressed before.")


class RegisteredReply(Reply):
    """How many users were registered."""

    registered = count("Users who were not registered before.")


blueprint = Blueprint("admin", __name__, url_prefix="/api/v1")

_ERASE = EraseQuery()


@blueprint.delete("/cohorts/<segment:cohort_id>")
@requires(ADMIN)
@describes(InvalidParameter, UnknownCohort, reply=DeletingReply(), status=202)
def delete_cohort(cohort_id: str) -> Response:
    """Begin to delete a cohort. The background work takes it from all users."""
    cohort_id = cohort_in_path(cohort_id)
    g.event["cohorts"] = [cohort_id]
    operator, store = Operator.of_request(), services().deletable_store()
    if not admin_actions.begin_cohort_deletion(store, operator, g.caller.app_id, cohort_id):
        raise UnknownCohort()
    return _reply({"cohortId": cohort_id, "status": "deleting"}, 202)


@blueprint.delete("/users/<rest:user_id>")
@requires(ADMIN)
@describes(InvalidParameter, query=_ERASE, reply=ErasedReply())
def erase_user(user_id: str) -> Response:
    """Erase a user, known or not; with ``?suppress=true`` for good."""
    user_id, suppress = user_in_path(user_id), parameters(_ERASE)["suppress"]
    operator, store = Operator.of_request(), services().deletable_store()
    erased = admin_actions.erase_user(store, operator, g.caller.app_id, user_id, suppress=suppress)
    return _reply(
        {
            "traits": erased.traits,
            "streamEntriesRemoved": erased.stream_entries_removed,
            "streamEntriesKept": erased.stream_entries_kept,
            "suppressed": suppress,
        }
    )


@blueprint.delete("/suppressions/<rest:user_id>")
@requires(ADMIN)
@describes(InvalidParameter, reply=UnsuppressedReply())
def unsuppress_user(user_id: str) -> Response:
    """Take a user in again who was erased for good."""
    user_id = user_in_path(user_id)
    operator, store = Operator.of_request(), services().deletable_store()
    removed = admin_actions.unsuppress_user(store, operator, g.caller.app_id, user_id)
    return _reply({"removed": removed})


@blueprint.post("/users")
@requires(ADMIN)
@describes(body=(ListUsersSchema(),), reply=RegisteredReply())
def register_users() -> Response:
    """Let users in under ``USER_POLICY=known``. Counts those who were new."""
    parts = services()
    schema = limited(ListUsersSchema, parts.settings.max_batch_users)
    _, user_ids = load(schema, read_json())
    registered = parts.deletable_store().registered_users.add(g.caller.app_id, user_ids)
    return _reply({"registered": registered})


def _reply(document: dict[str, object], status: int = 200) -> Response:
    return Response(dumps(document), status, mimetype="application/json")
