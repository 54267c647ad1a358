"""The service's gunicorn worker, based on the gevent worker.

A short reply is sent with one system call; clients must send heads and read replies in time; and
invalid HTTP, which never reaches the application, gets the same problem document and log event as
other errors. Settings are cached, idle connections are closed when the worker exits, and errors of
greenlets are logged instead of printed.
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, suppress
from random import getrandbits
from typing import Any

import gevent
from gevent import getcurrent
from gunicorn import util
from gunicorn.http import errors as http
from gunicorn.workers.ggevent import GeventWorker

from app.server.connection import Connection, Limits

_EXIT_CHECK_SECONDS = 0.2
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


def _log_unhandled(context: Any, kind: Any, value: Any, tb: Any) -> None:
    """Log an error that ended a greenlet or a callback. gevent would print a traceback."""
    import structlog

    log = structlog.get_logger()
    if isinstance(value, OSError) and value.errno in (errno.EMFILE, errno.ENFILE):
        log.error("cannot accept connections", reason="out_of_file_descriptors")
    else:
        log.error("unhandled error", exc_info=value)


class BufferedHead:
    """A connection that sends the head of a reply together with the start of the body.

    gunicorn sends the two separately, which costs a system call and wakes the client twice.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._head: bytes | None = None
        self._is_first = True

    def sendall(self, data: bytes) -> None:
        if self._is_first:
            self._head, self._is_first = data, False
        elif self._head is not None:
            data, self._head = self._head + data, None
            # Nearly always sends all of it; `sendall` would always create a memoryview.
            sent = self._connection.send(data)
            if sent < len(data):
                self._connection.sendall(memoryview(data)[sent:])
        else:
            self._connection.sendall(data)

    def flush(self) -> None:
        """Send the head of a reply without a body."""
        if self._head is not None:
            head, self._head = self._head, None
            self._connection.sendall(head)

    def __getattr__(self, name: str) -> Any:
        # Any other use of the connection comes after the head.
        self.flush()
        return getattr(self._connection, name)


class Worker(GeventWorker):  # type: ignore[misc]  # without types
    """Set as ``worker_class``; the hook ``post_request`` flushes each reply's connection.

    Attributes:
        limits: of its clients' connections; set by the hook ``post_fork``.
    """

    limits: Limits

    def init_process(self) -> None:
        # Cached: gunicorn reads settings about thirty times per request, each through a property.
        settings = self.cfg.settings
        self.cfg.__dict__.update({name: setting.get() for name, setting in settings.items()})
        self._connections: set[Connection] = set()
        super().init_process()

    def run(self) -> None:
        gevent.get_hub().print_exception = _log_unhandled  # type: ignore[assignment]
        gevent.spawn(self._hang_up_at_exit)
        super().run()

    def _hang_up_at_exit(self) -> None:
        """Close idle connections when the worker exits, or it would wait for their next request."""
        while self.alive:
            gevent.sleep(_EXIT_CHECK_SECONDS)
        for connection in self._connections:
            gevent.get_hub().loop.run_callback(connection.end_idle)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        connection = Connection(client, self.limits)
        self._connections.add(connection)
        try:
            current: Any = getcurrent()
            current.connection = connection
            super().handle(listener, connection, addr)
        finally:
            self._connections.discard(connection)

    def timeout_ctx(self) -> AbstractContextManager[None]:
        current: Any = getcurrent()
        connection: Connection = current.connection
        return connection.awaiting_head(is_leaving=not self.alive)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        super().handle_request(listener_name, req, BufferedHead(sock), addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Reply with a problem document, and log the error without the request.

        gunicorn's own method quotes parts of the request, which may contain keys and user ids.
        """
        # Imported late: gunicorn's master imports this module, and must not import sockets.
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
        body = orjson.dumps(problem.document(request_id), option=orjson.OPT_APPEND_NEWLINE)
        title = HTTP_STATUS_CODES[problem.status]
        head = _REPLY.format(problem.status, title, len(body), request_id)
        with suppress(OSError):  # the client has disconnected
            util.write_nonblock(client, head.encode() + body)
