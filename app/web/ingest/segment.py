"""The Segment protocol: identify calls as Segment's libraries, and others of its family, send them.

Source: Segment's page "HTTP API Source".
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from app.auth.authenticate import INGEST, requires
from app.errors import Problem, UnsupportedType, render
from app.services import services
from app.web.http.body import load, read_json
from app.web.http.contract import describes
from app.web.http.fields import limited
from app.web.ingest.apply import PROBLEMS, apply
from app.web.ingest.replies import AppliedReply, SegmentProblemReply
from app.web.ingest.segment_schema import (
    SegmentBatch,
    SegmentBatchSchema,
    SegmentIdentifySchema,
    TraitsInContextSchema,
    identify_schema,
)

blueprint = Blueprint("segment", __name__)


def _members(problem: Problem) -> dict[str, Any]:
    """The two members that the protocol's libraries read.

    RudderStack's take a body without them for a broken connection and send the same ten times.
    """
    return {"code": problem.reason, "message": problem.detail}


_ERRORS = {"problem": SegmentProblemReply(), "members": _members}


@blueprint.post("/v1/identify")
@requires(INGEST)
@describes(
    *PROBLEMS,
    # the path says the type
    body=(SegmentIdentifySchema(partial=("type",)), TraitsInContextSchema(partial=("type",))),
    reply=AppliedReply(),
    **_ERRORS,
)
def receive_identify() -> Response:
    """Take one identify call."""
    body = {"type": "identify", **read_json()}
    return apply([load(identify_schema(body), body)], source="segment", place="userId")


@blueprint.post("/v1/batch")
@requires(INGEST)
@describes(*PROBLEMS, body=(SegmentBatchSchema(),), reply=AppliedReply(), **_ERRORS)
def receive_batch() -> Response:
    """Take the identify calls of a batch. Other calls are counted as rejected.

    This is a 200 also where there is no identify call at all: libraries send what their
    application calls, and to refuse the rest would make them send it again, or drop it unseen.
    """
    settings = services().settings
    batch: SegmentBatch = load(limited(SegmentBatchSchema, settings.max_batch_users), read_json())
    return apply(
        list(batch.identifies.values()),
        source="segment",
        numbers=list(batch.identifies),
        left_out=[(f"batch.{n}.type", UnsupportedType) for n in batch.others],
    )


@blueprint.errorhandler(Problem)
def explain(problem: Problem) -> Response:
    """The problem document, with what the protocol's libraries read."""
    return render(problem, **_members(problem))
