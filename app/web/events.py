"""One log event for each request, with its id."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from flask import Flask, Response, g, request

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:=+/-]{1,200}")


def init_app(app: Flask) -> None:
    """Give each request an id and log it once, when its answer is ready.

    Views add what they know to ``g.event``. Neither keys nor user ids belong there: the path is
    logged as its rule, without its values.
    """
    logger = structlog.get_logger()

    @app.before_request
    def begin() -> None:
        sent = request.headers.get("X-Request-ID", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        g.started = time.perf_counter()
        g.event = {
            "request_id": request_id,
            "method": request.method,
            "path": request.url_rule.rule if request.url_rule else None,
        }

    @app.after_request
    def finish(response: Response) -> Response:
        event = g.event
        response.headers["X-Request-ID"] = event["request_id"]
        duration = round((time.perf_counter() - g.started) * 1000, 2)
        log = logger.error if response.status_code >= 500 else logger.info
        log("request", status=response.status_code, ms=duration, **event)
        return response
