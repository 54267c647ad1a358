"""``/metrics`` for Prometheus, and the count of each request."""

from __future__ import annotations

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.auth.authenticate import METRICS, requires
from app.services import services
from app.telemetry.metrics.definitions import (
    REQUEST_SECONDS,
    REQUESTS,
    STORE_SECONDS,
    USERS_ACCEPTED,
    USERS_CHANGED,
    USERS_REJECTED,
)
from app.telemetry.metrics.exposition import exposition
from app.telemetry.request_event import FinishedRequest
from app.web.http.contract import describes

blueprint = Blueprint("metrics", __name__)

# The label `source` of requests to blueprints that are not sources.
_KINDS = {
    "users": "read",
    "cohorts": "read",
    "export": "read",
    "changes": "read",
    "syncs": "read",
    "admin": "admin",
}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def count_request(finished: FinishedRequest) -> None:
    """Count a finished request and its users."""
    event = finished.event
    method, path = event["method"], event["path"]
    if path is None and method not in _METHODS:
        method = "other"  # callers may send a method of any name
    source = event.get("source") or _KINDS.get(finished.blueprint, "other")
    reason = event.get("reason", "none")
    REQUESTS.labels(method, path or "none", finished.status, reason).inc()
    REQUEST_SECONDS.labels(source).observe(finished.seconds)
    if "accepted" in event:
        USERS_ACCEPTED.labels(source).inc(event["accepted"])
        USERS_CHANGED.labels(source).inc(event["changed"])
        for why, users in event.get("rejected_by", {}).items():
            USERS_REJECTED.labels(source, why).inc(users)
    if "store_ms" in event:
        STORE_SECONDS.labels(source).observe(event["store_ms"] / 1000)


@blueprint.get("/metrics")
@requires(METRICS)
@describes(media_type="text/plain", example="# TYPE cohort_receiver_requests_total counter\n")
def get_metrics() -> Response:
    """All metrics of all workers, in Prometheus' text format."""
    body = exposition(services().store_gauges)
    return Response(body, content_type=CONTENT_TYPE_LATEST)
