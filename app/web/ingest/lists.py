"""List-based calls: create a list, add users to it, remove users from it.

A list is a cohort, and its id is the cohort's id: creating it again gives the same list.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, g
from orjson import dumps

from app.auth.authenticate import INGEST, requires
from app.cohorts import Cohort, Outcome, UniformIdentifies
from app.errors import CohortBeingDeleted, InvalidParameter, UnknownCohort
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import describes, list_in_path
from app.web.http.fields import limited
from app.web.ingest import identify
from app.web.ingest.apply import PROBLEMS, NotKnown, apply
from app.web.ingest.identify_schema import BatchSchema, IdentifySchema
from app.web.ingest.list_schema import ListSchema, ListUsersSchema
from app.web.ingest.replies import AppliedReply, ListReply

blueprint = Blueprint("lists", __name__)

_LIST = ListSchema()
_PROBLEMS = (*PROBLEMS, UnknownCohort, InvalidParameter)


@blueprint.post("/lists")
@requires(INGEST)
@describes(CohortBeingDeleted, body=(_LIST,), reply=ListReply())
def create_list() -> Response:
    """Create a list, or find it again by the id in its name."""
    created = Cohort.from_trait(load(_LIST, read_json())["name"])
    store = services().store
    if not store.register_cohort(g.caller.app_id, created, source="list"):
        raise CohortBeingDeleted()
    g.event.update(source="list", cohorts=[created.id])
    g.outcome = Outcome({created.id: created.trait})
    # Amplitude's document doesn't say where it reads the id; these are the places known to work.
    ids = {"list_id": created.id, "listId": created.id}
    return Response(dumps({**ids, "response": ids}), mimetype="application/json")


@blueprint.post("/lists/<path:list_id>/add")
@blueprint.post("/lists/<path:list_id>/add/")
@requires(INGEST)
@describes(*_PROBLEMS, body=(ListUsersSchema(),), reply=AppliedReply())
def add_to_list(list_id: str) -> Response:
    """Users enter the list's cohort."""
    return _apply(list_in_path(list_id), True, read_json())


@blueprint.post("/lists/<path:list_id>/remove")
@blueprint.post("/lists/<path:list_id>/remove/")
@requires(INGEST)
@describes(
    *_PROBLEMS,
    body=(BatchSchema(), IdentifySchema(), ListUsersSchema()),
    apart=("batch", "traits"),
    reply=AppliedReply(),
)
def remove_from_list(list_id: str) -> Response:
    """Users leave the list's cohort. Also takes an identify or a batch, whatever the list id.

    Amplitude's document prints this address for its property-based calls.
    """
    list_id, body = list_in_path(list_id), read_json()
    if "batch" in body or "traits" in body:
        return identify.receive(body)
    return _apply(list_id, False, body)


def _apply(list_id: str, member: bool, body: dict[str, Any]) -> Response:
    settings = services().settings
    key, user_ids = load(limited(ListUsersSchema, settings.max_batch_users), body)
    registry, app_id = services().store.registry, g.caller.app_id

    def enter_or_leave(trait: str, as_known: bool) -> Response:
        calls = UniformIdentifies(user_ids, {trait: member})
        return apply(calls, source="list", place=f"{key}.{{}}", as_known=as_known)

    # The name it had is most often the name it has, and to ask for it takes as long as the rest.
    if user_ids and (trait := registry.last_trait(app_id, list_id)):
        with suppress(NotKnown):
            return enter_or_leave(trait, as_known=True)
    if (trait := registry.trait(app_id, list_id)) is None:
        g.event["cohorts"] = [list_id]
        raise UnknownCohort("There is no list with this id. Create it first.")
    return enter_or_leave(trait, as_known=False)
