"""One HTTP connection to a receiver, kept alive, that can also be made to misbehave.

`http.client` is used directly: measured against a sink on the same two cores, it leaves several
times the headroom that the simulator needs, and it lets a body be cut or slowed down half way.
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

# What can become of a request that got no answer.
REFUSED = "refused"  # no connection came about: the receiver has seen nothing
CUT = "cut"  # we closed before the body was whole: the receiver must apply nothing
TIMEOUT = "timeout"  # whole request sent, no answer in time: it may still be applied
CLOSED = "closed"  # whole request sent, connection lost: it may have been applied

SLOW_PIECES = 10


class BadTarget(ValueError):
    """The receiver can't be called so, for its address or for the headers; the text says why."""


@dataclass(frozen=True)
class Target:
    """A receiver: where it is and what it is told about who calls.

    `url` is the base address (`https://host[:port][/prefix]`). `timeout` is in seconds and holds
    for the whole of a request, from its beginning to the last byte of the answer (for a body that
    is slowed down on purpose, from its end).
    """

    url: str
    key: str | None = None
    app_id: str | None = None
    auth: Auth = "basic"
    timeout: float = 30.0
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Return the headers of a call: the content type and the credentials."""
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
    """What came back: either a `status` and a `body`, or an `error` (one of this module's words).

    `seconds` runs from the last byte of the request to the last one of the answer when the body was
    slowed down on purpose, and else from the start of the call (a new connection included).
    """

    status: int | None
    body: bytes
    seconds: float
    error: str | None = None
    detail: str = ""
    retry_after: float | None = None
    """Seconds to wait before the next request, where the receiver has said so."""

    @property
    def ok(self) -> bool:
        """Whether the receiver said that it has applied the request."""
        return self.status is not None and 200 <= self.status < 300

    def json(self) -> Any:
        """Return the body read as JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def __str__(self) -> str:
        return str(self.status) if self.status is not None else f"{self.error} ({self.detail})"


class Wire:
    """One keep-alive connection to a `Target`; not to be shared by two threads."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadTarget(f"{target.url!r} is not an http:// or https:// address")
        if parts.query or parts.fragment:
            raise BadTarget(f"{target.url!r} must end with the path: no '?' or '#'")
        try:
            port = parts.port
        except ValueError as error:
            raise BadTarget(f"{target.url!r}: {error}") from None
        self.target = target
        self._prefix = escaped(parts.path.rstrip("/"))
        self._headers = _sendable(target)
        self._conn: http.client.HTTPConnection
        if parts.scheme == "https":
            self._conn = http.client.HTTPSConnection(
                parts.hostname, port, timeout=target.timeout, context=ssl.create_default_context()
            )
        else:
            self._conn = http.client.HTTPConnection(parts.hostname, port, timeout=target.timeout)
        self._conn.response_class = _Response

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._conn.close()

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Reply:
        """Send `body` to `path` and return what came back. Raises nothing for what a network can
        do.
        """
        return self._call(method, path, body, headers or {}, slow=0.0)

    def post_slowly(
        self, path: str, body: bytes, seconds: float, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Like `post`, with the body sent in pieces over `seconds`."""
        return self._call("POST", path, body, headers or {}, slow=seconds)

    def post_half(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Announce the whole body, send half of it and reset the connection. The error is `CUT`."""
        started = time.perf_counter()
        try:
            self._begin("POST", path, len(body), headers or {})
            self._conn.send(body[: len(body) // 2])
            if (sock := self._conn.sock) is not None:
                # Not a polite end but a reset, as from a sender that died.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            detail = "half a body sent"
        except (OSError, http.client.HTTPException) as error:
            detail = describe(error)
        self._conn.close()
        return Reply(None, b"", time.perf_counter() - started, CUT, detail)

    def _call(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], slow: float
    ) -> Reply:
        started = time.perf_counter()
        try:
            self._drop_if_stale()
            if self._conn.sock is None:
                self._conn.connect()
            self._conn.sock.settimeout(self.target.timeout)
        except (OSError, http.client.HTTPException) as error:
            self._conn.close()
            return Reply(None, b"", time.perf_counter() - started, REFUSED, describe(error))
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
            # A receiver may answer before it has read everything (401, 413) and close: its answer,
            # if there is one, is still to be read below.
            pass
        except (OSError, http.client.HTTPException) as error:
            return self._lost(error, started)
        try:
            left = started + self.target.timeout - time.perf_counter()
            self._conn.sock.settimeout(max(left, 0.001))
            response = self._conn.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            return self._lost(error, started)
        seconds, wait = time.perf_counter() - started, response.getheader("Retry-After", "")
        retry_after = float(wait) if re.fullmatch("[0-9]{1,9}", wait) else None
        return Reply(response.status, content, seconds, retry_after=retry_after)

    def _begin(self, method: str, path: str, length: int, headers: Mapping[str, str]) -> None:
        self._conn.putrequest(method, self._prefix + path, skip_accept_encoding=True)
        for name, value in {**self._headers, **headers}.items():
            self._conn.putheader(name, value)
        self._conn.putheader("Content-Length", str(length))
        self._conn.endheaders()

    def _lost(self, error: Exception, started: float) -> Reply:
        self._conn.close()
        kind = TIMEOUT if isinstance(error, TimeoutError) else CLOSED
        return Reply(None, b"", time.perf_counter() - started, kind, describe(error))

    def _drop_if_stale(self) -> None:
        """Close a connection that the receiver has closed meanwhile, so that the next call opens a
        new one.

        Every client does this; without it the end of the receiver's keep-alive would count as a
        failure.
        """
        sock = self._conn.sock
        if sock is None:
            return
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if poll.poll(0):
            self._conn.close()


class _Response(http.client.HTTPResponse):
    """An answer that must be there as a whole before its socket's timeout has passed.

    The socket itself grants that time to every piece, so to an answer that drips for ever.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_InTime(sock, self.fp.detach()))


class _InTime(io.RawIOBase):
    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw
        self._until = time.perf_counter() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.perf_counter()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def escaped(path: str) -> str:
    """Return a path with what may not stand in a request percent-encoded."""
    return quote(path, safe="/%:;=@!$&'()*+,?~", errors="surrogateescape")


def _sendable(target: Target) -> dict[str, str]:
    """Return the target's headers, or raise `BadTarget` for those that HTTP can't carry."""
    name = "the key"
    try:
        headers = target.headers()
        trial = http.client.HTTPConnection("localhost")  # not opened
        trial.putrequest("POST", "/")
        for name, value in headers.items():
            trial.putheader(name, value)
    except ValueError as error:
        raise BadTarget(f"{name!r} can't be sent as a header: {error}") from None
    return headers


def describe(error: Exception) -> str:
    """Return one line that says what went wrong."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
