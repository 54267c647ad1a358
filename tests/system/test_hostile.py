"""What must not get through, or hold up others, on the real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import redis

from simulator.payloads import COHORT_PATH, identify
from tests.system.service import APP, DEADLINE, KEY, Service, running

BODY = json.dumps(identify("u", "n: 1", True)).encode()


def raw(service: Service, data: bytes) -> bytes:
    """Send bytes as they are; return all that comes back until the connection is closed."""
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=DEADLINE) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {COHORT_PATH} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


JSON = "Content-Type: application/json"
AUTH = f"api_key: {KEY}"


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "X_FORWARDED_FOR", "REMOTE_ADDR"])
def test_headers_with_underscore__other_than_the_two__are_dropped(
    service: Service, name: str
) -> None:
    reply = raw(
        service,
        head(AUTH, JSON, f"{name}: /elsewhere", f"Content-Length: {len(BODY)}", "Connection: close")
        + BODY,
    )
    assert reply.startswith(b"HTTP/1.1 200 ")


def test_api_key__in_two_headers__is_refused(service: Service) -> None:
    reply = raw(
        service,
        head(AUTH, "Api-Key: other", JSON, f"Content-Length: {len(BODY)}", "Connection: close")
        + BODY,
    )
    assert reply.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "data",
    [
        head(AUTH, JSON, "Transfer-Encoding: chunked") + b"zz\r\nnonsense\r\n",
        head(AUTH, JSON, "Transfer-Encoding: chunked") + b'5\r\n{"a"',
        head(AUTH, JSON, f"Content-Length: {len(BODY) + 10}") + BODY,
        head(AUTH, JSON, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head(AUTH, JSON, "Content-Length: 5", "Content-Length: 6") + b"12345",
        head(AUTH, JSON, "Content-Length: -1"),
    ],
    ids=["bad chunk", "chunk cut", "body cut", "two framings", "two lengths", "negative length"],
)
def test_framing__broken__is_a_400_and_writes_nothing(
    service: Service, redis_client: redis.Redis, data: bytes
) -> None:
    assert raw(service, data).startswith(b"HTTP/1.1 400 ")
    assert redis_client.keys("cohorts:{*") == []


def test_chunked_body__well_formed__is_taken(service: Service) -> None:
    data = head(AUTH, JSON, "Transfer-Encoding: chunked", "Connection: close")
    data += b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert raw(service, data).startswith(b"HTTP/1.1 200 ")


def test_chunked_body__over_the_limit__is_413(service: Service) -> None:
    data = head(AUTH, JSON, "Transfer-Encoding: chunked", "Connection: close")
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=DEADLINE) as sock:
        sock.sendall(data + chunk * 9)
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_headers__over_the_servers_limits__are_refused(service: Service) -> None:
    assert raw(service, head("X: " + "x" * 10_000)).startswith(b"HTTP/1.1 431 ")
    assert raw(service, head(*[f"X-{i}: 1" for i in range(200)])).startswith(b"HTTP/1.1 431 ")


def test_rejected_request__with_a_large_body__is_answered_before_the_body_is_sent(
    service: Service,
) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=DEADLINE) as sock:
        sock.sendall(head("api_key: wrong", JSON, "Content-Length: 8000000"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.fixture
def stalled(service: Service) -> Iterator[None]:
    """A hundred clients that begin a request and stop in the middle of it."""
    address = urlsplit(service.url)
    beginnings = [
        b"P",
        head(AUTH)[:40],
        head(AUTH, JSON, f"Content-Length: {len(BODY)}") + BODY[:9],
    ]
    with ExitStack() as stack:
        for number in range(100):
            sock = socket.create_connection((address.hostname, address.port), timeout=DEADLINE)
            stack.enter_context(sock)
            sock.sendall(beginnings[number % 3])
        yield


def test_stalled_clients__a_hundred_of_them__do_not_disturb_others(
    service: Service, stalled: None
) -> None:
    for _ in range(20):
        started = time.monotonic()
        assert service.post(BODY).status == 200
        assert time.monotonic() - started < 1


def test_body__that_never_arrives__is_408(store_url: str) -> None:
    env = {"REDIS_URL": store_url, "BODY_TIMEOUT_SECONDS": "0.2", "WEB_CONCURRENCY": "1"}
    with running(env) as service:
        address = urlsplit(service.url)
        with socket.create_connection((address.hostname, address.port), timeout=DEADLINE) as sock:
            sock.sendall(head(AUTH, f"app_id: {APP}", JSON, "Content-Length: 100") + b"{")
            assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
