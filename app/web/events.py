"""One log event for each request, with its id."""

from __future__ import annotations

import re
import secrets
import time

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
        environ, rule = request.environ, request.url_rule
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)
        g.event = {
            "request_id": request_id,
            "method": environ["REQUEST_METHOD"],
            "path": rule.rule if rule else None,
        }
        g.started = time.perf_counter()

    @app.after_request
    def finish(response: Response) -> Response:
        event, started = g.event, g.started
        response.headers["X-Request-ID"] = event["request_id"]
        duration = round((time.perf_counter() - started) * 1000, 2)
        log = logger.error if response.status_code >= 500 else logger.info
        log("request", status=response.status_code, ms=duration, **event)
        return response
