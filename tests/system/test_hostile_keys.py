"""Guessing, leaking and misplacing keys."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import redis

from simulator.payloads import COHORT_PATH, identify
from tests.support.effort import some, thorough
from tests.support.raw_http import AUTH, JSON, connect, head, raw, status
from tests.support.service import ADMIN_KEY, APP, KEY, Service, running

BODY = json.dumps(identify("u", "n: 1", True)).encode()
GUESSES = 10_000
PER_MINUTE = 30


@pytest.fixture(scope="module")
def proxied(store_url: str) -> Iterator[Service]:
    """The service behind one proxy, which tells it from where each request comes."""
    env = {"REDIS_URL": store_url, "PROXY_HOPS": "1", "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}"}
    env["WEB_CONCURRENCY"] = "2"
    with running(env) as service:
        yield service


def guess(number: int, address: str) -> bytes:
    lines = [JSON, f"api_key: guess-{number}", f"X-Forwarded-For: {address}", "Content-Length: 0"]
    return head(*lines)


def answers(sock: socket.socket, count: int) -> Iterator[int]:
    """The statuses of the next replies on a connection."""
    with sock.makefile("rb") as replies:
        for _ in range(count):
            yield int(replies.readline().split()[1])
            length = 0
            while line := replies.readline().strip():
                name, _, value = line.lower().partition(b": ")
                if name == b"content-length":
                    length = int(value)
            replies.read(length)


@thorough
def test_bad_keys__ten_thousand_from_one_address__are_limited_and_harm_no_other(
    proxied: Service, redis_client: redis.Redis
) -> None:
    seen: Counter[int] = Counter()
    with connect(proxied) as sock:
        for start in range(0, GUESSES, 100):
            sock.sendall(b"".join(guess(n, "203.0.113.9") for n in range(start, start + 100)))
            seen.update(answers(sock, 100))
            if start % 1000 == 0:
                good = proxied.post(BODY, **{"X-Forwarded-For": "198.51.100.7"})
                assert good.status == 200
    assert seen.keys() == {401, 429}
    # A minute may have ended in between.
    assert PER_MINUTE <= seen[401] <= 5 * PER_MINUTE

    one_more = proxied.post(BODY, api_key="guess", **{"X-Forwarded-For": "203.0.113.9"})
    assert (one_more.status, one_more.json()["reason"]) == (429, "rate_limited")
    assert 1 <= int(one_more.headers["Retry-After"]) <= 60
    # Many senders share an address: a good key is good from there too.
    assert proxied.post(BODY, **{"X-Forwarded-For": "203.0.113.9"}).status == 200
    other = proxied.post(BODY, api_key="guess", **{"X-Forwarded-For": "198.51.100.7"})
    assert other.status == 401


def test_bad_keys__over_their_limit__are_refused_without_asking_the_store(
    proxied: Service, redis_client: redis.Redis
) -> None:
    def flood() -> int:
        with connect(proxied) as sock:
            sock.sendall(b"".join(guess(n, "203.0.113.77") for n in range(300)))
            return Counter(answers(sock, 300))[429]

    flood()
    before = redis_client.info("stats")["total_commands_processed"]
    refused = flood()
    asked = redis_client.info("stats")["total_commands_processed"] - before
    assert refused >= 300 - 2 * PER_MINUTE
    # What is left is the count of a new minute, and the background work of two workers.
    assert asked < 250


@thorough
def test_bad_keys__with_another_forwarded_address_each__count_for_the_peer_without_a_proxy(
    store_url: str,
) -> None:
    with running({"REDIS_URL": store_url}) as service, connect(service) as sock:
        sock.sendall(b"".join(guess(n, f"203.0.113.{n}") for n in range(100)))
        assert Counter(answers(sock, 100))[429] >= 100 - 2 * PER_MINUTE


@pytest.mark.parametrize("name", ["api_key", "key", "token", "access_token", "apiKey", "auth"])
def test_key__in_the_query__is_refused_and_not_logged(service: Service, name: str) -> None:
    for path in (f"{COHORT_PATH}?{name}={KEY}", f"{COHORT_PATH}?a=b&{name}={quote(KEY + ':')}"):
        reply = raw(
            service,
            head(JSON, f"Content-Length: {len(BODY)}", "Connection: close", path=path) + BODY,
        )
        assert status(reply) == 401
        assert KEY.encode() not in reply
    assert KEY not in service.output()


@pytest.mark.parametrize("user_info", [f"{KEY}:@", f"{KEY}@"])
def test_key__in_the_address_before_the_host__is_refused(service: Service, user_info: str) -> None:
    reply = raw(service, head("Connection: close", path=f"http://{user_info}x{COHORT_PATH}"))
    assert status(reply) in (400, 401)


@pytest.mark.parametrize(
    "line",
    some(
        [
            "Authorization: Basic",
            "Authorization: Basic !!!!",
            "Authorization: Basic //79",
            "Authorization: Basic é",
            "Authorization: Basic " + "QUFB" * 1000,
            "Authorization: Bearer",
            "Authorization: Bearer " + "x" * 4000,
            "Authorization: Digest username=TEST_API_KEY",
            "Authorization: \0",
            "api_key: " + "x" * 4000,
            "api_key: é",
            "api_key:",
            "X-Api-Key: " + KEY,
            "Cookie: api_key=" + KEY,
        ]
    ),
)
def test_credentials__of_no_form_that_counts__are_refused(service: Service, line: str) -> None:
    data = head(line, JSON, f"Content-Length: {len(BODY)}", "Connection: close") + BODY
    assert status(raw(service, data)) in (400, 401)


def test_keys_and_ids__of_all_that_was_sent__are_in_no_log_line(service: Service) -> None:
    user, trait = "somebody@example.com", "n: 1"
    sent = identify(user, trait, True)
    assert service.post(sent).status == 200
    assert service.post(sent, api_key="not-the-key").status == 401
    assert service.post({**sent, "traits": {trait: 1}}).status == 400
    service.request("GET", f"/api/v1/users/{quote(user)}?api_key={ADMIN_KEY}", api_key=ADMIN_KEY)
    service.request("DELETE", f"/api/v1/users/{quote(user)}", api_key=ADMIN_KEY)
    logged = service.output()
    for secret in (KEY, ADMIN_KEY, "not-the-key", user, quote(user)):
        assert secret not in logged
    assert AUTH.partition(": ")[2] not in logged
