"""List-based calls: create a list, add users to it, remove users from it.

A list is a cohort, and its id is the cohort's id: creating it again returns the same list.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, g
from marshmallow import fields

from app.auth.authenticate import INGEST, requires
from app.cohorts import Cohort, Outcome, UniformIdentifies
from app.errors import CohortBeingDeleted, InvalidParameter, UnknownCohort
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import describes, list_in_path
from app.web.http.fields import limited
from app.web.http.replies import Reply, json_reply, text
from app.web.ingest import identify
from app.web.ingest.apply import PROBLEMS, UnknownTrait, apply, checksum
from app.web.ingest.identify_schema import BatchSchema, IdentifySchema
from app.web.ingest.list_schema import ListSchema, ListUsersSchema
from app.web.ingest.replies import AppliedReply, applied

blueprint = Blueprint("list", __name__)

_LIST = ListSchema()
_PROBLEMS = (*PROBLEMS, UnknownCohort, InvalidParameter)


class ListIds(Reply):
    """The id of a list, under the names that Amplitude may look for."""

    list_id = text("The list's id, which is the cohort's id.", example="abc123")
    listId = text("The same.", example="abc123")


class ListReply(ListIds):
    """A list, new or existing."""

    response = fields.Nested(ListIds, required=True)


@blueprint.post("/lists")
@requires(INGEST)
@describes(CohortBeingDeleted, body=(_LIST,), reply=ListReply())
def create_list() -> Response:
    """Create a list, or return the existing one with the id in its name."""
    created = Cohort.from_trait(load(_LIST, read_json())["name"])
    if not services().store.memberships.register_cohort(
        g.caller.app_id, created, source=blueprint.name
    ):
        raise CohortBeingDeleted()
    g.event["cohorts"] = [created.id]
    g.outcome = Outcome({created.id: created.trait})
    # Amplitude does not document where it reads the id; these are the places known to work.
    ids = {"list_id": created.id, "listId": created.id}
    return json_reply({**ids, "response": ids})


@blueprint.post("/lists/<path:list_id>/add")
@blueprint.post("/lists/<path:list_id>/add/")
@requires(INGEST)
@describes(*_PROBLEMS, body=(ListUsersSchema(),), reply=AppliedReply())
def add_to_list(list_id: str) -> Response:
    """Add users to the list's cohort."""
    return _apply(list_in_path(list_id), True, read_json())


@blueprint.post("/lists/<path:list_id>/remove")
@blueprint.post("/lists/<path:list_id>/remove/")
@requires(INGEST)
@describes(
    *_PROBLEMS,
    body=(BatchSchema(), IdentifySchema(), ListUsersSchema()),
    discriminators=("batch", "traits"),
    reply=AppliedReply(),
)
def remove_from_list(list_id: str) -> Response:
    """Remove users from the list's cohort. Also takes an identify or a batch, for any list id.

    Amplitude's documentation prints this address for its property-based calls.
    """
    list_id, body = list_in_path(list_id), read_json()
    if "batch" in body or "traits" in body:
        return identify.receive(body)
    return _apply(list_id, False, body)


def _apply(list_id: str, member: bool, body: dict[str, Any]) -> Response:
    key, user_ids = load(limited(ListUsersSchema, services().settings.max_batch_users), body)
    registry, app_id = services().store.registry, g.caller.app_id

    def enter_or_leave(trait: str, as_known: bool) -> Response:
        calls = UniformIdentifies(user_ids, {trait: member})
        place = f"{key}.{{}}".format
        return applied(apply(calls, source=blueprint.name, user_place=place, as_known=as_known))

    # The last trait name seen is usually current; asking the store costs as much as the rest.
    if user_ids and (trait := registry.last_trait(app_id, list_id)):
        with suppress(UnknownTrait):
            return enter_or_leave(trait, as_known=True)
    # By which a retry is recognised if this fails before the cohort is known.
    g.content = checksum(UniformIdentifies(user_ids, {list_id: member}))
    if (trait := registry.trait(app_id, list_id)) is None:
        raise UnknownCohort("There is no list with this id. Create it first.")
    return enter_or_leave(trait, as_known=False)
