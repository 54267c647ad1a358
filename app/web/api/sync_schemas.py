"""Schemas of the sync history."""

from __future__ import annotations

from marshmallow import fields, validate

from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.web.api.schemas import EXAMPLE_TRAIT
from app.web.http.cursors import NumberCursor
from app.web.http.fields import Query, Whole
from app.web.http.replies import Reply, count, ms, text, yes_or_no

EXAMPLE_KEY = "ingest-9f86d081"


MAX_SYNCS, DEFAULT_SYNCS = 500, 50
MAX_REQUESTS, DEFAULT_REQUESTS = 1000, 100


def _counts(description: str, example: str) -> fields.Dict:
    return fields.Dict(
        keys=fields.String(),
        values=fields.Integer(strict=True),
        required=True,
        metadata={"description": description, "example": {example: 2}},
    )


class SyncsQuery(Query):
    """Selects syncs."""

    cohort = fields.String(
        validate=validate.Length(1, MAX_TRAIT_BYTES),
        metadata={"description": "Only syncs of the cohort with this id."},
    )
    problems = fields.Boolean(
        load_default=False,
        truthy={"true"},
        falsy={"false"},
        metadata={"description": "Only syncs in which a request failed or users were rejected."},
    )
    cursor = NumberCursor(
        "s",
        metadata={"description": "`next` of the previous page."},
    )
    limit = Whole(
        load_default=DEFAULT_SYNCS,
        validate=validate.Range(1, MAX_SYNCS),
        metadata={"description": "Page size."},
    )


class RequestsQuery(Query):
    """Selects requests of a sync."""

    problems = fields.Boolean(
        load_default=False,
        truthy={"true"},
        falsy={"false"},
        metadata={"description": "Requests that failed or rejected users; by default, all others."},
    )
    cursor = NumberCursor(
        "r",
        metadata={"description": "`next` of the previous page."},
    )
    limit = Whole(
        load_default=DEFAULT_REQUESTS,
        validate=validate.Range(1, MAX_REQUESTS),
        metadata={"description": "Page size."},
    )


class SyncReply(Reply):
    """Requests for one cohort, close in time."""

    id = text("The sync's id.", example="4711")
    cohortId = text(
        "The cohort's id; null if the requests name no cohort or many.",
        allow_none=True,
        example="abc123",
    )
    trait = text("The cohort's trait name at the time.", allow_none=True, example=EXAMPLE_TRAIT)
    began = ms("The first request")
    last = ms("The latest request")
    requests = count("Number of requests.")
    failed = count("Requests that got an error reply.")
    repeated = count("Messages that had been applied before.")
    accepted = count("Users, or identify calls, that were applied.")
    changed = count("Users whose traits or memberships changed.")
    entered = count("Users who entered.")
    left = count("Users who left.")
    rejected = count("Users, or calls, that were not applied, not counting suppressed users.")
    tookMs = count("Total processing time in ms.")
    slowestMs = count("Processing time of the slowest request in ms.")
    reasons = _counts("Rejected users by reason, including suppressed ones.", "unknown_user")
    failures = _counts("Failed requests by reason.", "store_timeout")
    sources = _counts("Requests by source.", "identify")
    keys = _counts("Requests by API key label.", EXAMPLE_KEY)


class SyncsReply(Reply):
    """Syncs, latest first. A page may be short without being the last."""

    syncs = fields.List(fields.Nested(SyncReply), required=True)
    next = text("The cursor of the next page; null on the last one.", allow_none=True, example=None)


class RejectionReply(Reply):
    """A rejected user."""

    user = text(
        "A short hash of the user's id: BLAKE2b, see the data model. Null stands for all users of "
        "the request without a usable id.",
        allow_none=True,
        example="9f86d081884c",
    )
    reason = text("Why, as in the reply to the request.", example="unknown_user")


class RequestReply(Reply):
    """One request, as it concerns this cohort."""

    at = ms("Time of the reply")
    tookMs = fields.Float(
        required=True, metadata={"description": "Processing time in ms.", "example": 4.7}
    )
    status = count("HTTP status of the reply.", example=200)
    source = text("Its source.", example="identify")
    key = text("The label of the API key.", example=EXAMPLE_KEY)
    requestId = text("As in the reply's X-Request-ID and in the log.", example="9f0c1d2e")
    accepted = count("Users, or identify calls, that were applied.")
    changed = count("Users whose traits or memberships changed.")
    entered = count("Users who entered.")
    left = count("Users who left.")
    rejected = count("Users, or calls, that were not applied, not counting suppressed users.")
    repeated = yes_or_no("Whether the message had been applied before.", example=False)
    reason = text("Why it failed; null if it succeeded.", allow_none=True, example=None)
    detail = text(
        "The first error and its place; null if there is none.", allow_none=True, example=None
    )
    unknownCohort = text(
        "The cohort id that a failed request names, if no such cohort was known; otherwise null.",
        allow_none=True,
        example=None,
    )
    rejections = fields.List(
        fields.Nested(RejectionReply),
        required=True,
        metadata={"description": "Some of the rejected users, at most 20."},
    )


class RequestsReply(Reply):
    """Requests of a sync, oldest first."""

    requests = fields.List(fields.Nested(RequestReply), required=True)
    next = text("The cursor of the next page; null on the last one.", allow_none=True, example=None)


class SizeReply(Reply):
    """A cohort's size from this time to the next."""

    at = ms("Start")
    members = count("Number of members.")


class SizesReply(Reply):
    """A cohort's size over time, oldest first; at most 240 points, older ones further apart."""

    sizes = fields.List(fields.Nested(SizeReply), required=True)
