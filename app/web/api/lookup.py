"""Lookups that the read API's views share."""

from __future__ import annotations

from flask import g

from app.cohorts import Sync
from app.errors import UnknownCohort, UnknownSync
from app.services import services
from app.store import Store


def store() -> Store:
    """The store, after a check that its layout matches the settings."""
    return services().readable_store()


def known_cohort(cohort_id: str) -> str:
    """Return ``cohort_id`` if the cohort exists: a mistyped id must not look like an empty cohort.

    Raises:
        UnknownCohort
    """
    if store().registry.trait(g.caller.app_id, cohort_id) is None:
        raise UnknownCohort()
    g.event["cohorts"] = [cohort_id]
    return cohort_id


def known_sync(sync_id: int) -> Sync:
    """A sync in the history. Raises UnknownSync if it is not, or no longer, there."""
    sync = store().sync_history.sync(g.caller.app_id, sync_id)
    if sync is None:
        raise UnknownSync()
    return sync
