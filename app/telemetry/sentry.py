"""Report unexpected errors to Sentry, if ``SENTRY_DSN`` is set.

A report contains the type of the error and its place in the code. Messages, bodies, headers and
variables are left out: any of them may contain a key or a user id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The fields of a request's event that identify no user.
_TAGS = ("request_id", "method", "path", "app", "source", "task")

_is_configured = False


def configure(dsn: str | None) -> None:
    """Report to the Sentry project at ``dsn``; None disables reports."""
    global _is_configured
    _is_configured = dsn is not None
    if dsn is None:
        return
    import sentry_sdk  # slow to import, and optional

    sentry_sdk.init(
        dsn,
        # Integrations would add requests, logs and variables.
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
    """Report an error.

    Args:
        about: the event that it occurred in; only a few of its fields are sent.
    """
    if not _is_configured:
        return
    import sentry_sdk

    with sentry_sdk.new_scope() as scope:
        scope.set_tags({name: about[name] for name in _TAGS if about.get(name)})
        sentry_sdk.capture_exception(error, scope=scope)


def finish(seconds: float) -> None:
    """Send pending reports before the process ends, within ``seconds``."""
    if _is_configured:
        import sentry_sdk

        sentry_sdk.flush(seconds)


def _scrub(event: Any, hint: Any) -> Any:
    for kept in ("request", "user", "extra", "breadcrumbs", "logentry", "message"):
        event.pop(kept, None)
    for error in event.get("exception", {}).get("values", ()):
        error["value"] = "(removed)"
        for frame in error.get("stacktrace", {}).get("frames", ()):
            frame.pop("vars", None)
    return event
