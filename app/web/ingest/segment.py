"""The Segment protocol: identify calls as sent by Segment's libraries and compatible ones.

Source: Segment's page "HTTP API Source".
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response
from marshmallow import fields

from app.auth.authenticate import INGEST, requires
from app.errors import NoCohortTraits, Problem, UnsupportedType
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import describes
from app.web.http.fields import limited
from app.web.http.replies import ProblemReply, count
from app.web.ingest.apply import PROBLEMS, Skipped, apply
from app.web.ingest.replies import AppliedReply, ErrorForm, applied
from app.web.ingest.segment_schema import (
    SegmentBatch,
    SegmentBatchSchema,
    SegmentCall,
    SegmentIdentifySchema,
    TraitsInContextSchema,
    identify_schema,
)

blueprint = Blueprint("segment", __name__)


class SegmentProblemReply(ProblemReply):
    """A problem document with the members that the Segment protocol's libraries read."""

    code = fields.String(metadata={"description": "The reason again."})
    message = fields.String(metadata={"description": "The detail again."})


class SegmentAppliedReply(AppliedReply):
    """The outcome, including what says nothing about cohorts."""

    ignoredTraits = count("Traits that are not booleans; they were ignored.", example=2)


# RudderStack's libraries treat a body without these members as a broken connection, and send the
# same request ten times.
ERRORS = ErrorForm(
    SegmentProblemReply(),
    lambda problem: {"code": problem.reason, "message": problem.detail},
)
_TYPE_IN_PATH: dict[str, Any] = {"partial": ("type",)}


@blueprint.post("/v1/identify")
@requires(INGEST)
@describes(
    *PROBLEMS,
    body=(SegmentIdentifySchema(**_TYPE_IN_PATH), TraitsInContextSchema(**_TYPE_IN_PATH)),
    reply=SegmentAppliedReply(),
)
def receive_identify() -> Response:
    """Apply one identify call. The reply is 200 even if it says nothing about cohorts."""
    body = {"type": "identify", **read_json()}
    call: SegmentCall = load(identify_schema(body), body)
    result = apply(
        [call.identify] if call.identify else [],
        source=blueprint.name,
        user_place=lambda _: "userId",
        rejected=[] if call.identify else [Skipped("traits", NoCohortTraits)],
    )
    return applied(result, ignoredTraits=call.ignored)


@blueprint.post("/v1/batch")
@requires(INGEST)
@describes(*PROBLEMS, body=(SegmentBatchSchema(),), reply=SegmentAppliedReply())
def receive_batch() -> Response:
    """Apply the identify calls of a batch. Calls that say nothing about cohorts count as rejected.

    The reply is 200 even if all do. Libraries send every call that the application makes; if a
    batch were refused, they would send it again or drop it silently.
    """
    schema = limited(SegmentBatchSchema, services().settings.max_batch_users)
    batch: SegmentBatch = load(schema, read_json())
    numbers = list(batch.identifies)
    others: list[tuple[int, str, type[Problem]]]
    others = [(n, f"batch.{n}.type", UnsupportedType) for n in batch.others]
    others += [(n, f"batch.{n}.traits", NoCohortTraits) for n in batch.without_cohorts]
    result = apply(
        list(batch.identifies.values()),
        source=blueprint.name,
        user_place=lambda call: f"batch.{numbers[call]}.userId",
        rejected=[Skipped(place, why) for _, place, why in sorted(others)],
    )
    return applied(result, ignoredTraits=batch.ignored)
