"""How long a dashboard session lasts, and how its secret is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from flask import Flask, request
from werkzeug.wrappers import Response

from app.auth.keyring import READ, Caller
from app.services import services
from app.settings import ApiKey
from app.store import StoreError, Tuning
from tests.integration.clock import Clock
from tests.integration.conftest import APP
from tests.integration.web.dashboard.test_views import Browser
from tests.support.stores import running_store

READ_KEY = "the-read-key"
HOUR = 3600
# Does not renew the session.
REFRESH = {"X-Auto-Refresh": "true"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(make_app: Callable[..., Flask], clock: Clock) -> Flask:
    return make_app(Tuning(now=clock, monotonic=clock), read_api_keys=(ApiKey(APP, READ_KEY),))


@pytest.fixture
def browser(app: Flask) -> Browser:
    return Browser(app).log_in(READ_KEY)


def test_session__after_twelve_hours_without_activity__is_over(
    browser: Browser, clock: Clock
) -> None:
    clock.forward(12 * HOUR - 60)
    browser.get("/health", headers=REFRESH)
    clock.forward(61)
    browser.get("/health", 303, headers=REFRESH)


def test_session__is_renewed_after_a_quarter_of_an_hour(browser: Browser, clock: Clock) -> None:
    clock.forward(HOUR / 4 - 60)
    assert "Set-Cookie" not in browser.get("/health").headers
    clock.forward(61)
    assert "Set-Cookie" in browser.get("/health").headers


@pytest.mark.parametrize(
    ("base_url", "name", "secure"),
    [
        ("http://localhost", "cohort-receiver", False),
        ("https://localhost", "__Host-cohort-receiver", True),
    ],
)
def test_log_out__removes_the_cookie(app: Flask, base_url: str, name: str, secure: bool) -> None:
    browser = Browser(app, base_url).log_in(READ_KEY)
    cookie = browser.send("/logout", token=browser.token()).headers["Set-Cookie"]
    removed, *attributes = cookie.split("; ")
    assert removed == f"{name}="
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=0"} <= set(attributes)
    assert ("Secure" in attributes) is secure


def test_session__whose_secret_was_deleted__is_over_ten_seconds_later(
    browser: Browser, clock: Clock, redis_client: redis.Redis
) -> None:
    browser.get("/health")
    redis_client.delete("cohorts:session-secret")
    clock.forward(10)
    browser.get("/health", 303)


def test_secret__is_created_before_the_first_login(app: Flask, redis_client: redis.Redis) -> None:
    services(app).sessions.prepare()
    assert redis_client.exists("cohorts:session-secret")


def test_cookie__before_the_secret_was_read_and_while_the_store_is_gone__is_503(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(redis_url="redis://127.0.0.1:1")
    services(app).sessions.prepare()
    http = app.test_client()
    http.set_cookie("cohort-receiver", "a.b.c")
    assert http.get("/health").status_code == 503


def test_secret__while_it_is_read_again__is_not_waited_for(
    app: Flask, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, store = services(app).sessions, services(app).store.sessions
    sessions.prepare()
    clock.forward(11)
    calls = []

    def slow() -> bytes:
        calls.append(1)
        sessions._signer()  # another request, during this call
        raise StoreError

    monkeypatch.setattr(store, "secret", slow)
    sessions._signer()
    assert len(calls) == 1


def test_secret__while_the_store_is_gone__is_trusted_for_an_hour(
    make_app: Callable[..., Flask], clock: Clock
) -> None:
    def set_cookie(app: Flask) -> None:
        sessions = services(app).sessions
        with app.test_request_context():
            sessions.set_cookie(sessions.open(Caller(APP, READ, "a-key")), request, Response())

    with running_store() as url:
        app = make_app(Tuning(now=clock, monotonic=clock), redis_url=url)
        set_cookie(app)
    clock.forward(HOUR - 60)
    set_cookie(app)
    clock.forward(61)
    with pytest.raises(StoreError):
        set_cookie(app)
