"""Amplitude's Behavioral Cohorts API, served from the cohorts that the simulator syncs.

    with Upstream([ServedCohort("a1b2", "Power users", ids)]) as upstream:
        print(upstream.url, upstream.api_key, upstream.secret_key)

It keeps to the limits that Amplitude documents and can inject faults (`FAULTS`). Large files are
served by a second server, which stands for the storage that Amplitude redirects to.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import json
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Frequency = Literal["minute", "hourly", "daily"]

MAX_USERS = 2_000_000
EXPORTS_PER_MONTH = 500
REQUESTS, WINDOW_SECONDS = 60, 600
CONCURRENT_REQUESTS = 4
ADDRESS_SECONDS = 60.0
# Larger files are served by the storage. Amplitude does not say where its limit is.
INLINE_BYTES = 1 << 20

FAULTS = {
    "forbidden": "every key is refused with 403",
    "throttled": "requests get a 429",
    "unavailable": "requests get a 503",
    "malformed": "the list of cohorts is not JSON",
    "stuck": "an export never finishes",
    "failed": "an export ends as failed",
    "expired": "the storage's addresses have expired when they are used",
    "storage-down": "the storage answers 503",
    "truncated": "the connection breaks in the middle of a file",
    "cut": "a file ends in the middle of a row",
    "double-quoted": "every user id in a file is in quotes of its own",
}
ALWAYS = -1


@dataclass
class SyncInfo:
    """A sync of a cohort as the API reports it. Times are in seconds since the epoch."""

    target: str = "cohort-receiver"
    frequency: Frequency = "hourly"
    last_successful: float | None = None
    last_failure: float | None = None

    def document(self) -> dict[str, Any]:
        """The sync as an entry of `syncMetadata`."""
        return {
            "target": self.target,
            "frequency": self.frequency,
            "last_successful": _iso(self.last_successful),
            "last_failure": _iso(self.last_failure),
            "params": {"mapping_key": "user_id"},
        }


@dataclass
class ServedCohort:
    """A cohort that the API knows.

    `user_ids` are its members with an id, and `anonymous` is the number of those without one.
    Only `discoverable` cohorts are listed and exported. `size` replaces the true size.
    """

    cohort_id: str
    name: str
    user_ids: Sequence[str] = ()
    anonymous: int = 0
    archived: bool = False
    discoverable: bool = True
    syncs: list[SyncInfo] = field(default_factory=list)
    last_computed: float | None = None
    size: int | None = None

    def document(self) -> dict[str, Any]:
        """The cohort as an entry of the list."""
        computed = None if self.last_computed is None else int(self.last_computed)
        return {
            "id": self.cohort_id,
            "name": self.name,
            "size": self.total,
            "archived": self.archived,
            "hidden": False,
            "published": True,
            "lastMod": computed,
            "lastComputed": computed,
            "createdAt": computed,
            "type": "redshift",
            "is_predictive": False,
            "definition": {"countGroup": {"name": "User", "is_computed": False}},
            "syncMetadata": [sync.document() for sync in self.syncs],
        }

    @property
    def total(self) -> int:
        """The size that the API reports, anonymous users included."""
        return len(self.user_ids) + self.anonymous if self.size is None else self.size


@dataclass
class _Job:
    """An export: its file, and when it is ready (by the monotonic clock)."""

    cohort_id: str
    body: bytes
    ready_at: float


class Upstream:
    """The running API, and the storage that it redirects to.

    - `keys`: the pair of API key and secret key that is accepted;
    - `job_seconds`: how long an export takes; `address_seconds`: how long an address of the storage
      is valid; `inline_bytes`: larger files are served by the storage;
    - `max_requests` in `window_seconds`, `concurrent`, `max_exports`, `max_users`: the limits;
    - `retry_after`: the Retry-After of a 429 in seconds, if any.

    `faults` holds how many of the next requests a fault affects; `ALWAYS` means all of them.
    `requests` counts requests by path and `statuses` replies by status. `leaks` has the headers of
    requests that reached the storage with credentials.
    """

    def __init__(
        self,
        cohorts: Iterable[ServedCohort] = (),
        *,
        keys: tuple[str, str] = ("simulated-api-key", "simulated-secret-key"),
        port: int = 0,
        job_seconds: float = 1.0,
        address_seconds: float = ADDRESS_SECONDS,
        inline_bytes: int = INLINE_BYTES,
        max_requests: int = REQUESTS,
        window_seconds: float = WINDOW_SECONDS,
        concurrent: int = CONCURRENT_REQUESTS,
        max_exports: int = EXPORTS_PER_MONTH,
        max_users: int = MAX_USERS,
        retry_after: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.cohorts = {cohort.cohort_id: cohort for cohort in cohorts}
        self.api_key, self.secret_key = keys
        self.job_seconds = job_seconds
        self.address_seconds = address_seconds
        self.inline_bytes = inline_bytes
        self.max_requests = max_requests
        self.window_seconds = window_seconds
        self.concurrent = concurrent
        self.max_exports = max_exports
        self.max_users = max_users
        self.retry_after = retry_after
        self.exports = 0
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.leaks: list[str] = []
        self.most_concurrent = 0
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._times: deque[float] = deque()
        self._open = 0
        self._secret = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._api = _server(port, self, _Api)
        self._storage = _server(0, self, _Storage)

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self._api.server_port}"

    @property
    def storage_url(self) -> str:
        """The address of the storage."""
        return f"http://127.0.0.1:{self._storage.server_port}"

    def start(self) -> None:
        """Serve in threads of this process until `close`."""
        for server in (self._api, self._storage):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        for server in (self._api, self._storage):
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def computed(self, cohort_id: str, user_ids: Sequence[str]) -> None:
        """Record that Amplitude has computed a cohort's members."""
        cohort = self.cohorts[cohort_id]
        cohort.user_ids, cohort.last_computed = user_ids, self._clock()

    def synced(self, cohort_id: str, *, succeeded: bool) -> None:
        """Record the end of a sync of a cohort."""
        for sync in self.cohorts[cohort_id].syncs:
            if succeeded:
                sync.last_successful = self._clock()
            else:
                sync.last_failure = self._clock()

    # Called by the handlers

    def strikes(self, fault: str) -> bool:
        """Whether a fault affects this request; counts down."""
        with self._lock:
            if self.faults[fault] > 0:
                self.faults[fault] -= 1
                return True
            return self.faults[fault] == ALWAYS

    def enter(self) -> bool:
        """Count a request. Returns False if there are too many."""
        with self._lock:
            now = time.monotonic()
            while self._times and now - self._times[0] >= self.window_seconds:
                self._times.popleft()
            self._open += 1
            self.most_concurrent = max(self.most_concurrent, self._open)
            self._times.append(now)
            return len(self._times) <= self.max_requests and self._open <= self.concurrent

    def leave(self) -> None:
        """The request that was counted has ended."""
        with self._lock:
            self._open -= 1

    def begin_export(self, cohort: ServedCohort, columns: Sequence[str]) -> str | None:
        """Begin an export. Returns its id, or None if there were too many this month."""
        with self._lock:
            if self.exports >= self.max_exports:
                return None
            self.exports += 1
        body = _file(cohort, columns, double_quoted=self.strikes("double-quoted"))
        if self.strikes("cut"):
            body = body[: body.index(b',"', len(body) // 2) + 2]
        request_id = secrets.token_urlsafe(6)
        self._jobs[request_id] = _Job(cohort.cohort_id, body, time.monotonic() + self.job_seconds)
        return request_id

    def job(self, request_id: str) -> _Job | None:
        """An export by its id; None if there is none."""
        return self._jobs.get(request_id)

    def address(self, request_id: str) -> str:
        """A new address of an export's file, valid for `address_seconds`."""
        expires = time.time() + self.address_seconds
        if self.strikes("expired"):
            expires = time.time() - 1
        query = f"Expires={expires:.3f}&Signature={self.signature(request_id, f'{expires:.3f}')}"
        return f"{self.storage_url}/exports/{request_id}.csv?{query}"

    def signature(self, request_id: str, expires: str) -> str:
        """The signature of an address."""
        text = f"{request_id} {expires}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Connections that arrive at once are queued, so that only the limits refuse requests.
    request_queue_size = 64

    def __init__(self, port: int, upstream: Upstream, handler: type[BaseHTTPRequestHandler]):
        self.upstream = upstream
        super().__init__(("127.0.0.1", port), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up


def _server(port: int, upstream: Upstream, handler: type[BaseHTTPRequestHandler]) -> _Server:
    return _Server(port, upstream, handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The head and the body of a reply are sent separately.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, body: bytes, media_type: str, **headers: str) -> None:
        with self.server.upstream._lock:
            self.server.upstream.statuses[status] += 1
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if media_type == "text/csv" and self.server.upstream.strikes("truncated"):
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def json(self, status: int, document: Any, **headers: str) -> None:
        self.reply(status, json.dumps(document).encode(), "application/json", **headers)


class _Api(_Handler):
    def do_GET(self) -> None:
        upstream = self.server.upstream
        path = urlsplit(self.path).path
        with upstream._lock:
            upstream.requests[path] += 1
        is_allowed = upstream.enter()
        try:
            if not is_allowed or upstream.strikes("throttled"):
                self._throttle()
            elif upstream.strikes("unavailable"):
                self.json(503, {"error": "unavailable"})
            elif not self._is_authorised() or upstream.strikes("forbidden"):
                self.json(403, {"error": {"http_code": 403, "type": "invalid_credentials"}})
            else:
                self._route(path.strip("/").split("/"))
        finally:
            upstream.leave()

    def _throttle(self) -> None:
        seconds = self.server.upstream.retry_after
        headers = {} if seconds is None else {"Retry_After": str(seconds)}
        self.json(429, {"error": "too many requests"}, **headers)

    def _is_authorised(self) -> bool:
        scheme, _, sent = self.headers.get("Authorization", "").partition(" ")
        pair = f"{self.server.upstream.api_key}:{self.server.upstream.secret_key}"
        wanted = base64.b64encode(pair.encode()).decode()
        return scheme == "Basic" and hmac.compare_digest(sent.encode(), wanted.encode())

    def _route(self, parts: list[str]) -> None:
        upstream = self.server.upstream
        if parts == ["api", "3", "cohorts"]:
            self._list()
        elif parts == ["api", "3", "cohorts", "usage"]:
            self.json(200, {"limit": upstream.max_exports, "count": upstream.exports})
        elif parts[:4] == ["api", "5", "cohorts", "request"] and len(parts) == 5:
            self._begin_export(unquote(parts[4]))
        elif parts[:4] == ["api", "5", "cohorts", "request-status"] and len(parts) == 5:
            self._status(unquote(parts[4]))
        elif parts[:4] == ["api", "5", "cohorts", "request"] and parts[5:] == ["file"]:
            self._file(unquote(parts[4]))
        else:
            self.json(404, {"error": "not found"})

    def _list(self) -> None:
        upstream = self.server.upstream
        if upstream.strikes("malformed"):
            self.reply(200, b"<html>Sign in</html>", "text/html")
            return
        query = parse_qs(urlsplit(self.path).query)
        cohorts = [c.document() for c in upstream.cohorts.values() if c.discoverable]
        if query.get("includeSyncInfo") != ["true"]:
            for cohort in cohorts:
                del cohort["syncMetadata"]
        self.json(200, {"cohorts": cohorts})

    def _begin_export(self, cohort_id: str) -> None:
        upstream = self.server.upstream
        cohort = upstream.cohorts.get(cohort_id)
        if cohort is None or not cohort.discoverable:
            self.json(404, {"error": "cohort not found"})
            return
        if cohort.total > upstream.max_users:
            self.json(400, {"error": "cohort is too large to export"})
            return
        query = parse_qs(urlsplit(self.path).query)
        columns = query.get("propKeys", []) if query.get("props") == ["1"] else []
        request_id = upstream.begin_export(cohort, columns)
        if request_id is None:
            self._throttle()
        else:
            self.json(202, {"request_id": request_id, "cohort_id": cohort_id})

    def _status(self, request_id: str) -> None:
        upstream = self.server.upstream
        job = upstream.job(request_id)
        if job is None:
            self.json(404, {"error": "unknown request id"})
            return
        about = {"request_id": request_id, "cohort_id": job.cohort_id}
        if upstream.strikes("failed"):
            self.json(200, {**about, "async_status": "JOB FAILED"})
        elif time.monotonic() < job.ready_at or upstream.strikes("stuck"):
            self.json(202, {**about, "async_status": "JOB INPROGRESS"})
        else:
            self.json(200, {**about, "async_status": "JOB COMPLETED"})

    def _file(self, request_id: str) -> None:
        upstream = self.server.upstream
        job = upstream.job(request_id)
        if job is None or time.monotonic() < job.ready_at:
            self.json(404, {"error": "no such file"})
        elif len(job.body) > upstream.inline_bytes:
            self.reply(302, b"", "text/plain", Location=upstream.address(request_id))
        else:
            self.reply(200, job.body, "text/csv")


class _Storage(_Handler):
    """Storage for large files. Like S3, it refuses a signed address together with credentials."""

    def do_GET(self) -> None:
        upstream = self.server.upstream
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        request_id = parts.path.removeprefix("/exports/").removesuffix(".csv")
        expires, job = query.get("Expires", "0"), upstream.job(request_id)
        if upstream.strikes("storage-down"):
            self._refuse(503, "SlowDown")
        elif "Authorization" in self.headers or "Cookie" in self.headers:
            upstream.leaks.append(str(self.headers))
            self._refuse(400, "InvalidArgument")
        elif job is None or query.get("Signature") != upstream.signature(request_id, expires):
            self._refuse(403, "SignatureDoesNotMatch")
        elif float(expires) < time.time():
            self._refuse(403, "AccessDenied")
        else:
            self.reply(200, job.body, "text/csv")

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code></Error>".encode()
        self.reply(status, body, "application/xml")


def _file(cohort: ServedCohort, columns: Sequence[str], *, double_quoted: bool) -> bytes:
    """A cohort as a CSV file, anonymous users among the others."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(("amplitude_id", "user_id", *columns))
    every = len(cohort.user_ids) // (cohort.anonymous + 1) + 1
    anonymous = iter(range(cohort.anonymous))
    empty = [""] * len(columns)
    for number, user_id in enumerate(cohort.user_ids):
        shown = f'"{user_id}"' if double_quoted else user_id
        writer.writerow((10**11 + number, shown, *(f"{c}:{user_id}" for c in columns)))
        if number % every == every - 1 and (other := next(anonymous, None)) is not None:
            writer.writerow((10**12 + other, "", *empty))
    writer.writerows((10**12 + other, "", *empty) for other in anonymous)
    return text.getvalue().encode()


def _iso(at: float | None) -> str | None:
    """A time as the API writes it: ISO 8601 with an offset."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
