"""What must not get through, or hold up others, on the real server."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest
import redis

from simulator.payloads import identify
from tests.support.effort import thorough
from tests.support.polling import DEADLINE, wait_until
from tests.support.raw_http import AUTH, JSON, connect, head, raw, status
from tests.support.service import APP, ROOT, Service, running, stored

STALLED_SECONDS = 0.025  # that stalled clients may cost each of the others' calls
BODY = json.dumps(identify("u", "n: 1", True)).encode()


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
        head(AUTH, JSON, "Content-Length: 5", "Content-Length: 6") + b"12345",
        head(AUTH, JSON, "Content-Length: -1"),
        head(AUTH, JSON, "Content-Length: 1e3") + b"x" * 1000,
        head(AUTH, JSON, "Content-Length: +5") + b"12345",
        head(AUTH, JSON, "Content-Length: 0x5") + b"12345",
        head(AUTH, JSON, "Content-Length: 5, 5") + b"12345",
        head(AUTH, JSON, "Transfer-Encoding: chunked") + b"-1\r\n\r\n",
        head(AUTH, JSON, "Transfer-Encoding: chunked") + b"0x5\r\n12345\r\n0\r\n\r\n",
        head(AUTH, JSON, "Transfer-Encoding: chunked") + b"5_0\r\n12345\r\n0\r\n\r\n",
    ],
    ids=[
        "bad chunk",
        "chunk cut",
        "body cut",
        "two lengths",
        "negative length",
        "length with exponent",
        "length with sign",
        "length in hexadecimal",
        "list of lengths",
        "negative chunk",
        "chunk with prefix",
        "chunk with underscore",
    ],
)
def test_framing__broken__is_a_400_and_writes_nothing(
    service: Service, redis_client: redis.Redis, data: bytes
) -> None:
    assert raw(service, data).startswith(b"HTTP/1.1 400 ")
    assert stored(redis_client) == []


def smuggled(user: str) -> bytes:
    """A whole request that stands where a body should be."""
    body = json.dumps(identify(user, "n: 1", True)).encode()
    return head(AUTH, JSON, f"Content-Length: {len(body)}") + body


SMUGGLED = smuggled("smuggled")


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: \x0bchunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding:", " chunked"],
        ["X: y\nTransfer-Encoding: chunked"],
        ["Content-Length : 5"],
        ["Content-Length: 5", " 6"],
        ["X: y\rContent-Length: 5"],
        ["X: \0"],
        ["X y: z"],
        [": z"],
    ],
    ids=str,
)
def test_smuggling__of_a_request_in_another__is_refused_and_the_connection_closed(
    service: Service, redis_client: redis.Redis, lines: list[str]
) -> None:
    data = head(AUTH, JSON, *lines) + b"0\r\n\r\n" + SMUGGLED
    reply = raw(service, data)
    assert status(reply) in (400, 501), reply
    assert reply.count(b"HTTP/1.1 ") == 1
    assert stored(redis_client) == []


def test_smuggling__by_an_upgrade_to_http2__is_answered_as_http1(
    service: Service, redis_client: redis.Redis
) -> None:
    upgrade = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    reply = raw(service, head(*upgrade, "Content-Length: 0"))
    assert status(reply) == 401
    assert status(raw(service, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) in (0, 400, 505)


def test_pipelined_requests__are_answered_one_by_one_with_their_own_credentials(
    service: Service, redis_client: redis.Redis
) -> None:
    without_key = smuggled("without-key").replace(AUTH.encode(), b"X: y")
    reply = raw(service, smuggled("first") + without_key + smuggled("second"))
    assert [part[:3] for part in reply.split(b"HTTP/1.1 ")[1:]] == [b"200", b"401", b"200"]
    assert redis_client.exists(f"cohorts:{{{APP}}}:user:first", f"cohorts:{{{APP}}}:user:second")
    assert not redis_client.exists(f"cohorts:{{{APP}}}:user:without-key")


@pytest.mark.parametrize(
    "target",
    ["http://other/x", "//other/", "*", "/../x", "other:80", "/\x7f", "/\xff", "/%00", "/%zz"],
)
def test_request_line__with_a_strange_target__is_answered_by_no_other_route(
    service: Service, target: str
) -> None:
    lines = [f"GET {target} HTTP/1.1", "Host: x", "Connection: close", "", ""]
    reply = raw(service, "\r\n".join(lines).encode("latin-1"))
    assert status(reply) in (400, 401, 404, 405), reply


@pytest.mark.parametrize(
    "line", ["GET /", "GET / HTTP/9.9", "GET  /  HTTP/1.1", "", "\0" * 100, "G" * 9000]
)
def test_request_line__that_is_none__is_refused(service: Service, line: str) -> None:
    reply = raw(service, f"{line}\r\nHost: x\r\n\r\n".encode())
    assert status(reply) in (0, 400, 414, 431, 501, 505), reply


def test_chunked_body__well_formed__is_taken(service: Service) -> None:
    data = head(AUTH, JSON, "Transfer-Encoding: chunked", "Connection: close")
    data += b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert raw(service, data).startswith(b"HTTP/1.1 200 ")


def test_chunked_body__over_the_limit__is_413(service: Service) -> None:
    data = head(AUTH, JSON, "Transfer-Encoding: chunked", "Connection: close")
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with connect(service) as sock:
        sock.sendall(data + chunk * 9)
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_headers__over_the_servers_limits__are_refused(service: Service) -> None:
    assert raw(service, head("X: " + "x" * 10_000)).startswith(b"HTTP/1.1 431 ")
    assert raw(service, head(*[f"X-{i}: 1" for i in range(200)])).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (head(path="/" + "x" * 9000), 414, "request_uri_too_long"),
        (head("X: " + "x" * 10_000), 431, "request_header_fields_too_large"),
        (head("Content-Length: 1e3"), 400, "bad_request"),
        (head("Expect: nothing"), 417, "expectation_failed"),
        (head("Transfer-Encoding: other"), 501, "not_implemented"),
    ],
    ids=["line", "header", "length", "expectation", "coding"],
)
def test_request__that_breaks_http__is_answered_and_logged_with_its_reason(
    service: Service, data: bytes, code: int, reason: str
) -> None:
    reply, _, body = raw(service, data).partition(b"\r\n\r\n")
    assert status(reply) == code
    assert b"\r\nContent-Type: application/problem+json\r\n" in reply
    assert body.endswith(b"}\n")
    assert f"Content-Length: {len(body)}\r\n" in reply.decode()
    problem = json.loads(body)
    assert (problem["status"], problem["reason"]) == (code, reason)
    assert f"X-Request-ID: {problem['requestId']}" in reply.decode()

    def logged() -> list[tuple[int, str]]:
        id_ = problem["requestId"]
        told = [event for event in service.events() if event.get("request_id") == id_]
        return [(event["status"], event["reason"]) for event in told]

    wait_until(logged)
    assert logged() == [(code, reason)]


def test_rejected_request__with_a_large_body__is_answered_before_the_body_is_sent(
    service: Service,
) -> None:
    with connect(service) as sock:
        sock.sendall(head("api_key: wrong", JSON, "Content-Length: 8000000"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


LARGE = b" " * 200_000 + BODY
# Where a client stops: in the first word, in a header, after the headers, in a small body, in a
# large one of which most has arrived, in a chunk.
BEGINNINGS = [
    b"P",
    head(AUTH)[:40],
    head(AUTH, JSON, f"Content-Length: {len(BODY)}"),
    head(AUTH, JSON, f"Content-Length: {len(BODY)}") + BODY[:9],
    head(AUTH, JSON, f"Content-Length: {len(LARGE)}") + LARGE[:-9],
    head(AUTH, JSON, "Transfer-Encoding: chunked") + b"100\r\n{",
]


@contextmanager
def stalled_clients(service: Service, count: int) -> Iterator[None]:
    """Clients that begin a request and stop in the middle of it."""
    with ExitStack() as stack:
        for number in range(count):
            sock = stack.enter_context(connect(service))
            sock.sendall(BEGINNINGS[number % len(BEGINNINGS)])
        yield


def times(service: Service, count: int) -> list[float]:
    """Seconds that each of some ordinary requests takes, all of them answered with 200."""
    taken = []
    for _ in range(count):
        started = time.monotonic()
        assert service.post(BODY).status == 200
        taken.append(time.monotonic() - started)
    return taken


def test_stalled_clients__two_hundred_of_them__leave_others_answered_as_before(
    service: Service,
) -> None:
    # Other programs may use the machine: one of some rounds has to keep the bound.
    for _ in range(6):
        before = statistics.median(times(service, 40))
        with stalled_clients(service, 200):
            during = statistics.median(times(service, 40))
        if during < before + STALLED_SECONDS:
            break
    assert during < before + STALLED_SECONDS


def test_stalled_clients__in_their_headers__are_hung_up_on(service: Service) -> None:
    with connect(service) as sock:
        sock.sendall(head(AUTH)[:40])
        assert sock.recv(65536) == b""


def test_headers__that_drip_without_end__are_cut_off(service: Service) -> None:
    with connect(service) as sock:
        sock.sendall(head()[:-2])
        sock.settimeout(0.2)
        for _ in range(100):
            try:
                sock.sendall(b"X-A: 1\r\n")
                if not sock.recv(65536):
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("the connection was still open after 20 s")


@pytest.fixture(scope="module")
def one_worker(store_url: str) -> Iterator[Service]:
    """A service of one worker that logs every request, and waits only briefly for bodies."""
    env = {"REDIS_URL": store_url, "LOG_LEVEL": "debug", "BODY_TIMEOUT_SECONDS": "0.2"}
    with running(env) as service:
        yield service


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(head(method="GET", path="/healthz"), id="open to all", marks=thorough),
        pytest.param(head("api_key: wrong", JSON, "Content-Length: 0"), id="bad key"),
        pytest.param(
            head("api_key: wrong", JSON, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            id="bad key and chunks",
            marks=thorough,
        ),
    ],
)
def test_connection__with_one_request_after_another__leaves_others_their_turn(
    one_worker: Service, request_: bytes
) -> None:
    times(one_worker, 5)
    with flood(one_worker, request_), flood(one_worker, request_):
        logged = len(one_worker.lines)
        wait_until(lambda: len(one_worker.lines) > logged + 500)
        during = times(one_worker, 40)
    assert statistics.median(during) < 1


@contextmanager
def flood(service: Service, request: bytes) -> Iterator[None]:
    """Another process sends this all the time, on one connection."""
    address = urlsplit(service.url)
    command = [sys.executable, "-m", "tests.support.flood", address.hostname, str(address.port)]
    with subprocess.Popen(
        [*command, str(2 * DEADLINE)], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(request)
        process.stdin.close()
        try:
            yield
            assert process.poll() is None, process.stderr.read()
        finally:
            process.kill()


def test_body__that_never_arrives__is_408(one_worker: Service) -> None:
    with connect(one_worker) as sock:
        sock.sendall(head(AUTH, f"app_id: {APP}", JSON, "Content-Length: 100") + b"{")
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
