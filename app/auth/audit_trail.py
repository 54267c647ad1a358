"""The audit trail: what operators changed, such as cohorts, users and keys.

Entries go to the store. Those of the API and the dashboard are logged as well; a command runs
outside the service and does not write to its log.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import structlog
from flask import g

from app.store import Store, StoreFull

API, DASHBOARD, COMMAND = "api", "dashboard", "command"
HOLD_STORE = "hold_store"


class Operator(NamedTuple):
    """Who performs an action.

    Attributes:
        by: the interface: ``API``, ``DASHBOARD`` or ``COMMAND``.
        who: the label of the key; for a command, the name of the system's user.
        request_id: of the request, to find it in the log; None for a command.
    """

    by: str
    who: str
    request_id: str | None = None

    @classmethod
    def of_request(cls) -> Operator:
        """The caller of the current request."""
        by = DASHBOARD if "session" in g else API
        return cls(by, g.caller.label, g.event["request_id"])


def record(
    store: Store, operator: Operator, action: str, app_id: str | None = None, **about: Any
) -> None:
    """Write an action to the audit trail, before it is carried out.

    Args:
        about: what the action concerns. A user by hash, a key by its id.

    Raises:
        StoreError: the action could not be recorded and must not be carried out.
    """
    entry = {
        "at": time.time_ns() // 1_000_000,
        "action": action,
        "by": operator.by,
        "who": operator.who,
        "app": app_id,
        "request_id": operator.request_id,
        **about,
    }
    entry = {name: value for name, value in entry.items() if value is not None}
    log = structlog.get_logger()
    if operator.by != COMMAND:
        log.info("admin action", **entry)
    try:
        # `store hold` must work during a hold: an interrupted one is completed by another call.
        store.audit_trail.add(entry, despite_hold=action == HOLD_STORE)
    except StoreFull:
        # Deleting makes room, so a full store must not prevent it.
        log.warning("admin action is not in the audit trail", reason=StoreFull.reason, **entry)
