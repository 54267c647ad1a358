"""Who has deleted, erased, or changed keys: in the log, and in the store's audit trail.

The store has it as well because a command's output goes to whoever types it, and not to the
service's log.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from flask import current_app, g

from app.store import Store, StoreFull

API, DASHBOARD, COMMAND = "api", "dashboard", "command"


def record(
    store: Store, action: str, *, by: str, who: str, app_id: str | None = None, **about: Any
) -> None:
    """Write down an action before it is done, so that none is done unseen.

    Args:
        by: the way that it was ordered: the API, the dashboard or a command.
        who: the key's label; for a command, the name of the system's user.
        about: what it is done to. A user by hash, a key by its id.

    Raises:
        StoreError: it can't be written down, and should not be done.
    """
    entry = {"at": time.time_ns() // 1_000_000, "action": action, "by": by, "who": who}
    if app_id is not None:
        entry["app"] = app_id
    entry |= {name: value for name, value in about.items() if value is not None}
    log = structlog.get_logger()
    if by != COMMAND:
        log.info("admin action", **entry)
    try:
        store.audit.add(entry)
    except StoreFull:
        # Deleting is how one makes room.
        log.warning("admin action is not in the audit trail", reason=StoreFull.reason, **entry)


def record_request(action: str, **about: Any) -> None:
    """Write down an action of this request's caller. Raises StoreError."""
    record(
        current_app.extensions["store"],
        action,
        by=DASHBOARD if "session" in g else API,
        who=g.caller.label,
        app_id=g.caller.app_id,
        request_id=g.event["request_id"],
        **about,
    )
