"""Real libraries of the Segment protocol, as an application uses them, against the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import rudderstack.analytics.client
import rudderstack.analytics.request
import segment.analytics.client
import segment.analytics.request

from tests.support.service import APP, KEY, Service

TRAIT = "[Amplitude] Power users: abc123"
LIBRARIES = {"segment": segment.analytics, "rudderstack": rudderstack.analytics}

Connect = Callable[..., Any]


@pytest.fixture(params=LIBRARIES)
def connect(
    request: pytest.FixtureRequest, service: Service, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connect]:
    """Make a client of the library; keyword arguments are its options.

    Its ``failures`` are what it reports as not delivered: status, code and user ids.
    """
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    library = LIBRARIES[request.param]
    # A service that stops waits for open connections, and logged errors would keep theirs open.
    monkeypatch.setitem(library.request._session.headers, "Connection", "close")
    made = []

    def make(key: str = KEY, **options: Any) -> Any:
        options = {"upload_interval": 0.1, "max_retries": 3, "gzip": True, **options}
        failures: list[tuple[object, object, list[str]]] = []

        def note(error: Any, calls: list[dict[str, Any]]) -> None:
            status, code = getattr(error, "status", error), getattr(error, "code", None)
            failures.append((status, code, [call["userId"] for call in calls]))

        client = library.client.Client(key, host=service.url, on_error=note, **options)
        client.failures = failures
        made.append(client)
        return client

    yield make
    for client in made:
        client.shutdown()


def hashes(client: redis.Redis) -> dict[str, dict[str, str]]:
    prefix = f"cohorts:{{{APP}}}:user:"
    return {key.removeprefix(prefix): client.hgetall(key) for key in client.keys(prefix + "*")}


@pytest.mark.parametrize("gzip", [True, False])
def test_identify_calls__of_many_users__all_land(
    connect: Connect, redis_client: redis.Redis, gzip: bool
) -> None:
    client = connect(gzip=gzip, upload_size=50)
    for number in range(120):
        client.identify(f"user {number} é", {TRAIT: number % 2 == 0})
    client.flush()
    assert client.failures == []
    assert hashes(redis_client) == {
        f"user {number} é": {TRAIT: "true" if number % 2 == 0 else "false"} for number in range(120)
    }
    members = redis_client.zrange(f"cohorts:{{{APP}}}:cohort:abc123:members", 0, -1)
    assert set(members) == {f"user {number} é" for number in range(0, 120, 2)}


def test_other_calls__beside_identify_calls__do_not_stop_them(
    connect: Connect, redis_client: redis.Redis
) -> None:
    client = connect()
    client.track("u1", "Song Played", {"song": "x"})
    client.identify("u1", {TRAIT: True}, context={"ip": "192.0.2.1"})
    client.page("u1", "Docs", "Python")
    client.screen("u1", "Home")
    client.group("u1", "g1", {"plan": "gold"})
    client.alias("anonymous", "u1")
    client.identify("u2", {TRAIT: True}, integrations={"All": False})
    client.flush()
    client.track("u1", "Song Stopped")
    client.flush()
    assert client.failures == []
    assert hashes(redis_client) == {"u1": {TRAIT: "true"}, "u2": {TRAIT: "true"}}


def test_timestamp__of_the_application__orders(connect: Connect, redis_client: redis.Redis) -> None:
    client = connect()
    now = datetime.now(tz=UTC)
    client.identify("u", {TRAIT: False}, timestamp=now - timedelta(minutes=1))
    client.flush()
    client.identify("u", {TRAIT: True}, timestamp=now - timedelta(minutes=2))
    client.flush()
    assert client.failures == []
    assert hashes(redis_client) == {"u": {TRAIT: "false"}}


def test_wrong_key__is_reported_once_and_not_retried(
    connect: Connect, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(key="wrong")
    client.identify("u", {TRAIT: True})
    client.flush()
    assert client.failures == [(401, "invalid_credentials", ["u"])]
    assert "after 1 " in caplog.text  # attempts, or tries
    assert hashes(redis_client) == {}


def test_bad_trait__is_reported_once_with_the_reason(
    connect: Connect, redis_client: redis.Redis
) -> None:
    client = connect()
    client.identify("u", {"n" * 513: True})
    client.flush()
    assert client.failures == [(400, "invalid_payload", ["u"])]
    assert hashes(redis_client) == {}


def test_other_traits__next_to_a_cohort_or_alone__are_no_failure(
    connect: Connect, redis_client: redis.Redis
) -> None:
    client = connect()
    client.identify("u", {"email": "a@b.c", TRAIT: True, "age": 7})
    client.identify("v", {"email": "a@b.c"})
    client.flush()
    assert client.failures == []
    assert hashes(redis_client) == {"u": {TRAIT: "true"}}
