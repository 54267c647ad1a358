"""What the log tells an operator, and what it tells nobody; and what Sentry is told."""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis

from tests.support.effort import thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.raw_http import connect, head, raw, status
from tests.support.service import ADMIN_KEY, APP, COHORT_PATH, GUNICORN, KEY, Service, running

READ_KEY = "TEST_READ_KEY"
USER = "secret.person@example.com"
TRAIT = "[Amplitude] Buyers: b1"
DSN_KEY = "0123456789abcdef"


def identify(user: str = USER, **changes: object) -> dict[str, object]:
    return {"type": "identify", "userId": user, "traits": {TRAIT: True}, **changes}


@contextmanager
def serving(store_url: str, **settings: str) -> Iterator[Service]:
    env = {
        "REDIS_URL": store_url,
        "READ_API_KEYS": f"{APP}:{READ_KEY}",
        "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
        **settings,
    }
    with running(env) as service:
        yield service


def everything(service: Service) -> list[str]:
    """Make calls of all kinds, with a user's id and keys in all places. Returns their ids."""
    ids = [f"call-{number}" for number in range(100)]
    left = iter(ids)

    def call(method: str, path: str, body: object = None, key: str = KEY) -> None:
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": next(left)}
        service.request(method, path, body, **headers)

    for body in (
        identify(),
        {"batch": [identify(), identify("u2"), identify(USER * 50)]},
        {"batch": [identify(), identify(traits={TRAIT: USER})]},
        {"batch": [identify(), identify(type=USER)]},
        identify(userId=[USER]),
        identify(context=USER),
        f'{{"userId": "{USER}", '.encode(),
        {USER: USER},
    ):
        call("POST", COHORT_PATH, body)
    call("POST", "/lists", {"name": TRAIT})
    call("POST", "/lists/b1/add", {"userIds": [USER, 1]})
    call("POST", "/lists/b1/add", {"userIds": [USER]})
    call("POST", "/lists/unknown/add", {"userIds": [USER]})
    webhook = {"cohort_id": "b1", "cohort_name": "Buyers", "in_cohort": True, "message_id": "m1"}
    call("POST", "/api/v1/integration/amplitude/webhook", {**webhook, "users": [{"user_id": USER}]})
    call("POST", "/api/v1/integration/amplitude/webhook", {**webhook, "users": USER})
    call("POST", "/v1/identify", {"userId": USER, "traits": {TRAIT: "x" + USER}})
    call("POST", "/v1/batch", {"batch": [{"type": "track", "userId": USER, "event": USER}]})
    for path in (
        f"/api/v1/users/{USER}",
        f"/api/v1/cohorts/b1/members/{USER}",
        f"/api/v1/users/{USER}?{USER}={USER}",
        f"/api/v1/cohorts?cursor={USER}",
        f"/nowhere/{USER}",
    ):
        call("GET", path, key=READ_KEY)
    call("GET", f"/api/v1/users/{USER}")
    call("POST", "/api/v1/users/query", {"user_ids": [USER]}, READ_KEY)
    call("DELETE", f"/api/v1/users/{USER}?suppress=true", key=ADMIN_KEY)
    call("DELETE", f"/api/v1/users/{USER}?suppress={USER}", key=ADMIN_KEY)
    call("POST", COHORT_PATH, identify(), "wrong-key-of-somebody")
    service.request("POST", f"{COHORT_PATH}?api_key={KEY}", identify())
    return ids[: ids.index(next(left))]


def requests_in(service: Service) -> list[dict[str, object]]:
    return [event for event in service.events() if event["event"] == "request"]


def test_log__of_calls_of_all_kinds__names_no_user_and_no_key(
    store_url: str, redis_client: redis.Redis
) -> None:
    with serving(store_url, USER_POLICY="open") as service:
        ids = everything(service)
    text = service.output()
    assert [event["request_id"] for event in requests_in(service)][-len(ids) - 1 : -1] == ids
    for secret in (USER, KEY, READ_KEY, ADMIN_KEY, "wrong-key-of-somebody", "secret.person"):
        assert secret not in text, [line for line in service.lines if secret in line]


BROKEN = {
    "InvalidHTTPVersion": f"GET /api/v1/users/john {USER} HTTP/1.1\r\n\r\n".encode(),
    "InvalidRequestLine": f"GET /api/v1/users/\xe9{USER} HTTP/1.1\r\n\r\n".encode("latin-1"),
    "InvalidRequestMethod": f"{USER} / HTTP/1.1\r\n\r\n".encode(),
    "InvalidHeaderName": head(f"api key {KEY}: x"),
    "InvalidHeader": head(f"api_key {KEY}"),
    "UnsupportedTransferCoding": head(f"Transfer-Encoding: {USER}"),
    "ExpectationFailed": head(f"Expect: {USER}"),
}


@pytest.mark.parametrize("level", [pytest.param("info", marks=thorough), "debug"])
def test_log__of_requests_that_break_http__tells_kind_and_address_and_quotes_nothing(
    store_url: str, level: str
) -> None:
    with serving(store_url, LOG_LEVEL=level) as service:
        for data in BROKEN.values():
            assert status(raw(service, data)) in (400, 417, 501)
        with connect(service) as sock:  # ends in the middle of a head
            sock.sendall(head(f"api_key: {KEY}", path=f"/api/v1/users/{USER}")[:-2])
        assert raw(service, head("Connection: close", method="GET", path="/healthz"))
    told = [event for event in requests_in(service) if "error" in event]
    assert [event["error"] for event in told] == list(BROKEN)
    assert {event["ip"] for event in told} == {"127.0.0.1"}
    for secret in (USER, KEY, "secret.person"):
        assert secret not in service.output()


def test_log__of_a_write__tells_who_what_how_many_and_how_long(
    store_url: str, redis_client: redis.Redis
) -> None:
    with serving(store_url, USER_POLICY="known") as service:
        service.post({"user_ids": ["u1"]}, "/api/v1/users", api_key=ADMIN_KEY)
        body = {"batch": [identify("u1"), identify("u2"), identify("u3")]}
        reply = service.post(body, **{"X-Request-ID": "heroku-1"})
        assert reply.headers["X-Request-ID"] == "heroku-1"
        service.post({"batch": [identify(traits={TRAIT: 1})]}, **{"X-Request-ID": "heroku-2"})
    written, refused = requests_in(service)[-2:]
    known = {
        "request_id": "heroku-1",
        "method": "POST",
        "path": COHORT_PATH,
        "status": 200,
        "app": APP,
        "source": "identify",
        "cohorts": ["b1"],
        "accepted": 1,
        "changed": 1,
        "rejected": 2,
        "rejected_by": {"unknown_user": 2},
        "repeated": False,
    }
    assert written | known == written
    assert 0 < written["store_ms"] <= written["ms"] < 30_000  # type: ignore[operator]
    assert str(written["key"]).startswith("ingest-")
    assert (refused["status"], refused["reason"]) == (400, "invalid_payload")
    assert str(refused["first_error"]).startswith(f"batch.0.traits.{TRAIT}: ")


class Sink:
    """Takes what the service sends to Sentry."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.dsn = f"http://{DSN_KEY}@127.0.0.1:{self.server.server_port}/1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gzipped = self.headers.get("Content-Encoding") == "gzip"
                received.append(gzip.decompress(body) if gzipped else body)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def events(self) -> list[dict[str, object]]:
        return [
            document
            for envelope in self.received
            for document in map(json.loads, envelope.splitlines())
            if "exception" in document
        ]


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    thread = threading.Thread(target=sink.server.serve_forever, daemon=True)
    thread.start()
    yield sink
    sink.server.shutdown()
    sink.server.server_close()
    thread.join()


def break_a_cohort(client: redis.Redis) -> None:
    """Write what the service does not, so that it meets an error that quotes a user's id."""
    client.hset(f"cohorts:{{{APP}}}:cohort:broken:state", mapping={"trait": "x", "named": USER})


def test_unexpected_error__is_logged_and_told_to_sentry_without_secrets(
    store_url: str, redis_client: redis.Redis, sink: Sink
) -> None:
    break_a_cohort(redis_client)
    with serving(store_url, SENTRY_DSN=sink.dsn, WEB_CONCURRENCY="1") as service:
        reply = service.post(
            {"userIds": [USER]}, "/lists/broken/add", **{"X-Request-ID": "the-call"}
        )
        assert (reply.status, reply.json()["reason"]) == (500, "internal_error")
        wait_until(lambda: sink.events())
    (event,) = sink.events()
    tags = event["tags"]
    assert isinstance(tags, dict)
    assert (tags["request_id"], tags["app"]) == ("the-call", APP)
    (error,) = event["exception"]["values"]  # type: ignore[index]
    assert error["type"] == "ValueError"
    assert error["stacktrace"]["frames"][-1]["filename"].endswith("registry.py")
    told = b"".join(sink.received).decode()
    log = service.output()
    assert "ValueError" in log
    assert "registry.py" in log
    for secret in (USER, "secret.person", KEY, ADMIN_KEY):
        assert secret not in told
        assert secret not in log
    assert DSN_KEY not in log


@thorough
def test_sentry__not_there__holds_up_no_call(store_url: str, redis_client: redis.Redis) -> None:
    break_a_cohort(redis_client)
    dsn = f"http://{DSN_KEY}@127.0.0.1:1/1"
    with serving(store_url, SENTRY_DSN=dsn) as service:
        for _ in range(3):
            assert service.post({"userIds": [USER]}, "/lists/broken/add").status == 500
        assert service.post(identify()).status == 200
        assert service.stop() == 0


@thorough
def test_expected_errors__are_not_told_to_sentry(
    store_url: str, redis_client: redis.Redis, sink: Sink
) -> None:
    with serving(store_url, SENTRY_DSN=sink.dsn) as service:
        everything(service)
        assert service.stop() == 0
    assert not sink.received


@thorough
def test_log__out_of_file_descriptors__is_json_and_calls_are_served_once_there_are_some(
    store_url: str,
) -> None:
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    command = (sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])", *GUNICORN)
    with running({"REDIS_URL": store_url}, command) as service:
        connections = [connect(service) for _ in range(80)]

        def lines() -> list[dict[str, object]]:
            return [
                line for line in service.events() if line["event"] == "cannot accept connections"
            ]

        wait_until(lambda: bool(lines()))
        for connection in connections:
            connection.close()
        wait_until(lambda: service.post(identify()).status == 200)
        assert lines()[0]["reason"] == "out_of_file_descriptors"
        assert len(lines()) == 1
    # Before the service logs, gunicorn's master may warn about settings.
    others = [line for line in service.lines if line[0] != "{"]
    assert [line for line in others if not line.startswith("cohort-receiver: ")] == []


@thorough
def test_log__of_an_outage__has_each_warning_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broken:
        broken.settimeout(DEADLINE)
        with running({"REDIS_URL": f"redis://127.0.0.1:{broken.getsockname()[1]}"}) as service:
            # Each task tries again every second, or every two.
            for _ in range(50):
                broken.accept()[0].close()
            warnings = [line for line in service.events() if line["level"] == "warning"]
    kinds = [(line["event"], line["reason"]) for line in warnings]
    assert {event for event, _ in kinds} >= {"background work paused", "resyncs paused"}
    assert len(kinds) == len(set(kinds)), kinds
