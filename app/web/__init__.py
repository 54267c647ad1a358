"""The HTTP calls. A view decodes, applies and replies; schemas lie beside the views."""

from flask import Flask

from app.web import (
    admin,
    changes,
    cohort,
    cohorts,
    dashboard,
    description,
    events,
    export,
    headers,
    health,
    history,
    lists,
    metrics,
    paths,
    read,
    segment,
    turns,
    webhook,
)

__all__ = ["events", "headers", "init_app", "metrics", "turns"]


def init_app(app: Flask) -> None:
    """Register every blueprint."""
    paths.init_app(app)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(cohort.blueprint)
    app.register_blueprint(lists.blueprint)
    app.register_blueprint(webhook.blueprint)
    app.register_blueprint(segment.blueprint)
    app.register_blueprint(admin.blueprint)
    app.register_blueprint(read.blueprint)
    app.register_blueprint(cohorts.blueprint)
    app.register_blueprint(export.blueprint)
    app.register_blueprint(history.blueprint)
    app.register_blueprint(dashboard.blueprint)
    changes.init_app(app)
    app.register_blueprint(description.blueprint)
