"""Metrics, for Prometheus: ``/metrics``, and counting each request."""

from __future__ import annotations

import time

from flask import Blueprint, Flask, Response, current_app, g, request
from prometheus_client import CONTENT_TYPE_LATEST

from app.auth import METRICS, requires
from app.metrics.count import Meter, exposition
from app.metrics.gauges import StoreGauges
from app.web.contract import describes

blueprint = Blueprint("metrics", __name__)

# What the time of a request counts for, by blueprint, where it didn't get as far as to say its
# way in itself.
_WAYS = {
    "cohort": "identify",
    "lists": "list",
    "webhook": "webhook",
    "segment": "segment",
    "read": "read",
    "cohorts": "read",
    "export": "read",
    "changes": "read",
    "admin": "admin",
}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def init_app(app: Flask, meter: Meter, gauges: StoreGauges) -> None:
    """Count every request of ``app``, and tell of it."""
    app.extensions["meter"] = meter
    app.extensions["gauges"] = gauges
    app.register_blueprint(blueprint)

    @app.after_request
    def count(response: Response) -> Response:
        event, rule = g.event, request.url_rule
        way = event.get("way") or _WAYS.get(request.blueprint or "", "other")
        method = request.method
        meter.request(
            method if method in _METHODS else "other",
            (rule.rule.rstrip("/") or "/") if rule else "none",
            response.status_code,
            event.get("reason", "none"),
            way,
            time.perf_counter() - g.started,
        )
        if "accepted" in event:
            meter.users(way, event["accepted"], event["changed"], event.get("rejected_by", {}))
        if "store_ms" in event:
            meter.store(way, event["store_ms"] / 1000)
        return response


@blueprint.get("/metrics")
@requires(METRICS)
@describes(media_type="text/plain", example="# TYPE cohort_receiver_requests_total counter\n")
def get_metrics() -> Response:
    """All metrics, of all workers, in Prometheus' text format."""
    meter: Meter = current_app.extensions["meter"]
    meter.flush()
    body = exposition(current_app.extensions["gauges"])
    return Response(body, content_type=CONTENT_TYPE_LATEST)
