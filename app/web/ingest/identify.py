"""Property-based calls: one identify, or a batch of them."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from app.auth.authenticate import INGEST, requires
from app.cohorts import Identify
from app.services import services
from app.web.http.body import decoded, load, read_text
from app.web.http.contract import describes
from app.web.http.fields import limited
from app.web.ingest.apply import PROBLEMS, apply
from app.web.ingest.identify_batch import accept_batch
from app.web.ingest.identify_schema import BatchSchema, IdentifySchema, accept
from app.web.ingest.replies import AppliedReply

blueprint = Blueprint("cohort", __name__)

_IDENTIFY = IdentifySchema()


@blueprint.post("/api/v1/integration/amplitude/cohort")
@requires(INGEST)
@describes(*PROBLEMS, body=(BatchSchema(), _IDENTIFY), apart=("batch",), reply=AppliedReply())
def receive_cohort() -> Response:
    """Take one identify or a batch."""
    text = read_text()
    settings = services().settings
    if calls := accept_batch(text, settings.max_batch_users):
        return apply(calls, source="identify")
    return receive(decoded(text))


def receive(body: dict[str, Any]) -> Response:
    """Apply a body that is either one identify or a batch, and say what happened."""
    if "batch" in body:
        settings = services().settings
        calls: list[Identify] = load(limited(BatchSchema, settings.max_batch_users), body)["batch"]
        return apply(calls, source="identify")
    call = accept(body, set()) or load(_IDENTIFY, body)
    return apply([call], source="identify", place="userId")
