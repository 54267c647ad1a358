"""A client of Amplitude's Behavioral Cohorts API.

Replies are read with care: any member may be missing or have another type. docs/upstream.md says
what is known of the API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import urllib3
from urllib3.util import Retry, Timeout, make_headers

from app.cohorts.upstream import UpstreamCohort
from app.upstream.errors import (
    NoDiskSpace,
    UpstreamBadReply,
    UpstreamExportFailed,
    UpstreamExportTimeout,
    UpstreamFileIncomplete,
    UpstreamForbidden,
    UpstreamNotListed,
    UpstreamThrottled,
    UpstreamUnavailable,
    UpstreamUnreachable,
)

URLS = {"us": "https://amplitude.com", "eu": "https://analytics.eu.amplitude.com"}

_MAX_REPLY_BYTES = 32 << 20
_MAX_FILE_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 16
_MAX_TEXT = 512
_MAX_TARGETS = 5
_LATEST_MS = 1 << 53
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SERVER_ERRORS = frozenset({500, 502, 503, 504})
_ENTRIES_AT_ONCE = 100
_NOT_SENT = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)

_Object = dict[str, Any]
_Form = TypeVar("_Form")


class _List(msgspec.Struct):
    """The list of cohorts. Each is decoded by itself: all at once would block other work."""

    cohorts: list[msgspec.Raw]


class _Entry(msgspec.Struct, rename="camel"):
    """The members of a cohort in the list that are used. Its definition may be long."""

    id: Any = None
    name: Any = None
    size: Any = None
    last_computed: Any = None
    archived: Any = None
    sync_metadata: Any = None


@dataclass(frozen=True)
class Pace:
    """How long the client waits, in seconds. These are not settings: only tests change them.

    Attributes:
        connect_seconds, read_seconds: to connect, and for each part of a reply.
        reply_seconds: for a whole reply, files included.
        retries: of calls that got no reply, 500, 502, 503 or 504: the first one immediately, the
            others after 2, 4, 8, … times ``backoff_seconds``. The call that begins an export is
            repeated only if it was not sent: Amplitude may count an export for each.
        backoff_seconds: see ``retries`` and ``downloads``.
        throttled_seconds: after a 429 without Retry-After. Amplitude's limit is per ten minutes.
        throttled_most_seconds: after this much waiting, a 429 is an error.
        export_first_seconds, export_most_seconds: the first and the longest pause between polls of
            an export's status. A long export then takes fewer than 30 requests in ten minutes, of
            the 60 that Amplitude allows.
        export_seconds: after this long, an export that is not done is an error.
        downloads: attempts to download a file, with pauses of 2, 4, … times ``backoff_seconds``.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    reply_seconds: float = 900.0
    retries: int = 4
    backoff_seconds: float = 1.0
    throttled_seconds: float = 60.0
    throttled_most_seconds: float = 900.0
    export_first_seconds: float = 2.0
    export_most_seconds: float = 30.0
    export_seconds: float = 1800.0
    downloads: int = 3


class Usage(NamedTuple):
    """Exports that Amplitude counted this month, by everybody, and its limit."""

    exports: int
    limit: int


class Client:
    """Calls the API with the keys of one project. Raises UpstreamError.

    Args:
        target: count only syncs to this destination, as Amplitude names it; None for all.
        sleep: how to wait.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        secret_key: str,
        *,
        target: str | None = None,
        pace: Pace = Pace(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._authorisation = make_headers(
            basic_auth=f"{api_key}:{secret_key}", user_agent="cohort-receiver"
        )
        self._target = target
        self._pace = pace
        self._sleep = sleep
        # Redirects are followed by hand, so that the credentials are not sent with them.
        self._http = urllib3.PoolManager(
            timeout=Timeout(connect=pace.connect_seconds, read=pace.read_seconds), retries=False
        )

    def cohorts(self) -> list[UpstreamCohort]:
        """All discoverable cohorts of the project. Malformed ones are left out."""
        listed = self._json("/api/3/cohorts?includeSyncInfo=true", _List).cohorts
        found = []
        for number, entry in enumerate(listed, 1):
            if cohort := _cohort(entry, self._target):
                found.append(cohort)
            if number % _ENTRIES_AT_ONCE == 0:
                time.sleep(1e-6)  # let other work of this process go on
        return found

    def usage(self) -> Usage | None:
        """The exports of this month; None if Amplitude does not say."""
        document = self._json("/api/3/cohorts/usage", _Object)
        count, limit = _whole(document.get("count")), _whole(document.get("limit"))
        return None if count is None or limit is None else Usage(count, limit)

    def begin_export(self, cohort_id: str, column: str | None = None) -> str:
        """Begin to export a cohort; ``column`` is a user property to include.

        Returns:
            The id of the export.
        """
        path = f"/api/5/cohorts/request/{quote(cohort_id, safe='')}"
        if column:
            path += f"?props=1&propKeys={quote(column, safe='')}"
        request_id = self._json(path, _Object, is_repeatable=False).get("request_id")
        if not isinstance(request_id, str) or not 0 < len(request_id) <= _MAX_TEXT:
            raise UpstreamBadReply
        return request_id

    def wait_for_export(self, request_id: str) -> None:
        """Wait until an export is done."""
        pause, waited = self._pace.export_first_seconds, 0.0
        path = f"/api/5/cohorts/request-status/{quote(request_id, safe='')}"
        while True:
            status = self._json(path, _Object).get("async_status")
            if status == "JOB COMPLETED":
                return
            if status != "JOB INPROGRESS":
                raise UpstreamExportFailed
            if waited >= self._pace.export_seconds:
                raise UpstreamExportTimeout
            self._sleep(pause)
            waited += pause
            pause = min(pause * 1.5, self._pace.export_most_seconds)

    def download(self, request_id: str, file: Path) -> None:
        """Download the file of an export. An attempt that breaks off is repeated from the start."""
        for attempt in range(self._pace.downloads):
            if attempt:
                self._sleep(self._pace.backoff_seconds * 2**attempt)
            try:
                if self._download(request_id, file):
                    return
            except urllib3.exceptions.HTTPError:
                continue
            except OSError:
                raise NoDiskSpace from None
        raise UpstreamFileIncomplete

    def _download(self, request_id: str, file: Path) -> bool:
        """One attempt. Returns False if the storage refuses the address, which may have expired."""
        address = f"{self._url}/api/5/cohorts/request/{quote(request_id, safe='')}/file"
        with self._call(address) as reply:
            if reply.status == 200:
                _save(reply, file, self._pace.reply_seconds)
                return True
            location, scheme = _location(reply, address)
        # The location is pre-signed: it grants access by itself, and no credentials may go there.
        # It must not be logged, so the library's retries, which log what they try, are not used.
        if reply.status not in _REDIRECTS or scheme not in ("https", urlsplit(self._url).scheme):
            raise UpstreamBadReply
        with closing(
            self._http.request("GET", location, redirect=False, preload_content=False)
        ) as reply:
            if reply.status != 200:
                return False
            _save(reply, file, self._pace.reply_seconds)
            return True

    def _json(self, path: str, form: type[_Form], *, is_repeatable: bool = True) -> _Form:
        with self._call(self._url + path, is_repeatable=is_repeatable) as reply:
            if reply.status not in (200, 202):
                raise UpstreamBadReply
            try:
                body = b"".join(_chunks(reply, _MAX_REPLY_BYTES, self._pace.reply_seconds))
                return msgspec.json.decode(body, type=form)
            except urllib3.exceptions.HTTPError:
                raise UpstreamUnreachable from None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise UpstreamBadReply from None

    @contextmanager
    def _call(self, url: str, *, is_repeatable: bool = True) -> Iterator[urllib3.BaseHTTPResponse]:
        """The reply to a call, other than an error. Waits while Amplitude limits the rate."""
        waited = 0.0
        while True:
            with closing(self._request(url, is_repeatable)) as reply:
                if reply.status != 429:
                    if reply.status in (401, 403):
                        raise UpstreamForbidden
                    if reply.status == 404:
                        raise UpstreamNotListed
                    if reply.status >= 500:
                        raise UpstreamUnavailable
                    yield reply
                    return
                pause = _retry_after(reply) or self._pace.throttled_seconds
            if waited + pause > self._pace.throttled_most_seconds:
                raise UpstreamThrottled
            self._sleep(pause)
            waited += pause

    def _request(self, url: str, is_repeatable: bool) -> urllib3.BaseHTTPResponse:
        # A 429 is waited out in `_call`, for longer than an error is retried.
        retries = Retry(
            self._pace.retries,
            backoff_factor=self._pace.backoff_seconds,
            respect_retry_after_header=False,
        )
        while True:
            try:
                reply = self._http.request(
                    "GET", url, headers=self._authorisation, redirect=False, preload_content=False
                )
                is_final = not (is_repeatable and retries.total)
                if reply.status not in _SERVER_ERRORS or is_final:
                    return reply
                reply.close()  # its body may have no end; the library would read it
                retries = retries.increment("GET", url, response=reply)
            except urllib3.exceptions.HTTPError as error:
                if not retries.total or not (is_repeatable or isinstance(error, _NOT_SENT)):
                    raise UpstreamUnreachable from None
                retries = retries.increment("GET", url, error=error)
            retries.sleep()


def _chunks(reply: urllib3.BaseHTTPResponse, most: int, seconds: float) -> Iterator[bytes]:
    """A reply's body, which may be neither too large nor too slow."""
    ends, received = time.monotonic() + seconds, 0
    # read1 returns what has arrived: a whole chunk may take forever if its bytes trickle in.
    while chunk := reply.read1(_CHUNK_BYTES, decode_content=True):
        received += len(chunk)
        if received > most or time.monotonic() > ends:
            raise UpstreamBadReply
        yield chunk


def _save(reply: urllib3.BaseHTTPResponse, file: Path, seconds: float) -> None:
    with file.open("wb") as target:
        for chunk in _chunks(reply, _MAX_FILE_BYTES, seconds):
            target.write(chunk)


def _retry_after(reply: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return Retry().get_retry_after(reply)
    except (urllib3.exceptions.HTTPError, ValueError, OverflowError):  # "soon", the year 99999
        return None


def _location(reply: urllib3.BaseHTTPResponse, address: str) -> tuple[str, str]:
    """Where a reply redirects to, and the scheme of that; empty if it is not an address."""
    try:
        location = urljoin(address, reply.headers.get("Location", ""))
        return location, urlsplit(location).scheme
    except ValueError:
        return "", ""


def _cohort(raw: msgspec.Raw, target: str | None) -> UpstreamCohort | None:
    """A cohort of the list; None if it has no usable id."""
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamBadReply from None
    cohort_id = _text(entry.id)
    if not cohort_id:
        return None
    cohort = UpstreamCohort(
        cohort_id,
        _text(entry.name) or "",
        _whole(entry.size),
        _seconds(entry.last_computed),
        entry.archived is True,
    )
    listed = entry.sync_metadata
    syncs = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
    if target is not None:
        syncs = [sync for sync in syncs if sync.get("target") == target]
    described = [
        cohort._replace(
            frequency=_text(sync.get("frequency")) or "unknown",
            last_success_ms=_time(sync.get("last_successful")),
            last_failure_ms=_time(sync.get("last_failure")),
        )
        for sync in syncs
    ]
    if not described:
        return cohort
    targets = [_text(sync.get("target")) for sync in syncs]
    # Which of several syncs is ours is unknown, so the one that is furthest behind counts.
    furthest = min(described, key=lambda one: one.behind_since_ms() or _LATEST_MS)
    return furthest._replace(targets=tuple(filter(None, targets))[:_MAX_TARGETS])


def _text(value: Any) -> str | None:
    return value[:_MAX_TEXT] if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    """A whole number that is not negative; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value < _LATEST_MS else None


def _seconds(value: Any) -> int | None:
    """A time in seconds since the epoch, in ms."""
    whole = _whole(value)
    return whole * 1000 if whole and whole * 1000 < _LATEST_MS else None


def _time(value: Any) -> int | None:
    """A time in ISO 8601 with an offset, in ms since the epoch; None unless after the epoch.

    Some programs write 1970 or the year 1 for what never happened.
    """
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            return None
        return max(0, int(at.timestamp() * 1000)) or None
    except (TypeError, ValueError, OverflowError):
        return None
