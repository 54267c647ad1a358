"""The client of Amplitude's API, against the simulator's over sockets: each limit and failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog

from app.cohorts.upstream import UpstreamCohort
from app.upstream import errors
from app.upstream.client import Client
from app.upstream.export_file import ExportFile
from simulator.upstream import ALWAYS, ServedCohort, SyncInfo, Upstream
from tests.integration.upstream.conftest import QUICK, MakeClient

LIST = "/api/3/cohorts"
AT = 1767225600  # 2026-01-01T00:00:00Z


def export(client: Client, file: Path) -> list[str]:
    """The ids in a complete export of the cohort a1."""
    request_id = client.begin_export("a1")
    client.wait_for_export(request_id)
    client.download(request_id, file)
    exported = ExportFile(file)
    exported.scan()
    return list(exported.user_ids())


@pytest.fixture(autouse=True)
def cohort(upstream: Upstream) -> ServedCohort:
    served = ServedCohort("a1", "Power users", ["alice", 'o"brien', "naïve, user"], anonymous=2)
    upstream.cohorts["a1"] = served
    return served


def test_cohorts__with_a_sync__have_its_times(
    upstream: Upstream, cohort: ServedCohort, make_client: MakeClient
) -> None:
    cohort.last_computed, cohort.archived = AT, True
    cohort.syncs = [SyncInfo("braze", "daily", last_successful=AT + 0.5, last_failure=AT)]
    upstream.cohorts["b2"] = ServedCohort("b2", "Never synced")
    assert make_client().cohorts() == [
        UpstreamCohort(
            *("a1", "Power users", 5, AT * 1000, True, "daily", AT * 1000 + 500, AT * 1000),
            ("braze",),
        ),
        UpstreamCohort("b2", "Never synced", 0),
    ]


def test_cohorts__with_several_syncs__have_the_one_furthest_behind(
    cohort: ServedCohort, make_client: MakeClient
) -> None:
    cohort.syncs = [
        SyncInfo("braze", "hourly", last_successful=AT + 7200),
        SyncInfo("receiver", "hourly", last_successful=AT),
        SyncInfo("other", "daily", last_successful=AT),
    ]
    (found,) = make_client().cohorts()
    assert (found.frequency, found.last_success_ms) == ("hourly", AT * 1000)
    assert found.targets == ("braze", "receiver", "other")
    (found,) = make_client(target="braze").cohorts()
    assert found.last_success_ms == (AT + 7200) * 1000
    (found,) = make_client(target="nobody").cohorts()
    assert not found.is_synced


@contextmanager
def replying(
    *replies: tuple[int, bytes],
    taken: list[int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A server that gives these replies, the last one again and again.

    Notes in ``taken`` how many bytes of the bodies the client took.
    """
    remaining = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # a client that does not read it
                for start in range(0, len(body), 1 << 20):
                    part = body[start : start + (1 << 20)]
                    self.wfile.write(part)
                    if taken is not None:
                        taken.append(len(part))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"[]", b"7", b'{"cohorts": 7}', b'{"cohorts": {}}', b'{"cohorts"'),
        *(b"\xff\xfe", b'{"cohorts": ' + b"[" * 100_000),
    ],
)
def test_cohorts__malformed_as_a_whole__is_an_error(body: bytes) -> None:
    with replying((200, body)) as url, pytest.raises(errors.UpstreamBadReply):
        Client(url, "k", "s", pace=QUICK).cohorts()


@pytest.mark.parametrize(
    "entry",
    [
        *(b"null", b"7", b"[]", b"{}", b'{"id": 7}', b'{"id": ""}', b'{"id": "a1", "size": 1e999}'),
    ],
)
def test_cohorts__malformed_entries__are_left_out(entry: bytes) -> None:
    body = b'{"cohorts": [' + entry + b', {"id": "b2"}]}'
    with replying((200, body)) as url:
        (found,) = Client(url, "k", "s", pace=QUICK).cohorts()
        assert found == UpstreamCohort("b2", "")


def test_cohorts__malformed_members__are_unknown() -> None:
    body = b"""{"cohorts": [{"id": "b2", "name": 7, "size": "9", "lastComputed": 1e300,
        "archived": "yes", "syncMetadata": [7, {"frequency": null, "last_successful": "today",
        "last_failure": "2026-01-01T00:00:00"}, {"frequency": "hourly", "last_successful":
        "2026-01-01T02:00:00+02:00", "target": 9}]}]}"""
    with replying((200, body)) as url:
        (found,) = Client(url, "k", "s", pace=QUICK).cohorts()
        hourly = UpstreamCohort("b2", "", None, None, False, "hourly", AT * 1000)
        assert found == hourly


@pytest.mark.parametrize("never", ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00+00:00"])
def test_cohorts__with_a_sync_that_succeeded_before_there_was_one__has_never_succeeded(
    never: str,
) -> None:
    """As some programs write the time of what never happened."""
    body = b"""{"cohorts": [{"id": "b2", "lastComputed": 0, "syncMetadata":
        [{"frequency": "hourly", "last_successful": "NEVER", "last_failure": "NEVER"}]}]}"""
    with replying((200, body.replace(b"NEVER", never.encode()))) as url:
        (found,) = Client(url, "k", "s", pace=QUICK).cohorts()
        assert found == UpstreamCohort("b2", "", frequency="hourly")


def test_call__with_wrong_keys__is_forbidden(make_client: MakeClient) -> None:
    with pytest.raises(errors.UpstreamForbidden):
        make_client(secret_key="wrong").cohorts()


def test_call__throttled__waits(upstream: Upstream, make_client: MakeClient) -> None:
    upstream.faults["throttled"] = 3
    assert make_client().cohorts()
    assert upstream.requests[LIST] == 4


def test_call__throttled_with_a_time__waits_that_long(
    upstream: Upstream, make_client: MakeClient
) -> None:
    upstream.faults["throttled"] = 1
    upstream.retry_after = 1
    started = time.monotonic()
    make_client(throttled_most_seconds=5.0).cohorts()
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize(
    "retry_after",
    ["soon", "", "-1", "0", "1.5", "Fri, 31 Dec 99999 23:59:59 GMT", "9" * 5000],
)
def test_call__throttled_with_an_odd_time__waits_as_without_one(retry_after: str) -> None:
    pauses: list[float] = []
    replies = [(429, b""), (200, b'{"cohorts": []}')]
    with replying(*replies, headers={"Retry-After": retry_after}) as url:
        assert Client(url, "k", "s", pace=QUICK, sleep=pauses.append).cohorts() == []
    assert pauses == [QUICK.throttled_seconds]


def test_call__throttled_for_too_long__is_an_error(
    upstream: Upstream, make_client: MakeClient
) -> None:
    upstream.faults["throttled"] = ALWAYS
    with pytest.raises(errors.UpstreamThrottled):
        make_client(throttled_most_seconds=0.1).cohorts()
    assert upstream.requests[LIST] < 10


def test_call__answered_5xx__is_retried(upstream: Upstream, make_client: MakeClient) -> None:
    upstream.faults["unavailable"] = 4
    assert make_client().cohorts()
    upstream.faults["unavailable"] = ALWAYS
    with pytest.raises(errors.UpstreamUnavailable):
        make_client().cohorts()


@pytest.mark.parametrize("status", [429, 503])
def test_call__answered_with_an_error_without_end__reads_none_of_it(status: int) -> None:
    endless, taken = bytes(32 << 20), list[int]()
    with replying((status, endless), (200, b'{"cohorts": []}'), taken=taken) as url:
        assert Client(url, "key", "secret", pace=QUICK).cohorts() == []
    assert sum(taken) < len(endless) // 2


@contextmanager
def dripping(*, chunked: bool) -> Iterator[str]:
    """A server whose replies come byte by byte, for ten seconds."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", "10000")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):  # a client that has gone
                self.wfile.write(b"ffff\r\n" if chunked else b"")
                for _ in range(200):
                    self.wfile.write(b" ")
                    time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("chunked", [False, True])
def test_call__answered_byte_by_byte__takes_a_limited_time(chunked: bool) -> None:
    """Each byte comes in time; the reply would take hours."""
    started = time.monotonic()
    with dripping(chunked=chunked) as url, pytest.raises(errors.UpstreamBadReply):
        Client(url, "k", "s", pace=replace(QUICK, reply_seconds=0.3)).cohorts()
    assert time.monotonic() - started < 5


def test_call__without_a_server__is_unreachable(make_client: MakeClient) -> None:
    with pytest.raises(errors.UpstreamUnreachable):
        Client("http://127.0.0.1:1", "k", "s", pace=QUICK).cohorts()


def test_call__redirected__is_not_followed() -> None:
    with replying((302, b"")) as url, pytest.raises(errors.UpstreamBadReply):
        Client(url, "k", "s", pace=QUICK).cohorts()


@pytest.mark.parametrize("inline_bytes", [1 << 20, 0], ids=["inline", "redirected"])
def test_export__small_or_large__has_every_user(
    inline_bytes: int, upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    upstream.inline_bytes = inline_bytes
    upstream.job_seconds = 0.1
    found = export(make_client(), tmp_path / "file")
    assert found == ["alice", 'o"brien', "naïve, user"]
    assert upstream.leaks == []


def test_export__redirected__sends_no_credentials_to_the_storage(
    upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    upstream.inline_bytes = 0
    export(make_client(), tmp_path / "file")
    # The storage refuses them, and remembers.
    assert upstream.leaks == []
    assert upstream.statuses[302] == 1


@pytest.mark.parametrize("address", ["http://[", "http://[::1", "", "ftp://x/y", "http://a:b:c/d"])
def test_download__redirected_to_no_address__is_an_error(address: str, tmp_path: Path) -> None:
    with replying((302, b""), headers={"Location": address}) as url:
        client = Client(url, "k", "s", pace=QUICK)
        with pytest.raises((errors.UpstreamBadReply, errors.UpstreamFileIncomplete)):
            client.download("r", tmp_path / "file")


@pytest.mark.parametrize("fault", ["truncated", "expired", "storage-down"])
def test_download__failing_twice__begins_again(
    fault: str, upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    upstream.inline_bytes = 0
    upstream.faults[fault] = 2
    assert len(export(make_client(), tmp_path / "file")) == 3
    assert upstream.exports == 1
    assert upstream.statuses[302] == 3


@pytest.mark.parametrize(
    ("fault", "inline_bytes"),
    [("truncated", 1 << 20), ("truncated", 0), ("expired", 0), ("storage-down", 0)],
)
def test_download__failing_always__is_an_error(
    fault: str, inline_bytes: int, upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    upstream.inline_bytes = inline_bytes
    upstream.faults[fault] = ALWAYS
    with pytest.raises(errors.UpstreamFileIncomplete):
        export(make_client(), tmp_path / "file")


def test_export__ending_within_a_row__is_an_error(
    upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    upstream.faults["cut"] = 1
    with pytest.raises(errors.UpstreamFileInvalid):
        export(make_client(), tmp_path / "file")


def test_export__with_ids_in_quotes_of_their_own__has_the_ids(
    upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    upstream.faults["double-quoted"] = 1
    assert export(make_client(), tmp_path / "file") == ["alice", 'o"brien', "naïve, user"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("stuck", errors.UpstreamExportTimeout), ("failed", errors.UpstreamExportFailed)],
)
def test_export__that_does_not_finish__is_an_error(
    fault: str,
    error: type[errors.UpstreamError],
    upstream: Upstream,
    make_client: MakeClient,
    tmp_path: Path,
) -> None:
    upstream.faults[fault] = ALWAYS
    with pytest.raises(error):
        export(make_client(), tmp_path / "file")


def test_waiting__for_the_longest_export__respects_the_rate_limit() -> None:
    """Half an hour of questions, with the real pauses, in no time."""
    pauses: list[float] = []
    body = b'{"async_status": "JOB INPROGRESS"}'
    with replying((202, body)) as url:
        client = Client(url, "k", "s", sleep=pauses.append)
        with pytest.raises(errors.UpstreamExportTimeout):
            client.wait_for_export("r")
    asked, busiest = [0.0], 0
    for pause in pauses:
        asked.append(asked[-1] + pause)
    for at in asked:
        busiest = max(busiest, sum(at <= other < at + 600 for other in asked))
    assert sum(pauses) >= 1800
    assert busiest <= 30  # of 60: a poll and another program have room


def test_export__of_an_unlisted_cohort__is_an_error(
    cohort: ServedCohort, make_client: MakeClient
) -> None:
    cohort.discoverable = False
    with pytest.raises(errors.UpstreamNotListed):
        make_client().begin_export("a1")


@pytest.mark.parametrize("status", [503, 0])
def test_begin_export__without_a_good_reply__is_not_repeated(status: int) -> None:
    """Amplitude may have begun an export, which counts."""
    taken = list[int]()
    failed = pytest.raises((errors.UpstreamUnavailable, errors.UpstreamUnreachable))
    with replying((status, b" "), (202, b'{"request_id": "r"}'), taken=taken) as url, failed:
        Client(url, "k", "s", pace=QUICK).begin_export("a1")
    assert len(taken) == 1


def test_begin_export__throttled__is_repeated() -> None:
    with replying((429, b""), (202, b'{"request_id": "r"}')) as url:
        assert Client(url, "k", "s", pace=QUICK).begin_export("a1") == "r"


def test_usage__is_reported(upstream: Upstream, make_client: MakeClient) -> None:
    make_client().begin_export("a1")
    assert make_client().usage() == (1, 500)
    with replying((200, b"{}")) as url:
        assert Client(url, "k", "s", pace=QUICK).usage() is None


@pytest.mark.parametrize("fault", ["forbidden", "throttled", "unavailable", "malformed"])
def test_errors__contain_no_secret(
    fault: str, upstream: Upstream, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.faults[fault] = ALWAYS
    caplog.set_level(logging.DEBUG)
    client = make_client(throttled_most_seconds=0.05, retries=1)
    with structlog.testing.capture_logs() as logs, pytest.raises(errors.UpstreamError) as caught:
        client.cohorts()
    chain = [repr(caught.value), str(caught.value), repr(client), repr(logs), caplog.text]
    assert not [text for text in chain if "simulated" in text]


def test_download__logs_no_signature(
    upstream: Upstream, make_client: MakeClient, tmp_path: Path
) -> None:
    """urllib3 logs what it requests; the service's logging must not pass that on."""
    from app.telemetry.logs import stdlib_config

    levels = stdlib_config("debug", "json")["loggers"]
    assert levels["urllib3"]["level"] == "ERROR"
    upstream.inline_bytes = 0
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, library = Lines(), logging.getLogger("urllib3")
    before = library.level
    library.addHandler(handler)
    library.setLevel(levels["urllib3"]["level"])
    try:
        for fault in ("", "expired", "storage-down", "truncated"):
            upstream.faults[fault] = 2
            export(make_client(), tmp_path / "file")
    finally:
        library.removeHandler(handler)
        library.setLevel(before)
    assert lines == []
