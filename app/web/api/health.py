"""Liveness and readiness."""

from __future__ import annotations

from flask import Blueprint, Response
from marshmallow import fields, validate

from app import __version__
from app.auth.authenticate import PUBLIC, requires
from app.errors import StoreUnavailable
from app.services import services
from app.web.http.contract import describes
from app.web.http.replies import Reply, count, json_reply, text


class AliveReply(Reply):
    """The process is alive."""

    status = text("Always `ok`.", example="ok")


class VersionReply(Reply):
    """The version that replied."""

    version = text("As `pip` reports it.", example=__version__)


class CohortCounts(Reply):
    """Cohorts by freshness, of the first hundred apps."""

    fresh = count("Cohorts that arrive as expected.", example=12)
    late = count("Cohorts that are overdue.", example=1)
    never = count("Cohorts that were never received.", example=0)


class ReadyReply(Reply):
    """The store is available."""

    status = text("Always `ready`.", example="ready")
    storeMs = fields.Float(
        required=True,
        metadata={"description": "Response time of the store in ms.", "example": 0.31},
    )
    cohorts = fields.Nested(CohortCounts, required=True)
    warnings = fields.List(
        fields.String(
            validate=validate.OneOf(
                [
                    *("store_full", "store_read_only", "store_lost", "store_set_back"),
                    *("store_may_evict", "store_not_persistent"),
                ]
            )
        ),
        required=True,
        metadata={
            "description": "Problems of a store that can be read: it refuses writes; it "
            "lost data, or was set back to an earlier state, and nobody has acknowledged it; it "
            "may evict keys; it saves nothing to disk.",
            "example": [],
        },
    )


blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@requires(PUBLIC)
@describes(reply=AliveReply())
def healthz() -> Response:
    """200 while the process is alive, whatever the state of the store."""
    return json_reply({"status": "ok"})


@blueprint.get("/version")
@requires(PUBLIC)
@describes(reply=VersionReply())
def version() -> Response:
    """The version of the service."""
    return json_reply({"version": __version__})


@blueprint.get("/readyz")
@requires(PUBLIC)
@describes(StoreUnavailable, reply=ReadyReply())
def readyz() -> Response:
    """200 while the store can be read, with its response time; else 503 with the reason.

    The reply also counts late cohorts, and has warnings, for example that the store refuses writes
    or may evict keys. Neither makes the service unready: reads, pages and deletions work, and
    another process would have the same store.
    """
    found = services().store.check()
    # Public and polled often, so counts are cached.
    gauges = services().store_gauges
    document = {
        "status": "ready",
        "storeMs": round(found.seconds * 1000, 2),
        "cohorts": gauges.freshness(),
        "warnings": [*filter(None, [found.refuses_writes]), *gauges.warnings()],
    }
    return json_reply(document)
