"""The HTTP API. A view decodes, applies and replies; its schemas are in the module next to it."""

from flask import Flask

from app.web import dashboard, ingest, openapi
from app.web.api import (
    admin,
    changes,
    cohorts,
    export,
    health,
    metrics,
    reconcile,
    resyncs,
    syncs,
    upstream,
    users,
)
from app.web.http import fair_queue, raw_paths, request_log, security_headers
from app.web.ingest import SOURCES

__all__ = ["SOURCES", "fair_queue", "init_app", "metrics", "request_log", "security_headers"]


def init_app(app: Flask) -> None:
    """Register every blueprint."""
    raw_paths.init_app(app)
    app.register_blueprint(health.blueprint)
    ingest.init_app(app)
    app.register_blueprint(admin.blueprint)
    app.register_blueprint(users.blueprint)
    app.register_blueprint(cohorts.blueprint)
    app.register_blueprint(export.blueprint)
    app.register_blueprint(resyncs.blueprint)
    app.register_blueprint(reconcile.blueprint)
    app.register_blueprint(upstream.blueprint)
    app.register_blueprint(syncs.blueprint)
    app.register_blueprint(dashboard.blueprint)
    app.register_blueprint(changes.blueprint)
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(openapi.blueprint)
