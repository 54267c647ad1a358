"""An operator's calls: delete a cohort, erase users, register them."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, g
from orjson import dumps

from app.auth import audit_trail
from app.auth.authenticate import ADMIN, requires
from app.cohorts import user_hash
from app.errors import InvalidParameter, UnknownCohort
from app.settings import Settings
from app.store import Store
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

    cohort_id = text("The cohort's id.", example="abc123")
    status = text("Always `deleting`.", example="deleting")


class ErasedReply(Reply):
    """What was erased with a user."""

    traits = count("Traits that the user had.")
    stream_entries_removed = count("Entries of the change stream about this user alone.")
    stream_entries_kept = count("Entries that name others too; they leave the stream by age.")
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
    store = _store()
    audit_trail.record_request("delete_cohort", cohort=cohort_id)
    if not store.lifecycle.begin_delete(g.caller.app_id, cohort_id):
        raise UnknownCohort()
    return _reply({"cohort_id": cohort_id, "status": "deleting"}, 202)


@blueprint.delete("/users/<rest:user_id>")
@requires(ADMIN)
@describes(InvalidParameter, query=_ERASE, reply=ErasedReply())
def erase_user(user_id: str) -> Response:
    """Erase a user, known or not; with ``?suppress=true`` for good."""
    user_id, suppress = user_in_path(user_id), parameters(_ERASE)["suppress"]
    store = _store()
    audit_trail.record_request("erase_user", user=user_hash(user_id), suppress=suppress)
    erased = store.lifecycle.erase(g.caller.app_id, user_id, suppress=suppress)
    return _reply({**erased._asdict(), "suppressed": suppress})


@blueprint.delete("/suppressions/<rest:user_id>")
@requires(ADMIN)
@describes(InvalidParameter, reply=UnsuppressedReply())
def unsuppress_user(user_id: str) -> Response:
    """Take a user in again who was erased for good."""
    user_id = user_in_path(user_id)
    store = _store()
    audit_trail.record_request("unsuppress_user", user=user_hash(user_id))
    return _reply({"removed": store.lifecycle.unsuppress(g.caller.app_id, user_id)})


@blueprint.post("/users")
@requires(ADMIN)
@describes(body=(ListUsersSchema(),), reply=RegisteredReply())
def register_users() -> Response:
    """Let users in under ``USER_POLICY=known``. Counts those who were new."""
    settings: Settings = current_app.extensions["settings"]
    _, user_ids = load(limited(ListUsersSchema, settings.max_batch_users), read_json())
    return _reply({"registered": _store().register_users(g.caller.app_id, user_ids)})


def _store() -> Store:
    """The store, once it is seen to be laid out as the settings say: else ids aren't found."""
    store: Store = current_app.extensions["store"]
    store.check_for_deleting()
    return store


def _reply(document: dict[str, object], status: int = 200) -> Response:
    return Response(dumps(document), status, mimetype="application/json")
