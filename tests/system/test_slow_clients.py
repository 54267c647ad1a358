"""Clients that take their time: for a request, for its headers, or for the reply."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis

from simulator import payloads
from tests.support.effort import thorough
from tests.support.polling import wait_until
from tests.support.raw_http import AUTH, JSON, connect, head, status
from tests.support.service import ADMIN_KEY, APP, Service, running

TRAIT, COHORT = "n: 1", "1"
HEAD_SECONDS, SEND_SECONDS = 0.5, 1.0
ADMIN = f"api_key: {ADMIN_KEY}"


@pytest.fixture(scope="module")
def service(store_url: str) -> Iterator[Service]:
    env = {
        "REDIS_URL": store_url,
        "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}",
        "HEAD_TIMEOUT_SECONDS": str(HEAD_SECONDS),
        "SEND_TIMEOUT_SECONDS": str(SEND_SECONDS),
        "MAX_FOLLOWERS": "1",
    }
    with running(env) as service:
        yield service


@pytest.fixture
def long_ids(service: Service, redis_client: redis.Redis) -> list[str]:
    """Members of a cohort whose export, and whose changes, fill every buffer on the way."""
    ids = [f"{n:06}-{'x' * 300}" for n in range(30_000)]
    for start in range(0, len(ids), 10_000):
        body = payloads.batch(ids[start : start + 10_000], TRAIT, True)
        assert service.post(body).status == 200
    return ids


def reluctant(service: Service, data: bytes) -> socket.socket:
    """A client that sends something and reads nothing; little of the reply fits its buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    address = service.url.removeprefix("http://").split(":")
    sock.connect((address[0], int(address[1])))
    sock.sendall(data)
    return sock


def is_gone(sock: socket.socket) -> bool:
    """Whether the service has reset the connection. Reads nothing."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def test_reply__that_nobody_reads__is_given_up(service: Service) -> None:
    with ExitStack() as stack:
        request = head(method="GET", path="/openapi.json")
        clients = [stack.enter_context(reluctant(service, request * 100)) for _ in range(20)]
        wait_until(lambda: all(is_gone(client) for client in clients))
    assert service.post(payloads.identify("u", TRAIT, True)).status == 200
    assert "Traceback" not in service.output()


def test_reply__read_drop_by_drop__is_given_up(service: Service) -> None:
    with reluctant(service, head(method="GET", path="/openapi.json") * 100) as client:
        client.settimeout(30)

        def takes_a_little() -> bool:
            try:
                client.recv(10)
            except ConnectionResetError:
                return True
            return is_gone(client)

        wait_until(takes_a_little)


def test_follower__that_stops_reading__gives_its_place_to_another(
    service: Service, long_ids: list[str]
) -> None:
    path = "/api/v1/changes/stream?cursor=earliest"

    def is_accepted() -> bool:
        with connect(service) as sock:
            sock.sendall(head(ADMIN, method="GET", path=path))
            return status(sock.recv(65536)) == 200

    with reluctant(service, head(ADMIN, method="GET", path=path)) as first:
        wait_until(lambda: is_gone(first))
        wait_until(is_accepted)


def test_export__read_slowly_but_steadily__is_complete(
    service: Service, long_ids: list[str]
) -> None:
    path = f"/api/v1/cohorts/{COHORT}/members.ndjson"
    request = head(ADMIN, "Connection: close", method="GET", path=path)
    with reluctant(service, request) as client:
        client.settimeout(30)
        began, received, last = time.monotonic(), 0, b""
        while part := client.recv(1 << 16):
            received, last = received + len(part), part
            if time.monotonic() - began < 3 * SEND_SECONDS:
                select.select(
                    [], [], [], 0.02
                )  # for longer than a reply that nobody reads may take
    assert received > sum(map(len, long_ids))
    assert last.endswith(b"0\r\n\r\n")


def test_connection__idle_for_longer_than_headers_may_take__is_kept(service: Service) -> None:
    body = b'{"type":"identify","userId":"u","traits":{"n: 1":true}}'
    request = head(AUTH, JSON, f"Content-Length: {len(body)}") + body
    with connect(service) as sock:
        for _ in range(2):
            sock.sendall(request)
            assert status(sock.recv(65536)) == 200
            assert select.select([sock], [], [], 3 * HEAD_SECONDS)[0] == []


def test_connection__without_a_first_request__is_closed_soon(service: Service) -> None:
    began = time.monotonic()
    with connect(service) as sock:
        assert sock.recv(1) == b""
    assert time.monotonic() - began >= HEAD_SECONDS * 0.9


def test_headers__of_a_later_request_that_stop__are_cut_off(service: Service) -> None:
    request = head(method="GET", path="/healthz")
    with connect(service) as sock:
        sock.sendall(request)
        assert status(sock.recv(65536)) == 200
        sock.sendall(request[:-2])
        assert sock.recv(1) == b""


@thorough
def test_connections__idle_ones__do_not_delay_the_exit(store_url: str) -> None:
    with running({"REDIS_URL": store_url}) as service, ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(connect(service))
            sock.sendall(head(method="GET", path="/healthz"))
            assert status(sock.recv(65536)) == 200
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 6  # of the 8 s for requests in flight
