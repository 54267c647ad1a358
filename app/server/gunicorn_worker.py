"""The service's gunicorn worker: the gevent worker with replies of its own to invalid HTTP.

Such requests never reach the application. They get the same problem document and log event as other
errors.
"""

from __future__ import annotations

from contextlib import suppress
from random import getrandbits
from typing import Any

from gunicorn import util
from gunicorn.http import errors as http
from gunicorn.workers.ggevent import GeventWorker

# Errors of gunicorn's parser with a status other than 400.
_REFUSALS: dict[type[Exception], tuple[int, str]] = {
    http.LimitRequestLine: (414, "The request line is too long."),
    http.LimitRequestHeaders: (431, "There are too many headers, or one is too long."),
    http.ExpectationFailed: (417, "Expect must be 100-continue."),
    http.UnsupportedTransferCoding: (501, "Transfer-Encoding must be chunked."),
}
# These are errors of the application, not of the client.
_RESPONSE_ERRORS = (http.InvalidResponseHeader, http.InvalidResponseHeaderName)
_REPLY = """\
HTTP/1.1 {} {}\r
Connection: close\r
Content-Type: application/problem+json\r
Content-Length: {}\r
X-Request-ID: {}\r
\r
"""


class Worker(GeventWorker):  # type: ignore[misc]  # without types
    """Set as ``worker_class`` in ``gunicorn.conf.py``."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Reply with a problem document, and log the error without the request.

        gunicorn's own method quotes parts of the request, which may contain keys and user ids.
        """
        # Imported late: gunicorn's master imports this module, but nothing that uses sockets.
        import orjson
        import structlog
        from werkzeug.http import HTTP_STATUS_CODES

        from app.errors import Problem

        error = type(exc).__name__
        if isinstance(exc, http.ParseException) and not isinstance(exc, _RESPONSE_ERRORS):
            status, detail = _REFUSALS.get(
                type(exc), (400, f"The request is invalid HTTP: {error}.")
            )
            problem = Problem.of_status(status, detail)
        else:
            self.log.exception("Error handling request")
            problem = Problem("Internal error. It has been logged.")
        request_id = f"{getrandbits(128):032x}"
        logger = structlog.get_logger()
        log = logger.error if problem.status >= 500 else logger.info
        event = {"request_id": request_id, "status": problem.status, "reason": problem.reason}
        log("request", **event, error=error, ip=addr[0] if addr else None)
        body = orjson.dumps(problem.document(request_id))
        title = HTTP_STATUS_CODES[problem.status]
        head = _REPLY.format(problem.status, title, len(body), request_id)
        with suppress(OSError):  # the client has disconnected
            util.write_nonblock(client, head.encode() + body)
