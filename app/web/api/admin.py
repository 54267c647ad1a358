"""Administration: delete cohorts; erase and register users."""

from __future__ import annotations

from flask import Blueprint, Response, g

from app.auth import admin_actions
from app.auth.audit_trail import Operator
from app.auth.authenticate import ADMIN, requires
from app.errors import InvalidParameter, UnknownCohort
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import cohort_in_path, describes, parameters, user_in_path
from app.web.http.fields import Query, YesOrNo, limited, user_ids_field
from app.web.http.replies import Reply, count, json_reply, text, yes_or_no
from app.web.ingest.list_schema import ListUsersSchema


class RegisterUsersSchema(ListUsersSchema):
    """``{"userIds": […]}``, or ``user_ids``. All must be usable ids."""

    user_ids = user_ids_field("userIds")
    user_ids_too = user_ids_field("user_ids")


class EraseQuery(Query):
    """Options of an erasure."""

    suppress = YesOrNo(
        load_default=False,
        metadata={"description": "Also suppress the user: skip them in all later syncs."},
    )


class DeletingReply(Reply):
    """A cohort that is being deleted."""

    cohortId = text("The cohort's id.", example="abc123")
    status = text("Always `deleting`.", example="deleting")


class ErasedReply(Reply):
    """What was erased."""

    traits = count("Erased traits.")
    streamEntriesRemoved = count("Removed change stream entries, which were about this user alone.")
    streamEntriesKept = count(
        "Entries that also name other users; they expire with the change stream."
    )
    suppressed = yes_or_no("Whether the user is now suppressed.", example=False)


class UnsuppressedReply(Reply):
    """A user who is no longer suppressed."""

    removed = yes_or_no("Whether the user was suppressed.")


class RegisteredReply(Reply):
    """The number of newly registered users."""

    registered = count("Users who were not registered before.")


blueprint = Blueprint("admin", __name__, url_prefix="/api/v1")

_ERASE = EraseQuery()


@blueprint.delete("/cohorts/<segment:cohort_id>")
@requires(ADMIN)
@describes(InvalidParameter, UnknownCohort, reply=DeletingReply(), status=202)
def delete_cohort(cohort_id: str) -> Response:
    """Begin to delete a cohort. Background work removes it from all users."""
    cohort_id = cohort_in_path(cohort_id)
    g.event["cohorts"] = [cohort_id]
    operator, store = Operator.of_request(), services().checked_store()
    if not admin_actions.begin_cohort_deletion(store, operator, g.caller.app_id, cohort_id):
        raise UnknownCohort()
    return json_reply({"cohortId": cohort_id, "status": "deleting"}, 202)


@blueprint.delete("/users/<rest:user_id>")
@requires(ADMIN)
@describes(InvalidParameter, query=_ERASE, reply=ErasedReply())
def erase_user(user_id: str) -> Response:
    """Erase a user, known or not. With ``?suppress=true``, later syncs skip the user."""
    user_id, suppress = user_in_path(user_id), parameters(_ERASE)["suppress"]
    operator, store = Operator.of_request(), services().checked_store()
    app_id = g.caller.app_id
    erased = admin_actions.erase_user(store, operator, app_id, user_id, suppress=suppress)
    return json_reply(
        {
            "traits": erased.traits,
            "streamEntriesRemoved": erased.stream_entries_removed,
            "streamEntriesKept": erased.stream_entries_kept,
            "suppressed": suppress or store.lookups.user_record(app_id, user_id).suppressed,
        }
    )


@blueprint.delete("/suppressions/<rest:user_id>")
@requires(ADMIN)
@describes(InvalidParameter, reply=UnsuppressedReply())
def unsuppress_user(user_id: str) -> Response:
    """Accept a suppressed user again."""
    user_id = user_in_path(user_id)
    operator, store = Operator.of_request(), services().checked_store()
    removed = admin_actions.unsuppress_user(store, operator, g.caller.app_id, user_id)
    return json_reply({"removed": removed})


@blueprint.post("/users")
@requires(ADMIN)
@describes(body=(RegisterUsersSchema(),), reply=RegisteredReply())
def register_users() -> Response:
    """Register users, for ``USER_POLICY=known``."""
    parts = services()
    schema = limited(RegisterUsersSchema, parts.settings.max_batch_users)
    _, user_ids = load(schema, read_json())
    store, app_id = parts.checked_store(), g.caller.app_id
    registered = store.registered_users.add(app_id, user_ids)
    store.replication.confirm(app_id)
    return json_reply({"registered": registered})
