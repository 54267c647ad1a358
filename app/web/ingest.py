"""What all ways in share: from identify calls to the store, and the reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, current_app, g
from orjson import dumps

from app.cohorts import Identify, membership_changes
from app.errors import UnknownUser
from app.settings import Settings
from app.store import Store
from app.web.body import MAX_ERRORS, load
from app.web.schemas import IdentifySchema, batch_schema

_IDENTIFY = IdentifySchema()


def identifies(body: dict[str, Any]) -> list[Identify]:
    """The identify calls of a body that is either one of them or a batch. Raises InvalidPayload."""
    if "batch" in body:
        settings: Settings = current_app.extensions["settings"]
        found: list[Identify] = load(batch_schema(settings.max_batch_users), body)["batch"]
        return found
    return [load(_IDENTIFY, body)]


def apply(calls: Sequence[Identify]) -> Response:
    """Apply identify calls and say what happened, once the store has acknowledged it.

    Raises:
        UnknownUser: there are calls, but none is about a user who is let in.
        StoreError: the store could not be had.
    """
    store: Store = current_app.extensions["store"]
    settings: Settings = current_app.extensions["settings"]
    changes = membership_changes(calls)
    g.event["cohorts"] = sorted({change.cohort.id for change in changes})[:10]
    applied = store.apply(g.caller.app_id, changes, known_only=settings.user_policy == "known")
    rejected = (
        [place for place, call in enumerate(calls) if call.user_id in applied.unknown]
        if applied.unknown
        else []
    )
    counts = {
        "accepted": len(calls) - len(rejected),
        "changed": len(applied.changed),
        "rejected": len(rejected),
    }
    g.event.update(counts)
    if rejected and not counts["accepted"]:
        raise UnknownUser("None of the users is registered here.")
    errors = [
        {
            "place": f"batch.{place}.userId",
            "reason": UnknownUser.reason,
            "message": "This user is not registered here.",
        }
        for place in rejected[:MAX_ERRORS]
    ]
    return Response(dumps({**counts, "errors": errors}), mimetype="application/json")
