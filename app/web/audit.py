"""Writing down what an operator orders by a request."""

from __future__ import annotations

from typing import Any

from flask import current_app, g

from app import audit
from app.audit import API, DASHBOARD


def record(action: str, **about: Any) -> None:
    """Write down an action of this request's caller. Raises StoreError."""
    audit.record(
        current_app.extensions["store"],
        action,
        by=DASHBOARD if "session" in g else API,
        who=g.caller.label,
        app_id=g.caller.app_id,
        request_id=g.event["request_id"],
        **about,
    )
