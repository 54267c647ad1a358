"""Property-based calls: one identify, or a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
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
from app.web.ingest.replies import AppliedReply, applied

blueprint = Blueprint("identify", __name__)

_IDENTIFY = IdentifySchema()


@blueprint.post("/api/v1/integration/amplitude/cohort")
@requires(INGEST)
@describes(
    *PROBLEMS, body=(BatchSchema(), _IDENTIFY), discriminators=("batch",), reply=AppliedReply()
)
def receive_cohort() -> Response:
    """Apply one identify call or a batch."""
    text = read_text()
    if calls := accept_batch(text, services().settings.max_batch_users):
        return _applied_batch(calls)
    return receive(decoded(text))


def receive(body: dict[str, Any]) -> Response:
    """Apply a decoded body that is either one identify call or a batch."""
    if "batch" in body:
        schema = limited(BatchSchema, services().settings.max_batch_users)
        return _applied_batch(load(schema, body)["batch"])
    call = accept(body, set()) or load(_IDENTIFY, body)
    return applied(apply([call], source=blueprint.name, user_place=lambda _: "userId"))


def _applied_batch(calls: Sequence[Identify]) -> Response:
    return applied(apply(calls, source=blueprint.name, user_place="batch.{}.userId".format))
