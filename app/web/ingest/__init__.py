"""The sources of cohort changes, one row each.

Routes, metrics, logs, the sync history, the API description, the dashboard and the contract tests
read this table. CONTRIBUTING.md describes how to add a source.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, Flask

from app.errors import Problem, StoreUnavailable
from app.store import StoreError
from app.web.ingest import identify, lists, segment, webhook
from app.web.ingest.refused import name_cohorts
from app.web.ingest.replies import PROBLEM_DOCUMENT, ErrorForm


@dataclass(frozen=True)
class Source:
    """A source of cohort changes.

    Attributes:
        blueprint: its routes.
        title, description: how the API description and the dashboard present it.
        errors: the form of its error replies.
    """

    blueprint: Blueprint
    title: str
    description: str
    errors: ErrorForm = PROBLEM_DOCUMENT

    def __post_init__(self) -> None:
        self.blueprint.register_error_handler(Problem, self.errors.render)
        self.blueprint.register_error_handler(
            StoreError, lambda error: self.errors.render(StoreUnavailable(error))
        )
        self.blueprint.after_request(name_cohorts)

    @property
    def name(self) -> str:
        """Its name in logs, metrics, replies and the store."""
        return self.blueprint.name


_TABLE = (
    Source(
        identify.blueprint,
        "Property-based calls",
        "Identify calls and batches of them.",
    ),
    Source(
        lists.blueprint,
        "Lists",
        "List-based calls. A list is a cohort.",
    ),
    Source(
        webhook.blueprint,
        "Cohort Webhooks",
        "Messages that Amplitude fills in from a template.",
    ),
    Source(
        segment.blueprint,
        "Segment protocol",
        "Identify calls from libraries that speak the Segment protocol.",
        segment.ERRORS,
    ),
)
SOURCES = {source.name: source for source in _TABLE}


def init_app(app: Flask) -> None:
    """Register the routes of all sources."""
    for source in SOURCES.values():
        app.register_blueprint(source.blueprint)


def source_title(name: str) -> str:
    """A source's title; the name itself if the store has data of a source that no longer exists."""
    return SOURCES[name].title if name in SOURCES else name
