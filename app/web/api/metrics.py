"""``/metrics`` for Prometheus, and the count of each request."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.auth.authenticate import METRICS, requires
from app.services import services
from app.telemetry.metrics.meter import Meter, exposition
from app.telemetry.request_event import FinishedRequest, Listener
from app.web.http.contract import describes
from app.web.http.problems import possible_problems
from app.web.ingest import SOURCES

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


def count_requests(meter: Meter) -> Listener:
    """A listener that counts each request."""

    def count(finished: FinishedRequest) -> None:
        event = finished.event
        method, path = event["method"], event["path"] if finished.blueprint else None
        if path is None and method not in _METHODS:
            method = "other"  # callers may send a method of any name
        source = event.get("source") or _KINDS.get(finished.blueprint, "other")
        reason = event.get("reason", "none")
        meter.request(method, path or "none", finished.status, reason, source, finished.seconds)
        if "accepted" in event:
            meter.users(source, event["accepted"], event["changed"], event.get("rejected_by", {}))
        if "store_ms" in event:
            meter.store(source, event["store_ms"] / 1000)

    return count


def declare_series(app: Flask) -> None:
    """Create the counters that alerts use, with the value 0.

    Prometheus measures how much a series grew between two scrapes, and ignores the first value of a
    new one.
    """
    meter = services(app).meter
    for rule in app.url_map.iter_rules():
        view: Any = app.view_functions[rule.endpoint]
        contract = getattr(view, "contract", None)
        if contract is None:
            continue
        source = SOURCES.get(rule.endpoint.partition(".")[0])
        problems = list(possible_problems(rule, contract, view.scope))
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            for problem in problems:
                if source or problem.status in (401, 403, 500):
                    route = rule.rule.rstrip("/") or "/"
                    meter.declare_request(method, route, problem.status, problem.reason)
        if source:
            meter.declare_source(source.name, {problem.reason for problem in contract.problems})


@blueprint.get("/metrics")
@requires(METRICS)
@describes(media_type="text/plain", example="# TYPE cohort_receiver_requests_total counter\n")
def get_metrics() -> Response:
    """All metrics of all workers, in Prometheus' text format."""
    meter = services().meter
    meter.flush()
    body = exposition(services().store_gauges)
    return Response(body, content_type=CONTENT_TYPE_LATEST)
