"""Lookups that the read API's views share."""

from __future__ import annotations

from flask import g

from app.cohorts import Sync
from app.errors import UnknownCohort, UnknownSync
from app.services import services
from app.store import Store


def store() -> Store:
    """The store, once it is seen to be laid out as the settings say."""
    return services().readable_store()


def known_cohort(cohort_id: str) -> str:
    """A cohort id. Raises UnknownCohort: a mistyped id must not pass for a cohort of nobody."""
    if store().registry.trait(g.caller.app_id, cohort_id) is None:
        raise UnknownCohort()
    g.event["cohorts"] = [cohort_id]
    return cohort_id


def known_sync(sync_id: int) -> Sync:
    """A sync. Raises UnknownSync where it is not, or no longer, kept."""
    sync = store().sync_history.sync(g.caller.app_id, sync_id)
    if sync is None:
        raise UnknownSync()
    return sync
