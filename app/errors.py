"""Every error that a caller can get: each knows its status and its reason. One renderer.

The body is a problem document (RFC 9457). ``reason`` is short and machine-readable; the same word
stands in the log line of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import structlog
from flask import Flask, Response, g, request
from orjson import dumps
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.http import HTTP_STATUS_CODES

from app.store import PlaceLost, StoreError, TooManyToSort
from app.telemetry import sentry

# How long a sender should wait before it tries again while the store can't be had, in seconds.
RETRY_AFTER_STORE = 5


class Problem(Exception):
    """An error with a status, a reason and, where they help, places in the request.

    Args:
        detail: what is wrong and what to do about it, for people.
        errors: what is wrong at each place of the body, as ``{"place": …, "message": …}``.
        headers: further headers of the reply.
    """

    status = 500
    reason = "internal_error"

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})

    @classmethod
    def examples(cls) -> list[Self]:
        """What it may look like, for the API's description."""
        return [cls()]

    @classmethod
    def of_status(cls, status: int, detail: str | None) -> Self:
        """A problem that HTTP itself has a word for, which is the reason."""
        problem = cls(detail)
        problem.status = status
        problem.reason = HTTP_STATUS_CODES[status].lower().replace(" ", "_")
        return problem

    def document(self, request_id: str, **members: Any) -> dict[str, Any]:
        """The body of the reply, with further members where a protocol wants them."""
        errors = {"errors": self.errors} if self.errors else {}
        return {
            "type": "about:blank",
            "title": HTTP_STATUS_CODES[self.status],
            "status": self.status,
            "reason": self.reason,
            "detail": self.detail or (self.__doc__ or "").strip(),
            "request_id": request_id,
            **members,
            **errors,
        }


class InternalError(Problem):
    """An error in the service. It has been logged."""


class InvalidJson(Problem):
    """The body is not JSON in UTF-8."""

    status, reason = 400, "invalid_json"


class InvalidEncoding(Problem):
    """The body is cut off, or does not decompress."""

    status, reason = 400, "invalid_encoding"


class InvalidPayload(Problem):
    """The body is JSON but not what this call takes. Nothing was written."""

    status, reason = 400, "invalid_payload"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(errors=[{"place": "batch.17.userId", "message": "Must not be empty."}])]


class UnsupportedType(Problem):
    """Only identify calls are taken; this one says nothing about cohorts."""

    status, reason = 400, "unsupported_type"


class InvalidParameter(Problem):
    """The query or the path is not what this call takes."""

    status, reason = 400, "invalid_parameter"

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(errors=[{"place": "limit", "message": "Not a valid integer."}])]


class TooManyCohorts(Problem):
    """This app has too many cohorts to sort them so. Sort by id, which has no limit."""

    status, reason = 400, "too_many_cohorts"


class NotFound(Problem):
    """There is no such path. An id that is empty can't be asked for."""

    status, reason = 404, "not_found"


class MissingCredentials(Problem):
    """No key was sent."""

    status, reason = 401, "missing_credentials"


class NotLoggedIn(MissingCredentials):
    """There is no session, or it is over."""


class InvalidCredentials(Problem):
    """The API key is not known, or does not belong to the app in app_id."""

    status, reason = 401, "invalid_credentials"


class ExpiredKey(Problem):
    """The API key has expired. Ask the operator for a new one."""

    status, reason = 401, "expired_key"


class RevokedKey(Problem):
    """The API key was revoked. Ask the operator for a new one."""

    status, reason = 401, "revoked_key"


class MissingScope(Problem):
    """The key is good but may not do this."""

    status, reason = 403, "missing_scope"


class HttpsRequired(Problem):
    """This call came by plain HTTP, which is not taken here. Make a new key: this one was seen."""

    status, reason = 403, "https_required"


class UnknownUser(Problem):
    """The user is not registered here."""

    status, reason = 404, "unknown_user"


class SuppressedUser(Problem):
    """The user was erased for good."""

    status, reason = 404, "suppressed_user"


class UnknownCohort(Problem):
    """There is no such cohort, or list."""

    status, reason = 404, "unknown_cohort"


class UnknownSync(Problem):
    """There is no such sync, or it has left the history."""

    status, reason = 404, "unknown_sync"


class CohortBeingDeleted(Problem):
    """The cohort is being deleted. Send it again later to start it afresh."""

    status, reason = 404, "cohort_being_deleted"


class CursorExpired(Problem):
    """Changes after this cursor are gone. Read the cohorts anew, then follow from latest."""

    status, reason = 410, "cursor_expired"


class BodyTimeout(Problem):
    """The body did not arrive in time."""

    status, reason = 408, "body_timeout"


class BodyTooLarge(Problem):
    """The body is larger than this service takes."""

    status, reason = 413, "body_too_large"


class UnsupportedMediaType(Problem):
    """The body is not announced as JSON in UTF-8, plain or gzip."""

    status, reason = 415, "unsupported_media_type"


class RateLimited(Problem):
    """Too many requests with this key, or too many bad keys from this address."""

    status, reason = 429, "rate_limited"

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many requests.", headers={"Retry-After": str(retry_after)})

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(retry_after=1)]


class TooManyFollowers(Problem):
    """This process has as many followers of the change feed as it takes."""

    status, reason = 503, "too_many_followers"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The change feed has {most} followers here already.",
            headers={"Retry-After": str(RETRY_AFTER_STORE)},
        )

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(most=100)]


class StoreUnavailable(Problem):
    """The store can't be written to or read from now. Send the same again."""

    status = 503

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error), headers={"Retry-After": str(RETRY_AFTER_STORE)})
        self.reason = error.reason

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(kind(kind.__doc__)) for kind in StoreError.__subclasses__()]


def init_app(app: Flask) -> None:
    """Render every error of ``app`` as a problem document."""
    app.register_error_handler(Problem, render)
    app.register_error_handler(StoreError, lambda error: render(StoreUnavailable(error)))
    app.register_error_handler(PlaceLost, lambda _: render(CursorExpired()))
    app.register_error_handler(TooManyToSort, lambda _: render(TooManyCohorts()))
    app.register_error_handler(HTTPException, _render_http)
    app.register_error_handler(Exception, _render_unexpected)


def render(problem: Problem, **members: Any) -> Response:
    """The reply for a problem, with further members where a protocol wants them."""
    g.event["reason"] = problem.reason
    document = problem.document(g.event["request_id"], **members)
    if problem.errors:
        # For whoever reads the log: the sender has the list, but seldom shows it to anybody.
        g.event["first_error"] = "{place}: {message}".format(**problem.errors[0])[:200]
    return Response(
        dumps(document), problem.status, problem.headers, mimetype="application/problem+json"
    )


def _render_http(error: HTTPException) -> Response:
    """Werkzeug's own errors: no such path, wrong method."""
    detail = error.description
    if error.code == 404:
        detail = "There is no such path here. /docs shows all that there are."
    elif isinstance(error, MethodNotAllowed) and error.valid_methods:
        taken = sorted({*error.valid_methods} - {"HEAD", "OPTIONS"})
        detail = f"This path takes {' and '.join(taken)}, not {request.method}."
    response = render(Problem.of_status(error.code or 500, detail))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _render_unexpected(error: Exception) -> Response:
    log_unexpected(error)
    return render(InternalError())


def log_unexpected(error: Exception) -> None:
    """Log a bug, with what is known of the request."""
    structlog.get_logger().error("unexpected error", exc_info=error, **g.event)
    sentry.report(error, g.event)
