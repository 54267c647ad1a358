"""The Segment protocol: identify calls as sent by Segment's libraries and compatible ones.

Source: Segment's page "HTTP API Source".
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response
from marshmallow import fields

from app.auth.authenticate import INGEST, requires
from app.errors import UnsupportedType
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import describes
from app.web.http.fields import limited
from app.web.http.replies import ProblemReply
from app.web.ingest.apply import PROBLEMS, Skipped, apply
from app.web.ingest.replies import AppliedReply, ErrorForm, applied
from app.web.ingest.segment_schema import (
    SegmentBatch,
    SegmentBatchSchema,
    SegmentIdentifySchema,
    TraitsInContextSchema,
    identify_schema,
)

blueprint = Blueprint("segment", __name__)


class SegmentProblemReply(ProblemReply):
    """A problem document with the members that the Segment protocol's libraries read."""

    code = fields.String(metadata={"description": "The reason again."})
    message = fields.String(metadata={"description": "The detail again."})


# RudderStack's libraries take a body without these members for a broken connection, and send the
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
    reply=AppliedReply(),
)
def receive_identify() -> Response:
    """Apply one identify call."""
    body = {"type": "identify", **read_json()}
    call = load(identify_schema(body), body)
    return applied(apply([call], source=blueprint.name, user_place=lambda _: "userId"))


@blueprint.post("/v1/batch")
@requires(INGEST)
@describes(*PROBLEMS, body=(SegmentBatchSchema(),), reply=AppliedReply())
def receive_batch() -> Response:
    """Apply the identify calls of a batch. Other calls count as rejected.

    The reply is 200 even if there is no identify call. Libraries send whatever their application
    calls; if a batch were refused, they would send it again or drop it silently.
    """
    schema = limited(SegmentBatchSchema, services().settings.max_batch_users)
    batch: SegmentBatch = load(schema, read_json())
    numbers = list(batch.identifies)
    result = apply(
        list(batch.identifies.values()),
        source=blueprint.name,
        user_place=lambda call: f"batch.{numbers[call]}.userId",
        rejected=[Skipped(f"batch.{n}.type", UnsupportedType) for n in batch.others],
    )
    return applied(result)
