"""The gunicorn worker of the service: gevent's, which sends a short reply in one piece.

Requests that break HTTP never get as far as the service. They are answered here, as it answers.
"""

from __future__ import annotations

from contextlib import suppress
from random import getrandbits
from typing import Any

from gunicorn import util
from gunicorn.http import errors as http
from gunicorn.workers.ggevent import GeventWorker

# What gunicorn refuses by another status than 400.
_REFUSALS: dict[type[Exception], tuple[int, str]] = {
    http.LimitRequestLine: (414, "The request line is longer than this service takes."),
    http.LimitRequestHeaders: (431, "There are more headers, or longer ones, than are taken here."),
    http.ExpectationFailed: (417, "Expect may only be 100-continue."),
    http.UnsupportedTransferCoding: (501, "Transfer-Encoding may only be chunked."),
}
# The service would send a header that can't be one.
_OF_THE_SERVICE = (http.InvalidResponseHeader, http.InvalidResponseHeaderName)
_REPLY = """\
HTTP/1.1 {} {}\r
Connection: close\r
Content-Type: application/problem+json\r
Content-Length: {}\r
X-Request-ID: {}\r
\r
"""


class HeadHeld:
    """A connection whose first piece waits for the second: a reply's head for its body's begin.

    gunicorn sends the two apart. For a reply of a hundred bytes, sending is a good part of the
    work, and it wakes up the client twice.
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
            # Nearly always all of it; `sendall` first asks how large the system's buffer is.
            sent = self._connection.send(data)
            if sent < len(data):
                self._connection.sendall(memoryview(data)[sent:])
        else:
            self._connection.sendall(data)

    def flush(self) -> None:
        """Send a head that no body has followed."""
        if self._head is not None:
            head, self._head = self._head, None
            self._connection.sendall(head)

    def __getattr__(self, name: str) -> Any:
        # Whatever else is done with the connection comes after the head.
        self.flush()
        return getattr(self._connection, name)


class Worker(GeventWorker):  # type: ignore[misc]  # without types
    """What gunicorn.conf.py names; its ``post_request`` flushes the reply's connection."""

    def init_process(self) -> None:
        # gunicorn looks each setting up in two steps of Python, some thirty times a request.
        settings = self.cfg.settings
        self.cfg.__dict__.update({name: setting.get() for name, setting in settings.items()})
        super().init_process()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        super().handle_request(listener_name, req, HeadHeld(sock), addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer with a problem document, and log it without what was sent.

        gunicorn's own quotes parts of the request, and with them keys and users' ids.
        """
        # Only now: gunicorn's master has this module too, and loads nothing that uses sockets.
        import orjson
        import structlog
        from werkzeug.http import HTTP_STATUS_CODES

        from app.errors import Problem

        error = type(exc).__name__
        if isinstance(exc, http.ParseException) and not isinstance(exc, _OF_THE_SERVICE):
            status, detail = _REFUSALS.get(type(exc), (400, f"This is not good HTTP: {error}."))
            problem = Problem.of_status(status, detail)
        else:
            self.log.exception("Error handling request")
            problem = Problem("An error in the service. It has been logged.")
        request_id = f"{getrandbits(128):032x}"
        logger = structlog.get_logger()
        log = logger.error if problem.status >= 500 else logger.info
        told = {"request_id": request_id, "status": problem.status, "reason": problem.reason}
        log("request", **told, error=error, ip=addr[0] if addr else None)
        body = orjson.dumps(problem.document(request_id))
        title = HTTP_STATUS_CODES[problem.status]
        head = _REPLY.format(problem.status, title, len(body), request_id)
        with suppress(OSError):  # it has hung up
            util.write_nonblock(client, head.encode() + body)
