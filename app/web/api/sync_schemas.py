"""What the calls that read the sync history take and give."""

from __future__ import annotations

from marshmallow import fields, validate

from app.cohorts.cohort import MAX_TRAIT_BYTES
from app.web.api.schemas import TRAIT
from app.web.http.cursors import NumberCursor
from app.web.http.fields import Query, Whole
from app.web.http.replies import Reply, count, ms, text, yes_or_no

KEY = "ingest-9f86d081"


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
    """Which syncs."""

    cohort = fields.String(
        validate=validate.Length(1, MAX_TRAIT_BYTES),
        metadata={"description": "Only those of the cohort with this id."},
    )
    problems = fields.Boolean(
        load_default=False,
        truthy={"true"},
        falsy={"false"},
        metadata={"description": "Only those where a request failed or somebody was left out."},
    )
    cursor = NumberCursor(
        "s",
        metadata={"description": "Where to go on: `next` of the page before."},
    )
    limit = Whole(
        load_default=DEFAULT_SYNCS,
        validate=validate.Range(1, MAX_SYNCS),
        metadata={"description": "Syncs on a page, at most."},
    )


class RequestsQuery(Query):
    """Which requests of a sync."""

    problems = fields.Boolean(
        load_default=False,
        truthy={"true"},
        falsy={"false"},
        metadata={
            "description": "Those that failed or left somebody out; else those where all went well."
        },
    )
    cursor = NumberCursor(
        "r",
        metadata={"description": "Where to go on: `next` of the page before."},
    )
    limit = Whole(
        load_default=DEFAULT_REQUESTS,
        validate=validate.Range(1, MAX_REQUESTS),
        metadata={"description": "Requests on a page, at most."},
    )


class SyncReply(Reply):
    """Requests for one cohort, close in time."""

    id = text("The sync's id.", example="4711")
    cohortId = text(
        "The cohort's id; null where the requests name none, or many.",
        allow_none=True,
        example="abc123",
    )
    trait = text("The cohort's trait name then.", allow_none=True, example=TRAIT)
    began = ms("The first request")
    last = ms("The latest request")
    requests = count("Requests in all.")
    failed = count("Requests that were answered with an error.")
    repeated = count("Messages that had been applied before.")
    accepted = count("Users, or identify calls, that were taken.")
    changed = count("Users for whom something was different afterwards.")
    entered = count("Users who really entered.")
    left = count("Users who really left.")
    rejected = count("Users, or calls, that were left out.")
    tookMs = count("Time that all requests took together, ms.")
    slowestMs = count("Time that the slowest request took, ms.")
    reasons = _counts("Why users were left out, and how many.", "unknown_user")
    failures = _counts("Why requests failed, and how many.", "store_timeout")
    sources = _counts("How the requests came in.", "identify")
    keys = _counts("The labels of the keys that they came with.", KEY)


class SyncsReply(Reply):
    """Some syncs, the latest begun first. A page may be short and yet not be the last."""

    syncs = fields.List(fields.Nested(SyncReply), required=True)
    next = text("The cursor of the next page; null on the last one.", allow_none=True, example=None)


class RejectionReply(Reply):
    """A user who was left out."""

    user = text(
        "A short hash of the user's id: BLAKE2b, see the data model.", example="9f86d081884c"
    )
    reason = text("Why, as in the reply to the request.", example="unknown_user")


class RequestReply(Reply):
    """One request, as far as it concerns this cohort."""

    at = ms("When it was answered")
    tookMs = fields.Float(
        required=True, metadata={"description": "How long it took, ms.", "example": 4.7}
    )
    status = count("Status of the answer.", example=200)
    source = text("How it came in.", example="identify")
    key = text("The label of the key that it came with.", example=KEY)
    requestId = text("As in the answer's X-Request-ID, and in the log.", example="9f0c1d2e")
    accepted = count("Users, or identify calls, that were taken.")
    changed = count("Users for whom something was different afterwards.")
    entered = count("Users who really entered.")
    left = count("Users who really left.")
    rejected = count("Users, or calls, that were left out.")
    repeated = yes_or_no("Whether the message had been applied before.", example=False)
    reason = text("Why it failed; null where it did not.", allow_none=True, example=None)
    detail = text(
        "The first error and its place; null where there is none.", allow_none=True, example=None
    )
    rejections = fields.List(
        fields.Nested(RejectionReply),
        required=True,
        metadata={"description": "Some of the users who were left out; at most 20."},
    )


class RequestsReply(Reply):
    """Some requests of a sync, in order."""

    requests = fields.List(fields.Nested(RequestReply), required=True)
    next = text("The cursor of the next page; null on the last one.", allow_none=True, example=None)


class SizeReply(Reply):
    """A cohort's size, from this time to the next."""

    at = ms("When")
    members = count("How many members it had then.")


class SizesReply(Reply):
    """A cohort's size over time, oldest first; at most 240, the older ones further apart."""

    sizes = fields.List(fields.Nested(SizeReply), required=True)
