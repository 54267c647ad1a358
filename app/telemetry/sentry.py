"""Unexpected errors, told to Sentry where ``SENTRY_DSN`` is set.

What leaves the house is where in the code it happened, and of which kind it was: no message of an
error, no body, no header, no variable. Any of these may hold a key or a user's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What of a request's event says something and names nobody.
_TAGS = ("request_id", "method", "path", "app", "way", "task")

_told_of = False


def configure(dsn: str | None) -> None:
    """Tell unexpected errors to the Sentry at ``dsn``; None tells nobody."""
    global _told_of
    _told_of = dsn is not None
    if dsn is None:
        return
    import sentry_sdk  # takes a while, and most have no use for it

    sentry_sdk.init(
        dsn,
        # What is told is told below; the integrations would add requests, logs and variables.
        default_integrations=False,
        auto_enabling_integrations=False,
        include_local_variables=False,
        max_request_body_size="never",
        send_default_pii=False,
        max_breadcrumbs=0,
        auto_session_tracking=False,
        before_send=_scrub,
    )


def report(error: BaseException, about: Mapping[str, Any]) -> None:
    """Tell of an error.

    Args:
        about: what is known of where it happened; few of it is passed on.
    """
    if not _told_of:
        return
    import sentry_sdk

    with sentry_sdk.new_scope() as scope:
        scope.set_tags({name: about[name] for name in _TAGS if about.get(name)})
        sentry_sdk.capture_exception(error, scope=scope)


def finish(seconds: float) -> None:
    """Send what is waiting, in so much time at most: the process ends."""
    if _told_of:
        import sentry_sdk

        sentry_sdk.flush(seconds)


def _scrub(event: Any, hint: Any) -> Any:
    for kept in ("request", "user", "extra", "breadcrumbs", "logentry", "message"):
        event.pop(kept, None)
    for error in event.get("exception", {}).get("values", ()):
        error["value"] = "(not told)"
        for frame in error.get("stacktrace", {}).get("frames", ()):
            frame.pop("vars", None)
    return event
