"""A keep-alive HTTP connection to a receiver that can cut off or slow down its request bodies.

It uses `http.client` directly: that is fast enough for the simulator not to be the bottleneck
(`bench-sink` measures it) and allows sending half a body.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import select
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlsplit

Auth = Literal["basic", "headers", "bearer", "none"]
AUTHS: tuple[Auth, ...] = ("basic", "headers", "bearer", "none")

USER_AGENT = "Amplitude-Cohort-Simulator/1.0"
WEBHOOK_USER_AGENT = "Amplitude/Webhook/1.0"

# Why a request got no reply.
REFUSED = "refused"  # no connection: the receiver saw nothing
CUT = "cut"  # we closed half way through the body: the receiver must not apply it
TIMEOUT = "timeout"  # request sent in full, no reply in time: it may still be applied
CLOSED = "closed"  # request sent in full, connection lost: it may have been applied

SLOW_PIECES = 10


class InvalidTarget(ValueError):
    """The receiver's address or a header is invalid."""


@dataclass(frozen=True)
class Target:
    """A receiver's address and the credentials to send.

    `url` is the base address (`https://host[:port][/prefix]`). `timeout` covers the whole request,
    in seconds: from its start, or from the end of a slowed-down body, to the last byte of the
    reply.
    """

    url: str
    key: str | None = None
    app_id: str | None = None
    auth: Auth = "basic"
    timeout: float = 30.0
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Return the headers of every request: content type, user agent and credentials."""
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if self.key is not None:
            if self.auth == "basic":
                token = base64.b64encode(f"{self.key}:".encode()).decode()
                headers["Authorization"] = f"Basic {token}"
            elif self.auth == "bearer":
                headers["Authorization"] = f"Bearer {self.key}"
            elif self.auth == "headers":
                headers["api_key"] = self.key
                if self.app_id is not None:
                    headers["app_id"] = self.app_id
        return headers | dict(self.extra_headers)


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to a request, or the lack of one.

    Either `status` and `body` are set, or `error` is: `REFUSED`, `CUT`, `TIMEOUT` or `CLOSED`.
    `seconds` is the time from the start of the request, a new connection included, or from the end
    of a slowed-down body, to the last byte of the reply.
    """

    status: int | None
    body: bytes
    seconds: float
    error: str | None = None
    detail: str = ""
    retry_after: float | None = None
    """The `Retry-After` header, if it is a number of seconds."""

    @property
    def ok(self) -> bool:
        """Whether the receiver acknowledged the request (2xx)."""
        return self.status is not None and 200 <= self.status < 300

    def json(self) -> Any:
        """Return the parsed body, or None if it is not valid JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def __str__(self) -> str:
        return str(self.status) if self.status is not None else f"{self.error} ({self.detail})"


class Connection:
    """One keep-alive connection to a `Target`. Not thread-safe."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidTarget(f"{target.url!r} is not an http:// or https:// address")
        if parts.query or parts.fragment:
            raise InvalidTarget(f"{target.url!r} must not have a query or a fragment")
        try:
            port = parts.port
        except ValueError as error:
            raise InvalidTarget(f"{target.url!r}: {error}") from None
        self.target = target
        self._prefix = percent_encode(parts.path.rstrip("/"))
        self._headers = _checked_headers(target)
        self._conn: http.client.HTTPConnection
        if parts.scheme == "https":
            self._conn = http.client.HTTPSConnection(
                parts.hostname, port, timeout=target.timeout, context=ssl.create_default_context()
            )
        else:
            self._conn = http.client.HTTPConnection(parts.hostname, port, timeout=target.timeout)
        self._conn.response_class = _TimedResponse

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._conn.close()

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Reply:
        """Send `body` to `path`. Network failures are returned as a `Reply`, never raised."""
        return self._send(method, path, body, headers or {}, slow=0.0)

    def post_slowly(
        self, path: str, body: bytes, seconds: float, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Like `post`, with the body sent in pieces over `seconds`."""
        return self._send("POST", path, body, headers or {}, slow=seconds)

    def post_truncated(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send half of the announced body and reset the connection. The error is `CUT`."""
        started = time.perf_counter()
        try:
            self._begin("POST", path, len(body), headers or {})
            self._conn.send(body[: len(body) // 2])
            if (sock := self._conn.sock) is not None:
                # Lingering for 0 seconds resets the connection, as when a sender crashes.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            detail = "half a body sent"
        except (OSError, http.client.HTTPException) as error:
            detail = describe_error(error)
        self._conn.close()
        return Reply(None, b"", time.perf_counter() - started, CUT, detail)

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], slow: float
    ) -> Reply:
        started = time.perf_counter()
        try:
            self._close_if_stale()
            if self._conn.sock is None:
                self._conn.connect()
            self._conn.sock.settimeout(self.target.timeout)
        except (OSError, http.client.HTTPException) as error:
            self._conn.close()
            return Reply(None, b"", time.perf_counter() - started, REFUSED, describe_error(error))
        try:
            if slow:
                self._begin(method, path, len(body), headers)
                size = max(1, -(-len(body) // SLOW_PIECES))
                for at in range(0, len(body), size):
                    time.sleep(slow / SLOW_PIECES)
                    self._conn.send(body[at : at + size])
                started = time.perf_counter()
            else:
                all_headers = {**self._headers, **headers} if headers else self._headers
                self._conn.request(method, self._prefix + path, body, all_headers)
        except (ConnectionResetError, BrokenPipeError):
            # A receiver may reply (401, 413) and close before it has read the body. That reply is
            # read below.
            pass
        except (OSError, http.client.HTTPException) as error:
            return self._failed(error, started)
        try:
            left = started + self.target.timeout - time.perf_counter()
            self._conn.sock.settimeout(max(left, 0.001))
            response = self._conn.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            return self._failed(error, started)
        seconds = time.perf_counter() - started
        wait = response.getheader("Retry-After", "")
        retry_after = float(wait) if re.fullmatch("[0-9]{1,9}", wait) else None
        return Reply(response.status, content, seconds, retry_after=retry_after)

    def _begin(self, method: str, path: str, length: int, headers: Mapping[str, str]) -> None:
        self._conn.putrequest(method, self._prefix + path, skip_accept_encoding=True)
        for name, value in {**self._headers, **headers}.items():
            self._conn.putheader(name, value)
        self._conn.putheader("Content-Length", str(length))
        self._conn.endheaders()

    def _failed(self, error: Exception, started: float) -> Reply:
        self._conn.close()
        kind = TIMEOUT if isinstance(error, TimeoutError) else CLOSED
        return Reply(None, b"", time.perf_counter() - started, kind, describe_error(error))

    def _close_if_stale(self) -> None:
        """Close our end if the receiver has closed its own.

        As in every HTTP client: the end of the receiver's keep-alive is not a failure.
        """
        sock = self._conn.sock
        if sock is None:
            return
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if poll.poll(0):
            self._conn.close()


class _TimedResponse(http.client.HTTPResponse):
    """A response that must be complete before the socket's timeout has passed.

    A socket's timeout applies to each read, so a response that trickles in could take forever.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_DeadlineReader(sock, self.fp.detach()))


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw
        self._deadline = time.perf_counter() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.perf_counter()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def percent_encode(path: str) -> str:
    """Percent-encode the characters of `path` that a request line can't hold."""
    return quote(path, safe="/%:;=@!$&'()*+,?~", errors="surrogateescape")


def _checked_headers(target: Target) -> dict[str, str]:
    """Return the target's headers. Raises `InvalidTarget` if one can't be sent over HTTP."""
    name = "the key"
    try:
        headers = target.headers()
        trial = http.client.HTTPConnection("localhost")  # not opened
        trial.putrequest("POST", "/")
        for name, value in headers.items():
            trial.putheader(name, value)
    except ValueError as error:
        raise InvalidTarget(f"{name!r} can't be sent as a header: {error}") from None
    return headers


def describe_error(error: Exception) -> str:
    """Return the type and text of an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
