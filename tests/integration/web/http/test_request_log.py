"""How a request is logged: its level, its path and its caller."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from structlog.testing import capture_logs

from app.settings import ApiKey
from tests.integration.conftest import APP, KEY, caller

BODY = {"type": "identify", "userId": "ann", "traits": {"Buyers:b1": True}}
READ_KEY = "the-read-key"


@pytest.mark.parametrize(
    ("key", "status", "level"),
    [(KEY, 200, "info"), ("wrong", 401, "warning"), (READ_KEY, 403, "warning")],
)
def test_request__refused_because_of_its_key__is_a_warning(
    make_app: Callable[..., Flask], key: str, status: int, level: str
) -> None:
    client = make_app(read_api_keys=(ApiKey(APP, READ_KEY),)).test_client()
    with capture_logs() as events:
        path = "/api/v1/integration/amplitude/cohort"
        assert client.post(path, json=BODY, headers={"api_key": key}).status_code == status
    (event,) = (event for event in events if event["event"] == "request")
    assert (event["status"], event["log_level"]) == (status, level)


@pytest.mark.parametrize(
    ("method", "path", "logged", "reason"),
    [
        ("PUT", "/lists/7/add/", "/lists/<path:list_id>/add", "method_not_allowed"),
        ("GET", "/v1/batch", "/v1/batch", "method_not_allowed"),
        ("POST", "/v1/batches", None, "not_found"),
    ],
)
def test_request__to_a_wrong_address__names_its_key_and_for_a_wrong_method_the_route(
    make_app: Callable[..., Flask], method: str, path: str, logged: str | None, reason: str
) -> None:
    app = make_app()
    with capture_logs() as events:
        caller(app).open(path, method=method)
        caller(app, "wrong").open(path, method=method)
    known, unknown = events
    assert (known["path"], known["reason"], known["app"]) == (logged, reason, APP)
    assert known["key"].startswith("ingest-")
    assert (unknown["path"], unknown["reason"]) == (logged, reason)
    assert not {"app", "key"} & {*unknown}


def test_login__names_its_key(make_app: Callable[..., Flask]) -> None:
    http = make_app(read_api_keys=(ApiKey(APP, READ_KEY),)).test_client()
    with capture_logs() as events:
        assert http.post("/login", data={"key": READ_KEY}).status_code == 303
    (event,) = (event for event in events if event["event"] == "request")
    assert event["app"] == APP
    assert event["key"].startswith("read-")


def test_scrape__with_the_metrics_token__names_it_and_no_app(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(metrics_token="the-token")
    with capture_logs() as events:
        assert caller(app, "the-token").get("/metrics").status_code == 200
    (event,) = (event for event in events if event["event"] == "request")
    assert (event["app"], event["key"]) == ("-", "metrics")


def test_request__to_a_wrong_address__is_not_found_while_the_store_is_down(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(redis_url="unix:///nowhere")
    assert caller(app, "wrong").get("/nothing").status_code == 404
