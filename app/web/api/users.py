"""Users' traits and cohorts' members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from flask import Blueprint, Response, g
from orjson import OPT_SORT_KEYS, dumps

from app.auth.authenticate import READ, requires
from app.errors import InvalidParameter, UnknownCohort
from app.services import services
from app.store import Member, User
from app.web.api.lookup import known_cohort, store
from app.web.api.schemas import (
    MembersAmongReply,
    MembershipReply,
    MembersQuery,
    MembersReply,
    UserReply,
    UsersQuery,
    UsersReply,
)
from app.web.http import fair_queue
from app.web.http.body import load, read_json
from app.web.http.contract import JSON, cohort_in_path, describes, parameters, send, user_in_path
from app.web.http.cursors import member_cursor
from app.web.http.fields import limited

blueprint = Blueprint("users", __name__, url_prefix="/api/v1")

_MEMBERS_QUERY = MembersQuery()
# Larger replies are streamed: the number of traits per user is unlimited.
_STREAM_ABOVE_BYTES = 1 << 20


@blueprint.get("/users/<rest:user_id>")
@requires(READ)
@describes(InvalidParameter, reply=UserReply(), tagged=True)
def get_user(user_id: str) -> Response:
    """A user's traits and cohorts. Empty for an unknown user."""
    user = store().lookups.user(g.caller.app_id, user_in_path(user_id))
    return send(_shown_user(user), tagged=True)


@blueprint.post("/users/query")
@requires(READ)
@describes(body=(UsersQuery(),), user_limit="max_query_users", reply=UsersReply())
def query_users() -> Response:
    """Traits and cohorts of many users, in the requested order."""
    settings = services().settings
    asked = load(limited(UsersQuery, settings.max_query_users), read_json())["user_ids"]
    pieces = _users(store().lookups.users(g.caller.app_id, asked))
    begun: list[bytes] = []
    for piece in pieces:
        begun.append(piece)
        if sum(map(len, begun)) > _STREAM_ABOVE_BYTES:
            # As in an export: if the store fails now, the connection is aborted.
            return Response(chain(begun, fair_queue.in_pieces(pieces)), mimetype=JSON)
    return Response(b"".join(begun), mimetype=JSON)


@blueprint.get("/cohorts/<segment:cohort_id>/members/<rest:user_id>")
@requires(READ)
@describes(InvalidParameter, UnknownCohort, reply=MembershipReply(), tagged=True)
def get_membership(cohort_id: str, user_id: str) -> Response:
    """Whether a user is in a cohort, and since when."""
    cohort_id, user_id = cohort_in_path(cohort_id), user_in_path(user_id)
    since = store().lookups.since(g.caller.app_id, cohort_id, user_id)
    if since is None:
        known_cohort(cohort_id)
    membership = {
        "userId": user_id,
        "cohortId": cohort_id,
        "member": since is not None,
        "since": since,
    }
    return send(membership, tagged=True)


@blueprint.post("/cohorts/<segment:cohort_id>/members/query")
@requires(READ)
@describes(
    *(InvalidParameter, UnknownCohort),
    body=(UsersQuery(),),
    user_limit="max_query_users",
    reply=MembersAmongReply(),
)
def query_members(cohort_id: str) -> Response:
    """Which of many users are in a cohort, and since when."""
    cohort_id = cohort_in_path(cohort_id)
    schema = limited(UsersQuery, services().settings.max_query_users)
    asked = load(schema, read_json())["user_ids"]
    members = store().lookups.members_among(g.caller.app_id, cohort_id, asked)
    if not members:
        known_cohort(cohort_id)
    return send({"cohortId": cohort_id, "members": list(map(_shown_member, members))})


@blueprint.get("/cohorts/<segment:cohort_id>/members")
@requires(READ)
@describes(
    *(InvalidParameter, UnknownCohort), query=_MEMBERS_QUERY, reply=MembersReply(), paged=True
)
def get_members(cohort_id: str) -> Response:
    """Members of a cohort, a page at a time, by partition, then by time of entry."""
    asked = parameters(_MEMBERS_QUERY)
    members, position = store().lookups.members(
        g.caller.app_id,
        known_cohort(cohort_in_path(cohort_id)),
        after=asked.get("cursor"),
        since_ms=asked.get("entered_since"),
        limit=asked["limit"],
    )
    cursor = member_cursor(position)
    return send({"members": list(map(_shown_member, members)), "next": cursor}, next_cursor=cursor)


def _users(pieces: Iterable[list[User]]) -> Iterator[bytes]:
    """The reply about many users, in pieces."""
    before = b'{"users":['
    for users in pieces:
        yield before + dumps(list(map(_shown_user, users)), option=OPT_SORT_KEYS)[1:-1]
        before = b","
    yield b"]}\n" if before == b"," else before + b"]}\n"


def _shown_user(user: User) -> dict[str, Any]:
    return {
        "userId": user.id,
        "traits": user.traits,
        "cohorts": [
            {"id": cohort.id, "trait": cohort.trait, "since": since_ms}
            for cohort, since_ms in user.memberships
        ],
    }


def _shown_member(member: Member) -> dict[str, Any]:
    return {"userId": member.user_id, "since": member.since_ms}
