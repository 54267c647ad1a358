"""A store that can be read but not written: reads and the dashboard continue."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from flask import Flask
from limits import parse

from app.services import services
from app.web.dashboard.advice import advice
from simulator import payloads
from tests.integration.conftest import caller
from tests.integration.web.api.read_api import KEYS, READ_KEY
from tests.integration.web.dashboard.test_views import Browser

BODY = payloads.identify("u1", "[Amplitude] n: 1", True)
FAULTS = {"store_full": ("maxmemory", 1), "store_read_only": ("min-replicas-to-write", 1)}


@pytest.fixture(params=FAULTS)
def refuse(
    request: pytest.FixtureRequest, redis_client: redis.Redis
) -> Iterator[Callable[[], str]]:
    """Makes the store refuse writes; returns the reason that calls get."""
    option, value = FAULTS[request.param]

    def begin() -> str:
        redis_client.config_set(option, value)
        return request.param

    yield begin
    redis_client.config_set(option, 0)


@pytest.mark.parametrize("limit", ["1000/second", "20/hour"])
def test_reads__while_the_store_refuses_writes__continue_and_are_still_limited(
    make_app: Callable[..., Flask], refuse: Callable[[], str], limit: str
) -> None:
    app = make_app(rate_limit=parse(limit), **KEYS)
    assert caller(app).post(payloads.COHORT_PATH, json=BODY).status_code == 200
    reason = refuse()
    reply = caller(app).post(payloads.COHORT_PATH, json=BODY | {"userId": "u2"})
    assert (reply.status_code, reply.json["reason"]) == (503, reason)
    reader = caller(app, READ_KEY)
    paths = ["/api/v1/users/u1", "/api/v1/cohorts", "/api/v1/cohorts/1/members.csv"]
    assert [reader.get(path).status_code for path in paths] == [200, 200, 200]
    found = [reader.get("/api/v1/cohorts/1").status_code for _ in range(25)]
    assert set(found) == ({200} if limit == "1000/second" else {200, 429})


def test_dashboard_and_readiness__while_the_store_refuses_writes__continue_and_say_so(
    make_app: Callable[..., Flask], refuse: Callable[[], str]
) -> None:
    app = make_app(rate_limit=parse("1000/second"), **KEYS)
    assert caller(app).post(payloads.COHORT_PATH, json=BODY).status_code == 200
    services(app).sessions.prepare()  # as each worker does every second
    services(app).store.layout._checked.clear()
    reason = refuse()
    ready = caller(app).get("/readyz")
    assert (ready.status_code, ready.json["warnings"]) == (200, [reason])
    browser = Browser(app).log_in()  # the first one
    assert advice(reason).meaning in browser.get("/").text
    assert advice(reason).meaning in browser.get("/health").text


def test_dashboard__first_login_on_a_store_that_was_always_full__works_and_so_does_logout(
    make_app: Callable[..., Flask], redis_client: redis.Redis
) -> None:
    app = make_app(rate_limit=parse("1000/second"), **KEYS)
    redis_client.config_set("maxmemory", 1)
    try:
        browser = Browser(app).log_in()
        browser.get("/health")
        browser.send("/logout", token=browser.token())
        browser.get("/", 303)
    finally:
        redis_client.config_set("maxmemory", 0)


@pytest.mark.parametrize("words", ["cohorts list", "users show u1", "store check"])
def test_command__that_only_reads__works_while_the_store_refuses_writes(
    make_app: Callable[..., Flask], refuse: Callable[[], str], words: str
) -> None:
    app = make_app()
    assert caller(app).post(payloads.COHORT_PATH, json=BODY).status_code == 200
    services(app).store.layout._checked.clear()  # as in another process
    refuse()
    found = app.test_cli_runner().invoke(args=words.split())
    assert found.exit_code == 0, found.output
