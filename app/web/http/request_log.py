"""One log event per request, which is also passed to metrics and sync history."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from random import getrandbits
from typing import Any

import structlog
from flask import Flask, Response, g, request
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.routing import Rule

from app.telemetry.request_event import FinishedRequest, Listener

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:=+/-]{1,200}")


def init_app(app: Flask, sources: Collection[str], listeners: list[Listener]) -> None:
    """Give each request an id; log it and call the listeners once its reply is ready.

    Views add to ``g.event``. Neither keys nor user ids belong there: the path is logged as its
    rule, without values.

    Args:
        sources: the names of the sources, which are those of their blueprints.
    """
    logger = structlog.get_logger()

    @app.before_request
    def begin() -> None:
        # Each use of one of Flask's proxies looks up the request again.
        context: Any = g._get_current_object()
        rule, environ = request.url_rule, request.environ
        path_rule = rule or _rule_for_other_methods(app)
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else f"{getrandbits(128):032x}"
        context.event = {
            "request_id": request_id,
            "method": environ["REQUEST_METHOD"],
            "path": (path_rule.rule.rstrip("/") or "/") if path_rule else None,
        }
        context.blueprint = rule.endpoint.partition(".")[0] if rule else ""
        if context.blueprint in sources:
            context.event["source"] = context.blueprint
        context.started = time.perf_counter()

    @app.after_request
    def finish(response: Response) -> Response:
        context: Any = g._get_current_object()
        event, status = context.event, response.status_code
        response.headers["X-Request-ID"] = event["request_id"]
        seconds = time.perf_counter() - context.started
        finished = FinishedRequest(
            event, context.blueprint, context.get("outcome"), status, seconds
        )
        for listener in listeners:
            listener(finished)
        log = logger.error if status >= 500 else logger.info
        if status in (401, 403):
            log = logger.warning  # the runbook of CallersRefused needs them
        if context.blueprint == "health" and status == 200:
            log = logger.debug  # probed every second by some platforms
        log("request", status=status, ms=round(seconds * 1000, 2), **event)
        return response


def _rule_for_other_methods(app: Flask) -> Rule | None:
    """The rule of the current request's path, if it exists but does not accept the method."""
    error = request.routing_exception
    if not isinstance(error, MethodNotAllowed) or not error.valid_methods:
        return None
    sent: Any = request
    adapter: Any = app.create_url_adapter(sent._get_current_object())
    rule: Rule = adapter.match(method=min(error.valid_methods), return_rule=True)[0]
    return rule
