"""Property-based calls: one identify, or a batch of them."""

from __future__ import annotations

from flask import Blueprint, Response

from app.auth import INGEST, requires
from app.web.body import read_json
from app.web.ingest import apply, identifies

blueprint = Blueprint("cohort", __name__)


@blueprint.post("/api/v1/integration/amplitude/cohort")
@requires(INGEST)
def receive_cohort() -> Response:
    """Take one identify or a batch."""
    return apply(identifies(read_json()))
