"""Liveness and readiness."""

from __future__ import annotations

from flask import Blueprint, Response
from marshmallow import fields
from orjson import dumps

from app.auth.authenticate import PUBLIC, requires
from app.errors import StoreUnavailable
from app.services import services
from app.web.http.contract import describes
from app.web.http.replies import Reply, count, text


class AliveReply(Reply):
    """The process answers."""

    status = text("Always `ok`.", example="ok")


class CohortCounts(Reply):
    """How many cohorts are in each state of freshness, of the first hundred apps."""

    fresh = count("Cohorts that arrive as expected.", example=12)
    late = count("Cohorts that should have arrived again.", example=1)
    never = count("Cohorts that never arrived.", example=0)


class ReadyReply(Reply):
    """The store answers."""

    status = text("Always `ready`.", example="ready")
    storeMs = fields.Float(
        required=True, metadata={"description": "How long the store took, ms.", "example": 0.31}
    )
    cohorts = fields.Nested(CohortCounts, required=True)


blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@requires(PUBLIC)
@describes(reply=AliveReply())
def healthz() -> Response:
    """200 while the process answers, whatever the store does."""
    return Response(dumps({"status": "ok"}), mimetype="application/json")


@blueprint.get("/readyz")
@requires(PUBLIC)
@describes(StoreUnavailable, reply=ReadyReply())
def readyz() -> Response:
    """200 while the store answers, with the time that it took; else 503 with the reason.

    Also tells how many cohorts are late. That makes the service no less ready.
    """
    store = services().store
    seconds = store.check()
    # Open to all, and asked often: the cohorts of all apps are not counted each time.
    gauges = services().store_gauges
    told = {
        "status": "ready",
        "storeMs": round(seconds * 1000, 2),
        "cohorts": gauges.freshness(),
    }
    return Response(dumps(told), mimetype="application/json")
