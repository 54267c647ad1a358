"""Every error that a caller can receive, and its form as a problem document (RFC 9457).

Its ``reason`` is short and machine-readable; it is logged with the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import structlog
from flask import Flask, Response, g, request
from orjson import OPT_APPEND_NEWLINE, dumps
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.http import HTTP_STATUS_CODES

from app.store import PositionLost, StoreError, TooManyToSort
from app.telemetry import sentry

# Retry-After while the store is unavailable, in seconds.
RETRY_AFTER_STORE = 5


class Problem(Exception):
    """An error reply: a status, a reason and, where they help, places in the request.

    Args:
        detail: what is wrong and what to do about it, for people; by default the class's own text.
        errors: what is wrong at each place of the body, as ``{"place": …, "message": …}``.
        headers: further headers of the reply.

    Attributes:
        records_detail: whether the argument ``detail`` is logged and recorded in the sync history.
            True only if it never quotes the request.
    """

    status = 500
    reason = "internal_error"
    detail = ""
    records_detail = False

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        if detail is not None:
            self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.log_fields: dict[str, str] = {}

    @classmethod
    def examples(cls) -> list[Self]:
        """Examples for the API's description."""
        return [cls()]

    @classmethod
    def of_status(cls, status: int, detail: str | None) -> Self:
        """A problem whose reason is HTTP's own name for the status."""
        problem = cls(detail)
        problem.status = status
        problem.reason = HTTP_STATUS_CODES[status].lower().replace(" ", "_")
        return problem

    def document(self, request_id: str, **members: Any) -> dict[str, Any]:
        """The body of the reply, with further members where a protocol needs them."""
        errors = {"errors": self.errors} if self.errors else {}
        return {
            "type": "about:blank",
            "title": HTTP_STATUS_CODES[self.status],
            "status": self.status,
            "reason": self.reason,
            "detail": self.detail,
            "requestId": request_id,
            **members,
            **errors,
        }


class InternalError(Problem):
    detail = "Internal error. It has been logged."


class InvalidJson(Problem):
    status, reason = 400, "invalid_json"
    detail = "The body is not valid JSON in UTF-8."
    records_detail = True


class InvalidEncoding(Problem):
    status, reason = 400, "invalid_encoding"
    detail = "The body is truncated or cannot be decompressed."
    records_detail = True


class InvalidPayload(Problem):
    status, reason = 400, "invalid_payload"
    detail = "The body is JSON but does not match what this call accepts. Nothing was written."

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(errors=[{"place": "batch.17.userId", "message": "Must not be empty."}])]


class UnsupportedType(Problem):
    status, reason = 400, "unsupported_type"
    detail = "Only identify calls are accepted; this one says nothing about cohorts."


class NoCohortTraits(Problem):
    status, reason = 400, "no_cohort_traits"
    detail = "This call has no trait that is true or false, so it says nothing about cohorts."


class InvalidParameter(Problem):
    status, reason = 400, "invalid_parameter"
    detail = "The query string or the path is invalid."

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(errors=[{"place": "limit", "message": "Not a valid integer."}])]


class TooManyCohortsToSort(Problem):
    status, reason = 400, "too_many_cohorts"
    detail = "This app has too many cohorts for this sort order. Sort by id, which has no limit."


class NotFound(Problem):
    status, reason = 404, "not_found"
    detail = "There is no such path. Ids must not be empty."


class MissingCredentials(Problem):
    status, reason = 401, "missing_credentials"
    detail = "No API key was sent."


class NotLoggedIn(MissingCredentials):
    detail = "You are not logged in, or the session has expired."


class InvalidCredentials(Problem):
    status, reason = 401, "invalid_credentials"
    detail = "The API key is unknown or does not belong to the app in app_id."


class ExpiredKey(Problem):
    status, reason = 401, "expired_key"
    detail = "The API key has expired. Ask the operator for a new one."


class RevokedKey(Problem):
    status, reason = 401, "revoked_key"
    detail = "The API key was revoked. Ask the operator for a new one."


class MissingScope(Problem):
    status, reason = 403, "missing_scope"
    detail = "The API key is valid but lacks the scope for this call."
    records_detail = True


class HttpsRequired(Problem):
    status, reason = 403, "https_required"
    detail = "Plain HTTP is not accepted here. Replace the API key: it was sent unencrypted."


class InvalidUserId(Problem):
    status, reason = 404, "invalid_user_id"
    detail = (
        "Invalid User ID: it must be a string of 1 to 1,024 bytes of UTF-8, not blank and without "
        "NUL, or a whole number up to 2^53."
    )

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(errors=[{"place": "batch.17.userId", "message": cls.detail}])]


class UnknownUser(Problem):
    status, reason = 404, "unknown_user"
    detail = "The user is not registered."


class SuppressedUser(Problem):
    status, reason = 404, "suppressed_user"
    detail = "The user was erased and is suppressed."


class UnknownCohort(Problem):
    status, reason = 404, "unknown_cohort"
    detail = "There is no such cohort or list."


class UnknownSync(Problem):
    status, reason = 404, "unknown_sync"
    detail = "There is no such sync, or it is no longer in the history."


class CohortBeingDeleted(Problem):
    status, reason = 404, "cohort_being_deleted"
    detail = "The cohort is being deleted. To create it again, send it after the deletion."


class NoResync(Problem):
    status, reason = 404, "no_resync"
    detail = "The cohort has no resync. The result of a finished one is kept for a day."


class ResyncUnfinished(Problem):
    status, reason = 409, "resync_unfinished"
    detail = "Another resync or import of the cohort is not finished. Finish or abort it first."


class ResyncEmpty(Problem):
    status, reason = 409, "resync_empty"
    detail = (
        "Nobody was confirmed, or the file has no user ids, so all members would leave. Nothing "
        "has changed. To remove them, set force to true."
    )


class ResyncShrinks(Problem):
    status, reason = 409, "resync_shrinks"
    detail = (
        "More than half of the members would leave. Nothing has changed. To remove them, set "
        "force to true."
    )


class ResyncStoreLost(Problem):
    status, reason = 409, "resync_store_lost"
    detail = (
        "The store has lost data since the resync or import began, including who was confirmed. "
        "Begin again; a resync must be aborted first. Setting force does not help."
    )


class ResyncEnded(Problem):
    status, reason = 409, "resync_ended"
    detail = (
        "The import ended before it was complete: it was aborted, took too long, or its cohort "
        "was deleted or lost. Begin again."
    )


class ResyncFinishing(Problem):
    status, reason = 409, "resync_finishing"
    detail = "The resync is finishing or has finished; it can no longer be aborted."


class UpstreamUnset(Problem):
    status, reason = 409, "upstream_not_configured"
    detail = "AMPLITUDE_KEYS has no keys for this app, so Amplitude cannot be queried."


class ReconcileUnfinished(Problem):
    status, reason = 409, "reconcile_running"
    detail = "A reconcile of this app is running. One runs at a time."


class ExportsUsedUp(Problem):
    status, reason = 409, "export_budget_spent"
    detail = "This month's exports are used up; AMPLITUDE_EXPORTS_PER_MONTH is the limit."


class NoReconcile(Problem):
    status, reason = 404, "no_reconcile"
    detail = "The cohort was not reconciled within the last day."


class InvalidFile(Problem):
    status, reason = 400, "invalid_file"
    detail = "The file cannot be read. Nothing was written."


class CursorExpired(Problem):
    status, reason = 410, "cursor_expired"
    detail = (
        "Changes after this cursor are no longer available. Get a cursor from `latest`, read the "
        "cohorts in full, then continue from that cursor."
    )


class BodyTimeout(Problem):
    status, reason = 408, "body_timeout"
    detail = "The body did not arrive in time."
    records_detail = True


class BodyTooLarge(Problem):
    status, reason = 413, "body_too_large"
    detail = "The body is larger than this service accepts."
    records_detail = True


class UnsupportedMediaType(Problem):
    status, reason = 415, "unsupported_media_type"
    detail = "Content-Type must be application/json in UTF-8, with Content-Encoding gzip or none."
    records_detail = True


class RateLimited(Problem):
    status, reason = 429, "rate_limited"
    detail = (
        "Too many requests with this key or for this app, or too many invalid keys from this "
        "address."
    )

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many requests.", headers={"Retry-After": str(retry_after)})

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(retry_after=1)]


class TooManyFollowers(Problem):
    status, reason = 503, "too_many_followers"
    detail = "This process has reached its limit of change streams."
    records_detail = True

    def __init__(self, per_app: int, in_total: int) -> None:
        super().__init__(
            "This process has reached its limit of change streams: "
            f"{per_app} per app and {in_total} in total.",
            headers={"Retry-After": str(RETRY_AFTER_STORE)},
        )

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(per_app=100, in_total=900)]


class StoreUnavailable(Problem):
    status = 503
    detail = "The store is unavailable. Send the same request again."

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error), headers={"Retry-After": str(RETRY_AFTER_STORE)})
        self.reason = error.reason
        self.log_fields = error.log_fields

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(kind()) for kind in StoreError.__subclasses__()]


def init_app(app: Flask) -> None:
    """Render every error of ``app`` as a problem document."""
    app.register_error_handler(Problem, render)
    app.register_error_handler(StoreError, lambda error: render(StoreUnavailable(error)))
    app.register_error_handler(PositionLost, lambda _: render(CursorExpired()))
    app.register_error_handler(TooManyToSort, lambda _: render(TooManyCohortsToSort()))
    app.register_error_handler(HTTPException, _render_http)
    app.register_error_handler(Exception, _render_unexpected)


def note(problem: Problem) -> None:
    """Add a problem's cause to the request's log event."""
    g.event.update(problem.log_fields, reason=problem.reason)


def render(problem: Problem, **members: Any) -> Response:
    """The reply for a problem, with further members where a protocol needs them."""
    note(problem)
    document = problem.document(g.event["request_id"], **members)
    # Logged, because senders seldom show the reply to anybody.
    if problem.errors:
        first = "{place}: {message}".format(**problem.errors[0])
        g.event["first_error"] = first.removeprefix(": ")[:200]  # no place if about the whole body
    elif problem.records_detail and problem.detail != type(problem).detail:
        g.event["first_error"] = problem.detail
    return Response(
        dumps(document, option=OPT_APPEND_NEWLINE),
        problem.status,
        problem.headers,
        mimetype="application/problem+json",
    )


def _render_http(error: HTTPException) -> Response:
    """Werkzeug's own errors: no such path, wrong method."""
    detail = error.description
    if error.code == 404:
        detail = "There is no such path here. See /docs for all of them."
    elif isinstance(error, MethodNotAllowed) and error.valid_methods:
        methods = sorted({*error.valid_methods} - {"HEAD", "OPTIONS"})
        detail = f"This path accepts {' and '.join(methods)}, not {request.method}."
    response = render(Problem.of_status(error.code or 500, detail))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _render_unexpected(error: Exception) -> Response:
    log_unexpected(error)
    return render(InternalError())


def log_unexpected(error: Exception) -> None:
    """Log a bug together with its request, and report it to Sentry."""
    structlog.get_logger().error("unexpected error", exc_info=error, **g.event)
    sentry.report(error, g.event)
